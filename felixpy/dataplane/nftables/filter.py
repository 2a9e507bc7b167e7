"""The nftables back-end for one family: table ``felixpy``, written in one transaction per change.

Invariant: everything in the table is ours; everything outside is never touched. The socket stays open for the life of
the back-end, because closing one after a delete waits for a kernel grace period (DESIGN §2.5).
"""

from __future__ import annotations

import errno
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Final, Generic, NamedTuple, TypeVar

from felixpy.calc.entries import ADDRESS_MAPS, STANDING_SETS, ElementKey, SetName, SetType, set_type
from felixpy.calc.policy.carrier import CLASS_SETS, MAPS, MarkBits, number_of
from felixpy.calc.policy.classes import Direction
from felixpy.calc.policy.layout import class_of_chain
from felixpy.calc.rule import ChainKey, Chains, ClassElement, RuleKey, Table
from felixpy.dataplane.nftables import elements, render
from felixpy.dataplane.nftables.edits import Renamed, renamed_chains
from felixpy.dataplane.packet_filter import (
    CountedPackets,
    FilterChange,
    FilterCounts,
    FilterKey,
    FilterState,
    Member,
    Part,
    RenderedChain,
    SetKey,
)
from felixpy.model.net import Family
from felixpy.netlink import expressions, port_sets
from felixpy.netlink import nftables as nft
from felixpy.netlink.expressions import NF_ACCEPT, NFPROTO, PORTS
from felixpy.netlink.message import Message, Request, text_attribute
from felixpy.netlink.transport import NETLINK_NETFILTER, NetlinkError, NetlinkSocket, Refusal
from felixpy.slices import in_slices

TABLE = "felixpy"
CREATION_ORDER = (*STANDING_SETS[:2], *CLASS_SETS, *STANDING_SETS[2:], *ADDRESS_MAPS)
"""The kernel finds a set by its name in the order in which they were made: first those that each endpoint writes."""

EVERY_SET = frozenset(CREATION_ORDER)
EVERY_MAP = frozenset(MAPS.values())
FIRST_POLICY_SET, FIRST_PORT_SET = 100, 1 << 20  # numbers of sets within a transaction
ELEMENTS_PER_MESSAGE = 400  # an attribute holds 64 KiB; an IPv6 interval takes up to 120 bytes


_NO_DATA: Final[Mapping[Member, int]] = MappingProxyType({})


class _Step(NamedTuple):
    """A request and the keys that are lost if the kernel refuses it; ``gone`` accepts ENOENT as success.

    ``was`` is how a chain was called that gets another name.
    """

    request: Request
    keys: tuple[FilterKey, ...]
    gone: bool = False
    was: ChainKey | None = None

    @property
    def only_members(self) -> bool:
        elements = self.request.type & 0xFF in (nft.NEWSETELEM, nft.DELSETELEM)
        return elements and not (self.keys and isinstance(self.keys[0], ChainKey | ClassElement))


H = TypeVar("H")


class _Handles(NamedTuple, Generic[H]):
    """How the kernel calls a chain, and its rules in order."""

    chain: int
    rules: list[H]


@dataclass(slots=True)
class _Edits:
    """Chains that are edited: keys that need nothing else, how, and what each chain consists of then."""

    keys: set[FilterKey] = field(default_factory=set)
    steps: list[_Step] = field(default_factory=list)
    handles: dict[ChainKey, _Handles[int | _Step]] = field(default_factory=dict)


class _OthersRules(Exception):
    """A chain does not hold what it was thought to hold."""


@dataclass(slots=True)
class _Seen:
    """What the kernel was last seen to hold. ``replace``: it is not our layout. ``tainted``: sets with odd ranges.
    ``dormant``: the table stands, but the kernel looks at none of its rules.

    ``part``: whether sets and members were looked at, too, or taken for what they were.
    """

    table: bool = False
    sets: set[SetName] = field(default_factory=set)
    maps: set[str] = field(default_factory=set)
    policy_sets: set[SetKey] = field(default_factory=set)
    anonymous: dict[str, int] = field(default_factory=dict)  # flags by name
    chains: dict[RuleKey, list[nft.NftRule | str]] = field(default_factory=dict)
    elements: set[Member] = field(default_factory=set)
    data: dict[ElementKey, int] = field(default_factory=dict)
    tainted: set[SetName] = field(default_factory=set)
    replace: bool = False
    dormant: bool = False
    part: Part = Part.ALL

    @property
    def is_whole(self) -> bool:
        """Whether the table stands with all its sets, as we make them, and is in force."""
        whole = self.sets == EVERY_SET and self.maps == EVERY_MAP
        return self.table and whole and not (self.tainted or self.replace or self.dormant)

    def add_set(self, shape: nft.KernelSet, family: Family) -> None:
        if shape.flags & nft.NFT_SET_ANONYMOUS:
            self.anonymous[shape.name] = shape.flags
        elif shape.name in EVERY_MAP and shape == elements.map_shape(shape.name):
            self.maps.add(shape.name)
        elif (name := _set_name(shape.name)) is None or shape != elements.set_shape(name, family):
            self.replace = True
        elif name in EVERY_SET:
            self.sets.add(name)
        else:
            self.policy_sets.add(SetKey(str(name)))

    def add_chain(self, table: str, name: str, hook: nft.Hook | None, policy: int) -> None:
        if table != TABLE:
            return
        key = _chain_key(name)
        if key is None or hook != render.HOOKS.get(key) or policy != NF_ACCEPT:
            self.replace = True
        else:
            self.chains[key] = []

    def add_rule(self, table: str, chain: str, rule: nft.NftRule) -> None:
        key = _chain_key(chain)
        if table == TABLE and key is not None:
            self.chains.setdefault(key, []).append(rule)


class NftablesFilter:
    """``PacketFilter`` over nfnetlink."""

    marks_pairs = False
    is_silent = False

    def __init__(self, family: Family) -> None:
        self.family = family
        self.socket = NetlinkSocket(NETLINK_NETFILTER)
        self._seen = _Seen()
        self._handles: dict[RuleKey, _Handles[int]] = {}
        """Of chains that were edited."""
        self._generation = 0
        self._write_errors = self._read_errors = 0

    def counts(self) -> FilterCounts:
        return FilterCounts(self.socket.sends, self._write_errors, self.socket.dumps_sent, self._read_errors)

    def close(self) -> None:
        self.socket.close()

    def render(self, chains: Chains) -> dict[RuleKey, RenderedChain]:
        return dict(render.render_chains(chains, self.family))

    def use_marks(self, marks: MarkBits) -> None:
        """Members carry none here."""

    def class_numbers(
        self, chains: Mapping[RuleKey, RenderedChain], marks: MarkBits
    ) -> dict[tuple[Direction, str], int]:
        numbers = {}
        for key, rendered in chains.items():
            if isinstance(key, ClassElement) and rendered:
                chain = _chain_key(rendered[0])
                if chain is not None and (found := class_of_chain(chain.name)) is not None:
                    of = marks.of(found[0])
                    numbers[found] = number_of(key.mark >> of.shift & of.largest, of.bits)
        return numbers

    async def read(self, part: Part = Part.ALL) -> FilterState:
        """Read the table, or its chains and rules alone, in slices; again if rules or sets were written meanwhile.

        A layout that is not ours (a set of another type, a hook elsewhere) reads as empty and is replaced by the next
        write, in the same transaction.
        """
        while True:
            generation = self._generation
            try:
                seen = await self._look(part)
            except OSError:
                self._read_errors += 1
                raise
            if generation == self._generation:
                break
        self._seen, self._handles = seen, {}
        members, seen.elements = seen.elements, set()  # to keep them would cost as much as the table that they go into
        data, seen.data = seen.data, {}
        if seen.replace:
            return FilterState()
        chains: dict[RuleKey, RenderedChain] = {key: tuple(rules) for key, rules in seen.chains.items()}
        seen.chains = {key: [] for key in chains}
        return FilterState(
            chains=chains,
            elements=members,
            containers=seen.is_whole,
            part=seen.part,
            sets=set(seen.policy_sets),
            data=data,
        )

    async def create_containers(self) -> None:
        """Nothing to do ahead: ``write`` puts the table and its sets into the transaction that needs them."""

    async def write(self, change: FilterChange) -> Mapping[FilterKey, str]:
        """Write one change in one transaction, after one that makes the chains which the other leads to.

        The kernel asks anew at each lookup which generation is in force, but once per packet for the rules. So a packet
        that is on its way may find an element as new as the chain that it names, and in that chain the rules of before:
        none, and whoever comes to the end of a chain passes.

        Chains that are edited where they stand are as old as the packet is, and what leads to them stays.
        """
        edits = self._edits(change)
        rest = change.without(edits.keys) if edits.keys else change
        made = self._made_first(rest)
        if made and not self._commit(self._steps(made)):
            change, rest = (one.without(set(made.keys)) for one in (change, rest))
        steps = self._steps(rest, edits=edits.steps)
        for key in change.chains:
            self._handles.pop(key, None)
        if not self._commit(steps):
            self._learn(edits, steps)
            return {}
        return self._commit_singly(change)

    def _edits(self, change: FilterChange) -> _Edits:
        """Chains that are edited and not made anew, with the elements that lead to them, and how."""
        edits = _Edits()
        for element, renamed in (renamed_chains(change) if self._seen.is_whole else {}).items():
            try:
                some = [self._edit_steps(one) for one in renamed]
            except (NetlinkError, _OthersRules):
                continue  # somebody else changed it: it is made anew
            edits.keys |= {element, *(key for one in renamed for key in (one.old, one.new))}
            for one, (steps, handles) in zip(renamed, some, strict=True):
                edits.steps += steps
                edits.handles[one.new] = handles
        return edits

    def _edit_steps(self, one: Renamed) -> tuple[list[_Step], _Handles[int | _Step]]:
        """The rules of a chain that differ, and its new name; and its handles after that, or what will have them.

        Raises:
            NetlinkError: the kernel has no such chain.
            _OthersRules: it has not as many rules as was thought.
        """
        old = render.chain_name(one.old)
        known = self._handles.get(one.old) or self._ask_handles(old)
        if len(known.rules) != one.length or one.new in self._seen_chains:
            raise _OthersRules
        steps: list[_Step] = []
        rules: list[int | _Step] = []
        end = 0
        for edit in one.edits:
            before = known.rules[edit.end] if edit.end < one.length else None
            requests = (nft.new_rule(self.family, TABLE, old, rule, before=before, echo=True) for rule in edit.rules)
            come = [_Step(request, (one.new,)) for request in requests]
            leave = known.rules[edit.start : edit.end]
            steps += come
            steps += (_Step(nft.delete_rule(self.family, TABLE, old, handle), (one.new,)) for handle in leave)
            rules += (*known.rules[end : edit.start], *come)
            end = edit.end
        rules += known.rules[end:]
        name = nft.rename_chain(self.family, TABLE, known.chain, render.chain_name(one.new))
        steps.append(_Step(name, (one.new,), was=one.old))
        return steps, _Handles(known.chain, rules)

    def _ask_handles(self, chain: str) -> _Handles[int]:
        """Handles of a chain and its rules.

        Raises:
            NetlinkError: the kernel has no such chain.
        """
        rules = self.socket.dump_all(nft.get_rules(self.family, TABLE, chain))
        found = self.socket.ask(nft.get_chain(self.family, TABLE, chain))
        return _Handles(nft.chain_handle(found), list(map(nft.rule_handle, rules)))

    def _learn(self, edits: _Edits, steps: Sequence[_Step]) -> None:
        """Take the handles that the kernel gave to rules that came into standing chains."""
        if not edits.steps:
            return
        given = {
            id(steps[index - 1]): nft.rule_handle(message)  # the first request of a transaction begins it
            for index, message in self.socket.echoes
            if message.type & 0xFF == nft.NEWRULE
        }
        for key, handles in edits.handles.items():
            rules = [one if isinstance(one, int) else given.get(id(one)) for one in handles.rules]
            if None not in rules:
                self._handles[key] = _Handles(handles.chain, [one for one in rules if one is not None])

    def _made_first(self, change: FilterChange) -> FilterChange:
        """Of a change the new chains, and the sets that they may ask, if elements may lead to them."""
        made = FilterChange()
        if self._seen.is_whole and any(isinstance(key, ClassElement) for key in change.chains):
            chains = change.chains.items()
            made.chains = {
                key: rules
                for key, rules in chains
                if isinstance(key, ChainKey) and rules is not None and not key.is_hook and key not in self._seen_chains
            }
            made.sets = {key: comment for key, comment in change.sets.items() if comment is not None and made.chains}
        return made

    def member_requests(self, change: FilterChange) -> list[Request] | None:
        if not self._seen.is_whole or change.sets:
            return None
        return [step.request for step in self._element_steps(change, ELEMENTS_PER_MESSAGE)]

    def send_members(self, requests: Sequence[Request]) -> bool:
        """In one transaction: of a refused one nothing is done."""
        return not self._transact(requests)

    async def remove_all(self) -> None:
        try:
            if self._table_flags() is None:
                return
        except NetlinkError as error:
            if error.errno not in nft.NOT_IN_KERNEL:
                raise
            return
        refusals = self.socket.transact(nft.batch([nft.delete_table(self.family, TABLE)]), batch=True)
        for refusal in refusals.values():
            if refusal.errno != errno.ENOENT:
                raise NetlinkError(refusal.errno, f"cannot delete nft table {TABLE}: {refusal}")
        self._seen, self._handles = _Seen(), {}
        self._generation += 1

    def looks_changed(self) -> bool:
        """No: what changes is told."""
        return False

    def ports(self) -> tuple[int, ...]:
        return (self.socket.port,)

    def notify(self, message: Message) -> Iterable[tuple[Member, bool]] | Part:
        """Members that a notification says came (True) or went (False), or what to read again."""
        command = message.type & 0xFF
        if message.type >> 8 != nft.NFNL_SUBSYS_NFTABLES or message.payload[0] != NFPROTO[self.family]:
            return ()
        if command == nft.NEWGEN or nft.table_of(message, command) != TABLE:
            return ()
        if command in (nft.NEWRULE, nft.DELRULE, nft.NEWCHAIN, nft.DELCHAIN):
            return Part.RULES
        if command not in (nft.NEWSETELEM, nft.DELSETELEM):
            return Part.ALL
        if (text := nft.set_of(message)) in EVERY_MAP:
            return Part.RULES
        name = _set_name(text)
        if name is None or name.type in (SetType.NET, SetType.NET_INTERFACE) or name in ADDRESS_MAPS:
            return Part.ALL  # of an interval the kernel tells each end by itself, and of a map there is more to know
        try:
            found = elements.decode(name, self.family, nft.decode_elements(message))
        except elements.NotOursError:
            return Part.ALL
        return [(key, command == nft.NEWSETELEM) for key in found]

    async def decisions(self) -> list[CountedPackets]:
        """By rules with a counter."""
        return [
            CountedPackets(key.name, one.comment, one.denied, one.packets)
            for one in await self.socket.decode_sliced(self._in_table(nft.GETRULE), nft.decode_counted)
            if one is not None and one.table == TABLE and (key := _chain_key(one.chain)) is not None
        ]

    # --- reading -----------------------------------------------------------------------------------------------

    async def _look(self, part: Part) -> _Seen:
        flags = self._table_flags()
        if flags is None:
            return _Seen()
        seen = _Seen(table=True, dormant=bool(flags & nft.NFT_TABLE_F_DORMANT))
        if part is Part.RULES and self._seen.is_whole:
            seen.part, seen.sets, seen.maps = part, set(self._seen.sets), set(self._seen.maps)
            seen.policy_sets = set(self._seen.policy_sets)
        else:
            await self._look_at_sets(seen)
        for message in await self.socket.dump_sliced(nft.dump(nft.GETCHAIN, self.family)):
            seen.add_chain(*nft.decode_chain(message))
        if seen.replace:
            return seen
        for message in await self.socket.dump_sliced(self._in_table(nft.GETRULE)):
            seen.add_rule(*nft.decode_rule(message))
        await self._look_at_port_sets(seen)
        for map_name in seen.maps:
            if ChainKey(Table.FILTER, map_name) in seen.chains:  # else nobody looks into it
                await self._look_into_map(map_name, seen)
        if seen.part is Part.ALL:
            for name in (*seen.sets, *(SetName(key.name) for key in seen.policy_sets)):
                await self._look_into(name, seen)
        return seen

    async def _look_at_sets(self, seen: _Seen) -> None:
        for message in await self.socket.dump_sliced(self._in_table(nft.GETSET)):
            table, shape = nft.decode_set(message)
            if table == TABLE:
                seen.add_set(shape, self.family)

    async def _look_at_port_sets(self, seen: _Seen) -> None:
        """Put the content of anonymous sets into the rules that look into them."""
        used = {name for rules in seen.chains.values() for rule in rules for name in port_sets.anonymous_sets(rule)}
        if not used:
            return
        if seen.part is Part.RULES:
            for message in await self.socket.dump_sliced(self._in_table(nft.GETSET)):
                table, shape = nft.decode_set(message)
                if table == TABLE and shape.flags & nft.NFT_SET_ANONYMOUS:
                    seen.anonymous[shape.name] = shape.flags
        contents = {}
        for name in used & seen.anonymous.keys():
            request = nft.get_elements(self.family, TABLE, name)
            try:
                found = [one for some in await self.socket.decode_sliced(request, nft.decode_elements) for one in some]
            except NetlinkError as error:
                if error.errno != errno.ENOENT:
                    raise
                continue  # its rule went
            contents[name] = port_sets.decode_port_ranges(found, seen.anonymous[name])
        for key, rules in seen.chains.items():
            seen.chains[key] = [
                port_sets.named_ports(rule, contents) for rule in rules if isinstance(rule, nft.NftRule)
            ]

    async def _look_into_map(self, name: str, seen: _Seen) -> None:
        request = nft.get_elements(self.family, TABLE, name)
        for some in await self.socket.decode_sliced(request, nft.decode_elements):
            for mark, chain in elements.decode_map(some).items():
                seen.chains[ClassElement(name, mark)] = [chain]

    async def _look_into(self, name: SetName, seen: _Seen) -> None:
        ends: list[nft.KernelElement] = []
        try:
            request = nft.get_elements(self.family, TABLE, name)
            if name in ADDRESS_MAPS:
                for some in await self.socket.decode_sliced(request, nft.decode_elements):
                    found = elements.decode_addresses(name, self.family, some)
                    seen.elements |= found.keys()
                    seen.data |= found
                return
            if name.type is SetType.NET:
                for some in await self.socket.decode_sliced(request, nft.decode_elements):
                    ends += some  # the ends of an interval may come in two messages
                seen.elements |= elements.decode(name, self.family, ends)
                return
            members = await self.socket.decode_sliced(request, partial(elements.decode_datagram, name, self.family))
            async for sets in in_slices(members, 1):
                seen.elements.update(*sets)
        except elements.NotOursError:
            seen.tainted.add(name)
            seen.elements = {key for key in seen.elements if key.set != name}
        except NetlinkError as error:
            if error.errno != errno.ENOENT or name in EVERY_SET:
                raise
            seen.policy_sets.discard(SetKey(str(name)))  # it went while the others were read

    def _in_table(self, command: int) -> Request:
        return nft.dump(command, self.family, text_attribute(1, TABLE))

    def _table_flags(self) -> int | None:
        """Flags of our table; None if there is none."""
        tables = self.socket.dump_all(nft.dump(nft.GETTABLE, self.family))
        return dict(map(nft.decode_table, tables)).get(TABLE)

    @property
    def _seen_chains(self) -> Container[RuleKey]:
        return () if self._seen.replace else self._seen.chains

    @property
    def _seen_sets(self) -> Container[SetKey]:
        return () if self._seen.replace else self._seen.policy_sets

    # --- writing -----------------------------------------------------------------------------------------------

    def _steps(
        self, change: FilterChange, per_message: int = ELEMENTS_PER_MESSAGE, edits: Sequence[_Step] = ()
    ) -> list[_Step]:
        if not (change or edits or self._seen.tainted or self._seen.dormant):
            return []
        return [
            *self._container_steps(),
            *self._new_set_steps(change),
            *self._chain_steps(change),
            *self._class_steps(change),
            *edits,
            *self._element_steps(change, per_message),
            *self._delete_chain_steps(change),
            *self._delete_set_steps(change),
        ]

    def _container_steps(self) -> list[_Step]:
        steps: list[_Step] = []
        seen = self._seen
        if seen.is_whole:
            return steps
        if seen.table and seen.replace:
            steps.append(_Step(nft.delete_table(self.family, TABLE), ()))
        if not seen.table or seen.replace:
            steps.append(_Step(nft.new_table(self.family, TABLE), ()))
        elif seen.dormant:
            steps.append(_Step(nft.wake_table(self.family, TABLE), ()))
        for number, name in enumerate(CREATION_ORDER, start=1):
            if name not in seen.sets or seen.replace:
                shape, fields = elements.set_shape(name, self.family), elements.set_fields(name, self.family)
                steps.append(_Step(nft.new_set(self.family, TABLE, shape, number, fields), ()))
        for number, map_name in enumerate(sorted(EVERY_MAP), start=len(CREATION_ORDER) + 1):
            if map_name not in seen.maps or seen.replace:
                steps.append(_Step(nft.new_set(self.family, TABLE, elements.map_shape(map_name), number), ()))
        steps += [_Step(nft.flush_set(self.family, TABLE, name), ()) for name in seen.tainted if not seen.replace]
        return steps

    def _new_set_steps(self, change: FilterChange) -> Iterator[_Step]:
        for number, (key, comment) in enumerate(change.sets.items(), start=FIRST_POLICY_SET):
            if comment is not None and key not in self._seen_sets:
                shape = elements.set_shape(SetName(key.name), self.family)
                yield _Step(nft.new_set(self.family, TABLE, shape, number, comment=comment), (key,))

    def _delete_set_steps(self, change: FilterChange) -> Iterator[_Step]:
        for key, comment in change.sets.items():
            if comment is None:
                yield _Step(nft.delete_set(self.family, TABLE, key.name), (key,), gone=True)

    def _chain_steps(self, change: FilterChange) -> list[_Step]:
        """New chains, then the old rules out and the new rules in: within one transaction nobody sees the gap."""
        steps = []
        chains = {key: rules for key, rules in change.chains.items() if isinstance(key, ChainKey)}
        for key in sorted(chains):
            if key not in self._seen_chains and chains[key] is not None:
                request = nft.new_chain(self.family, TABLE, render.chain_name(key), render.HOOKS.get(key))
                steps.append(_Step(request, (key,)))
        for key in chains:
            if key in self._seen_chains:
                steps.append(_Step(nft.flush_chain(self.family, TABLE, render.chain_name(key)), (key,), gone=True))
        port_set = FIRST_PORT_SET
        for key, rules in sorted(chains.items()):
            for rule in rules or ():
                requests, port_set = self._rule_requests(render.chain_name(key), rule, port_set)
                steps += [_Step(request, (key,)) for request in requests]
        return steps

    def _rule_requests(self, chain: str, rule: nft.NftRule, port_set: int) -> tuple[list[Request], int]:
        """Messages for a rule and the sets of ports that it has by itself; the next free number of such a set."""
        requests: list[Request] = []
        parts = []
        for one in rule.expressions:
            if one.name == PORTS:
                made, one = port_sets.port_set_requests(self.family, TABLE, one, port_set)
                requests += made
                port_set += 1
            parts.append(one)
        if requests:
            rule = rule._replace(expressions=tuple(parts))
        return [*requests, nft.new_rule(self.family, TABLE, chain, rule)], port_set

    def _class_steps(self, change: FilterChange) -> list[_Step]:
        """Elements of the maps of classes: the old ones out and the new ones in, before chains that they named go."""
        steps = []
        classes = {key: rules for key, rules in change.chains.items() if isinstance(key, ClassElement)}
        for key in classes:
            if key in self._seen_chains:
                entry = nft.map_element(expressions.mark(key.mark), None)
                request = nft.set_elements(nft.DELSETELEM, self.family, TABLE, key.map, [entry])
                steps.append(_Step(request, (key,), gone=True))
        for key, rules in classes.items():
            if rules is not None:
                entry = nft.map_element(expressions.mark(key.mark), rules[0])
                request = nft.set_elements(nft.NEWSETELEM, self.family, TABLE, key.map, [entry])
                steps.append(_Step(request, (key,)))
        return steps

    def _delete_chain_steps(self, change: FilterChange) -> list[_Step]:
        return [
            _Step(nft.delete_chain(self.family, TABLE, render.chain_name(key)), (key,))
            for key, rules in change.chains.items()
            if isinstance(key, ChainKey) and rules is None and key in self._seen_chains
        ]

    def _element_steps(self, change: FilterChange, per_message: int) -> list[_Step]:
        """Interval sets refuse overlaps even within a transaction, so their removals go before additions; so does what
        a map has for a key, before it gets something else.
        """
        steps: list[_Step] = []
        if change.changed:
            anew = [key for key in change.add if key in change.changed and key.set in ADDRESS_MAPS]
            steps += self._steps_of(nft.DELSETELEM, anew, per_message)
        if change.remove:
            intervals = [key for key in change.remove if set_type(key.set) in _INTERVALS]
            steps += self._steps_of(nft.DELSETELEM, intervals, per_message)
        steps += self._steps_of(nft.NEWSETELEM, change.add, per_message, change.data)
        if change.remove:
            others = [key for key in change.remove if set_type(key.set) not in _INTERVALS]
            steps += self._steps_of(nft.DELSETELEM, others, per_message)
        return steps

    def _steps_of(
        self, command: int, keys: Iterable[Member], per_message: int, data: Mapping[Member, int] = _NO_DATA
    ) -> Iterator[_Step]:
        by_set: dict[str, list[Member]] = {}
        for key in keys:
            by_set.setdefault(key.set, []).append(key)
        for name, members in by_set.items():
            for start in range(0, len(members), per_message):
                chunk = members[start : start + per_message]
                entries = map(elements.encode, chunk, map(data.get, chunk))
                request = nft.set_elements(command, self.family, TABLE, name, entries)
                yield _Step(request, tuple(chunk), gone=command == nft.DELSETELEM)

    def _commit(self, steps: list[_Step]) -> dict[int, Refusal]:
        """Send one transaction, if there is anything to send. Returns refusals by step index (-1: the frame)."""
        if not steps:
            return {}
        refusals = self._transact([step.request for step in steps])
        if not refusals:
            self._remember(steps)
        return refusals

    def _transact(self, requests: Sequence[Request]) -> dict[int, Refusal]:
        """One transaction. Returns refusals by index (-1: the frame)."""
        try:
            refusals = self.socket.transact(nft.batch(requests), batch=True)
        except OSError:
            self._write_errors += 1
            raise
        if refusals:
            self._write_errors += 1
        return {index - 1: refusal for index, refusal in refusals.items()}

    def _remember(self, steps: list[_Step]) -> None:
        """Note what stands now; a read that was under way starts again if it was more than members."""
        others = [step for step in steps if not step.only_members]
        if not others and self._seen.is_whole:
            return
        self._generation += len(others)
        seen = self._seen
        if not seen.is_whole:
            chains: Iterable[RuleKey] = () if seen.replace else seen.chains
            sets = set() if seen.replace else seen.policy_sets
            seen = self._seen = _Seen(True, set(EVERY_SET), set(EVERY_MAP), sets, chains={key: [] for key in chains})
        for step in others:
            command = step.request.type & 0xFF
            if command in _OF_CHAINS:
                of_chains = [key for key in step.keys if isinstance(key, ChainKey | ClassElement)]
                for key in of_chains:
                    if _OF_CHAINS[command]:
                        seen.chains[key] = []
                    else:
                        seen.chains.pop(key, None)
            elif command in _OF_SETS:
                of_sets = [key for key in step.keys if isinstance(key, SetKey)]
                (seen.policy_sets.update if _OF_SETS[command] else seen.policy_sets.difference_update)(of_sets)
            if step.was is not None:
                seen.chains.pop(step.was, None)

    def _commit_singly(self, change: FilterChange) -> dict[FilterKey, str]:
        """The kernel refused the transaction: repeat it with a message per element, without the culprits."""
        refused: dict[FilterKey, str] = {}
        while True:
            steps = self._steps(change, per_message=1)
            refusals = self._commit(steps)
            if not refusals:
                return refused
            culprits = [(steps[index], why) for index, why in refusals.items() if 0 <= index < len(steps)]
            keys = {key for step, _ in culprits for key in step.keys}
            if any(isinstance(key, ChainKey | ClassElement) for key in keys):
                keys |= set(change.chains)  # chains jump to each other: one layout, one fate
            if not keys:  # the kernel refused the transaction as such, or our table or sets
                words = str(next(iter(refusals.values())))
                return refused | {key: words for step in steps for key in step.keys}
            for step, why in culprits:
                if not (step.gone and why.errno == errno.ENOENT):
                    lost = change.chains if isinstance(step.keys[0], ChainKey | ClassElement) else step.keys
                    refused.update({key: str(why) for key in lost})
            change = change.without(keys)


_OF_CHAINS = {nft.NEWCHAIN: True, nft.NEWSETELEM: True, nft.DELCHAIN: False, nft.DELSETELEM: False}
_OF_SETS = {nft.NEWSET: True, nft.DELSET: False}
"""Whether a message makes what it names, or removes it."""

_TABLES = {table.value: table for table in Table}
_INTERVALS = frozenset({SetType.NET, SetType.NET_INTERFACE})


def _set_name(name: str) -> SetName | None:
    """The set of ours that bears a name; None if none can."""
    try:
        return SetName(name)
    except ValueError:
        return None


def _chain_key(name: str) -> ChainKey | None:
    """Inverse of ``render.chain_name``; None for a chain that we would never make."""
    table, _, rest = name.partition("-")
    return ChainKey(_TABLES[table], rest) if table in _TABLES and rest else None
