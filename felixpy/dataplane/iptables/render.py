"""Abstract rules as iptables text, in the one form in which the ``-save`` tools print them back.

Both variants share it. Invariant: ``canonical(line printed by a -save tool) == rule_text(rule)`` for every rule that
``felixpy.calc.rule`` can express, so that bodies are compared as text. Must never skip a match or action it does not
know.
"""

from __future__ import annotations

import shlex
import socket
from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from typing import assert_never

from felixpy.calc.rule import (
    Action,
    Chains,
    CtState,
    Destination,
    DestinationIn,
    DestinationPairIn,
    DestinationPortIn,
    ErrorByPairIn,
    Goto,
    GotoClass,
    Icmp,
    InInterface,
    InInterfaceIn,
    Jump,
    Limit,
    LocalSource,
    Log,
    MapMark,
    Marked,
    Masquerade,
    Match,
    NoTrack,
    OutInterface,
    OutInterfaceIn,
    PortIn,
    Protocol,
    Rule,
    RuleKey,
    SetMark,
    Snat,
    Source,
    SourceIn,
    SourcePairIn,
    SourcePortIn,
    TranslateDestination,
    TranslateLoop,
    Verdict,
    Vni,
)
from felixpy.config import PortRange
from felixpy.dataplane.iptables.layout import chain_name, set_name
from felixpy.dataplane.packet_filter import RenderedChain
from felixpy.model.net import Family, format_address

MAX_INTERFACE_LENGTH = 15
MULTIPORT_SLOTS = 15  # XT_MULTI_PORTS; a range takes two
LOG_LEVEL = 5  # notice
PROTOCOL_NUMBERS = {
    "icmp": 1,
    "ipencap": 4,
    "tcp": 6,
    "udp": 17,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "ipv6-icmp": 58,
    "sctp": 132,
    "udplite": 136,
}
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
_ICMP = {Family.V4: ("icmp", "--icmp-type"), Family.V6: ("icmp6", "--icmpv6-type")}
_ICMP_PROTOCOL = {Family.V4: "icmp", Family.V6: "ipv6-icmp"}
_LIMIT_SCALE = 10000  # XT_LIMIT_SCALE: the kernel holds the pause between two packets in these parts of a second
_LIMIT_UNITS = (("day", 86400), ("hour", 3600), ("min", 60), ("sec", 1))
_PORT_UNREACHABLE = {Family.V4: "icmp-port-unreachable", Family.V6: "icmp6-port-unreachable"}


def render_chains(family: Family, chains: Chains) -> dict[RuleKey, RenderedChain]:
    """All chains of a family as text, one string per rule, or several where one has too many ports."""
    return {key: tuple(text for rule in rules for text in rule_texts(family, rule)) for key, rules in chains.items()}


def rule_texts(family: Family, rule: Rule) -> Iterator[str]:
    """A rule as texts that mean the same together: one ``multiport`` takes 15 ports, a range counting as two."""
    for matches in product(*map(_alternatives, rule.matches)):
        yield rule_text(family, rule._replace(matches=matches))


def _alternatives(match: Match) -> list[Match]:
    if isinstance(match, PortIn) and not match.negated:
        return [match._replace(ranges=some) for some in _slots(match.ranges)]
    return [match]


def _slots(ranges: tuple[PortRange, ...]) -> Iterator[tuple[PortRange, ...]]:
    """Ranges in order, as many at once as ``multiport`` takes."""
    some: list[PortRange] = []
    used = 0
    for one in sorted(set(ranges)):
        size = 1 if one.first == one.last else 2
        if used + size > MULTIPORT_SLOTS:
            yield tuple(some)
            some, used = [], 0
        some.append(one)
        used += size
    yield tuple(some)


def rule_text(family: Family, rule: Rule) -> str:
    """One rule as text, without ``-A <chain>``.

    >>> rule_text(Family.V4, Rule((InInterface("cali", True),), Jump("from-workload")))
    '-i cali+ -j fpy-from-workload'

    Raises:
        ValueError: the rule cannot be said in iptables (two input interfaces, a comment with quotes).
    """
    base: dict[str, tuple[str, bool]] = {}
    extensions: list[str] = []
    for match in rule.matches:
        options = _base_options(family, match)
        if any(base.get(option, value) != value for option, value in options):
            if not isinstance(match, Source | Destination):
                raise ValueError(f"a rule cannot have both {base} and {options}")
            extensions += _address_range(match)
            continue
        base.update(options)
        extensions += _extension(family, match)
    tokens = []
    for option in _BASE_ORDER:
        if option in base:
            value, negated = base[option]
            tokens += ["!", option, value] if negated else [option, value]
    tokens += extensions
    if rule.comment:
        tokens += ["-m", "comment", "--comment", rule.comment]
    return join([*tokens, *_action(family, rule.action)])


def words(text: str) -> list[str]:
    """What ``shlex.split`` gives, which reads one character after the other and takes 40 times as long.

    Raises:
        ValueError: quotes that are not closed.
    """
    parts = text.split('"')
    last = len(parts) - 1
    if "'" in text or "\\" in text or last % 2 or not text.isprintable():
        return shlex.split(text)
    found: list[str] = []
    for at, part in enumerate(parts):
        if at % 2:
            found.append(part)
        elif (at == 0 or part[:1] == " ") and (at == last or part[-1:] == " "):
            found += part.split()
        elif part or 0 < at < last:  # quotes within a word
            return shlex.split(text)
    return found


@lru_cache(1024)  # the same few rules at each comparison
def canonical(text: str) -> str:
    """A rule as a ``-save`` tool printed it, without what differs between versions and machines.

    >>> canonical('-p 4 -m comment --comment "IPIP" -j DROP')
    '-p ipencap -m comment --comment IPIP -j DROP'
    """
    try:
        tokens = words(text)
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
    text = _PROTOCOL_SYNONYMS.get(text, text)
    if text in PROTOCOL_NUMBERS:
        return text
    try:
        return str(socket.getprotobyname(text))  # the tools have names from /etc/protocols, and so does this
    except OSError:
        return text


def _base_options(family: Family, match: Match) -> list[tuple[str, tuple[str, bool]]]:
    """Options of a rule itself: each with its value, and whether it is negated."""
    match match:
        case InInterface(name, prefix):
            return _interface("-i", name, prefix)
        case OutInterface(name, prefix):
            return _interface("-o", name, prefix)
        case Source(net, negated):
            return [("-s", (str(net), negated))] if net.length or negated else []
        case Destination(net, negated):
            return [("-d", (str(net), negated))] if net.length or negated else []
        case Protocol(number, _, negated):
            return [("-p", (_PROTOCOL_NAMES.get(number, str(number)), negated))]
        case Icmp():
            return [("-p", (_ICMP_PROTOCOL[family], False))]
        case SourceIn() | DestinationIn() | SourcePairIn() | DestinationPairIn() | SourcePortIn() | DestinationPortIn():
            return []
        case ErrorByPairIn():
            return []
        case CtState() | PortIn() | Marked() | Limit() | Vni() | LocalSource():
            return []
        case InInterfaceIn() | OutInterfaceIn():
            raise ValueError("iptables has no sets of interfaces alone")
        case _:
            assert_never(match)


def _interface(option: str, name: str, prefix: bool) -> list[tuple[str, tuple[str, bool]]]:
    if prefix and not name:
        return []
    # The tools count the + among the 15 characters, and no name is longer than a prefix of 15.
    return [(option, (f"{name}+" if prefix and len(name) < MAX_INTERFACE_LENGTH else name, False))]


def _address_range(match: Source | Destination) -> list[str]:
    """A second prefix of a side: a rule has one ``-s``, but any number of ranges."""
    net = match.net
    host_bits = (1 << (net.family.bits - net.length)) - 1
    last = (int.from_bytes(net.packed, "big") | host_bits).to_bytes(len(net.packed), "big")
    option = "--src-range" if isinstance(match, Source) else "--dst-range"
    span = f"{format_address(net.packed)}-{format_address(last)}"
    return ["-m", "iprange", *(["!"] if match.negated else []), option, span]


def _extension(family: Family, match: Match) -> list[str]:
    match match:
        case SourceIn(name, negated):
            return _match_set(set_name(family, name), "src", negated)
        case DestinationIn(name, negated):
            return _match_set(set_name(family, name), "dst", negated)
        case SourcePairIn(name):
            return _match_set(set_name(family, name), "src,src", False)
        case DestinationPairIn(name, negated):
            return _match_set(set_name(family, name), "dst,dst", negated)
        case ErrorByPairIn(_, direction):
            program = _ERROR_ABOUT_ITS_SOURCE[family]
            about = ["-m", "bpf", "--bytecode", ",".join((str(len(program)), *program))]
            return ["-m", "conntrack", "--ctdir", direction.value, *about]
        case SourcePortIn(name, negated):
            return _match_set(set_name(family, name), "src,src", negated)
        case DestinationPortIn(name, negated):
            return _match_set(set_name(family, name), "dst,dst", negated)
        case CtState.NOT_ESTABLISHED:
            return ["-m", "conntrack", "!", "--ctstate", CtState.ESTABLISHED_OR_RELATED.value]
        case CtState():
            return ["-m", "conntrack", "--ctstate", match.value]
        case Protocol(number, port):
            return ["-m", _PROTOCOL_NAMES[number], "--dport", str(port)] if port is not None else []
        case Icmp(kind, code, negated):
            name, option = _ICMP[family]
            value = f"{kind}" if code is None else f"{kind}/{code}"
            return ["-m", name, *(["!"] if negated else []), option, value]
        case PortIn(ranges, source, negated):
            return _multiport("--sports" if source else "--dports", ranges, negated)
        case Marked(value, mask):
            return ["-m", "mark", "--mark", f"{value:#x}/{mask:#x}"]
        case Vni(number):
            program = _vni(family, number)
            return ["-m", "bpf", "--bytecode", ",".join((str(len(program)), *program))]
        case LocalSource(of_output, negated):
            limit = ["--limit-iface-out"] if of_output else []
            return ["-m", "addrtype", *(["!"] if negated else []), "--src-type", "LOCAL", *limit]
        case Limit():
            return _limit(match)
        case InInterface() | OutInterface() | Source() | Destination() | InInterfaceIn() | OutInterfaceIn():
            return []
        case _:
            assert_never(match)


def _vni(family: Family, number: int) -> tuple[str, ...]:
    """cBPF: the 24 bits behind the UDP header and four bytes of VXLAN's. IPv6 with extension headers counts as ours."""
    ours = ("116 0 0 8", f"21 0 1 {number}", "6 0 0 65535", "6 0 0 0")
    if family is Family.V4:
        return "177 0 0 0", "64 0 0 12", *ours
    return "48 0 0 6", "21 0 3 17", "32 0 0 52", *ours


def _multiport(option: str, ranges: tuple[PortRange, ...], negated: bool) -> list[str]:
    tokens: list[str] = []
    for some in _slots(ranges):
        ports = ",".join(str(one.first) if one.first == one.last else f"{one.first}:{one.last}" for one in some)
        tokens += ["-m", "multiport", *(["!"] if negated else []), option, ports]
    return tokens


def _limit(limit: Limit) -> list[str]:
    """A rate in the unit in which the tools print it."""
    pause = max(_LIMIT_SCALE * limit.seconds // limit.packets, 1)
    unit, seconds = _LIMIT_UNITS[0]
    for name, length in _LIMIT_UNITS[1:]:
        whole = length * _LIMIT_SCALE
        if pause > whole or whole // pause < whole % pause:
            break
        unit, seconds = name, length
    rate = f"{seconds * _LIMIT_SCALE // pause}/{unit}"
    return ["-m", "limit", "--limit", rate, *(["--limit-burst", str(limit.burst)] if limit.burst != 5 else [])]


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
        case Goto(chain):
            return ["-g", chain_name(chain)]
        case SetMark(value, mask):
            return ["-j", "MARK", "--set-xmark", f"{value:#x}/{mask:#x}"]
        case MapMark(name, source):
            return ["-j", "SET", "--map-set", set_name(family, name), "src,src" if source else "dst,dst", "--map-mark"]
        case GotoClass():
            raise ValueError("iptables has no maps: classes are matched by mark")
        case Log(prefix):
            return ["-j", "LOG", "--log-prefix", prefix, "--log-level", str(LOG_LEVEL)]
        case NoTrack():
            return ["-j", "CT", "--notrack"]
        case Masquerade(ports):
            return ["-j", "MASQUERADE", *(["--to-ports", _ports(ports)] if ports else []), "--random-fully"]
        case Snat(address, ports):
            return ["-j", "SNAT", "--to-source", _to_source(family, address, ports), "--random-fully"]
        case TranslateDestination(name) | TranslateLoop(name):
            return ["-j", chain_name(name)]
        case _:
            assert_never(action)


def _ports(ports: PortRange) -> str:
    return str(ports.first) if ports.first == ports.last else str(ports)


def _to_source(family: Family, address: bytes, ports: PortRange | None) -> str:
    text = format_address(address)
    if not ports:
        return text
    return f"[{text}]:{_ports(ports)}" if family is Family.V6 else f"{text}:{_ports(ports)}"
