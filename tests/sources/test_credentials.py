"""Certificates and passwords that are replaced while the stream runs, against a real Mosquitto."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
from collections.abc import AsyncIterator, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import aiomqtt
import msgspec
import pytest
import trustme
from structlog.testing import capture_logs

from felixpy.config import Settings
from felixpy.mqtt import connection, credentials
from felixpy.sources import SyncState
from felixpy.sources.mqtt import MqttSource
from tests.broker import Broker, free_port, running
from tests.sources.stream_lab import (
    NODE,
    PUBLISHER,
    ROOT,
    Recorder,
    endpoint,
    following,
    pool,
    put,
    settings_for,
    wep_key,
)

NAMES = {"mqtt_ca_file": "ca.pem", "mqtt_cert_file": "client.pem", "mqtt_key_file": "client.key"}
Logs = list[MutableMapping[str, Any]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(credentials, "SPREAD_SECONDS", (0.0, 0.05))


class Secrets:
    """Client certificates as the kubelet mounts them: links through one link that an update replaces."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mount = folder / "mount"
        self.authority = trustme.CA()
        self.authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        self._write("server", self.authority.issue_cert("127.0.0.1"), folder)
        self.mount.mkdir()
        for name in NAMES.values():
            (self.mount / name).symlink_to(Path("..data") / name)

    def issue(self, user: str, *, by: trustme.CA | None = None) -> Path:
        """A folder with files of their own for a client that the broker will know by this name."""
        path = self.folder / user
        path.mkdir()
        self.authority.cert_pem.write_to_path(str(path / "ca.pem"))
        self._write("client", (by or self.authority).issue_cert("n1", common_name=user), path)
        return path

    @staticmethod
    def _write(name: str, issued: trustme.LeafCert, path: Path) -> None:
        issued.private_key_pem.write_to_path(str(path / f"{name}.key"))
        (path / f"{name}.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))

    def show(self, path: Path) -> None:
        (self.mount / "..new").symlink_to(path)
        (self.mount / "..new").rename(self.mount / "..data")


class World:
    """A broker with a listener for the test and one with TLS, and files for the agent."""

    def __init__(self, broker: Broker, port: int, secrets: Secrets) -> None:
        self.broker = broker
        self.secrets = secrets
        files = {setting: secrets.mount / name for setting, name in NAMES.items()}
        self.settings = settings_for(broker, mqtt_port=port, mqtt_tls=True, **files)

    def users(self) -> list[str]:
        """By which names the agent came, connection after connection."""
        return re.findall(r" as felixpy-n1-[0-9a-f]{16} \(.*u'(\w+)'\)", self.broker.log())


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    secrets, port = Secrets(tmp_path), free_port()
    secrets.show(secrets.issue("first"))
    tls = (
        "allow_anonymous true",
        f"listener {port} 127.0.0.1",
        f"cafile {tmp_path}/ca.pem",
        f"certfile {tmp_path}/server.pem",
        f"keyfile {tmp_path}/server.key",
        "require_certificate true",
        "use_identity_as_username true",
    )
    with running(tmp_path, tls) as broker:
        yield World(broker, port, secrets)


class Followed:
    """A source in sync with one endpoint and one pool, and what it and others said since."""

    def __init__(self, source: MqttSource, sink: Recorder, logs: Logs) -> None:
        self.source, self.sink, self.logs = source, sink, logs
        self.told: list[str] = []
        """States that the broker had for the node."""
        self._updates, self._statuses = len(sink.updates), len(sink.statuses)

    def lines(self, event: str) -> Logs:
        return [line for line in self.logs if line["event"] == event]

    def refused(self) -> Logs:
        return self.lines(credentials.UNUSABLE)

    def is_undisturbed(self) -> bool:
        return len(self.sink.statuses) == self._statuses and self.lost_nothing()

    def lost_nothing(self) -> bool:
        """No key was removed or written again, and nobody was told that the node is gone."""
        return len(self.sink.updates) == self._updates and wep_key("w") in self.sink.held and "offline" not in self.told


@contextlib.asynccontextmanager
async def in_sync(broker: Broker, settings: Settings) -> AsyncIterator[Followed]:
    await put(broker, {"ippool/a": pool("a"), "wep/n1/default/w": endpoint("w")})
    source = MqttSource(settings, NODE)
    with capture_logs() as logs:
        async with following(source) as sink:
            await sink.state(SyncState.IN_SYNC)
            source.publish_status({"state": "in-sync"})
            followed = Followed(source, sink, logs)
            listener = asyncio.create_task(listen(broker, followed.told))
            try:
                await sink.until(lambda: followed.told)
                yield followed
            finally:
                listener.cancel()
                await asyncio.gather(listener, return_exceptions=True)


async def listen(broker: Broker, told: list[str]) -> None:
    async with aiomqtt.Client("127.0.0.1", broker.port, **PUBLISHER) as client:
        await client.subscribe(f"{ROOT}/status/{NODE}")
        async for message in client.messages:
            told.append(msgspec.json.decode(message.payload)["state"])


def test_a_new_client_certificate_is_used_at_once_and_costs_nothing(world: World) -> None:
    async def scenario() -> None:
        async with in_sync(world.broker, world.settings) as agent:
            assert world.users() == ["first"]
            world.secrets.show(world.secrets.issue("second"))
            await agent.sink.until(lambda: world.users() == ["first", "second"])
            await agent.sink.until(lambda: agent.sink.status.state is SyncState.IN_SYNC)
            assert agent.lost_nothing()
            assert "client.key" in agent.lines("stream is connected anew")[0]["reason"]
            assert not agent.lines("stream lost") and not agent.refused()
            await put(world.broker, {"wep/n1/default/x": endpoint("x", address="10.0.0.2")})
            await agent.sink.until(lambda: wep_key("x") in agent.sink.held)

    asyncio.run(scenario())


def test_reload_looks_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "LOOK_SECONDS", 60.0)

    async def scenario() -> None:
        async with in_sync(world.broker, world.settings) as agent:
            world.secrets.show(world.secrets.issue("second"))
            await asyncio.sleep(0.2)
            assert world.users() == ["first"]
            agent.source.reload()
            await agent.sink.until(lambda: world.users() == ["first", "second"])

    asyncio.run(scenario())


def test_a_half_written_certificate_leaves_the_connection_and_is_said_once(world: World) -> None:
    async def scenario() -> None:
        async with in_sync(world.broker, world.settings) as agent:
            second = world.secrets.issue("second")
            whole = (second / "client.pem").read_bytes()
            (second / "client.pem").write_bytes(whole[: len(whole) // 2])
            world.secrets.show(second)
            await agent.sink.until(agent.refused)
            agent.source.reload()
            await asyncio.sleep(0.3)
            (line,) = agent.refused()
            assert "cannot use the client certificate" in line["reason"] and "FELIX_MQTTCERTFILE" in line["reason"]
            assert str(world.secrets.mount / "client.pem") in line["changed"]
            assert agent.is_undisturbed() and world.users() == ["first"]
            (second / "client.pem").write_bytes(whole)
            await agent.sink.until(lambda: world.users() == ["first", "second"])
            await agent.sink.until(lambda: agent.lines(f"{credentials.UNUSABLE}: over"))
            assert agent.lost_nothing()

    asyncio.run(scenario())


def test_a_certificate_that_the_broker_does_not_trust_leaves_the_connection(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_ANSWER_SECONDS", 1.0)

    async def scenario() -> None:
        async with in_sync(world.broker, world.settings) as agent:
            world.secrets.show(world.secrets.issue("stranger", by=trustme.CA()))
            await agent.sink.until(agent.refused)
            reason = agent.refused()[0]["reason"]
            assert "does not trust the client certificate" in reason
            assert "the connection with the old ones stays" in reason
            world.secrets.show(world.secrets.folder / "first")
            await agent.sink.until(lambda: agent.lines(f"{credentials.UNUSABLE}: over"))
            assert agent.is_undisturbed() and world.users() == ["first"]

    asyncio.run(scenario())


def set_password(file: Path, user: str, password: str) -> None:
    subprocess.run(["mosquitto_passwd", "-b", str(file), user, password], check=True, capture_output=True)


def test_a_new_password_waits_until_the_broker_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "AGAIN_SECONDS", 0.1)
    passwords, secret = tmp_path / "passwords", tmp_path / "secret"
    passwords.touch()
    set_password(passwords, "n1", "old-secret")
    set_password(passwords, PUBLISHER["username"], PUBLISHER["password"])
    secret.write_text("old-secret\n")

    async def scenario(broker: Broker) -> None:
        settings = settings_for(broker, mqtt_username="n1", mqtt_password_file=secret)
        async with in_sync(broker, settings) as agent:
            new = tmp_path / "new"
            new.write_text("new-secret\n")
            new.rename(secret)
            await agent.sink.until(agent.refused)
            await asyncio.sleep(0.3)
            (line,) = agent.refused()
            assert "refuses user 'n1'" in line["reason"] and str(secret) in line["changed"]
            assert agent.is_undisturbed()
            set_password(passwords, "n1", "new-secret")
            broker.reload()
            await agent.sink.until(lambda: agent.lines(f"{credentials.UNUSABLE}: over"))
            await agent.sink.state(SyncState.IN_SYNC)
            assert "secret" not in str(agent.logs).replace(str(secret), "")

    with running(tmp_path, ("allow_anonymous false", f"password_file {passwords}")) as broker:
        asyncio.run(scenario(broker))
