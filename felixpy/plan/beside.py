"""Work on a copy of this process: what it knows at one moment, to be changed at will, while the process goes on.

    fork ──► the copy works, writes its answer into a pipe and ends       the process pays for the fork alone

The kernel shares the memory until one of the two writes to it, so the copy costs what it changes. Invariant: the copy
touches nothing that it has in common with the process (it closes every descriptor but its pipe first), runs none of its
tasks, writes no line of its log, and never lives longer than ``LONGEST_SECONDS``.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import structlog

from felixpy.plain_error import PlainError

log = structlog.get_logger("felixpy")

LONGEST_SECONDS = 300
LEAST_URGENT = 19
MAX_DESCRIPTORS = 1 << 20
_DONE, _REFUSED, _BUG = b"+", b"-", b"!"


class BesideError(PlainError):
    """There is no answer: one sentence for people."""


async def beside(work: Callable[[], bytes]) -> bytes:
    """Run ``work`` in a copy of this process, with the least urgency, and return what it returns.

    Raises:
        BesideError: the copy could not be made, refused (with its own sentence), failed, or took too long.
    """
    reading, writing = os.pipe()
    try:
        copy = _fork()
    except OSError as error:
        os.close(reading)
        os.close(writing)
        raise BesideError(f"the agent cannot make a copy of itself to plan in: {error.strerror}") from None
    if copy == 0:
        _work_as_copy(writing, work)
    os.close(writing)
    try:
        answer = await _read(reading)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(copy, signal.SIGKILL)
        # Its memory is given back in there, which takes a while.
        threading.Thread(target=os.waitpid, args=(copy, 0), name="reap", daemon=True).start()
    kind, said = answer[:1], answer[1:]
    if kind == _DONE:
        return said
    if kind == _REFUSED:
        raise BesideError(said.decode())
    if kind == _BUG:
        log.error("a plan failed", traceback=said.decode(errors="replace"))
        raise BesideError("the agent failed over this change; its log has the traceback")
    raise BesideError(f"the copy of the agent ended without an answer (it has {LONGEST_SECONDS} s, and its memory)")


def _fork() -> int:
    with warnings.catch_warnings():
        # Threads of the process (the log's, a packet filter's) are not in the copy, which uses nothing that is theirs.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


async def _read(descriptor: int) -> bytes:
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", 0)
    )
    try:
        return await reader.read()
    finally:
        transport.close()


def _work_as_copy(descriptor: int, work: Callable[[], bytes]) -> NoReturn:
    try:
        _leave_the_process(descriptor)
        answer = _DONE + work()
    except PlainError as error:
        answer = _REFUSED + str(error).encode()
    except BaseException:  # noqa: BLE001 - nothing may get out of the copy into the code of the process
        answer = _BUG + traceback.format_exc().encode(errors="replace")
    try:
        while answer:
            answer = answer[os.write(descriptor, answer) :]
    finally:
        os._exit(0)


def _leave_the_process(descriptor: int) -> None:
    gc.disable()
    os.closerange(3, descriptor)
    os.closerange(descriptor + 1, MAX_DESCRIPTORS)
    with contextlib.suppress(ValueError):  # not in the main thread: then the process handles no signals either
        signal.set_wakeup_fd(-1, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
    signal.alarm(LONGEST_SECONDS)
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        os.nice(LEAST_URGENT)
    with contextlib.suppress(OSError):  # where memory runs out, the copy goes and not the agent
        Path("/proc/self/oom_score_adj").write_text("1000")
