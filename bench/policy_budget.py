"""The budget of policy, row by row, as ratios of one run, and what others take for the same packets. Pure.

Invariant: every row is listed, measured or not.
"""

from __future__ import annotations

from bench.budget import MET, MISSED, UNMEASURED, Row, judged, number
from bench.policy_objects import scenario
from bench.policy_rules import CHAIN_PER_ENDPOINT, SET_PER_POLICY
from bench.results import BACKENDS, FELIXPY, Cell, Results

WITHOUT = "without policies"
FEW, MANY = 10, 1_000
SMALL, LARGE, FOR_PACKETS = 10, 5_000, 1_000
PACKETS = ("new connection", "denied", "established")


def rows(results: Results) -> list[Row]:
    """Every row of the budget; of another back-end than nftables those that were measured."""
    found: list[Row] = []
    for backend in BACKENDS:
        some = [*_changes(results, backend), *_packets(results, backend)]
        found += some if backend == "nftables" else [row for row in some if row.verdict != UNMEASURED]
    return found


def _changes(results: Results, backend: str) -> list[Row]:
    found = []
    sizes = {cell.size for cell in results.cells if cell.backend == backend and results.get(cell, scenario(FEW), _ONE)}
    for size in sorted({SMALL, LARGE} | sizes):
        cell = Cell(backend, "dual", size)
        for count in (FEW, MANY):
            found += [
                _ratio(results, cell, count, _ONE, _ONE, 1.15),
                _ratio(results, cell, count, "label of a peer", _ONE, 1.5),
                _ratio(results, cell, count, "cold start", "cold start", 1.5),
            ]
            value = results.get(cell, scenario(count), _ALL)
            row = judged(results, cell, _ALL, scenario(count), _ALL, 25, "ms", value.median if value else None)
            found.append(row._replace(where=_where(cell, count)))
    return found


_ONE, _ALL = "one workload", "a policy for all"


def _where(cell: Cell, count: int) -> str:
    return f"{cell.backend} N={cell.size:,}, P={count:,}"


def _ratio(results: Results, cell: Cell, count: int, metric: str, against: str, most: float) -> Row:
    """How much a metric takes with policies, by how much another one does without any."""
    ours = results.get(cell, scenario(count), metric)
    bare = results.get(cell, scenario(count), against, WITHOUT)
    what = f"{metric}, {WITHOUT if metric == against else f'{against} {WITHOUT}'}"
    allowed, where = f"≤ {most} ×", _where(cell, count)
    if ours is None or bare is None:
        return Row(what, where, allowed, "–", UNMEASURED)
    ratio = ours.median / bare.median
    words = f"{ratio:.2f} × ({number(ours.median)} and {number(bare.median)} ms)"
    return Row(what, where, allowed, words, MET if ratio <= most else MISSED)


def _packets(results: Results, backend: str) -> list[Row]:
    found = []
    for metric, what in (("new connection", "new connections a second"), ("established", "packets a second")):
        found += [
            _share(results, backend, what, metric, (MANY, FEW), 0.9),
            _share(results, backend, what, metric, (FEW, 0), 0.6),
        ]
    return found


def _share(results: Results, backend: str, what: str, metric: str, counts: tuple[int, int], least: float) -> Row:
    """How many packets pass with so many policies, of those with as many others: the inverse of what one takes."""
    cell = Cell(backend, "dual", FOR_PACKETS)
    many, few = (results.get(cell, scenario(count), metric) for count in counts)
    where, allowed = f"{backend} N={cell.size:,}, P={counts[0]:,} against {counts[1]:,}", f"≥ {least} ×"
    if many is None or few is None:
        return Row(what, where, allowed, "–", UNMEASURED)
    ratio = few.median / many.median
    words = f"{ratio:.2f} × ({number(1000 / many.median)} and {number(1000 / few.median)} thousand)"
    return Row(what, where, allowed, words, MET if ratio >= least else MISSED)


def others(results: Results) -> list[Row]:
    """What other ways take for a packet, beside felixpy in the same turns."""
    found = []
    for count in (FEW, MANY):
        cell = Cell("nftables", "dual", FOR_PACKETS)
        for subject in (CHAIN_PER_ENDPOINT, SET_PER_POLICY):
            for metric in PACKETS:
                ours, theirs = (results.get(cell, scenario(count), metric, one) for one in (FELIXPY, subject))
                if ours and theirs:
                    words = f"{number(theirs.median)} µs, {theirs.median / ours.median:.2f} × felixpy's"
                    words += f" {number(ours.median)}"
                    found.append(Row(f"{metric}: {subject}", _where(cell, count), "", words, ""))
    return found
