"""The harness's side of the comparators: one child process in the node without an agent."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, NamedTuple

from bench.world import World
from felixpy.demo.agent import environment
from felixpy.demo.host import LabError


class Change(NamedTuple):
    """One change by a comparator: begin and end on the monotonic clock in nanoseconds, processes started."""

    begin: int
    end: int
    processes: int


class Rivals:
    """Asks the comparators' process. Start with ``Rivals.start``."""

    def __init__(self, world: World, process: asyncio.subprocess.Process) -> None:
        self._world = world
        self._process = process

    @classmethod
    async def start(cls, world: World) -> Rivals:
        process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", "--"),
            *world.other.enter(sys.executable, "-m", "bench.comparators"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment({}),
        )
        return cls(world, process)

    async def close(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def _ask(self, operation: str, name: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        request = {"op": operation, "name": name, **arguments}
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        line = await self._process.stdout.readline()
        if not line:
            raise LabError(
                f"the comparators' process ended while it did {operation} of {name}; run it alone to see why"
            )
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise LabError(f"comparator {name} cannot {operation}: {answer['failed']}")
        return answer

    async def prepare(self, name: str, count: int) -> None:
        """Load a crowd.

        Raises:
            LabError: the technique is not available here; with the reason.
        """
        versions = [family.version for family in self._world.families]
        await self._ask("prepare", name, count=count, versions=versions)

    async def change(self, operation: str, name: str, number: int) -> Change:
        """``add`` or ``delete`` one workload."""
        return Change(**await self._ask(operation, name, number=number))

    async def clear(self, name: str) -> None:
        await self._ask("clear", name)
