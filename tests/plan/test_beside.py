"""Work on a copy of the process: what it changes stays there, what it says comes back, and it always ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from structlog.testing import capture_logs

from felixpy.demo.patience import until, wait_until
from felixpy.observe.control import MAX_DATA_BYTES, ControlError, ask, serve_control
from felixpy.plain_error import PlainError
from felixpy.plan import planner
from felixpy.plan.beside import BesideError, beside
from felixpy.plan.planner import MOST_WAITING, Planner


def run(work: Callable[[], bytes]) -> bytes:
    return asyncio.run(beside(work))


def test_a_copy_changes_nothing_here_and_has_no_descriptor_of_ours() -> None:
    state = {"changed": False}
    reading, writing = os.pipe()

    def work() -> bytes:
        state["changed"] = True
        left = [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208 - the listing's own one is among them
        return json.dumps({"pid": os.getpid(), "nice": os.nice(0), "left": sorted(left)}).encode()

    said = json.loads(run(work))
    assert state == {"changed": False}
    assert said["pid"] != os.getpid()
    assert said["nice"] == 19
    assert writing not in said["left"]
    assert reading not in said["left"]
    assert len([one for one in said["left"] if one > 2]) <= 2  # its pipe, and the listing
    os.close(reading)
    os.close(writing)
    assert run(lambda: b"x" * 5_000_000) == b"x" * 5_000_000


def test_what_goes_wrong_in_a_copy_is_told_here() -> None:
    def refuse() -> NoReturn:
        raise PlainError("not today")

    def fail() -> NoReturn:
        raise ZeroDivisionError

    def die() -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    with pytest.raises(BesideError, match=r"^not today$"):
        run(refuse)
    with capture_logs() as logs, pytest.raises(BesideError, match="its log has the traceback"):
        run(fail)
    assert "ZeroDivisionError" in logs[0]["traceback"]
    with pytest.raises(BesideError, match="ended without an answer"):
        run(die)


def test_who_gives_up_leaves_no_copy_behind(tmp_path: Path) -> None:
    there = tmp_path / "pid"

    def wait_for_ever() -> bytes:
        there.write_text(str(os.getpid()))
        there.rename(tmp_path / "written")
        signal.pause()
        return b""

    async def give_up() -> None:
        task = asyncio.create_task(beside(wait_for_ever))
        await until(lambda: (tmp_path / "written").exists())
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(give_up())
    copy = (tmp_path / "written").read_text()
    wait_until(lambda: not Path("/proc", copy).exists())


def test_questions_over_the_control_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "socket"
    begun: list[bytes] = []
    release = asyncio.Event()

    async def slow(work: Callable[[], bytes]) -> bytes:
        begun.append(work())
        await release.wait()
        return b'{"answer": 1}'

    monkeypatch.setattr(planner, "beside", slow)
    monkeypatch.setattr(planner, "_outlook", lambda agent, data: data)

    async def talk() -> None:
        plans = Planner(None)  # type: ignore[arg-type]
        async with serve_control(path, {"status": lambda: "well"}, {"plan": plans.plan}):
            data = b"x" * (1 << 20)
            several = [asyncio.create_task(ask(path, "plan", data)) for _ in range(MOST_WAITING)]
            await until(lambda: bool(begun) and plans._waiting == MOST_WAITING)
            assert begun == [data], "one at a time"
            assert await ask(path, "status") == "well"
            with pytest.raises(ControlError, match="asked for 8 plans already"):
                await ask(path, "plan", b"y")
            release.set()
            assert await asyncio.gather(*several) == [{"answer": 1}] * MOST_WAITING
            with pytest.raises(ControlError, match="more than the"):
                await ask(path, "plan", b"x" * (MAX_DATA_BYTES + 1))
            with pytest.raises(ControlError, match="does not know that request; it knows plan, status"):
                await ask(path, "other", b"")

    asyncio.run(talk())
