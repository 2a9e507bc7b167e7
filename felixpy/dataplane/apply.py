"""One apply: make the kernel equal to what is wanted, for all tables, in an order that never breaks traffic.

    set members and rules in  →  tunnel devices  →  WireGuard's peers  →  addresses, FDB, neighbours, nexthops, routes,
    rules of routing in, in this order  →  settings  →  the same out, the other way round  →  set members out

Only this module decides about writing; it is driven by one task. Nothing is removed, and no rule is changed, before the
stream has said that its snapshot is complete (``complete``): additions alone may go early, and only into rules that
stand. Those come first on a node without routes of ours, which has no traffic that they could stop. Where none stand,
because they cannot be written, nothing opens either: no route, no forwarding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import cast

from felixpy.calc.entries import (
    DeviceKey,
    ElementKey,
    Key,
    NexthopKey,
    SetName,
    SettingsKey,
    Value,
)
from felixpy.calc.graph import ABSENT, Absent, Changes
from felixpy.calc.host import ALL_INTERFACES
from felixpy.calc.mtu import Tunnel
from felixpy.calc.policy.classes import Direction, MemberKey
from felixpy.calc.rules import RuleSettings
from felixpy.config import Failsafe, Settings
from felixpy.dataplane.filter_tables import FilterTables, PolicyObject, write_together
from felixpy.dataplane.interface_settings import InterfaceSettingTable
from felixpy.dataplane.links import LinkEvents, Links
from felixpy.dataplane.operations import operations_of
from felixpy.dataplane.packet_filter import PacketFilter, Part
from felixpy.dataplane.release import AddressRelease
from felixpy.dataplane.report import ApplyReport, Operation
from felixpy.dataplane.routing import AnyTable, Routing, read_table
from felixpy.model.net import Family
from felixpy.netlink import rtnetlink
from felixpy.netlink.inventory import read_advertised_default_interfaces
from felixpy.netlink.transport import NETLINK_ROUTE, NetlinkSocket
from felixpy.netlink.xtables import knows_match
from felixpy.slices import in_slices

MOST_IN_USE = 8
"""So many servers that told the agent lately stay reachable."""

OF_THE_NODE = frozenset({SetName.HOSTS, SetName.NOT_MASQUERADED})
"""Sets that a node without any object has members of."""


class Dataplane:
    """All kernel tables of the node, and the one way to write them."""

    def __init__(
        self,
        settings: Settings,
        links: Links,
        filters: Mapping[Family, PacketFilter],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.local_prefixes = settings.interface_prefix
        """Those that this machine's own settings have: what they name is a workload's, whatever the kernel tells."""
        self.links = links
        self.clock = clock
        self.socket = NetlinkSocket(NETLINK_ROUTE)
        self.release = AddressRelease()
        self.routing = Routing(settings, links, self.socket, self.release, clock, self.link_events)
        self.interface_settings = InterfaceSettingTable(links, clock, believes_start=True)
        self.filters: dict[Family, FilterTables] = {
            family: FilterTables(one, self.release) for family, one in filters.items()
        }
        self._nftables, self._tunnels = True, frozenset[Tunnel]()
        self._in_use: tuple[Failsafe, ...] = ()
        self._is_set_aside = False
        self._links_changed: set[str] = set()
        self._closed: set[Family] = set()
        self._tables: dict[type, AnyTable] = {**self.routing.tables, SettingsKey: self.interface_settings.table}

    def configure(self, settings: Settings) -> None:
        """Take other settings; with another ownership the kernel is to be read next."""
        self.settings = settings
        self.routing.configure(settings)

    def use_filters(self, filters: Mapping[Family, PacketFilter], entries: Changes) -> None:
        """Take another back-end or other families, to be read next; ``entries`` is everything wanted."""
        for old in self.filters.values():
            old.filter.close()
            # Nobody removes these one by one any more: they go with all that the old back-end or family leaves.
            self.release.removed(key for key in old.elements.committed if key not in old.elements.desired)
        self.filters = {family: FilterTables(one, self.release) for family, one in filters.items()}
        routed = {key.family for key in self.routing.routes.table.committed}
        for family, tables in self.filters.items():
            tables.begins = family not in routed
        self.want({key: value for key, value in entries.items() if type(key) not in self._tables})

    async def read_filters(self) -> None:
        """Read the packet filters of all families.

        Raises:
            OSError, FilterError: one cannot be read.
        """
        for tables in self.filters.values():
            await tables.read(self.clock())
            elements = tables.elements
            async for keys in in_slices(list(elements.committed), 64):
                for key in keys:
                    if key not in elements.desired and isinstance(key, ElementKey):
                        self.release.found(key)
            async for keys in in_slices(list(elements.desired), 64):
                for key in keys:
                    if key not in elements.committed and isinstance(key, ElementKey):
                        self.release.wanted_anew(key)

    def tables(self) -> list[AnyTable]:
        """All tables, for counting and looking."""
        tables = list(self._tables.values())
        for one in self.filters.values():
            tables += one.all
        return tables

    def left_over(self) -> int:
        """How many entries of ours the kernel has that nobody wants: what an earlier run made of its objects."""
        routes, ours = self.routing.routes.table, self.settings.device_route_protocol
        count = sum(route.protocol == ours and key not in routes.desired for key, route in routes.committed.items())
        count += len(self.routing.neighbours.table.committed.keys() - self.routing.neighbours.table.desired.keys())
        for filters in self.filters.values():
            members = filters.elements.committed.keys() - filters.elements.desired.keys()
            count += sum(key.set not in OF_THE_NODE for key in members)
        return count

    @property
    def is_settled(self) -> bool:
        """Whether every table holds what is wanted: nothing is to be written, waits or was refused."""
        return all(table.is_written and not table.waiting for table in self.tables())

    @property
    def are_filters_written(self) -> bool:
        """Whether the packet filters have what is wanted, but for what waits for something else."""
        tables = (table for filters in self.filters.values() for table in filters.all)
        return all(table.is_written for table in tables)

    @property
    def holds_classified(self) -> bool:
        """Whether members of interfaces stay as they are until the snapshot is complete."""
        return any(tables.asks_for_classes for tables in self.filters.values())

    @property
    def is_open(self) -> bool:
        """Whether the rules of all families stand."""
        return not self._closed

    def sockets(self) -> dict[str, NetlinkSocket]:
        """The sockets that write, by what they write; those of the iptables tools' processes are not among them."""
        filters = {f"filter {family}": tables.filter.socket for family, tables in self.filters.items()}
        return {"routing": self.socket, **filters}

    def close(self) -> None:
        self.socket.close()
        self.release.close()
        self.routing.wireguard.close()
        for tables in self.filters.values():
            tables.filter.close()

    def want(self, changes: Changes) -> None:
        """Take what the calculation changed."""
        policy: set[Family] = set()
        for key, value in changes.items():
            kind = type(key)
            table = self._tables.get(kind)
            if kind is NexthopKey:
                self.routing.want_nexthop(cast("NexthopKey", key), value)
            elif kind is DeviceKey:
                self._want_device(cast("DeviceKey", key), value)
            elif table is not None:
                table.drop(key) if value is ABSENT else table.want(key, value)
            if table is not None:
                continue
            family = key.family
            tables = self.filters.get(family)
            if tables is None:
                continue
            if kind is ElementKey:
                self._want_member(tables, cast("ElementKey", key), value)
            elif kind is MemberKey:
                member = cast("MemberKey", key)
                tables.elements.drop(member) if value is ABSENT else tables.elements.want(member, None)
            else:
                tables.take_policy(cast("PolicyObject", key), None if value is ABSENT else value)
                policy.add(family)
        for family in policy:
            self.filters[family].take_layout()

    def _want_device(self, key: DeviceKey, value: object) -> None:
        if value is ABSENT:
            self.routing.devices.drop(key)
        else:
            self._tables[DeviceKey].want(key, value)
            self._tunnels_changed()

    def class_numbers(self) -> dict[tuple[Direction, str], int]:
        """Numbers that the kernel has for classes, by direction and name."""
        numbers: dict[tuple[Direction, str], int] = {}
        for tables in self.filters.values():
            numbers = tables.class_numbers() | numbers
        return numbers

    def without_place(self, interface: str) -> str:
        """Why an interface is denied although policy has a class for it; empty if it is not."""
        for tables in self.filters.values():
            if interface in tables.classes.too_many:
                mask = "IptablesMarkMask" if tables.filter.marks_pairs else "NftablesMarkMask"
                return (
                    f"policy: all {tables.classes.capacity()} classes that {mask} has bits for besides the one of most "
                    f"endpoints are taken, so its "
                    "packets are dropped; give the mask more bits, or have fewer different sets of policies"
                )
        return ""

    def take_judged_anew(self) -> set[str]:
        """Interfaces of which ``without_place`` says something else since the last call."""
        found: set[str] = set()
        for tables in self.filters.values():
            found |= tables.classes.judged_anew
            tables.classes.judged_anew.clear()
        return found

    def _want_member(self, tables: FilterTables, key: ElementKey, value: Value | Absent | None) -> None:
        wanted = value is not ABSENT
        if key in tables.elements.committed:
            (self.release.wanted_again if wanted else self.release.unwanted)(key)
        elif wanted:
            self.release.wanted_anew(key)
        if wanted:
            tables.want_member(key, value if isinstance(value, bytes) else None)
        else:
            tables.drop_member(key)

    def table_of(self, key: Key) -> AnyTable | None:
        """The table that a key belongs to; None for a set member of a family without a packet filter, and for what is
        no entry by itself: classes, policies and their sets.
        """
        if type(key) is ElementKey or type(key) is MemberKey:
            tables = self.filters.get(key.net.family)
            return tables.elements if tables else None
        return self._tables.get(type(key))

    def want_rules(self, *, nftables: bool) -> None:
        """Take the rules that the settings and the tunnels of this node mean."""
        self._nftables, self._tunnels = nftables, self.routing.present_tunnels()
        for family, tables in self.filters.items():
            sees_errors = nftables or knows_match("bpf", family)
            tables.want_rules(
                RuleSettings.of(
                    self.settings,
                    family,
                    nftables=nftables,
                    sees_errors=sees_errors,
                    tunnels=self._tunnels,
                    in_use=self._in_use,
                )
            )

    @property
    def in_use(self) -> tuple[Failsafe, ...]:
        """Where the agent itself is told by, which no policy of the node closes."""
        return self._in_use

    def keep_open(self, server: Failsafe) -> None:
        """Take where the agent is told from: no policy closes that, nor where it was told from lately."""
        if server not in self._in_use:
            self._in_use = (server, *self._in_use)[:MOST_IN_USE]
            if self.filters:
                self.want_rules(nftables=self._nftables)

    def _tunnels_changed(self) -> None:
        """The first pool that needs a tunnel, and the last one, change rules."""
        if self.filters and self.routing.present_tunnels() != self._tunnels:
            self.want_rules(nftables=self._nftables)

    def link_events(self, events: LinkEvents) -> None:
        """Look again at everything that hangs on interfaces that changed."""
        self._links_changed |= events.changed | events.lost
        for interface in events.changed | events.lost:
            lost = interface in events.lost
            self.routing.interface_changed(interface, lost=lost)
            self.interface_settings.table.interface_changed(interface, lost=lost)
        for interface in events.carriers:
            self.routing.carrier_changed(interface, silent=interface in events.silent)

    def take_links(self) -> dict[str, bool]:
        """Interfaces of which there was news since the last call, and whether each is there and up now."""
        names, self._links_changed = self._links_changed, set()
        known = self.links.by_name
        return {name: name in known and known[name].up for name in names}

    async def read(self) -> dict[Family, str]:
        """Read everything of ours from the kernel, in slices; what differs from what was believed is looked at again.

        Returns:
            Families whose packet filter could not be read, with the reason; the others are unaffected.

        Raises:
            OSError: routing tables or links could not be read.
        """
        with self.links.reading() as newer:
            links = await self.socket.decode_sliced(rtnetlink.link_dump_request(), rtnetlink.decode_link)
            self.link_events(await self.links.adopt(links, newer))
        await self.routing.read()
        await read_table(self.socket, self.interface_settings.table, self.interface_settings.read, self.clock)
        failures = {}
        for family in list(self.filters):
            if reason := await self.read_filter(family):
                failures[family] = reason
        return failures

    async def read_filter(self, family: Family, changed_by: str = "", part: Part = Part.ALL) -> str:
        """Read one packet filter, changed by somebody if told. Returns why it could not be read, or nothing."""
        tables = self.filters.get(family)
        if tables is None:
            return ""
        with tables.chains.blaming(lambda: changed_by), tables.elements.blaming(lambda: changed_by):
            return await tables.read_or_reason(self.clock(), part)

    def doubt(self) -> None:
        """Look at everything again."""
        for table in self.tables():
            table.doubt()

    async def apply(self, *, complete: bool) -> ApplyReport:
        """Write all differences. What fails is recorded with its keys and tried again; the rest goes on."""
        self._set_aside(not complete)
        report = ApplyReport()
        await self._apply_additions(report, complete=complete)
        self._close(complete=complete)
        if complete or not self._closed:
            await self.routing.write_devices(report, complete=complete)
            await self.routing.write_peers(report, removals=False)
            await self.routing.write(report, removals=False, complete=complete)
            await self._apply_settings(report)
        if complete:
            await self.routing.write(report, removals=True, complete=complete)
            await self.routing.write_peers(report, removals=True)
            self.routing.remove_devices(report)
            self._tunnels_changed()
            await self._apply_removals(report)
            self.release.settle(self._holds)
        for family, reason in self._standing_failures().items():
            report.failures.setdefault(family, reason)
        return report

    def _set_aside(self, unwanted: bool) -> None:
        """Look at nothing that nobody wants while it may not be removed, and once at all of it when it may; nor at
        members that tell a class, while nobody knows it.
        """
        if unwanted or self._is_set_aside:
            for table in self.tables():
                table.set_aside() if unwanted else table.recall()
        if unwanted:
            for filters in self.filters.values():
                filters.hold_classified()
        self._is_set_aside = unwanted

    def _close(self, *, complete: bool) -> None:
        """Find the families without rules in the kernel, where nothing would check what their routes let through.

        What they want of routes, neighbours and settings waits until their rules stand; before the snapshot is
        ``complete``, nothing of any family is looked at meanwhile.
        """
        was, self._closed = self._closed, {family for family, one in self.filters.items() if not one.in_place}
        if not (complete and (was or self._closed)):
            return
        opened = was - self._closed
        for table in self._tables.values():
            if opened:
                table.mark([key for key in table.waiting if key.family in opened])
            for family in self._closed:
                due = [key for key in table.dirty if key.family is family and key in table.desired]
                table.hold(due, f"the rules of {family} are not in the kernel")

    async def _apply_additions(self, report: ApplyReport, *, complete: bool) -> None:
        now = self.clock()
        due = [tables for tables in self.filters.values() if not tables.idle]
        for tables in due:
            report.looked_at |= tables.elements.dirty
        if len(due) > 1 and all(tables.only_members for tables in due):
            deltas = [(tables, tables.additions(now, complete=complete)) for tables in due]
            if write_together(deltas, now, report):
                return
        for tables in due:
            await tables.add(self.clock(), report, complete=complete)

    async def _apply_removals(self, report: ApplyReport) -> None:
        now = self.clock()
        due = [tables for tables in self.filters.values() if tables.elements.dirty or tables.sets.dirty]
        for tables in due:
            report.looked_at |= tables.elements.dirty
        if len(due) > 1 and all(tables.only_members for tables in due):
            deltas = [(tables, tables.removals(now)) for tables in due]
            if write_together(deltas, now, report):
                for _, delta in deltas:
                    self.release.removed(delta.remove)
                return
        for tables in due:
            await tables.remove(self.clock(), report)

    def _holds(self, key: ElementKey) -> bool:
        """Whether the kernel is believed to hold a set member."""
        tables = self.filters.get(key.family)
        return tables is not None and key in tables.elements.committed

    def _standing_failures(self) -> dict[Family, str]:
        """What no object is to blame for and what keeps a whole family from working, also between two tries."""
        failures = {}
        for family, tables in self.filters.items():
            if chains := tables.chains.refused:
                chain = min(chains)
                failures[family] = f"{len(chains)} chains of rules, first {chain}: {chains[chain].reason}"
        for setting, refused in self.interface_settings.table.refused.items():
            if setting.interface == ALL_INTERFACES:
                failures[setting.family] = f"{setting}: {refused.reason}"
        return failures

    def plan(self) -> list[Operation]:
        """What ``apply(complete=True)`` would do now, without doing it."""
        now = self.clock()
        operations: list[Operation] = []
        for table in self.tables():
            operations += operations_of(table, now)
        for one in self.filters.values():
            operations += [Operation(("remove", one.chains.name, f"{name} of another layout")) for name in one.foreign]
            if not one.containers:
                operations.append(Operation(("change", one.elements.name, "sets that are missing or not in our form")))
        return operations

    def next_wake(self) -> float | None:
        """When something is due without any event: a retry, the end of a grace period. On the clock."""
        times = [table.next_retry() for tables in self.filters.values() for table in tables.all]
        if not (self._closed and self._is_set_aside):
            times += [table.next_retry() for table in self._tables.values()]
            times += self.routing.next_wakes()
        return min((at for at in times if at is not None), default=None)

    # --- settings, neighbours, routes --------------------------------------------------------------------------

    async def _apply_settings(self, report: ApplyReport) -> None:
        tables = self.interface_settings
        if not tables.table.dirty:
            return
        report.looked_at |= tables.table.dirty
        delta = tables.table.delta(self.clock())
        advertised: set[int] = set()
        unguarded = ""
        if tables.cost_advertised_routes(delta.put):
            try:
                advertised = await read_advertised_default_interfaces()
            except OSError as error:
                unguarded = f"IPv6 forwarding stays off: default routes cannot be read ({error})"
            report.looked_at |= tables.table.dirty  # interfaces may have come and gone meanwhile
            delta = tables.table.delta(self.clock())
        if not delta:
            return
        now = self.clock()
        refused = dict.fromkeys(tables.cost_advertised_routes(delta.put), unguarded) if unguarded else {}
        wanted = {key: value for key, value in delta.put.items() if key not in refused}
        refused |= tables.write(wanted, advertised, self.socket)
        report.written += len(delta.put) - len(refused)
        tables.table.record(delta, refused, now)  # removals: nothing to write, we do not know what stood there
