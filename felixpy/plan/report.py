"""What ``felixpy plan`` prints of an agent's answer: for people, in 80 columns, most important first."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from felixpy.model.net import printable

WIDTH = 80
MOST_OPERATIONS, MOST_CLASSES, MOST_PAIRS = 12, 6, 12
SIGNS = {"add": "+", "change": "~", "remove": "-", "create": "+", "delete": "-"}
PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6", 132: "sctp"}
EXIT_NOTHING, EXIT_SOMETHING, EXIT_CUTS = 0, 2, 3

GOES_ON = (
    "A live connection goes on until its conntrack entry ends, whatever policy says then: what is cut are new "
    "connections of its pair. One without an answer yet is asked again with its next packet."
)


class Line(NamedTuple):
    """A line and what it is, for who colours it: ``head``, ``cut``, ``opened``, or plain."""

    text: str
    kind: str = ""


def exit_code(said: Mapping[str, Any]) -> int:
    """0 nothing would change here, 2 something would, 3 connections would be cut as well."""
    if said["connections"]["cut"]["pairs"]:
        return EXIT_CUTS
    changes = said["kernel"]["count"] or said["classes"] or said["settings"] or said["connections"]["opened"]["pairs"]
    return EXIT_SOMETHING if changes else EXIT_NOTHING


def as_text(said: Mapping[str, Any]) -> Iterator[Line]:
    """The answer in lines."""
    yield Line(f"On node {said['node']} this change would do:", "head")
    yield from _objects(said)
    yield from _connections(said["connections"])
    yield from _classes(said["classes"])
    yield from _kernel(said["kernel"])
    for words in said["not_judged"]:
        yield from wrapped("not judged   ", words)
    yield Line("Nothing was written.")


def _objects(said: Mapping[str, Any]) -> Iterator[Line]:
    for one in said["objects"]:
        asked = f", asked by {count(one['endpoints'], 'endpoint')} here" if one["endpoints"] else ""
        yield Line(_cut(f"  {SIGNS.get(one['verb'], '·')} {one['object']}: {one['verb']}{asked}"))
        if one["problem"]:
            yield from wrapped("      problem: ", one["problem"])
    for name, value in said["settings"].items():
        yield Line(_cut(f"  ~ setting {name}: {value}"))
    for key, words in said["problems"].items():
        yield from wrapped("  ! ", f"{key}: {words}")


def _connections(said: Mapping[str, Any]) -> Iterator[Line]:
    cut, opened = said["cut"], said["opened"]
    yield Line("")
    beyond = f", {said['left_out']} left out" if said["left_out"] else ""
    read = count(said["read"], "conntrack entry", "conntrack entries")
    yield Line(f"connections  {read}, {said['judged']} asked about{beyond}", "head")
    for word, sums in (("cut", cut), ("opened", opened)):
        stages = ", ".join(f"{sums[name]} {label}" for name, label in STAGES if sums[name])
        yield Line(
            f"  {word:<11}{count(sums['pairs'], 'pair')}{f': {stages}' if stages else ''}", word if stages else ""
        )
    if said["decided_by_others"]:
        yield Line(f"  {'otherwise':<11}{said['decided_by_others']} fare as before, by the word of another rule")
    for row in said["pairs"][:MOST_PAIRS]:
        yield Line("")
        yield from pair_lines(row)
    if (more := cut["pairs"] + opened["pairs"] - MOST_PAIRS) > 0:
        yield Line(f"    … and {count(more, 'pair')} more: -o json")
    if cut["live"]:
        yield Line("")
        yield from wrapped("  ", GOES_ON)
    yield Line("")


STAGES = (("live", "live"), ("unanswered", "unanswered"), ("closed", "ended lately"))


def pair_lines(row: Mapping[str, Any], nodes: str = "") -> Iterator[Line]:
    """A pair of ends, with what is decided now and then; ``nodes``: where, if it is not told already."""
    word = "cut" if row["effect"] == "cut" else "opened"
    what = PROTOCOLS.get(row["protocol"], f"protocol {row['protocol']}")
    if row["icmp"]:
        what += f" type {row['icmp'][0]}"
    elif row["port"]:
        what += f" {row['port']}"
    sign = "✗" if word == "cut" else "✓"
    stages = ", ".join(f"{row[name]} {label}" for name, label in STAGES if row[name])
    ends = [f"{row[end]}{f' {row[name]}' if row[name] else ''}" for end, name in _ENDS]
    line = f"  {sign} {ends[0]} → {ends[1]}  {what}"
    if len(line) + len(stages) + 2 <= WIDTH:
        yield Line(f"{line}  {stages}", word)
    else:
        yield from (Line(text, word) for text in textwrap.wrap(line, WIDTH, subsequent_indent="      "))
        yield Line(f"      {stages}", word)
    if nodes:
        yield from wrapped("      on   ", nodes)
    yield from _decided("now", row["before"])
    yield from _decided("then", row["after"])
    if row["at_once"]:
        yield Line("      its entries are deleted: live connections end at once")


_ENDS = (("source", "source_name"), ("destination", "destination_name"))


def _decided(when: str, said: Mapping[str, Any]) -> Iterator[Line]:
    word = "allowed" if said["allowed"] else "denied"
    for number, by in enumerate(said["by"] or ["nobody is asked"]):
        label = f"      {when:<5}{word:<8} " if not number else " " * 20
        yield from wrapped(label, by)


def _classes(rows: list[Mapping[str, Any]]) -> Iterator[Line]:
    endpoints = {name for row in rows for name in row["names"]}
    most = max((row["endpoints"] for row in rows), default=0)
    yield Line(f"classes      {count(max(most, len(endpoints)), 'endpoint')} asked something else", "head")
    for row in rows[:MOST_CLASSES]:
        more = f" and {row['endpoints'] - len(row['names'][:3])} more" if row["endpoints"] > 3 else ""
        yield from wrapped(f"  {row['direction']:<9}  ", f"{', '.join(row['names'][:3])}{more}")
        yield from wrapped("      now  ", row["before"] or "not here")
        yield from wrapped("      then ", row["after"] or "not here any more")
    if len(rows) > MOST_CLASSES:
        yield Line(f"    … and {len(rows) - MOST_CLASSES} groups more: -o json")
    yield Line("")


def _kernel(said: Mapping[str, Any]) -> Iterator[Line]:
    counts = ", ".join(f"{said[verb]} to {verb}" for verb in ("add", "change", "remove") if said[verb])
    yield Line(f"kernel       {counts or 'nothing to write'}", "head")
    operations = said["operations"]
    if len(operations) > MOST_OPERATIONS:
        tables: Counter[tuple[str, str]] = Counter((one["table"], one["verb"]) for one in operations)
        for (table, verb), number in tables.items():
            yield Line(f"  {SIGNS[verb]} {table}: {count(number, 'entry', 'entries')}")
        yield Line("    one by one: -o json")
    else:
        for one in operations:
            yield Line(_cut(f"  {SIGNS[one['verb']]} {one['table']}: {one['entry']}"))
    yield Line("")


def count(number: int, one: str, several: str = "") -> str:
    return f"{number} {one if number == 1 else several or f'{one}s'}"


def _cut(text: str) -> str:
    """On one line: what does not fit is in the JSON."""
    text = printable(text)
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"


def wrapped(label: str, words: str) -> Iterable[Line]:
    text = printable(words)
    lines = textwrap.wrap(text, WIDTH - len(label), break_on_hyphens=False) or [""]
    return [Line(f"{label if not number else ' ' * len(label)}{line}") for number, line in enumerate(lines)]
