"""Order statistics of samples, and whether they are too scattered to be trusted. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

NOISY_SPREAD = 3.0
"""A series whose p90 is this many times its median is marked noisy."""
NOISY_MINIMUM = 5
"""Below so many samples the spread says nothing."""

ENOUGH_FOR_P99 = 100
"""With fewer samples the 99th percentile is the largest of them, or nearly."""


class Summary(NamedTuple):
    """Minimum, median, p90, p99 and maximum in the unit of the samples, and how many samples there are."""

    minimum: float
    median: float
    p90: float
    p99: float
    maximum: float
    samples: int

    @property
    def noisy(self) -> bool:
        return self.samples >= NOISY_MINIMUM and self.p90 > NOISY_SPREAD * self.median > 0


def quantile(samples: Sequence[float], share: float) -> float:
    """The value below which ``share`` (0 to 1) of the samples lie, interpolated between neighbours.

    Raises:
        ValueError: there are no samples.
    """
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = math.ceil(place)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summarise(samples: Sequence[float]) -> Summary:
    """All statistics at once.

    Raises:
        ValueError: there are no samples.
    """
    low, median, p90, p99, high = (quantile(samples, share) for share in (0.0, 0.5, 0.9, 0.99, 1.0))
    return Summary(low, median, p90, p99, high, len(samples))
