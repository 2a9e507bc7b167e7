"""Reads what ``bench.traced_agent`` wrote, and makes the stages of an update of it. Times are monotonic nanoseconds.

Processor time is that of the agent's thread, so other programs on the same processors are not in it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

STAGES = ("received", "decoded", "calculated", "sent", "acknowledged")
CALLS = ("sent", "asked", "answered", "setting")


class Mark(NamedTuple):
    """One line of the marks file."""

    at: int
    spent: int  # processor time
    stage: str
    words: tuple[str, ...]


class Written(NamedTuple):
    """What went to the kernel: netlink messages, sends, bytes; and processes started."""

    messages: int
    sends: int
    bytes: int
    processes: int


class MarksFile:
    """Follows the marks of one agent."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self._file = path.open()
        self._rest = ""

    def read(self) -> list[Mark]:
        """Whole lines written since the last call."""
        text = self._rest + self._file.read()
        lines = text.split("\n")
        self._rest = lines.pop()
        return [_parse(line) for line in lines]

    async def until_applied(self, topic: str = "", timeout_s: float = 5.0) -> list[Mark]:
        """Marks since the last call, up to the end of an apply after ``topic`` was decoded.

        Raises:
            TimeoutError: it never came.
        """
        marks: list[Mark] = []
        deadline = time.monotonic() + timeout_s
        while not _applied(marks, topic):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the agent did not finish {topic or 'an apply'} in {timeout_s:.0f} s")
            await asyncio.sleep(0.001)
            marks += self.read()
        return marks

    def close(self) -> None:
        self._file.close()


def _parse(line: str) -> Mark:
    at, spent, stage, *words = line.split()
    return Mark(int(at), int(spent), stage, tuple(words))


def _applied(marks: Sequence[Mark], topic: str) -> bool:
    decoded = not topic
    for mark in marks:
        if mark.stage == "decoded" and mark.words and mark.words[0].endswith(topic):
            decoded = True
        elif mark.stage == "applied" and decoded:
            return True
    return False


def stages(marks: Sequence[Mark], topic: str) -> dict[str, int]:
    """When each stage of the update of ``topic`` was reached; stages that were not are absent.

    ``sent`` is the first send after the calculation, ``acknowledged`` the last answer before the apply was over.
    """
    found: dict[str, int] = {}
    for mark in marks:
        about = bool(mark.words) and mark.words[0].endswith(topic)
        if mark.stage in ("received", "decoded"):
            if about:
                found = {**found, mark.stage: mark.at} if mark.stage == "decoded" else {"received": mark.at}
        elif "decoded" not in found:
            continue
        elif mark.stage == "calculated":
            found.setdefault("calculated", mark.at)
        elif "calculated" in found and mark.stage == "sent":
            found.setdefault("sent", mark.at)
        elif "sent" in found and mark.stage == "acknowledged":
            found["acknowledged"] = mark.at
        elif "sent" in found and mark.stage == "applied":
            break
    return found


def turns(marks: Sequence[Mark]) -> list[list[Mark]]:
    """The marks of each turn of the apply loop that wrote, from the end of the one before that did."""
    found: list[list[Mark]] = [[]]
    for mark in marks:
        found[-1].append(mark)
        if mark.stage == "applied" and any(one.stage == "sent" for one in found[-1]):
            found.append([])
    return found[:-1]


def kernel_time(marks: Sequence[Mark], begin: int, end: int) -> int:
    """Nanoseconds spent inside netlink calls and files of /proc/sys between two times."""
    return sum(int(mark.words[-2]) - mark.at for mark in marks if mark.stage in CALLS and begin <= mark.at < end)


def own_share(marks: Sequence[Mark], begin: int, end: int) -> int:
    """Nanoseconds of the agent's processor time between two marks, without that inside the same calls."""
    spent = {mark.at: mark.spent for mark in marks if mark.stage != "beside"}
    inside = (int(mark.words[-1]) - mark.spent for mark in marks if mark.stage in CALLS and begin <= mark.at < end)
    return spent[end] - spent[begin] - sum(inside)


def written(marks: Sequence[Mark]) -> Written:
    """Sum of what the marks tell of writes."""
    sends = [mark for mark in marks if mark.stage == "sent"]
    return Written(
        messages=sum(int(mark.words[1]) for mark in sends),
        sends=len(sends),
        bytes=sum(int(mark.words[0]) for mark in sends),
        processes=sum(mark.stage == "process" for mark in marks),
    )
