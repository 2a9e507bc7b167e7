"""What rules of the packet filter are made of: matches, actions, and the chains that hold them. Pure.

The vocabulary is small and closed: a back-end that meets a match or an action it does not know must fail, not skip.
"""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from felixpy.calc.entries import SetName
from felixpy.config import PortRange
from felixpy.model.net import Family, Net

UDP, TCP, IPIP = 17, 6, 4
ICMP = {Family.V4: 1, Family.V6: 58}


class Table(StrEnum):
    """iptables tables; nft chains carry them in their names."""

    RAW = "raw"
    MANGLE = "mangle"
    FILTER = "filter"
    NAT = "nat"


class ChainKey(NamedTuple):
    """A chain. Upper-case names are hooks (PREROUTING, INPUT, FORWARD, POSTROUTING), others are jumped to."""

    table: Table
    name: str

    @property
    def is_hook(self) -> bool:
        return self.name.isupper()

    def __str__(self) -> str:
        return f"{self.table} {self.name}"


class ClassElement(NamedTuple):
    """An element of a map of classes, which stands for a chain of one rule: ``Goto`` for this value of the mark."""

    map: str
    mark: int

    @property
    def is_hook(self) -> bool:
        return False

    @property
    def table(self) -> Table:
        return Table.FILTER

    def __str__(self) -> str:
        return f"{self.map} {{ {self.mark:#010x} }}"


# --- matches -----------------------------------------------------------------------------------------------------


class InInterface(NamedTuple):
    """Input interface: exact name, or every name that starts with ``name`` if ``prefix``."""

    name: str
    prefix: bool = False


class OutInterface(NamedTuple):
    name: str
    prefix: bool = False


class Source(NamedTuple):
    """Source address lies in one prefix, or not."""

    net: Net
    negated: bool = False


class Destination(NamedTuple):
    """Destination address lies in one prefix, or not."""

    net: Net
    negated: bool = False


class SourceIn(NamedTuple):
    """Source (or not) in a set of prefixes."""

    set: str
    negated: bool = False


class DestinationIn(NamedTuple):
    set: str
    negated: bool = False


class SourcePairIn(NamedTuple):
    """(source address, input interface) in a set of pairs."""

    set: str


class DestinationPairIn(NamedTuple):
    """(destination address, output interface) in a set of pairs, or not."""

    set: str
    negated: bool = False


class InInterfaceIn(NamedTuple):
    """Input interface in a set of interface names (nftables alone)."""

    set: str


class OutInterfaceIn(NamedTuple):
    """Output interface in a set of interface names (nftables alone)."""

    set: str


class Direction(StrEnum):
    """Of a connection: from its originator, or back."""

    ORIGINAL = "ORIGINAL"
    REPLY = "REPLY"


class ErrorByPairIn(NamedTuple):
    """An ICMP error by whom a connection's packets of one direction come from.

    That is: (who sends in that direction, interface that the error came in by) is in a set of pairs. iptables cannot
    look for a part of a connection in a set. There the packet that the error is about must have been sent to the
    error's own source, which the same set has let in by that interface; an error that a workload forwards for an
    address behind it is left out.
    """

    set: SetName
    direction: Direction


class CtState(StrEnum):
    """Connection tracking state."""

    ESTABLISHED = "ESTABLISHED"
    RELATED = "RELATED"
    ESTABLISHED_OR_RELATED = "RELATED,ESTABLISHED"
    INVALID = "INVALID"
    NOT_ESTABLISHED = "! RELATED,ESTABLISHED"


class Protocol(NamedTuple):
    """Layer 4 protocol by number, with a destination port for TCP and UDP if not None; or any but this one."""

    number: int
    destination_port: int | None = None
    negated: bool = False


class Icmp(NamedTuple):
    """A type, and code if not None, of the family's ICMP; negated: a message of it with any other (pair)."""

    type: int
    code: int | None = None
    negated: bool = False


class PortIn(NamedTuple):
    """The source or destination port lies in one of the ranges, or in none; the rule has a ``Protocol`` with ports."""

    ranges: tuple[PortRange, ...]
    source: bool = False
    negated: bool = False


class SourcePortIn(NamedTuple):
    """(source address, protocol, source port) in a set of such, or not."""

    set: str
    negated: bool = False


class DestinationPortIn(NamedTuple):
    """(destination address, protocol, destination port) in a set of such, or not."""

    set: str
    negated: bool = False


class Marked(NamedTuple):
    """The packet's mark has this value in these bits."""

    value: int
    mask: int


class Vni(NamedTuple):
    """A packet of UDP that would be VXLAN of this network. iptables needs the match ``bpf`` for it."""

    number: int


class LocalSource(NamedTuple):
    """Source address is the node's own (or not): any of them, or one of the output interface."""

    of_output: bool
    negated: bool = False


class Limit(NamedTuple):
    """True for so many packets per ``seconds`` (1, 60, 3600 or 86400), and ``burst`` at first."""

    packets: int
    seconds: int
    burst: int


Match = (
    InInterface
    | OutInterface
    | Source
    | Destination
    | SourceIn
    | DestinationIn
    | SourcePairIn
    | DestinationPairIn
    | ErrorByPairIn
    | InInterfaceIn
    | OutInterfaceIn
    | CtState
    | Protocol
    | Icmp
    | PortIn
    | SourcePortIn
    | DestinationPortIn
    | Marked
    | Vni
    | LocalSource
    | Limit
)

# --- actions -----------------------------------------------------------------------------------------------------


class Verdict(StrEnum):
    """Terminal verdicts; REJECT answers with the family's default ICMP port-unreachable."""

    ACCEPT = "ACCEPT"
    DROP = "DROP"
    REJECT = "REJECT"
    RETURN = "RETURN"


class Jump(NamedTuple):
    """Jump to another chain of the same table."""

    chain: str


class Masquerade(NamedTuple):
    """Masquerade with fully random ports, within ``ports`` if given (TCP and UDP only)."""

    ports: PortRange | None = None


class Snat(NamedTuple):
    """Source NAT to one address, fully random, within ``ports`` if given (TCP and UDP only)."""

    address: bytes
    ports: PortRange | None = None


class Goto(NamedTuple):
    """Go on in another chain of the same table; what ends there ends as if this chain had ended."""

    chain: str


class TranslateDestination(NamedTuple):
    """Destination NAT to what a map of addresses has for the destination; the next rule if it has nothing."""

    map: SetName


class TranslateLoop(NamedTuple):
    """Source NAT to what a map has for source and destination together; the next rule if it has nothing."""

    map: SetName


class SetMark(NamedTuple):
    """Give the bits of ``mask`` in the packet's mark this value; the rule after this one is next."""

    value: int
    mask: int


class MapMark(NamedTuple):
    """Take mark bits from the member of a set of pairs that the packet has, if any (iptables alone, mangle table)."""

    set: str
    source: bool


class GotoClass(NamedTuple):
    """Go on in the chain that a map names for these bits of the mark, if any (nftables alone)."""

    map: str
    mask: int


class Log(NamedTuple):
    """A line in the kernel's log (level notice); the rule after this one is next."""

    prefix: str


class NoTrack(NamedTuple):
    """Keep the packet out of connection tracking (raw table); the rule after this one is next."""


Action = (
    Verdict
    | Jump
    | Goto
    | Masquerade
    | Snat
    | TranslateDestination
    | TranslateLoop
    | SetMark
    | MapMark
    | GotoClass
    | Log
    | NoTrack
)


class Rule(NamedTuple):
    """A rule; ``comment`` is for people who list the rules (ASCII, at most 100 characters, no quotes).

    ``counted``: the kernel counts the packets that come to the action. iptables does so with every rule.
    """

    matches: tuple[Match, ...]
    action: Action
    comment: str = ""
    counted: bool = False


@lru_cache(1 << 14)
def jump(chain: str) -> Rule:
    """A rule that asks another chain: classes have thousands of them, and those of one policy are one."""
    return Rule((), Jump(chain))


RuleKey = ChainKey | ClassElement
Chains = dict[RuleKey, tuple[Rule, ...]]
