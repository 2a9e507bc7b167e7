"""Prometheus metrics. Names are Felix's where the meaning is the same, ``felixpy_*`` otherwise.

Metrics belong to an object with its own registry, not to the module, so that two agents in one process do not mix.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Everything that is counted."""

    def __init__(self, node: str) -> None:
        registry = self.registry = CollectorRegistry()
        Gauge("felix_host", "Always 1, for joining.", ["host"], registry=registry).labels(node).set(1)
        self.resync_state = Gauge(
            "felix_resync_state", "State of the stream: 1 waiting, 2 resync or degraded, 3 in sync.", registry=registry
        )
        self.updates = Counter(
            "felix_calc_graph_updates_processed", "Updates taken from the stream.", ["type"], registry=registry
        )
        self.local_endpoints = Gauge("felix_active_local_endpoints", "Endpoints of this node.", registry=registry)
        self.hosts = Gauge("felix_cluster_num_hosts", "Nodes known.", registry=registry)
        self.failures = Counter(
            "felix_int_dataplane_failures", "Applies that left something unwritten.", registry=registry
        )
        self.apply_seconds = Histogram(
            "felix_int_dataplane_apply_time_seconds", "Time of one apply.", registry=registry, buckets=SECONDS
        )
        self.programmed_seconds = Histogram(
            "felixpy_endpoint_programmed_seconds",
            "From the arrival of an endpoint's update to the kernel's acknowledgement.",
            registry=registry,
            buckets=SECONDS,
        )
        self.entries = Gauge("felixpy_table_entries", "Entries that felixpy wants.", ["table"], registry=registry)
        self.writes = Counter("felixpy_kernel_writes", "Entries written or removed.", registry=registry)
        self.problems = Gauge("felixpy_problems", "Objects with something wrong.", ["kind"], registry=registry)
        self.ignored = Counter(
            "felixpy_ignored", "Unknown kinds, topics and fields in the stream.", ["what"], registry=registry
        )
        self.left_out = Gauge("felixpy_objects_left_out", "Objects beyond MaxObjects.", registry=registry)
        self.ready = Gauge("felixpy_ready", "1 once the first complete apply succeeded.", ["family"], registry=registry)

    def text(self) -> bytes:
        """Exposition format."""
        return generate_latest(self.registry)
