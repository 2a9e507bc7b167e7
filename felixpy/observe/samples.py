"""The latest measurements, for percentiles that people read; the metrics keep the whole distribution.

Invariant: a bounded number of values, and a constant cost for each one taken.
"""

from __future__ import annotations

import math
import time
from collections import deque
from typing import NamedTuple

KEPT = 1000
KEPT_FAILURES = 20


class Samples:
    """The last ``KEPT`` durations, in seconds."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=KEPT)

    def take(self, seconds: float) -> None:
        self._values.append(seconds)

    def summary_ms(self) -> dict[str, float]:
        """Count, median, 99th percentile and most, in milliseconds; empty without values."""
        if not self._values:
            return {}
        found = dict(zip(("p50", "p99", "max"), self.quantiles(0.5, 0.99, 1.0), strict=True))
        return {"count": len(self._values), **{name: round(value * 1000, 3) for name, value in found.items()}}

    def quantiles(self, *shares: float) -> list[float]:
        """The value that so large a share of all does not exceed, for each share; NaN without values."""
        values = sorted(self._values) or [math.nan]
        return [values[min(int(share * len(values)), len(values) - 1)] for share in shares]


class Failure(NamedTuple):
    """Something that went wrong: when (Unix time), of what, why, and since when it is over (0: it is not)."""

    ts: float
    what: str
    reason: str
    over_ts: float = 0.0


class RecentFailures:
    """The last failures, newest last. They stay after they are mended: that is what one looks for."""

    def __init__(self) -> None:
        self._kept: deque[Failure] = deque(maxlen=KEPT_FAILURES)

    def note(self, what: str, reason: str) -> None:
        """It fails, for this reason; the reason before is over."""
        self.over(what)
        self._kept.append(Failure(time.time(), what, reason))

    def over(self, what: str) -> None:
        """It works again, or is gone."""
        for index, one in enumerate(self._kept):
            if one.what == what and not one.over_ts:
                self._kept[index] = one._replace(over_ts=time.time())

    def all(self) -> list[Failure]:
        return list(self._kept)
