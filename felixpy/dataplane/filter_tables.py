"""The packet filter of one family as two keyed tables, chains and set members, over a back-end.

Members of both families go in one send where nothing else has to be written (``write_together``).
Invariant: a failure stays in its family, and an object's refusal stays with its key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from felixpy.calc.entries import ElementKey, SetType
from felixpy.calc.rules import ChainKey, RuleSettings, Table, desired_chains
from felixpy.dataplane.packet_filter import FilterChange, FilterError, PacketFilter, Part, RenderedChain
from felixpy.dataplane.release import AddressRelease
from felixpy.dataplane.report import ApplyReport
from felixpy.dataplane.table import Delta, KeyedTable
from felixpy.netlink.message import Request

MEMBERS_TOGETHER = 500
"""More of one family take the kernel so long that the loop has to run between two families."""


class FilterTables:
    """A packet-filter back-end of one family with its two keyed tables."""

    def __init__(self, packet_filter: PacketFilter, release: AddressRelease) -> None:
        self.filter = packet_filter
        self.family = packet_filter.family
        self._release = release
        self.chains: KeyedTable[ChainKey, RenderedChain, RenderedChain] = KeyedTable(
            f"ipv{self.family.version}-rules",
            lambda key, value: value,
            describe=lambda rules: f"a chain of {len(rules)} rules",
        )
        self.elements: KeyedTable[ElementKey, None, None] = KeyedTable(
            f"ipv{self.family.version}-sets", self._resolve_element, describe=lambda _: "a member"
        )
        self.containers = False
        self.foreign: tuple[str, ...] = ()
        self.begins = False
        """Whether the node had no routes of ours: rules may be made at once, since they stop nothing that passed."""
        self.known = False
        """Whether the kernel was read since the start, or since a write whose answer was lost."""
        self._answers_lost = 0

    def _resolve_element(self, key: ElementKey, _: None) -> None:
        if key.set.type is SetType.HOST_INTERFACE and key not in self.elements.committed:
            self._release.hold(self.elements, key, key.net.packed)

    def want_rules(self, settings: RuleSettings) -> None:
        """Take the rules that these settings mean."""
        rendered = self.filter.render(desired_chains(settings))
        for key in self.chains.desired.keys() - rendered.keys():
            self.chains.drop(key)
        for key, rules in rendered.items():
            if self.chains.desired.get(key) != rules:
                self.chains.want(key, rules)

    async def read(self, now: float, part: Part = Part.ALL) -> None:
        """Read the kernel, in slices; updates may be written meanwhile.

        Raises:
            OSError, FilterError
        """
        lost = self._answers_lost
        with self.chains.reading() as newer_chains, self.elements.reading() as newer_elements:
            state = await self.filter.read(part)
            self.containers, self.foreign = state.containers, state.foreign
            await self.chains.adopt(state.chains, newer_chains, now)
            if state.part is Part.ALL:
                members, state.elements = dict.fromkeys(state.elements), set()
                await self.elements.adopt(members, newer_elements, now)
                self.known = lost == self._answers_lost  # what was read before a write tells nothing of it
        if not state.containers:
            self.elements.mark([*self.elements.refused])

    @property
    def in_place(self) -> bool:
        """Whether sets and rules stand in the kernel, so that workloads may be let through.

        Of rules that differ from what is wanted, those of hooks must not be among them: they say of which interfaces
        packets are checked, and without one of them, packets pass one check less. NAT is none.
        """
        if not (self.containers and self.chains.committed):
            return False
        if not self.chains.dirty:
            return True
        committed = self.chains.committed
        hooks = [key for key in self.chains.desired if key.is_hook and key.table is not Table.NAT]
        return bool(hooks) and all(committed.get(key) == self.chains.desired[key] for key in hooks)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to look at."""
        return self.containers and not (self.foreign or self.elements.dirty or self.chains.dirty)

    async def read_or_reason(self, now: float, part: Part = Part.ALL) -> str:
        """Read the kernel. Returns why it could not be read, or nothing."""
        try:
            await self.read(now, part)
        except (OSError, FilterError) as error:
            return str(error)
        return ""

    async def add(self, now: float, report: ApplyReport, *, complete: bool) -> None:
        """Write rules and additions; removals from sets of prefixes too, since those refuse overlaps.

        Before the snapshot is ``complete`` only members are added, and only where sets and rules stand; but a family
        that ``begins`` gets its rules.
        """
        if self.family in report.failures:
            return  # by ``write_together``, whose keys wait: a kernel that did not answer is not asked at once again
        unreadable = ""
        if not self.known:
            unreadable = await self.read_or_reason(now)
        elif complete and self._rules_due_again(now):
            unreadable = await self.read_or_reason(now, Part.RULES)
        may_make_rules = complete or self.begins
        if not (may_make_rules or self.in_place):
            return
        elements = self.additions(now, complete=complete)
        chains = self.chains.delta(now) if may_make_rules else Delta[ChainKey, RenderedChain]()
        change = FilterChange(
            chains={**chains.put, **dict.fromkeys(chains.remove)}, add=list(elements.put), remove=list(elements.remove)
        )
        if complete and self.foreign:
            await self._write(FilterChange(), report, unreadable)  # an empty change removes what is foreign
            self.foreign = ()
        if not change and (self.containers or not may_make_rules):
            return
        with self.chains.reading() as told_chains, self.elements.reading() as told_elements:
            refused = await self._write(change, report, unreadable)
        refused_chains = {k: v for k, v in refused.items() if isinstance(k, ChainKey)}
        refused_elements = {k: v for k, v in refused.items() if isinstance(k, ElementKey)}
        self.chains.record(chains, refused_chains, now, told_chains)
        self.elements.record(elements, refused_elements, now, told_elements)

    def additions(self, now: float, *, complete: bool) -> Delta[ElementKey, None]:
        """Members to add, and those to remove with them from sets of prefixes, which refuse overlaps."""
        delta = self.elements.delta(now)
        if not delta.remove:
            return delta
        prefixes = {key: None for key in delta.remove if complete and key.set.type is SetType.NET}
        return Delta(delta.put, prefixes)

    def removals(self, now: float) -> Delta[ElementKey, None]:
        """Members to remove once nothing needs them."""
        return Delta(remove=self.elements.delta(now).remove)

    @property
    def only_members(self) -> bool:
        """Whether members are all that may have to be written."""
        return self.known and self.in_place and not (self.foreign or self.chains.dirty)

    def _rules_due_again(self, now: float) -> bool:
        """Whether refused rules are tried again: what they name may be gone, and IP sets send no notifications."""
        due = self.chains.next_retry()
        return due is not None and due <= now

    async def remove(self, now: float, report: ApplyReport) -> None:
        """Write the other removals; the addresses of removed members are released."""
        if not self.elements.dirty or not self.known:
            return
        delta = self.removals(now)
        if delta:
            with self.elements.reading() as told:
                refused = await self._write(FilterChange(remove=list(delta.remove)), report)
            refused_elements = {k: v for k, v in refused.items() if isinstance(k, ElementKey)}
            self.elements.record(delta, refused_elements, now, told)
            self._release.removed(key for key in delta.remove if key not in refused)

    async def _write(
        self, change: FilterChange, report: ApplyReport, unreadable: str = ""
    ) -> Mapping[ChainKey | ElementKey, str]:
        """Write; a failure of the back-end as a whole is every key's failure, and stays in its family.

        What is unreadable is not written: rules would be added to rules that nobody has seen.
        """
        try:
            if unreadable:
                raise FilterError(unreadable)
            if not self.containers:
                await self.filter.create_containers()
                self.containers = True
            refused = await self.filter.write(change)
        except (OSError, FilterError) as error:
            report.failures[self.family] = str(error)
            if not isinstance(error, FilterError):
                self._lose_answer()
            refused = dict.fromkeys((*change.chains, *change.add, *change.remove), str(error))
        report.written += len(change.chains) + len(change.add) + len(change.remove) - len(refused)
        return refused

    def fail(self, delta: Delta[ElementKey, None], error: OSError, now: float, report: ApplyReport) -> None:
        """A send of members broke: they wait, and the kernel is read before anything of this family is written."""
        report.failures[self.family] = str(error)
        self._lose_answer()
        self.elements.record(delta, dict.fromkeys((*delta.put, *delta.remove), str(error)), now)

    def _lose_answer(self) -> None:
        self.known, self._answers_lost = False, self._answers_lost + 1


def write_together(
    deltas: Sequence[tuple[FilterTables, Delta[ElementKey, None]]], now: float, report: ApplyReport
) -> bool:
    """Try to write members of several families in one send: each send is a transaction and an answer of its own.

    Returns whether the kernel has taken all of them. If not, each family has to write its own, and finds out why; but
    if the socket broke, the members of all of them wait, as they do when it breaks in a write of one family.
    """
    requests: list[Request] = []
    for tables, delta in deltas:
        change = FilterChange(add=list(delta.put), remove=list(delta.remove))
        if len(change.add) + len(change.remove) > MEMBERS_TOGETHER:
            return False
        wanted = tables.filter.member_requests(change)
        if wanted is None:
            return False
        requests += wanted
    try:
        if requests and not deltas[0][0].filter.send_members(requests):
            return False
    except OSError as error:
        for tables, delta in deltas:
            tables.fail(delta, error, now, report)
        return False
    for tables, delta in deltas:
        tables.elements.record(delta, {}, now)
        report.written += len(delta.put) + len(delta.remove)
    return True
