"""iptables rules as the ``-save`` tools print them, turned into steps. Pure; the same for legacy and nft variant.

Invariant: a match or target that is not known here is answered with None or ``unknown``, never with a guess.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import Protocol

from felixpy.dataplane.iptables.save_text import save_lines
from felixpy.explain.packet import (
    ACCEPT,
    DROP,
    PROTOCOLS,
    REJECT,
    RETURN,
    UNKNOWN,
    Action,
    Answer,
    Chain,
    IsLocal,
    IsOn,
    Packet,
    Rule,
    Ruleset,
    Step,
    nobody_knows,
)
from felixpy.model.net import Net, parse_address

HOOKS = {"PREROUTING": "prerouting", "INPUT": "input", "FORWARD": "forward", "OUTPUT": "output",
         "POSTROUTING": "postrouting"}  # fmt: skip
PRIORITIES = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}  # netfilter_ipv4.h
SOURCE_NAT_PRIORITY = 100
NO_EFFECT = {"LOG", "NFLOG", "ULOG", "TRACE", "CHECKSUM", "TCPMSS", "CLASSIFY", "CONNMARK", "TOS", "DSCP", "AUDIT",
             "CONNSECMARK", "SECMARK"}  # fmt: skip
_TARGETS = {"ACCEPT": ACCEPT, "DROP": DROP, "REJECT": REJECT, "RETURN": RETURN}


class Sets(Protocol):
    """IP sets of the kernel."""

    def holds(self, name: str, packet: Packet, directions: str) -> bool | None:
        """Whether a set holds the packet's ``src`` or ``dst`` parts; None: cannot be told."""

    def mark(self, name: str, packet: Packet, directions: str) -> tuple[int, int] | None:
        """Mark and mask of the member that holds the packet, zeros if none does; None: cannot be told."""


def parse(text: str, program: str, sets: Sets, is_local: IsLocal, is_on: IsOn = nobody_knows) -> list[Ruleset]:
    """Tables of one ``-save`` output; ``program`` is its name for people, such as ``iptables-legacy``."""
    tables: list[Ruleset] = []
    table = ""
    for line in save_lines(text):
        if line.startswith("*"):
            table = line[1:].strip()
            tables.append(Ruleset(f"{program} table {table}"))
        elif line.startswith(":") and tables:
            name, policy = line[1:].split()[:2]
            tables[-1].chains[name] = _chain(table, name, policy)
        elif line.startswith("-A ") and tables:
            words = shlex.split(line)
            chain = tables[-1].chains.setdefault(words[1], Chain(words[1]))
            steps = _Reader(words[2:], sets, is_local, is_on, table).steps()
            chain.rules.append(Rule(steps, " ".join(line.split()[2:]), _comment(words)))
    return tables


def _comment(words: list[str]) -> str:
    return words[words.index("--comment") + 1] if "--comment" in words[:-1] else ""


def _chain(table: str, name: str, policy: str) -> Chain:
    hook = HOOKS.get(name, "") if policy != "-" else ""
    is_source_nat = table == "nat" and name in ("INPUT", "POSTROUTING")
    priority = SOURCE_NAT_PRIORITY if is_source_nat else PRIORITIES.get(table, 0)
    return Chain(name, hook=hook, priority=priority, is_nat=table == "nat", policy=DROP if policy == "DROP" else ACCEPT)


class _Reader:
    """Reads the words of one rule."""

    def __init__(self, words: list[str], sets: Sets, is_local: IsLocal, is_on: IsOn, table: str) -> None:
        self._words = words
        self._sets = sets
        self._is_local = is_local
        self._is_on = is_on
        self._table = table
        self._modules: list[str] = []
        self._at = 0

    def steps(self) -> tuple[Step, ...]:
        steps: list[Step] = []
        negated = False
        while self._at < len(self._words):
            word = self._next()
            if word == "!":
                negated = True
                continue
            if word in ("-j", "--jump", "-g", "--goto"):
                steps.append(self._target(self._next(), goto=word in ("-g", "--goto")))
                break  # what follows are the target's own options, which it has read
            step = self._match(word)
            if step is not None:
                steps.append(_negate(step) if negated else step)
            negated = False
        return tuple(steps)

    def _next(self) -> str:
        word = self._words[self._at] if self._at < len(self._words) else ""
        self._at += 1
        return word

    def _options(self) -> Mapping[str, str]:
        """What is left of the rule, as options with at most one value each."""
        found: dict[str, str] = {}
        rest = self._words[self._at :]
        for index, word in enumerate(rest):
            if word.startswith("-"):
                value = rest[index + 1] if index + 1 < len(rest) else ""
                found[word] = "" if value.startswith("--") else value
        return found

    def _skip_values(self) -> None:
        while (
            self._at < len(self._words) and not self._words[self._at].startswith("-") and self._words[self._at] != "!"
        ):
            self._at += 1

    def _match(self, word: str) -> Step | None:
        """A match with its value; None for words that say nothing by themselves."""
        simple: dict[str, Callable[[str], Step]] = {
            "-s": lambda value: _net(value, lambda packet: packet.source),
            "-d": lambda value: _net(value, lambda packet: packet.destination),
            "-i": lambda value: _interface(value, lambda packet: packet.iif),
            "-o": lambda value: _interface(value, lambda packet: packet.oif),
            "-p": _protocol,
            "--dport": lambda value: _ports(value, lambda packet: packet.port),
            "--sport": lambda value: _ports(value, lambda packet: packet.source_port),
            "--dports": lambda value: _ports(value, lambda packet: packet.port),
            "--sports": lambda value: _ports(value, lambda packet: packet.source_port),
            "--ctdir": lambda value: lambda packet: value == "ORIGINAL",  # of the first packet
            "--ctstate": _state,
            "--state": _state,
            "--mark": lambda value: self._mark(value),
            "--src-range": lambda value: _range(value, lambda packet: packet.source),
            "--dst-range": lambda value: _range(value, lambda packet: packet.destination),
            "--icmp-type": _icmp_type,
            "--icmpv6-type": _icmp_type,
            "--dst-type": lambda value: self._type(value, lambda packet: packet.destination),
            "--src-type": lambda value: self._type(value, lambda packet: packet.source),
        }
        if word == "-m":
            self._modules.append(self._next())
            return None
        if word == "--comment":
            self._next()
            return None
        if word == "--match-set":
            name, directions = self._next(), self._next()
            return lambda packet: self._sets.holds(name, packet, directions)
        if word in simple:
            return simple[word](self._next())
        self._skip_values()
        return lambda packet: None

    def _mark(self, value: str) -> Step:
        if self._modules[-1:] != ["mark"]:  # connmark
            return lambda packet: None
        wanted, mask = _masked(value)
        return lambda packet: packet.mark & mask == wanted

    def _type(self, value: str, of: Callable[[Packet], bytes]) -> Step:
        if self._words[self._at : self._at + 1] in (["--limit-iface-in"], ["--limit-iface-out"]):
            inward = self._next() == "--limit-iface-in"
            if value != "LOCAL":
                return lambda packet: None
            return lambda packet: self._is_on(of(packet), packet.iif if inward else packet.oif)
        if value == "LOCAL":
            return lambda packet: self._is_local(of(packet))
        if value == "UNICAST":
            return lambda packet: True if not self._is_local(of(packet)) else False  # noqa: SIM210
        return lambda packet: None

    def _target(self, name: str, *, goto: bool) -> Step:
        options = self._options()
        if goto:
            return lambda packet: Action("goto", name)
        if name in _TARGETS:
            return lambda packet: _TARGETS[name]
        if name in NO_EFFECT:
            return lambda packet: True
        if name == "MARK":
            return _set_mark(options)
        if name == "NOTRACK" or (name == "CT" and "--notrack" in options):
            return _notrack
        if name == "CT":
            return lambda packet: True
        if name == "MASQUERADE":
            return lambda packet: Action("masquerade")
        if name == "REDIRECT":
            port = options.get("--to-ports", "")
            return lambda packet: Action("redirect", port=int(port) if port.isdigit() else None)
        if name in ("SNAT", "DNAT"):
            action = _nat(name.lower(), options.get("--to-source", options.get("--to-destination", "")))
            return lambda packet: action
        if name == "SET" and "--map-set" in options:
            return self._map_set(options)
        if name.isupper() and name in ("NFQUEUE", "QUEUE", "TPROXY", "SET", "NETMAP", "TEE", "SYNPROXY", "HMARK"):
            return lambda packet: True if name in ("SET", "TEE") else UNKNOWN
        return lambda packet: Action("jump", name)

    def _map_set(self, options: Mapping[str, str]) -> Step:
        """``--map-set name src,src --map-mark``: the mark of the member that holds the packet, in the member's bits."""
        words = self._words[self._at :]
        name, directions = [*words[words.index("--map-set") + 1 :], "", ""][:2]
        if "--map-mark" not in options or {"--map-prio", "--map-queue"} & options.keys():
            return lambda packet: UNKNOWN

        def step(packet: Packet) -> Answer:
            found = self._sets.mark(name, packet, directions)
            if found is None:
                return UNKNOWN
            value, mask = found
            packet.mark = (packet.mark & ~mask & 0xFFFFFFFF) ^ value
            return True

        return step


def _negate(step: Step) -> Step:
    def negated(packet: Packet) -> Answer:
        answer = step(packet)
        return not answer if isinstance(answer, bool) else answer

    return negated


def _net(value: str, of: Callable[[Packet], bytes]) -> Step:
    try:
        net = Net.parse_masked(value)
    except ValueError:
        return lambda packet: None
    return lambda packet: net.covers(of(packet))


def _range(value: str, of: Callable[[Packet], bytes]) -> Step:
    try:
        first, last = map(parse_address, value.split("-"))
    except ValueError:
        return lambda packet: None
    return lambda packet: first <= of(packet) <= last


def _interface(value: str, of: Callable[[Packet], str]) -> Step:
    if value.endswith("+"):
        return lambda packet: of(packet).startswith(value[:-1])
    return lambda packet: of(packet) == value


def _protocol(value: str) -> Step:
    number = int(value) if value.isdigit() else PROTOCOLS.get(value)
    if value in ("all", "0"):
        return lambda packet: True
    return lambda packet: None if number is None else packet.protocol == number


def _ports(value: str, of: Callable[[Packet], int | None]) -> Step:
    ranges = []
    for part in value.split(","):
        first, _, last = part.partition(":")
        if not (first + last).isdigit():
            return lambda packet: None
        ranges.append((int(first or 0), int(last or (65535 if ":" in part else first))))

    def step(packet: Packet) -> bool | None:
        port = of(packet)
        return None if port is None else any(first <= port <= last for first, last in ranges)

    return step


def _state(value: str) -> Step:
    states = set(value.split(","))

    def step(packet: Packet) -> bool:
        found = {"NEW" if packet.tracked else "UNTRACKED", *(kind.upper() for kind in packet.translated)}
        return bool(states & found)

    return step


def _icmp_type(value: str) -> Step:
    kind, _, code = value.partition("/")
    if kind == "any":
        return lambda packet: packet.icmp_type is not None
    if not kind.isdigit():
        return lambda packet: None
    return lambda packet: packet.icmp_type == int(kind) and code in ("", "0")


def _masked(value: str) -> tuple[int, int]:
    number, _, mask = value.partition("/")
    return int(number, 0), int(mask, 0) if mask else 0xFFFFFFFF


def _set_mark(options: Mapping[str, str]) -> Step:
    """``--set-xmark value/mask``: clear the mask's bits, then exclusive or; the tools print every form so."""
    text = options.get("--set-xmark", options.get("--set-mark", ""))
    if not text:
        return lambda packet: UNKNOWN
    value, mask = _masked(text)

    def step(packet: Packet) -> bool:
        packet.mark = (packet.mark & ~mask & 0xFFFFFFFF) ^ value
        return True

    return step


def _notrack(packet: Packet) -> bool:
    packet.tracked = False
    return True


def _nat(kind: str, text: str) -> Action:
    """``10.0.0.1``, ``10.0.0.1:80``, ``[fd00::1]:80``; a range or ports alone cannot be judged."""
    address, port = text, ""
    if text.startswith("["):
        address, _, port = text[1:].partition("]")
    elif text.count(":") == 1:
        address, _, port = text.partition(":")
    port = port.lstrip(":")
    try:
        return Action(kind, address=parse_address(address), port=int(port) if port.isdigit() else None)
    except ValueError:
        return UNKNOWN
