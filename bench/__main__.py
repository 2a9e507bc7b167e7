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
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path

from rich.console import Console

from bench import across, machine, plan, policy, report
from bench.cell import measure
from bench.external import measure as measure_external
from bench.plan import Effort
from bench.plots import NoPlots, draw
from bench.results import Cell, Results, load
from bench.rivals import Rivals
from bench.terminal import Progress, show, show_nodes, show_policy
from bench.world import World
from felixpy.demo.host import LabError
from felixpy.demo.topology import Mode

PROJECT = Path(__file__).resolve().parents[1]
TRACKED = PROJECT / "docs"
ASIDE = PROJECT / "build" / "bench"
"""Where samples, plots and report of a run go: those of a whole run are the project's, others lie aside."""
WIDTH = 140
"""Columns without a terminal."""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Options as given."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few sizes and samples, under three minutes")
    parser.add_argument("--sizes", type=_sizes, help="workloads preloaded, separated by commas")
    parser.add_argument("--backends", type=_names(("nftables", "legacy", "nft")), help="back-ends, by commas")
    parser.add_argument("--modes", type=_names(("dual", "v4", "v6")), help="families, by commas")
    parser.add_argument(
        "--nodes", action="store_true", help="measure only what other nodes cost; --sizes are then numbers of nodes"
    )
    parser.add_argument("--policy", action="store_true", help="measure only what policies cost")
    parser.add_argument("--no-comparators", action="store_true", help="measure felixpy alone")
    parser.add_argument(
        "--external", metavar="CMD", help="measure another agent, too, by the protocol of bench/README.md"
    )
    parser.add_argument("--no-report", action="store_true", help="write the samples only, no plots and no report")
    parser.add_argument(
        "--from-json", action="store_true", help="measure nothing; write plots and report from the samples"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the samples go")
    options = parser.parse_args(argv)
    options.place = ASIDE if _is_partial(options) else TRACKED
    options.json = options.json or options.place / "performance" / "results.json"
    return options


def _is_partial(options: argparse.Namespace) -> bool:
    parts = (options.quick, options.sizes, options.backends, options.modes, options.no_comparators, options.external)
    return options.nodes or options.policy or any(parts)


def _sizes(text: str) -> list[int]:
    sizes = [int(part.replace("_", "")) for part in text.split(",")]
    if not all(1 < size <= plan.SIZES[-1] for size in sizes):
        raise argparse.ArgumentTypeError(f"sizes are between 2 and {plan.SIZES[-1]:,}")
    return sizes


def _names(allowed: tuple[str, ...]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(allowed):
            raise argparse.ArgumentTypeError(f"{min(unknown)!r} is none of {', '.join(allowed)}")
        return names

    return parse


def _nodes(options: argparse.Namespace) -> Sequence[int]:
    """With how many other nodes is measured what those cost: in a whole run, and where it is asked for."""
    if options.nodes:
        return options.sizes or (across.QUICK_SIZES if options.quick else across.SIZES)
    return () if _is_partial(options) else across.SIZES


def _policy(options: argparse.Namespace) -> Sequence[int]:
    """With how many workloads is measured what policies cost: in a run of everything, and where it is asked for."""
    if options.policy:
        return options.sizes or (policy.QUICK_SIZES if options.quick else policy.SIZES)
    others = (options.sizes, options.backends, options.modes, options.no_comparators, options.external)
    if options.nodes or any(others):
        return ()
    return policy.QUICK_SIZES if options.quick else policy.SIZES


def cells(options: argparse.Namespace) -> list[tuple[Cell, Effort]]:
    """What is to be measured, in order."""
    if options.nodes or options.policy:
        return []
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
        planned = [(cell, replace(effort, comparators=False)) for cell, effort in planned]
    return plan.ordered(planned)


async def run(
    planned: list[tuple[Cell, Effort]],
    results: Results,
    console: Console,
    external: str = "",
    nodes: Sequence[int] = (),
    policed: Sequence[int] = (),
    *,
    quick: bool = False,
    backends: Sequence[str] = (),
) -> None:
    """Measure all cells, one network per mode, then so many other nodes, and policies with so many workloads.

    ``external`` is another agent's command, ``backends`` are those that policies are measured with: all, if none is
    named.

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
                        say = partial(progress.step, number, cell)
                        await measure(world, rivals, cell, effort, results, say)
                        if external:
                            say("external command")
                            await _measure_external(world, external, cell, effort, results)
                        show(console, results, cell)
                finally:
                    await rivals.close()
        if nodes:
            await across.measure(results, progress.say, nodes, quick=quick)
            show_nodes(console, results)
        if policed:
            await policy.measure(results, progress.say, backends or policy.usual(quick=quick), policed, quick=quick)
            show_policy(console, results)
    finally:
        progress.close()


async def _measure_external(world: World, command: str, cell: Cell, effort: Effort, results: Results) -> None:
    try:
        await measure_external(world, command, cell, effort, results)
    except (LabError, TimeoutError) as error:
        results.remark(f"{cell}: the external command was not measured to its end: {error}")


async def _interruptible(options: argparse.Namespace, results: Results, console: Console) -> None:
    """Take everything away on SIGTERM and Ctrl-C, too."""
    work = run(
        cells(options), results, console, options.external or "", _nodes(options), _policy(options),
        quick=options.quick, backends=options.backends or (),
    )  # fmt: skip
    task = asyncio.create_task(work)
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, task.cancel)
    await task


def _publish(results: Results, place: Path, console: Console) -> None:
    """Plots and report."""
    page = place / "performance.md"
    plots: list[str] = []
    try:
        plots = draw(results, place / "performance")
    except NoPlots as error:
        results.remark(str(error))
    report.write(results, page, plots, report.command_of(bool(results.machine.get("quick"))))
    console.print(f"report: {page}")


def _measure(options: argparse.Namespace, console: Console) -> tuple[Results, int]:
    """Results, and the exit code."""
    results = Results(machine.describe() | {"quick": options.quick})
    begin = time.monotonic()
    code = 0
    try:
        asyncio.run(_interruptible(options, results, console))
    except LabError as error:
        console.print(f"bench: {error}")
        results.remark(f"the run ended early: {error}")
        code = 1
    results.machine["seconds"] = round(time.monotonic() - begin, 1)
    results.write(options.json)
    console.print(f"samples: {options.json}")
    return load(options.json), code  # so that plots and report are the same when they are made again


def main() -> int:
    options = arguments()
    console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    if options.from_json:
        _publish(load(options.json), options.place, console)
        return 0
    if os.geteuid() != 0:
        console.print("bench: network namespaces need root; run it as root, or as `make bench` with sudo")
        return 1
    try:
        results, code = _measure(options, console)
    except asyncio.CancelledError:
        console.print("bench: interrupted; nothing was left behind and nothing was written")
        return 1
    if not options.no_report:
        _publish(results, options.place, console)
    for remark in results.remarks:
        console.print(f"note: {remark}")
    return code


if __name__ == "__main__":
    sys.exit(main())
