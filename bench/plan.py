"""How much is measured: cells and numbers of samples of a quick and of a full run. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.results import BACKENDS, MODES, Cell

SIZES = (10, 100, 1_000, 5_000, 10_000)


@dataclass(frozen=True, slots=True)
class Effort:
    """Numbers of samples, and seconds of what lasts."""

    changes: int = 50
    """One workload added and deleted, interleaved with the comparators."""
    comparator_changes: int = 10
    small: int = 15
    """Address changes, NAT toggles, moved blocks."""
    bursts: int = 3
    churn_s: float = 0.0
    first_packets: int = 10
    resyncs: int = 5
    drifts: int = 10
    floor_changes: int = 0
    """One workload written by a program that has its messages ready: what the machine itself takes."""
    turns: int = 0
    """One workload more on this node and on one with ten, in turn."""
    forwarding_s: float = 1.0
    forwarding_rounds: int = 2
    idle_s: float = 5.0
    cold_starts: int = 1
    comparators: bool = True


QUICK = Effort(
    changes=15,
    comparator_changes=3,
    small=5,
    bursts=1,
    churn_s=5.0,
    first_packets=3,
    resyncs=2,
    drifts=3,
    forwarding_s=0.3,
    forwarding_rounds=1,
    idle_s=2.0,
)
CHURN_S = 30.0
TURNS = 50
COMPARATORS_UP_TO = {"nftables": 10_000, "legacy": 5_000, "nft": 5_000}
"""Loading two chains per workload for more takes too long."""


def quick() -> list[tuple[Cell, Effort]]:
    """Under three minutes on two cores."""
    cells = [
        (Cell("nftables", "dual", 10), replace(QUICK, floor_changes=QUICK.changes)),
        (Cell("nftables", "dual", 1_000), QUICK),
    ]
    fewer = replace(QUICK, churn_s=0.0, forwarding_s=0.0, idle_s=0.0)
    cells += [(Cell(backend, "dual", 1_000), fewer) for backend in ("legacy", "nft")]
    return ordered(cells)


def full() -> list[tuple[Cell, Effort]]:
    """Under twenty minutes on two cores: every size for nftables, fewer for the others."""
    cells = []
    for size in SIZES:
        effort = Effort(comparators=size <= COMPARATORS_UP_TO["nftables"])
        if size == 10:
            effort = replace(effort, floor_changes=50)
        if size in (1_000, 10_000):
            effort = replace(effort, churn_s=CHURN_S)
        if size in (1_000, 5_000):
            effort = replace(effort, cold_starts=3)
        if size == 10_000:
            effort = replace(effort, idle_s=20.0, turns=TURNS)
        cells.append((Cell("nftables", "dual", size), effort))
    fewer = Effort(changes=30, comparator_changes=5, small=5, bursts=2, first_packets=5, resyncs=3, idle_s=0.0)
    for backend in ("legacy", "nft"):
        cells += [
            (
                Cell(backend, "dual", size),
                replace(fewer, comparators=size <= COMPARATORS_UP_TO[backend], turns=TURNS if size == 10_000 else 0),
            )
            for size in (10, 1_000, 5_000, 10_000)
        ]
    single = replace(fewer, comparators=False, forwarding_s=0.0)
    cells += [(Cell("nftables", mode, size), single) for mode in ("v4", "v6") for size in (10, 1_000)]
    return ordered(cells)


def _order(planned: tuple[Cell, Effort]) -> tuple[int, int, int]:
    """One network per mode, growing; in each size one back-end after the other."""
    cell = planned[0]
    return MODES.index(cell.mode), cell.size, BACKENDS.index(cell.backend)


def ordered(cells: list[tuple[Cell, Effort]]) -> list[tuple[Cell, Effort]]:
    """In the order in which they can be measured."""
    return sorted(cells, key=_order)
