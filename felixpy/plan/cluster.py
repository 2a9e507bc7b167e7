"""What a change would do to a cluster: the answers of all agents, added up. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from felixpy.mqtt.asking import Answers
from felixpy.plan import report
from felixpy.plan.report import Line, count, pair_lines, wrapped

ROWS_OF_A_NODE = 100
"""What each node tells at most, of each list: there may be thousands of nodes."""
MOST_NODES, MOST_PAIRS = 30, 12
CANNOT_TELL = 1
_HEADINGS = ("node", "cut", "opened", "asked otherwise", "kernel")


def refuse_strange(answers: Answers) -> None:
    """Answers of agents of other versions, that do not tell what is told here, count as refused."""
    for node, said in list(answers.said.items()):
        try:
            list(report.as_text(said))
        except (AttributeError, KeyError, TypeError, ValueError):
            del answers.said[node]
            answers.refused[node] = "its agent is of another version, which answers otherwise"


def exit_code(answers: Answers) -> int:
    """The gravest of all nodes' (3 cut, 2 something, 0 nothing); 1 if not all have answered and nothing is cut."""
    codes = [report.exit_code(said) for said in answers.said.values()]
    if report.EXIT_CUTS in codes:
        return report.EXIT_CUTS
    return max(codes, default=report.EXIT_NOTHING) if answers.whole else CANNOT_TELL


def as_json(answers: Answers) -> dict[str, Any]:
    """Everything, for programs."""
    return {
        "nodes": answers.said,
        "refused": answers.refused,
        "silent": list(answers.silent),
        "offline": list(answers.offline),
    }


def as_text(answers: Answers) -> Iterator[Line]:
    """Everything in lines: who answered, what each node would do, and the pairs of all."""
    asked = len(answers.said) + len(answers.refused) + len(answers.silent)
    yield Line(f"{len(answers.said)} of {count(asked, 'agent')} answered what this change would do:", "head")
    for node, why in answers.refused.items():
        yield from wrapped(f"  ! {node}: ", why)
    for node in answers.silent:
        yield from wrapped(f"  ! {node}: ", "no answer")
    for node in answers.offline:
        yield from wrapped(f"  ! {node}: ", "its agent does not run")
    yield Line("")
    yield from _table(answers.said)
    rows = _merged(answers.said)
    for row, nodes in rows[:MOST_PAIRS]:
        yield Line("")
        yield from pair_lines(row, ", ".join(nodes))
    if len(rows) > MOST_PAIRS:
        yield Line(f"    … and {count(len(rows) - MOST_PAIRS, 'pair')} more: -o json")
    if any(row["effect"] == "cut" and row["live"] for row, _ in rows):
        yield Line("")
        yield from wrapped("  ", report.GOES_ON)
    yield Line("")
    for words in dict.fromkeys(words for said in answers.said.values() for words in said["not_judged"]):
        yield from wrapped("not judged   ", words)
    yield Line("Nothing was written.")


def _table(said: Mapping[str, Any]) -> Iterator[Line]:
    rows: list[tuple[str, ...]] = [_HEADINGS]
    rows += [(node, *_figures(one)) for node, one in sorted(said.items(), key=_gravest)]
    shown = rows[: MOST_NODES + 1]
    widths = [max(len(row[column]) for row in shown) for column in range(len(_HEADINGS))]
    for row in shown:
        kind = "head" if row is rows[0] else "cut" if row[1] != "-" else ""
        yield Line("  " + "  ".join(map(str.ljust, row, widths)).rstrip(), kind)
    if len(rows) > len(shown):
        yield Line(f"  … and {count(len(rows) - len(shown), 'node')} more: -o json")


def _figures(said: Mapping[str, Any]) -> tuple[str, ...]:
    cut, opened = said["connections"]["cut"], said["connections"]["opened"]
    asked = max((row["endpoints"] for row in said["classes"]), default=0)
    kernel = said["kernel"]["count"]
    return _pairs(cut), _pairs(opened), count(asked, "endpoint") if asked else "-", str(kernel) if kernel else "-"


def _pairs(sums: Mapping[str, int]) -> str:
    if not sums["pairs"]:
        return "-"
    live = f", {sums['live']} live" if sums["live"] else ""
    return count(sums["pairs"], "pair") + live


def _gravest(item: tuple[str, Mapping[str, Any]]) -> tuple[int, int, str]:
    node, said = item
    return -said["connections"]["cut"]["pairs"], -said["connections"]["opened"]["pairs"], node


def _merged(said: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], list[str]]]:
    """Pairs with the nodes that tell of them: a connection between two nodes is asked on both. What is cut first."""
    rows: dict[str, Mapping[str, Any]] = {}
    nodes: defaultdict[str, list[str]] = defaultdict(list)
    for node, one in sorted(said.items()):
        for row in one["connections"]["pairs"]:
            key = repr([row[name] for name in ("effect", "source", "destination", "protocol", "port", "icmp", "after")])
            rows.setdefault(key, row)
            nodes[key].append(node)
    found = [(rows[key], nodes[key]) for key in rows]
    return sorted(found, key=lambda item: (item[0]["effect"] != "cut", -item[0]["live"]))
