"""Metrics that are counted only when somebody asks, taken from what the agent keeps anyway.

Invariant: looks only, and adds nothing to the path of an update. What another back-end than the one in use
would have has no series; counters of one that was in use stand still.
"""

from __future__ import annotations

import time
from collections import Counter

from felixpy.agent.status import Subject
from felixpy.calc.entries import MAIN_TABLE, STANDING_SETS
from felixpy.calc.mtu import OWN_IPIP
from felixpy.calc.overlay import DEVICES
from felixpy.calc.underlay import Way
from felixpy.dataplane.backend import Backend
from felixpy.dataplane.filter_tables import FilterTables
from felixpy.dataplane.nftables.seen import EVERY_SET
from felixpy.model.net import Family
from felixpy.model.resources import POLICY_KINDS, HostEndpoint, Kind, Policy, Profile, ResourceKey, Tier
from felixpy.observe.metric_types import Gauge
from felixpy.observe.metrics import Metrics

TRAVELS = {OWN_IPIP: Way.IPIP, **{device.value: way for (way, _), device in DEVICES.items()}}
"""How packets travel through a device; natively through any other."""

HANDSHAKES = ("recent", "old", "never")
"""Whether a peer of WireGuard shook hands within the time for which keys are good, before that, or not yet."""

IPSET_VERSIONS = {Family.V4: "inet", Family.V6: "inet6"}
"""Felix's values of the label ``ip_version`` where it counts IP sets; elsewhere it says 4 and 6."""


def sample(agent: Subject) -> None:
    """Set the metrics that are counted only when somebody asks."""
    metrics = agent.metrics
    metrics.local_endpoints.set(len(agent.outcome.reported))
    metrics.endpoints.set(len(agent.store.endpoints) + len(agent.store.remote))
    metrics.hosts.set(len(agent.store.nodes))
    _sample_policy(agent)
    metrics.stream_got.set(agent.stream.got)
    metrics.stream_want.set(agent.stream.want)
    _sample_tables(agent)
    _sample_routing(agent)
    _sample_ways(agent)
    _sample_wireguard(agent)
    _sample_filters(agent)


def _sample_policy(agent: Subject) -> None:
    metrics, policy, known = agent.metrics, agent.calculation.policy, agent.store.policy
    counts = policy.counts()
    metrics.local_policies.set(counts["policies"])
    metrics.local_selectors.set(counts["selectors"])
    metrics.open_endpoints.set(sum(1 for _ in policy.open_endpoints()))
    for metric, holds in (
        (metrics.policies, Policy),
        (metrics.profiles, Profile),
        (metrics.tiers, Tier),
        (metrics.host_endpoints, HostEndpoint),
    ):
        metric.set(sum(len(known[kind]) for kind, held in POLICY_KINDS.items() if held is holds))


def _sample_tables(agent: Subject) -> None:
    metrics = agent.metrics
    for table in agent.dataplane.tables():
        metrics.entries.set(len(table.desired), table.name)
        metrics.committed.set(len(table.committed), table.name)
        metrics.refused.set(len(table.refused), table.name)
        metrics.waiting.set(len(table.waiting), table.name)
        for cause, count in table.repairs.items():
            metrics.repairs.take(count, cause, source=table.name)
    for name, socket in agent.dataplane.sockets().items():
        metrics.netlink_messages.take(socket.messages_sent, name)
        metrics.netlink_bytes.take(socket.bytes_sent, name)


def _sample_routing(agent: Subject) -> None:
    metrics, routes = agent.metrics, agent.dataplane.routing.routes
    prefix = agent.settings.interface_prefix
    interfaces = sum(1 for name in agent.dataplane.links.by_name if name.startswith(prefix))
    numbers = Counter(f"{key.family}:{key.table}" for key in routes.table.committed)
    for name in {*numbers, *(f"{family}:{MAIN_TABLE}" for family in agent.families())}:
        metrics.routes.set(numbers[name], name)
        metrics.interfaces.set(interfaces, name)
    for durations, spent in ((metrics.route_resyncs, routes.whole), (metrics.route_partial_resyncs, routes.partial)):
        durations.times, durations.total = spent.times, spent.seconds


def _sample_ways(agent: Subject) -> None:
    """What leads nowhere is a way without a nexthop: the node's problem says why."""
    counts: Counter[tuple[Family, str]] = Counter()
    for key, nexthop in agent.dataplane.routing.nexthops.table.desired.items():
        counts[key.family, TRAVELS.get(nexthop.interface, Way.NATIVE)] += 1
    for way in agent.store.ways.all():
        pool = agent.store.pools.get(ResourceKey(Kind.IP_POOL, way.namespace))
        if pool is not None:
            counts[pool.cidr.family, "none"] += not any(agent.calculation.keys_of_part(way))
    for family in agent.families():
        for name in (*Way, "none"):
            agent.metrics.ways.set(counts[family, name], str(family.version), name)


def _sample_wireguard(agent: Subject) -> None:
    """As the last reading of interfaces found it: nothing tells of it, and a scrape asks no device."""
    metrics, now = agent.metrics, time.time()
    counts: Counter[tuple[Family, str]] = Counter()
    moved: Counter[tuple[Family, str]] = Counter()
    for key, traffic in agent.dataplane.routing.peers.traffic.items():
        state = "recent" if traffic.is_recent(now) else "old" if traffic.handshake else "never"
        counts[key.family, state] += 1
        moved[key.family, "received"] += traffic.received
        moved[key.family, "sent"] += traffic.sent
    for family in agent.families():
        if not agent.calculation.settings.encrypts(family):
            continue
        for state in HANDSHAKES:
            metrics.wireguard_peers.set(counts[family, state], str(family.version), state)
        for direction in ("received", "sent"):
            metrics.wireguard_bytes.set(moved[family, direction], str(family.version), direction)


def _sample_filters(agent: Subject) -> None:
    metrics = agent.metrics
    for gauge in (metrics.nft_chains, metrics.nft_rules, metrics.nft_sets):
        gauge.clear()
    for gauge in (metrics.iptables_chains, metrics.iptables_rules, metrics.ipsets):
        gauge.clear()
    metrics.ipsets_total.set(0)
    for tables in agent.dataplane.filters.values():
        if agent.backend is Backend.NFTABLES:
            _sample_nftables(metrics, tables)
        else:
            _sample_iptables(metrics, tables)


def _sample_nftables(metrics: Metrics, tables: FilterTables) -> None:
    counts, version = tables.filter.counts(), str(tables.family.version)
    metrics.nft_calls.take(counts.writes, source=version)
    metrics.nft_errors.take(counts.write_errors, source=version)
    metrics.nft_list_calls.take(counts.reads, source=version)
    metrics.nft_list_errors.take(counts.read_errors, source=version)
    metrics.nft_sets.set(len(EVERY_SET) + len(tables.sets.committed) if tables.containers else 0, version)
    _sample_rules(tables, metrics.nft_chains, metrics.nft_rules)


def _sample_iptables(metrics: Metrics, tables: FilterTables) -> None:
    counts, version = tables.filter.counts(), str(tables.family.version)
    metrics.save_calls.take(counts.reads, source=version)
    metrics.save_errors.take(counts.read_errors, source=version)
    metrics.restore_calls.take(counts.writes, source=version)
    metrics.restore_errors.take(counts.write_errors, source=version)
    for table, lines in counts.lines.items():
        metrics.iptables_lines.take(lines, version, table)
    metrics.ipset_calls.take(counts.set_calls, source=version)
    metrics.ipset_errors.take(counts.set_errors, source=version)
    metrics.ipset_lines.take(counts.set_lines, source=version)
    sets = len(STANDING_SETS) + len(tables.sets.committed) if tables.containers else 0
    metrics.ipsets.set(sets, IPSET_VERSIONS[tables.family])
    metrics.ipsets_total.set(counts.all_sets)
    _sample_rules(tables, metrics.iptables_chains, metrics.iptables_rules)


def _sample_rules(tables: FilterTables, chains: Gauge, rules: Gauge) -> None:
    version = str(tables.family.version)
    numbers: Counter[str] = Counter()
    lengths: Counter[str] = Counter()
    for chain, content in tables.chains.committed.items():
        numbers[chain.table] += 1
        lengths[chain.table] += len(content)
    for table, number in numbers.items():
        chains.set(number, version, table)
        rules.set(lengths[table], version, table)
