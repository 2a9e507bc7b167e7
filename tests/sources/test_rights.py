"""An agent whose user is not its node's, under ``config/mosquitto.acl`` in a real Mosquitto."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from felixpy.demo.patience import stretched
from felixpy.mqtt import snapshot
from felixpy.sources import SyncState
from felixpy.sources.mqtt import MqttSource
from felixpy.sources.once import read_once
from tests.broker import Broker, running
from tests.sources.stream_lab import NODE, PUBLISHER, ROOT, endpoint, following, pool, put, settings_for, wep_key

RULES = Path(__file__).parents[2] / "config" / "mosquitto.acl"
EVERYTHING = f"user n2\ntopic readwrite {ROOT}/#\nuser publisher\ntopic readwrite {ROOT}/#\n"
"""Rules that let n2 be whatever it says it is."""

TOLD = ("no endpoints of node n1", "user 'n2'", "FELIX_MQTTUSERNAME", "access rules")


@contextlib.contextmanager
def broker_with_rules(folder: Path, rules: str) -> Iterator[Broker]:
    passwords = folder / "passwords"
    passwords.touch()
    for user in ("n1", "n2", "viewer", PUBLISHER["username"]):
        secret = PUBLISHER["password"]
        subprocess.run(["mosquitto_passwd", "-b", str(passwords), user, secret], check=True, capture_output=True)
    (folder / "acl").write_text(rules)
    config = (
        "allow_anonymous false",
        f"password_file {passwords}",
        f"acl_file {folder}/acl",
        "persistence true",
        f"persistence_location {folder}/",
    )
    with running(folder, config) as broker:
        yield broker


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with broker_with_rules(tmp_path, RULES.read_text()) as process:
        yield process


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "RETRY_FIRST_SECONDS", 0.3)


def source_of(broker: Broker, user: str, *, observer: bool = False) -> MqttSource:
    settings = settings_for(broker, mqtt_username=user, mqtt_password=PUBLISHER["password"], snapshot_timeout=0.4)
    return MqttSource(settings, NODE, observer=observer)


def test_the_user_of_another_node_is_degraded_and_says_what_to_do(broker: Broker) -> None:
    async def scenario() -> None:
        await put(broker, {"ippool/a": pool("a"), "wep/n1/default/w": endpoint("w")})
        async with following(source_of(broker, "n2")) as sink:
            status = await sink.state(SyncState.DEGRADED)
            assert all(word in status.reason for word in TOLD), status.reason
            await asyncio.sleep(0.5)
            assert SyncState.IN_SYNC not in {status.state for status in sink.statuses}
        seen = await read_once(source_of(broker, "n2", observer=True), stretched(30))
        assert seen.status.state is SyncState.DEGRADED
        assert all(word in seen.status.reason for word in TOLD)

    asyncio.run(scenario())


def test_a_node_of_its_own_name_without_endpoints_is_in_sync(broker: Broker) -> None:
    async def scenario() -> None:
        await put(broker, {"ippool/a": pool("a")})
        async with following(source_of(broker, "n1")) as sink:
            await sink.state(SyncState.IN_SYNC)
            assert SyncState.DEGRADED not in {status.state for status in sink.statuses}

    asyncio.run(scenario())


def test_a_user_that_may_only_read_sees_the_endpoints_and_is_in_sync(broker: Broker) -> None:
    async def scenario() -> None:
        await put(broker, {"ippool/a": pool("a"), "wep/n1/default/w": endpoint("w")})
        async with following(source_of(broker, "viewer")) as sink:
            await sink.state(SyncState.IN_SYNC)
            assert wep_key("w") in sink.held

    asyncio.run(scenario())


def test_rules_that_are_tightened_remove_nothing_and_loosened_end_it(tmp_path: Path) -> None:
    async def scenario(broker: Broker) -> None:
        await put(broker, {"ippool/a": pool("a"), "wep/n1/default/w": endpoint("w")})
        async with following(source_of(broker, "n2")) as sink:
            await sink.state(SyncState.IN_SYNC)
            before, count = dict(sink.held), len(sink.updates)
            (tmp_path / "acl").write_text(RULES.read_text())
            broker.restart()
            status = await sink.state(SyncState.DEGRADED)
            assert all(word in status.reason for word in TOLD), status.reason
            assert (sink.held, len(sink.updates)) == (before, count)
            (tmp_path / "acl").write_text(EVERYTHING)
            broker.reload()
            await sink.state(SyncState.IN_SYNC)
            assert (sink.held, len(sink.updates)) == (before, count)

    with broker_with_rules(tmp_path, EVERYTHING) as broker:
        asyncio.run(scenario(broker))
