"""Long work in small slices, so that an update never waits for it.

Invariant: between two slices every other task of the loop has its turn, and work in the background (``giving_way``)
stands still from the moment an update arrives until the kernel has it, for ``LONGEST_WAIT_SECONDS`` at most, so that a
flood cannot keep a comparison from ever ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sized
from contextvars import ContextVar
from itertools import islice
from typing import TypeVar

T = TypeVar("T")

SLICE_SECONDS = 0.0003
LONGEST_WAIT_SECONDS = 0.02

_calm: ContextVar[asyncio.Event | None] = ContextVar("calm", default=None)


def giving_way(calm: asyncio.Event) -> None:
    """The current task is work in the background: between its slices it waits until ``calm`` is set."""
    _calm.set(calm)


async def pause() -> None:
    """Let every other task have its turn; in the background, let what is urgent end first."""
    await asyncio.sleep(0)
    calm = _calm.get()
    if calm is not None and not calm.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_WAIT_SECONDS):
                await calm.wait()


def emptied(container: Sized, take: Callable[[], T]) -> Iterator[T]:
    """What ``take`` takes out of a container until it is empty: freed at once, 10,000 items hold the loop for 4 ms."""
    while container:
        yield take()


async def in_slices(items: Iterable[T], at_once: int = 16) -> AsyncIterator[list[T]]:
    """The items, some at once, with a pause for others whenever the caller has worked for ``SLICE_SECONDS``.

    A list of ``at_once`` items should cost a small part of a slice: the clock is looked at after each.
    """
    iterator = iter(items)
    until = time.perf_counter() + SLICE_SECONDS
    while some := list(islice(iterator, at_once)):
        yield some
        if time.perf_counter() >= until:
            await pause()
            until = time.perf_counter() + SLICE_SECONDS
