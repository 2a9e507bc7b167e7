"""Two hubs as processes, with the rights of the manifests, between a real API server and a real broker."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from felixpy.config import MqttPeers, Settings
from felixpy.kubernetes.names import endpoint_key
from felixpy.model.resources import Kind, ResourceKey
from felixpy.mqtt.peers import endpoint_hash
from felixpy.sources import SyncState
from felixpy.sources.mqtt import MqttSource
from tests.broker import Broker, running
from tests.kubernetes.api.conftest import MANIFESTS, Server
from tests.kubernetes.api.test_source import give_addresses, pod, until
from tests.kubernetes.api.test_source import namespace as namespace
from tests.sources.stream_lab import Recorder, following


@pytest.fixture
def broker(server: Server, tmp_path: Path) -> Iterator[Broker]:
    with running(tmp_path) as found:
        yield found


@contextlib.contextmanager
def hub(server: Server, broker: Broker, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A hub with its own service account; killed at the end."""
    folder.mkdir()
    token = server.kubectl("-n", "felixpy", "create", "token", "felixpy-hub").strip()
    assert server.admin.ca is not None
    authority = base64.b64encode(server.admin.ca.read().encode()).decode()
    cluster = {"server": server.admin.server, "certificate-authority-data": authority}
    kubeconfig = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {"token": token}}],
    }
    (folder / "kubeconfig").write_bytes(msgspec.json.encode(kubeconfig))
    environ = os.environ | {
        "FELIX_MQTTHOST": "127.0.0.1",
        "FELIX_MQTTPORT": str(broker.port),
        "FELIX_KUBECONFIG": str(folder / "kubeconfig"),
        "PYTHONUNBUFFERED": "1",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen((sys.executable, "-m", "felixpy", "hub"), env=environ, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def leads(folder: Path) -> bool:
    return "the broker holds what the cluster is" in (folder / "log").read_text()


def test_a_hub_that_dies_is_followed_by_another_and_nothing_moves(
    server: Server, broker: Broker, namespace: str, tmp_path: Path
) -> None:
    server.kubectl("apply", "-f", str(MANIFESTS / "hub" / "hub.yaml"))
    mine, theirs = endpoint_key("n1", namespace, "mine"), endpoint_key("n2", namespace, "theirs")
    peer = ResourceKey(Kind.WORKLOAD_ENDPOINT, f"peer/{endpoint_hash(theirs).hex()}")

    async def run() -> None:
        server.apply(pod(namespace, "mine", "n1"), pod(namespace, "theirs", "n2"))
        give_addresses(server, namespace, "mine", "10.48.0.1", "fd48::1")
        give_addresses(server, namespace, "theirs", "10.48.1.1")
        settings = Settings(
            nodename="n1", mqtt_host="127.0.0.1", mqtt_port=broker.port, mqtt_peers=MqttPeers.HUB, snapshot_timeout=5.0
        )
        one, two = tmp_path / "one", tmp_path / "two"
        with hub(server, broker, one) as first:
            await until(lambda: leads(one))
            with hub(server, broker, two):
                async with following(MqttSource(settings, "n1")) as sink:
                    await sink.state(SyncState.IN_SYNC, 120)
                    assert {mine, peer, ResourceKey(Kind.NAMESPACE, namespace)} <= sink.held.keys()
                    told = len(sink.updates)
                    first.send_signal(signal.SIGKILL)
                    await until(lambda: leads(two))
                    give_addresses(server, namespace, "theirs", "10.48.1.2")
                    await _address(sink, peer, "10.48.1.2/32")
                    moved = {update.key for update in sink.updates[told:]} - {ResourceKey(Kind.NAMESPACE, namespace)}
                    assert moved == {peer}
                    server.kubectl("-n", namespace, "delete", "pod", "mine", "--force", "--grace-period=0")
                    await sink.until(lambda: mine not in sink.held, 120)

    asyncio.run(run())


async def _address(sink: Recorder, key: ResourceKey, wanted: str) -> None:
    await sink.until(lambda: [str(net) for net in getattr(sink.held.get(key), "addresses", ())] == [wanted], 120)
