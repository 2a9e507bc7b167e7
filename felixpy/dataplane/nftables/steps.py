"""A change as requests to the kernel, in the order in which one transaction needs them. Asks nobody."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

from felixpy.calc.entries import ADDRESS_MAPS, SetName, SetType, set_type
from felixpy.calc.rule import ChainKey, ClassElement, RuleKey
from felixpy.dataplane.nftables import elements, render
from felixpy.dataplane.nftables.seen import CREATION_ORDER, EVERY_MAP, EVERY_SET, TABLE, Seen
from felixpy.dataplane.packet_filter import FilterChange, FilterKey, Member, SetKey
from felixpy.model.net import Family
from felixpy.netlink import expressions, port_sets
from felixpy.netlink import nftables as nft
from felixpy.netlink.expressions import PORTS, has_ports
from felixpy.netlink.message import Request

FIRST_POLICY_SET, FIRST_PORT_SET = 100, 1 << 20  # numbers of sets within a transaction
ELEMENTS_PER_MESSAGE = 400  # an attribute holds 64 KiB; an IPv6 interval takes up to 120 bytes

_NO_DATA: Final[Mapping[Member, int]] = MappingProxyType({})

_INTERVALS = frozenset({SetType.NET, SetType.NET_INTERFACE})

_OF_CHAINS = {nft.NEWCHAIN: True, nft.NEWSETELEM: True, nft.DELCHAIN: False, nft.DELSETELEM: False}
_OF_SETS = {nft.NEWSET: True, nft.DELSET: False}
"""Whether a message makes what it names, or removes it."""


class Step(NamedTuple):
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


class StepMaker:
    """Steps of one family."""

    def __init__(self, family: Family) -> None:
        self.family = family

    def steps(
        self,
        change: FilterChange,
        seen: Seen,
        per_message: int = ELEMENTS_PER_MESSAGE,
        edits: Sequence[Step] = (),
    ) -> list[Step]:
        """One transaction that turns what was ``seen`` into what is wanted. ``edits`` are of chains that stand."""
        if not (change or edits or seen.tainted or seen.dormant):
            return []
        return [
            *self._container_steps(seen),
            *self._new_set_steps(change, seen),
            *self._chain_steps(change, seen),
            *self._class_steps(change, seen),
            *edits,
            *self.member_steps(change, per_message),
            *self._delete_chain_steps(change, seen),
            *self._delete_set_steps(change),
        ]

    def _container_steps(self, seen: Seen) -> list[Step]:
        steps: list[Step] = []
        if seen.is_whole:
            return steps
        if seen.table and seen.replace:
            steps.append(Step(nft.delete_table(self.family, TABLE), ()))
        if not seen.table or seen.replace:
            steps.append(Step(nft.new_table(self.family, TABLE), ()))
        elif seen.dormant:
            steps.append(Step(nft.wake_table(self.family, TABLE), ()))
        for number, name in enumerate(CREATION_ORDER, start=1):
            if name not in seen.sets or seen.replace:
                shape, fields = elements.set_shape(name, self.family), elements.set_fields(name, self.family)
                steps.append(Step(nft.new_set(self.family, TABLE, shape, number, fields), ()))
        for number, map_name in enumerate(sorted(EVERY_MAP), start=len(CREATION_ORDER) + 1):
            if map_name not in seen.maps or seen.replace:
                steps.append(Step(nft.new_set(self.family, TABLE, elements.map_shape(map_name), number), ()))
        steps += [Step(nft.flush_set(self.family, TABLE, name), ()) for name in seen.tainted if not seen.replace]
        return steps

    def _new_set_steps(self, change: FilterChange, seen: Seen) -> Iterator[Step]:
        for number, (key, comment) in enumerate(change.sets.items(), start=FIRST_POLICY_SET):
            if comment is not None and key not in seen.standing_sets:
                shape = elements.set_shape(SetName(key.name), self.family)
                yield Step(nft.new_set(self.family, TABLE, shape, number, comment=comment), (key,))

    def _delete_set_steps(self, change: FilterChange) -> Iterator[Step]:
        for key, comment in change.sets.items():
            if comment is None:
                yield Step(nft.delete_set(self.family, TABLE, key.name), (key,), gone=True)

    def _chain_steps(self, change: FilterChange, seen: Seen) -> list[Step]:
        """New chains, then the old rules out and the new rules in: within one transaction nobody sees the gap."""
        steps = []
        chains = {key: rules for key, rules in change.chains.items() if isinstance(key, ChainKey)}
        for key in sorted(chains):
            if key not in seen.standing_chains and chains[key] is not None:
                request = nft.new_chain(self.family, TABLE, render.chain_name(key), render.HOOKS.get(key))
                steps.append(Step(request, (key,)))
        for key in chains:
            if key in seen.standing_chains:
                steps.append(Step(nft.flush_chain(self.family, TABLE, render.chain_name(key)), (key,), gone=True))
        port_set = FIRST_PORT_SET
        for key, rules in sorted(chains.items()):
            name, keys = render.chain_name(key), (key,)
            for rule in rules or ():
                if has_ports(rule.expressions):
                    requests, port_set = self._rule_requests(name, rule, port_set)
                    steps += [Step(request, keys) for request in requests]
                else:
                    steps.append(Step(nft.new_rule(self.family, TABLE, name, rule), keys))
        return steps

    def _rule_requests(self, chain: str, rule: nft.NftRule, port_set: int) -> tuple[list[Request], int]:
        """Messages for a rule with sets of ports that it has by itself; the next free number of such a set."""
        requests: list[Request] = []
        parts = []
        for one in rule.expressions:
            if one.name == PORTS:
                made, one = port_sets.port_set_requests(self.family, TABLE, one, port_set)
                requests += made
                port_set += 1
            parts.append(one)
        rule = rule._replace(expressions=tuple(parts))
        return [*requests, nft.new_rule(self.family, TABLE, chain, rule)], port_set

    def _class_steps(self, change: FilterChange, seen: Seen) -> list[Step]:
        """Elements of the maps of classes: the old ones out and the new ones in, before chains that they named go."""
        steps = []
        classes = {key: rules for key, rules in change.chains.items() if isinstance(key, ClassElement)}
        for key in classes:
            if key in seen.standing_chains:
                entry = nft.map_element(expressions.mark(key.mark), None)
                request = nft.set_elements(nft.DELSETELEM, self.family, TABLE, key.map, [entry])
                steps.append(Step(request, (key,), gone=True))
        for key, rules in classes.items():
            if rules is not None:
                entry = nft.map_element(expressions.mark(key.mark), rules[0])
                request = nft.set_elements(nft.NEWSETELEM, self.family, TABLE, key.map, [entry])
                steps.append(Step(request, (key,)))
        return steps

    def _delete_chain_steps(self, change: FilterChange, seen: Seen) -> list[Step]:
        return [
            Step(nft.delete_chain(self.family, TABLE, render.chain_name(key)), (key,))
            for key, rules in change.chains.items()
            if isinstance(key, ChainKey) and rules is None and key in seen.standing_chains
        ]

    def member_steps(self, change: FilterChange, per_message: int = ELEMENTS_PER_MESSAGE) -> list[Step]:
        """Interval sets refuse overlaps even within a transaction, so their removals go before additions; so does what
        a map has for a key, before it gets something else.
        """
        steps: list[Step] = []
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
    ) -> Iterator[Step]:
        by_set: dict[str, list[Member]] = {}
        for key in keys:
            by_set.setdefault(elements.place_of(key), []).append(key)
        for name, members in by_set.items():
            for start in range(0, len(members), per_message):
                chunk = members[start : start + per_message]
                request = nft.set_elements(command, self.family, TABLE, name, elements.encode_all(chunk, data))
                yield Step(request, tuple(chunk), gone=command == nft.DELSETELEM)


def after(seen: Seen, steps: Sequence[Step]) -> Seen:
    """What stands once the kernel took steps that are not of members alone."""
    if not seen.is_whole:
        chains: Iterable[RuleKey] = () if seen.replace else seen.chains
        sets = set() if seen.replace else seen.policy_sets
        seen = Seen(True, set(EVERY_SET), set(EVERY_MAP), sets, chains={key: [] for key in chains})
    for step in steps:
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
    return seen
