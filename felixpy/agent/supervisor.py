"""What systemd is told of the agent: started, alive, what it does, reloading, stopping. Nothing without NOTIFY_SOCKET.

The protocol is that of sd_notify(3): datagrams of ``NAME=value`` lines. Invariant: READY after the first complete
apply, until it is taken once; the watchdog is fed only while the agent's loop makes progress. It must never raise or
wait: an agent that works does not end because nobody listens.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Mapping

import structlog

log = structlog.get_logger("felixpy")

STARTING_SECONDS = 0.1
"""Between two looks until the agent is ready: what waits for READY waits for traffic."""
BEAT_SECONDS = 1.0
EXTENSION_USEC = 60_000_000
"""A start may last as long as the broker is away, but not 60 s longer than the loop makes progress."""

Probe = Callable[[], tuple[bool, str]]


class Supervisor:
    """The end of systemd's notification socket."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        name = environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{name[1:]}" if name.startswith("@") else name
        self._beat = _watchdog_seconds(environ, default=2 * BEAT_SECONDS) / 2
        self._started = False
        self._owes_ready = False
        self._said = ""
        self._refused = ""

    async def follow(self, live: Probe, ready: Probe, describe: Callable[[], str]) -> None:
        """Report until cancelled, then say that the agent stops."""
        try:
            while self._address:
                self._report(live(), ready()[0], describe())
                await asyncio.sleep(min(self._beat, BEAT_SECONDS) if self._begun else STARTING_SECONDS)
            await asyncio.Event().wait()
        finally:
            self._tell("STOPPING=1", "STATUS=stopping; the kernel keeps its state")

    @property
    def _begun(self) -> bool:
        return self._started or self._owes_ready

    def _report(self, live: tuple[bool, str], is_ready: bool, description: str) -> None:
        facts = []
        self._owes_ready = self._owes_ready or (is_ready and not self._started)
        if self._owes_ready:
            facts.append("READY=1")
        if live[0]:
            facts.append("WATCHDOG=1")
            if not self._started and not self._owes_ready:
                facts.append(f"EXTEND_TIMEOUT_USEC={EXTENSION_USEC}")
        says = " ".join((description if live[0] else live[1]).split())
        if says != self._said:
            facts.append(f"STATUS={says}")
        if self._tell(*facts):  # what is not taken is said again at the next beat
            self._said = says
            self._started = self._started or self._owes_ready
            self._owes_ready = False

    def reload(self, work: Callable[[], None]) -> None:
        """Do the work of a reload, with systemd knowing; before the start is over there is nothing to tell."""
        if self._started:
            self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            work()
        finally:
            if self._started and not self._tell("READY=1"):
                self._owes_ready = True

    def _tell(self, *facts: str) -> bool:
        """Whether it was taken: the receiver's queue may be full (EAGAIN)."""
        if not self._address or not facts:
            return True
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as end:
                end.sendto("\n".join(facts).encode(), self._address)
        except OSError as error:
            if str(error) != self._refused:
                log.warning("systemd cannot be told; is NOTIFY_SOCKET its own?", reason=str(error))
            self._refused = str(error)
            return False
        self._refused = ""
        return True


def _watchdog_seconds(environ: Mapping[str, str], default: float) -> float:
    """After how long a silence systemd ends this process; the default if it does not watch it."""
    usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    mine = not pid or pid == str(os.getpid())
    return int(usec) / 1e6 if mine and usec.isdecimal() and int(usec) else default
