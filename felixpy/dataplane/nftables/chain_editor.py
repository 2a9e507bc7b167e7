"""Chains of classes that are edited where they stand, by the handles that the kernel has for their rules.

Handles are asked for when a chain is edited first, and kept: the kernel tells those of rules that come in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

from msgspec import Struct, field

from felixpy.calc.rule import ChainKey, RuleKey
from felixpy.dataplane.nftables import render
from felixpy.dataplane.nftables.edits import Renamed, renamed_chains
from felixpy.dataplane.nftables.seen import TABLE, Seen
from felixpy.dataplane.nftables.steps import Step
from felixpy.dataplane.packet_filter import FilterChange, FilterKey
from felixpy.model.net import Family
from felixpy.netlink import nftables as nft
from felixpy.netlink.transport import NetlinkError, NetlinkSocket

H = TypeVar("H")


class _Handles(NamedTuple, Generic[H]):
    """How the kernel calls a chain, and its rules in order."""

    chain: int
    rules: list[H]


class Edits(Struct):
    """Chains that are edited: keys that need nothing else, how, and what each chain consists of then."""

    keys: set[FilterKey] = field(default_factory=set)
    steps: list[Step] = field(default_factory=list)
    handles: dict[ChainKey, _Handles[int | Step]] = field(default_factory=dict)


class _OthersRules(Exception):
    """A chain does not hold what it was thought to hold."""


class ChainEditor:
    """Edits chains of one family. What it makes is written by others, who tell it what became of it."""

    def __init__(self, socket: NetlinkSocket, family: Family) -> None:
        self.socket = socket
        self.family = family
        self._handles: dict[RuleKey, _Handles[int]] = {}
        """Of chains that were edited."""

    def forget(self, keys: Iterable[RuleKey] | None = None) -> None:
        """Chains that are made anew or go; all of them, if none is named."""
        if keys is None:
            self._handles.clear()
        else:
            for key in keys:
                self._handles.pop(key, None)

    def edits(self, change: FilterChange, seen: Seen) -> Edits:
        """Chains that are edited and not made anew, with the elements that lead to them, and how."""
        edits = Edits()
        for element, renamed in (renamed_chains(change) if seen.is_whole else {}).items():
            try:
                some = [self._edit_steps(one, seen) for one in renamed]
            except (NetlinkError, _OthersRules):
                continue  # somebody else changed it: it is made anew
            edits.keys |= {element, *(key for one in renamed for key in (one.old, one.new))}
            for one, (steps, handles) in zip(renamed, some, strict=True):
                edits.steps += steps
                edits.handles[one.new] = handles
        return edits

    def _edit_steps(self, one: Renamed, seen: Seen) -> tuple[list[Step], _Handles[int | Step]]:
        """The rules of a chain that differ, and its new name; and its handles after that, or what will have them.

        Raises:
            NetlinkError: the kernel has no such chain.
            _OthersRules: it has not as many rules as was thought.
        """
        old = render.chain_name(one.old)
        known = self._handles.get(one.old) or self._ask_handles(old)
        if len(known.rules) != one.length or one.new in seen.standing_chains:
            raise _OthersRules
        steps: list[Step] = []
        rules: list[int | Step] = []
        end = 0
        for edit in one.edits:
            before = known.rules[edit.end] if edit.end < one.length else None
            requests = (nft.new_rule(self.family, TABLE, old, rule, before=before, echo=True) for rule in edit.rules)
            come = [Step(request, (one.new,)) for request in requests]
            leave = known.rules[edit.start : edit.end]
            steps += come
            steps += (Step(nft.delete_rule(self.family, TABLE, old, handle), (one.new,)) for handle in leave)
            rules += (*known.rules[end : edit.start], *come)
            end = edit.end
        rules += known.rules[end:]
        name = nft.rename_chain(self.family, TABLE, known.chain, render.chain_name(one.new))
        steps.append(Step(name, (one.new,), was=one.old))
        return steps, _Handles(known.chain, rules)

    def _ask_handles(self, chain: str) -> _Handles[int]:
        """Handles of a chain and its rules.

        Raises:
            NetlinkError: the kernel has no such chain.
        """
        rules = self.socket.dump_all(nft.get_rules(self.family, TABLE, chain))
        found = self.socket.ask(nft.get_chain(self.family, TABLE, chain))
        return _Handles(nft.chain_handle(found), list(map(nft.rule_handle, rules)))

    def learn(self, edits: Edits, steps: Sequence[Step]) -> None:
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
