"""Routes of the main table: desired routes by interface name, kernel routes by index.

Ours are the routes with our protocol number, and, with RemoveExternalRoutes, whatever stands on a workload interface
except what the kernel itself put there. An external route is left alone while its interface is young: a CNI plugin
may have made it for an endpoint that has not arrived yet.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable

from felixpy.calc.entries import MAIN_TABLE, Route, RouteKey
from felixpy.dataplane.links import Links
from felixpy.dataplane.ownership import Ownership
from felixpy.dataplane.release import AddressRelease
from felixpy.dataplane.report import Spent
from felixpy.dataplane.table import MISSING, KeyedTable, Waiting
from felixpy.model.net import Family, Net
from felixpy.netlink import rtnetlink
from felixpy.netlink.message import Message
from felixpy.netlink.rtnetlink import KernelRoute
from felixpy.netlink.transport import NetlinkError, NetlinkSocket
from felixpy.slices import emptied, in_slices

GRACE_SECONDS = 10.0
"""Felix's grace period for routes on new workload interfaces (reference/felix.md §3.6)."""

LINK_LOCAL = b"\xfe\x80"
MULTICAST = b"\xff"


class RouteTable:
    """Keyed table of routes, both families, with its way to read and write."""

    def __init__(
        self, links: Links, ownership: Ownership, clock: Callable[[], float], release: AddressRelease | None = None
    ) -> None:
        self.links = links
        self.ownership = ownership
        self._clock = clock
        self._release = release
        self.whole, self.partial = Spent(), Spent()
        """Readings of all routes, and of one interface's."""
        self.table: KeyedTable[RouteKey, Route, KernelRoute] = KeyedTable(
            "routes",
            self._resolve,
            ours=lambda key, route: self._ours(key.destination, route),
            removable=lambda key, route: self._age_left(route) <= 0,
            interface_of=lambda key, route: route.interface,
            describe=lambda route: f"a route of protocol {route.protocol} through {links.name_of(route.interface)}",
        )

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
        for family in Family:
            dumped = await self._dump(socket, family, interface)
            async for parts in in_slices(emptied(dumped, dumped.pop), 1):  # from the last, as in ``decode``
                found.update(*parts)
        (self.partial if interface else self.whole).add(time.perf_counter() - started)
        return found

    async def _dump(self, socket: NetlinkSocket, family: Family, interface: int) -> list[dict[RouteKey, KernelRoute]]:
        try:
            request = rtnetlink.route_dump_request(family, MAIN_TABLE, interface)
            return await socket.decode_together(request, self.decode)
        except NetlinkError as error:
            # The kernel makes the table with its first route; an interface may have gone since it was told of.
            if error.errno != errno.ENOENT and not (interface and error.errno == errno.ENODEV):
                raise
            return []

    def decode(self, messages: Iterable[Message]) -> dict[RouteKey, KernelRoute]:
        """Routes of the main table that are ours; the first of those with one key, which is the one in effect."""
        # Each interface of a full node has a route for its link-local addresses.
        some = [message for message in messages if not self._never_ours(rtnetlink.route_protocol(message))]
        routes = reversed(rtnetlink.decode_routes(some))  # what comes later takes the place of what came before
        return {
            RouteKey(*key): route
            for key, route in routes
            if key.table == MAIN_TABLE and self._ours(key.destination, route)
        }

    def notify(self, message: Message) -> None:
        """Take a route notification. A foreign route that takes the place of a wanted one counts too."""
        decoded = rtnetlink.decode_route(message)
        if decoded is None or decoded[0].table != MAIN_TABLE:
            return
        key, route = RouteKey(*decoded[0]), decoded[1]
        if message.type == rtnetlink.RTM_DELROUTE:
            if self.table.committed.get(key) == route:
                self.table.observe(key, MISSING, self._clock())
        elif key in self.table.desired or self._ours(key.destination, route):
            self.table.observe(key, route, self._clock())

    def _resolve(self, key: RouteKey, route: Route) -> KernelRoute:
        if self._release is not None and key.destination.is_host:
            self._release.hold(self.table, key, key.destination.packed)
        index = 0
        if route.interface is not None:
            link = self.links.by_name.get(route.interface)
            if link is None:
                raise Waiting(f"interface {route.interface} does not exist", gone=True)  # or has another name now
            if not link.up:
                raise Waiting(f"interface {route.interface} is down")
            index = link.ifindex
        return KernelRoute(route.type, index, route.gateway, route.onlink, route.source, route.scope, route.protocol)

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
