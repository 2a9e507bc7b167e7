"""When the kernel is compared with what is believed: what notifications put in doubt, and everything below them.

A comparison of everything runs in slices beside the updates. It is asked for where something was put in doubt, and
comes by itself after the interval of the settings. Must never write: what differs is dirty, and the loop writes it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from felixpy.agent import collector
from felixpy.agent.configuration import Configuration
from felixpy.dataplane.apply import Dataplane
from felixpy.dataplane.watch import Doubts
from felixpy.slices import giving_way
from felixpy.standing import Standing

log = structlog.get_logger("felixpy")

UNREAD = "the kernel cannot be read; will be tried again each second"
RETRY_SECONDS = 1.0
"""Between two tries to read the kernel."""


class Comparisons:
    """The clock of comparisons. ``calm`` is set while the loop has nothing to do; ``compared`` wakes it."""

    def __init__(
        self,
        configuration: Configuration,
        dataplane: Dataplane,
        standing: Standing,
        *,
        calm: asyncio.Event,
        compared: Callable[[], None],
    ) -> None:
        self._configuration = configuration
        self._dataplane = dataplane
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

    async def settle(self, doubts: Doubts) -> None:
        """Read again what notifications put in doubt: little at once, everything in the background."""
        self._configuration.host_due |= doubts.host or doubts.everything
        for interface in doubts.interfaces:
            try:
                await self._dataplane.routing.read_routes(interface)
            except OSError as error:
                log.error("routes of an interface cannot be read", interface=interface, reason=str(error))
                self.ask()
        if doubts.sources:
            try:
                await self._dataplane.routing.read_sources()
            except OSError as error:
                log.error("routes cannot be read after their source address changed", reason=str(error))
                self.ask()
        for family, (part, changed_by) in doubts.filters.items():
            if reason := await self._dataplane.read_filter(family, changed_by, part):
                self._standing.fails(f"packet filter of {family} cannot be read", reason, family=str(family))
                self.ask()
        if doubts.everything:
            log.warning("notifications were lost; everything is read again")
            self._dataplane.doubt()
            self.ask()

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
