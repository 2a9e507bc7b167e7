"""What the loop tells while it works: the state of the stream, failures of families, and when the status is published.

Invariant: only told and counted here. Nothing that the loop decides depends on it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import structlog

from felixpy.agent.outcome import Outcome, StatusPublisher
from felixpy.model.net import Family
from felixpy.model.resources import Update
from felixpy.observe.metrics import Metrics
from felixpy.observe.samples import RecentFailures
from felixpy.sources import SyncState, SyncStatus
from felixpy.sources.limit import ObjectLimit

log = structlog.get_logger("felixpy")

RESYNC_STATES = {SyncState.CONNECTING: 1, SyncState.RESYNC: 2, SyncState.DEGRADED: 2, SyncState.IN_SYNC: 3}

PROBLEMS_SECONDS = 1.0
"""News of problems alone are published no more often than this: a thousand bad objects are one message."""


class Telling:
    """Log, metrics and the status topic of the agent as a whole; of each object it is ``Outcome``."""

    def __init__(
        self, metrics: Metrics, recent: RecentFailures, outcome: Outcome, status: StatusPublisher | None
    ) -> None:
        self._metrics = metrics
        self._recent = recent
        self._outcome = outcome
        self._status = status
        self._published_at = 0.0
        self.is_due = True
        """Whether the status is to be published as soon as the loop has time."""

    def stream(self, status: SyncStatus, before: SyncStatus) -> None:
        """The state of the stream changed."""
        level = log.warning if status.state is SyncState.DEGRADED else log.info
        if (status.state, status.reason) == (before.state, before.reason):
            level = log.debug  # progress
        level("stream", state=status.state.value, reason=status.reason, got=status.got, want=status.want)
        if status.state is SyncState.RESYNC and before.state is not SyncState.RESYNC:
            self._metrics.resyncs_started.inc()
        if status.state is SyncState.DEGRADED:
            self._recent.note("stream", status.reason)
        elif status.state is SyncState.IN_SYNC:
            self._recent.over("stream")
        self._metrics.resync_state.set(RESYNC_STATES[status.state])
        self.is_due = True

    def left_out(self, limit: ObjectLimit, before: int) -> None:
        """The number of objects beyond the limit changed."""
        count = len(limit.left_out)
        self._metrics.left_out.set(count)
        self.is_due = True
        if not (before and count):
            log.error("object limit", reason=limit.reason() or "nothing is left out any more")

    def taken(self, updates: Iterable[Update]) -> None:
        """These updates were taken by one turn of the loop."""
        kinds = Counter(update.key.kind for update in updates)
        if kinds:
            self._metrics.batch_size.observe(kinds.total())
        for kind, count in kinds.items():
            self._metrics.updates.inc(kind, by=count)

    def failures(self, now: dict[Family, str], before: dict[Family, str], backend: str) -> None:
        """Say of each family that does not work as a whole why, once."""
        for family, reason in now.items():
            self._metrics.failures.inc()
            if before.get(family) != reason:
                self._recent.note(str(family), reason)
                log.error("family is not programmed", family=str(family), backend=backend, reason=reason)
        for family in before.keys() - now.keys():
            self._recent.over(str(family))
            log.info("family is programmed again", family=str(family), was=before[family])
        self.is_due = self.is_due or now != before

    def ready(self, family: Family, backend: str, seconds: float) -> None:
        """A family is ready, so many seconds after the start."""
        self.is_due = True
        self._metrics.ready.set(1, str(family))
        log.info("ready", family=str(family), backend=backend)
        self._metrics.initial_resync_seconds.set(seconds)

    def not_ready(self, families: Iterable[Family]) -> None:
        """These are the families that are on, and none is ready. Of one that is off there is no series."""
        self._metrics.ready.clear()
        for family in families:
            self._metrics.ready.set(0, str(family))

    def next_at(self, interval_seconds: float) -> float:
        """When the status is published again if nothing else happens; an interval of 0 is none."""
        interval = interval_seconds or float("inf")
        return self._published_at + (PROBLEMS_SECONDS if self._outcome.problems.has_news else interval)

    def publish(self, interval_seconds: float, status: Callable[[], dict[str, Any]]) -> None:
        """Tell what waited for that, and publish the status if it is due."""
        self._outcome.tell_others(now=self.is_due)
        if not self.is_due and time.monotonic() < self.next_at(interval_seconds):
            return
        self.is_due, self._published_at, self._outcome.problems.has_news = False, time.monotonic(), False
        if self._status:
            self._status.publish_status(status())
