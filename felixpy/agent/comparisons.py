"""When everything in the kernel is compared with what is believed: the net below the notifications.

A comparison runs in slices beside the updates. It is asked for where something was put in doubt, and comes by itself
after the interval of the settings. Must never write: what differs becomes dirty, and the loop writes it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from felixpy.agent import collector
from felixpy.agent.configuration import Configuration
from felixpy.slices import giving_way
from felixpy.standing import Standing

UNREAD = "the kernel cannot be read; will be tried again each second"
RETRY_SECONDS = 1.0
"""Between two tries to read the kernel."""


class Comparisons:
    """The clock of comparisons. ``calm`` is set while the loop has nothing to do; ``compared`` wakes it."""

    def __init__(
        self, configuration: Configuration, standing: Standing, calm: asyncio.Event, compared: Callable[[], None]
    ) -> None:
        self._configuration = configuration
        self._standing = standing
        self._calm = calm
        self._compared = compared
        self._asked = asyncio.Event()
        self._last_at = 0.0
        self._next: asyncio.Timeout | None = None

    @property
    def is_asked(self) -> bool:
        """Whether one was asked for that has not begun."""
        return self._asked.is_set()

    def ask(self) -> None:
        """Compare as soon as possible."""
        self._asked.set()

    def reschedule(self) -> None:
        """Let the present interval count, from the last comparison on; settings may change it at any time."""
        if self._next is not None and not self._next.expired():
            interval = self._configuration.resync_interval()
            self._next.reschedule(None if interval is None else self._last_at + interval)

    async def run_forever(self) -> None:
        """Compare when asked and when the interval is over, until cancelled."""
        giving_way(self._calm)
        while True:
            await self._until_due()
            self._asked.clear()
            try:
                whole = await self._configuration.read_kernel()
                self._standing.works(UNREAD)
            except OSError as error:
                self._standing.fails(UNREAD, str(error))
                whole = False
            if not whole:
                await asyncio.sleep(RETRY_SECONDS)
                self._asked.set()
            self._compared()
            collector.tidy()
            collector.give_back()

    async def _until_due(self) -> None:
        self._last_at = asyncio.get_running_loop().time()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as self._next:
                self.reschedule()
                await self._asked.wait()
        self._next = None
