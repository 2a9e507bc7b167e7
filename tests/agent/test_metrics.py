"""What a running agent's metrics say of the kernel is what the kernel's own tools say."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path

import aiomqtt
import pytest
import yaml
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from felixpy.calc.entries import STANDING_SETS
from felixpy.demo.resources import felix_configuration, ip_pool
from felixpy.observe.policy_packets import Decider
from tests.agent.bench import (
    GOOD,
    LEGACY,
    NFT,
    NFTABLES,
    POOLS,
    ROOT,
    Running,
    endpoint,
    running,
    topic_of,
)
from tests.broker import Broker
from tests.kernel import ip, run

VERSIONS = {"4": "iptables", "6": "ip6tables"}
RULES_TEST = Path(__file__).resolve().parents[2] / "config/prometheus/felixpy.test.yaml"
FELIX_SET_VERSIONS = {"4": "inet", "6": "inet6"}


def sampled(one: Running) -> None:
    one.agent.metrics.text()


async def settled(one: Running) -> None:
    await one.stream.put(*POOLS, GOOD)
    await one.endpoint_is("good", "up")
    sampled(one)


@pytest.mark.parametrize(("environ", "variant"), [(LEGACY, "legacy"), (NFT, "nft")], ids=["legacy", "nft"])
def test_iptables_and_ip_sets(broker: Broker, environ: Mapping[str, str], variant: str) -> None:
    async def scenario() -> None:
        async with running(broker, environ) as one:
            run("ipset", "create", "somebody-else", "hash:ip")
            await settled(one)
            for version, program in VERSIONS.items():
                saved = run(f"{program}-{variant}-save", "-t", "filter")
                labels = {"ip_version": version, "table": "filter"}
                assert one.metric("felix_iptables_chains", **labels) == len(re.findall("^:fpy-", saved, re.M))
                assert one.metric("felix_iptables_rules", **labels) == len(re.findall("^-A fpy-", saved, re.M)) > 0
                assert one.metric("felix_iptables_lines_executed_total", **labels) > 0
                assert one.metric("felix_ipsets_calico", ip_version=FELIX_SET_VERSIONS[version]) == len(STANDING_SETS)
            assert one.metric("felix_iptables_restore_calls_total") >= 2
            for name in ("iptables_save_errors", "iptables_restore_errors", "ipset_errors", "nft_calls"):
                assert one.metric(f"felix_{name}_total") == 0, name
            assert one.metric("felix_ipset_calls_total") >= 2
            assert one.metric("felix_ipset_lines_executed_total") >= 2 * len(STANDING_SETS)
            calls = one.metric("felix_iptables_restore_calls_total"), one.metric("felix_ipset_lines_executed_total")
            await one.agent.dataplane.read()
            sampled(one)
            assert one.metric("felix_ipsets_total") == 2 * len(STANDING_SETS) + 1, "everybody's sets"
            after = one.metric("felix_iptables_restore_calls_total"), one.metric("felix_ipset_lines_executed_total")
            assert after == calls, "to look changes nothing"
            assert "felix_nft_chains{" not in one.agent.metrics.text().decode()

    asyncio.run(scenario())


def test_nftables(broker: Broker) -> None:
    async def scenario() -> None:
        async with running(broker, NFTABLES) as one:
            await settled(one)
            for version, family in (("4", "ip"), ("6", "ip6")):
                listed = json.loads(run("nft", "-j", "list", "table", family, "felixpy"))["nftables"]
                metrics = {"chain": "felix_nft_chains", "rule": "felix_nft_rules"}
                for kind, metric in metrics.items():
                    said = sum(
                        one.metric(metric, ip_version=version, table=table) for table in ("raw", "filter", "nat")
                    )
                    assert said == sum(kind in item for item in listed) > 0, kind
                # Maps with members of ours count, too; those that rules alone look into are rules.
                names = [item.get("set", item.get("map", {})).get("name", "") for item in listed]
                sets = sum(
                    "set" in item or name.startswith("floating") for item, name in zip(listed, names, strict=True)
                )
                assert one.metric("felix_nft_sets", ip_version=version) == sets
            assert one.metric("felix_nft_calls_total") >= 2
            assert one.metric("felix_nft_list_calls_total") >= 2
            assert one.metric("felix_nft_errors_total") == one.metric("felix_nft_list_errors_total") == 0
            assert one.metric("felix_ipset_calls_total") == one.metric("felix_iptables_restore_calls_total") == 0

    asyncio.run(scenario())


def test_routes_and_interfaces(broker: Broker) -> None:
    async def scenario() -> None:
        async with running(broker) as one:
            await settled(one)
            for table in ("IPv4:254", "IPv6:254"):
                assert one.metric("felix_route_table_num_routes", table=table) == 1
                assert one.metric("felix_route_table_num_ifaces", table=table) == 2, "eth0 is the node's own"
            whole = one.metric("felix_route_table_resync_seconds_count")
            assert whole >= 1
            assert one.metric("felix_route_table_resync_seconds_sum") > 0
            ip("link set cali1 down", "link set cali1 up")
            await one.endpoint_is("good", "up")
            await one.agent.dataplane.routing.read_routes("cali1")
            sampled(one)
            assert one.metric("felix_route_table_partial_resync_seconds_count") >= 1

    asyncio.run(scenario())


def test_only_a_time_that_can_be_true_is_measured(broker: Broker) -> None:
    """A publisher says when it published: what it says wrongly is no latency, and harms nobody."""
    document, now = endpoint("bad", 2), time.time_ns()
    said = {"9" * 5000: False, "9" * 310: False, str(now + 3600 * 10**9): False, str(now): True}

    async def scenario() -> None:
        async with (
            running(broker) as one,
            aiomqtt.Client("127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5) as publisher,
        ):
            await settled(one)
            await one.until(lambda: one.agent.outcome.measures, "the first complete apply")
            before = one.metric("felixpy_endpoint_published_seconds_count")
            for number, (text, counts) in enumerate(said.items()):
                properties = Properties(PacketTypes.PUBLISH)
                properties.UserProperty = [("ts", text)]
                payload = json.dumps({**document, "metadata": {**document["metadata"], "labels": {"n": str(number)}}})
                one.stream.status.clear()
                topic = f"{ROOT}/{topic_of(document)}"
                await publisher.publish(topic, payload, qos=1, retain=True, properties=properties)
                status = await one.endpoint_is("bad", "up")
                assert ("latency_ms" in status) == counts
                assert "agent_ms" in status
            assert one.metric("felixpy_endpoint_published_seconds_count") == before + 1
            assert one.metric("felixpy_endpoint_published_seconds_sum") >= 0

    asyncio.run(scenario())


def exposed(one: Running) -> dict[str, set[tuple[tuple[str, str], ...]]]:
    """Labels of all series that there are, by name."""
    found: dict[str, set[tuple[tuple[str, str], ...]]] = {}
    for family in one.agent.metrics.registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).add(tuple(sorted(sample.labels.items())))
    return found


def test_alerts_are_tried_with_the_labels_that_there_are(broker: Broker) -> None:
    tried: list[tuple[str, tuple[tuple[str, str], ...]]] = []
    for each in yaml.safe_load(RULES_TEST.read_text())["tests"][0]["input_series"]:
        name, labels = each["series"].split("{")
        pairs = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        assert pairs.pop("job") == "felixpy" and pairs.pop("instance"), "Prometheus adds both"
        if name == "felixpy_policy_packets_total":
            assert set(pairs) == set(Decider._fields)  # tests/policy/test_counters.py: what their values are
        elif name != "up":
            tried.append((name, tuple(sorted(pairs.items()))))

    async def scenario() -> None:
        async with running(broker, NFTABLES) as one:
            bad = ip_pool("bad", "10.48.0.1/16")
            await one.stream.put(bad)
            await settled(one)
            await one.until(lambda: one.problems, "the bad pool")
            there = exposed(one)
            assert len(tried) >= 10
            assert [each for each in tried if each[1] not in there[each[0]]] == []

    asyncio.run(scenario())


@pytest.mark.parametrize(("off", "on"), [("6", "IPv4"), ("4", "IPv6")])
def test_nobody_waits_for_a_family_that_is_off(broker: Broker, off: str, on: str) -> None:
    async def scenario() -> None:
        async with running(broker, {**NFTABLES, f"FELIX_IPV{off}SUPPORT": "false"}) as one:
            await settled(one)
            await one.until(lambda: one.metric("felixpy_ready", family=on) == 1, "ready")
            assert exposed(one)["felixpy_ready"] == {(("family", on),)}

    asyncio.run(scenario())


def test_a_family_that_the_stream_switches_off_and_on_goes_and_comes(broker: Broker) -> None:
    async def scenario() -> None:
        async with running(broker, NFTABLES) as one:
            await settled(one)
            await one.until(lambda: one.metric("felixpy_ready", family="IPv6") == 1, "ready")
            await one.stream.put(felix_configuration("default", ipv6Support=False))
            await one.until(lambda: exposed(one)["felixpy_ready"] == {(("family", "IPv4"),)}, "one family")
            await one.stream.put(felix_configuration("default", ipv6Support=True))
            await one.until(lambda: one.metric("felixpy_ready", family="IPv6") == 1, "ready again")

    asyncio.run(scenario())


def test_the_wait_for_an_interface_is_nobody_s_latency(broker: Broker) -> None:
    async def scenario() -> None:
        async with running(broker) as one:
            await settled(one)
            await one.until(lambda: one.agent.outcome.measures, "the first complete apply")
            before = one.metric("felixpy_endpoint_programmed_seconds_count")
            await one.stream.put(endpoint("late", 7))
            await one.endpoint_is("late", "waiting")
            ip("link add cali7 type veth peer name peer7", "link set peer7 up", "link set cali7 up")
            status = await one.endpoint_is("late", "up")
            assert "agent_ms" not in status
            assert one.metric("felixpy_endpoint_programmed_seconds_count") == before

    asyncio.run(scenario())
