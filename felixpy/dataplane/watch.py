"""Kernel notifications -> keys to look at again, so that drift is repaired when the kernel says so.

What the kernel tells of single entries marks those; what it tells of rules and sets as a whole, and what it cannot tell
(a full buffer), is read again. Legacy iptables tells nothing: the sizes of its tables are looked at.
Never writes to the kernel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from msgspec import Struct, field

from felixpy.dataplane.apply import Dataplane
from felixpy.dataplane.fdb import is_fdb
from felixpy.dataplane.host import is_host_interface
from felixpy.dataplane.packet_filter import Part
from felixpy.dataplane.table import MISSING
from felixpy.dataplane.writers import nftables_writers, routing_writer
from felixpy.model.net import Family
from felixpy.netlink import nexthop, rtnetlink, rule
from felixpy.netlink.inventory import is_usable
from felixpy.netlink.message import Message
from felixpy.netlink.monitor import Monitor, monitor_nftables, monitor_routing

LOOK_SECONDS = 0.4
"""Between two looks at packet filters of which the kernel tells nothing."""

OVERFLOW_PAUSE_SECONDS = 0.2
"""After an overflow reading begins a little later: what overflowed the buffer is probably still going on."""


class Doubts(Struct):
    """What has to be read again: host addresses, one interface's routes, one family's packet filter, or everything.

    ``sources``: the source address of our routes came or went. With it the kernel takes the IPv4 routes, and of IPv6
    routes their ``src`` (``fib_sync_down_addr``, ``fib6_remove_prefsrc``), and tells nothing of either.

    With a packet filter stands what of it, and who changed it last, as far as the kernel tells.
    """

    host: bool = False
    sources: bool = False
    interfaces: set[str] = field(default_factory=set)
    filters: dict[Family, tuple[Part, str]] = field(default_factory=dict)
    everything: bool = False

    def __bool__(self) -> bool:
        return self.host or self.sources or self.everything or bool(self.interfaces or self.filters)


class Watch:
    """Two notification sockets on the event loop, and a clock for filters of which nothing is told.

    ``changed`` is called after each batch, ``take`` empties doubts.
    """

    def __init__(self, dataplane: Dataplane, changed: Callable[[], None], failed: Callable[[Exception], None]) -> None:
        self._dataplane = dataplane
        self._changed = changed
        self._failed = failed
        self._doubts = Doubts()
        self._monitors: dict[Monitor, int] = {}
        self._kernel: Monitor | None = None
        self._filters: Monitor | None = None
        self._next_look: asyncio.TimerHandle | None = None
        self.overflows = 0

    def open(self) -> None:
        """Start to listen to links, addresses, routes, neighbours and settings: before they are read.

        Raises:
            OSError: the kernel refused.
        """
        self._kernel = monitor_routing([self._dataplane.socket.port])
        self._add(self._kernel, self._routing)

    def follow_filters(self) -> None:
        """Listen to nf_tables, but for what the present packet filters do: before those are read.

        Raises:
            OSError: the kernel refused.
        """
        ports = [port for tables in self._dataplane.filters.values() for port in tables.filter.ports()]
        old, self._filters = self._filters, monitor_nftables(ports)
        self._add(self._filters, self._nftables)
        if old is not None:
            self._remove(old)
        self._look_later()

    def _look_later(self) -> None:
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None
        if any(tables.filter.is_silent for tables in self._dataplane.filters.values()):
            self._next_look = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        """Doubt the rules of families whose packet filter looks changed."""
        try:
            for family, tables in self._dataplane.filters.items():
                if tables.filter.is_silent and tables.filter.looks_changed():
                    self._doubts.filters.setdefault(family, (Part.RULES, ""))
                    self._changed()
        except Exception as error:  # noqa: BLE001 - a bug must end the agent, and the event loop would only log it
            self._failed(error)
            return
        self._look_later()

    def close(self) -> None:
        if self._next_look is not None:
            self._next_look.cancel()
        for monitor in (self._kernel, self._filters):
            if monitor is not None:
                self._remove(monitor)
        self._kernel = self._filters = None

    @property
    def is_open(self) -> bool:
        return self._kernel is not None

    def take(self) -> Doubts | None:
        """What has to be read again since the last call, if anything has."""
        if not self._doubts:
            return None
        doubts, self._doubts = self._doubts, Doubts()
        return doubts

    def _add(self, monitor: Monitor, take: Callable[[list[Message]], None]) -> None:
        self._monitors[monitor] = monitor.fileno()
        asyncio.get_running_loop().add_reader(monitor.fileno(), self._read, monitor, take)

    def _remove(self, monitor: Monitor) -> None:
        descriptor = self._monitors.pop(monitor, None)
        if descriptor is not None:
            asyncio.get_running_loop().remove_reader(descriptor)
        monitor.close()

    def _read(self, monitor: Monitor, take: Callable[[list[Message]], None]) -> None:
        loop, descriptor = asyncio.get_running_loop(), self._monitors[monitor]
        try:
            messages = monitor.read()
            if messages is None:
                self.overflows += 1
                loop.remove_reader(descriptor)
                del self._monitors[monitor]
                loop.call_later(OVERFLOW_PAUSE_SECONDS, self._resume, monitor, take)
                return
            take(messages)
        except Exception as error:  # noqa: BLE001 - a bug must end the agent, and the event loop would only log it
            loop.remove_reader(descriptor)
            self._failed(error)
        self._changed()

    def _resume(self, monitor: Monitor, take: Callable[[list[Message]], None]) -> None:
        if monitor in (self._kernel, self._filters):  # neither closed nor replaced meanwhile
            self._add(monitor, take)
        self._doubts.everything = True
        self._changed()

    def _routing(self, messages: list[Message]) -> None:
        """Links come first: an entry that went with its interface is no drift."""
        dataplane = self._dataplane
        events = dataplane.links.notify(messages)
        if events.renamed:
            dataplane.routing.neighbours.renamed(events.renamed)
        dataplane.link_events(events)
        for name in events.renamed.values():  # settings stand by name, not by index as routes do
            dataplane.interface_settings.table.interface_changed(name, lost=True)
            self._doubts.host = True
        for name in events.changed | events.lost:
            if is_host_interface(name, self._workload_prefixes):
                self._doubt_routes(name)
                self._doubts.host = self._doubts.host or name in dataplane.links.addressed
        for message in messages:
            match message.type:
                case rtnetlink.RTM_NEWROUTE | rtnetlink.RTM_DELROUTE:
                    ways = dataplane.routing.routes.ways
                    known = len(ways.gateways), len(ways.uplinks)
                    with dataplane.routing.routes.table.blaming(partial(routing_writer, message)):
                        dataplane.routing.routes.notify(message)
                    self._doubts.host = self._doubts.host or known != (len(ways.gateways), len(ways.uplinks))
                    if dataplane.routing.routes.table.refused or dataplane.routing.neighbours.table.refused:
                        self._retry_ipv6(message)
                case rtnetlink.RTM_NEWNEIGH | rtnetlink.RTM_DELNEIGH:
                    with dataplane.routing.neighbours.table.blaming(partial(routing_writer, message)):
                        (dataplane.routing.fdb if is_fdb(message) else dataplane.routing.neighbours).notify(message)
                case nexthop.RTM_NEWNEXTHOP | nexthop.RTM_DELNEXTHOP:
                    self._nexthop(message)
                case rule.RTM_NEWRULE | rule.RTM_DELRULE:
                    dataplane.routing.policy_rules.notify(message)
                case rtnetlink.RTM_NEWLINK | rtnetlink.RTM_DELLINK:
                    if not rtnetlink.is_af_specific(message):
                        dataplane.routing.devices.notify(message)
                case rtnetlink.RTM_NEWNETCONF:
                    dataplane.interface_settings.notify(message)
                case rtnetlink.RTM_NEWADDR | rtnetlink.RTM_DELADDR:
                    self._address(message)

    def _nexthop(self, message: Message) -> None:
        """Take a nexthop notification; with an object its routes went, of which not all are told."""
        dataplane = self._dataplane
        with dataplane.routing.nexthops.table.blaming(partial(routing_writer, message)):
            gone = dataplane.routing.nexthops.notify(message)
        if gone is not None:
            dataplane.routing.routes.table.interface_changed(gone, lost=True)

    def _retry_ipv6(self, message: Message) -> None:
        """Try again what the kernel refused while IPv6 was off on an interface (``disable_ipv6``).

        That it is on again is told by nothing but the routes that the kernel then makes for it.
        """
        if message.type != rtnetlink.RTM_NEWROUTE or rtnetlink.route_protocol(message) != rtnetlink.RTPROT_KERNEL:
            return
        decoded = rtnetlink.decode_route(message)
        name = self._dataplane.links.name_of(decoded[1].interface) if decoded else None
        if decoded is None or decoded[0].family is not Family.V6 or name is None:
            return
        routes, neighbours = self._dataplane.routing.routes.table, self._dataplane.routing.neighbours.table
        routes.mark([key for key in routes.wanted_on(name) if key in routes.refused and key.family is Family.V6])
        neighbours.mark([key for key in neighbours.wanted_on(name) if key in neighbours.refused])

    def _address(self, message: Message) -> None:
        """Take a RTM_NEWADDR or RTM_DELADDR: with an address of the node its routes may have come or gone."""
        dataplane, address = self._dataplane, rtnetlink.decode_address(message)
        settings = dataplane.settings
        sources = settings.device_route_source_address, settings.device_route_source_address_ipv6
        self._doubts.sources |= address is not None and address.net.packed in sources
        name = dataplane.links.name_of(rtnetlink.address_interface(message))
        if name is None or name.startswith(dataplane.local_prefixes):
            return
        dataplane.routing.addresses.notify(message)
        if address is None or is_usable(address):  # each interface gets a link-local one, also that of any container
            self._doubts.host = True
            self._doubt_routes(name)

    def _doubt_routes(self, interface: str) -> None:
        """The kernel may have removed routes of an interface without a word. Only a wanted one can be missed: of an
        interface without any, such as another program makes for each of its containers, nothing is read. Of one that
        has gone the link message tells all.
        """
        dataplane = self._dataplane
        if interface in dataplane.links.by_name and dataplane.routing.routes.table.wanted_on(interface):
            self._doubts.interfaces.add(interface)

    def _nftables(self, messages: list[Message]) -> None:
        now = self._dataplane.clock()
        for message, writer in zip(messages, nftables_writers(messages), strict=True):
            for family, tables in self._dataplane.filters.items():
                members = tables.filter.notify(message)
                if isinstance(members, Part):
                    before, _ = self._doubts.filters.get(family, (members, ""))
                    self._doubts.filters[family] = Part.ALL if Part.ALL in (before, members) else members, writer
                    continue
                with tables.elements.blaming(partial(str, writer)):
                    for key, came in members:
                        tables.elements.observe(key, None if came else MISSING, now)

    @property
    def _workload_prefixes(self) -> tuple[str, ...]:
        return self._dataplane.settings.interface_prefix
