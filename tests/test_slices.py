"""Long work in slices: who goes first."""

from __future__ import annotations

import asyncio
import time

from felixpy.slices import LONGEST_WAIT_SECONDS, SLICE_SECONDS, giving_way, in_slices


async def work(count: int, done: list[float], calm: asyncio.Event | None = None) -> None:
    """Items of which each takes a slice."""
    if calm is not None:
        giving_way(calm)
    async for _ in in_slices(range(count), 1):
        end = time.perf_counter() + SLICE_SECONDS
        while time.perf_counter() < end:
            pass
        done.append(time.perf_counter())


def test_others_have_their_turn_between_two_slices() -> None:
    async def check() -> list[float]:
        done: list[float] = []
        task = asyncio.create_task(work(20, done))
        turns = 0
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        assert turns >= 20
        return done

    assert len(asyncio.run(check())) == 20


def test_work_in_the_background_stands_still_until_what_is_urgent_is_over() -> None:
    async def check() -> None:
        calm, done = asyncio.Event(), list[float]()
        calm.set()
        task = asyncio.create_task(work(50, done, calm))
        for _ in range(10):
            await asyncio.sleep(0)
        calm.clear()
        before = len(done)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(done) <= before + 1  # the slice that was under way
        assert 0 < before < 50
        calm.set()
        await task
        assert len(done) == 50

    asyncio.run(check())


def test_urgent_work_that_never_ends_slows_the_background_down_and_does_not_stop_it() -> None:
    async def check() -> float:
        done: list[float] = []
        begin = time.perf_counter()
        await work(4, done, asyncio.Event())
        return time.perf_counter() - begin

    assert asyncio.run(check()) >= 3 * LONGEST_WAIT_SECONDS


def test_only_the_task_that_says_so_is_in_the_background() -> None:
    async def check() -> None:
        done: list[float] = []
        background = asyncio.create_task(work(1000, done, asyncio.Event()))
        await asyncio.sleep(0)
        urgent: list[float] = []
        await work(10, urgent)
        assert len(urgent) == 10
        background.cancel()
        await asyncio.gather(background, return_exceptions=True)

    asyncio.run(check())


def test_every_item_comes_once_in_order() -> None:
    async def check() -> list[int]:
        return [item async for some in in_slices(iter(range(100)), 7) for item in some]

    assert asyncio.run(check()) == list(range(100))
