"""Failures that stand for a while: one line when it begins, when its reason changes, and when it ends.

Invariant: however often something is tried again, the log grows with changes only; the last line says how often it
failed and for how long. It must never decide what is tried again, or when.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import structlog
from msgspec import Struct

Note = Callable[[str, str], None]
"""Is told what fails and why, each time that is news."""

Over = Callable[[str], None]
"""Is told what works again."""


class _Failure(Struct):
    since: float
    reason: str = ""
    times: int = 0


class Standing:
    """What does not work now, by name. ``level`` is that of the lines about failures."""

    def __init__(self, note: Note | None = None, over: Over | None = None, *, level: str = "error") -> None:
        self._failures: dict[str, _Failure] = {}
        self._note = note or (lambda what, reason: None)
        self._over = over or (lambda what: None)
        self._level = level
        self._log = structlog.get_logger("felixpy")

    def fails(self, what: str, reason: str, **keys: Any) -> None:
        """It does not work; said if that is news."""
        failure = self._failures.setdefault(what, _Failure(time.monotonic()))
        failure.times += 1
        if failure.reason != reason:
            failure.reason = reason
            self._note(what, reason)
            getattr(self._log, self._level)(what, reason=reason, **keys)

    def works(self, what: str, *, since: float | None = None, **keys: Any) -> None:
        """It works; said if it did not. ``since``: from when on (monotonic), if that was not now."""
        if failure := self._failures.pop(what, None):
            self._over(what)
            seconds = round((time.monotonic() if since is None else since) - failure.since, 1)
            self._log.info(f"{what}: over", was=failure.reason, times=failure.times, seconds=seconds, **keys)
