"""What is wrong with which object, said once when it begins, once when it changes and once when it ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import structlog

from felixpy.model.resources import ResourceKey
from felixpy.observe.metrics import Metrics
from felixpy.observe.samples import RecentFailures

MAX_IGNORED = 1000
"""Distinct unknown names that are told apart; the rest is counted together, so that memory stays bounded."""


class Problems:
    """Reasons by object; the newest word counts."""

    def __init__(self, metrics: Metrics, recent: RecentFailures | None = None) -> None:
        self.has_news = False
        """Something was told since whoever publishes the whole list last said that he has it."""
        self._log = structlog.get_logger("felixpy")
        self._metrics = metrics
        self._recent = recent or RecentFailures()
        self._reasons: dict[ResourceKey, str] = {}
        self._kinds: Counter[str] = Counter()
        self._ignored: set[str] = set()

    def __len__(self) -> int:
        return len(self._reasons)

    def set(self, key: ResourceKey, reason: str) -> None:
        """Note an object's problem; an empty reason says that there is none (any more)."""
        old = self._reasons.get(key, "")
        if reason == old:
            return
        self.has_news = True
        if reason:
            self._reasons[key] = reason
            self._recent.note(str(key), reason)
            self._log.warning("problem", object=str(key), reason=reason)
        else:
            del self._reasons[key]
            self._recent.over(str(key))
            self._log.info("problem solved", object=str(key), was=old)
        self._kinds[key.kind] += bool(reason) - bool(old)
        self._metrics.problems.set(self._kinds[key.kind], key.kind)

    def __iter__(self) -> Iterator[ResourceKey]:
        return iter(self._reasons)

    def get(self, key: ResourceKey) -> str:
        return self._reasons.get(key, "")

    def items(self) -> list[tuple[ResourceKey, str]]:
        """All problems, by object."""
        return sorted(self._reasons.items())

    def ignored(self, what: str) -> None:
        """Count something unknown in the stream; log it the first time."""
        if what not in self._ignored:
            if len(self._ignored) >= MAX_IGNORED:
                what = "others"
            else:
                self._log.warning("ignored", what=what, next="it has no effect; felixpy goes on without it")
            self._ignored.add(what)
        self._metrics.ignored.inc(what)
