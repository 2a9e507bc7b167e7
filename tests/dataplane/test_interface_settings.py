"""Interface settings: read first, written only when different; forwarding never costs the node its default route."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from felixpy.calc.entries import SettingKey
from felixpy.calc.host import ALL_INTERFACES
from felixpy.dataplane.interface_settings import (
    InterfaceSettingTable,
    costs_advertised_routes,
    is_netlink,
    proc_path,
    read_proc,
    write_proc,
)
from felixpy.dataplane.links import Links
from felixpy.dataplane.table import Delta
from felixpy.model.net import Family
from felixpy.netlink.inventory import read_advertised_default_interfaces
from felixpy.netlink.transport import NETLINK_ROUTE, NetlinkSocket
from tests.kernel import Clock, ip_json, pairs, reread_links, run, sysctl

WORKLOAD: dict[SettingKey, int] = {
    SettingKey("cali1", Family.V4, "forwarding"): 1,
    SettingKey("cali1", Family.V4, "proxy_arp"): 1,
    SettingKey("cali1", Family.V4, "route_localnet"): 1,
    SettingKey("cali1", Family.V4, "rp_filter"): 2,
    SettingKey("cali1", Family.V4, "neigh/proxy_delay"): 0,
    SettingKey("cali1", Family.V6, "accept_ra"): 0,
    SettingKey("cali1", Family.V6, "forwarding"): 1,
}
ALL_V6 = SettingKey(ALL_INTERFACES, Family.V6, "forwarding")


@dataclass
class InterfaceSettings:
    table: InterfaceSettingTable
    socket: NetlinkSocket

    def read(self) -> None:
        reread_links(self.table.links, self.table.table)
        found = asyncio.run(self.table.read(self.socket))
        asyncio.run(self.table.table.adopt(found, set(), 0))

    def want(self, values: dict[SettingKey, int]) -> None:
        for key, value in values.items():
            self.table.table.want(key, value)

    def write(self, now: float = 0.0) -> tuple[Delta[SettingKey, int], dict[SettingKey, str]]:
        """Write differences as the apply loop does; what was written, and what could not be."""
        delta = self.table.table.delta(now)
        guarded = any(map(costs_advertised_routes, delta.put))
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


def held(keys: dict[SettingKey, int]) -> dict[SettingKey, int | None]:
    return {key: read_proc(proc_path(key)) for key in keys}


def test_the_path_of_a_setting() -> None:
    assert proc_path(SettingKey("eth0.5", Family.V6, "accept_ra")) == "/proc/sys/net/ipv6/conf/eth0.5/accept_ra"
    delay = SettingKey("cali1", Family.V4, "neigh/proxy_delay")
    assert proc_path(delay) == "/proc/sys/net/ipv4/neigh/cali1/proxy_delay"
    assert not is_netlink(delay)


def test_only_what_differs_is_written(interface_settings: InterfaceSettings) -> None:
    pairs("cali1")
    interface_settings.read()
    different = {key for key, value in WORKLOAD.items() if read_proc(proc_path(key)) != value}
    assert SettingKey("cali1", Family.V4, "proxy_arp") in different
    interface_settings.want(WORKLOAD)
    delta, refused = interface_settings.write()
    assert (delta.put.keys(), refused) == (different, {})
    assert held(WORKLOAD) == WORKLOAD
    assert interface_settings.socket.messages_sent == 0

    interface_settings.read()
    assert not interface_settings.write()[0]
    sysctl("ipv4/conf/cali1/rp_filter", 0)
    sysctl("ipv6/conf/cali1/accept_ra", 1)
    interface_settings.read()
    delta, _ = interface_settings.write()
    assert {key.name for key in delta.put} == {"rp_filter", "accept_ra"}
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


def test_settings_wait_for_their_interface_and_return_with_a_new_one(interface_settings: InterfaceSettings) -> None:
    interface_settings.read()
    interface_settings.want(WORKLOAD)
    assert not interface_settings.write()[0]
    key = SettingKey("cali1", Family.V4, "proxy_arp")
    assert interface_settings.table.table.state_of(key) == "interface cali1 does not exist"
    pairs("cali1")
    interface_settings.read()
    assert interface_settings.write()[0].put.keys() >= {key}
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
    delta, refused = interface_settings.write()
    by_netlink = {key for key in delta.put if is_netlink(key)}
    assert {key.name for key in by_netlink} >= {"forwarding", "proxy_arp", "route_localnet", "rp_filter"}
    assert interface_settings.socket.messages_sent == 1  # one message for the whole interface
    assert refused.keys() == delta.put.keys() - by_netlink
    accept_ra = SettingKey("cali1", Family.V6, "accept_ra")
    assert refused[accept_ra] == "cannot write /proc/sys/net/ipv6/conf/cali1/accept_ra: Read-only file system"
    assert {key: read_proc(proc_path(key)) for key in by_netlink} == {key: WORKLOAD[key] for key in by_netlink}
    interface_settings.read()
    assert not interface_settings.write(now=0.05)[0]  # in quarantine, nothing else differs


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
    deadline = time.monotonic() + 10
    while not advertised_defaults() and time.monotonic() < deadline:
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
    forwarding = SettingKey("cali1", Family.V6, "forwarding")
    interface_settings.read()
    interface_settings.want({forwarding: 1})
    delta, refused = interface_settings.write()
    assert (delta.put, refused) == ({forwarding: 1}, {})
    assert sysctl("ipv6/conf/cali1/forwarding") == 1
    assert sysctl(f"ipv6/conf/{learnt}/accept_ra") == 2
    assert advertised_defaults() == [learnt]


def test_the_learnt_default_route_survives_forwarding(learnt: str, interface_settings: InterfaceSettings) -> None:
    interface_settings.read()
    interface_settings.want({ALL_V6: 1})
    delta, refused = interface_settings.write()
    assert (delta.put, refused) == ({ALL_V6: 1}, {})
    assert sysctl("ipv6/conf/all/forwarding") == 1
    assert sysctl(f"ipv6/conf/{learnt}/accept_ra") == 2
    assert sysctl("ipv6/conf/p-eth0/accept_ra") == 0  # nobody else's
    assert advertised_defaults() == [learnt]
    _advertise("p-eth0")
    time.sleep(0.05)
    assert advertised_defaults() == [learnt]


def test_forwarding_stays_off_where_the_route_cannot_be_kept(
    learnt: str, interface_settings: InterfaceSettings, read_only_sysctls: None
) -> None:
    interface_settings.read()
    interface_settings.want({ALL_V6: 1})
    _, refused = interface_settings.write()
    assert refused[ALL_V6].startswith("IPv6 forwarding stays off: it would remove the advertised default route")
    assert f"net.ipv6.conf.{learnt}.accept_ra" in refused[ALL_V6]
    assert (sysctl("ipv6/conf/all/forwarding"), advertised_defaults()) == (0, [learnt])


def test_ipv4_forwarding_asks_for_no_guard(learnt: str, interface_settings: InterfaceSettings) -> None:
    interface_settings.read()
    key = SettingKey(ALL_INTERFACES, Family.V4, "forwarding")
    sysctl("ipv4/conf/all/forwarding", 0)
    interface_settings.read()
    interface_settings.want({key: 1})
    assert interface_settings.write() == (Delta(put={key: 1}), {})
    assert (sysctl("ipv4/ip_forward"), sysctl(f"ipv6/conf/{learnt}/accept_ra")) == (1, 1)
    assert interface_settings.socket.messages_sent == 0
