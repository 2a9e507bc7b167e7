"""The configuration that we recommend is one that Mosquitto starts with."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import msgspec
from broker import Broker, running
from stream_lab import endpoint, following, pool, settings_for, wep_key

from felixpy.model.documents import load_text
from felixpy.publish import open_publisher
from felixpy.sources import SyncState
from felixpy.sources.batch import prepare
from felixpy.sources.mqtt import MqttSource

CONFIG = Path(__file__).parents[2] / "config" / "mosquitto.conf"


def test_mosquitto_starts_with_the_recommended_configuration(tmp_path: Path) -> None:
    lines = CONFIG.read_text().splitlines()
    # The port and the folder are the test's own.
    kept = [line for line in lines if not line.startswith("listener ")]
    assert len(kept) == len(lines) - 1
    kept.append(f"persistence_location {tmp_path}/")
    with running(tmp_path, tuple(kept)) as broker:
        assert "Error" not in broker.log()
    assert (tmp_path / "mosquitto.db").exists()


def test_recommended_access_rules_let_a_node_read_its_own_only(tmp_path: Path) -> None:
    rules = [line.removeprefix("#").strip() for line in CONFIG.read_text().splitlines()]
    acl = tmp_path / "acl"
    acl.write_text("\n".join(line for line in rules if line.split(" ")[0] in ("pattern", "user", "topic")) + "\n")
    passwords = tmp_path / "passwords"
    passwords.touch()
    for user in ("n1", "n2", "publisher"):
        subprocess.run(["mosquitto_passwd", "-b", str(passwords), user, "secret"], check=True, capture_output=True)

    async def scenario(broker: Broker) -> None:
        batch = prepare(load_text(msgspec.json.encode([pool("a"), endpoint("w"), endpoint("x", node="n2")]), "test"))
        publisher_settings = settings_for(broker, mqtt_username="publisher", mqtt_password="secret")
        async with open_publisher(publisher_settings) as publisher:
            await publisher.apply(batch)
        settings = settings_for(broker, mqtt_username="n1", mqtt_password="secret")
        source = MqttSource(settings, "n1")
        async with following(source) as sink:
            await sink.state(SyncState.IN_SYNC)
            assert wep_key("w") in sink.held
            source.publish_status({"state": "in-sync"})
            await asyncio.sleep(0.2)
            async with open_publisher(
                settings_for(broker, mqtt_username="publisher", mqtt_password="secret")
            ) as reader:
                await reader._retained.read(reader._connection, ["status/#"])
                assert set(reader._retained.content) == {"status/n1"}
        async with following(MqttSource(settings, "n2")) as sink:
            await asyncio.sleep(1)
            assert wep_key("x") not in sink.held

    config = ("allow_anonymous false", f"password_file {passwords}", f"acl_file {acl}")
    with running(tmp_path, config) as broker:
        asyncio.run(scenario(broker))
