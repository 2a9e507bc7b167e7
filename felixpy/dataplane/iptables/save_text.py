"""What a ``-save`` tool printed, reduced to what is ours and where our jumps stand.

    *raw
    :PREROUTING ACCEPT [0:0]
    :fpy-PREROUTING - [0:0]
    -A PREROUTING -m comment --comment felixpy -j fpy-PREROUTING
    -A fpy-PREROUTING -i cali+ -j fpy-from-workload
    COMMIT

Invariant: a rule of somebody else is counted, never kept. Must never decide what to do about what it finds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from msgspec import Struct, field

from felixpy.dataplane.iptables.layout import CHAIN_PREFIX, MASQUERADE_CHAIN, Place, jump_text
from felixpy.dataplane.iptables.render import canonical
from felixpy.dataplane.packet_filter import CountedPackets

_JUMP = re.compile(rf"(?:^| )-[jg] {re.escape(CHAIN_PREFIX)}")
_QUOTED = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
# Written so that a quote that is never closed costs one walk over the rest, not one for each way to divide it.
_LINE = re.compile(r' "[^"\\]*(?:\\.[^"\\]*)*"|[^\n "]+|[ "]', re.DOTALL)
_HIDDEN = re.compile(r"# Table [`'\"]?([^`'\" ]+)[`'\"]? is incompatible")
_COUNTERS = re.compile(r"\[(\d+):\d+\] ")
_DECIDES = re.compile(
    rf"-A {re.escape(CHAIN_PREFIX)}(\S+)(?: .*)?? (?:-j (ACCEPT|DROP|REJECT)\b.*|-g {re.escape(CHAIN_PREFIX)}\S+-done)",
    re.DOTALL,
)
_COMMENT = re.compile(r'--comment (?:"([^"]*)"|(\S+))')


class SavedTable(Struct):
    """One table: our chains with their rules, and our jumps in other chains as (position, text) pairs.

    ``lengths`` are those of other chains, ``masquerades`` the last positions in them of a jump to kube-proxy's
    masquerade. ``hidden``: the tool says no more of it than that it holds what iptables cannot say.
    """

    rules: dict[str, list[str]] = field(default_factory=dict)
    jumps: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    masquerades: dict[str, int] = field(default_factory=dict)
    hidden: bool = False

    def hooked(self, built_in: str, place: Place) -> bool:
        """Whether exactly one jump of ours stands in a built-in chain, as it should and where it should."""
        jumps = self.jumps.get(built_in, [])
        if [canonical(text) for _, text in jumps] != [jump_text(built_in)]:
            return False
        position = jumps[0][0]
        if place is Place.BEHIND:
            return position > self.masquerades.get(built_in, -1)
        return position == (self.lengths[built_in] - 1 if place is Place.LAST else 0)


def parse_save(text: str) -> dict[str, SavedTable]:
    """Tables by name. Lines that are no part of the format (warnings in comments) are passed over; never raises."""
    tables: dict[str, SavedTable] = {}
    table = SavedTable()
    for line in save_lines(text):
        if line.startswith("*"):
            table = tables.setdefault(line[1:].strip(), SavedTable())
        elif line.startswith(f":{CHAIN_PREFIX}"):
            table.rules.setdefault(line[1:].split(" ", 1)[0], [])
        elif line.startswith("-A "):
            chain, _, rule = line.removeprefix("-A ").partition(" ")  # ends here if it has no match and no target
            _add_rule(table, chain, rule)
        elif line.startswith("#") and (told := _HIDDEN.match(line)):
            tables.setdefault(told[1], SavedTable()).hidden = True
    return tables


def set_users(text: str, names: Iterable[str]) -> list[tuple[str, str]]:
    """Table and chain of the rules that ask, or change, one of some IP sets; each pair once, in their order."""
    asks = re.compile(rf"--(?:match|add|del|map)-set (?:{'|'.join(map(re.escape, names))})(?: |$)")
    found: dict[tuple[str, str], None] = {}
    table = ""
    for line in save_lines(text):
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith("-A ") and asks.search(_QUOTED.sub('""', line)):
            found[table, line.split(" ", 2)[1]] = None
    return list(found)


def save_lines(text: str) -> Iterator[str]:
    """Lines without counters. The comment of a rule may hold line breaks, and after them what looks like a rule.

    The tools put such a comment in quotes, which begin after a space, and a backslash before a quote in it.
    """
    return (line for _, line in _counted_lines(text))


def counted_packets(text: str) -> Iterator[CountedPackets]:
    """What rules of ours that decide have counted, from what a tool printed with ``-c``."""
    for packets, line in _counted_lines(text):
        if found := _DECIDES.fullmatch(line):
            comment = _COMMENT.search(line)
            words = (comment[1] or comment[2] or "") if comment else ""
            yield CountedPackets(found[1], words, found[2] in ("DROP", "REJECT"), packets)


def _counted_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines, each with the packets that were counted before it, or 0."""
    start = 0
    while start < len(text):
        end = text.find("\n", start)  # not splitlines, which breaks at other characters, too
        line = text[start:] if end < 0 else text[start:end]
        if '"' in line and ("\\" in line or line.count('"') % 2) and not line.startswith("#"):
            line = _whole_line(text, start)
        start += len(line) + 1
        counted = _COUNTERS.match(line) if line.startswith("[") else None
        yield (int(counted[1]), line[counted.end() :]) if counted else (0, line)


def _whole_line(text: str, start: int) -> str:
    end = start
    while part := _LINE.match(text, end):
        end = part.end()
    return text[start:end]


def _add_rule(table: SavedTable, chain: str, rule: str) -> None:
    if chain.startswith(CHAIN_PREFIX):
        table.rules.setdefault(chain, []).append(rule)
        return
    position = table.lengths.get(chain, 0)
    table.lengths[chain] = position + 1
    if rule.endswith(f"-j {MASQUERADE_CHAIN}"):
        table.masquerades[chain] = position
    if CHAIN_PREFIX in rule and _JUMP.search(_QUOTED.sub('""', rule)):  # what is in quotes is no target
        table.jumps.setdefault(chain, []).append((position, rule))
