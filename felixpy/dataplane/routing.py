"""Tunnel devices, WireGuard's peers and the tables of routing: what is wanted of them, read and written.

Entries are made in this order and go the other way round:

    devices  →  WireGuard's peers  →  addresses, FDB, neighbours, nexthops, routes, rules of routing, in common batches

``Dataplane`` says when, between the packet filters' tables.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from felixpy.calc.entries import (
    MAIN_TABLE,
    AddressKey,
    DeviceKey,
    FdbKey,
    NeighbourKey,
    Nexthop,
    NexthopKey,
    PeerKey,
    PolicyRuleKey,
    RouteKey,
)
from felixpy.calc.entry_settings import wireguard_tables
from felixpy.calc.mtu import Tunnel
from felixpy.config import Settings
from felixpy.dataplane.batches import Written, write_deltas
from felixpy.dataplane.devices import DeviceTable
from felixpy.dataplane.fdb import FdbTable
from felixpy.dataplane.links import LinkEvents, Links
from felixpy.dataplane.neighbours import NeighbourTable
from felixpy.dataplane.nexthops import NexthopTable
from felixpy.dataplane.ownership import Ownership
from felixpy.dataplane.policy_rules import PolicyRuleTable
from felixpy.dataplane.release import AddressRelease
from felixpy.dataplane.report import ApplyReport
from felixpy.dataplane.routes import RouteTable
from felixpy.dataplane.table import Delta, KeyedTable
from felixpy.dataplane.tunnel_addresses import TunnelAddressTable
from felixpy.dataplane.wireguard import PeerTable, WireGuardDevices, WireGuardSettings
from felixpy.netlink import rtnetlink
from felixpy.netlink.nexthop import nexthop_request
from felixpy.netlink.rule import rule_request
from felixpy.netlink.transport import NetlinkSocket
from felixpy.netlink.tunnels import address_request, fdb_request

AnyTable = KeyedTable[Any, Any, Any]

K = TypeVar("K")
D = TypeVar("D")
C = TypeVar("C")


async def read_table(
    socket: NetlinkSocket,
    table: KeyedTable[K, D, C],
    read: Callable[[NetlinkSocket], Awaitable[dict[K, C]]],
    clock: Callable[[], float],
) -> None:
    """Have a table take what the kernel has of it.

    Raises:
        OSError: it could not be read.
    """
    with table.reading() as newer:
        await table.adopt(await read(socket), newer, clock())


class Routing:
    """All that leads packets, but for the settings of interfaces. ``heard``: is told of links that it makes or ends."""

    def __init__(
        self,
        settings: Settings,
        links: Links,
        socket: NetlinkSocket,
        release: AddressRelease,
        clock: Callable[[], float],
        heard: Callable[[LinkEvents], None],
    ) -> None:
        self.links = links
        self.socket = socket
        self.clock = clock
        self._heard = heard
        ownership = Ownership.of(settings)
        self.wireguard = WireGuardDevices(WireGuardSettings.of(settings))
        self.devices = DeviceTable(links, clock, self.wireguard)
        self.peers = PeerTable(links, self.wireguard, self.devices.standing)
        self.policy_rules = PolicyRuleTable(ownership, clock)
        self.addresses = TunnelAddressTable(
            links, ownership, clock, self.devices.lingers, lambda: self.devices.keys.keys()
        )
        self.fdb = FdbTable(links, clock)
        self.neighbours = NeighbourTable(links, ownership, clock)
        self.nexthops = NexthopTable(links, ownership, clock)
        self.routes = RouteTable(links, ownership, clock, release, self.nexthops)
        self.routes.tables = _tables(settings)
        self.tables: dict[type, AnyTable] = {
            DeviceKey: self.devices.table,
            PeerKey: self.peers.table,
            AddressKey: self.addresses.table,
            FdbKey: self.fdb.table,
            NeighbourKey: self.neighbours.table,
            NexthopKey: self.nexthops.table,
            RouteKey: self.routes.table,
            PolicyRuleKey: self.policy_rules.table,
        }
        self._in_order = self._written_in_order()

    def _written_in_order(self) -> tuple[Written, ...]:
        """The tables of routing in the order in which entries are made; they go the other way round."""
        return (
            Written(
                self.addresses.table,
                lambda key, value: address_request(value),
                lambda key, value: address_request(value, delete=True),
                only_new=True,
            ),
            Written(
                self.fdb.table,
                lambda key, value: fdb_request(value),
                lambda key, value: fdb_request(value, delete=True),
                only_new=True,
            ),
            Written(
                self.neighbours.table,
                lambda key, value: rtnetlink.neighbour_request(value),
                lambda key, value: rtnetlink.neighbour_request(value, delete=True),
            ),
            Written(
                self.nexthops.table,
                lambda key, value: nexthop_request(value),
                lambda key, value: nexthop_request(value, delete=True),
                only_new=True,
            ),
            Written(
                self.routes.table,
                lambda key, value: self.routes.request(key, value),
                lambda key, value: rtnetlink.route_request(key, value, delete=True),
            ),
            Written(
                self.policy_rules.table,
                lambda key, value: rule_request(value),
                lambda key, value: rule_request(value, delete=True),
                when_complete=True,
            ),
        )

    def configure(self, settings: Settings) -> None:
        """Take other settings."""
        for one in (self.routes, self.neighbours, self.nexthops, self.addresses, self.policy_rules):
            one.ownership = Ownership.of(settings)
        self.wireguard.settings = WireGuardSettings.of(settings)
        self.routes.tables |= _tables(settings)

    def want_nexthop(self, key: NexthopKey, value: object) -> None:
        """Take a nexthop; routes through it are looked at where they depend on it themselves."""
        table = self.nexthops.table
        known = key in table.desired
        if isinstance(value, Nexthop):
            self.nexthops.want(key, value)
        else:
            self.nexthops.drop(key)
        if not (known and isinstance(value, Nexthop) and self.nexthops.has_objects):
            self.routes.table.mark(list(self.routes.table.wanted_on(key)))

    def interface_changed(self, interface: str, *, lost: bool) -> None:
        """Look again at everything that hangs on an interface; ``lost``: it went, with all of it."""
        for kind, table in self.tables.items():
            if kind is not NexthopKey:
                table.interface_changed(interface, lost=lost and kind is not DeviceKey)
        self._nexthops_changed(interface, lost=lost)

    def carrier_changed(self, interface: str, *, silent: bool) -> None:
        """An interface that stays has a carrier again, or none: the kernel drops nexthops with it, and routes."""
        if self.nexthops.has_objects:
            self._nexthops_changed(interface, lost=silent)

    def _nexthops_changed(self, interface: str, *, lost: bool) -> None:
        """With a nexthop its routes come and go."""
        for key in list(self.nexthops.table.wanted_on(interface)):
            self.routes.table.interface_changed(key, lost=lost)
        self.nexthops.table.interface_changed(interface, lost=lost)

    async def read(self) -> None:
        """Read everything of ours from the kernel, in slices.

        Raises:
            OSError
        """
        await self._read(self.devices.table, self.devices.read)
        await self._read_peers()
        await self._read(self.addresses.table, self.addresses.read)
        await self._read(self.fdb.table, self.fdb.read)
        await self._read(self.neighbours.table, self.neighbours.read)
        had_objects = self.nexthops.has_objects
        await self._read(self.nexthops.table, self.nexthops.read)
        self.nexthops.settle()
        if had_objects != self.nexthops.has_objects:
            self.routes.table.mark([key for key, route in self.routes.table.desired.items() if route.nexthop])
        await self._read(self.routes.table, self.routes.read)
        await self._read(self.policy_rules.table, self.policy_rules.read)

    async def _read_peers(self) -> None:
        """Read WireGuard's peers; the devices look at their key files again, of which nothing tells."""
        devices, table = self.devices.table, self.peers.table
        devices.mark([key for key in self.wireguard.names.values() if key in devices.desired])
        with table.reading() as newer:
            await table.adopt(await self.peers.read(), newer, self.clock())

    async def read_sources(self) -> None:
        """Read all routes after their source address came or went, and try again what was refused for want of it.

        Raises:
            OSError: the kernel refused.
        """
        await self._read(self.routes.table, self.routes.read)
        table = self.routes.table
        table.mark([key for key in table.refused if key in table.desired and table.desired[key].source])

    async def read_routes(self, interface: str) -> None:
        """Read the routes of one interface, where the kernel may have removed some without a word.

        Raises:
            OSError: the kernel refused.
        """
        link = self.links.by_name.get(interface)
        with self.routes.table.reading() as newer:
            found = await self.routes.read(self.socket, link.ifindex) if link else {}
            self.routes.table.adopt_interface(interface, found, newer, self.clock())

    def present_tunnels(self) -> frozenset[Tunnel]:
        """Tunnels that have a device, or will: as long as one stands it could unpack something."""
        known = {**self.devices.table.desired, **self.devices.table.committed}
        return frozenset(map(self.devices.tunnel_of, known))

    def next_wakes(self) -> list[float | None]:
        """When something is due without any event, on the clock."""
        times = [self.routes.next_removal(), self.devices.next_removal()]
        if self.nexthops.table.dirty:
            times += [self.clock() + self.devices.settles_in(name) for name in self.devices.settling()]
        return times

    async def _read(self, table: KeyedTable[K, D, C], read: Callable[[NetlinkSocket], Awaitable[dict[K, C]]]) -> None:
        await read_table(self.socket, table, read, self.clock)

    async def write_devices(self, report: ApplyReport, *, complete: bool) -> None:
        """Tunnel devices, each by itself: they are few, and what hangs on them has to know their indexes."""
        table = self.devices.table
        if not table.dirty:
            return
        report.looked_at |= table.dirty
        now = self.clock()
        delta = table.delta(now)
        delta.remove = {}
        if not complete:
            delta.put = {key: value for key, value in delta.put.items() if key not in table.committed}
        refused: dict[DeviceKey, str] = {}
        for key, device in delta.put.items():
            events, reason = await self.devices.write(key, device, self.socket)
            self._heard(events)
            if reason:
                refused[key] = reason
            self.peers.table.mark(list(self.peers.table.wanted_on(key.name)))
        report.written += len(delta.put) - len(refused)
        table.record(delta, refused, now)

    async def write_peers(self, report: ApplyReport, *, removals: bool) -> None:
        """WireGuard's peers: before the routes to what they have, and out of the way after those."""
        table = self.peers.table
        if not table.dirty:
            return
        report.looked_at |= table.dirty
        now = self.clock()
        delta = table.delta(now)
        if removals:
            delta.put = {}
        else:
            delta.remove = {}
        if not delta:
            return
        refused = await self.peers.write(delta.put, delta.remove)
        report.written += len(delta.put) + len(delta.remove) - len(refused)
        table.record(delta, refused, now)

    def remove_devices(self, report: ApplyReport) -> None:
        """Devices that nobody needs, after everything that leads through them."""
        table = self.devices.table
        if not table.dirty:
            return
        now = self.clock()
        delta = table.delta(now)
        delta.put = {}
        refused: dict[DeviceKey, str] = {}
        for key in delta.remove:
            events, reason = self.devices.remove(key, self.socket)
            self._heard(events)
            if reason:
                refused[key] = reason
        report.written += len(delta.remove) - len(refused)
        table.record(delta, refused, now)

    async def write(self, report: ApplyReport, *, removals: bool, complete: bool) -> None:
        """Addresses, FDB, neighbours, nexthops and routes of both families in common batches; after removals everything
        else is in place.

        Where a route that was not known of stands under a key of ours it is looked at, and what may be written after
        that is written.
        """
        occupied = await self._write_routing(report, removals=removals, complete=complete)
        if occupied and await self._learn_occupants(occupied):
            await self._write_routing(report, removals=removals, complete=complete)

    async def _learn_occupants(self, keys: set[RouteKey]) -> bool:
        """Read what stands under keys that were refused for it, and look at them again. Whether that could be read."""
        table = self.routes.table
        with table.reading() as newer:
            try:
                found = await self.routes.occupants(self.socket, keys)
            except OSError:
                return False  # the keys are refused, and tried again
            for key, route in found.items():
                if key not in newer:
                    self.routes.learn(key, route)
        table.mark(keys)
        return True

    async def read_occupants(self) -> None:
        """Read whatever stands under keys that are wanted and that we have no route under, for whoever only looks.

        Raises:
            OSError: the kernel refused.
        """
        table = self.routes.table
        if missing := {key for key in table.desired if key not in table.committed}:
            for key, route in (await self.routes.occupants(self.socket, missing)).items():
                self.routes.learn(key, route)

    async def _write_routing(self, report: ApplyReport, *, removals: bool, complete: bool) -> set[RouteKey]:
        """One round of it. Returns the keys of new routes under which another one stands."""
        if not any(one.table.dirty for one in self._in_order):
            return set()
        now = self.clock()
        deltas: list[tuple[Written, Delta[Any, Any]]] = []
        for one in self._in_order:
            if not one.table.dirty:
                continue
            report.looked_at |= one.table.dirty
            delta = one.table.delta(now)
            if removals:
                delta.put = {}
            else:
                delta.remove = {}
                if one.when_complete and not complete:
                    delta.put = {}
                if one.only_new and not complete:
                    delta.put = {key: value for key, value in delta.put.items() if key not in one.table.committed}
            if one.table is self.nexthops.table:
                self._hold_nexthops(delta)
                self._nexthops_are_due(delta)
            if delta:
                deltas.append((one, delta))
        in_order = deltas[::-1] if removals else deltas
        exists = await write_deltas(self.socket, in_order, now, report, removals=removals)
        if removals:
            for one, delta in deltas:
                if one.table is self.nexthops.table:
                    self.nexthops.release(delta.remove)
        routes = self.routes.table.committed
        return {key for key in exists if isinstance(key, RouteKey) and key not in routes}

    def _hold_nexthops(self, delta: Delta[NexthopKey, Any]) -> None:
        """What has a way that works keeps it until the device of the new one has settled; it stays dirty."""
        indexes = {self.links.by_name[name].ifindex for name in self.devices.settling() if name in self.links.by_name}
        if indexes:
            known = self.nexthops.table.committed
            held = {
                key
                for key, nexthop in delta.put.items()
                if nexthop.interface in indexes and key in known and known[key].interface not in indexes
            }
            delta.put = {key: nexthop for key, nexthop in delta.put.items() if key not in held}

    def _nexthops_are_due(self, delta: Delta[NexthopKey, Any]) -> None:
        """Routes that wait for a nexthop are looked at with it. Without objects there is nothing to write."""
        routes, waiting = self.routes.table, self.routes.table.waiting
        for key in delta.put:
            if waiting and key not in self.nexthops.table.committed:
                routes.mark([route for route in routes.wanted_on(key) if route in waiting])
        if not self.nexthops.has_objects:
            self.nexthops.table.record(delta, {}, self.clock())
            self.nexthops.release(delta.remove)
            delta.put, delta.remove = {}, {}


def _tables(settings: Settings) -> frozenset[int]:
    """The routing tables that we have a part of; what an earlier run left is found, too."""
    return frozenset({MAIN_TABLE, *wireguard_tables(settings.route_table_ranges).values()})
