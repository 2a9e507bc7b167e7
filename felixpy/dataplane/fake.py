"""A packet-filter back-end in memory, with the rules by which nf_tables refuses: for random histories and faults.

One contract suite runs against it and against the three real back-ends. Invariant: a change is done as a whole but for
the keys that are refused, as the kernel does it once the culprits are left out. Must never be more lenient than
nf_tables: overlapping intervals, jumps into nothing and the removal of chains in use are errors.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

from felixpy.calc.entries import ElementKey, SetType, set_type
from felixpy.calc.policy.carrier import MarkBits
from felixpy.calc.policy.classes import Direction
from felixpy.calc.rule import ChainKey, Chains, Goto, Jump, Rule, RuleKey
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
from felixpy.netlink.message import Message, Request
from felixpy.netlink.transport import NETLINK_NETFILTER, NetlinkSocket


class FakePacketFilter:
    """``PacketFilter`` over dictionaries. ``refuses`` gives words for a key that is to fail besides."""

    marks_pairs = False
    is_silent = False

    def __init__(self, family: Family) -> None:
        self.family = family
        self.socket = NetlinkSocket(NETLINK_NETFILTER)  # never used, so never opened
        self.chains: dict[RuleKey, RenderedChain] = {}
        self.elements: set[Member] = set()
        self.data: dict[ElementKey, int] = {}
        self.sets: set[SetKey] = set()
        self.containers = False
        self.foreign: tuple[str, ...] = ()
        self.refuses: Callable[[FilterKey], str] = lambda key: ""
        self.breaks: Callable[[], OSError | None] = lambda: None
        """An error of the back-end as a whole, asked for before each read and each write."""
        self.writes = 0

    def use_marks(self, marks: MarkBits) -> None:
        """Members carry none here."""

    def render(self, chains: Chains) -> dict[RuleKey, RenderedChain]:
        return dict(chains)

    async def read(self, part: Part = Part.ALL) -> FilterState:
        self._break()
        return FilterState(
            dict(self.chains),
            set(self.elements),
            self.containers,
            foreign=self.foreign,
            sets=set(self.sets),
            data={key: data for key, data in self.data.items() if key in self.elements},
        )

    def notify(self, message: Message) -> Iterable[tuple[Member, bool]] | Part:
        """Nothing is ever told: what others change shows at the next read."""
        return ()

    def class_numbers(
        self, chains: Mapping[RuleKey, RenderedChain], marks: MarkBits
    ) -> dict[tuple[Direction, str], int]:
        return {}

    def looks_changed(self) -> bool:
        """No: what changes is told."""
        return False

    def ports(self) -> tuple[int, ...]:
        return ()

    async def create_containers(self) -> None:
        self._break()
        self.containers = True

    async def write(self, change: FilterChange) -> Mapping[FilterKey, str]:
        self._break()
        self.writes += 1
        self.foreign = ()
        refused: dict[FilterKey, str] = {}
        self._remove(change, refused)
        for made, comment in change.sets.items():
            if comment is None:
                self.sets.discard(made)
                self.elements = {one for one in self.elements if one.set != made.name}
            else:
                self.sets.add(made)
        for key in change.add:
            if words := self.refuses(key) or self._overlap(key):
                refused[key] = words
            else:
                self.elements.add(key)
                if isinstance(key, ElementKey) and key in change.data:
                    self.data[key] = change.data[key]
        if change.chains:
            refused.update(self._write_chains(change.chains))
        return refused

    def member_requests(self, change: FilterChange) -> list[Request] | None:
        """There are no messages."""
        return None

    def send_members(self, requests: Sequence[Request]) -> bool:
        return False

    async def remove_all(self) -> None:
        self.chains, self.elements, self.sets, self.containers = {}, set(), set(), False

    async def decisions(self) -> list[CountedPackets]:
        """No packets come here."""
        return []

    def counts(self) -> FilterCounts:
        return FilterCounts(writes=self.writes)

    def close(self) -> None:
        """Nothing is open."""

    def _break(self) -> None:
        if error := self.breaks():
            raise error

    def _remove(self, change: FilterChange, refused: dict[FilterKey, str]) -> None:
        for key in change.remove:
            if words := self.refuses(key):
                refused[key] = words
            else:
                self.elements.discard(key)

    def _overlap(self, key: Member) -> str:
        """nf_tables: an interval that overlaps another one of its set (and interface) exists already."""
        if set_type(key.set) not in (SetType.NET, SetType.NET_INTERFACE) or key in self.elements:
            return ""
        interface = getattr(key, "interface", "")
        others = (one for one in self.elements if (one.set, getattr(one, "interface", "")) == (key.set, interface))
        return os.strerror(errno.EEXIST) if any(one.net.overlaps(key.net) for one in others) else ""

    def _write_chains(self, chains: Mapping[RuleKey, RenderedChain | None]) -> dict[FilterKey, str]:
        """Chains jump to each other: all of a change are written, or none."""
        words = next(filter(None, map(self.refuses, chains)), "")
        after = {key: rules for key, rules in (self.chains | dict(chains)).items() if rules is not None}
        targets = {
            target for key, rules in after.items() for rule in rules if (target := _target(key, rule)) is not None
        }
        if not words and not targets <= after.keys():
            words = os.strerror(errno.EBUSY if (targets - after.keys()) <= self.chains.keys() else errno.ENOENT)
        if words:
            return dict.fromkeys(chains, words)
        self.chains = after
        return {}


def _target(chain: RuleKey, rule: Rule) -> ChainKey | None:
    return ChainKey(chain.table, rule.action.chain) if isinstance(rule.action, Jump | Goto) else None
