"""Permanent neighbours: ours carry our protocol number, others are never read nor touched."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from felixpy.calc.entries import NeighbourKey
from felixpy.config import Settings
from felixpy.dataplane.links import Links
from felixpy.dataplane.neighbours import NeighbourTable
from felixpy.dataplane.ownership import Ownership
from felixpy.dataplane.table import Delta
from felixpy.model.net import format_address
from felixpy.netlink import rtnetlink as rt
from felixpy.netlink.monitor import monitor_routing
from felixpy.netlink.rtnetlink import KernelNeighbour
from felixpy.netlink.transport import NETLINK_ROUTE, NetlinkSocket
from tests.kernel import PROTOCOL, Clock, ip, ip_json, packed, pairs, reread_links

MAC1, MAC2 = (bytes.fromhex(f"eeeeeeeeee{number:02x}") for number in (1, 2))
V4, V6 = NeighbourKey("cali1", packed("10.65.0.2")), NeighbourKey("cali1", packed("fd00:65::2"))


@dataclass
class Neighbours:
    table: NeighbourTable
    socket: NetlinkSocket

    def read(self) -> None:
        reread_links(self.table.links, self.table.table)
        found = asyncio.run(self.table.read(self.socket))
        asyncio.run(self.table.table.adopt(found, set(), 0))

    def write(self) -> Delta[NeighbourKey, KernelNeighbour]:
        table = self.table.table
        delta = table.delta(0)
        requests = [rt.neighbour_request(one) for one in delta.put.values()]
        requests += [rt.neighbour_request(one, delete=True) for one in delta.remove.values()]
        assert self.socket.transact(requests) == {}
        table.record(delta, {}, 0)
        return delta


@pytest.fixture
def neighbours(network: None) -> Iterator[Neighbours]:
    one = Neighbours(NeighbourTable(Links(Clock()), Ownership.of(Settings()), Clock()), NetlinkSocket(NETLINK_ROUTE))
    yield one
    one.socket.close()


def permanent() -> dict[str, str]:
    found = [one for one in ip_json("neigh", "show", "nud", "permanent") if one.get("protocol") == str(PROTOCOL)]
    return {one["dst"]: one["lladdr"] for one in found}


def want_both(neighbours: Neighbours, mac: bytes) -> None:
    for key in (V4, V6):
        neighbours.table.table.want(key, mac)


def test_both_families_are_written_changed_and_removed(neighbours: Neighbours) -> None:
    pairs("cali1")
    neighbours.read()
    for mac in (MAC1, MAC2):
        want_both(neighbours, mac)
        assert neighbours.write().put.keys() == {V4, V6}
        assert permanent() == {"10.65.0.2": mac.hex(":"), "fd00:65::2": mac.hex(":")}
        neighbours.read()
        assert not neighbours.write()
    for key in (V4, V6):
        neighbours.table.table.drop(key)
    assert neighbours.write().remove.keys() == {V4, V6}
    assert permanent() == {}


def test_entries_of_an_earlier_life_go_and_foreign_ones_stay(neighbours: Neighbours) -> None:
    pairs("cali1")
    ip(
        f"neigh add 10.65.0.2 lladdr {MAC1.hex(':')} dev cali1 nud permanent protocol {PROTOCOL}",
        f"neigh add 10.65.0.3 lladdr {MAC1.hex(':')} dev cali1 nud permanent",
        f"neigh add fd00:65::3 lladdr {MAC1.hex(':')} dev cali1 nud permanent protocol 77",
    )
    neighbours.read()
    assert neighbours.write().remove.keys() == {V4}
    left = {one["dst"] for one in ip_json("neigh", "show", "nud", "permanent")}
    assert {"10.65.0.3", "fd00:65::3"} <= left
    assert "10.65.0.2" not in left


def test_an_entry_of_somebody_else_is_taken_over_where_it_is_wanted(neighbours: Neighbours) -> None:
    pairs("cali1")
    ip(f"neigh add 10.65.0.2 lladdr {MAC1.hex(':')} dev cali1 nud permanent")
    neighbours.read()
    neighbours.table.table.want(V4, MAC1)
    assert neighbours.write().put.keys() == {V4}
    assert permanent() == {"10.65.0.2": MAC1.hex(":")}


def test_an_entry_of_somebody_else_stays_when_ours_is_not_wanted_any_more(neighbours: Neighbours) -> None:
    pairs("cali1")
    neighbours.read()
    want_both(neighbours, MAC1)
    neighbours.write()
    with contextlib.closing(monitor_routing([neighbours.socket.port])) as monitor:
        for key in (V4, V6):
            address = format_address(key.address)
            ip(f"neigh del {address} dev cali1", f"neigh add {address} lladdr {MAC2.hex(':')} dev cali1 nud permanent")
        for message in monitor.read() or ():
            if message.type in (rt.RTM_NEWNEIGH, rt.RTM_DELNEIGH):
                neighbours.table.notify(message)
    assert neighbours.table.table.delta(0).put.keys() == {V4, V6}
    for key in (V4, V6):
        neighbours.table.table.drop(key)
    assert not neighbours.write()
    left = {one["dst"]: one["lladdr"] for one in ip_json("neigh", "show", "nud", "permanent")}
    assert (left["10.65.0.2"], left["fd00:65::2"]) == (MAC2.hex(":"), MAC2.hex(":"))


def test_an_entry_waits_for_its_interface_and_comes_back_after_a_flap(neighbours: Neighbours) -> None:
    neighbours.read()
    want_both(neighbours, MAC1)
    assert not neighbours.write()
    assert neighbours.table.table.state_of(V4) == "interface cali1 does not exist"
    ip("link add cali1 type veth peer name p-cali1")
    neighbours.read()
    assert not neighbours.write()
    assert neighbours.table.table.state_of(V6) == "interface cali1 is down"
    ip("link set cali1 up")
    neighbours.read()
    assert neighbours.write().put.keys() == {V4, V6}
    ip("link del cali1")
    pairs("cali1")
    neighbours.read()
    assert neighbours.write().put.keys() == {V4, V6}
    assert permanent().keys() == {"10.65.0.2", "fd00:65::2"}
