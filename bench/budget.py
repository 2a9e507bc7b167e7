"""The performance budget, row by row: what was measured, what is allowed, and the verdict. Pure.

The budget was set for one class of machine (two cores); a verdict on another machine, or of a noisy run, says less.
Invariant: every row is listed, measured or not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from bench import turns
from bench.comparators import FOR_BACKEND
from bench.results import BACKENDS, Cell, Results
from bench.statistics import ENOUGH_FOR_P99

MET, MISSED, UNMEASURED = "met", "**missed**", "not measured"
SOONER = 50.0
"""So many times sooner than starting a program per change."""
RESYNC_SIZE = 5_000
"""Workloads of both families that make 10,000 routes and 20,000 elements."""


class Row(NamedTuple):
    """One line of the table: texts for people."""

    what: str
    where: str
    budget: str
    measured: str
    verdict: str


def rows(results: Results) -> list[Row]:
    """Every row of the budget, for each back-end to which it applies."""
    found: list[Row] = []
    for backend in BACKENDS:
        found += _latency(results, backend)
    for backend in BACKENDS:
        found += [
            _row(results, Cell(backend, "dual", 10_000), "agent's own share of one update", "add one",
                 "agent's own share", 0.25, "ms", fallback=True),
            _row(results, Cell(backend, "dual", 10_000), "agent's own share of one update, one after another",
                 "add one after another", "agent's own share", 0.25, "ms", fallback=True),
            _row(results, Cell(backend, "dual", 10_000), "burst of 100: last one after its publish", "burst of 100",
                 "last visible after the last publish", 25, "ms", fallback=True),
        ]  # fmt: skip
    for backend in BACKENDS:
        cell = Cell(backend, "dual", 5_000)
        empty, correct = "cold start, empty kernel", "cold start, correct kernel"
        found += [
            _row(results, cell, "cold start to in sync, empty kernel", empty, "in sync", 2000, "ms"),
            _row(results, cell, "cold start to in sync, correct kernel", correct, "in sync", 1500, "ms"),
            _row(results, cell, "writes of a cold start, correct kernel", correct, "messages", 0, ""),
        ]
    found += _drift(results)
    for backend in BACKENDS:
        cell = Cell(backend, "dual", RESYNC_SIZE)
        found += [
            _row(results, cell, "resync of 10,000 routes + 20,000 elements", "resync", "duration", 250, "ms"),
            _row(results, cell, "longest that a resync holds the loop", "resync", "longest hold", 5, "ms", _maximum),
            _held_back(results, cell),
        ]
    cell = Cell("nftables", "dual", 10_000)
    found += [
        _row(results, cell, "resident memory", "idle", "resident memory", 150, "MiB"),
        _row(results, cell, "idle processor share", "idle", "cpu share", 0.1, "%"),
    ]
    for backend in BACKENDS:
        found += _sooner(results, backend)
    return found


def _median(results: Results, cell: Cell, scenario: str, metric: str) -> float | None:
    found = results.get(cell, scenario, metric)
    return found.median if found else None


def _p99(results: Results, cell: Cell, scenario: str, metric: str) -> float | None:
    found = results.get(cell, scenario, metric)
    return found.p99 if found and found.samples >= ENOUGH_FOR_P99 else None


def _maximum(results: Results, cell: Cell, scenario: str, metric: str) -> float | None:
    found = results.get(cell, scenario, metric)
    return found.maximum if found else None


Statistic = Callable[[Results, Cell, str, str], float | None]


def number(value: float) -> str:
    """Three digits that count."""
    if value >= 100:
        return f"{value:,.0f}"
    return (
        f"{value:.1f}".removesuffix(".0") if value >= 10 else f"{value:.2f}".rstrip("0").rstrip(".") if value else "0"
    )


def _row(
    results: Results,
    cell: Cell,
    what: str,
    scenario: str,
    metric: str,
    limit: float,
    unit: str,
    statistic: Statistic = _median,
    *,
    fallback: bool = False,
) -> Row:
    """One row; ``fallback`` takes the largest size that was measured if the cell itself was not."""
    value = statistic(results, cell, scenario, metric)
    if value is None and fallback:
        sizes = [c.size for c in results.cells if c[:2] == cell[:2] and results.get(c, scenario, metric)]
        if sizes:
            cell = cell._replace(size=max(sizes))
            value = statistic(results, cell, scenario, metric)
    return judged(results, cell, what, scenario, metric, limit, unit, value)


def judged(
    results: Results, cell: Cell, what: str, scenario: str, metric: str, limit: float, unit: str, value: float | None
) -> Row:
    allowed = f"≤ {number(limit)} {unit}".strip()
    if value is None:
        return Row(what, str(cell), allowed, "–", UNMEASURED)
    found = results.get(cell, scenario, metric)
    verdict = (MET if value <= limit else MISSED) + (", noisy" if found and found.noisy else "")
    return Row(what, str(cell), allowed, f"{number(value)} {unit}".strip(), verdict)


def _latency(results: Results, backend: str) -> list[Row]:
    found = []
    sizes = sorted({cell.size for cell in results.cells if cell.backend == backend and cell.mode == "dual"})
    for size in sorted({10, 10_000, *sizes}):
        cell = Cell(backend, "dual", size)
        what = "publish → programmed, one workload"
        found += [
            _row(results, cell, f"{what}, p50", "add one", "visible", 1, "ms"),
            _row(results, cell, f"{what}, p99", "add one", "visible", 3, "ms", _p99),
            _row(results, cell, f"{what}, one after another, p50", "add one after another", "visible", 1, "ms"),
            _row(results, cell, f"{what}, one after another, p99", "add one after another", "visible", 3, "ms", _p99),
        ]
    full, few = Cell(backend, "dual", 10_000), Cell(backend, "dual", 10)
    pairs = {
        "": [(full, "add one", "visible"), (few, "add one", "visible")],
        ", in turn": [(full, turns.SCENARIO, metric) for metric in turns.METRICS],
    }
    for how, pair in pairs.items():
        many, ten = (_median(results, *one) for one in pair)
        ratio = many / ten if many and ten else None
        verdict = UNMEASURED if ratio is None else MET if ratio <= 1.3 else MISSED
        text = "–" if ratio is None else f"{ratio:.2f} ×"
        found.append(Row(f"p50 at 10,000 against p50 at 10{how}", f"{backend} dual", "≤ 1.3 ×", text, verdict))
    return found


def _drift(results: Results) -> list[Row]:
    found = []
    for backend in BACKENDS:
        cell = Cell(backend, "dual", 10_000)
        metrics = ["route is back"]
        for what in {"nftables": ("rule", "element"), "nft": ("rule", "rule of a chain with xtables matches")}.get(
            backend, ()
        ):
            metrics += [f"{what} is back", f"{what} is back, deleted by a command"]
        for metric in metrics:
            found.append(_row(results, cell, f"drift: deleted {metric}", "drift", metric, 10, "ms", fallback=True))
    return found


def _held_back(results: Results, cell: Cell) -> Row:
    """By how much the latest update during a resync came later than one without."""
    during, alone = results.get(cell, "update during a resync", "visible"), results.get(cell, "add one", "visible")
    value = max(0.0, during.maximum - alone.median) if during and alone else None
    what = "longest that a resync held an update back"
    return judged(results, cell, what, "update during a resync", "visible", 5, "ms", value)


def _sooner(results: Results, backend: str) -> list[Row]:
    """How many times sooner than by a program per change: from the publish, and from when each has the change."""
    rival = FOR_BACKEND[backend][0]
    cell = Cell(backend, "dual", 5_000)
    ours, theirs = results.get(cell, "add one", "visible"), results.get(cell, "add one", "visible", rival)
    received = results.get(cell, "add one", "received")
    what = f"one workload visible sooner than by {rival}"
    takes = {what: ours.median if ours else None}
    takes[f"{what}, which has no broker: from the receipt"] = (
        ours.median - received.median if ours and received else None
    )
    rows = []
    for text, own in takes.items():
        ratio = theirs.median / own if theirs and own else None
        verdict = UNMEASURED if ratio is None else MET if ratio >= SOONER else MISSED
        rows.append(Row(text, str(cell), f"≥ {SOONER:.0f} ×", f"{ratio:.1f} ×" if ratio else "–", verdict))
    return rows
