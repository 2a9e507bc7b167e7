"""Prometheus metrics. Names are Felix's where the meaning is the same, ``felixpy_*`` otherwise (docs/metrics.md).

Metrics belong to an object, not to the module, so that two agents in one process do not mix.
A label per object of the stream for policies alone that this node asks, and not without a setting. What can be counted
when somebody asks is counted then (``sampled``), not on the path of an update.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from felixpy.observe.metric_types import Counter, Gauge, Histogram, MetricType, QuantileSummary, Summary, Totals
from felixpy.observe.policy_packets import PolicyPackets

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

M = TypeVar("M", bound=MetricType)

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class _Maker:
    """Makes metrics and keeps them, in the order in which they are told."""

    def __init__(self) -> None:
        self.made: list[MetricType] = []

    def _keep(self, metric: M) -> M:
        self.made.append(metric)
        return metric

    def gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return self._keep(Gauge(name, meaning, *labels))

    def counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return self._keep(Counter(name, meaning, *labels))

    def totals(self, name: str, meaning: str, *labels: str) -> Totals:
        return self._keep(Totals(name, meaning, *labels))

    def histogram(self, name: str, meaning: str) -> Histogram:
        return self._keep(Histogram(name, meaning, SECONDS))

    def summary(self, name: str, meaning: str) -> Summary:
        return self._keep(Summary(name, meaning))

    def quantile_summary(self, name: str, meaning: str) -> QuantileSummary:
        return self._keep(QuantileSummary(name, meaning))


class Metrics:
    """Everything that is counted, by subject: one method makes what one part of the agent counts."""

    def __init__(self, node: str) -> None:
        self.sampled: list[Callable[[], None]] = []
        """Called before the text is made, to set what is not counted as it happens."""
        self.read_first: list[Callable[[], Awaitable[None]]] = []
        """Awaited before that by ``latest``, to read what others count."""
        make = _Maker()
        make.gauge("felix_host", "Always 1, for joining.", "host").set(1, node)
        self._make_stream(make)
        self._make_objects(make)
        self._make_apply(make)
        self._make_tables(make)
        self._make_routing(make)
        self._make_nftables(make)
        self._make_iptables(make)
        self._make_process(make)
        self._make_cni(make)
        self.counted: tuple[MetricType, ...] = tuple(make.made)

    def _make_stream(self, make: _Maker) -> None:
        self.resync_state = make.gauge(
            "felix_resync_state", "State of the stream: 1 waiting, 2 resync or degraded, 3 in sync."
        )
        self.resyncs_started = make.counter("felix_resyncs_started", "Times that the stream began to be read anew.")
        self.updates = make.counter("felix_calc_graph_updates_processed", "Updates taken from the stream.", "type")
        self.stream_messages = make.totals("felixpy_stream_messages", "Messages taken from the broker.")
        self.stream_bytes = make.totals("felixpy_stream_bytes", "Bytes of their payloads.")
        self.stream_got = make.gauge("felixpy_stream_got", "Objects of the snapshot that have arrived.")
        self.stream_want = make.gauge("felixpy_stream_want", "Objects that the snapshot should have, 0 if unknown.")

    def _make_objects(self, make: _Maker) -> None:
        self.local_endpoints = make.gauge("felix_active_local_endpoints", "Endpoints of this node.")
        self.endpoints = make.gauge(
            "felix_cluster_num_workload_endpoints", "Endpoints known, of this node and of others."
        )
        self.hosts = make.gauge("felix_cluster_num_hosts", "Nodes known.")
        self.local_policies = make.gauge("felix_active_local_policies", "Policies that local endpoints are asked.")
        self.local_selectors = make.gauge("felix_active_local_selectors", "Selectors that their rules name.")
        self.policies = make.gauge("felix_cluster_num_policies", "Policies known, staged ones too.")
        self.profiles = make.gauge("felix_cluster_num_profiles", "Profiles known, those of namespaces too.")
        self.tiers = make.gauge("felix_cluster_num_tiers", "Tiers known.")
        self.host_endpoints = make.gauge("felix_cluster_num_host_endpoints", "Host endpoints known.")
        self.policy_packets = PolicyPackets()
        self.open_endpoints = make.gauge(
            "felixpy_open_endpoints", "Endpoints of this node without profile and, in a direction, without policy."
        )
        self.programmed_seconds = make.histogram(
            "felixpy_endpoint_programmed_seconds",
            "From the arrival of an endpoint's update to the kernel's acknowledgement.",
        )
        self.published_seconds = make.histogram(
            "felixpy_endpoint_published_seconds",
            "From the publishing of an endpoint's update, by the publisher's clock, to the kernel's acknowledgement.",
        )
        self.problems = make.gauge("felixpy_problems", "Objects with something wrong.", "kind")
        self.ignored = make.counter("felixpy_ignored", "Unknown kinds, topics and fields in the stream.", "what")
        self.left_out = make.gauge("felixpy_objects_left_out", "Objects beyond MaxObjects.")
        self.ways = make.gauge(
            "felixpy_ways", "Ways to other nodes, one for each pool of a node, by how packets travel.", "family", "way"
        )
        self.wireguard_peers = make.gauge(
            "felixpy_wireguard_peers", "Peers of WireGuard by their last handshake.", "family", "handshake"
        )
        self.wireguard_bytes = make.gauge(
            "felixpy_wireguard_bytes", "Bytes to and from the peers that there are.", "family", "direction"
        )
        self.workload_mtu = make.gauge("felixpy_workload_mtu_bytes", "MTU that workloads may use; 0: not known yet.")

    def _make_cni(self, make: _Maker) -> None:
        self.cni_calls = make.counter(
            "felixpy_cni_calls", "Calls of the CNI plugin that were answered.", "command", "code"
        )
        self.cni_add_seconds = make.histogram("felixpy_cni_add_seconds", "From an ADD to its answer, if it succeeded.")
        self.attachments = make.gauge("felixpy_attachments", "Interfaces of containers that are attached.")

    def _make_apply(self, make: _Maker) -> None:
        self.failures = make.counter("felix_int_dataplane_failures", "Applies that left something unwritten.")
        self.apply_seconds = make.histogram("felixpy_apply_seconds", "Time of one apply that wrote something.")
        self.apply_time = make.quantile_summary(
            "felix_int_dataplane_apply_time_seconds", "Time of one apply that wrote something."
        )
        self.calculation_time = make.quantile_summary(
            "felix_calc_graph_update_time_seconds", "Time to calculate what follows from updates taken together."
        )
        self.initial_resync_seconds = make.gauge(
            "felix_int_dataplane_initial_resync_time_seconds", "From the start to the first complete apply."
        )
        self.batch_size = make.summary("felix_int_dataplane_msg_batch_size", "Updates taken together before one apply.")
        self.writes = make.counter("felixpy_kernel_writes", "Entries written or removed.")
        self.ready = make.gauge("felixpy_ready", "1 once the first complete apply succeeded.", "family")

    def _make_tables(self, make: _Maker) -> None:
        self.entries = make.gauge("felixpy_table_entries", "Entries that felixpy wants.", "table")
        self.committed = make.gauge("felixpy_table_committed", "Entries that the kernel is believed to hold.", "table")
        self.refused = make.gauge("felixpy_table_failed", "Entries that the kernel refused or others undo.", "table")
        self.waiting = make.gauge("felixpy_table_waiting", "Entries that wait for an interface or an address.", "table")
        self.repairs = make.totals(
            "felixpy_repairs", "Entries that others changed or removed and we repaired.", "cause"
        )
        self.netlink_messages = make.totals("felixpy_netlink_messages", "Netlink messages sent to write.", "socket")
        self.netlink_bytes = make.totals("felixpy_netlink_bytes", "Bytes of them.", "socket")

    def _make_routing(self, make: _Maker) -> None:
        self.routes = make.gauge("felix_route_table_num_routes", "Our routes in the kernel.", "table")
        self.interfaces = make.gauge("felix_route_table_num_ifaces", "Workload interfaces that there are.", "table")
        self.route_resyncs = make.summary(
            "felix_route_table_resync_seconds", "Reading our routes of all interfaces and both families."
        )
        self.route_partial_resyncs = make.summary(
            "felix_route_table_partial_resync_seconds", "Reading our routes of one interface."
        )

    def _make_nftables(self, make: _Maker) -> None:
        self.nft_calls = make.totals("felix_nft_calls", "Transactions of rules and set members.")
        self.nft_errors = make.totals("felix_nft_errors", "Transactions that the kernel refused.")
        self.nft_list_calls = make.totals("felix_nft_list_calls", "Dumps of tables, chains, rules, sets and members.")
        self.nft_list_errors = make.totals("felix_nft_list_errors", "Readings that a refused dump ended.")
        self.nft_chains = make.gauge("felix_nft_chains", "Our chains in the kernel.", "ip_version", "table")
        self.nft_rules = make.gauge("felix_nft_rules", "Our rules in the kernel.", "ip_version", "table")
        self.nft_sets = make.gauge("felix_nft_sets", "Our sets in the kernel.", "ip_version")

    def _make_iptables(self, make: _Maker) -> None:
        self.save_calls = make.totals("felix_iptables_save_calls", "Processes of iptables-save.")
        self.save_errors = make.totals("felix_iptables_save_errors", "Those that failed.")
        self.restore_calls = make.totals(
            "felix_iptables_restore_calls", "Processes of iptables-nft-restore, or legacy tables committed."
        )
        self.restore_errors = make.totals("felix_iptables_restore_errors", "Those that failed.")
        self.iptables_lines = make.totals(
            "felix_iptables_lines_executed", "Changes of chains and rules in them.", "ip_version", "table"
        )
        self.iptables_chains = make.gauge("felix_iptables_chains", "Our chains in the kernel.", "ip_version", "table")
        self.iptables_rules = make.gauge("felix_iptables_rules", "Our rules in the kernel.", "ip_version", "table")
        self.ipset_calls = make.totals("felix_ipset_calls", "Requests to IP sets that were sent together, and dumps.")
        self.ipset_errors = make.totals("felix_ipset_errors", "Those of which the kernel refused something.")
        self.ipset_lines = make.totals("felix_ipset_lines_executed", "Changes of IP sets and members.")
        self.ipsets = make.gauge("felix_ipsets_calico", "Our IP sets in the kernel.", "ip_version")
        self.ipsets_total = make.gauge("felix_ipsets_total", "IP sets of all programs, when they were last read.")

    def _make_process(self, make: _Maker) -> None:
        self.loop_lag_seconds = make.histogram(
            "felixpy_loop_lag_seconds", "How late the event loop was, every five seconds."
        )
        self.logs_dropped = make.totals("felix_logs_dropped", "Lines left out: there were too many of their event.")
        self.log_errors = make.totals("felix_log_errors", "Lines that standard error did not take.")

    @cached_property
    def registry(self) -> CollectorRegistry:
        """All of it for prometheus_client, which is imported here: see ``felixpy.observe.metric_types``."""
        from felixpy.observe.exposition import registry_of

        return registry_of(self.counted)

    async def latest(self) -> bytes:
        """Exposition format, with what others count as they count it now."""
        for read in self.read_first:
            await read()
        return self.text()

    def text(self) -> bytes:
        """Exposition format, with what others count as it was read last."""
        for sample in self.sampled:
            sample()
        from prometheus_client import generate_latest

        return generate_latest(self.registry) + self.policy_packets.text


def count_stream(metrics: Metrics, messages: int, size: int) -> None:
    """Take over what a source has counted: messages, and bytes of their payloads."""
    metrics.stream_messages.take(messages)
    metrics.stream_bytes.take(size)


def count_log(metrics: Metrics, dropped: int, errors: int) -> None:
    """Take over what the log has counted: lines left out, and lines that could not be written."""
    metrics.logs_dropped.take(dropped)
    metrics.log_errors.take(errors)
