"""Abstract rules as iptables text, in the one form in which the ``-save`` tools print them back.

Both variants share it. Invariant: ``canonical(line printed by a -save tool) == rule_text(rule)`` for every rule that
``felixpy.calc.rules`` can express, so that bodies are compared as text. Must never skip a match or action it does not
know.
"""

from __future__ import annotations

import shlex
from functools import lru_cache
from typing import assert_never

from felixpy.calc.rules import (
    Action,
    ChainKey,
    Chains,
    CtState,
    Destination,
    DestinationIn,
    DestinationPairIn,
    ErrorByPairIn,
    Icmpv6Type,
    InInterface,
    Jump,
    Masquerade,
    Match,
    OutInterface,
    Protocol,
    Rule,
    Snat,
    Source,
    SourceIn,
    SourcePairIn,
    Verdict,
)
from felixpy.config import PortRange
from felixpy.dataplane.iptables.layout import chain_name, set_name
from felixpy.dataplane.packet_filter import RenderedChain
from felixpy.model.net import Family, format_address

MAX_INTERFACE_LENGTH = 15
PROTOCOL_NUMBERS = {"icmp": 1, "ipencap": 4, "tcp": 6, "udp": 17, "gre": 47, "ipv6-icmp": 58, "sctp": 132}
"""Names that the tools print for protocol numbers; without /etc/protocols (slim images) they print some as numbers."""

_PROTOCOL_NAMES = {number: name for name, number in PROTOCOL_NUMBERS.items()}
_PROTOCOL_SYNONYMS = {"ipip": "ipencap", "icmpv6": "ipv6-icmp", "icmp6": "ipv6-icmp"}
_BASE_ORDER = ("-s", "-d", "-i", "-o", "-p")
# cBPF (linux/bpf_common.h, code jt jf k): the destination in the IP header that follows the eight bytes of an ICMP
# error is the packet's own source. An IPv6 packet with extension headers is left out: they move what is compared.
_ERROR_ABOUT_ITS_SOURCE = {
    Family.V4: ("177 0 0 0", "64 0 0 24", "7 0 0 0", "32 0 0 12", "29 0 1 0", "6 0 0 65535", "6 0 0 0"),
    Family.V6: (
        *("48 0 0 6", "21 0 17 58"),
        *("32 0 0 72", "7 0 0 0", "32 0 0 8", "29 0 13 0"),
        *("32 0 0 76", "7 0 0 0", "32 0 0 12", "29 0 9 0"),
        *("32 0 0 80", "7 0 0 0", "32 0 0 16", "29 0 5 0"),
        *("32 0 0 84", "7 0 0 0", "32 0 0 20", "29 0 1 0"),
        *("6 0 0 65535", "6 0 0 0"),
    ),
}
_PORT_UNREACHABLE = {Family.V4: "icmp-port-unreachable", Family.V6: "icmp6-port-unreachable"}


def render_chains(family: Family, chains: Chains) -> dict[ChainKey, RenderedChain]:
    """All chains of a family as text, one string per rule."""
    return {key: tuple(rule_text(family, rule) for rule in rules) for key, rules in chains.items()}


def rule_text(family: Family, rule: Rule) -> str:
    """One rule as text, without ``-A <chain>``.

    >>> rule_text(Family.V4, Rule((InInterface("cali", True),), Jump("from-workload")))
    '-i cali+ -j fpy-from-workload'

    Raises:
        ValueError: the rule cannot be said in iptables (two input interfaces, a comment with quotes).
    """
    base: dict[str, str] = {}
    extensions: list[str] = []
    for match in rule.matches:
        for option, value in _base_options(match):
            if base.setdefault(option, value) != value:
                raise ValueError(f"a rule cannot have both {option} {base[option]} and {option} {value}")
        extensions += _extension(family, match)
    tokens = [token for option in _BASE_ORDER if option in base for token in (option, base[option])]
    tokens += extensions
    if rule.comment:
        tokens += ["-m", "comment", "--comment", rule.comment]
    return join([*tokens, *_action(family, rule.action)])


@lru_cache(1024)  # the same few rules at each comparison; shlex takes 60 µs for one
def canonical(text: str) -> str:
    """A rule as a ``-save`` tool printed it, without what differs between versions and machines.

    >>> canonical('-p 4 -m comment --comment "IPIP" -j DROP')
    '-p ipencap -m comment --comment IPIP -j DROP'
    """
    try:
        tokens = shlex.split(text)
        for index, token in enumerate(tokens[:-1]):
            if token == "-p":
                tokens[index + 1] = _protocol_name(tokens[index + 1])
        return join(tokens)
    except ValueError:  # unbalanced or escaped quotes: nothing that we wrote
        return text


def join(tokens: list[str]) -> str:
    """Tokens as one line that the ``-restore`` tools read back.

    Raises:
        ValueError: a token holds a quote, a backslash or a line break, for which the tools' versions differ.
    """
    if any(character in token for token in tokens for character in "\"'\\\n"):
        raise ValueError(f"quotes, backslashes and line breaks cannot be used in a rule: {tokens!r}")
    return " ".join(f'"{token}"' if " " in token or not token else token for token in tokens)


def _protocol_name(text: str) -> str:
    if text.isdecimal():
        return _PROTOCOL_NAMES.get(int(text), text)
    return _PROTOCOL_SYNONYMS.get(text, text)


def _base_options(match: Match) -> list[tuple[str, str]]:
    match match:
        case InInterface(name, prefix):
            return _interface("-i", name, prefix)
        case OutInterface(name, prefix):
            return _interface("-o", name, prefix)
        case Source(net):
            return [("-s", str(net))] if net.length else []
        case Destination(net):
            return [("-d", str(net))] if net.length else []
        case Protocol(number):
            return [("-p", _PROTOCOL_NAMES.get(number, str(number)))]
        case Icmpv6Type():
            return [("-p", "ipv6-icmp")]
        case SourceIn() | DestinationIn() | SourcePairIn() | DestinationPairIn() | ErrorByPairIn() | CtState():
            return []
        case _:
            assert_never(match)


def _interface(option: str, name: str, prefix: bool) -> list[tuple[str, str]]:
    if prefix and not name:
        return []
    # The tools count the + among the 15 characters, and no name is longer than a prefix of 15.
    return [(option, f"{name}+" if prefix and len(name) < MAX_INTERFACE_LENGTH else name)]


def _extension(family: Family, match: Match) -> list[str]:
    match match:
        case SourceIn(name, negated):
            return _match_set(set_name(family, name), "src", negated)
        case DestinationIn(name, negated):
            return _match_set(set_name(family, name), "dst", negated)
        case SourcePairIn(name):
            return _match_set(set_name(family, name), "src,src", False)
        case DestinationPairIn(name):
            return _match_set(set_name(family, name), "dst,dst", False)
        case ErrorByPairIn(_, direction):
            program = _ERROR_ABOUT_ITS_SOURCE[family]
            about = ["-m", "bpf", "--bytecode", ",".join((str(len(program)), *program))]
            return ["-m", "conntrack", "--ctdir", direction.value, *about]
        case CtState():
            return ["-m", "conntrack", "--ctstate", match.value]
        case Protocol(number, port):
            return ["-m", _PROTOCOL_NAMES[number], "--dport", str(port)] if port is not None else []
        case Icmpv6Type(kind):
            return ["-m", "icmp6", "--icmpv6-type", str(kind)]
        case InInterface() | OutInterface() | Source() | Destination():
            return []
        case _:
            assert_never(match)


def _match_set(name: str, directions: str, negated: bool) -> list[str]:
    return ["-m", "set", *(["!"] if negated else []), "--match-set", name, directions]


def _action(family: Family, action: Action) -> list[str]:
    match action:
        case Verdict.REJECT:
            return ["-j", "REJECT", "--reject-with", _PORT_UNREACHABLE[family]]
        case Verdict.ACCEPT | Verdict.DROP | Verdict.RETURN:
            return ["-j", action.value]
        case Jump(chain):
            return ["-j", chain_name(chain)]
        case Masquerade(ports):
            return ["-j", "MASQUERADE", *(["--to-ports", _ports(ports)] if ports else []), "--random-fully"]
        case Snat(address, ports):
            return ["-j", "SNAT", "--to-source", _to_source(family, address, ports), "--random-fully"]
        case _:
            assert_never(action)


def _ports(ports: PortRange) -> str:
    return str(ports.first) if ports.first == ports.last else str(ports)


def _to_source(family: Family, address: bytes, ports: PortRange | None) -> str:
    text = format_address(address)
    if not ports:
        return text
    return f"[{text}]:{_ports(ports)}" if family is Family.V6 else f"{text}:{_ports(ports)}"
