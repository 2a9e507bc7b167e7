"""The budget of what other nodes cost, row by row, and what comparators take for the same. Pure.

Sizes are numbers of other nodes (``bench/across.py``). Invariant: every row is listed, measured or not.
"""

from __future__ import annotations

from bench import bare_vxlan
from bench.across import BACKEND, BLOCKS, SIZES, SWITCHED_ALONE, TOOLS, TWO_DEVICES, WAYS
from bench.budget import MET, MISSED, UNMEASURED, Row, judged, number
from bench.results import Cell, Results

FAMILIES = ("IPv4", "IPv6")
FLAT = 1.3


def _cell(size: int) -> Cell:
    return Cell(BACKEND, "dual", size)


def _where(size: int) -> str:
    return f"{size:,} other nodes"


def rows(results: Results) -> list[Row]:
    """Every row of the budget."""
    found = []
    for way in WAYS:
        scenario, what = f"nodes: one added, {way}", f"a node with its blocks added, {way}"
        for size in SIZES:
            found.append(_row(results, size, f"{what}: kernel", scenario, "kernel", 0.06, "ms"))
            found.append(_row(results, size, f"{what}: agent", scenario, "agent", 0.3, "ms"))
            one_by_one = f"nodes: one added after another, {way}"
            found.append(_row(results, size, f"{what}, one after another: agent", one_by_one, "agent", 0.3, "ms"))
        found.append(_flat(results, f"{what}, kernel: many against few", scenario))
    for way in ("native", "VXLAN"):
        for count in (1, BLOCKS):
            scenario = f"nodes: another address, {way}, {count} blocks of a family"
            found.append(_row(results, SIZES[-1], f"{scenario[7:]}: written", scenario, "written", float("inf"), "ms"))
    for family in FAMILIES:
        scenario = f"nodes: mode of a pool switched, {family}"
        found.append(_row(results, SIZES[-1], f"{scenario[7:]}: written", scenario, "written", 200, "ms"))
        found.append(_row(results, SIZES[-1], f"{scenario[7:]}: pings lost", scenario, "pings lost", 0, ""))
    found.append(
        _row(results, SIZES[-1], f"{SWITCHED_ALONE}: written", f"nodes: {SWITCHED_ALONE}", "written", 200, "ms")
    )
    empty, correct = "nodes: cold start, empty kernel", "nodes: cold start, correct kernel"
    found.append(_row(results, SIZES[-1], "cold start, empty kernel: in sync", empty, "in sync", 2000, "ms"))
    found.append(_row(results, SIZES[-1], "cold start, correct kernel: in sync", correct, "in sync", 1500, "ms"))
    found.append(_row(results, SIZES[-1], "cold start, correct kernel: messages", correct, "messages", 0, ""))
    for family in FAMILIES:
        found.append(_share(results, f"packets of 64 bytes, {family}: VXLAN against native", family, "small", 0.6))
        found.append(_share(results, f"large segments, {family}: VXLAN against native", family, "large", 0.9))
    return found


def _row(results: Results, size: int, what: str, scenario: str, metric: str, limit: float, unit: str) -> Row:
    found = results.get(_cell(size), scenario, metric)
    row = judged(results, _cell(size), what, scenario, metric, limit, unit, found.median if found else None)
    budget = row.budget if limit != float("inf") else "no matter how many blocks"
    return row._replace(where=_where(size), budget=budget)


def _flat(results: Results, what: str, scenario: str) -> Row:
    sizes = [size for size in SIZES if results.get(_cell(size), scenario, "kernel")]
    ends = [results.get(_cell(size), scenario, "kernel") for size in (sizes[:1] + sizes[-1:])]
    if len(sizes) < 2 or not all(ends):
        return Row(what, "–", f"≤ {FLAT} ×", "–", UNMEASURED)
    few, many = ends
    assert few and many
    ratio = many.median / few.median
    verdict = MET if ratio <= FLAT else MISSED
    return Row(what, f"{_where(sizes[-1])}, {sizes[0]}", f"≤ {FLAT} ×", f"{ratio:.2f} ×", verdict)


def _share(results: Results, what: str, family: str, kind: str, least: float) -> Row:
    scenario = f"nodes: {kind} packets, {family}"
    native, tunnel = (results.get(_cell(SIZES[0]), scenario, way) for way in ("native", "VXLAN"))
    if native is None or tunnel is None:
        return Row(what, _where(SIZES[0]), f"≥ {least} ×", "–", UNMEASURED)
    ratio = native.median / tunnel.median
    words = f"{ratio:.2f} × ({number(native.median)} and {number(tunnel.median)} µs)"
    return Row(what, _where(SIZES[0]), f"≥ {least} ×", words, MET if ratio >= least else MISSED)


def ratios(results: Results) -> list[Row]:
    """How others fare with the same."""
    found = []
    for size in SIZES:
        for subject, metric in ((TWO_DEVICES, "kernel"), (TOOLS, "written")):
            theirs = results.get(_cell(size), "nodes: one added", metric, subject)
            ours = results.get(_cell(size), "nodes: one added, VXLAN", metric)
            if theirs and ours:
                words = (
                    f"{number(theirs.median)} ms, {theirs.median / ours.median:.2f} × felixpy's {number(ours.median)}"
                )
                found.append(Row(f"a node added by {subject}: {metric}", _where(size), "", words, ""))
    for family in FAMILIES:
        for kind, what in (("small", "packets of 64 bytes"), ("large", "large segments")):
            scenario = f"nodes: {kind} packets, {family}"
            ways = [results.get(_cell(SIZES[0]), scenario, way, bare_vxlan.SUBJECT) for way in ("native", "VXLAN")]
            if all(ways):
                native, tunnel = (way.median for way in ways if way)
                words = f"{native / tunnel:.2f} × ({number(native)} and {number(tunnel)} µs)"
                what = f"{what}, {family}: VXLAN against native by {bare_vxlan.SUBJECT}"
                found.append(Row(what, _where(SIZES[0]), "", words, ""))
    return found
