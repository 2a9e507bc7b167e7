"""Bounds what the log takes: so many lines of an event at once, then a few a second, and how many were left out.

    5,000 × warning "problem"  →  50 lines, then one a second · "lines left out" of=problem level=warning count=4950

Invariant: no line goes without being counted; the count is told once an interval, at the level of what was left out,
and kept for the metrics. Memory does not grow with what is logged. Must never hold back a critical event.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog
from msgspec import Struct

BURST = 50
"""Lines of one event at once: enough to see a pattern, few enough to read."""
LINES_PER_SECOND = 1.0
INTERVAL_SECONDS = 10.0
MAX_EVENTS = 1000
"""Pairs of level and event that are told apart; further ones share the allowance of their level."""
OTHERS = "others"
LEFT_OUT = "lines left out"


class _Bucket(Struct):
    lines: float
    filled_at: float
    left_out: int = 0


class LogLimit:
    """A structlog processor with a token bucket per level and event. ``dropped`` and ``errors`` are for the metrics."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.is_on = True
        """Off leaves nothing out: who asks for Debug wants to see everything."""
        self.dropped = 0
        """Lines left out so far."""
        self.errors = 0
        """Lines that standard error did not take."""
        self._clock = clock
        self._buckets: dict[tuple[str, str], _Bucket] = {}

    def __call__(self, logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        """Let an event through, or drop and count it."""
        if not self.is_on or method == "critical" or event.get("event") == LEFT_OUT:
            return event
        bucket, now = self._bucket(method, str(event.get("event"))), self._clock()
        bucket.lines = min(bucket.lines + (now - bucket.filled_at) * LINES_PER_SECOND, BURST)
        bucket.filled_at = now
        if bucket.lines < 1:
            bucket.left_out += 1
            self.dropped += 1
            raise structlog.DropEvent
        bucket.lines -= 1
        return event

    def _bucket(self, method: str, event: str) -> _Bucket:
        key = "error" if method == "exception" else method, event
        if key not in self._buckets:
            if len(self._buckets) >= MAX_EVENTS:
                key = key[0], OTHERS
            self._buckets.setdefault(key, _Bucket(BURST, self._clock()))
        return self._buckets[key]

    def tell(self) -> None:
        """Say how many lines of which event were left out since it was last said."""
        log = structlog.get_logger("felixpy")
        for (method, event), bucket in list(self._buckets.items()):
            if bucket.left_out:
                count, bucket.left_out = bucket.left_out, 0
                getattr(log, method)(
                    LEFT_OUT,
                    of=event,
                    count=count,
                    next="LogSeverityScreen=Debug leaves none out; see `felixpy status`",
                )


async def tell_forever(limit: LogLimit) -> None:
    """Say once an interval what was left out."""
    while True:
        await asyncio.sleep(INTERVAL_SECONDS)
        limit.tell()
