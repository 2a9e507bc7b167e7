"""Measures another agent on the same work, by the adapter protocol of ``bench/README.md``.

The command runs in the measured node's namespaces, is told of objects on its standard input, and is watched in the
kernel only. Invariant: it ends with its scenario, and what it leaves in the kernel is reported.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterable

from bench.plan import Effort
from bench.results import EXTERNAL, Cell, Results
from bench.scenarios import BURST, PATIENCE_S, PAUSE_S, PREPARE, ms
from bench.workloads import SPARE, SPARES, Workload
from bench.world import World
from felixpy.demo.agent import environment
from felixpy.demo.host import LabError
from felixpy.model.net import Family
from felixpy.mqtt import topics

END_S = 30.0
QUIET_S = 0.05
"""A change has settled when the kernel has told nothing for so long."""


def snapshot_lines(content: dict[str, bytes], families: Iterable[Family], node: str) -> list[bytes]:
    """What an adapter is told first: the node, every object, and that this is all."""
    hello = {"op": "hello", "node": node, "families": [family.version for family in families]}
    lines = [json.dumps(hello).encode()]
    lines += [put_line(payload) for topic, payload in content.items() if topics.key_of(topic) is not None]
    return [*lines, b'{"op":"complete"}']


def put_line(payload: bytes) -> bytes:
    """An object is there, or has changed."""
    return b'{"op":"put","object":' + payload + b"}"


def delete_line(one: Workload) -> bytes:
    """A workload endpoint is gone."""
    return json.dumps({"op": "delete", "kind": "WorkloadEndpoint", "namespace": "default", "name": one.name}).encode()


def routes(one: Workload, families: Iterable[Family], *, present: bool) -> set[str]:
    """What the kernel must have told."""
    return {f"{'+' if present else '-'}route {one.address(family)}" for family in families}


class Adapter:
    """The running command."""

    def __init__(self, world: World, process: asyncio.subprocess.Process, cell: Cell, results: Results) -> None:
        self._world = world
        self._process = process
        self._cell = cell
        self._results = results

    def add(self, scenario: str, metric: str, value: float) -> None:
        if scenario != PREPARE:
            self._results.add(self._cell, scenario, metric, value, subject=EXTERNAL)

    async def tell(self, lines: Iterable[bytes]) -> tuple[int, int]:
        """Write lines; returns the monotonic nanoseconds before the first and after the last."""
        assert self._process.stdin
        begin = time.monotonic_ns()
        self._process.stdin.write(b"\n".join(lines) + b"\n")
        written = time.monotonic_ns()
        try:
            await self._process.stdin.drain()
        except ConnectionError:
            raise LabError(
                "the external command ended; run it alone and write its protocol by hand to see why"
            ) from None
        return begin, written

    async def snapshot(self) -> None:
        """Tell of everything, and wait for the crowd's routes."""
        families = self._world.families
        self._world.node_seen.clear(deferred=True)
        begin, _ = await self.tell(snapshot_lines(self._world.retained, families, "node1"))
        await self._world.node_seen.quiet(1.0)
        self._world.node_seen.settle()
        crowd = map(Workload, range(self._cell.size))
        expected = {word for one in crowd for word in routes(one, families, present=True)}
        last = await self._world.node_seen.wait(expected, PATIENCE_S)
        self.add("snapshot", "last workload visible", ms(last, begin))

    async def change(self, scenario: str, line: bytes, expected: set[str]) -> None:
        seen = self._world.node_seen
        seen.clear()
        begin, _ = await self.tell([line])
        visible = await seen.wait(expected, PATIENCE_S)
        await seen.quiet(QUIET_S)
        self.add(scenario, "visible", ms(visible, begin))
        self.add(scenario, "settled", ms(seen.last_at, begin))
        await asyncio.sleep(PAUSE_S)

    async def burst(self, crowd: list[Workload], *, present: bool) -> None:
        families = self._world.families
        self._world.node_seen.clear()
        lines = [put_line(one.payload(families)) if present else delete_line(one) for one in crowd]
        _, written = await self.tell(lines)
        expected = {word for one in crowd for word in routes(one, families, present=present)}
        visible = await self._world.node_seen.wait(expected, PATIENCE_S)
        name = "burst of 100" if present else "burst of 100 deleted"
        self.add(name, "last visible after the last publish", ms(visible, written))
        await self._world.node_seen.quiet(QUIET_S)


@contextlib.asynccontextmanager
async def _running(world: World, command: str, cell: Cell, results: Results) -> AsyncIterator[Adapter]:
    log = world.lab.folder / "external.log"
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", "--"),
            *world.node.enter("sh", "-c", f"exec {command}"),
            stdin=asyncio.subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=environment({}),
        )
    try:
        yield Adapter(world, process, cell, results)
    finally:
        assert process.stdin
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), END_S)
        except TimeoutError:
            process.kill()
            await process.wait()
            results.remark(f"{cell}: the external command did not end {END_S:.0f} s after its input; it was killed")


async def measure(world: World, command: str, cell: Cell, effort: Effort, results: Results) -> None:
    """Everything that can be measured without the agent's word.

    Raises:
        LabError: the command ended.
    """
    families = world.families
    async with _running(world, command, cell, results) as adapter:
        await adapter.snapshot()
        for number in range(effort.changes):
            one = Workload(SPARE + number % (SPARES - 2))
            put = put_line(one.payload(families))
            await adapter.change("add one", put, routes(one, families, present=True))
            await adapter.change("delete one", delete_line(one), routes(one, families, present=False))
        one = Workload(SPARE)
        await adapter.change(PREPARE, put_line(one.payload(families)), routes(one, families, present=True))
        for number in range(effort.small):
            old, new = one._replace(shift=number % 2), one._replace(shift=(number + 1) % 2)
            expected = routes(new, families, present=True) | routes(old, families, present=False)
            await adapter.change("change address", put_line(new.payload(families)), expected)
        await adapter.change(PREPARE, delete_line(one), routes(new, families, present=False))
        crowd = [Workload(SPARE + number) for number in range(BURST)]
        for _ in range(effort.bursts):
            await adapter.burst(crowd, present=True)
            await adapter.burst(crowd, present=False)
    left = await world.node.run("ip", "route", "show", "proto", "all")
    count = sum(line.startswith("10.64.") for line in left.splitlines())
    if count:
        results.remark(f"{cell}: the external command left {count} IPv4 routes behind; what follows may be disturbed")
