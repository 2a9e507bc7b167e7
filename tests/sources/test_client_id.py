"""Nobody throws an agent off the broker by its client id, and what follows of ids that are new at each start."""

from __future__ import annotations

import asyncio
import re
import socket

import aiomqtt
import pytest
from structlog.testing import capture_logs

from felixpy.demo.patience import limit
from felixpy.mqtt import connection
from felixpy.sources import SyncState
from felixpy.sources.mqtt import MqttSource
from tests.broker import Broker
from tests.sources.stream_lab import NODE, ROOT, following, pool, put, settings_for

WILL = b'{"state":"offline","reason":"will"}'


async def connected_ids(monkeypatch: pytest.MonkeyPatch, broker: Broker, count: int) -> list[str]:
    """Client ids that as many starts use."""
    seen: list[str] = []
    original = connection.aiomqtt.Client

    def client(*arguments: object, identifier: str, **named: object) -> object:
        seen.append(identifier)
        return original(*arguments, identifier=identifier, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(connection.aiomqtt, "Client", client)
    for _ in range(count):
        async with following(MqttSource(settings_for(broker), NODE)) as sink:
            await sink.state(SyncState.IN_SYNC)
    return seen


def test_each_start_has_an_id_that_nobody_can_guess(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        await put(broker, {"ippool/a": pool("a")})
        ids = await connected_ids(monkeypatch, broker, 2)
        assert len(set(ids)) == len(ids) == 2
        for one in ids:
            assert re.fullmatch(rf"felixpy-{NODE}-[0-9a-f]{{16}}", one), one

    asyncio.run(scenario())


def test_who_connects_with_the_name_of_a_node_throws_nobody_out(broker: Broker) -> None:
    async def scenario() -> None:
        await put(broker, {"ippool/a": pool("a")})
        async with following(MqttSource(settings_for(broker), NODE)) as sink:
            await sink.state(SyncState.IN_SYNC)
            for _ in range(5):
                with socket.create_connection(("127.0.0.1", broker.port), 5) as hostile:
                    name = f"felixpy-{NODE}".encode()
                    body = b"\0\4MQTT\5\2\0\x1e\0\0" + bytes([len(name)]) + name
                    hostile.sendall(bytes([0x10, len(body)]) + body)
                    assert hostile.recv(100)[:1] == b"\x20"
            await put(broker, {"ippool/b": pool("b", "10.9.0.0/16")})
            await sink.until(lambda: len(sink.held) == 2)
            assert SyncState.CONNECTING not in {status.state for status in sink.statuses[1:]}

    asyncio.run(scenario())


def test_a_will_that_fires_late_does_not_stand(broker: Broker) -> None:
    """The node lost its power and is back before the broker takes the old connection for dead."""

    async def scenario() -> None:
        await put(broker, {"ippool/a": pool("a")})
        source = MqttSource(settings_for(broker), NODE)
        async with following(source) as sink:
            await sink.state(SyncState.IN_SYNC)
            source.publish_status({"state": "in-sync"})
            topic = f"status/{NODE}"
            heard: asyncio.Queue[bytes] = asyncio.Queue()
            async with aiomqtt.Client("127.0.0.1", broker.port) as listener:
                await listener.subscribe(f"{ROOT}/{topic}", qos=1)

                async def listen() -> None:
                    async for message in listener.messages:
                        assert isinstance(message.payload, bytes)
                        heard.put_nowait(message.payload)

                listening = asyncio.create_task(listen())
                async with limit(60):
                    assert await heard.get() == b'{"state":"in-sync"}'
                await listener.publish(f"{ROOT}/{topic}", WILL, qos=1, retain=True)
                async with limit(60):
                    assert await heard.get() == WILL
                    assert await heard.get() == b'{"state":"in-sync"}'
                listening.cancel()

    asyncio.run(scenario())


def test_two_agents_of_one_node_say_so(broker: Broker) -> None:
    async def scenario() -> None:
        await put(broker, {"ippool/a": pool("a")})
        one, two = (MqttSource(settings_for(broker), NODE) for _ in range(2))
        with capture_logs() as logs:
            async with following(one) as first, following(two) as second:
                await first.state(SyncState.IN_SYNC)
                await second.state(SyncState.IN_SYNC)
                async with limit(60):
                    number = 0
                    while not any("another agent publishes" in line["event"] for line in logs):
                        number += 1
                        two.publish_status({"state": "in-sync", "number": number})
                        await asyncio.sleep(0.05)
        told = next(line for line in logs if "another agent publishes" in line["event"])
        assert "NODENAME" in told["reason"]

    asyncio.run(scenario())
