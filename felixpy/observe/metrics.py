"""Prometheus metrics. Names are Felix's where the meaning is the same, ``felixpy_*`` otherwise (docs/metrics.md).

Metrics belong to an object with its own registry, not to the module, so that two agents in one process do not mix.
Never a label per object of the stream. What can be counted when somebody asks is counted then (``sampled``), not on the
path of an update.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    Summary,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Totals(Collector):
    """Counters that others keep: values by label, taken over when somebody asks."""

    def __init__(self, name: str, meaning: str, label: str = "") -> None:
        self._name, self._meaning, self._label = name, meaning, label
        self.values: dict[str, float] = {}

    def collect(self) -> list[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._meaning, labels=[self._label] if self._label else [])
        for label, value in sorted(self.values.items()) or ([] if self._label else [("", 0.0)]):
            family.add_metric([label] if self._label else [], value)
        return [family]


class Metrics:
    """Everything that is counted."""

    def __init__(self, node: str) -> None:
        registry = self.registry = CollectorRegistry()
        self.sampled: list[Callable[[], None]] = []
        """Called before the text is made, to set what is not counted as it happens."""

        def gauge(name: str, meaning: str, *labels: str) -> Gauge:
            return Gauge(name, meaning, labels, registry=registry)

        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(name, meaning, labels, registry=registry)

        def histogram(name: str, meaning: str) -> Histogram:
            return Histogram(name, meaning, registry=registry, buckets=SECONDS)

        def totals(name: str, meaning: str, label: str = "") -> Totals:
            made = Totals(name, meaning, label)
            registry.register(made)
            return made

        # Felix's
        gauge("felix_host", "Always 1, for joining.", "host").labels(node).set(1)
        self.resync_state = gauge(
            "felix_resync_state", "State of the stream: 1 waiting, 2 resync or degraded, 3 in sync."
        )
        self.resyncs_started = counter("felix_resyncs_started", "Times that the stream began to be read anew.")
        self.updates = counter("felix_calc_graph_updates_processed", "Updates taken from the stream.", "type")
        self.local_endpoints = gauge("felix_active_local_endpoints", "Endpoints of this node.")
        self.hosts = gauge("felix_cluster_num_hosts", "Nodes known.")
        self.failures = counter("felix_int_dataplane_failures", "Applies that left something unwritten.")
        self.apply_seconds = histogram("felix_int_dataplane_apply_time_seconds", "Time of one apply.")
        self.initial_resync_seconds = gauge(
            "felix_int_dataplane_initial_resync_time_seconds", "From the start to the first complete apply."
        )
        self.batch_size = Summary(
            "felix_int_dataplane_msg_batch_size", "Updates taken together before one apply.", registry=registry
        )
        self.routes = gauge("felix_route_table_num_routes", "Our routes in the kernel, by family and table.", "table")
        # Ours
        self.programmed_seconds = histogram(
            "felixpy_endpoint_programmed_seconds",
            "From the arrival of an endpoint's update to the kernel's acknowledgement.",
        )
        self.published_seconds = histogram(
            "felixpy_endpoint_published_seconds",
            "From the publishing of an endpoint's update, by the publisher's clock, to the kernel's acknowledgement.",
        )
        self.entries = gauge("felixpy_table_entries", "Entries that felixpy wants.", "table")
        self.committed = gauge("felixpy_table_committed", "Entries that the kernel is believed to hold.", "table")
        self.refused = gauge("felixpy_table_failed", "Entries that the kernel refused or others undo.", "table")
        self.waiting = gauge("felixpy_table_waiting", "Entries that wait for an interface or an address.", "table")
        self.repairs = totals("felixpy_repairs", "Entries that others changed or removed and we repaired.", "cause")
        self.writes = counter("felixpy_kernel_writes", "Entries written or removed.")
        self.netlink_messages = totals("felixpy_netlink_messages", "Netlink messages sent to write.", "socket")
        self.netlink_bytes = totals("felixpy_netlink_bytes", "Bytes of them.", "socket")
        self.stream_messages = totals("felixpy_stream_messages", "Messages taken from the broker.")
        self.stream_bytes = totals("felixpy_stream_bytes", "Bytes of their payloads.")
        self.stream_got = gauge("felixpy_stream_got", "Objects of the snapshot that have arrived.")
        self.stream_want = gauge("felixpy_stream_want", "Objects that the snapshot should have, 0 if unknown.")
        self.problems = gauge("felixpy_problems", "Objects with something wrong.", "kind")
        self.ignored = counter("felixpy_ignored", "Unknown kinds, topics and fields in the stream.", "what")
        self.left_out = gauge("felixpy_objects_left_out", "Objects beyond MaxObjects.")
        self.ready = gauge("felixpy_ready", "1 once the first complete apply succeeded.", "family")
        self.loop_lag_seconds = histogram("felixpy_loop_lag_seconds", "How late the event loop was, once a second.")
        ProcessCollector(registry=registry)

    def text(self) -> bytes:
        """Exposition format."""
        for sample in self.sampled:
            sample()
        return generate_latest(self.registry)


def count_stream(metrics: Metrics, messages: int, size: int) -> None:
    """Take over what a source has counted: messages, and bytes of their payloads."""
    metrics.stream_messages.values[""] = messages
    metrics.stream_bytes.values[""] = size
