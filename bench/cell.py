"""Measures one cell: starts the agent cold and warm, runs the scenarios, and leaves an empty kernel.

Invariant: a scenario that fails costs its own figures only, and says so in the report.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench import drift, expect, floor, scenarios, turns
from bench.comparators import FOR_BACKEND
from bench.marks import written
from bench.plan import Effort
from bench.results import Cell, Results
from bench.rivals import Rivals
from bench.scenarios import Run, ms
from bench.subject import BACKENDS, Subject
from bench.workloads import Workload
from bench.world import World
from felixpy.demo.host import LabError

BUSY_SAMPLE_S = 0.3
NOISY_BUSY = 0.10
"""A cell before which others use more than this share of all processors is marked noisy."""

Scenario = Callable[[Run], Awaitable[None]]
Progress = Callable[[str], None]

# The first is the only one in which comparators take their turns.
SCENARIOS: dict[str, Scenario] = {
    "add and delete": scenarios.add_and_delete,
    "change address": scenarios.change_address,
    "burst": scenarios.burst,
    "churn": scenarios.churn,
    "add in a row": scenarios.add_in_a_row,  # not right after the comparators, whose clean-up goes on for a while
    "floor": floor.floor,
    "nat": scenarios.toggle_nat,
    "block": scenarios.move_block,
    "resync": scenarios.resync,
    "drift": drift.drift,
    "first packet": scenarios.first_packet,
    "forwarding": scenarios.forwarding,
    "idle": scenarios.idle,
    "in turn": turns.in_turn,
}


async def measure(
    world: World, rivals: Rivals, cell: Cell, effort: Effort, results: Results, progress: Progress
) -> None:
    """Measure everything of one cell.

    Raises:
        LabError: the agent does not start, or the network cannot be made.
    """
    progress("interfaces and stream")
    await world.grow(cell.size)
    await _note_noise(cell, results)
    subject = await _cold_starts(world, cell, effort, results, progress)
    run = Run(cell, effort, world, subject, rivals, results)
    try:
        if effort.comparators:
            run.comparators = await _prepare_comparators(run, progress)
        else:
            results.remark(f"{cell}: measured without comparators")
        for name, scenario in SCENARIOS.items():
            progress(name)
            try:
                await scenario(run)
            except (TimeoutError, LabError, RuntimeError) as error:
                results.remark(f"{cell}: {name} was not measured to its end: {error}")
                if not subject.agent.running:
                    raise LabError(f"the agent ended during {name}: {subject.agent.tail()}") from error
            await _clear_comparators(run)  # what forwards without rules must do so
    finally:
        await subject.stop()
        await _clean(world, cell)


async def _clean(world: World, cell: Cell) -> None:
    await world.lab.agents["node1"].command(
        world.node, world.lab.agent_environment("node1", BACKENDS[cell.backend]), "cleanup"
    )


async def _clear_comparators(run: Run) -> None:
    for name in run.comparators:
        await run.rivals.clear(name)
    run.comparators = ()


async def _prepare_comparators(run: Run, progress: Progress) -> tuple[str, ...]:
    ready = []
    for name in FOR_BACKEND[run.cell.backend]:
        progress(f"load {name}")
        begin = time.monotonic()
        try:
            await run.rivals.prepare(name, run.cell.size)
        except LabError as error:
            run.results.remark(f"{name} is left out: {error}")
            continue
        run.add("load", "duration", (time.monotonic() - begin) * 1000, subject=name)
        ready.append(name)
    return tuple(ready)


async def _cold_starts(world: World, cell: Cell, effort: Effort, results: Results, progress: Progress) -> Subject:
    """Start against an empty kernel, then against a correct one; the last one stays."""
    for number in range(effort.cold_starts):
        progress("cold start, empty kernel")
        subject = await _start(world, cell, results, "cold start, empty kernel")
        await subject.stop()
        progress("cold start, correct kernel")
        subject = await _start(world, cell, results, "cold start, correct kernel")
        if number < effort.cold_starts - 1:
            await subject.stop()
            await _clean(world, cell)
    return subject


async def _start(world: World, cell: Cell, results: Results, scenario: str) -> Subject:
    seen = world.node_seen
    seen.clear(deferred=True)
    subject = await Subject.start(world, cell.backend)
    at = await subject.ready()
    results.add(cell, scenario, "in sync", ms(at, subject.started_at))
    await seen.quiet(0.3)
    seen.settle()
    marks = subject.start_marks + subject.marks.read()
    costs = written(marks)
    usage = subject.usage()
    results.add(cell, scenario, "cpu", usage.cpu_s, unit="s")
    results.add(cell, scenario, "peak memory", usage.peak_mib, unit="MiB")
    results.add(cell, scenario, "messages", costs.messages, unit="count")
    results.add(cell, scenario, "bytes", costs.bytes, unit="count")
    results.add(cell, scenario, "processes", costs.processes, unit="count")
    results.add(cell, scenario, "changes seen", len(seen.seen), unit="count")
    if first := next((mark.at for mark in marks if mark.stage == "received"), 0):
        results.add(cell, scenario, "first message received", ms(first, subject.started_at))
    if "empty" in scenario:
        _note_last(world, cell, results, scenario, subject)
    if seen.lost:
        results.remark(f"{cell}: the observer lost notifications during {scenario}")
    return subject


def _note_last(world: World, cell: Cell, results: Results, scenario: str, subject: Subject) -> None:
    """When the last of the crowd's routes, neighbours and (nftables) elements was visible."""
    last = 0
    for number in range(cell.size):
        one = Workload(number)
        wanted = expect.routing(one, world.families)
        if cell.backend == "nftables":
            wanted |= expect.filtering(one, world.families, cell.backend)
        for word in wanted:
            at = world.node_seen.at(word)
            if at is None:
                results.remark(f"{cell}: {word!r} was never seen during {scenario}")
                return
            last = max(last, at)
    results.add(cell, scenario, "last workload visible", ms(last, subject.started_at))


async def _note_noise(cell: Cell, results: Results) -> None:
    """How busy the machine is while the benchmark does nothing."""
    busy_before, all_before = _processor_time()
    await asyncio.sleep(BUSY_SAMPLE_S)
    busy, every = _processor_time()
    share = (busy - busy_before) / max(1, every - all_before)
    results.add(cell, "machine", "used by others", share * 100, unit="%")
    if share > NOISY_BUSY:
        results.remark(f"{cell}: noisy, others used {share:.0%} of the processors before it was measured")


def _processor_time() -> tuple[int, int]:
    """(busy, all) ticks of all processors so far (proc(5))."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(fields) - fields[3] - fields[4], sum(fields)
