"""Failures that stand for a while: one line when it begins, when its reason changes, and when it ends.

Invariant: however often something is tried again, the log grows with changes only. Also keeps them for ``status``.
"""

from __future__ import annotations

from typing import Any

import structlog

from felixpy.observe.samples import RecentFailures


class Standing:
    """What does not work now, by name."""

    def __init__(self, recent: RecentFailures) -> None:
        self._reasons: dict[str, str] = {}
        self._recent = recent
        self._log = structlog.get_logger("felixpy")

    def fails(self, what: str, reason: str, **keys: Any) -> None:
        """It does not work; said if that is news."""
        if self._reasons.get(what) != reason:
            self._reasons[what] = reason
            self._recent.note(what, reason)
            self._log.error(what, reason=reason, **keys)

    def works(self, what: str, **keys: Any) -> None:
        """It works; said if it did not."""
        if was := self._reasons.pop(what, ""):
            self._log.info(f"{what}: over", was=was, **keys)
