"""The MQTT source against a real Mosquitto."""

from __future__ import annotations

import asyncio
import itertools
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiomqtt
import msgspec
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode
from structlog.testing import capture_logs

from felixpy.config import Settings
from felixpy.demo.patience import limit, stretched
from felixpy.model.documents import load_text
from felixpy.model.net import format_address
from felixpy.model.resources import BlockAffinity, Kind, ResourceKey, WorkloadEndpoint
from felixpy.mqtt.batch import prepare
from felixpy.mqtt.connection import explain
from felixpy.mqtt.manifest import Manifest
from felixpy.mqtt.publisher import open_publisher
from felixpy.mqtt.reading import Message
from felixpy.sources import SyncState, mqtt
from felixpy.sources.mqtt import MqttSource
from felixpy.sources.once import read_once
from tests.broker import Broker, running
from tests.sources.stream_lab import (
    NODE,
    Recorder,
    affinity,
    comes_to_retain,
    endpoint,
    following,
    node,
    pool,
    put,
    retained,
    settings_for,
    wep_key,
)

FIXED_ID = "an-id-that-is-known"


async def apply(broker: Broker, *objects: object) -> None:
    batch = prepare(load_text(msgspec.json.encode(list(objects)), "test"))
    async with open_publisher(settings_for(broker)) as publisher:
        await publisher.apply(batch)


def source_for(broker: Broker, **changes: object) -> MqttSource:
    return MqttSource(settings_for(broker, **changes), NODE)


def test_hand_published_objects_are_in_sync_after_quiet_time(broker: Broker) -> None:
    async def scenario() -> None:
        await put(broker, {"ippool/a": pool("a"), "wep/n1/default/w": endpoint("w"), "wep/n2/default/x": endpoint("x")})
        async with following(source_for(broker)) as sink:
            await sink.state(SyncState.IN_SYNC)
            assert set(sink.held) == {ResourceKey(Kind.IP_POOL, "a"), wep_key("w")}
            await put(broker, {"wep/n1/default/w": b""})
            await sink.until(lambda: wep_key("w") not in sink.held)

    asyncio.run(scenario())


def test_nothing_is_asked_for_before_it_can_be_taken(broker: Broker) -> None:
    """Nor is a broker without manifests taken for one that has nothing, however long that lasts."""

    async def scenario() -> None:
        await put(broker, {"ippool/a": pool("a"), "wep/n1/default/w": endpoint("w")})
        source, waited = source_for(broker), list[tuple[int, SyncState]]()
        async with following(source) as sink:

            async def until_taken() -> None:
                await asyncio.sleep(1.5 * settings_for(broker).snapshot_quiet_time)
                waited.append((source.messages, source._snapshot.state))

            source.until_taken = until_taken
            await sink.state(SyncState.IN_SYNC)
            assert waited == [(0, SyncState.CONNECTING)]
            assert set(sink.held) == {ResourceKey(Kind.IP_POOL, "a"), wep_key("w")}

    asyncio.run(scenario())


def test_the_brokers_address_is_told_before_what_it_delivers(broker: Broker) -> None:
    async def scenario() -> None:
        await put(broker, {"ippool/a": pool("a")})
        source, told = source_for(broker), list[tuple[str, int]]()
        async with following(source) as sink:
            source.on_connected = lambda peer: told.append((format_address(peer), len(sink.updates)))
            await sink.state(SyncState.IN_SYNC)
            assert told == [("127.0.0.1", 0)]
            await sink.lost(broker.stop)
            await asyncio.to_thread(broker.start)
            await sink.until(lambda: [peer for peer, _ in told] == ["127.0.0.1"] * 2)

    asyncio.run(scenario())


def test_default_mosquitto_delivers_all_of_5000_retained_endpoints(broker: Broker) -> None:
    async def scenario() -> None:
        objects = [
            endpoint(f"w{i}", namespace=f"ns{i % 7}", address=f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}")
            for i in range(5000)
        ]
        await apply(broker, pool("a", "10.0.0.0/8"), *objects)
        async with following(source_for(broker)) as sink:
            status = await sink.state(SyncState.IN_SYNC)
            assert (status.got, status.want) == (5001, 5001)
            assert len(sink.held) == 5001

    asyncio.run(scenario())


def test_burst_that_the_broker_cuts_is_read_in_parts_until_complete(tmp_path: Path) -> None:
    """Few large messages against a small queue stand for a large snapshot against Mosquitto's default queue."""

    async def scenario(broker: Broker) -> None:
        objects = [endpoint(f"w{i}", namespace=f"ns{i % 20}", address=f"10.0.0.{i}") for i in range(100)]
        for item in objects:
            item["metadata"]["annotations"] = {"padding": "x" * 200_000}
        await apply(broker, *objects)
        async with following(source_for(broker)) as sink:
            await sink.state(SyncState.IN_SYNC)
            assert len(sink.held) == 100
            incomplete = [status for status in sink.statuses if "incomplete" in status.reason]
            assert incomplete and incomplete[0].got < incomplete[0].want == 100

    with running(tmp_path, ("allow_anonymous true", "max_queued_messages 10")) as broker:
        asyncio.run(scenario(broker))


def test_manifest_that_promises_more_is_degraded_with_counts_and_recovers(broker: Broker) -> None:
    async def scenario() -> None:
        await put(broker, {"wep/n1/default/w": endpoint("w"), "sync/node/n1": Manifest({"wep": 2}).encode()})
        async with following(source_for(broker)) as sink:
            status = await sink.state(SyncState.DEGRADED)
            assert "wep 1/2 (" in status.reason
            assert "'felixpy apply --recount -f' any object of sync/node/n1" in status.reason
            assert (status.got, status.want) == (1, 2)
            assert wep_key("w") in sink.held
            await put(broker, {"wep/n1/default/x": endpoint("x", address="10.0.0.2")})
            await sink.state(SyncState.IN_SYNC)

    asyncio.run(scenario())


def test_broker_restarted_empty_removes_nothing_until_published_again(broker: Broker) -> None:
    async def scenario() -> None:
        objects = (pool("a"), endpoint("w"), endpoint("x", address="10.0.0.2"))
        await apply(broker, *objects)
        async with following(source_for(broker)) as sink:
            await sink.state(SyncState.IN_SYNC)
            before = dict(sink.held)
            await sink.lost(broker.stop)
            broker.start()
            status = await sink.state(SyncState.DEGRADED)
            assert "manifest sync/shared" in status.reason
            assert sink.held == before
            await apply(broker, *objects[:2])
            await sink.state(SyncState.IN_SYNC)
            assert set(sink.held) == set(before) - {wep_key("x")}

    asyncio.run(scenario())


def test_empty_broker_is_degraded_not_in_sync(broker: Broker) -> None:
    async def scenario() -> None:
        async with following(source_for(broker)) as sink:
            status = await sink.state(SyncState.DEGRADED)
            assert "felixpy apply" in status.reason
            await apply(broker, pool("a"))
            await sink.state(SyncState.IN_SYNC)

    asyncio.run(scenario())


def kick(broker: Broker, client_id: bytes) -> None:
    """Throw a client out by connecting with its id, as a bare MQTT v5 CONNECT packet."""
    with socket.create_connection(("127.0.0.1", broker.port), 5) as connection:
        body = b"\0\4MQTT\5\2\0\x1e\0\0" + bytes([len(client_id)]) + client_id
        connection.sendall(bytes([0x10, len(body)]) + body)
        connection.recv(100)


def test_deleted_while_away_is_absent_after_the_reconnect(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "backoff_seconds", lambda attempt: stretched(2))

    async def scenario() -> None:
        await apply(broker, endpoint("w"), endpoint("x", address="10.0.0.2"))
        async with following(source_for(broker, mqtt_client_id=FIXED_ID)) as sink:
            await sink.state(SyncState.IN_SYNC)
            count = len(sink.updates)
            await sink.lost(lambda: kick(broker, FIXED_ID.encode()))
            async with open_publisher(settings_for(broker)) as publisher:
                await publisher.delete(prepare(load_text(msgspec.json.encode(endpoint("x")), "test")))
            assert sink.status.state is SyncState.CONNECTING
            await sink.state(SyncState.IN_SYNC)
            assert [(update.key, update.resource) for update in sink.updates[count:]] == [(wep_key("x"), None)]

    asyncio.run(scenario())


def test_two_agents_with_one_client_id_back_off_and_say_so(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "TAKEN_OVER_SECONDS", (60.0, 61.0))

    async def scenario() -> None:
        await apply(broker, pool("a"))
        source = lambda: source_for(broker, mqtt_client_id=FIXED_ID)  # noqa: E731
        async with following(source()) as one, following(source()) as two:
            both = (one, two)
            await one.until(lambda: any(f"client id {FIXED_ID}" in sink.status.reason for sink in both))
            other = two if f"client id {FIXED_ID}" in one.status.reason else one
            await other.state(SyncState.IN_SYNC)
            await asyncio.sleep(0.5)
            assert other.status.state is SyncState.IN_SYNC

    asyncio.run(scenario())


def test_session_taken_over_is_told_apart() -> None:
    error = aiomqtt.MqttError("Disconnected")
    error.__cause__ = aiomqtt.exceptions.MqttCodeError(ReasonCode(PacketTypes.DISCONNECT, identifier=142))
    explained = explain(error, Settings(mqtt_host="broker"))
    assert explained.taken_over and "same client id" in str(explained)


def test_live_updates_carry_their_times_and_keep_the_stream_in_sync(broker: Broker) -> None:
    async def scenario() -> None:
        await apply(broker, endpoint("w"))
        async with following(source_for(broker)) as sink, open_publisher(settings_for(broker)) as publisher:
            await sink.state(SyncState.IN_SYNC)
            for index in range(20):
                batch = prepare(load_text(msgspec.json.encode(endpoint("w", address=f"10.0.1.{index}")), "test"))
                count, wall, steady = len(sink.updates), time.time_ns(), time.monotonic_ns()
                await publisher.apply(batch)
                await sink.until(lambda count=count: len(sink.updates) > count)
                update = sink.updates[-1]
                assert isinstance(update.resource, WorkloadEndpoint)
                assert str(update.resource.addresses[0]) == f"10.0.1.{index}/32"
                assert wall <= update.published_ns <= time.time_ns()
                assert steady <= update.received_ns <= time.monotonic_ns()
            await asyncio.sleep(1.5)
            assert [status.state for status in sink.statuses][-1] is SyncState.IN_SYNC

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1700000000000000000", 1_700_000_000_000_000_000),
        ("9" * 19, 10**19 - 1),
        ("9" * 20, 0),
        ("9" * 310, 0),
        ("9" * 5000, 0),
        ("\u0661\u0662", 0),
        ("\u00b2", 0),
        ("-1", 0),
        ("1_0", 0),
        ("1.5", 0),
        ("", 0),
    ],
)
def test_only_a_number_that_can_be_a_time_is_one(text: str, nanoseconds: int) -> None:
    assert mqtt._published_ns(Message("t", b"", [("other", "1"), ("ts", text)])) == nanoseconds


def test_bad_payloads_and_unknown_topics_do_not_stop_the_others(broker: Broker) -> None:
    async def scenario() -> None:
        bad = endpoint("bad")
        bad["spec"]["ipNetworks"] = ["10.0.0.0/24"]
        await put(
            broker,
            {
                "wep/n1/default/good": endpoint("good"),
                "wep/n1/default/bad": bad,
                "wep/n1/default/json": b"{",
                "wep/n1/default/other": endpoint("another-name"),
                "wep/n1/default/too/deep": b"x",
                "ippool/a": b"\xff\xfe",
            },
        )
        async with following(source_for(broker)) as sink:
            await sink.state(SyncState.IN_SYNC)
            assert set(sink.held) == {wep_key("good")}
            assert set(sink.errors) == {*map(wep_key, ("bad", "json", "other")), ResourceKey(Kind.IP_POOL, "a")}
            assert "ipNetworks" in sink.errors[wep_key("bad")]
            assert sink.unknown == ["topic wep/n1/default/too/deep"]
            await put(broker, {"wep/n1/default/bad": endpoint("bad", address="10.0.0.9")})
            await sink.until(lambda: wep_key("bad") in sink.held)
            assert wep_key("bad") not in sink.errors

    asyncio.run(scenario())


LONGEST = "a" * 253
TOO_LONG = ("a" * 254, "a" * (65535 - len("felixpy/v1/wep/n1/default/")), "%" * 30_000)


def test_a_topic_too_long_for_any_object_is_told_counted_and_nothing_else(broker: Broker) -> None:
    """A manifest may count it: then the stream is in sync with it."""

    async def scenario() -> None:
        content: dict[str, Any] = {
            **{f"wep/n1/default/{name}": b"{}" for name in TOO_LONG},
            f"wep/n1/{TOO_LONG[1][:60_000]}/w": b"{}",
            f"wep/n1/default/{LONGEST}": endpoint(LONGEST),
            f"wep/n1/default/{'%2F' * 253}": b"{}",
        }
        await put(broker, {**content, "sync/node/n1": Manifest({"wep": len(content)}).encode()})
        source = source_for(broker, mqtt_client_id=FIXED_ID)
        async with following(source) as sink:
            await sink.state(SyncState.IN_SYNC)
            assert set(sink.held) == {wep_key(LONGEST)}
            assert set(sink.errors) == {wep_key("/" * 253)}
            assert len(sink.unknown) == len(content) - 2
            assert all(what.startswith("topic wep/n1/") and len(what) < 100 for what in sink.unknown)
            told = len(sink.unknown)
            await sink.lost(lambda: kick(broker, FIXED_ID.encode()))
            await sink.state(SyncState.IN_SYNC)
            await put(broker, dict.fromkeys(content, b""))
            await sink.until(lambda: not sink.held and not sink.errors)
            assert len(sink.unknown) == told

    asyncio.run(scenario())


@pytest.mark.parametrize("strange", ["a" * 70_000, "a\0b"], ids=["too long", "not in MQTT"])
def test_a_manifest_with_a_namespace_that_is_none_is_read_in_parts_all_the_same(broker: Broker, strange: str) -> None:
    async def scenario() -> None:
        manifest = Manifest({"wep": 2}, namespaces={"default": 1, strange: 1})
        await put(broker, {"wep/n1/default/w": endpoint("w"), "sync/node/n1": manifest.encode()})
        async with following(source_for(broker)) as sink:
            assert "wep 1/2" in (await sink.state(SyncState.DEGRADED)).reason
            await put(broker, {"wep/n1/default/x": endpoint("x", address="10.0.0.2")})
            await sink.state(SyncState.IN_SYNC)
            assert not any(status.state is SyncState.CONNECTING for status in sink.statuses[1:])

    asyncio.run(scenario())


def test_a_status_that_mqtt_cannot_carry_is_dropped_with_one_warning(broker: Broker) -> None:
    async def scenario() -> None:
        await put(broker, {"ippool/a": pool("a")})
        source = source_for(broker, mqtt_client_id=FIXED_ID)
        with capture_logs() as logs:
            async with following(source) as sink:
                await sink.state(SyncState.IN_SYNC)
                for number in range(3):
                    source.publish_endpoint_status("default", "%" * 30_000, {"state": "up", "n": number})
                    source.publish_endpoint_status("default", "w", {"state": "up", "n": number})
                    await asyncio.sleep(0.1)
                await sink.lost(lambda: kick(broker, FIXED_ID.encode()))
                await sink.state(SyncState.IN_SYNC)
                await comes_to_retain(broker, "status/n1/wep/#", {"status/n1/wep/default/w": b'{"state":"up","n":2}'})
        (line,) = [line for line in logs if "dropped" in line["event"]]
        assert "too long" in line["reason"]
        assert len(line["topic"]) < 100

    asyncio.run(scenario())


def test_affinity_with_any_name_is_keyed_by_node_and_cidr(broker: Broker) -> None:
    async def scenario() -> None:
        await apply(broker, affinity("some-name", "n2", "10.0.0.64/26"))
        async with following(source_for(broker)) as sink:
            await sink.state(SyncState.IN_SYNC)
            key = ResourceKey(Kind.BLOCK_AFFINITY, "n2-10-0-0-64-26")
            held = sink.held[key]
            assert isinstance(held, BlockAffinity) and held.key == key and held.host == "n2"

    asyncio.run(scenario())


def test_status_is_retained_and_stop_says_so_without_the_will(broker: Broker) -> None:
    async def scenario() -> None:
        source = source_for(broker)
        async with following(source) as sink:
            await put(broker, {"ippool/a": pool("a")})
            await sink.state(SyncState.IN_SYNC)
            source.publish_status({"state": "in-sync"})
            source.publish_endpoint_status("default", "w", {"state": "up"})
            source.publish_endpoint_status("default", "x", {"state": "up"})
            source.publish_endpoint_status("default", "x", None)
            told = {"status/n1": b'{"state":"in-sync"}', "status/n1/wep/default/w": b'{"state":"up"}'}
            await comes_to_retain(broker, "status/#", told)
            broker.restart()
            await comes_to_retain(broker, "status/#", told)
        await comes_to_retain(broker, "status/n1", {"status/n1": b'{"state":"offline","reason":"stopped"}'})

    asyncio.run(scenario())


def test_nothing_is_said_after_the_last_word(broker: Broker) -> None:
    """What the agent still finds out while it ends, as that an interface came, would say that it is there."""

    async def scenario() -> None:
        source = source_for(broker)
        async with following(source) as sink:
            await put(broker, {"ippool/a": pool("a")})
            await sink.state(SyncState.IN_SYNC)

            async def talk() -> None:
                for number in itertools.count():
                    source.publish_status({"state": "in-sync", "endpoints": number})
                    await asyncio.sleep(0)

            talking = asyncio.create_task(talk())
        talking.cancel()
        await comes_to_retain(broker, "status/n1", {"status/n1": b'{"state":"offline","reason":"stopped"}'})

    asyncio.run(scenario())


def test_killed_agent_leaves_its_will(broker: Broker, tmp_path: Path) -> None:
    # The agent must be killed from inside its first moment in sync, in a process of its own.
    script = f"""
import asyncio, os
from felixpy.config import Settings
from felixpy.sources.mqtt import MqttSource
class Sink:
    def update(self, update): pass
    def ignored(self, what): pass
    def sync_status(self, status):
        if status.state == "in-sync": os.kill(os.getpid(), 9)
settings = Settings(mqtt_host="127.0.0.1", mqtt_port={broker.port}, snapshot_quiet_time=0.2)
asyncio.run(MqttSource(settings, "n1").run(Sink()))
"""

    async def scenario() -> None:
        await put(broker, {"ippool/a": pool("a")})
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
        assert await process.wait() == -9
        await comes_to_retain(broker, "status/n1", {"status/n1": b'{"state":"offline","reason":"will"}'})

    asyncio.run(scenario())


def test_broker_that_is_not_there_is_said_in_one_sentence(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with following(MqttSource(settings_for(Broker(tmp_path)), NODE)) as sink:
            await sink.until(lambda: "refuses connections" in sink.status.reason)

    asyncio.run(scenario())


def test_a_lost_stream_is_said_when_it_begins_changes_and_ends_and_not_at_each_try(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "backoff_seconds", lambda attempt: 0.05)
    monkeypatch.setattr(mqtt, "STABLE_SECONDS", 0.2)

    async def scenario() -> list[dict[str, Any]]:
        await put(broker, {"ippool/a": pool("a")})
        with capture_logs() as logs:
            async with following(source_for(broker)) as sink:
                await sink.state(SyncState.IN_SYNC)
                await asyncio.sleep(0.2)
                broker.stop()
                await sink.until(lambda: "refuses connections" in sink.status.reason)
                await asyncio.sleep(stretched(0.3))  # tries, of which none is said
                broker.start()
                await sink.until(lambda: any("over" in line["event"] for line in logs))
        return [dict(line) for line in logs if line["event"].startswith("stream lost")]

    *_, refused, over = lines = asyncio.run(scenario())
    assert [line["log_level"] for line in lines] == ["warning", "warning", "info"]
    assert "closed the connection" in lines[0]["reason"]
    assert "refuses connections" in refused["reason"]
    assert over["was"] == refused["reason"]
    assert over["times"] > 3
    assert over["seconds"] >= 0.3


def test_wrong_password_is_a_clear_error_without_the_password(tmp_path: Path) -> None:
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "agent", "right"], check=True, capture_output=True)
    secret = tmp_path / "secret"
    secret.write_text("right\n")

    async def scenario(broker: Broker) -> None:
        wrong = source_for(broker, mqtt_username="agent", mqtt_password="wrong-secret")
        async with following(wrong) as sink:
            await sink.until(lambda: "refuses user 'agent'" in sink.status.reason)
            assert "wrong-secret" not in sink.status.reason
        right = source_for(broker, mqtt_username="agent", mqtt_password_file=secret)
        async with following(right) as sink:
            await sink.state(SyncState.DEGRADED)

    with running(tmp_path, ("allow_anonymous false", f"password_file {passwords}")) as broker:
        asyncio.run(scenario(broker))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mqtt_host": "broker..local"}, "'broker..local' cannot be the name of a host; check FELIX_MQTTHOST"),
        ({"mqtt_host": "b" * 64}, "cannot be the name of a host"),
        ({"mqtt_username": "u" * 65536}, "MQTT user name is not UTF-8 text of at most 65535 bytes"),
        ({"mqtt_username": "\udcff"}, "check FELIX_MQTTUSERNAME"),
        ({"mqtt_username": "u", "mqtt_password": "secret" * 20_000}, "check FELIX_MQTTPASSWORD or"),
        ({"mqtt_client_id": "c" * 65536}, "check FELIX_MQTTCLIENTID"),
        ({"mqtt_topic_root": "r" * 65536}, "check FELIX_MQTTTOPICROOT"),
    ],
)
def test_what_cannot_be_sent_is_a_clear_error(tmp_path: Path, changes: dict[str, str], said: str) -> None:
    """And no end of the agent: a file of a password may be replaced by anything."""

    async def scenario() -> None:
        async with following(MqttSource(settings_for(Broker(tmp_path), **changes), NODE)) as sink:
            await sink.until(lambda: said in sink.status.reason)
            assert len(sink.status.reason) < 200
            assert "secret" not in sink.status.reason

    asyncio.run(scenario())


def test_observer_beside_an_agent_disturbs_nothing(broker: Broker) -> None:
    async def scenario() -> None:
        await apply(broker, pool("a"), node("n1"))
        source = source_for(broker)
        async with following(source) as sink:
            await sink.state(SyncState.IN_SYNC)
            source.publish_status({"state": "in-sync"})
            seen = await read_once(MqttSource(settings_for(broker), NODE, observer=True), stretched(30))
            assert seen.status.state is SyncState.IN_SYNC
            assert set(seen.updates) == set(sink.held)
            await asyncio.sleep(0.2)
            assert sink.status.state is SyncState.IN_SYNC
            assert (await retained(broker, "status/#"))["status/n1"] == b'{"state":"in-sync"}'

    asyncio.run(scenario())


def test_silent_broker_is_noticed_by_keepalive(broker: Broker) -> None:
    async def scenario() -> None:
        await put(broker, {"ippool/a": pool("a")})
        async with following(source_for(broker, mqtt_keepalive=1)) as sink:
            await sink.state(SyncState.IN_SYNC)
            broker.freeze()
            try:
                await sink.state(SyncState.CONNECTING)
            finally:
                broker.thaw()
            await sink.state(SyncState.IN_SYNC)

    asyncio.run(scenario())


def test_a_bug_in_the_sink_is_not_taken_for_a_lost_connection(broker: Broker) -> None:
    class Broken(Recorder):
        def update(self, update: object) -> None:
            raise ZeroDivisionError

    async def scenario() -> None:
        await put(broker, {"ippool/a": pool("a")})
        with pytest.raises(ZeroDivisionError):
            async with limit(60):
                await source_for(broker).run(Broken())

    asyncio.run(scenario())


def test_agent_that_may_read_nothing_is_degraded(tmp_path: Path) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite elsewhere/#\n")

    async def scenario(broker: Broker) -> None:
        async with following(source_for(broker)) as sink:
            assert "access rules" in (await sink.state(SyncState.DEGRADED)).reason

    with running(tmp_path, ("allow_anonymous true", f"acl_file {acl}")) as broker:
        asyncio.run(scenario(broker))
