"""Endpoints of other nodes, which policies ask for: followed up to a limit, complete by all manifests, or told of."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from felixpy.calc.policy.classes import Direction
from felixpy.config import MqttPeers
from felixpy.model.resources import Kind, ResourceKey, WorkloadEndpoint
from felixpy.mqtt.connection import Connection, SubscriptionRefused
from felixpy.mqtt.other_nodes import FILTERS, MANIFESTS
from felixpy.mqtt.scope import Scope
from felixpy.mqtt.topics import SHARED, key_on, scope_of
from felixpy.sources import SyncState
from felixpy.sources import mqtt as mqtt_source
from felixpy.sources.mqtt import MqttSource
from tests.broker import Broker, running
from tests.policy.node import Node
from tests.policy.walk import Packet
from tests.sources.stream_lab import NODE, ROOT, endpoint, following, node, pool, put, settings_for, wep_key
from tests.sources.test_rights import RULES, broker_with_rules, source_of
from tests.sources.test_snapshot import QUIET, TIMEOUT, Stream, manifest_for, some_content

OTHERS = {f"wep/n{number}/ns/w": f"of n{number}".encode() for number in (2, 3)}


def with_others(limit: int = 100) -> tuple[Stream, dict[str, bytes]]:
    """A stream that follows others, and what a cluster of three nodes has."""
    return Stream(limit), {**some_content(), **OTHERS, "node/n2": b"node", "node/n3": b"node"}


def tell_manifests(stream: Stream, content: dict[str, bytes]) -> None:
    for scope in sorted({SHARED, *map(scope_of, content)}):
        stream.manifest(scope, manifest_for(content, scope))


# --- decisions ---------------------------------------------------------------------------------------------------


def test_one_filter_finds_all_endpoints_and_none_overlaps_with_another() -> None:
    stream, _ = with_others()
    filters = stream.snapshot.filters
    assert (*FILTERS, MANIFESTS) == ("wep/+/#", "hep/+/#", "sync/node/+")
    assert [name for name in filters if name.startswith(("wep", "hep"))] == list(FILTERS)
    assert stream.snapshot.manifest_filters == ("sync/shared", MANIFESTS)


def test_in_sync_only_when_each_nodes_manifest_is_met() -> None:
    stream, content = with_others()
    tell_manifests(stream, content)
    *most, last = content.items()
    stream.messages(dict(most))
    assert stream.state is SyncState.RESYNC
    stream.message("wep/n3/ns/w", b"of n3")
    stream.message(*last)
    assert stream.state is SyncState.IN_SYNC
    assert stream.statuses[-1].peers == ""
    assert stream.held == content


def test_what_another_node_lacks_is_read_again_and_named() -> None:
    stream, content = with_others()
    tell_manifests(stream, content)
    stream.messages({topic: payload for topic, payload in content.items() if not topic.startswith("wep/n3")})
    stream.wait(TIMEOUT + 4)
    assert "wep/n3/ns/+" in stream.reads and "wep/n3/ns/+" in stream.stops
    assert not any(name.startswith("wep/n2") for name in stream.reads)
    stream.wait(2 * TIMEOUT)
    assert stream.state is SyncState.DEGRADED
    assert "wep 0/1" in stream.reason and "sync/node/n3" in stream.reason
    stream.message("wep/n3/ns/w", b"of n3")
    stream.wait(1)
    assert stream.state is SyncState.IN_SYNC


def test_endpoints_that_vanished_while_nobody_listened_are_removed_after_all_is_known() -> None:
    stream, content = with_others()
    tell_manifests(stream, content)
    stream.messages(content)
    stream.reconnect()
    left = {topic: payload for topic, payload in content.items() if not topic.startswith("wep/n3")}
    tell_manifests(stream, left)  # of n3 not even a manifest is left
    assert stream.removed == []
    stream.messages(left)
    stream.wait(QUIET + 1)
    assert stream.state is SyncState.IN_SYNC
    assert stream.removed == ["wep/n3/ns/w"]


def test_nodes_without_manifest_are_believed_after_a_silence() -> None:
    stream, content = with_others()
    stream.manifest(SHARED, manifest_for(content, SHARED))
    stream.messages(content)
    assert stream.state is SyncState.RESYNC
    stream.wait(QUIET + 0.2)
    assert stream.state is SyncState.IN_SYNC


def test_too_many_are_not_followed_and_the_own_ones_are_read_alone() -> None:
    stream, content = with_others(limit=1)
    stream.message("wep/n2/ns/w", b"of n2")
    tell_manifests(stream, content)
    assert stream.stops == [MANIFESTS, *FILTERS]
    assert set(stream.reads) >= {"sync/node/n1", "wep/n1/#", "hep/n1/#"}
    assert stream.removed == ["wep/n2/ns/w"]
    stream.message("wep/n3/ns/w", b"was on its way")
    stream.messages({topic: payload for topic, payload in content.items() if topic not in OTHERS})
    assert stream.state is SyncState.IN_SYNC
    assert stream.statuses[-1].peers == "there are 2, and 1 are followed (FELIX_MQTTPEERS)"
    assert not OTHERS.keys() & stream.held.keys()
    stream.reconnect()
    assert stream.snapshot.filters[-2:] == ("wep/n1/#", "hep/n1/#")


def test_once_followed_they_stay_followed_when_they_become_more() -> None:
    stream, content = with_others(limit=2)
    tell_manifests(stream, content)
    stream.messages(content)
    assert stream.state is SyncState.IN_SYNC
    stream.message("wep/n2/ns/more", b"one more")
    stream.message("wep/n4/ns/more", b"and of a new node")
    assert (stream.stops, stream.removed) == ([], [])
    assert "wep/n4/ns/more" in stream.held


def test_other_nodes_of_which_nothing_is_shown_are_told() -> None:
    stream, content = with_others()
    own = {topic: payload for topic, payload in content.items() if topic not in OTHERS}
    tell_manifests(stream, own)
    stream.messages(own)
    assert stream.state is SyncState.IN_SYNC
    assert "shows none of 2 other nodes" in stream.statuses[-1].peers
    stream.message("wep/n2/ns/w", b"there")
    assert stream.statuses[-1].peers == ""


def test_a_message_looks_at_no_other_nodes_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    judge, matches = Scope.judge, Scope.matches

    def counting_judge(scope: Scope, *, quiet: bool) -> bool:
        looked.append(scope.name)
        return judge(scope, quiet=quiet)

    def counting_matches(scope: Scope) -> bool:
        looked.append(scope.name)
        return matches(scope)

    stream = Stream(10_000)
    content = {f"wep/m{number}/ns/w": b"x" for number in range(200)}
    tell_manifests(stream, content)
    monkeypatch.setattr(Scope, "judge", counting_judge)
    monkeypatch.setattr(Scope, "matches", counting_matches)
    stream.messages(content)
    stream.message("wep/m7/ns/w", b"changed")
    stream.manifest("node/m7", manifest_for({**content, "wep/m7/ns/w": b"changed"}, "node/m7"))
    assert len(looked) < 4 * len(content)


@pytest.mark.parametrize(
    ("topic", "expected"),
    [
        ("wep/n1/ns/w", ResourceKey(Kind.WORKLOAD_ENDPOINT, "w", "ns")),
        ("wep/n2/ns/w", ResourceKey(Kind.WORKLOAD_ENDPOINT, "wep/n2/ns/w")),
        ("hep/n2/eth0", ResourceKey(Kind.HOST_ENDPOINT, "hep/n2/eth0")),
        ("wep/n2/ns", None),
        ("wep/n2/ns/", None),
        ("hep/n2/eth0/more", None),
        ("ippool/a", ResourceKey(Kind.IP_POOL, "a")),
        ("nonsense/a", None),
    ],
)
def test_one_name_on_two_nodes_is_two_keys(topic: str, expected: ResourceKey | None) -> None:
    assert key_on(topic, NODE) == expected


# --- a broker ----------------------------------------------------------------------------------------------------


CLUSTER = {
    "ippool/a": pool("a"),
    "node/n1": node("n1"),
    "node/n2": node("n2", "192.0.2.2/24"),
    "wep/n1/default/w": endpoint("w"),
    "wep/n2/default/w": endpoint("w", node="n2", address="10.0.0.2"),
}
PEER = ResourceKey(Kind.WORKLOAD_ENDPOINT, "wep/n2/default/w")


def test_endpoints_of_other_nodes_come_beside_the_own_ones_and_go(tmp_path: Path) -> None:
    async def scenario(broker: Broker) -> None:
        await put(broker, CLUSTER)
        async with following(MqttSource(settings_for(broker), NODE)) as sink:
            await sink.state(SyncState.IN_SYNC)
            mine, other = sink.held[wep_key("w")], sink.held[PEER]
            assert isinstance(mine, WorkloadEndpoint) and isinstance(other, WorkloadEndpoint)
            assert (mine.node, other.node, other.key) == ("n1", "n2", PEER)
            # It moves here: whichever of the two topics is heard of first, the own endpoint stays.
            await put(broker, {"wep/n1/default/x": endpoint("x", address="10.0.0.2"), "wep/n2/default/w": b""})
            await sink.until(lambda: wep_key("x") in sink.held and PEER not in sink.held)
            assert wep_key("w") in sink.held
            await put(broker, {"wep/n2/default/bad": b"{}", "wep/n2/default/z": endpoint("z", node="n2")})
            await sink.until(lambda: PEER._replace(name="wep/n2/default/z") in sink.held)
            assert sink.errors == {}

    with running(tmp_path) as broker:
        asyncio.run(scenario(broker))


def test_a_rule_finds_the_pods_of_other_nodes(tmp_path: Path) -> None:
    """From the broker to the members of a set: whoever has the label on n2 is denied on n1."""
    labelled = endpoint("w", node="n2", address="10.0.0.2")
    labelled["metadata"]["labels"] = {"app": "bad"}
    rules = [{"action": "Deny", "source": {"selector": "app == 'bad'"}}, {"action": "Allow"}]
    denying = {"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy", "metadata": {"name": "p"}}
    objects = {**CLUSTER, "wep/n2/default/w": labelled, "policy/global/p": {**denying, "spec": {"ingress": rules}}}

    async def scenario(broker: Broker) -> None:
        await put(broker, objects)
        async with following(MqttSource(settings_for(broker), NODE)) as sink:
            await sink.state(SyncState.IN_SYNC)
            world = Node(NODE).put(*sink.held.values()).world()
            own = bytes((10, 0, 0, 1))
            assert not world.decides("caliw", Direction.INGRESS, Packet(bytes((10, 0, 0, 2)), own))
            assert world.decides("caliw", Direction.INGRESS, Packet(bytes((10, 0, 0, 3)), own))

    with running(tmp_path) as broker:
        asyncio.run(scenario(broker))


@pytest.mark.parametrize(("peers", "limit"), [(MqttPeers.DISABLED, 10_000), (MqttPeers.AUTO, 0)])
def test_without_them_the_own_ones_are_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peers: MqttPeers, limit: int
) -> None:
    """Switched off, or too many: those that are there are more than none."""
    monkeypatch.setitem(mqtt_source.PEERS_FOLLOWED, MqttPeers.AUTO, limit or 1)

    async def scenario(broker: Broker) -> None:
        await put(broker, {**CLUSTER, "wep/n2/default/v": endpoint("v", node="n2", address="10.0.0.3")})
        async with following(MqttSource(settings_for(broker, mqtt_peers=peers), NODE)) as sink:
            await sink.state(SyncState.IN_SYNC)
            await sink.until(lambda: "FELIX_MQTTPEERS" in sink.status.peers)
            await put(broker, {"wep/n1/default/x": endpoint("x", address="10.0.0.9")})
            await sink.until(lambda: wep_key("x") in sink.held)
            assert {key for key in sink.held if key.kind is Kind.WORKLOAD_ENDPOINT} == {wep_key("w"), wep_key("x")}

    with running(tmp_path) as broker:
        asyncio.run(scenario(broker))


def test_rules_that_hide_them_are_told_and_those_that_show_them_are_in_the_shipped_file(tmp_path: Path) -> None:
    async def scenario(broker: Broker) -> None:
        await put(broker, CLUSTER)
        async with following(source_of(broker, "n1")) as sink:
            await sink.state(SyncState.IN_SYNC)
            assert "shows none of 1 other nodes" in sink.status.peers and PEER not in sink.held
            assert wep_key("w") in sink.held
            shown = RULES.read_text().replace(f"# pattern read {ROOT}", f"pattern read {ROOT}")
            (tmp_path / "acl").write_text(shown)
            await sink.lost(broker.restart)
            await sink.until(lambda: PEER in sink.held)
            await sink.until(lambda: sink.status.state is SyncState.IN_SYNC and not sink.status.peers)

    with broker_with_rules(tmp_path, RULES.read_text()) as broker:
        asyncio.run(scenario(broker))


def test_a_broker_that_refuses_the_filters_leaves_the_own_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mosquitto grants every subscription; other brokers refuse what their rules do not allow."""
    subscribe = Connection.subscribe

    async def refusing(connection: Connection, filters: tuple[str, ...], *, options: Any) -> None:
        if any(name.startswith(f"{ROOT}/sync/node/+") for name in filters):
            raise SubscriptionRefused("the broker refuses the subscription to all manifests")
        await subscribe(connection, filters, options=options)

    monkeypatch.setattr(Connection, "subscribe", refusing)

    async def scenario(broker: Broker) -> None:
        await put(broker, CLUSTER)
        async with following(MqttSource(settings_for(broker), NODE)) as sink:
            await sink.state(SyncState.IN_SYNC)
            assert "refuses the subscription" in sink.status.peers
            assert wep_key("w") in sink.held and PEER not in sink.held

    with running(tmp_path) as broker:
        asyncio.run(scenario(broker))
