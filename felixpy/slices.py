"""Long work in small slices, so that an update never waits for it.

Invariant: between two slices every other task of the loop has its turn.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

T = TypeVar("T")

SLICE_SECONDS = 0.0003


async def in_slices(items: Iterable[T]) -> AsyncIterator[T]:
    """The items, with a pause for others whenever the caller has worked on them for ``SLICE_SECONDS``."""
    until = time.perf_counter() + SLICE_SECONDS
    for item in items:
        yield item
        if time.perf_counter() >= until:
            await asyncio.sleep(0)
            until = time.perf_counter() + SLICE_SECONDS
