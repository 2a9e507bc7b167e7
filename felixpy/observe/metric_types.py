"""What is counted: gauges, counters, histograms and summaries, as plain values.

prometheus_client makes text of them when somebody asks (``felixpy.observe.exposition``). It does not count, because its
import takes longer than what an agent with ten workloads has to do at its start, and most agents serve no metrics.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import ClassVar, NamedTuple

from felixpy.observe.samples import Samples

QUANTILES = (0.5, 0.9, 0.99)
"""Those of Felix's summaries."""


class Sample(NamedTuple):
    """A value of a metric; the name of its series is the metric's with ``suffix``."""

    suffix: str
    labels: dict[str, str]
    value: float


class MetricType(ABC):
    """A metric: ``meaning`` in one sentence, names of its ``labels``."""

    kind: ClassVar[str]
    """The type in Prometheus' words."""

    def __init__(self, name: str, meaning: str, *labels: str) -> None:
        self.name, self.meaning, self.labels = name, meaning, labels

    @abstractmethod
    def samples(self) -> Iterator[Sample]:
        """Its series as they are now."""


class _Labelled(MetricType):
    """One value for each combination of labels; without labels one, from the beginning."""

    suffix: ClassVar[str] = ""

    def __init__(self, name: str, meaning: str, *labels: str) -> None:
        super().__init__(name, meaning, *labels)
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}

    def samples(self) -> Iterator[Sample]:
        for labels, value in sorted(self._values.items()):
            yield Sample(self.suffix, dict(zip(self.labels, labels, strict=True)), value)


class Gauge(_Labelled):
    """A value that rises and falls."""

    kind = "gauge"

    def set(self, value: float, *labels: str) -> None:
        self._values[labels] = value

    def clear(self) -> None:
        """Forget all values, and so their series."""
        self._values.clear()


class Counter(_Labelled):
    """How often something happened."""

    kind = "counter"
    suffix = "_total"

    def inc(self, *labels: str, by: float = 1) -> None:
        self._values[labels] = self._values.get(labels, 0.0) + by


class Totals(_Labelled):
    """A counter that others keep, taken over when somebody asks. It never falls, though they may begin anew."""

    kind = "counter"
    suffix = "_total"

    def __init__(self, name: str, meaning: str, *labels: str) -> None:
        super().__init__(name, meaning, *labels)
        self._latest: dict[tuple[str, ...], float] = {}

    def take(self, value: float, *labels: str, source: str = "") -> None:
        """Take what one source counts now; less than at the last time means that it began again at 0."""
        before = self._latest.get((source, *labels), 0.0)
        self._latest[source, *labels] = value
        self._values[labels] = self._values.get(labels, 0.0) + (value - before if value >= before else value)


class Summary(MetricType):
    """How often, and all values together. Others may keep it: ``times`` and ``total`` can be set."""

    kind = "summary"

    def __init__(self, name: str, meaning: str) -> None:
        super().__init__(name, meaning)
        self.times, self.total = 0, 0.0

    def observe(self, value: float) -> None:
        self.times += 1
        self.total += value

    def samples(self) -> Iterator[Sample]:
        yield Sample("_count", {}, self.times)
        yield Sample("_sum", {}, self.total)


class QuantileSummary(Summary):
    """A summary as Felix has them: with quantiles, here of the latest values."""

    def __init__(self, name: str, meaning: str) -> None:
        super().__init__(name, meaning)
        self._latest = Samples()

    def observe(self, value: float) -> None:
        super().observe(value)
        self._latest.take(value)

    def samples(self) -> Iterator[Sample]:
        for share, value in zip(QUANTILES, self._latest.quantiles(*QUANTILES), strict=True):
            yield Sample("", {"quantile": str(share)}, value)
        yield from super().samples()


class Histogram(MetricType):
    """How many values are at most so large, for each of ``bounds``, which ascend."""

    kind = "histogram"

    def __init__(self, name: str, meaning: str, bounds: Sequence[float]) -> None:
        super().__init__(name, meaning)
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def samples(self) -> Iterator[Sample]:
        names = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        for name, count in zip(names, accumulate(self._counts), strict=True):
            yield Sample("_bucket", {"le": name}, count)
        yield Sample("_count", {}, sum(self._counts))
        yield Sample("_sum", {}, self._total)
