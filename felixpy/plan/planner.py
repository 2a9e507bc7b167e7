"""Plans of a running agent: one at a time, each in a copy of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from felixpy.plan.beside import BesideError, beside

if TYPE_CHECKING:
    from felixpy.plan.outlook import Subject

MOST_WAITING = 8


class Planner:
    """Answers what changes would do."""

    def __init__(self, agent: Subject) -> None:
        self._agent = agent
        self._busy = asyncio.Lock()
        self._waiting = 0

    async def plan(self, data: bytes) -> bytes:
        """What a change would do, as JSON; see ``outlook``.

        Raises:
            BesideError: there is no answer, for a reason that is told.
        """
        if self._waiting >= MOST_WAITING:
            raise BesideError(f"the agent is asked for {self._waiting} plans already; ask again when they are answered")
        self._waiting += 1
        try:
            async with self._busy:
                return await beside(lambda: _outlook(self._agent, data))
        finally:
            self._waiting -= 1


def _outlook(agent: Subject, data: bytes) -> bytes:
    """In the copy, which loads what plans need: no agent has to at its start."""
    from felixpy.plan.outlook import outlook

    return outlook(agent, data)
