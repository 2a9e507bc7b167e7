"""What the calculation of policy produces, in words that every back-end can render.

    EndpointClassKey(family, interface)     -> EndpointClasses     which classes a workload's interface has
    ClassKey(family, direction, number)     -> EndpointClass       what a class means: tiers of policy chains, profiles
    PolicyChainKey(family, name)            -> PolicyChain         the rules of one policy or profile, for one use
    HostEndpointKey(family, interface)      -> HostEndpointChains  what an interface of the node asks, and where
    PolicySetKey(family, name)              -> PolicySet           a set that rules refer to, also when it is empty
    MemberKey(family, set, ...)             -> None                a member of such a set

Invariants. Everything is per family: what the other family says is gone already, and so is a rule of which nothing
remains. A rule is one conjunction: each field that is set must hold, so rendering never needs scratch bits. What a
class or chain refers to is in the same change or in an earlier one. ``number`` 0 is no class: whoever has it is denied.
Names are told by content (sets) or by identity (chains), with 80 bits, so they are the same after a restart.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from enum import Enum, StrEnum
from typing import NamedTuple

from felixpy.model.net import Family, Net, family_of, format_address
from felixpy.model.policy import Direction, EndOfTier, Icmp, PolicyAction, Ports

__all__ = ["Direction", "EndOfTier", "Icmp", "PolicyAction", "Ports"]  # words of the model that the contract uses


class Use(StrEnum):
    """Where a chain is asked, which decides what its Allow does. The value begins the names of its chains."""

    WORKLOAD_INGRESS = "pi"
    WORKLOAD_EGRESS = "pe"
    HOST_INGRESS = "hi"  # to the node itself: filter INPUT
    HOST_EGRESS = "he"  # from the node itself: filter OUTPUT
    FORWARD_INGRESS = "fi"  # applyOnForward: filter FORWARD, before the workloads
    FORWARD_EGRESS = "fe"  # applyOnForward: filter FORWARD, after the workloads
    PRE_DNAT = "di"  # preDNAT: mangle PREROUTING
    UNTRACKED_INGRESS = "ui"  # doNotTrack: raw PREROUTING
    UNTRACKED_EGRESS = "ue"  # doNotTrack: raw OUTPUT

    @property
    def direction(self) -> Direction:
        return Direction.EGRESS if self.value.endswith("e") else Direction.INGRESS


# --- rules -------------------------------------------------------------------------------------------------------


class Side(NamedTuple):
    """What a rule asks of one end of a packet. All fields that are not empty must hold.

    ``nets``: the address lies in each (there is one at most); ``not_nets``: in none. ``sets``: it is in each of these
    sets of addresses or prefixes; ``not_sets``: in none. ``ports``: the port lies in any; ``not_ports``: in none.
    ``port_sets``: (address, protocol, port) is in each of these sets; ``not_port_sets``: in none.
    """

    nets: tuple[Net, ...] = ()
    not_nets: tuple[Net, ...] = ()
    sets: tuple[str, ...] = ()
    not_sets: tuple[str, ...] = ()
    ports: tuple[Ports, ...] = ()
    not_ports: tuple[Ports, ...] = ()
    port_sets: tuple[str, ...] = ()
    not_port_sets: tuple[str, ...] = ()


ANYWHERE = Side()


class PolicyRule(NamedTuple):
    """One conjunction and its action. ``log_prefix`` is for ``LOG`` alone, as written, its wildcards expanded.

    Ports without a protocol stand in ``port_sets`` only; those are of TCP, UDP or SCTP (132).
    ``position`` is the number of the rule as it was written, from 0: several rules may come from one that was.
    """

    action: PolicyAction
    protocol: int | None = None
    not_protocol: int | None = None
    icmp: Icmp | None = None
    not_icmp: Icmp | None = None
    source: Side = ANYWHERE
    destination: Side = ANYWHERE
    log_prefix: str = ""
    position: int = 0


class PolicyChainKey(NamedTuple):
    """A chain that holds the rules of one policy or profile. ``name`` begins with ``use`` and has 19 characters."""

    family: Family
    name: str

    def __str__(self) -> str:
        return f"{self.family} policy chain {self.name}"


class PolicyChain(NamedTuple):
    """``comment`` names the policy for people: at most 100 characters, ASCII, no quotes."""

    use: Use
    rules: tuple[PolicyRule, ...]
    comment: str


# --- classes -----------------------------------------------------------------------------------------------------


class TierChains(NamedTuple):
    """The policies of a tier in order. ``passes[i]``: whether chain i has a Pass rule, which ends the tier."""

    name: str
    end: EndOfTier
    chains: tuple[str, ...]
    passes: tuple[bool, ...]


class ClassKey(NamedTuple):
    """A class of workload endpoints by its number, from 1."""

    family: Family
    direction: Direction
    number: int

    def __str__(self) -> str:
        return f"{self.family} {self.direction} class {self.number}"


class EndpointClass(NamedTuple):
    """What endpoints of a class are asked, in this order: ``tiers``, then chains of ``profiles``, then ``end``.

    ``end`` is Deny for all but endpoints without policy and profile while EndpointWithoutProfileAction is Allow.
    Tiers after one that surely decides are left out, profiles then, too. ``name`` is a hash of the rest (16
    characters): the class may take another content, and so another name, while it keeps its number.
    """

    name: str
    tiers: tuple[TierChains, ...]
    profiles: tuple[str, ...]
    end: PolicyAction
    comment: str


def is_open(value: EndpointClass) -> bool:
    """Whether a class lets everything through without asking."""
    return not value.tiers and not value.profiles and value.end is PolicyAction.ALLOW


def class_name(direction: Direction, tiers: Iterable[TierChains], profiles: Iterable[str], end: PolicyAction) -> str:
    """The name of a class, by what it is asked."""
    words = [direction.value, end.value]
    for tier in tiers:
        words += ["tier", tier.name, tier.end.value, *tier.chains, "passes", *map(str, tier.passes)]
    return text_hash(*words, "profiles", *profiles)


class EndpointClassKey(NamedTuple):
    """The interface of a local workload endpoint."""

    family: Family
    interface: str

    def __str__(self) -> str:
        return f"{self.family} class of {self.interface}"


class EndpointClasses(NamedTuple):
    """Numbers of the classes; 0 while there is none, which denies everything."""

    ingress: int
    egress: int


class HostEndpointKey(NamedTuple):
    """An interface of the node itself; ``*`` is each that is no workload's and has no host endpoint of its own."""

    family: Family
    interface: str

    def __str__(self) -> str:
        return f"{self.family} host endpoint {self.interface}"


class HostEndpointChains(NamedTuple):
    """What is asked of traffic through an interface of the node, by place. Empty tiers ask nothing.

    ``ingress`` and ``egress`` (the node's own traffic): failsafes, tiers, ``profiles_*``, deny. ``forward_*``: tiers
    with their end; without any tier allowed. ``pre_dnat`` and ``untracked_*``: no end of tier, what nothing decides
    goes on.
    """

    ingress: tuple[TierChains, ...]
    egress: tuple[TierChains, ...]
    profiles_ingress: tuple[str, ...]
    profiles_egress: tuple[str, ...]
    forward_ingress: tuple[TierChains, ...]
    forward_egress: tuple[TierChains, ...]
    pre_dnat: tuple[TierChains, ...]
    untracked_ingress: tuple[TierChains, ...]
    untracked_egress: tuple[TierChains, ...]
    comment: str


# --- sets --------------------------------------------------------------------------------------------------------


class PolicySetType(Enum):
    """Shape of the members; each back-end has a type of its own for it."""

    ADDRESSES = "address"  # single addresses: a hash set
    NETS = "prefix"  # prefixes that never cover each other: an interval set
    ADDRESS_PORTS = "address, protocol, port"


class PolicySetKey(NamedTuple):
    """A set that rules refer to. ``name`` is ``s-``, ``c-`` or ``n-`` and 16 characters, in order of the types."""

    family: Family
    name: str

    def __str__(self) -> str:
        return f"{self.family} set {self.name}"


class PolicySet(NamedTuple):
    """``comment`` is the selector or what else the set stands for: at most 100 characters, ASCII, no quotes."""

    type: PolicySetType
    comment: str


class MemberKey(NamedTuple):
    """A member of a set. ``net`` is a host but in sets of prefixes; ``protocol`` and ``port`` are 0 but in theirs."""

    set: str
    net: Net
    protocol: int = 0
    port: int = 0

    @property
    def family(self) -> Family:
        return family_of(self.net.packed)

    def __str__(self) -> str:
        member = format_address(self.net.packed) if self.net.is_host else str(self.net)
        return f"{self.set} {{ {member}{f' . {self.protocol} . {self.port}' if self.port else ''} }}"


PolicyKey = EndpointClassKey | ClassKey | PolicyChainKey | HostEndpointKey | PolicySetKey | MemberKey
PolicyValue = EndpointClasses | EndpointClass | PolicyChain | HostEndpointChains | PolicySet | None

SET_PREFIX = {PolicySetType.ADDRESSES: "s", PolicySetType.NETS: "c", PolicySetType.ADDRESS_PORTS: "n"}


def text_hash(*parts: str) -> str:
    """80 bits of SHA-256 over texts, as 16 lower-case letters and digits."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return base64.b32encode(digest[:10]).decode().lower()


def chain_name(use: Use, *identity: str) -> str:
    return f"{use.value}-{text_hash(use.value, *identity)}"


def set_name(of: PolicySetType, *content: str) -> str:
    return f"{SET_PREFIX[of]}-{text_hash(SET_PREFIX[of], *content)}"


_QUOTES = dict.fromkeys(map(ord, "\"'\\`$"))
_OUTSIDE = re.compile(r"[^ -~]")


def comment_text(text: str) -> str:
    """A text from outside as a comment: at most 100 characters, ASCII, without quotes."""
    plain = _OUTSIDE.sub("?", text.translate(_QUOTES))
    return plain if len(plain) <= 100 else f"{plain[:97]}..."
