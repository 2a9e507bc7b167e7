"""The packet filter of one family as two keyed tables, chains and set members, over a back-end.

Members of both families go in one send where nothing else has to be written (``write_together``).
Invariant: a failure stays in its family, and an object's refusal stays with its key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, assert_never

from felixpy.calc.entries import STANDING_SETS, ElementKey, SetType, set_type
from felixpy.calc.policy.carrier import CLASS_SETS, MAPS
from felixpy.calc.policy.classes import (
    ClassKey,
    Direction,
    EndpointClass,
    EndpointClasses,
    EndpointClassKey,
    HostEndpointChains,
    HostEndpointKey,
    MemberKey,
    PolicyChain,
    PolicyChainKey,
    PolicySet,
    PolicySetKey,
)
from felixpy.calc.policy.layout import PolicyLayout
from felixpy.calc.rule import ChainKey, ClassElement, RuleKey, Table
from felixpy.calc.rules import RuleSettings
from felixpy.dataplane.class_members import PAIRS, ClassMembers
from felixpy.dataplane.packet_filter import (
    FilterChange,
    FilterError,
    FilterKey,
    Member,
    PacketFilter,
    Part,
    RenderedChain,
    SetKey,
)
from felixpy.dataplane.release import AddressRelease
from felixpy.dataplane.report import ApplyReport
from felixpy.dataplane.table import Delta, KeyedTable
from felixpy.netlink.message import Request

PolicyObject = EndpointClassKey | ClassKey | PolicyChainKey | HostEndpointKey | PolicySetKey
"""Keys of policy that are no entries of the kernel by themselves."""

MEMBERS_TOGETHER = 500
"""More of one family take the kernel so long that the loop has to run between two families."""


class FilterTables:
    """A packet-filter back-end of one family with its two keyed tables."""

    def __init__(self, packet_filter: PacketFilter, release: AddressRelease) -> None:
        self.filter = packet_filter
        self.family = packet_filter.family
        self._release = release
        self.chains: KeyedTable[RuleKey, RenderedChain, RenderedChain] = KeyedTable(
            f"ipv{self.family.version}-rules",
            lambda key, value: value,
            describe=lambda rules: f"a chain of {len(rules)} rules",
        )
        self.elements: KeyedTable[Member, int | None, int | None] = KeyedTable(
            f"ipv{self.family.version}-sets", self._resolve_element, describe=lambda _: "a member"
        )
        self.sets: KeyedTable[SetKey, str, None] = KeyedTable(
            f"ipv{self.family.version}-policy-sets", lambda key, comment: None, describe=lambda _: "a set"
        )
        self.layout = PolicyLayout()
        self.classes = ClassMembers(self.family, self.elements, marks_pairs=packet_filter.marks_pairs)
        self.containers = False
        self.foreign: tuple[str, ...] = ()
        self.begins = False
        """Whether the node had no routes of ours: rules may be made at once, since they stop nothing that passed."""
        self.known = False
        """Whether the kernel was read since the start, or since a write whose answer was lost."""
        self._answers_lost = 0

    @property
    def all(self) -> tuple[KeyedTable[Any, Any, Any], ...]:
        """All tables of the family's packet filter."""
        return self.chains, self.elements, self.sets

    def _resolve_element(self, key: Member, data: int | None) -> int | None:
        if type(key) is ElementKey and key.set in _OF_ADDRESSES and key not in self.elements.committed:
            self._release.hold(self.elements, key, key.net.packed)
        return data

    def want_rules(self, settings: RuleSettings) -> None:
        """Take the rules that these settings mean."""
        self.filter.use_marks(settings.marks)
        self.classes.configure(settings.marks)
        self.layout.configure(settings)
        self.take_layout()

    def want_member(self, key: ElementKey, address: bytes | None) -> None:
        """A member of a standing set is wanted, or of a map with an address; one of a pair with the class of its
        interface.
        """
        if key.set in PAIRS:
            self.classes.want_pair(key)
        else:
            self.elements.want(key, None if address is None else int.from_bytes(address))

    def drop_member(self, key: ElementKey) -> None:
        if key.set in PAIRS:
            self.classes.drop_pair(key)
        else:
            self.elements.drop(key)

    def take_policy(self, key: PolicyObject, value: object) -> None:
        """Take an object of policy; None if nobody wants it any more."""
        if isinstance(key, EndpointClassKey):
            if isinstance(value, EndpointClasses):
                self.classes.want(key.interface, value)
            else:
                self.classes.drop(key.interface)
        elif isinstance(key, ClassKey):
            self.layout.take_class(key, value if isinstance(value, EndpointClass) else None)
        elif isinstance(key, PolicyChainKey):
            self.layout.take_policy(key, value if isinstance(value, PolicyChain) else None)
        elif isinstance(key, HostEndpointKey):
            self.layout.take_host(key, value if isinstance(value, HostEndpointChains) else None)
        elif isinstance(key, PolicySetKey):
            if isinstance(value, PolicySet):
                self.sets.want(SetKey(key.name), value.comment)
            else:
                self.sets.drop(SetKey(key.name))
        else:
            assert_never(key)

    def class_numbers(self) -> dict[tuple[Direction, str], int]:
        """Numbers that the kernel has for classes, by direction and name."""
        settings = self.layout.settings
        return self.filter.class_numbers(self.chains.committed, settings.marks) if settings else {}

    def take_layout(self) -> None:
        """Take the chains that follow from policy and settings, after all objects of a change were taken."""
        self.layout.denied = self.classes.denied
        changes = self.layout.changes()
        rendered = self.filter.render({key: rules for key, rules in changes.items() if rules is not None})
        for key in changes.keys() - rendered.keys():
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
        with (
            self.chains.reading() as newer_chains,
            self.elements.reading() as newer_elements,
            self.sets.reading() as newer_sets,
        ):
            state = await self.filter.read(part)
            self.containers, self.foreign = state.containers, state.foreign
            await self.chains.adopt(state.chains, newer_chains, now)
            if state.part is Part.ALL:
                members: dict[Member, int | None] = dict.fromkeys(state.elements)
                members |= dict(state.data.items())
                state.elements, state.data = set(), {}
                await self.sets.adopt(dict.fromkeys(state.sets), newer_sets, now)
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
        dirty = self.elements.dirty or self.chains.dirty or self.sets.dirty
        return self.containers and not (self.foreign or dirty)

    async def read_or_reason(self, now: float, part: Part = Part.ALL) -> str:
        """Read the kernel. Returns why it could not be read, or nothing."""
        try:
            await self.read(now, part)
        except (OSError, FilterError) as error:
            return str(error)
        return ""

    async def add(self, now: float, report: ApplyReport, *, complete: bool) -> None:
        """Write rules and additions, and the removals that cannot wait for what nobody needs any more (``additions``).

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
        sets = Delta(put=self.sets.delta(now).put)
        elements = self.additions(now, complete=complete)
        if len(elements.put) > MEMBERS_TOGETHER and sets.put:
            await self._fill(sets, elements, now, report, unreadable)
            sets = Delta()
        chains = self.chains.delta(now) if may_make_rules else Delta[RuleKey, RenderedChain]()
        change = self._change(elements)
        dispatches: list[RuleKey] = []
        moves = self.filter.marks_pairs and bool(change.changed and chains)
        if moves:
            dispatches = [key for key in chains.put if key in self.chains.committed and _is_dispatch(key)]
            chains = self._with_old_classes(chains, dispatches)
        change.chains = {**chains.put, **dict.fromkeys(chains.remove)}
        change.sets = {key: self.sets.desired[key] for key in sets.put}
        change.before = self.chains.committed
        if complete and self.foreign:
            await self._write(FilterChange(), report, unreadable)  # an empty change removes what is foreign
            self.foreign = ()
        if not change and (self.containers or not may_make_rules):
            return
        with (
            self.chains.reading() as told_chains,
            self.elements.reading() as told_elements,
            self.sets.reading() as told_sets,
        ):
            refused = await self._write(change, report, unreadable)
        self.chains.record(chains, _those(refused, ChainKey | ClassElement), now, told_chains)
        self.elements.record(elements, _those(refused, ElementKey | MemberKey), now, told_elements)
        self.sets.record(sets, _those(refused, SetKey), now, told_sets)
        self._release.translated(key for key in elements.put if key not in refused)
        if moves:
            await self._drop_old_classes(dispatches, now, report)

    def _with_old_classes(
        self, chains: Delta[RuleKey, RenderedChain], dispatches: Iterable[RuleKey]
    ) -> Delta[RuleKey, RenderedChain]:
        """The same change, in which the classes that workloads leave stay until no member bears their mark."""
        put = dict(chains.put)
        for key in dispatches:
            rules = put[key]
            old = [rule for rule in self.chains.committed[key] if rule not in rules]
            put[key] = (*rules[:-1], *old, rules[-1])  # the last one denies who has no class
        return Delta(put)

    async def _drop_old_classes(self, dispatches: Iterable[RuleKey], now: float, report: ApplyReport) -> None:
        self.chains.mark(dispatches)
        chains = self.chains.delta(now)
        if not chains:
            return
        with self.chains.reading() as told:
            refused = await self._write(FilterChange({**chains.put, **dict.fromkeys(chains.remove)}), report)
        self.chains.record(chains, _those(refused, ChainKey | ClassElement), now, told)

    async def _fill(
        self,
        sets: Delta[SetKey, None],
        elements: Delta[Member, int | None],
        now: float,
        report: ApplyReport,
        unreadable: str,
    ) -> None:
        """Make sets and fill them before anything asks them, in parts, so that small changes do not wait for them.

        Their members are taken out of ``elements``.
        """
        names = {key.name for key in sets.put}
        keys: list[Member] = [key for key in elements.put if isinstance(key, MemberKey) and key.set in names]
        for start in range(0, len(keys) or 1, MEMBERS_TOGETHER):
            part = Delta(put={key: elements.put.pop(key) for key in keys[start : start + MEMBERS_TOGETHER]})
            change = self._change(part)
            change.sets = {} if start else {key: self.sets.desired[key] for key in sets.put}
            with self.elements.reading() as told_elements, self.sets.reading() as told_sets:
                refused = await self._write(change, report, unreadable)
            self.elements.record(part, _those(refused, ElementKey | MemberKey), now, told_elements)
            if not start:
                self.sets.record(sets, _those(refused, SetKey), now, told_sets)
            await asyncio.sleep(0)

    def _change(self, elements: Delta[Member, int | None]) -> FilterChange:
        """A change of members alone."""
        change = FilterChange(add=list(elements.put), remove=list(elements.remove))
        change.data = {key: data for key, data in elements.put.items() if data}
        if not self.elements.committed:
            return change
        # Nobody asks for the mark of a pair before the rules do that classify: then it may come before them.
        asked = self.asks_for_classes
        change.changed = frozenset(
            key for key in elements.put if key in self.elements.committed and (asked or key.set not in PAIRS)
        )
        return change

    @property
    def asks_for_classes(self) -> bool:
        """Whether rules in the kernel ask for the class of an interface."""
        return _CLASSIFIES in self.chains.committed

    def hold_classified(self) -> None:
        """Leave members of interfaces as they are until the snapshot is complete, where rules ask for classes: in each
        of its many turns they would be looked at in vain, and their endpoints judged.
        """
        if self.asks_for_classes:
            self.elements.set_aside(_is_of_interface)

    def additions(self, now: float, *, complete: bool) -> Delta[Member, int | None]:
        """Members to add, and those to remove with them.

        Sets of prefixes refuse overlaps. And what leaves some sets to come into others is to be in either at no moment:
        an interface, whose sets tell its class together, and a peer, whose labels changed.
        """
        delta = self.elements.delta(now)
        if not complete and self.asks_for_classes:
            # The rules of an earlier run ask for classes, which nobody knows yet: what is there keeps its own.
            delta.put = {key: data for key, data in delta.put.items() if not _is_of_interface(key)}
        if not delta.remove:
            return delta
        return Delta(delta.put, {key: None for key in delta.remove if complete and self._goes_at_once(key)})

    def _goes_at_once(self, key: Member) -> bool:
        if isinstance(key, MemberKey) or set_type(key.set) is SetType.NET:
            return not self._goes_with_its_set(key)
        return isinstance(key, ElementKey) and key.set in _CLASS_SETS and self.classes.knows(key.interface)

    def _goes_with_its_set(self, key: Member) -> bool:
        return isinstance(key, MemberKey) and SetKey(key.set) not in self.sets.desired

    def removals(self, now: float) -> Delta[Member, int | None]:
        """Members to remove once nothing needs them."""
        return Delta(remove=self.elements.delta(now).remove)

    @property
    def only_members(self) -> bool:
        """Whether members are all that may have to be written."""
        return self.known and self.in_place and not (self.foreign or self.chains.dirty or self.sets.dirty)

    def _rules_due_again(self, now: float) -> bool:
        """Whether refused rules are tried again: what they name may be gone, and IP sets send no notifications."""
        due = self.chains.next_retry()
        return due is not None and due <= now

    async def remove(self, now: float, report: ApplyReport) -> None:
        """Write the other removals; the addresses of removed members are released.

        Sets go when no rule can ask them any more, that is, when all rules are as wanted.
        """
        if not (self.elements.dirty or self.sets.dirty) or not self.known:
            return
        sets: Delta[SetKey, None] = Delta()
        if self.sets.dirty and not self.chains.dirty:
            sets.remove = self.sets.delta(now).remove
        delta = self.removals(now)
        doomed = {key for key in delta.remove if self._goes_with_its_set(key)} if self.sets.dirty else set()
        if doomed and not sets.remove:
            delta.remove = {key: data for key, data in delta.remove.items() if key not in doomed}
        if not (delta or sets):
            return
        leaving = [key for key in delta.remove if key not in doomed or SetKey(key.set) not in sets.remove]
        with self.elements.reading() as told_elements, self.sets.reading() as told_sets:
            change = FilterChange(remove=leaving, sets=dict.fromkeys(sets.remove))
            refused = await self._write(change, report)
        self.elements.record(delta, _those(refused, ElementKey | MemberKey), now, told_elements)
        self.sets.record(sets, _those(refused, SetKey), now, told_sets)
        self._release.removed(key for key in delta.remove if isinstance(key, ElementKey) and key not in refused)

    async def _write(self, change: FilterChange, report: ApplyReport, unreadable: str = "") -> Mapping[FilterKey, str]:
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
            refused = dict.fromkeys(change.keys, str(error))
        report.written += len(list(change.keys)) - len(refused)
        return refused

    def fail(self, delta: Delta[Member, int | None], error: OSError, now: float, report: ApplyReport) -> None:
        """A send of members broke: they wait, and the kernel is read before anything of this family is written."""
        report.failures[self.family] = str(error)
        self._lose_answer()
        self.elements.record(delta, dict.fromkeys((*delta.put, *delta.remove), str(error)), now)

    def _lose_answer(self) -> None:
        self.known, self._answers_lost = False, self._answers_lost + 1


def write_together(
    deltas: Sequence[tuple[FilterTables, Delta[Member, int | None]]], now: float, report: ApplyReport
) -> bool:
    """Try to write members of several families in one send: each send is a transaction and an answer of its own.

    Returns whether the kernel has taken all of them. If not, each family has to write its own, and finds out why; but
    if the socket broke, the members of all of them wait, as they do when it breaks in a write of one family.
    """
    requests: list[Request] = []
    for tables, delta in deltas:
        change = tables._change(delta)
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
        tables._release.translated(delta.put)
        tables.elements.record(delta, {}, now)
        report.written += len(delta.put) + len(delta.remove)
    return True


_OF_ADDRESSES = frozenset(name for name in STANDING_SETS if name.type is SetType.HOST_INTERFACE)
"""Sets of pairs of an address and the interface that has it."""
_CLASSIFIES = ChainKey(Table.FILTER, MAPS[Direction.INGRESS])
_DISPATCHES = tuple(MAPS.values())
_CLASS_SETS = frozenset(CLASS_SETS)


def _is_dispatch(key: RuleKey) -> bool:
    """Whether a chain of iptables finds classes by their marks."""
    return isinstance(key, ChainKey) and key.table is Table.FILTER and key.name.startswith(_DISPATCHES)


def _is_of_interface(key: Member) -> bool:
    return isinstance(key, ElementKey) and bool(key.interface)


def _those(refused: Mapping[FilterKey, str], kind: Any) -> dict[Any, str]:
    """Of refused keys those of some kinds."""
    return {key: words for key, words in refused.items() if isinstance(key, kind)} if refused else {}
