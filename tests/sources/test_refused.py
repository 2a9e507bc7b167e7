"""What a broker does not take is said, and the manifests count what it took; under rules in a real Mosquitto."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from felixpy.mqtt.batch import PublishError
from felixpy.mqtt.connection import Refused
from felixpy.mqtt.publisher import open_publisher
from tests.broker import Broker
from tests.sources.stream_lab import PUBLISHER, ROOT, endpoint, pool, retained, settings_for
from tests.sources.test_publish import assert_true, batch_of
from tests.sources.test_rights import RULES, broker_with_rules

HALF = f"""
user n2
topic read {ROOT}/#
topic readwrite {ROOT}/probe/#
topic readwrite {ROOT}/wep/#
topic readwrite {ROOT}/sync/#
user viewer
topic read {ROOT}/#
user publisher
topic readwrite {ROOT}/#
"""
"""n2 may write endpoints and manifests, but no pools; the viewer not even to himself."""


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with broker_with_rules(tmp_path, HALF) as process:
        yield process


def user(name: str) -> dict[str, str]:
    return {"mqtt_username": name, "mqtt_password": PUBLISHER["password"]}


def test_a_write_that_the_broker_refuses_fails_with_topic_and_reason_and_true_manifests(broker: Broker) -> None:
    async def scenario() -> None:
        async with open_publisher(settings_for(broker, **user("publisher"))) as publisher:
            await publisher.apply(batch_of(pool("a"), endpoint("w")))
        with pytest.raises(PublishError, match=rf"refuses to take {ROOT}/ippool/a \(Not authorized\).* 1 of 2 changes"):
            async with open_publisher(settings_for(broker, **user("n2"))) as publisher:
                await publisher.apply(batch_of(endpoint("x", address="10.0.0.2"), pool("a", "10.7.0.0/16")))
        assert b"10.0.0.0/16" in (await retained(broker, "ippool/a"))["ippool/a"]
        found = await assert_true(broker)
        assert found["node/n1"].counts == {"wep": 2}
        with pytest.raises(PublishError, match=rf"refuses to take {ROOT}/ippool/a .* 1 of 2 changes"):
            async with open_publisher(settings_for(broker, **user("n2"))) as publisher:
                await publisher.delete(batch_of(endpoint("x"), pool("a")))
        found = await assert_true(broker)
        assert (found["node/n1"].counts, found["shared"].counts) == ({"wep": 1}, {"ippool": 1})

    asyncio.run(scenario())


def test_a_manifest_that_the_broker_refuses_ends_the_write_before_it_begins(tmp_path: Path) -> None:
    rules = HALF.replace(f"{ROOT}/sync/#", f"{ROOT}/sync/node/#")

    async def scenario(broker: Broker) -> None:
        async with open_publisher(settings_for(broker, **user("publisher"))) as publisher:
            await publisher.apply(batch_of(pool("a"), endpoint("w")))
        with pytest.raises(PublishError, match=rf"refuses to take {ROOT}/sync/shared .* 0 of 2 changes"):
            async with open_publisher(settings_for(broker, **user("n2"))) as publisher:
                await publisher.apply(batch_of(endpoint("x", address="10.0.0.2"), pool("b", "10.7.0.0/16")))
        assert set(await retained(broker, "wep/#")) == {"wep/n1/default/w"}
        await assert_true(broker)

    with broker_with_rules(tmp_path, rules) as broker:
        asyncio.run(scenario(broker))


def test_whoever_may_not_send_himself_a_message_is_told_so_at_once(broker: Broker) -> None:
    async def get(name: str) -> int:
        async with open_publisher(settings_for(broker, **user(name))) as publisher:
            return len((await publisher.get()).objects)

    with pytest.raises(PublishError, match=rf"refuses to take {ROOT}/probe/felixpy-\S+ \(Not authorized\).*probe/%c"):
        asyncio.run(get("viewer"))


@pytest.mark.parametrize(("name", "objects"), [("publisher", 3), ("viewer", 3), ("n1", 2), ("n2", 2)])
def test_everybody_gets_what_the_shipped_rules_show_him(tmp_path: Path, name: str, objects: int) -> None:
    async def scenario(broker: Broker) -> None:
        async with open_publisher(settings_for(broker, **user("publisher"))) as publisher:
            await publisher.apply(batch_of(pool("a"), endpoint("w"), endpoint("x", node="n2", address="10.0.0.2")))
        async with open_publisher(settings_for(broker, **user(name))) as publisher:
            listing = await publisher.get()
        assert (len(listing.objects), listing.incomplete) == (objects, "")

    with broker_with_rules(tmp_path, RULES.read_text()) as broker:
        asyncio.run(scenario(broker))


def test_nobody_writes_to_the_echo_of_another_client(tmp_path: Path) -> None:
    async def scenario(broker: Broker) -> None:
        async with (
            open_publisher(settings_for(broker, **user("viewer"))) as one,
            open_publisher(settings_for(broker, **user("n1"))) as other,
        ):
            with pytest.raises(Refused):
                await other._connection.publish(f"{ROOT}/{one._retained._probe}", b"99")

    with broker_with_rules(tmp_path, RULES.read_text()) as broker:
        asyncio.run(scenario(broker))


@contextlib.contextmanager
def broker_that_leaves(port: int, answer: bytes) -> Iterator[None]:
    """Answers what comes first, and closes the connection when there is more."""
    connections = []
    with socket.create_server(("127.0.0.1", port)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection = server.accept()[0]
                    connections.append(connection)
                    connection.recv(4096)
                    if answer:
                        connection.sendall(answer)
                        connection.recv(4096)
                    connection.shutdown(socket.SHUT_RDWR)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in connections:
                connection.close()


CONNACK = b"\x20\x03\0\0\0"


def open_and_close(broker: Broker) -> None:
    async def scenario() -> None:
        async with open_publisher(settings_for(broker)):
            pass

    asyncio.run(scenario())


def test_a_connection_lost_before_the_first_answer_is_noticed_at_once(tmp_path: Path) -> None:
    nobody = Broker(tmp_path)
    with broker_that_leaves(nobody.port, CONNACK), pytest.raises(PublishError, match="closed the connection"):
        open_and_close(nobody)


def test_a_connection_closed_without_an_answer_is_no_silence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    nobody = Broker(tmp_path)
    with (
        broker_that_leaves(nobody.port, b""),
        pytest.raises(PublishError, match=r"closed the connection before it answered; .*FELIX_MQTTPORT.*FELIX_MQTTTLS"),
    ):
        open_and_close(nobody)
    assert capfd.readouterr().err == ""
