"""Waiting by the machine's work, and the order and the time-outs that ``conftest`` gives to tests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from felixpy.demo.patience import MOST_BUSY, Patience, limit, share, stretched, until, wait_until

ROOT = Path(__file__).resolve().parents[1]
PROCESSORS = len(os.sched_getaffinity(0))
BUSY = 6 * PROCESSORS


@contextlib.contextmanager
def busy_processes() -> Iterator[None]:
    spin = "import os, signal, ctypes; ctypes.CDLL(None).prctl(1, signal.SIGKILL)\nwhile True: pass"
    processes = [subprocess.Popen((sys.executable, "-I", "-S", "-c", spin)) for _ in range(BUSY)]
    try:
        while share() > 2 * PROCESSORS / BUSY:  # each has begun
            time.sleep(0.05)
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def lasts(seconds: float) -> float:
    began, patience = time.monotonic(), Patience(seconds)
    while not patience.over():
        time.sleep(0.02)
    return time.monotonic() - began


def test_patience_lasts_as_long_as_it_says_and_longer_beside_others() -> None:
    assert lasts(0.2) > 0.19
    with busy_processes():
        assert lasts(0.2) > 0.4
        assert stretched(1.0) > 2
    assert 1 / MOST_BUSY <= share() <= 1
    assert 1 <= stretched(1.0) <= MOST_BUSY


def test_time_in_which_nobody_looked_counts_little() -> None:
    patience = Patience(5.0, look_seconds=0.1)
    time.sleep(0.3)
    assert not patience.over()
    assert patience._left > 4.8


def test_what_does_not_come_is_told_with_what_is_there_instead() -> None:
    with pytest.raises(TimeoutError, match=r"not within 0\.05 s of work .*: only this"):
        wait_until(lambda: False, lambda: "only this", 0.05)
    with pytest.raises(TimeoutError, match="only that"):
        asyncio.run(until(lambda: False, lambda: "only that", 0.05))
    wait_until(lambda: True)
    asyncio.run(until(lambda: True))


def test_a_block_that_hangs_is_ended() -> None:
    async def hang() -> None:
        async with limit(0.05):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        asyncio.run(hang())


def ordered(*arguments: str) -> list[str]:
    command = (sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *arguments)
    files = ("tests/store/test_index.py", "tests/test_slices.py", "tests/test_patience.py")
    done = subprocess.run((*command, *files), cwd=ROOT, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_a_seed_gives_one_order_of_all_tests() -> None:
    plain, one, same, other = ordered(), ordered("--shuffle=1"), ordered("--shuffle=1"), ordered("--shuffle=2")
    assert len(plain) > 10
    assert one == same
    assert len({tuple(each) for each in (plain, one, other)}) == 3
    assert sorted(plain) == sorted(one) == sorted(other)


def test_a_test_that_hangs_is_ended_by_its_time_out(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("import time\ndef test_it():\n    time.sleep(1000)\n")
    command = (sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "--timeout=0.5", f"--rootdir={tmp_path}")
    done = subprocess.run((*command, tmp_path), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Timeout (>0.5s)" in done.stdout
