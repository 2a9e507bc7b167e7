"""Publishing against a real Mosquitto: what is stored, and that the manifests stay true."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from felixpy.model.documents import load_text
from felixpy.model.resources import Kind
from felixpy.mqtt import publisher
from felixpy.mqtt.batch import BadBatch, Batch, PublishError, prepare
from felixpy.mqtt.ledger import counted
from felixpy.mqtt.manifest import Manifest, parse_manifest
from felixpy.mqtt.publisher import Outcome, Publisher, open_publisher
from felixpy.mqtt.reading import Message
from felixpy.mqtt.retained import Retained
from felixpy.mqtt.topics import NODE_SEGMENTS, SHARED_SEGMENTS, scope_of, segment_of
from felixpy.sources import SyncState
from felixpy.sources.mqtt import MqttSource
from tests.broker import Broker, running
from tests.sources.stream_lab import affinity, endpoint, following, node, pool, put, retained, settings_for

SEGMENTS = frozenset({*SHARED_SEGMENTS, *NODE_SEGMENTS})


def batch_of(*objects: Any) -> Batch:
    return prepare(load_text(msgspec.json.encode(list(objects)), "test"))


async def manifests(broker: Broker) -> dict[str, Manifest]:
    found = await retained(broker, "sync/#")
    return {topic.removeprefix("sync/"): parse_manifest(payload) for topic, payload in found.items()}


async def assert_true(broker: Broker) -> dict[str, Manifest]:
    """Every manifest says exactly what the broker retains."""
    content = {topic: data for topic, data in (await retained(broker, "#")).items() if segment_of(topic) in SEGMENTS}
    found = await manifests(broker)
    for scope in {scope_of(topic) for topic in content} | found.keys():
        part = {topic: payload for topic, payload in content.items() if scope_of(topic) == scope}
        expected = counted(part, None, "").manifest()
        assert found[scope].counts == expected.counts, scope
        assert found[scope].digests == expected.digests, scope
        assert found[scope].namespaces == expected.namespaces, scope
        assert found[scope].writer == ""
    return found


def test_apply_stores_objects_as_written_and_true_manifests(broker: Broker) -> None:
    async def scenario() -> None:
        objects = (pool("a"), node("n1"), affinity("n1-10-0-0-0-26", "n1", "10.0.0.0/26"), endpoint("w"))
        async with open_publisher(settings_for(broker)) as publisher:
            assert await publisher.apply(batch_of(*objects)) == Outcome(written=4)
            assert await publisher.apply(batch_of(*objects)) == Outcome(unchanged=4)
        content = await retained(broker, "#")
        assert msgspec.json.decode(content["ippool/a"]) == pool("a")
        assert {"node/n1", "affinity/n1/10-0-0-0-26", "wep/n1/default/w"} < content.keys()
        found = await assert_true(broker)
        assert found["shared"].counts == {"ippool": 1, "node": 1, "affinity": 1}
        assert found["node/n1"].namespaces == {"default": 1}
        assert found["shared"].epoch and found["shared"].epoch == found["node/n1"].epoch
        assert found["shared"].rev == 1

    asyncio.run(scenario())


def test_change_keeps_the_epoch_and_raises_the_revision(broker: Broker) -> None:
    async def scenario() -> None:
        async with open_publisher(settings_for(broker)) as publisher:
            await publisher.apply(batch_of(pool("a")))
            first = (await manifests(broker))["shared"]
            await publisher.apply(batch_of(pool("a", "10.1.0.0/16"), pool("b", "10.2.0.0/16")))
        second = (await assert_true(broker))["shared"]
        assert (second.epoch, second.rev) == (first.epoch, first.rev + 1)

    asyncio.run(scenario())


def test_one_endpoint_among_many_reads_only_its_own_topic(broker: Broker) -> None:
    async def scenario() -> None:
        many = [endpoint(f"w{i}", namespace=f"ns{i % 5}", address=f"10.1.{i >> 8}.{i & 255}") for i in range(2000)]
        async with open_publisher(settings_for(broker)) as publisher:
            assert (await publisher.apply(batch_of(*many))).written == 2000
        async with open_publisher(settings_for(broker)) as publisher:
            assert await publisher.apply(batch_of(endpoint("w7", namespace="ns2", address="10.9.9.9"))) == Outcome(1)
            resources = [topic for topic in publisher._retained.content if segment_of(topic) in SEGMENTS]
            assert resources == ["wep/n1/ns2/w7"]
        async with following(MqttSource(settings_for(broker), "n1")) as sink:
            assert (await sink.state(SyncState.IN_SYNC)).got == 2000
        async with open_publisher(settings_for(broker)) as publisher:
            listing = await publisher.get(Kind.WORKLOAD_ENDPOINT)
        assert len(listing.objects) == 2000
        assert listing.incomplete == ""

    asyncio.run(scenario())


def test_first_endpoint_makes_the_shared_scope_provable_too(broker: Broker) -> None:
    async def scenario() -> None:
        await put(broker, {"ippool/hand": pool("hand")})
        async with open_publisher(settings_for(broker)) as publisher:
            await publisher.apply(batch_of(endpoint("w")))
        assert (await assert_true(broker))["shared"].counts == {"ippool": 1}

    asyncio.run(scenario())


def test_endpoint_that_moves_leaves_its_old_node(broker: Broker) -> None:
    async def scenario() -> None:
        async with open_publisher(settings_for(broker)) as publisher:
            await publisher.apply(batch_of(endpoint("w"), endpoint("x", address="10.0.0.2")))
        async with open_publisher(settings_for(broker)) as publisher:
            moved = batch_of(endpoint("w", node="n2"))
            assert await publisher.apply(moved) == Outcome(written=1, deleted=1)
        assert set(await retained(broker, "wep/#")) == {"wep/n2/default/w", "wep/n1/default/x"}
        found = await assert_true(broker)
        assert found["node/n1"].counts == {"wep": 1} and found["node/n2"].counts == {"wep": 1}

    asyncio.run(scenario())


def test_delete_finds_the_endpoint_wherever_it_is_and_names_what_is_missing(broker: Broker) -> None:
    async def scenario() -> None:
        async with open_publisher(settings_for(broker)) as publisher:
            await publisher.apply(batch_of(endpoint("w"), pool("a")))
            outcome = await publisher.delete(
                batch_of(endpoint("w", node="n9"), pool("a"), pool("never", "10.3.0.0/16"))
            )
        assert outcome == Outcome(deleted=2, missing=("IPPool never",))
        assert {topic for topic in await retained(broker, "#") if segment_of(topic) in SEGMENTS} == set()
        found = await assert_true(broker)
        assert found["node/n1"].counts == {} and found["shared"].counts == {}

    asyncio.run(scenario())


def test_hand_published_objects_are_counted_by_the_first_apply(broker: Broker) -> None:
    async def scenario() -> None:
        await put(broker, {"ippool/hand": pool("hand"), "wep/n1/default/hand": endpoint("hand", address="10.0.0.7")})
        async with open_publisher(settings_for(broker)) as publisher:
            await publisher.apply(batch_of(pool("a", "10.1.0.0/16"), endpoint("w")))
        found = await assert_true(broker)
        assert found["shared"].counts == {"ippool": 2} and found["node/n1"].counts == {"wep": 2}

    asyncio.run(scenario())


def test_write_by_another_tool_is_mended_by_recount(broker: Broker) -> None:
    async def scenario() -> None:
        async with open_publisher(settings_for(broker)) as publisher:
            await publisher.apply(batch_of(pool("a"), pool("b", "10.1.0.0/16")))
        await put(broker, {"ippool/b": pool("b", "10.2.0.0/16"), "ippool/c": pool("c", "10.3.0.0/16")})
        async with open_publisher(settings_for(broker)) as publisher:
            await publisher.apply(batch_of(pool("a")), recount=True)
        assert (await assert_true(broker))["shared"].counts == {"ippool": 3}

    asyncio.run(scenario())


def test_object_deleted_by_hand_and_applied_again_leaves_a_true_manifest(broker: Broker) -> None:
    async def scenario() -> None:
        async with open_publisher(settings_for(broker)) as publisher:
            await publisher.apply(batch_of(pool("a"), pool("b", "10.1.0.0/16"), endpoint("w")))
        await put(broker, {"ippool/a": b"", "wep/n1/default/w": b""})
        async with open_publisher(settings_for(broker)) as publisher:
            assert await publisher.apply(batch_of(pool("a"), endpoint("w"))) == Outcome(written=2)
        found = await assert_true(broker)
        assert (found["shared"].counts, found["node/n1"].counts) == ({"ippool": 2}, {"wep": 1})

    asyncio.run(scenario())


@pytest.mark.parametrize("changed", [pool("a", "10.9.0.0/16"), pool("b", "10.1.0.0/16")])
def test_a_loss_is_made_true_by_nobody_who_does_not_say_so(broker: Broker, changed: dict[str, Any]) -> None:
    """An agent that was away while objects were lost removes them as soon as a manifest says that the rest is all."""

    async def scenario() -> None:
        async with open_publisher(settings_for(broker)) as publisher:
            await publisher.apply(batch_of(pool("a"), pool("b", "10.1.0.0/16"), pool("c", "10.2.0.0/16")))
        await put(broker, {"ippool/a": b""})
        before = await retained(broker, "#")
        for verb in (Publisher.apply, Publisher.delete):
            with pytest.raises(
                PublishError, match=r"nothing was written: .*sync/shared counts \(ippool 2/3\).*--recount"
            ):
                async with open_publisher(settings_for(broker)) as publisher:
                    await verb(publisher, batch_of(changed, pool("c", "10.2.0.0/16")))
        assert await retained(broker, "#") == before
        async with open_publisher(settings_for(broker)) as publisher:
            assert (await publisher.delete(batch_of(pool("a")), recount=True)).missing == ("IPPool a",)
        assert (await assert_true(broker))["shared"].counts == {"ippool": 2}

    asyncio.run(scenario())


def test_what_others_added_or_changed_is_counted_by_the_next_write_of_its_kind(broker: Broker) -> None:
    async def scenario() -> None:
        async with open_publisher(settings_for(broker)) as publisher:
            await publisher.apply(batch_of(pool("a"), pool("b", "10.1.0.0/16")))
        await put(broker, {"ippool/b": pool("b", "10.2.0.0/16"), "ippool/c": pool("c", "10.3.0.0/16")})
        async with open_publisher(settings_for(broker)) as publisher:
            assert await publisher.apply(batch_of(pool("a"))) == Outcome(unchanged=1)
        first = (await assert_true(broker))["shared"]
        assert first.counts == {"ippool": 3}
        await put(broker, {"ippool/b": pool("b", "10.4.0.0/16")})
        async with open_publisher(settings_for(broker)) as publisher:
            assert await publisher.delete(batch_of(pool("a"))) == Outcome(deleted=1)
        second = (await assert_true(broker))["shared"]
        assert (second.counts, second.epoch) == ({"ippool": 2}, first.epoch)

    asyncio.run(scenario())


def test_topics_that_hold_no_resource_are_counted_by_nobody(broker: Broker) -> None:
    """Below a kind's topics there may be what is none: an agent would wait for ever for what it does not count."""
    others = ("wep/n1", "wep/n1/default", "wep/n1/default/w/deeper", "wep/n1//w")

    async def scenario() -> None:
        await put(broker, dict.fromkeys(others, b"{}"))
        async with open_publisher(settings_for(broker)) as publisher:
            await publisher.apply(batch_of(pool("a"), endpoint("w")))
            await publisher.apply(batch_of(endpoint("x", address="10.0.0.2")), recount=True)
            assert len((await publisher.get()).objects) == 3
        assert (await manifests(broker))["node/n1"].counts == {"wep": 2}
        async with following(MqttSource(settings_for(broker), "n1")) as sink:
            status = await sink.state(SyncState.IN_SYNC)
            assert (status.got, status.want) == (3, 3)

    asyncio.run(scenario())


@pytest.mark.parametrize("payload", [b"", b"x", b"-1", b"9" * 5000, b"\xff"])
def test_what_others_write_to_the_own_echo_is_none(payload: bytes) -> None:
    held = Retained("root", "client")
    held.receive(Message("root/probe/client", payload, []))
    assert held.content == {}
    assert held._echoed == 0


def test_write_cut_short_is_counted_anew_by_the_next_one(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "WRITER_SECONDS", 0.3)

    async def scenario() -> None:
        async with open_publisher(settings_for(broker)) as publisher:
            await publisher.apply(batch_of(pool("a")))

        async def die(self: Publisher, ledgers: object) -> None:
            raise KeyError("killed here")

        with monkeypatch.context() as patch, pytest.raises(KeyError):
            patch.setattr(Publisher, "_finish", die)
            async with open_publisher(settings_for(broker)) as publisher:
                await publisher.apply(batch_of(pool("b", "10.1.0.0/16")))
        assert (await manifests(broker))["shared"].writer
        async with open_publisher(settings_for(broker)) as publisher:
            assert await publisher.apply(batch_of(pool("b", "10.1.0.0/16"))) == Outcome(unchanged=1)
        assert (await assert_true(broker))["shared"].counts == {"ippool": 2}

    asyncio.run(scenario())


def test_publishers_at_the_same_time_agree_in_the_end(broker: Broker) -> None:
    async def one(index: int) -> None:
        async with open_publisher(settings_for(broker)) as publisher:
            objects = [endpoint(f"w{index}-{i}", address=f"10.0.{index}.{i}") for i in range(60)]
            await publisher.apply(batch_of(*objects, pool(f"p{index}", f"10.{index}.0.0/16")))

    async def scenario() -> None:
        await asyncio.gather(*(one(index) for index in range(3)))
        found = await assert_true(broker)
        assert found["node/n1"].counts == {"wep": 180}

    asyncio.run(scenario())


def test_bad_document_refuses_the_whole_batch_unless_told() -> None:
    text = msgspec.json.encode([pool("a"), pool("b", "10.0.0.1/16"), pool("a"), {"kind": "NetworkPolicy"}])
    with pytest.raises(BadBatch) as caught:
        prepare(load_text(text, "pools.json"))
    assert "nothing was sent" in str(caught.value)
    assert "spec.cidr" in str(caught.value) and "already defined" in str(caught.value)
    batch = prepare(load_text(text, "pools.json"), skip_bad=True)
    assert [str(entry.key) for entry in batch.entries] == ["IPPool a"]
    assert len(batch.problems) == 3


def test_get_by_kind_and_name_returns_objects_as_stored(broker: Broker) -> None:
    async def scenario() -> None:
        async with open_publisher(settings_for(broker)) as publisher:
            await publisher.apply(
                batch_of(pool("a"), pool("b", "10.1.0.0/16"), endpoint("w"), endpoint("w", namespace="o"))
            )
        async with open_publisher(settings_for(broker)) as publisher:
            assert (await publisher.get(Kind.IP_POOL, "b")).objects == {"ippool/b": pool("b", "10.1.0.0/16")}
            assert list((await publisher.get(Kind.WORKLOAD_ENDPOINT, "w", "o")).objects) == ["wep/n1/o/w"]
            assert len((await publisher.get()).objects) == 4

    asyncio.run(scenario())


def test_get_says_what_is_missing(broker: Broker) -> None:
    async def scenario() -> None:
        await put(broker, {"ippool/a": pool("a"), "sync/shared": Manifest({"ippool": 2}).encode()})
        async with open_publisher(settings_for(broker)) as publisher:
            assert "ippool 1/2" in (await publisher.get()).incomplete

    asyncio.run(scenario())


def test_progress_counts_every_topic(broker: Broker) -> None:
    seen: list[tuple[int, int]] = []

    async def scenario() -> None:
        async with open_publisher(settings_for(broker), lambda done, total: seen.append((done, total))) as publisher:
            await publisher.apply(batch_of(*(pool(f"p{i}", f"10.{i}.0.0/16") for i in range(30))))

    asyncio.run(scenario())
    assert seen == [(done, 30) for done in range(1, 31)]


def test_errors_of_the_broker_are_one_sentence(tmp_path: Path) -> None:
    async def connect(broker: Broker) -> None:
        async with open_publisher(settings_for(broker)):
            pass

    with pytest.raises(PublishError, match="refuses connections"):
        asyncio.run(connect(Broker(tmp_path)))
    with (
        running(tmp_path, ("allow_anonymous false",)) as broker,
        pytest.raises(PublishError, match="a client without user name"),
    ):
        asyncio.run(connect(broker))


def test_broker_that_dies_during_apply_is_one_sentence(broker: Broker) -> None:
    async def scenario() -> None:
        async with open_publisher(settings_for(broker), lambda done, total: broker.stop()) as publisher:
            await publisher.apply(batch_of(*(pool(f"p{i}", f"10.{i}.0.0/16") for i in range(30))))

    with pytest.raises(PublishError, match="closed the connection"):
        asyncio.run(scenario())
