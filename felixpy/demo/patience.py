"""How long the lab and the tests wait for what has to come: by the machine's work, not by the clock.

Beside many busy processes everything takes longer by as much as the processors are shared. So a second of patience is
over when a process that had one processor to itself would have had a second of it.
Invariant: on a machine that does nothing else it is a second of the clock. Nothing is asserted about how long a thing
took: patience only ends what would hang.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

LOOK_SECONDS = 1.0
"""The most that counts between two looks: who was not given the processor in between could not see what had come."""
POLL_SECONDS = 0.02
MOST_BUSY = 40
"""Processes per processor beyond which nothing waits longer: whoever hangs is to end some day."""

_LOAD = Path("/proc/loadavg")


def share() -> float:
    """The part of a processor that a process gets right now, at most 1: processors per process that wants one."""
    running = int(_LOAD.read_text().split()[3].partition("/")[0])
    return min(1.0, max(1 / MOST_BUSY, len(os.sched_getaffinity(0)) / max(1, running)))


def stretched(seconds: float) -> float:
    """``seconds`` for what is given one fixed time-out: more on a busy machine, by its last minute or by now."""
    processors = len(os.sched_getaffinity(0))
    load = float(_LOAD.read_text().split()[0])
    return seconds * min(MOST_BUSY, max(1.0, load / processors, 1 / share()))


class Patience:
    """So many seconds to wait for something, from its making on; ``over`` is to be asked again and again."""

    def __init__(self, seconds: float, look_seconds: float = LOOK_SECONDS) -> None:
        self.seconds = seconds
        self._most = look_seconds
        self._left = seconds
        self._began = self._looked = time.monotonic()

    def over(self) -> bool:
        now = time.monotonic()
        self._left -= min(now - self._looked, self._most) * share()
        self._looked = now
        return self._left <= 0

    def __str__(self) -> str:
        return f"{self.seconds:g} s of work ({time.monotonic() - self._began:.1f} s by the clock)"


def wait_until(holds: Callable[[], object], why: Callable[[], object] = str, seconds: float = 30.0) -> None:
    """Wait until something holds.

    Raises:
        TimeoutError: it does not; ``why`` says what is there instead.
    """
    patience = Patience(seconds)
    while not holds():
        if patience.over():
            raise TimeoutError(f"not within {patience}: {why()}")
        time.sleep(POLL_SECONDS)


async def until(holds: Callable[[], object], why: Callable[[], object] = str, seconds: float = 30.0) -> None:
    """The same in an event loop."""
    patience = Patience(seconds)
    while not holds():
        if patience.over():
            raise TimeoutError(f"not within {patience}: {why()}")
        await asyncio.sleep(POLL_SECONDS)


@contextlib.asynccontextmanager
async def limit(seconds: float) -> AsyncIterator[None]:
    """As ``asyncio.timeout``, with patience.

    Raises:
        TimeoutError: the block was not done in time.
    """
    patience, loop = Patience(seconds), asyncio.get_running_loop()

    async def watch(running: asyncio.Timeout) -> None:
        while not patience.over():  # noqa: ASYNC110 - what is waited for is time
            await asyncio.sleep(0.1)
        running.reschedule(loop.time())

    async with asyncio.timeout(None) as running:
        watching = asyncio.create_task(watch(running))
        try:
            yield
        finally:
            watching.cancel()
