"""What nodes say of themselves at a real Mosquitto: one writer each, known before the stream counts as complete."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from structlog.testing import capture_logs

from felixpy.model.documents import load_text
from felixpy.model.resources import Kind, Node, ResourceKey
from felixpy.mqtt.batch import BadBatch, prepare
from felixpy.mqtt.publisher import open_publisher
from felixpy.sources import SyncState
from felixpy.sources.mqtt import MqttSource
from tests.broker import Broker
from tests.sources.stream_lab import (
    Recorder,
    comes_to_retain,
    following,
    node,
    pool,
    put,
    retained,
    settings_for,
)


def state(name: str, address: str) -> dict[str, Any]:
    return {
        "apiVersion": "felixpy/v1",
        "kind": "NodeState",
        "metadata": {"name": name},
        "spec": {"bgp": {"ipv4Address": address}},
    }


def key(name: str) -> ResourceKey:
    return ResourceKey(Kind.NODE_STATE, name)


def address_of(sink: Recorder, name: str) -> str:
    held = sink.held.get(key(name))
    return str(held.ipv4) if isinstance(held, Node) else ""


def source(broker: Broker, name: str) -> MqttSource:
    return MqttSource(settings_for(broker, nodename=name), name)


async def publish(broker: Broker, *objects: object) -> None:
    async with open_publisher(settings_for(broker)) as publisher:
        await publisher.apply(prepare(load_text(msgspec.json.encode(list(objects)), "test")))


def test_what_a_node_says_reaches_others_and_stays_when_it_ends(broker: Broker) -> None:
    async def scenario() -> None:
        await publish(broker, pool("a"), node("n9"))
        one, said = source(broker, "n1"), msgspec.json.encode(state("n1", "192.0.2.1/24"))
        async with following(one) as own, following(source(broker, "n2")) as other:
            await own.state(SyncState.IN_SYNC)
            await other.state(SyncState.IN_SYNC)
            one.publish_node_state(msgspec.json.decode(said))
            await other.until(lambda: address_of(other, "n1") == "192.0.2.1/24")
            assert key("n1") not in own.held, "the node learnt from the broker what it said itself"
            one.publish_node_state(state("n1", "192.0.2.2/24"))
            await other.until(lambda: address_of(other, "n1") == "192.0.2.2/24")
        assert list(await retained(broker, "nodestate/#")) == ["nodestate/n1"]

    asyncio.run(scenario())


def test_states_are_known_before_the_snapshot_counts_as_complete(broker: Broker) -> None:
    """Manifests prove the rest at once, so that it would be complete before them if the order were another."""

    async def scenario() -> None:
        count = 300
        await put(broker, {f"nodestate/m{n}": state(f"m{n}", f"192.0.2.{n % 250}/24") for n in range(count)})
        await publish(broker, pool("a"))
        async with following(source(broker, "n1")) as sink:
            await sink.until(lambda: any(one.state is SyncState.IN_SYNC for one in sink.statuses))
            kinds = [update.key.kind for update in sink.updates]
            assert kinds.count(Kind.NODE_STATE) == count
            assert kinds.index(Kind.IP_POOL) >= count, "a kind with a manifest came first"
            assert sink.status.want == 1, "a manifest counts them"

    asyncio.run(scenario())


def test_publishers_leave_them_alone(broker: Broker) -> None:
    async def scenario() -> None:
        await put(broker, {"nodestate/n1": state("n1", "192.0.2.1/24")})
        await publish(broker, pool("a"))
        async with open_publisher(settings_for(broker)) as publisher:
            assert list((await publisher.get()).objects) == ["ippool/a"]
            assert list((await publisher.get(Kind.NODE_STATE)).objects) == ["nodestate/n1"]
            await publisher.apply(prepare(load_text(msgspec.json.encode(pool("b")), "test")), recount=True)
            assert not (await publisher.get()).incomplete
            try:
                prepare(load_text(msgspec.json.encode(state("n1", "192.0.2.9/24")), "test"))
            except BadBatch as bad:
                assert "apply a Node instead" in str(bad)
            else:
                raise AssertionError("somebody else may write it")
            assert await publisher.forget("n1")
            assert not await publisher.forget("n1")
        assert await retained(broker, "nodestate/#") == {}

    asyncio.run(scenario())


def test_another_writer_is_told_and_written_over(broker: Broker) -> None:
    async def scenario() -> None:
        own = source(broker, "n1")
        mine = msgspec.json.encode(state("n1", "192.0.2.1/24"))
        with capture_logs() as log:
            async with following(own) as sink:
                await publish(broker, pool("a"))
                await sink.state(SyncState.IN_SYNC)
                own.publish_node_state(msgspec.json.decode(mine))
                await comes_to_retain(broker, "nodestate/#", {"nodestate/n1": mine})
                await put(broker, {"nodestate/n1": b""})
                await comes_to_retain(broker, "nodestate/#", {"nodestate/n1": mine})
                assert not [one for one in log if "somebody else" in one["event"]], "a deletion is nobody's word"
                await put(broker, {"nodestate/n1": state("n1", "192.0.2.66/24")})
                await sink.until(lambda: any("somebody else" in one["event"] for one in log))
                await comes_to_retain(broker, "nodestate/#", {"nodestate/n1": mine})
                foreign = msgspec.json.encode(state("n1", "192.0.2.67/24"))
                await put(broker, {"nodestate/n1": foreign})
                await comes_to_retain(broker, "nodestate/#", {"nodestate/n1": foreign})  # no race of two writers

    asyncio.run(scenario())


def test_a_broker_that_lost_everything_takes_no_node_away(broker: Broker) -> None:
    """Mosquitto without persistence loses everything with its process."""

    async def scenario() -> None:
        await publish(broker, pool("a"))
        own = source(broker, "n1")
        async with following(own) as sink:
            await sink.state(SyncState.IN_SYNC)
            own.publish_node_state(state("n1", "192.0.2.1/24"))
            await put(broker, {f"nodestate/{name}": state(name, "192.0.2.7/24") for name in ("n2", "n3")})
            await sink.until(lambda: {key("n2"), key("n3")} <= sink.held.keys())
            await sink.lost(broker.restart)
            await publish(broker, pool("a"))
            await sink.state(SyncState.IN_SYNC)
            assert {key("n2"), key("n3")} <= sink.held.keys(), "a broker that lost its data took nodes away"
            mine = msgspec.json.encode(state("n1", "192.0.2.1/24"))
            await comes_to_retain(broker, "nodestate/#", {"nodestate/n1": mine})

    asyncio.run(scenario())
