"""Interface settings: read first, written only when different; forwarding never costs the node its default route."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from felixpy.calc.entries import SettingsKey, SettingValues
from felixpy.calc.host import ALL_INTERFACES
from felixpy.dataplane import interface_settings as module
from felixpy.dataplane.interface_settings import (
    InterfaceSettingTable,
    is_netlink,
    proc_path,
    read_proc,
    write_proc,
)
from felixpy.dataplane.links import Links
from felixpy.dataplane.table import Delta
from felixpy.demo.patience import Patience
from felixpy.model.net import Family
from felixpy.netlink.inventory import read_advertised_default_interfaces
from felixpy.netlink.monitor import Monitor, monitor_routing
from felixpy.netlink.rtnetlink import RTM_NEWNETCONF
from felixpy.netlink.transport import NETLINK_ROUTE, NetlinkSocket
from tests.kernel import Clock, ip_json, pairs, reread_links, run, sysctl

V4, V6 = SettingsKey("cali1", Family.V4), SettingsKey("cali1", Family.V6)
ALL_V6 = SettingsKey(ALL_INTERFACES, Family.V6)
FORWARDING = SettingValues(forwarding=1)
CANNOT = "cannot write /proc/sys/net/{}: Read-only file system"

Wanted = dict[SettingsKey, SettingValues]

WORKLOAD: Wanted = {
    V4: SettingValues(
        {"forwarding": 1, "proxy_arp": 1, "route_localnet": 1, "rp_filter": 2, "neigh/proxy_delay": 0},
    ),
    V6: SettingValues(accept_ra=0, forwarding=1),
}


@dataclass
class InterfaceSettings:
    table: InterfaceSettingTable
    socket: NetlinkSocket

    def read(self) -> None:
        reread_links(self.table.links, self.table.table)
        found = asyncio.run(self.table.read(self.socket))
        asyncio.run(self.table.table.adopt(found, set(), 0))

    def want(self, values: Wanted) -> None:
        for key, value in values.items():
            self.table.table.want(key, value)

    def differing(self) -> set[tuple[SettingsKey, str]]:
        """What is about to be written."""
        known = self.table.table.committed
        put = self.table.table.delta(0.0).put
        return {(key, name) for key, values in put.items() for name in values.besides(known.get(key, {}))}

    def write(self, now: float = 0.0) -> tuple[Delta[SettingsKey, SettingValues], dict[SettingsKey, str]]:
        """Write differences as the apply loop does; what was written, and what could not be."""
        delta = self.table.table.delta(now)
        guarded = self.table.cost_advertised_routes(delta.put)
        advertised = asyncio.run(read_advertised_default_interfaces()) if guarded else set[int]()
        refused = self.table.write(delta.put, advertised, self.socket)
        self.table.table.record(delta, refused, now)
        return delta, refused


@pytest.fixture
def interface_settings(network: None) -> Iterator[InterfaceSettings]:
    one = InterfaceSettings(InterfaceSettingTable(Links(Clock()), Clock()), NetlinkSocket(NETLINK_ROUTE))
    yield one
    one.socket.close()


@pytest.fixture
def read_only_sysctls(network: None) -> Iterator[None]:
    """/proc/sys as an unprivileged container has it, in this process's own mount namespace."""
    run("mount", "--bind", "/proc/sys", "/proc/sys")
    try:
        run("mount", "-o", "remount,ro,bind", "/proc/sys")
        yield
    finally:
        run("umount", "/proc/sys")


def held(wanted: Wanted) -> dict[SettingsKey, dict[str, int | None]]:
    return {key: {name: read_proc(proc_path(key, name)) for name in values} for key, values in wanted.items()}


def test_the_path_of_a_setting() -> None:
    assert proc_path(SettingsKey("eth0.5", Family.V6), "accept_ra") == "/proc/sys/net/ipv6/conf/eth0.5/accept_ra"
    assert proc_path(V4, "neigh/proxy_delay") == "/proc/sys/net/ipv4/neigh/cali1/proxy_delay"
    assert not is_netlink(V4, "neigh/proxy_delay")


def test_only_what_differs_is_written(interface_settings: InterfaceSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def write_and_note(path: str, value: int) -> str:
        written.append(path)
        return write_proc(path, value)

    monkeypatch.setattr(module, "write_proc", write_and_note)
    pairs("cali1")
    interface_settings.read()
    different = {
        proc_path(key, name)
        for key, values in WORKLOAD.items()
        for name, value in values.items()
        if read_proc(proc_path(key, name)) != value
    }
    assert proc_path(V4, "proxy_arp") in different
    interface_settings.want(WORKLOAD)
    _, refused = interface_settings.write()
    assert (set(written), len(written), refused) == (different, len(different), {})
    assert held(WORKLOAD) == WORKLOAD
    assert interface_settings.socket.messages_sent == 0

    interface_settings.read()
    assert not interface_settings.write()[0]
    sysctl("ipv4/conf/cali1/rp_filter", 0)
    sysctl("ipv6/conf/cali1/accept_ra", 1)
    interface_settings.read()
    written.clear()
    interface_settings.write()
    assert sorted(written) == [proc_path(V4, "rp_filter"), proc_path(V6, "accept_ra")]
    assert held(WORKLOAD) == WORKLOAD


def test_no_file_is_read_of_what_the_kernel_tells_by_itself(
    interface_settings: InterfaceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the link was told, then a notification, then as written, though no link message came since."""
    looked_at: list[str] = []

    def read_and_note(path: str) -> int | None:
        looked_at.append(path.rpartition("/")[2])
        return read_proc(path)

    pairs("cali1")
    sysctl("ipv4/conf/cali1/forwarding", 1)
    interface_settings.read()
    monkeypatch.setattr(module, "read_proc", read_and_note)
    with contextlib.closing(monitor_routing(())) as monitor:
        sysctl("ipv4/conf/cali1/proxy_arp", 1)
        sysctl("ipv4/conf/cali1/forwarding", 0)
        for message in monitor.read() or ():
            if message.type == RTM_NEWNETCONF:
                interface_settings.table.notify(message)
    interface_settings.want(WORKLOAD)
    differing = {name for key, name in interface_settings.differing() if key == V4}
    assert {"forwarding", "proxy_arp"} & differing == {"forwarding"}
    assert sorted(looked_at) == ["accept_ra", "proxy_delay", "route_localnet"]
    interface_settings.write()
    for key in WORKLOAD:
        interface_settings.table.table.drop(key)
    interface_settings.write()
    interface_settings.want(WORKLOAD)
    assert not interface_settings.write()[0]


def test_what_the_kernel_tells_is_kept_also_of_what_is_not_wanted_then(interface_settings: InterfaceSettings) -> None:
    """A workload loses its IPv6 address, somebody changes forwarding, and the workload comes again with both."""
    pairs("cali1")
    interface_settings.read()
    interface_settings.want(WORKLOAD)
    interface_settings.write()
    interface_settings.want({V6: SettingValues(accept_ra=0)})
    interface_settings.write()
    with contextlib.closing(monitor_routing(())) as monitor:
        sysctl("ipv6/conf/cali1/forwarding", 0)
        for message in monitor.read() or ():
            if message.type == RTM_NEWNETCONF:
                interface_settings.table.notify(message)
    assert not interface_settings.write()[0]
    interface_settings.table.table.drop(V6)
    interface_settings.write()
    interface_settings.want(WORKLOAD)
    assert interface_settings.differing() == {(V6, "forwarding")}


def test_the_start_believes_its_first_reading_until_the_next(network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of interfaces that it found; files are read of one that came later, and of any after the next reading."""
    looked_at: list[str] = []

    def read_and_note(path: str) -> int | None:
        looked_at.append(path.split("/")[-2])
        return read_proc(path)

    pairs("cali1", "cali2")
    sysctl("ipv4/neigh/cali1/proxy_delay", 7)
    links = Links(Clock())
    one = InterfaceSettings(InterfaceSettingTable(links, Clock(), believes_start=True), NetlinkSocket(NETLINK_ROUTE))
    with contextlib.closing(one.socket):
        one.read()
        pairs("cali3")
        reread_links(links, one.table.table)
        monkeypatch.setattr(module, "read_proc", read_and_note)
        wanted = {
            key._replace(interface=name): values for key, values in WORKLOAD.items() for name in ("cali1", "cali3")
        }
        one.want(wanted)
        one.table.table.delta(0.0)
        assert one.table.table.committed[V4]["neigh/proxy_delay"] == sysctl("ipv4/neigh/cali1/proxy_delay") < 8
        assert set(looked_at) == {"cali3"}
        one.write()
        assert held(wanted) == wanted
        looked_at.clear()
        sysctl("ipv4/neigh/cali1/proxy_delay", 80)
        one.read()
        assert one.differing() == {(V4, "neigh/proxy_delay")}
        assert not looked_at
        one.want({key._replace(interface="cali2"): values for key, values in WORKLOAD.items()})
        one.table.table.delta(0.0)
        assert set(looked_at) == {"cali2"}


def test_an_interface_with_the_index_of_one_that_is_gone_is_not_believed(network: None) -> None:
    """Made between the start and the first comparison; what the start found right was the other's."""
    clock = Clock()
    pairs("cali1")
    sysctl("ipv4/neigh/cali1/proxy_delay", 0)
    links = Links(clock)
    one = InterfaceSettings(InterfaceSettingTable(links, clock, believes_start=True), NetlinkSocket(NETLINK_ROUTE))
    with contextlib.closing(one.socket), contextlib.closing(monitor_routing(())) as monitor:
        one.read()
        clock.now += 0.001
        index = links.by_name["cali1"].ifindex
        run("ip", "link", "del", "cali1")
        run("ip", "link", "add", "cali1", "index", str(index), "type", "veth", "peer", "name", "p-cali1")
        links.notify(monitor.read() or ())
        assert links.by_name["cali1"].ifindex == index
        sysctl("ipv6/conf/cali1/accept_ra", 0)  # a CNI plugin, after the link was told
        one.want(WORKLOAD)
        differing = one.differing()
        assert (V6, "accept_ra") not in differing
        assert (V4, "neigh/proxy_delay") in differing
        one.write()
    assert held(WORKLOAD) == WORKLOAD


def test_settings_that_nobody_wants_any_more_stay_as_they_are(interface_settings: InterfaceSettings) -> None:
    pairs("cali1")
    interface_settings.read()
    interface_settings.want(WORKLOAD)
    interface_settings.write()
    for key in WORKLOAD:
        interface_settings.table.table.drop(key)
    assert not interface_settings.write()[0].put
    assert held(WORKLOAD) == WORKLOAD
    assert interface_settings.table.table.dirty == set()


def test_what_is_wanted_while_settings_are_read_and_is_right_is_no_drift(interface_settings: InterfaceSettings) -> None:
    pairs("cali1")
    interface_settings.read()
    interface_settings.want(WORKLOAD)
    interface_settings.write()
    for key in WORKLOAD:
        interface_settings.table.table.drop(key)
    interface_settings.write()
    table = interface_settings.table.table
    with table.reading() as newer:
        found = asyncio.run(interface_settings.table.read(interface_settings.socket))
        interface_settings.want(WORKLOAD)
        assert not interface_settings.write()[0]
        asyncio.run(table.adopt(found, newer, 0))
    assert (table.committed, table.drifted, table.dirty) == (WORKLOAD, 0, set())


def test_settings_wait_for_their_interface_and_return_with_a_new_one(interface_settings: InterfaceSettings) -> None:
    interface_settings.read()
    interface_settings.want(WORKLOAD)
    assert not interface_settings.write()[0]
    assert interface_settings.table.table.state_of(V4) == "interface cali1 does not exist"
    pairs("cali1")
    interface_settings.read()
    assert interface_settings.write()[0].put.keys() >= {V4}
    run("ip", "link", "del", "cali1")
    pairs("cali1")
    assert held(WORKLOAD) != WORKLOAD
    reread_links(interface_settings.table.links, interface_settings.table.table)
    interface_settings.write()
    assert held(WORKLOAD) == WORKLOAD


def test_where_proc_is_read_only_ipv4_goes_by_netlink_and_the_rest_is_said(
    interface_settings: InterfaceSettings, read_only_sysctls: None
) -> None:
    pairs("cali1")
    interface_settings.read()
    interface_settings.want(WORKLOAD)
    assert interface_settings.differing() >= {(V4, "proxy_arp"), (V4, "route_localnet"), (V6, "accept_ra")}
    _, refused = interface_settings.write()
    assert interface_settings.socket.messages_sent == 1  # one message for the whole interface
    assert refused == {
        V4: CANNOT.format("ipv4/neigh/cali1/proxy_delay"),
        V6: CANNOT.format("ipv6/conf/cali1/accept_ra") + "; " + CANNOT.format("ipv6/conf/cali1/forwarding"),
    }
    by_netlink = {V4: SettingValues({name: value for name, value in WORKLOAD[V4].items() if is_netlink(V4, name)})}
    assert len(by_netlink[V4]) == 4
    assert held(by_netlink) == by_netlink
    interface_settings.read()
    assert not interface_settings.write(now=0.05)[0]  # in quarantine, nothing else differs


def test_of_an_interface_what_can_be_written_is(
    interface_settings: InterfaceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file that refuses keeps no other setting from its value, and only it is written again."""
    written: list[str] = []

    def write_or_refuse(path: str, value: int) -> str:
        written.append(path)
        return "no" if path.endswith("accept_ra") else write_proc(path, value)

    monkeypatch.setattr(module, "write_proc", write_or_refuse)
    pairs("cali1")
    sysctl("ipv6/conf/cali1/accept_ra", 1)
    sysctl("ipv6/conf/cali1/forwarding", 0)
    interface_settings.read()
    interface_settings.want(WORKLOAD)
    assert interface_settings.write()[1] == {V6: "no"}
    assert (sysctl("ipv6/conf/cali1/accept_ra"), sysctl("ipv6/conf/cali1/forwarding")) == (1, 1)
    assert interface_settings.table.table.state_of(V6) == "no"
    assert interface_settings.differing() == set()  # in quarantine
    written.clear()
    interface_settings.write(now=1.0)
    assert written == [proc_path(V6, "accept_ra")]


def test_an_interface_that_vanished_meanwhile_is_refused_alone(interface_settings: InterfaceSettings) -> None:
    pairs("cali1", "cali2")
    interface_settings.read()
    other = {key._replace(interface="cali2"): value for key, value in WORKLOAD.items()}
    interface_settings.want(WORKLOAD | other)
    run("ip", "link", "del", "cali1")
    _, refused = interface_settings.write()
    assert refused
    assert {key.interface for key in refused} == {"cali1"}
    assert held(other) == other


NO_ADDRESS = SettingValues(accept_ra=0)


def notified(monitor: Monitor, table: InterfaceSettingTable) -> None:
    for message in monitor.read() or ():
        if message.type == RTM_NEWNETCONF:
            table.notify(message)


def test_an_interface_too_narrow_for_ipv6_needs_no_ipv6_settings_until_it_is_wider(
    interface_settings: InterfaceSettings,
) -> None:
    pairs("cali1")
    run("ip", "link", "set", "cali1", "mtu", "1279")
    table = interface_settings.table
    interface_settings.read()
    interface_settings.want({V6: NO_ADDRESS})
    assert not interface_settings.write()[0]
    assert table.table.state_of(V6) == ""
    for _ in range(2):
        interface_settings.read()
        assert not interface_settings.write()[0]
    assert table.table.drifted == 0
    with contextlib.closing(monitor_routing(())) as monitor:
        run("ip", "link", "set", "cali1", "mtu", "1280")
        sysctl("ipv6/conf/cali1/accept_ra", 1)
        notified(monitor, table)
    assert interface_settings.write() == (Delta(put={V6: NO_ADDRESS}), {})
    assert sysctl("ipv6/conf/cali1/accept_ra") == 0


def test_a_workload_with_ipv6_addresses_is_told_why_it_has_no_ipv6(interface_settings: InterfaceSettings) -> None:
    pairs("cali1")
    run("ip", "link", "set", "cali1", "mtu", "1279")
    interface_settings.read()
    interface_settings.want(WORKLOAD)
    reason = (
        "IPv6 is off on cali1: its MTU is below 1280, or IPv6 was disabled there;"
        " raise the MTU, or give the workload no IPv6 address"
    )
    assert interface_settings.write()[1] == {V6: reason}
    with contextlib.closing(monitor_routing(())) as monitor:
        run("ip", "link", "set", "cali1", "mtu", "1280")
        notified(monitor, interface_settings.table)
    assert interface_settings.write()[1] == {}  # at once, not after the pause
    assert held(WORKLOAD) == WORKLOAD


def test_reading_and_writing_what_is_not_there() -> None:
    assert read_proc("/proc/sys/net/ipv4/conf/nobody/forwarding") is None
    assert read_proc("/proc/sys/net/ipv4/ping_group_range") is None  # two numbers
    missing = "/proc/sys/net/ipv4/conf/nobody/forwarding"
    assert write_proc(missing, 1) == f"cannot write {missing}: No such file or directory"


# --- the default route and forwarding ---------------------------------------------------------------------------

ROUTER_ADVERTISEMENT = struct.pack(">BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)


def _advertise(interface: str) -> None:
    """One router advertisement out of an interface, as a router on the link sends it (RFC 4861 §4.2)."""
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as router:
        router.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        router.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        router.sendto(ROUTER_ADVERTISEMENT, ("ff02::1", 0, 0, socket.if_nametoindex(interface)))


def advertised_defaults() -> list[str]:
    return [route["dev"] for route in ip_json("-6", "route", "show", "default", "proto", "ra")]


@pytest.fixture
def learnt(network: None) -> str:
    """The name of an interface with a default route that the kernel itself learnt by router advertisement."""
    sysctl("ipv6/conf/all/forwarding", 0)
    sysctl("ipv6/conf/default/forwarding", 0)
    sysctl("ipv6/conf/default/accept_ra", 1)
    sysctl("ipv6/conf/default/accept_dad", 0)
    pairs("eth0")
    sysctl("ipv6/conf/p-eth0/accept_ra", 0)
    patience = Patience(30)
    while not advertised_defaults() and not patience.over():
        try:
            _advertise("p-eth0")
        except OSError as error:
            assert error.errno in (errno.EADDRNOTAVAIL, errno.ENETUNREACH)  # its own address is not ready yet
        time.sleep(0.02)
    assert advertised_defaults() == ["eth0"]
    return "eth0"


def test_without_the_guard_the_kernel_removes_the_route(learnt: str) -> None:
    """The control: this is what the guard is for."""
    sysctl("ipv6/conf/all/forwarding", 1)
    assert advertised_defaults() == []


def test_forwarding_of_any_one_interface_removes_it_too(learnt: str) -> None:
    pairs("cali1")
    sysctl("ipv6/conf/cali1/forwarding", 1)
    assert advertised_defaults() == []


def test_the_learnt_default_route_survives_forwarding_of_a_workload_interface(
    learnt: str, interface_settings: InterfaceSettings
) -> None:
    pairs("cali1")
    interface_settings.read()
    interface_settings.want({V6: FORWARDING})
    delta, refused = interface_settings.write()
    assert (delta.put, refused) == ({V6: FORWARDING}, {})
    assert sysctl("ipv6/conf/cali1/forwarding") == 1
    assert sysctl(f"ipv6/conf/{learnt}/accept_ra") == 2
    assert advertised_defaults() == [learnt]


def test_the_learnt_default_route_survives_forwarding(learnt: str, interface_settings: InterfaceSettings) -> None:
    interface_settings.read()
    interface_settings.want({ALL_V6: FORWARDING})
    delta, refused = interface_settings.write()
    assert (delta.put, refused) == ({ALL_V6: FORWARDING}, {})
    assert sysctl("ipv6/conf/all/forwarding") == 1
    assert sysctl(f"ipv6/conf/{learnt}/accept_ra") == 2
    assert sysctl("ipv6/conf/p-eth0/accept_ra") == 0  # nobody else's
    assert advertised_defaults() == [learnt]
    _advertise("p-eth0")
    time.sleep(0.05)
    assert advertised_defaults() == [learnt]


def test_the_default_route_of_a_daemon_stands_and_accept_ra_stays_0(interface_settings: InterfaceSettings) -> None:
    """systemd-networkd and NetworkManager listen themselves, and install the route under the same protocol number."""
    pairs("eth0")
    sysctl("ipv6/conf/all/forwarding", 0)
    sysctl("ipv6/conf/eth0/accept_ra", 0)
    run("ip", "-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0", "proto", "ra")
    interface_settings.read()
    interface_settings.want({ALL_V6: FORWARDING})
    assert interface_settings.write()[1] == {}
    assert (sysctl("ipv6/conf/all/forwarding"), sysctl("ipv6/conf/eth0/accept_ra")) == (1, 0)
    assert advertised_defaults() == ["eth0"]


def test_forwarding_stays_off_where_the_route_cannot_be_kept(
    learnt: str, interface_settings: InterfaceSettings, read_only_sysctls: None
) -> None:
    interface_settings.read()
    interface_settings.want({ALL_V6: FORWARDING})
    _, refused = interface_settings.write()
    assert refused[ALL_V6].startswith("IPv6 forwarding stays off: it would remove the advertised default route")
    assert f"net.ipv6.conf.{learnt}.accept_ra" in refused[ALL_V6]
    assert (sysctl("ipv6/conf/all/forwarding"), advertised_defaults()) == (0, [learnt])


def test_ipv4_forwarding_asks_for_no_guard(learnt: str, interface_settings: InterfaceSettings) -> None:
    interface_settings.read()
    key = SettingsKey(ALL_INTERFACES, Family.V4)
    sysctl("ipv4/conf/all/forwarding", 0)
    interface_settings.read()
    interface_settings.want({key: FORWARDING})
    assert interface_settings.write() == (Delta(put={key: FORWARDING}), {})
    assert (sysctl("ipv4/ip_forward"), sysctl(f"ipv6/conf/{learnt}/accept_ra")) == (1, 1)
    assert interface_settings.socket.messages_sent == 0
