"""What other back-ends and families left on this node: looked for beside the loop, since the tools take seconds.

Invariant: one search at a time, and none while the back-end changes; the rules and sets in force are not touched by it.
What resists is said once, and tried again ever later.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from felixpy.config import Settings
from felixpy.dataplane.backend import Backend
from felixpy.dataplane.backends import remove_leftovers
from felixpy.model.net import Family
from felixpy.sources.ending import end
from felixpy.standing import Standing

REMAIN = "leftovers of another back-end or family remain"
FIRST_SECONDS, LAST_SECONDS = 10.0, 3600.0
"""Between two tries."""


class Leftovers:
    """``on_end`` is told of each search that is over, with the error of one that failed."""

    def __init__(self, on_end: Callable[[asyncio.Task[None]], None]) -> None:
        self._on_end = on_end
        self._standing = Standing(level="warning")
        self._search: asyncio.Task[None] | None = None
        self.expect()

    def expect(self) -> None:
        """There may be some now: of a back-end that was in use until now."""
        self.due = True
        self._at = 0.0
        self._pause = FIRST_SECONDS

    def look(self, backend: Backend, families: Iterable[Family], settings: Settings) -> None:
        """Begin to remove what does not belong to this back-end and these families, if that is due."""
        if self._search is not None or not self.due or time.monotonic() < self._at:
            return
        self._search = asyncio.create_task(self._remove(backend, tuple(families), settings))
        self._search.add_done_callback(self._over)

    async def wait(self) -> None:
        """Until no search runs: the next back-end may be the one of which it removes everything."""
        if self._search is not None:
            await asyncio.wait((self._search,))

    async def stop(self, patience_seconds: float) -> None:
        """End a search where it is."""
        if self._search is not None:
            await end((self._search,), patience_seconds)

    def _over(self, search: asyncio.Task[None]) -> None:
        self._search = None
        self._on_end(search)

    async def _remove(self, backend: Backend, families: tuple[Family, ...], settings: Settings) -> None:
        problems = await remove_leftovers(backend, families, settings)
        self.due = bool(problems)
        if not problems:
            self._standing.works(REMAIN)
            return
        self._standing.fails(REMAIN, "; ".join(problems))
        self._at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LAST_SECONDS)
