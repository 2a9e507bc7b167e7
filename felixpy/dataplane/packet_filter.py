"""What a packet-filter back-end is to the apply loop: two keyed tables (chains, set members) and one way to write them.

A back-end instance serves one family. It turns abstract rules (``felixpy.calc.rule``) into its own canonical form
once (``render``); the same form comes back from the kernel (``read``), so that rule bodies can be compared.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from itertools import chain
from typing import Any, NamedTuple, Protocol

from msgspec import Struct, field

from felixpy.calc.entries import ElementKey
from felixpy.calc.policy.carrier import MarkBits
from felixpy.calc.policy.classes import Direction, MemberKey
from felixpy.calc.rule import Chains, RuleKey
from felixpy.model.net import Family
from felixpy.netlink.message import Message, Request
from felixpy.netlink.transport import NetlinkSocket
from felixpy.plain_error import PlainError

RenderedChain = tuple[Any, ...]
"""One comparable value per rule, in the back-end's own canonical form. A hook chain holds our rules only."""

Member = ElementKey | MemberKey
"""A member of a set: of a standing set or a set of classes, or of one that policies ask."""


class SetKey(NamedTuple):
    """A set that the calculation names, of the family of its back-end."""

    name: str


FilterKey = RuleKey | Member | SetKey


class Part(Enum):
    """What of a packet filter has to be read: rules are few on any node, members are many on a full one."""

    RULES = "chains and rules"
    ALL = "chains, rules, sets and members"


class FilterState(Struct):
    """What the kernel holds of ours, one family. ``elements`` says nothing if ``part`` is ``Part.RULES``.

    ``sets`` are those that the calculation names; ``data`` is what members carry, as in ``FilterChange``.
    ``containers`` is False while standing sets (or the nft table) are missing or of the wrong type;
    ``chains`` lacks a hook whose kernel attachment (base chain, jump) is missing or wrong.
    """

    chains: dict[RuleKey, RenderedChain] = field(default_factory=dict)
    elements: set[Member] = field(default_factory=set)
    containers: bool = False
    part: Part = Part.ALL
    sets: set[SetKey] = field(default_factory=set)
    data: dict[ElementKey, int] = field(default_factory=dict)
    foreign: tuple[str, ...] = ()  # our names that we do not know (an older layout): removed with the next write


class FilterChange(Struct):
    """One write. ``chains`` maps to the whole new rule list, or None to delete the chain.

    ``data`` is what members in ``add`` carry: the mark of a pair, where it is not 0, or the address, as a number, that
    a map has for one. Those in ``changed`` stand in the kernel with other data.
    ``sets`` maps a set to make to its comment, and one to delete, with all of its members, to None.
    ``before`` is what the kernel is believed to hold of chains, these and all others.
    """

    chains: dict[RuleKey, RenderedChain | None] = field(default_factory=dict)
    add: list[Member] = field(default_factory=list)
    remove: list[Member] = field(default_factory=list)
    sets: dict[SetKey, str | None] = field(default_factory=dict)
    data: dict[Member, int] = field(default_factory=dict)
    changed: frozenset[Member] = frozenset()
    before: Mapping[RuleKey, RenderedChain] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.chains or self.add or self.remove or self.sets)

    @property
    def keys(self) -> Iterator[FilterKey]:
        return chain(self.chains, self.add, self.remove, self.sets)

    def without(self, keys: Container[FilterKey]) -> FilterChange:
        """The same change less some keys."""
        return FilterChange(
            {key: rules for key, rules in self.chains.items() if key not in keys},
            [key for key in self.add if key not in keys],
            [key for key in self.remove if key not in keys],
            {key: comment for key, comment in self.sets.items() if key not in keys},
            self.data,
            self.changed,
            self.before,
        )


class CountedPackets(NamedTuple):
    """What a rule has counted since it was made: its chain, without what a back-end puts before the name."""

    chain: str
    comment: str
    denied: bool
    packets: int


class FilterCounts(Struct):
    """What a back-end has done since it was made, for metrics; what it does not do stays 0.

    ``writes`` and ``reads`` are of rules, and with nftables of everything. ``lines`` are changes of chains and rules by
    table, ``set_calls`` and ``set_lines`` those of IP sets; ``all_sets`` are everybody's, when they were last read.
    """

    writes: int = 0
    write_errors: int = 0
    reads: int = 0
    read_errors: int = 0
    lines: Mapping[str, int] = field(default_factory=dict)
    set_calls: int = 0
    set_errors: int = 0
    set_lines: int = 0
    all_sets: int = 0


class PacketFilter(Protocol):
    """One back-end for one family. Calls come from one task at a time; none may block the loop for long."""

    family: Family
    marks_pairs: bool
    """Whether members of pairs carry the mark of their class (iptables), or interfaces are in sets of its bits."""
    is_silent: bool
    """Whether the kernel tells nothing of rules that others change, so that ``looks_changed`` has to be asked."""

    @property
    def socket(self) -> NetlinkSocket:
        """Writes set members, and with nftables everything else, too; opened at its first use."""

    def render(self, chains: Chains) -> dict[RuleKey, RenderedChain]:
        """Canonical form of abstract chains. Pure."""

    async def read(self, part: Part = Part.ALL) -> FilterState:
        """Read what is ours from the kernel, at least this part.

        Raises:
            NetlinkError, FilterError: the kernel or a tool refused to tell.
        """

    def use_marks(self, marks: MarkBits) -> None:
        """Take what bits of the mark mean, for members that carry one."""

    def class_numbers(
        self, chains: Mapping[RuleKey, RenderedChain], marks: MarkBits
    ) -> dict[tuple[Direction, str], int]:
        """The number that each class has in the kernel, by direction and name, from chains as they were read."""

    def notify(self, message: Message) -> Iterable[tuple[Member, bool]] | Part:
        """Judge a nf_tables notification that is not of our own making.

        Returns:
            Members that came (True) or went (False), or the part of ours that changed and must be read again.
        """

    def looks_changed(self) -> bool:
        """Whether rules seem to be others than when they were read last. Microseconds, and True once until ``read``."""

    def ports(self) -> tuple[int, ...]:
        """Netlink ports of our own writes, whose notifications are of no interest."""

    async def create_containers(self) -> None:
        """Make the (empty) sets that members need, replacing those of a wrong type. Idempotent.

        Raises:
            NetlinkError, FilterError
        """

    async def write(self, change: FilterChange) -> Mapping[FilterKey, str]:
        """Write one change, additions before removals, as atomically as the kernel allows.

        Adding a member that is there and removing one that is not are successes. A change without chains starts no
        process and writes no rule.

        Returns:
            The kernel's words per key that it refused; every other key is in the kernel.
        """

    def member_requests(self, change: FilterChange) -> list[Request] | None:
        """Messages that write a change of members; None if ``write`` would have to do more than that."""

    def send_members(self, requests: Sequence[Request]) -> bool:
        """Send such messages, also those of the other family. Returns whether the kernel took all of them.

        If it did not, ``write`` has to be called for each family; what the kernel took does no harm a second time.

        Raises:
            OSError: the socket broke.
        """

    async def remove_all(self) -> None:
        """Remove everything of ours of this family and nothing else. Idempotent.

        Raises:
            NetlinkError, FilterError
        """

    async def decisions(self) -> list[CountedPackets]:
        """Packets that rules have allowed and denied, read from the kernel in slices; also rules that are no policy's.

        May be called while anything else of the back-end is under way.

        Raises:
            NetlinkError, FilterError: the kernel or a tool refused to tell.
        """

    def counts(self) -> FilterCounts:
        """What was done so far."""

    def close(self) -> None:
        """Release sockets and threads; leave the kernel as it is."""


class FilterError(PlainError):
    """A back-end as a whole cannot work: what, where, and what to do next, in one sentence."""
