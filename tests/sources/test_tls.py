"""TLS with client certificates, against a real Mosquitto."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
import trustme
from msgspec.structs import replace

from felixpy.config import Settings
from felixpy.model.documents import load_text
from felixpy.mqtt import connection
from felixpy.mqtt.batch import PublishError, prepare
from felixpy.mqtt.publisher import open_publisher
from felixpy.sources import SyncState
from felixpy.sources.mqtt import MqttSource
from tests.broker import Broker, running
from tests.sources.stream_lab import following, pool, settings_for


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """Folder with ca.pem, server.pem/.key, client.pem/.key and the CA of a stranger, other.pem."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    for name, issued in (("server", ca.issue_cert("127.0.0.1")), ("client", ca.issue_cert("n1"))):
        issued.private_key_pem.write_to_path(str(tmp_path / f"{name}.key"))
        (tmp_path / f"{name}.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    return tmp_path


def tls_config(folder: Path) -> tuple[str, ...]:
    return (
        "allow_anonymous true",
        f"cafile {folder}/ca.pem",
        f"certfile {folder}/server.pem",
        f"keyfile {folder}/server.key",
        "require_certificate true",
    )


def connect(settings: Settings) -> None:
    async def scenario() -> None:
        async with open_publisher(settings):
            pass

    asyncio.run(scenario())


def test_client_certificate_opens_the_stream(authority: Path) -> None:
    async def scenario(settings: Settings) -> None:
        async with following(MqttSource(settings, "n1")) as sink:
            await sink.state(SyncState.DEGRADED)  # nothing published: connected, and nothing to be in sync with
            async with open_publisher(settings) as publisher:
                await publisher.apply(prepare(load_text(msgspec.json.encode(pool("a")), "test")))
            await sink.state(SyncState.IN_SYNC)

    with running(authority, tls_config(authority)) as broker:
        asyncio.run(scenario(tls_settings(broker, authority)))


def test_tls_mistakes_are_one_sentence_each(authority: Path) -> None:
    with running(authority, tls_config(authority)) as broker:
        good = tls_settings(broker, authority)
        with pytest.raises(PublishError, match=r"not trusted .*FELIX_MQTTCAFILE"):
            connect(replace(good, mqtt_ca_file=authority / "other.pem"))
        with pytest.raises(PublishError, match="cannot use the CA file"):
            connect(replace(good, mqtt_ca_file=authority / "missing.pem"))
        with pytest.raises(PublishError, match="cannot use the client certificate"):
            connect(replace(good, mqtt_key_file=authority / "server.key"))
        with pytest.raises(PublishError, match="not trusted"):
            connect(replace(good, mqtt_host="localhost"))
        with pytest.raises(PublishError, match=r"before it answered; .*FELIX_MQTTTLS"):
            connect(replace(good, mqtt_tls=False))


def test_tls_at_a_plain_port_and_an_address_in_brackets_are_named(tmp_path: Path) -> None:
    with running(tmp_path) as broker:
        with pytest.raises(PublishError, match=r"fails the TLS handshake .*FELIX_MQTTTLS"):
            connect(settings_for(broker, mqtt_tls=True))
        with pytest.raises(PublishError, match="no brackets"):
            connect(settings_for(broker, mqtt_host="[::1]"))


def test_missing_client_certificate_is_suspected(authority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_ANSWER_SECONDS", 1.0)
    with (
        running(authority, tls_config(authority)) as broker,
        pytest.raises(PublishError, match="client certificate"),
    ):
        connect(replace(tls_settings(broker, authority), mqtt_cert_file=None, mqtt_key_file=None))


def tls_settings(broker: Broker, folder: Path) -> Settings:
    return settings_for(
        broker,
        mqtt_tls=True,
        mqtt_ca_file=folder / "ca.pem",
        mqtt_cert_file=folder / "client.pem",
        mqtt_key_file=folder / "client.key",
    )
