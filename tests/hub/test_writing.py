"""A hub and a real broker: it holds what the cluster is, whoever wrote there before, and nodes are in sync with it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import msgspec
import pytest

from felixpy.config import MqttPeers, Settings
from felixpy.demo.patience import Patience
from felixpy.hub.content import ClusterContent
from felixpy.hub.objects import object_reader, pod_reader, read_node
from felixpy.hub.peers import PeerTable
from felixpy.hub.writing import Writing
from felixpy.kubernetes.access import Access, Identity
from felixpy.kubernetes.client import Api
from felixpy.kubernetes.kinds import CALICO_V3, KINDS
from felixpy.kubernetes.names import endpoint_key
from felixpy.model.resources import Kind, ResourceKey, WorkloadEndpoint
from felixpy.mqtt.mirror import EPOCH, Mirror
from felixpy.mqtt.peers import DELTA, decode_peers, endpoint_hash
from felixpy.sources import SyncState
from felixpy.sources.mqtt import MqttSource
from tests.broker import Broker
from tests.hub.test_objects import NODE, raw
from tests.kubernetes.test_conversion import POD, merged
from tests.sources.stream_lab import Recorder, comes_to_retain, endpoint, following, pool, put, retained, settings_for

WEB = endpoint_key("n1", "shop", "web-0")


def in_a_loop(test: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
    """A test that is a coroutine."""

    @functools.wraps(test)
    def run(*args: Any, **named: Any) -> None:
        asyncio.run(test(*args, **named))

    return run


class Cluster:
    """A cluster whose API tells what a test says."""

    def __init__(self, settings: Settings) -> None:
        api = Api(Access(Identity("http://nowhere")))
        self.content = ClusterContent(settings, api, PeerTable("told"))
        self.settings = settings
        self.ippools = next(follower for entry, follower in self.content._kinds if entry.plural == "ippools")
        for _, follower in self.content._kinds:
            follower.listed()
        self.content._pods.listed()
        self.content._nodes.listed()

    def node(self, name: str = "n1", *, exists: bool = True) -> None:
        change = {"metadata": {"name": name}, "spec": None}
        self.content._nodes.changed(("", name), read_node(raw(merged(NODE, change))) if exists else None)

    def pod(self, address: str = "10.0.0.7", name: str = "web-0", node: str = "n1", *, exists: bool = True) -> None:
        change = {
            "metadata": {"name": name, "labels": {"app": "web"}},
            "spec": {"nodeName": node},
            "status": {"podIPs": [{"ip": address}]},
        }
        self.content._pods.changed(("shop", name), pod_reader("cali")(raw(merged(POD, change))) if exists else None)

    def pool(self, cidr: str = "10.0.0.0/16") -> None:
        read = object_reader(next(entry for entry in KINDS if entry.plural == "ippools"), CALICO_V3)
        self.ippools.changed(("", "a"), read(raw({"metadata": {"name": "a"}, "spec": {"cidr": cidr}})))

    @contextlib.asynccontextmanager
    async def written(self, **options: Any) -> AsyncIterator[Writing]:
        writing = Writing(self.settings, self.content, **options)
        task = asyncio.create_task(writing.run())
        try:
            yield writing
            if task.done():
                task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def addresses(sink: Recorder, key: ResourceKey) -> list[str]:
    found = sink.held[key]
    assert isinstance(found, WorkloadEndpoint)
    return [str(net) for net in found.addresses]


async def until(condition: Any) -> None:
    patience = Patience(30)
    while not condition():
        assert not patience.over()
        await asyncio.sleep(0.01)


@in_a_loop
async def test_nodes_are_in_sync_with_what_the_api_tells(broker: Broker) -> None:
    cluster = Cluster(settings_for(broker))
    cluster.node()
    cluster.node("n2")
    cluster.pod()
    cluster.pool()
    async with cluster.written() as writing, following(MqttSource(settings_for(broker), "n1")) as sink:
        await sink.state(SyncState.IN_SYNC)
        assert sink.held.keys() == {
            WEB,
            ResourceKey(Kind.IP_POOL, "a"),
            *(ResourceKey(Kind.NODE, n) for n in ("n1", "n2")),
        }
        await until(lambda: writing.in_sync)
        cluster.pod("10.0.0.8")
        await sink.until(lambda: addresses(sink, WEB) == ["10.0.0.8/32"])
        cluster.pod(exists=False)
        await sink.until(lambda: WEB not in sink.held)
        assert sink.status.state is SyncState.IN_SYNC
    async with following(MqttSource(settings_for(broker), "n2")) as other:
        await other.state(SyncState.IN_SYNC)  # a node without endpoints has a manifest, too
        assert other.held.keys() == {ResourceKey(Kind.IP_POOL, "a"), *(ResourceKey(Kind.NODE, n) for n in ("n1", "n2"))}


@in_a_loop
async def test_another_hub_writes_nothing_that_is_there(broker: Broker) -> None:
    for turn in range(2):
        cluster = Cluster(settings_for(broker))
        cluster.node()
        cluster.pod()
        cluster.pool()
        async with cluster.written() as writing:
            await until(lambda writing=writing: writing.in_sync)
            assert writing.counts.objects == (0 if turn else 3)
            assert turn == 0 or writing.counts.topics == 1  # the delta by which it lives
    there = await retained(broker, "peers/#")
    assert decode_peers(there[DELTA]).number == 2 + 1  # the first hub mended all shards, and left a number out


@in_a_loop
async def test_what_the_api_no_longer_has_goes_with_its_node(broker: Broker) -> None:
    before = Cluster(settings_for(broker))
    before.node()
    before.node("n2")
    before.pod()
    before.pod("10.0.0.9", "db-0", "n2")
    async with before.written() as writing:
        await until(lambda: writing.in_sync)
    now = Cluster(settings_for(broker))
    now.node()
    now.pod()
    async with now.written() as writing:
        await until(lambda: writing.in_sync)
        now.node(exists=False)
        now.pod(exists=False)
        await comes_to_retain(broker, "wep/#", {})
        patience = Patience(30)
        while set(await retained(broker, "sync/#")) != {"sync/shared"}:
            assert not patience.over()


@in_a_loop
async def test_a_broker_that_others_keep_is_left_alone_unless_told(broker: Broker) -> None:
    manifest = {"epoch": "mine", "rev": 3, "counts": {"ippool": 1}}
    theirs = {"sync/shared": manifest, "ippool/b": pool("b"), "wep/n1/default/x": endpoint("x")}
    await put(broker, theirs)
    cluster = Cluster(settings_for(broker))
    cluster.node()
    cluster.pool()
    async with cluster.written() as writing:
        await until(lambda: writing.refusal)
        assert "--take-over" in writing.refusal
        assert not writing.in_sync
    assert set(await retained(broker, "#")) == set(theirs)
    async with cluster.written(take_over=True) as writing:
        await until(lambda: writing.in_sync)
    there = await retained(broker, "#")
    assert not {"ippool/b", "wep/n1/default/x"} & there.keys()
    assert msgspec.json.decode(there["sync/shared"])["epoch"].startswith(EPOCH)


@in_a_loop
async def test_a_broker_that_was_emptied_is_filled_again_and_nothing_moves(broker: Broker) -> None:
    cluster = Cluster(settings_for(broker))
    cluster.node()
    cluster.pod()
    async with cluster.written() as writing, following(MqttSource(settings_for(broker), "n1")) as sink:
        await sink.state(SyncState.IN_SYNC)
        told = len(sink.updates)
        await sink.lost(broker.restart)  # this one keeps nothing
        await sink.state(SyncState.IN_SYNC)
        await until(lambda: writing.in_sync)
        assert len(sink.updates) == told


@in_a_loop
async def test_no_manifest_says_less_than_there_shall_be(broker: Broker) -> None:
    """A broker that is filled in steps: a manifest of nothing would be a proof that all is gone, nodes and policy."""
    cluster = Cluster(settings_for(broker))
    cluster.pool()
    for number in range(3):
        cluster.node(f"n{number}")
        cluster.pod(f"10.0.0.{number + 1}", f"web-{number}", f"n{number}")
    told: list[str] = []

    async def put(mirror: Mirror, topic: str, payload: bytes) -> None:
        told.append(topic)
        await write(mirror, topic, payload)

    write = Mirror.put
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("felixpy.mqtt.mirror.TOPICS_PER_STEP", 1)
        patch.setattr(Mirror, "put", put)
        async with cluster.written() as writing:
            await until(lambda: writing.in_sync)
    manifests = [topic for topic in told if topic.startswith("sync/")]
    assert sorted(manifests) == ["sync/node/n0", "sync/node/n1", "sync/node/n2", "sync/shared"]
    assert told.index("sync/shared") > told.index("ippool/a")


@pytest.mark.parametrize("others", [{"sync/node/n1": {"counts": {}}}, {"sync/shared": {"counts": {}}}])
@in_a_loop
async def test_another_writer_is_overwritten(broker: Broker, others: dict[str, Any]) -> None:
    cluster = Cluster(settings_for(broker))
    cluster.node()
    cluster.pod()
    async with cluster.written() as writing:
        await until(lambda: writing.in_sync)
        await put(broker, others)
        cluster.pod("10.0.0.8")  # it is noticed at the next write
        patience = Patience(30)
        topic = next(iter(others))
        while not msgspec.json.decode((await retained(broker, "sync/#"))[topic])["counts"]:
            assert not patience.over()


@in_a_loop
async def test_a_node_takes_the_endpoints_of_others_from_the_hub(broker: Broker) -> None:
    cluster = Cluster(settings_for(broker))
    cluster.node()
    cluster.node("n2")
    cluster.pod()
    cluster.pod("10.0.0.9", "db-0", "n2")
    peer = ResourceKey(Kind.WORKLOAD_ENDPOINT, f"peer/{endpoint_hash(endpoint_key('n2', 'shop', 'db-0')).hex()}")
    source = MqttSource(settings_for(broker, mqtt_peers=MqttPeers.HUB), "n1")
    async with following(source) as sink:
        async with cluster.written():
            await sink.state(SyncState.IN_SYNC)
            assert {key for key in sink.held if key.kind is Kind.WORKLOAD_ENDPOINT} == {WEB, peer}
            found = sink.held[peer]
            assert isinstance(found, WorkloadEndpoint)
            assert (found.node, found.labels["app"], found.profiles) == ("", "web", ("kns.shop",))
            assert addresses(sink, peer) == ["10.0.0.9/32"]
            cluster.pod("10.0.0.10", "db-0", "n2")
            cluster.pod("10.0.0.8")
            await sink.until(lambda: addresses(sink, peer) == ["10.0.0.10/32"])
            await sink.until(lambda: addresses(sink, WEB) == ["10.0.0.8/32"])
            assert sum(key.kind is Kind.WORKLOAD_ENDPOINT for key in sink.held) == 2
            cluster.pod(name="db-0", node="n2", exists=False)
            await sink.until(lambda: peer not in sink.held)
            cluster.pod("10.0.0.11", "db-0", "n2")
            await sink.until(lambda: peer in sink.held)
        told = len(sink.updates)
        await sink.lost(broker.restart)  # no hub, and a broker that lost everything: nothing goes
        async with cluster.written():
            await sink.state(SyncState.IN_SYNC)
        assert len(sink.updates) == told


@in_a_loop
async def test_a_node_says_that_no_hub_tells_it_of_others(broker: Broker) -> None:
    await put(broker, {"sync/shared": {"counts": {}}, "sync/node/n1": {"counts": {}}})
    source = MqttSource(settings_for(broker, mqtt_peers=MqttPeers.HUB), "n1")
    async with following(source) as sink:
        await sink.until(lambda: "does felixpy hub run" in sink.status.reason)
        assert sink.status.state is SyncState.RESYNC
