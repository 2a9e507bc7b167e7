"""``python -m bench``: measure, show, and write JSON, plots and report. ``--help`` lists the options.

Exit codes: 0 measured, 1 could not be measured; bugs alone show a traceback.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from itertools import groupby
from pathlib import Path

from rich.console import Console

from bench import machine, plan
from bench.cell import measure
from bench.plan import Effort
from bench.results import Cell, Results
from bench.rivals import Rivals
from bench.terminal import Progress, show
from bench.world import World
from felixpy.demo.host import LabError
from felixpy.demo.topology import Mode

PROJECT = Path(__file__).resolve().parents[1]
RESULTS = PROJECT / "docs" / "performance" / "results.json"


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Options as given."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few sizes and samples, under three minutes")
    parser.add_argument("--sizes", type=_sizes, help="workloads preloaded, separated by commas")
    parser.add_argument("--backends", type=_names(("nftables", "legacy", "nft")), help="back-ends, by commas")
    parser.add_argument("--modes", type=_names(("dual", "v4", "v6")), help="families, by commas")
    parser.add_argument("--no-comparators", action="store_true", help="measure felixpy alone")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE", help="where the samples go")
    return parser.parse_args(argv)


def _sizes(text: str) -> list[int]:
    sizes = [int(part.replace("_", "")) for part in text.split(",")]
    if not all(1 < size <= plan.SIZES[-1] for size in sizes):
        raise argparse.ArgumentTypeError(f"sizes are between 2 and {plan.SIZES[-1]:,}")
    return sizes


def _names(allowed: tuple[str, ...]):  # type: ignore[no-untyped-def]
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(allowed):
            raise argparse.ArgumentTypeError(f"{min(unknown)!r} is none of {', '.join(allowed)}")
        return names

    return parse


def cells(options: argparse.Namespace) -> list[tuple[Cell, Effort]]:
    """What is to be measured, in order."""
    planned = plan.quick() if options.quick else plan.full()
    if options.sizes or options.backends or options.modes:
        effort = plan.QUICK if options.quick else Effort()
        planned = [
            (Cell(backend, mode, size), effort)
            for mode in options.modes or ["dual"]
            for size in options.sizes or plan.SIZES
            for backend in options.backends or ["nftables"]
        ]
    if options.no_comparators:
        planned = [(cell, plan.replace(effort, comparators=False)) for cell, effort in planned]
    return plan.ordered(planned)


async def run(planned: list[tuple[Cell, Effort]], results: Results, console: Console) -> None:
    """Measure all cells, one network per mode.

    Raises:
        LabError: it cannot go on; what was measured so far is in ``results``.
    """
    progress = Progress(console, len(planned))
    number = 0
    try:
        for mode, group in groupby(planned, key=lambda one: one[0].mode):
            async with World(Mode(mode)) as world:
                rivals = await Rivals.start(world)
                try:
                    for cell, effort in group:
                        number += 1
                        at = number
                        await measure(
                            world, rivals, cell, effort, results, lambda what, at=at, cell=cell: progress.step(at, cell, what)  # type: ignore[misc]
                        )
                        show(console, results, cell)
                finally:
                    await rivals.close()
    finally:
        progress.close()


async def _interruptible(planned: list[tuple[Cell, Effort]], results: Results, console: Console) -> None:
    """Take everything away on SIGTERM and Ctrl-C, too."""
    task = asyncio.create_task(run(planned, results, console))
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, task.cancel)
    await task


def main() -> int:
    options = arguments()
    console = Console(soft_wrap=True, highlight=False)
    if os.geteuid() != 0:
        console.print("bench: network namespaces need root; run it as root, or as `make bench` with sudo")
        return 1
    results = Results(machine.describe())
    begin = time.monotonic()
    code = 0
    try:
        asyncio.run(_interruptible(cells(options), results, console))
    except LabError as error:
        console.print(f"bench: {error}")
        results.remark(f"the run ended early: {error}")
        code = 1
    except asyncio.CancelledError:
        console.print("bench: interrupted; nothing was left behind and nothing was written")
        return 1
    results.machine["seconds"] = round(time.monotonic() - begin, 1)
    results.write(options.json)
    console.print(f"samples: {options.json}")
    for remark in results.remarks:
        console.print(f"note: {remark}")
    return code


if __name__ == "__main__":
    sys.exit(main())
