"""What the tests of the sources share: settings for a broker, objects, and a sink that can be waited on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiomqtt
import msgspec

from felixpy.config import Settings
from felixpy.demo.patience import Patience, limit
from felixpy.model.resources import Kind, Resource, ResourceKey, Update
from felixpy.sources import Source, SyncState, SyncStatus
from tests.broker import Broker

NODE = "n1"
ROOT = "felixpy/v1"
PUBLISHER: dict[str, Any] = {"username": "publisher", "password": "secret"}
"""How the tests log in, where the broker asks."""


def settings_for(broker: Broker, **changes: Any) -> Settings:
    values: dict[str, Any] = {
        "nodename": NODE,
        "mqtt_host": "127.0.0.1",
        "mqtt_port": broker.port,
        "snapshot_timeout": 0.8,
        "snapshot_quiet_time": 0.3,
    }
    return Settings(**{**values, **changes})


def endpoint(name: str, *, node: str = NODE, namespace: str = "default", address: str = "10.0.0.1") -> dict[str, Any]:
    return {
        "apiVersion": "projectcalico.org/v3",
        "kind": "WorkloadEndpoint",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "node": node,
            "orchestrator": "k8s",
            "pod": name,
            "endpoint": "eth0",
            "interfaceName": f"cali{name}"[:15],
            "ipNetworks": [f"{address}/32"],
        },
    }


def pool(name: str, cidr: str = "10.0.0.0/16") -> dict[str, Any]:
    return {
        "apiVersion": "projectcalico.org/v3",
        "kind": "IPPool",
        "metadata": {"name": name},
        "spec": {"cidr": cidr},
    }


def node(name: str, address: str = "192.0.2.1/24") -> dict[str, Any]:
    return {
        "apiVersion": "projectcalico.org/v3",
        "kind": "Node",
        "metadata": {"name": name},
        "spec": {"bgp": {"ipv4Address": address}},
    }


def affinity(name: str, host: str, cidr: str) -> dict[str, Any]:
    return {
        "apiVersion": "projectcalico.org/v3",
        "kind": "BlockAffinity",
        "metadata": {"name": name},
        "spec": {"node": host, "cidr": cidr, "state": "confirmed"},
    }


def wep_key(name: str, namespace: str = "default") -> ResourceKey:
    return ResourceKey(Kind.WORKLOAD_ENDPOINT, name, namespace)


class Recorder:
    """A sink that keeps the latest of everything."""

    def __init__(self) -> None:
        self.held: dict[ResourceKey, Resource] = {}
        self.errors: dict[ResourceKey, str] = {}
        self.updates: list[Update] = []
        self.statuses: list[SyncStatus] = [SyncStatus(SyncState.CONNECTING)]
        self.unknown: list[str] = []

    @property
    def status(self) -> SyncStatus:
        return self.statuses[-1]

    def update(self, update: Update) -> None:
        self.updates.append(update)
        self.errors.pop(update.key, None)
        if update.error:
            self.errors[update.key] = update.error
        if update.resource is None:
            self.held.pop(update.key, None)
        else:
            self.held[update.key] = update.resource

    def sync_status(self, status: SyncStatus) -> None:
        self.statuses.append(status)

    def ignored(self, what: str) -> None:
        self.unknown.append(what)

    async def until(self, condition: Callable[[], object], seconds: float = 30) -> None:
        patience = Patience(seconds)
        while not condition():
            assert not patience.over(), f"for {patience} still {self.status}, {len(self.held)} held"
            await asyncio.sleep(0.01)

    async def state(self, state: SyncState, seconds: float = 30) -> SyncStatus:
        await self.until(lambda: self.status.state is state, seconds)
        return self.status

    async def lost(self, cause: Callable[[], object]) -> None:
        """Do what makes the source lose its stream, and wait until it has told so: it may be back by then."""
        told = len(self.statuses)
        await asyncio.to_thread(cause)
        await self.until(lambda: any(status.state is SyncState.CONNECTING for status in self.statuses[told:]))


@contextlib.asynccontextmanager
async def following(source: Source) -> AsyncIterator[Recorder]:
    """Run a source; cancelled and awaited at the end."""
    sink = Recorder()
    task = asyncio.create_task(source.run(sink))
    try:
        yield sink
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def put(broker: Broker, messages: dict[str, Any]) -> None:
    """Publish as a person with ``mosquitto_pub -r`` would: bytes as they are, anything else as JSON."""
    async with aiomqtt.Client("127.0.0.1", broker.port, max_queued_outgoing_messages=0, **PUBLISHER) as client:
        client.pending_calls_threshold = 100_000
        for topic, value in messages.items():
            payload = value if isinstance(value, bytes) else msgspec.json.encode(value)
            await client.publish(f"{ROOT}/{topic}", payload, qos=1, retain=True)


async def comes_to_retain(broker: Broker, filters: str, wanted: dict[str, bytes]) -> None:
    """Wait until the broker retains this under a filter, and nothing else."""
    patience = Patience(30)
    while (found := await retained(broker, filters)) != wanted:
        assert not patience.over(), f"for {patience} {found}"


async def retained(broker: Broker, filters: str, seconds: float = 0.3) -> dict[str, bytes]:
    """What the broker retains under a filter."""
    found: dict[str, bytes] = {}
    async with aiomqtt.Client("127.0.0.1", broker.port, **PUBLISHER) as client:
        await client.subscribe(f"{ROOT}/{filters}")
        with contextlib.suppress(TimeoutError):
            async with limit(seconds):
                async for message in client.messages:
                    found[str(message.topic).removeprefix(f"{ROOT}/")] = bytes(message.payload)
    return found
