"""Measures how late the event loop is: the time that everything else has to wait at worst.

One sleep every five seconds, because each wakes an idle processor for 0.3 ms; must never do work of its own.
"""

from __future__ import annotations

import asyncio
import time

from felixpy.observe.metrics import Metrics

INTERVAL_SECONDS = 5.0


async def measure_lag(metrics: Metrics) -> None:
    """Sleep and look at how much longer it took, for ever."""
    while True:
        expected = time.monotonic() + INTERVAL_SECONDS
        await asyncio.sleep(INTERVAL_SECONDS)
        metrics.loop_lag_seconds.observe(max(time.monotonic() - expected, 0.0))
