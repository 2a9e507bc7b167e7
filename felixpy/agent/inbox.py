"""Updates that wait to be taken: of each key the latest word, in the order in which they came.

Invariant: memory is bounded by the number of keys, and that by the limit of objects. It must never look at what an
update says.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import islice

from felixpy.model.resources import ResourceKey, Update
from felixpy.sources.limit import ObjectLimit

BURST_UPDATES = 8
"""So many updates at once are a burst, of which more is being read; an apply costs as much as a few dozen of them."""

BURST_SECONDS = 0.01
"""For so long the updates of a burst are collected."""


class Inbox:
    """``len`` is how many wait. ``limit`` says which are left out."""

    def __init__(self, most: int, is_known: Callable[[ResourceKey], bool]) -> None:
        """``most``: objects that are taken at all; ``is_known``: whether an endpoint was taken and is there still."""
        self.limit = ObjectLimit(most, self._has_endpoint)
        self._is_known = is_known
        self._waiting: dict[ResourceKey, Update] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, update: Update) -> bool:
        """Let an update wait instead of an earlier one of its key; False if the limit leaves it out."""
        if not self.limit.takes(update):
            return False
        self._waiting.pop(update.key, None)
        self._waiting[update.key] = update
        return True

    def _has_endpoint(self, key: ResourceKey) -> bool:
        """Whether the latest word of an endpoint is that there is one, valid or not."""
        waiting = self._waiting.get(key)
        if waiting is not None:
            return waiting.resource is not None or bool(waiting.error)
        return self._is_known(key)

    def take(self, most: int | None = None) -> list[Update]:
        """The first ones, which wait no more."""
        taken = [self._waiting.pop(key) for key in list(islice(self._waiting, most))]
        if not self._waiting:
            self._waiting = {}  # an emptied dictionary keeps its size, and to walk over it costs that
        return taken

    async def collect(self) -> None:
        """While the source has more of a burst, let it read: one apply for all, and what is only told after it."""
        until, had = time.monotonic() + BURST_SECONDS, 0
        while len(self._waiting) >= had + BURST_UPDATES and time.monotonic() < until:
            had = len(self._waiting)
            await asyncio.sleep(0)  # the event loop looks at its sockets,
            await asyncio.sleep(0)  # and runs what they are for
