"""Metrics in Prometheus' text format. Imported when somebody asks for the first time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from felixpy.observe.metric_types import MetricType


class _Families(Collector):
    """What we count, and Felix's counters a second time under the names that Felix gives them, without ``_total``.

    Their type is not told then: the text format has no counter of such a name.
    """

    def __init__(self, counted: Iterable[MetricType]) -> None:
        self._counted = tuple(counted)

    def collect(self) -> Iterator[Metric]:
        for one in self._counted:
            yield _family(one, one.kind)
        for one in self._counted:
            if one.kind == "counter" and one.name.startswith("felix_"):
                yield _family(one, "unknown")


def _family(counted: MetricType, kind: str) -> Metric:
    family = Metric(counted.name, counted.meaning, kind)
    for suffix, labels, value in counted.samples():
        family.add_sample(counted.name + ("" if kind == "unknown" else suffix), labels, value)
    return family


def registry_of(counted: Iterable[MetricType]) -> CollectorRegistry:
    """A registry with these, and with what the kernel says of this process."""
    registry = CollectorRegistry()
    registry.register(_Families(counted))
    ProcessCollector(registry=registry)
    return registry
