"""Routes of the main table and of WireGuard's: desired routes by interface name, kernel routes by index.

Ours are the routes with our protocol number, and, with RemoveExternalRoutes, whatever stands on a workload interface
except what the kernel itself put there. An external route is left alone while its interface is young: a CNI plugin
may have made it for an endpoint that has not arrived yet.

Another's route is never replaced. A first write is exclusive (NLM_F_EXCL), and where the kernel refuses it the key
waits and says whose route stands there, until the kernel tells that it went. Only where a route of ours stood, as the
kernel told, may what took its place be replaced: that is drift. The kernel's own routes are not even then.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Collection, Iterable
from itertools import product

from msgspec import Struct, field

from felixpy.calc.entries import MAIN_TABLE, NexthopKey, Route, RouteKey
from felixpy.dataplane.links import Links
from felixpy.dataplane.nexthops import NexthopTable
from felixpy.dataplane.ownership import OUR_PROTOCOL, Ownership
from felixpy.dataplane.release import AddressRelease
from felixpy.dataplane.report import Spent
from felixpy.dataplane.table import MISSING, KeyedTable, Waiting
from felixpy.model.net import Family, Net, format_address
from felixpy.netlink import rtnetlink
from felixpy.netlink.message import NLM_F_APPEND, NLM_F_REPLACE, Message, Request
from felixpy.netlink.rtnetlink import KernelRoute
from felixpy.netlink.transport import NetlinkError, NetlinkSocket
from felixpy.slices import emptied, in_slices

GRACE_SECONDS = 10.0
"""Felix's grace period for routes on new workload interfaces (reference/felix.md §3.6)."""

PROTOCOLS = {
    rtnetlink.RTPROT_KERNEL: "the kernel",
    3: "boot: made by hand or a script",
    4: "static: an administrator",
    rtnetlink.RTPROT_RA: "router advertisement",
    11: "zebra",
    12: "BIRD",
    16: "DHCP",
    80: "Calico",
    186: "BGP",
    188: "OSPF",
}
"""Who makes routes of a protocol (linux/rtnetlink.h; 80 is Felix's default)."""

TYPES = {2: "local ", 3: "broadcast ", 6: "blackhole ", 7: "unreachable ", 8: "prohibit "}

LINK_LOCAL = b"\xfe\x80"
MULTICAST = b"\xff"


class Ways(Struct):
    """Ways of the node's own network, as others' routes have them: (gateway, interface index), and which interfaces
    default routes go through. Rather too many than too few: what goes is missed at the next reading of all routes.
    A gateway that its route alone puts on the link (``onlink``) is the end of a tunnel, mostly: only a default
    route's counts.
    """

    gateways: set[tuple[bytes, int]] = field(default_factory=set)
    uplinks: set[int] = field(default_factory=set)

    def add_default(self, ways: Iterable[tuple[bytes, int]]) -> None:
        for gateway, interface in ways:
            self.uplinks.add(interface)
            if gateway:
                self.gateways.add((gateway, interface))


class RouteTable:
    """Keyed table of routes, both families, with its way to read and write."""

    def __init__(
        self,
        links: Links,
        ownership: Ownership,
        clock: Callable[[], float],
        release: AddressRelease | None = None,
        nexthops: NexthopTable | None = None,
    ) -> None:
        self.links = links
        self._nexthops = nexthops or NexthopTable(links, ownership, clock)
        self._ownership = ownership
        self._formerly_ours = {OUR_PROTOCOL}
        self._clock = clock
        self._release = release
        self.tables: frozenset[int] = frozenset({MAIN_TABLE})
        """The routing tables that we have a part of."""
        self.ways = Ways()
        self._ways_being_read: list[Ways] = []
        self._displaced: set[RouteKey] = set()
        """Keys of which somebody was seen to put his route in the place of ours."""
        self.whole, self.partial = Spent(), Spent()
        """Readings of all routes, and of one interface's."""
        self.table: KeyedTable[RouteKey, Route, KernelRoute] = KeyedTable(
            "routes",
            self._resolve,
            ours=lambda key, route: self._ours(key.destination, route),
            removable=lambda key, route: self._age_left(route) <= 0,
            interface_of=lambda key, route: route.nexthop or route.interface,
            describe=lambda route: f"a route of protocol {route.protocol} through {links.name_of(route.interface)}",
        )

    @property
    def ownership(self) -> Ownership:
        return self._ownership

    @ownership.setter
    def ownership(self, ownership: Ownership) -> None:
        self._formerly_ours.add(self._ownership.device_route_protocol)
        self._ownership = ownership

    def next_removal(self) -> float | None:
        """When the first external route may go, on the clock; None if none waits.

        One whose removal was refused, or undone too often, has a time of its own (``KeyedTable.next_retry``).
        """
        table = self.table
        waits = [
            self._clock() + self._age_left(value)
            for key in table.dirty
            if key not in table.desired and key not in table.refused and (value := table.committed.get(key)) is not None
        ]
        return min(waits) if waits else None

    async def read(self, socket: NetlinkSocket, interface: int = 0) -> dict[RouteKey, KernelRoute]:
        """Our routes of both families, or those through one interface (by index), in slices.

        Raises:
            NetlinkError: the kernel refused, or the table kept changing.
        """
        started = time.perf_counter()
        found: dict[RouteKey, KernelRoute] = {}
        ways = Ways()
        self._ways_being_read.append(ways)
        try:
            for family, number in product(Family, self.tables):
                dumped = await self._dump(socket, family, number, interface, ways)
                async for parts in in_slices(emptied(dumped, dumped.pop), 1):  # from the last, as in ``decode``
                    found.update(*parts)
        finally:
            self._ways_being_read = [one for one in self._ways_being_read if one is not ways]
        if not interface:
            self.ways = ways
        (self.partial if interface else self.whole).add(time.perf_counter() - started)
        return found

    async def _dump(
        self, socket: NetlinkSocket, family: Family, table: int, interface: int, ways: Ways
    ) -> list[dict[RouteKey, KernelRoute]]:
        try:
            request = rtnetlink.route_dump_request(family, table, interface)
            return await socket.decode_together(request, lambda some: self.decode(some, ways))
        except NetlinkError as error:
            # The kernel makes the table with its first route; an interface may have gone since it was told of.
            if error.errno != errno.ENOENT and not (interface and error.errno == errno.ENODEV):
                raise
            return []

    def decode(self, messages: Iterable[Message], ways: Ways | None = None) -> dict[RouteKey, KernelRoute]:
        """Routes of our tables that are ours; the first of those with one key, which is the one in effect.

        In IPv4 that can be another's, in front of ours. ``ways`` takes those of the others.
        """
        ways = ways or Ways()
        # Each interface of a full node has a route for its link-local addresses.
        some = []
        for message in messages:
            if rtnetlink.is_default_route(message) and rtnetlink.route_table(message) == MAIN_TABLE:
                ways.add_default(rtnetlink.decode_ways(message.payload))
            if not self._never_ours(rtnetlink.route_protocol(message)):
                some.append(message)
        decoded = rtnetlink.decode_routes(some)
        ours = self.ownership.device_route_protocol
        ways.gateways.update(
            (route.gateway, route.interface)
            for key, route in decoded
            if route.protocol != ours and route.gateway and not route.onlink and key.table == MAIN_TABLE
        )
        found: dict[RouteKey, KernelRoute] = {}
        for key, route in reversed(decoded):  # what comes later takes the place of what came before
            if key.table in self.tables:
                if self._ours(key.destination, route):
                    found[RouteKey(*key)] = self._through_object(route)
                elif key.family is Family.V4 and RouteKey(*key) in found:
                    found[RouteKey(*key)] = route  # in front of ours
        return found

    def _through_object(self, route: KernelRoute) -> KernelRoute:
        """A route of ours as we write it: of one through a nexthop object the kernel tells where that leads now."""
        if not route.nexthop or route.protocol != self.ownership.device_route_protocol:
            return route
        kind, _, _, _, source, scope, protocol, nexthop = route
        return KernelRoute(kind, 0, None, False, source, scope, protocol, nexthop)

    async def occupants(self, socket: NetlinkSocket, keys: Collection[RouteKey]) -> dict[RouteKey, KernelRoute]:
        """What stands under keys of our tables, whosever it is.

        Raises:
            NetlinkError: the kernel refused, or the table kept changing.
        """
        found: dict[RouteKey, KernelRoute] = {}
        for family, table in {(key.family, key.table) for key in keys}:
            request = rtnetlink.route_dump_request(family, table)
            for some in reversed(await socket.decode_together(request, rtnetlink.decode_routes)):
                routes = ((RouteKey(*key), self._through_object(route)) for key, route in reversed(some))
                found.update((key, route) for key, route in routes if key in keys)
        return found

    def learn(self, key: RouteKey, route: KernelRoute) -> None:
        """Take what was found to stand under a wanted key where nothing of ours was known to stand."""
        self._displaced.discard(key)
        self.table.learn(key, route)

    def request(self, key: RouteKey, route: KernelRoute) -> Request:
        """The message that makes a route, in place of what is known to stand there or of nothing."""
        return rtnetlink.route_request(key, route, exclusive=key not in self.table.committed)

    def notify(self, message: Message) -> None:
        """Take a route notification. A foreign route that takes the place of a wanted one counts too."""
        decoded = rtnetlink.decode_route(message)
        if decoded is None or decoded[0].table not in self.tables:
            return
        if message.type == rtnetlink.RTM_NEWROUTE and decoded[0].table == MAIN_TABLE:
            self._note_way(message, decoded[1])
        key, route = RouteKey(*decoded[0]), self._through_object(decoded[1])
        if message.type == rtnetlink.RTM_DELROUTE:
            if self.table.committed.get(key) == route:
                self.table.observe(key, MISSING, self._clock())
        elif self._ours(key.destination, route):
            self.table.observe(key, route, self._clock())
        elif key in self.table.desired:
            self._stranger(key, route, message.flags)

    def _note_way(self, message: Message, route: KernelRoute) -> None:
        for ways in (self.ways, *self._ways_being_read):
            if rtnetlink.is_default_route(message):
                ways.add_default(rtnetlink.decode_ways(message.payload))
            elif route.gateway and not route.onlink and route.protocol != self.ownership.device_route_protocol:
                ways.gateways.add((route.gateway, route.interface))

    def _stranger(self, key: RouteKey, route: KernelRoute, flags: int) -> None:
        """Another's route came under a key that is wanted: in the place of ours, before it, or behind it.

        IPv6 puts what does not replace behind (``fib6_add_rt2node``), IPv4 what is appended; there it is no matter.
        """
        standing = self.table.committed.get(key)
        if standing is None or not self._ours(key.destination, standing):
            if not flags & NLM_F_REPLACE:
                self._displaced.discard(key)
        elif flags & NLM_F_REPLACE:
            self._displaced.add(key)
        else:
            self._displaced.discard(key)
            if key.family is Family.V6 or flags & NLM_F_APPEND:
                return
        self.table.observe(key, route, self._clock())

    def _resolve(self, key: RouteKey, route: Route) -> KernelRoute:
        standing = self.table.committed.get(key)
        if standing is not None and not self._replaceable(key, standing):
            raise Waiting(self._whose(key, standing))
        if self._release is not None and key.destination.is_host:
            self._release.hold(self.table, key, key.destination.packed)
        if route.nexthop is not None:
            return self._resolve_nexthop(route, route.nexthop)
        index = 0
        if route.interface is not None:
            link = self.links.by_name.get(route.interface)
            if link is None:
                raise Waiting(f"interface {route.interface} does not exist", gone=True)  # or has another name now
            if not link.up:
                raise Waiting(f"interface {route.interface} is down")
            index = link.ifindex
        return KernelRoute(route.type, index, route.gateway, route.onlink, route.source, route.scope, route.protocol)

    def _resolve_nexthop(self, route: Route, key: NexthopKey) -> KernelRoute:
        table = self._nexthops.table
        wanted = table.desired.get(key)
        if wanted is None:
            raise Waiting(f"there is no way to node {key.node}", gone=True)
        nexthop = self._nexthops.resolve(key, wanted)
        if (refused := table.refused.get(key)) is not None and refused.retry_at > self._clock():
            raise Waiting(f"nexthop {wanted}: {refused.reason}")
        if self._nexthops.has_objects:
            return KernelRoute(route.type, 0, None, False, route.source, route.scope, route.protocol, nexthop.id)
        way = nexthop.interface, nexthop.gateway, True
        return KernelRoute(route.type, *way, route.source, route.scope, route.protocol)

    def _replaceable(self, key: RouteKey, standing: KernelRoute) -> bool:
        """Whether ours may take the place of what stands under its key."""
        if self._ours(key.destination, standing):
            return True
        if standing.protocol == rtnetlink.RTPROT_KERNEL:
            return False
        return key in self._displaced or standing.protocol in self._formerly_ours

    def _whose(self, key: RouteKey, route: KernelRoute) -> str:
        who = f" ({PROTOCOLS[route.protocol]})" if route.protocol in PROTOCOLS else ""
        via = f" via {format_address(route.gateway)}" if route.gateway else ""
        name = self.links.name_of(route.interface) if route.interface else None
        way = f"{TYPES.get(route.type, '')}route{via}{f' dev {name}' if name else ''}"
        return (
            f"{key.destination} is taken by a {way} of protocol {route.protocol}{who}, which is not felixpy's and "
            "stays; remove it, or what wants its place"
        )

    def _ours(self, destination: Net, route: KernelRoute) -> bool:
        if route.protocol == self.ownership.device_route_protocol:
            return True
        if not self.ownership.remove_external_routes or self._never_ours(route.protocol):
            return False
        name = self.links.name_of(route.interface)
        if name is None or not name.startswith(self.ownership.interface_prefix):
            return False
        packed = destination.packed
        return not (len(packed) == 16 and (packed.startswith(LINK_LOCAL) or packed.startswith(MULTICAST)))

    def _never_ours(self, protocol: int) -> bool:
        kernel = protocol in (rtnetlink.RTPROT_KERNEL, rtnetlink.RTPROT_RA)
        return kernel and protocol != self.ownership.device_route_protocol

    def _age_left(self, route: KernelRoute) -> float:
        if route.protocol == self.ownership.device_route_protocol:
            return 0.0
        seen = self.links.first_seen.get(route.interface)
        return 0.0 if seen is None else seen + GRACE_SECONDS - self._clock()
