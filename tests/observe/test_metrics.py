"""Metrics: Felix's names where the meaning is the same, and one registry per agent."""

from __future__ import annotations

import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from felixpy.observe.metric_types import Totals
from felixpy.observe.metrics import Metrics


def samples(metrics: Metrics) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def test_the_text_is_prometheus_own_format_with_felix_names() -> None:
    metrics = Metrics("n1")
    metrics.resync_state.set(3)
    metrics.updates.inc("WorkloadEndpoint", by=2)
    metrics.failures.inc()
    metrics.local_endpoints.set(7)
    metrics.hosts.set(4)
    metrics.apply_time.observe(0.003)
    found = samples(metrics)
    assert found["felix_host{host=n1}"] == 1
    assert found["felix_resync_state{}"] == 3
    assert found["felix_calc_graph_updates_processed_total{type=WorkloadEndpoint}"] == 2
    assert found["felix_int_dataplane_failures_total{}"] == 1
    assert found["felix_active_local_endpoints{}"] == 7
    assert found["felix_cluster_num_hosts{}"] == 4
    assert found["felix_int_dataplane_apply_time_seconds_count{}"] == 1
    assert found["felix_int_dataplane_apply_time_seconds{quantile=0.99}"] == 0.003


def test_every_metric_of_ours_says_whose_it_is_and_what_it_means() -> None:
    families = list(text_string_to_metric_families(Metrics("n1").text().decode()))
    assert {family.name.partition("_")[0] for family in families} == {"felix", "felixpy", "process"}
    assert all(family.documentation.endswith(".") for family in families)


FELIX_COUNTERS = {
    "resyncs_started",
    "calc_graph_updates_processed",
    "int_dataplane_failures",
    "ipset_calls",
    "ipset_errors",
    "ipset_lines_executed",
    "iptables_save_calls",
    "iptables_save_errors",
    "iptables_restore_calls",
    "iptables_restore_errors",
    "iptables_lines_executed",
    "nft_calls",
    "nft_errors",
    "nft_list_calls",
    "nft_list_errors",
    "logs_dropped",
    "log_errors",
}
"""Those of Felix that we have, as Felix names them on the wire, without ``felix_``."""


def test_counters_of_felix_are_there_by_felix_own_names_too() -> None:
    metrics = Metrics("n1")
    metrics.failures.inc(by=3)
    metrics.updates.inc("IPPool", by=2)
    metrics.nft_calls.take(5, source="4")
    metrics.iptables_lines.take(7, "4", "filter")
    found = samples(metrics)
    assert found["felix_int_dataplane_failures{}"] == 3
    assert found["felix_calc_graph_updates_processed{type=IPPool}"] == 2
    assert found["felix_nft_calls{}"] == 5
    assert found["felix_iptables_lines_executed{ip_version=4,table=filter}"] == 7
    twins = {name: value for name, value in found.items() if name.startswith("felix_") and "_total{" in name}
    del twins["felix_ipsets_total{}"]  # a gauge, of this name with Felix, too
    assert {name.replace("_total{", "{"): value for name, value in twins.items()}.items() <= found.items()
    names = {line.split()[2] for line in metrics.text().decode().splitlines() if line.startswith("# TYPE felix_")}
    assert {f"felix_{name}" for name in FELIX_COUNTERS} <= names
    assert all(f"felix_{name}_total" in names for name in FELIX_COUNTERS)
    assert not any(name.startswith("felixpy_kernel_writes{") for name in found), "ours have one name"


FELIX_DASHBOARD = (
    ("felix_cluster_num_hosts", ""),
    ("felix_cluster_num_policies", ""),
    ("felix_cluster_num_profiles", ""),
    ("felix_cluster_num_tiers", ""),
    ("felix_cluster_num_workload_endpoints", ""),
    ("felix_cluster_num_host_endpoints", ""),
    ("process_start_time_seconds", ""),
    ("felix_resyncs_started", ""),
    ("process_cpu_seconds_total", ""),
    ("process_open_fds", ""),
    ("process_resident_memory_bytes", ""),
    ("felix_active_local_endpoints", ""),
    ("felix_active_local_policies", ""),
    ("felix_active_local_selectors", ""),
    ("felix_calc_graph_update_time_seconds_sum", ""),
    ("felix_calc_graph_update_time_seconds_count", ""),
    ("felix_calc_graph_update_time_seconds", "quantile=0.99"),
    ("felix_int_dataplane_apply_time_seconds_sum", ""),
    ("felix_int_dataplane_apply_time_seconds_count", ""),
    ("felix_int_dataplane_apply_time_seconds", "quantile=0.99"),
    ("felix_ipset_errors", ""),
    ("felix_iptables_restore_errors", ""),
    ("felix_iptables_save_errors", ""),
)
"""What the dashboard for Felix in Calico's manifests (grafana.com 12175, as of August 2026) asks for, with the label by
which it chooses; but what docs/metrics.md says is not there, and the gauges of iptables, which need that back-end."""


def test_the_published_dashboard_of_felix_finds_data() -> None:
    found = samples(Metrics("n1"))
    assert [name for name, label in FELIX_DASHBOARD if f"{name}{{{label}}}" not in found] == []


def test_quantiles_are_of_the_latest_values() -> None:
    metrics = Metrics("n1")
    assert math.isnan(samples(metrics)["felix_int_dataplane_apply_time_seconds{quantile=0.5}"])
    for seconds in (*[9.0] * 2000, *[1.0] * 900, *[2.0] * 100):
        metrics.apply_time.observe(seconds)
    found = samples(metrics)
    quantiles = [found[f"felix_int_dataplane_apply_time_seconds{{quantile={share}}}"] for share in (0.5, 0.9, 0.99)]
    assert quantiles == [1.0, 2.0, 2.0]
    assert found["felix_int_dataplane_apply_time_seconds_count{}"] == 3000


def test_two_agents_in_one_process_do_not_mix() -> None:
    one, two = Metrics("n1"), Metrics("n2")
    one.writes.inc(by=5)
    assert samples(one)["felixpy_kernel_writes_total{}"] == 5
    assert samples(two)["felixpy_kernel_writes_total{}"] == 0
    assert "felix_host{host=n1}" not in samples(two)


@pytest.mark.parametrize("seconds", [0.0001, 0.7, 100.0])
def test_buckets_hold_any_duration(seconds: float) -> None:
    metrics = Metrics("n1")
    metrics.programmed_seconds.observe(seconds)
    found = samples(metrics)
    assert found["felixpy_endpoint_programmed_seconds_bucket{le=+Inf}"] == 1
    assert found["felixpy_endpoint_programmed_seconds_sum{}"] == pytest.approx(seconds)


def test_a_counter_that_others_keep_never_falls() -> None:
    """A back-end's counters go with it, and the next one begins at 0."""
    totals = Totals("felix_x", "Something.")
    for value, expected in ((3, 3), (5, 5), (5, 5), (2, 7), (4, 9), (0, 9)):
        totals.take(value)
        assert [sample.value for sample in totals.samples()] == [expected]
    by_cause = Totals("felix_y", "Something.", "cause")
    assert list(by_cause.samples()) == []
    by_cause.take(4, "removed", source="routes")
    by_cause.take(2, "removed", source="rules")
    by_cause.take(1, "removed", source="rules")
    assert [(sample.labels, sample.value) for sample in by_cause.samples()] == [({"cause": "removed"}, 7)]
