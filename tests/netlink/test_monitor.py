"""Notifications: what happens to links and addresses arrives; what was lost is said to be lost."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest

from felixpy.model.net import Family, Net
from felixpy.netlink import nftables as nft
from felixpy.netlink import rtnetlink as rt
from felixpy.netlink.message import Message
from felixpy.netlink.monitor import Monitor, monitor_nftables, monitor_routing
from felixpy.netlink.rtnetlink import KernelRoute, KernelRouteKey
from felixpy.netlink.transport import NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkSocket
from tests.kernel import PROTOCOL, ip, ip_json, pairs, run, sysctl

SO_RCVBUF = 8


@pytest.fixture
def monitor(network: None) -> Iterator[Monitor]:
    one = monitor_routing(())
    yield one
    one.close()


def waiting(monitor: Monitor) -> bool:
    return bool(select.select([monitor.fileno()], [], [], 0)[0])


def links(messages: list[Message] | None) -> list[tuple[int, str]]:
    assert messages is not None
    kinds = (rt.RTM_NEWLINK, rt.RTM_DELLINK)
    return [(m.type, rt.decode_link(m).name) for m in messages if m.type in kinds and not rt.is_af_specific(m)]


def test_a_link_is_followed_from_its_birth_to_its_end(monitor: Monitor) -> None:
    assert monitor.read() == []
    pairs("cali1")
    assert waiting(monitor)
    assert {(rt.RTM_NEWLINK, "cali1"), (rt.RTM_NEWLINK, "p-cali1")} <= set(links(monitor.read()))
    assert not waiting(monitor)
    ip("link set cali1 down", "link set cali1 name cali2")
    assert (rt.RTM_NEWLINK, "cali2") in links(monitor.read())
    ip("link del cali2")
    assert (rt.RTM_DELLINK, "cali2") in links(monitor.read())


def test_addresses_of_both_families_are_told_with_their_interface(monitor: Monitor) -> None:
    pairs("eth0")
    index = ip_json("link", "show", "eth0")[0]["ifindex"]
    monitor.read()
    ip("addr add 192.0.2.1/24 dev eth0", "addr add 2001:db8::1/64 dev eth0 nodad", "addr del 192.0.2.1/24 dev eth0")
    wanted = {(rt.RTM_NEWADDR, socket.AF_INET), (rt.RTM_NEWADDR, socket.AF_INET6), (rt.RTM_DELADDR, socket.AF_INET)}
    told: set[tuple[int, int, int]] = set()
    # The kernel tells of an IPv6 address from a work queue (addrconf_dad_work), after the command has ended.
    while not {(*one, index) for one in wanted} <= told and select.select([monitor.fileno()], [], [], 5)[0]:
        messages = monitor.read()
        assert messages is not None
        told |= {(m.type, m.payload[0], rt.address_interface(m)) for m in messages if m.type in (20, 21)}
    assert {(*one, index) for one in wanted} <= told


def test_what_speaks_of_one_family_is_told_apart(monitor: Monitor) -> None:
    ip("link add br0 type bridge", "link add eth0 type veth peer name p-eth0", "link set br0 up")
    monitor.read()
    ip("link set eth0 master br0", "link set eth0 up")
    messages = monitor.read()
    assert messages is not None
    families = {m.payload[0] for m in messages if m.type == rt.RTM_NEWLINK}
    assert socket.AF_BRIDGE in families
    assert {m.payload[0] for m in messages if m.type == rt.RTM_NEWLINK and not rt.is_af_specific(m)} == {0}


def test_lost_notifications_are_said_and_the_socket_is_replaced(monitor: Monitor) -> None:
    monitor._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUF, 2048)
    pairs("cali1", "cali2", "cali3", "cali4")
    reads: list[list[Message] | None] = [monitor.read()]
    assert reads == [None]
    assert monitor.read() == []
    ip("link set cali1 down")
    assert (rt.RTM_NEWLINK, "cali1") in links(monitor.read())


def test_what_came_of_our_own_requests_is_not_told(network: None) -> None:
    """Bulk writes of ours must not overflow the buffer in which the others' changes arrive."""
    ours, others = NetlinkSocket(NETLINK_ROUTE), NetlinkSocket(NETLINK_ROUTE)
    monitor = monitor_routing([ours.port])
    blackhole = KernelRoute(rt.RTN_BLACKHOLE, 0, protocol=PROTOCOL)
    for number, socket_ in enumerate((ours, others), start=1):
        key = KernelRouteKey(Family.V4, Net.parse(f"10.0.{number}.0/24"), 0, 254)
        assert socket_.transact([rt.route_request(key, blackhole)]) == {}
    messages = monitor.read()
    assert messages is not None
    told = [rt.decode_route(message) for message in messages if message.type == rt.RTM_NEWROUTE]
    assert [str(found[0].destination) for found in told if found] == ["10.0.2.0/24"]
    for one in (ours, others, monitor):
        one.close()


def test_rules_and_members_of_nf_tables_are_told_but_not_our_own(network: None) -> None:
    ours = NetlinkSocket(NETLINK_NETFILTER)
    monitor = monitor_nftables([ours.port])
    assert ours.transact(nft.batch([nft.new_table(Family.V4, "ours")]), batch=True) == {}
    run("nft", "add", "table", "ip6", "theirs")
    messages = monitor.read()
    assert messages is not None
    kinds = {m.type & 0xFF: nft.table_of(m, m.type & 0xFF) for m in messages if m.type & 0xFF == nft.NEWTABLE}
    assert kinds == {nft.NEWTABLE: "theirs"}
    ours.close()
    monitor.close()


@pytest.mark.parametrize(
    ("path", "family", "name", "value"),
    [
        ("ipv4/conf/cali1/proxy_arp", Family.V4, "proxy_arp", 1),
        ("ipv4/conf/cali1/rp_filter", Family.V4, "rp_filter", 2),
        ("ipv4/conf/cali1/forwarding", Family.V4, "forwarding", 1),
        ("ipv6/conf/cali1/forwarding", Family.V6, "forwarding", 1),
    ],
)
def test_a_changed_setting_is_told_with_its_interface(
    monitor: Monitor, path: str, family: Family, name: str, value: int
) -> None:
    pairs("cali1")
    index = ip_json("link", "show", "cali1")[0]["ifindex"]
    sysctl(path, 0)
    monitor.read()
    sysctl(path, value)
    messages = monitor.read()
    assert messages is not None
    told = [rt.decode_netconf(message) for message in messages if message.type == rt.RTM_NEWNETCONF]
    assert (family, index, {name: value}) in told


def test_a_setting_of_all_interfaces_is_told_as_such(monitor: Monitor) -> None:
    sysctl("ipv4/conf/all/forwarding", 0)
    monitor.read()
    sysctl("ipv4/conf/all/forwarding", 1)
    messages = monitor.read()
    assert messages is not None
    told = [rt.decode_netconf(message) for message in messages if message.type == rt.RTM_NEWNETCONF]
    assert (Family.V4, rt.NETCONFA_IFINDEX_ALL, {"forwarding": 1}) in told
