"""Notifications: what happens to links and addresses arrives; what was lost is said to be lost."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest

from felixpy.netlink import rtnetlink as rt
from felixpy.netlink.monitor import Monitor, monitor_routing
from felixpy.netlink.transport import Message
from tests.kernel import ip, ip_json, pairs

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
    messages = monitor.read()
    assert messages is not None
    told = [(m.type, m.payload[0], rt.address_interface(m)) for m in messages if m.type in (20, 21)]
    assert (rt.RTM_NEWADDR, socket.AF_INET, index) in told
    assert (rt.RTM_NEWADDR, socket.AF_INET6, index) in told
    assert (rt.RTM_DELADDR, socket.AF_INET, index) in told


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
