"""Write the matrices of cases from their rules: a case is reasoned about as rules, and asked as matrices.

    python -m tests.policy.matrices FILE...

A file has ``expect.rules`` (read from the top over "everything passes": ``allow|deny FROM -> TO [proto[/port[@sport]]…]
[v4|v6]``, with shell patterns and commas), ``expect.columns`` and ``expect.probes`` (``tcp/80``, ``udp/53@5353``,
``icmp``, ``icmp:13.0=4`` of one family, ``udp/80+fragments`` in a shape); the matrices of both families take the place
of the last two. A file of steps has that in each of them. Whether the rules are right is nobody's knowledge here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

_PROBE = re.compile(
    r"(?P<proto>[a-z]+)(?::(?P<type>\d+)(?:\.(?P<code>\d+))?)?(?:/(?P<port>\d+)(?:@(?P<sport>\d+))?)?"
    r"(?:\+(?P<shape>[a-z]+))?(?:=(?P<family>[46]))?"
)
_FAMILY = re.compile(r"v[46]$")
SOURCE_PORT = 40000


def decides(rule: str, source: str, destination: str, probe: dict[str, Any]) -> bool | None:
    """What a rule says of a probe; None if nothing."""
    word, _, rest = rule.partition(" ")
    ends, asked = rest.split(" -> "), ""
    to, _, asked = ends[1].partition(" ")
    words = asked.split()
    families = [int(one[1]) for one in words if _FAMILY.fullmatch(one)]
    wanted = [one for one in words if not _FAMILY.fullmatch(one)]
    if not (_named(source, ends[0]) and _named(destination, to)):
        return None
    if families and probe["family"] not in families:
        return None
    if wanted and not any(_is_like(probe, one) for one in wanted):
        return None
    return word == "allow"


def _named(name: str, patterns: str) -> bool:
    return any(fnmatchcase(name, one) for one in patterns.split(","))


def _is_like(probe: dict[str, Any], text: str) -> bool:
    asked = parse_probe(text)
    return all(probe.get(key, SOURCE_PORT if key == "sport" else None) == value for key, value in asked.items())


def parse_probe(text: str) -> dict[str, Any]:
    found = _PROBE.fullmatch(text)
    if not found:
        raise ValueError(f"{text} is no probe")
    texts = ("proto", "shape")
    return {key: value if key in texts else int(value) for key, value in found.groupdict().items() if value}


def matrix(probe: dict[str, Any], columns: Sequence[str], rules: Iterable[str]) -> dict[str, Any]:
    rows = {}
    for source in columns:
        row = ""
        for destination in columns:
            passes = True
            for rule in rules:
                said = decides(rule, source, destination, probe)
                passes = passes if said is None else said
            row += "-" if source == destination else "." if passes else "X"
        rows[source] = row
    return {"probe": probe, "columns": " ".join(columns), "rows": rows}


def fill(path: Path) -> None:
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    for one in raw.get("steps", (raw,)):
        expect = one["expect"]
        columns, probes = expect.pop("columns").split(), expect.pop("probes").split()
        expect["matrices"] = [
            matrix({**parse_probe(text), "family": family}, columns, expect["rules"])
            for text in probes
            for family in (4, 6)
            if parse_probe(text).get("family", family) == family
        ]
    path.write_text(yaml.safe_dump(raw, sort_keys=False, width=120), encoding="utf-8")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        fill(Path(argument))
