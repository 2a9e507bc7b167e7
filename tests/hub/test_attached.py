"""Pods of a node with a hub: who they are comes from the broker, where they are from the runtime, and neither waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from msgspec.structs import replace

from felixpy.cni.attachments import Attachment, LocalAttachments
from felixpy.kubernetes.client import ApiError
from felixpy.kubernetes.names import endpoint_key
from felixpy.model.net import Net
from felixpy.model.policy import ORCHESTRATOR_LABEL
from felixpy.model.resources import Kind, ResourceKey, Update, WorkloadEndpoint
from felixpy.sources import Sink, SyncState, SyncStatus
from felixpy.sources.attached import AttachedPods
from tests.kubernetes.test_conversion import POD, merged
from tests.kubernetes.test_own_pods import Pods
from tests.sources.stream_lab import Recorder

KEY = endpoint_key("n1", "shop", "web-0")
PATH = "/api/v1/namespaces/shop/pods/web-0"
IN_SYNC = SyncStatus(SyncState.IN_SYNC)


class Silent:
    """A source that says what a test says in its name."""

    async def run(self, sink: Sink) -> None:
        await asyncio.Event().wait()


class World:
    def __init__(self) -> None:
        self.api, self.sink, self.attachments = Pods(), Recorder(), LocalAttachments()
        self.source = AttachedPods(Silent(), "n1", "cali", self.api, self.attachments)

    def broker_tells(self, color: str = "red", **change: Any) -> None:
        found = WorkloadEndpoint(
            KEY, "n1", "caliguess", (Net.parse("10.0.0.99/32"),), labels={ORCHESTRATOR_LABEL: "k8s", "color": color}
        )
        self.source.update(Update(KEY, replace(found, **change), "", 1, 2))

    def attach(self, address: str = "10.48.0.7", container: str = "c1") -> None:
        self.attachments.put(
            Attachment("shop", "web-0", "u1", container, "cali1234", (Net.parse(f"{address}/32"),), b"\xee" * 6)
        )

    def api_has_it(self, color: str = "blue") -> None:
        self.api.objects[PATH] = merged(POD, {"metadata": {"labels": {"color": color}}})

    @property
    def endpoint(self) -> WorkloadEndpoint | None:
        found = self.sink.held.get(KEY)
        assert found is None or isinstance(found, WorkloadEndpoint)
        return found

    @property
    def color(self) -> str:
        assert self.endpoint is not None
        return self.endpoint.labels["color"]


def scenario(test: Callable[[World], Coroutine[None, None, None]]) -> Callable[[], None]:
    """A test with a source that runs."""

    async def run() -> None:
        world = World()
        task = asyncio.create_task(world.source.run(world.sink))
        await asyncio.sleep(0)
        try:
            await test(world)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def collected() -> None:
        asyncio.run(run())

    collected.__doc__ = test.__doc__
    return collected


@scenario
async def test_an_endpoint_needs_both(world: World) -> None:
    world.broker_tells()
    assert world.endpoint is None
    world.attach()
    assert world.endpoint is not None
    assert (world.endpoint.interface, str(world.endpoint.addresses[0])) == ("cali1234", "10.48.0.7/32")
    told = len(world.sink.updates)
    world.broker_tells()
    assert len(world.sink.updates) == told
    world.broker_tells("green")
    assert world.color == "green"
    assert (world.sink.updates[-1].received_ns, world.sink.updates[-1].published_ns) == (1, 2)
    world.attachments.remove("c1", "eth0")
    assert world.endpoint is None


@scenario
async def test_a_pod_is_known_before_the_hub_tells_of_it(world: World) -> None:
    world.api_has_it()
    await world.source.pod("shop", "web-0", "u1")
    world.attach()
    assert world.color == "blue"
    world.broker_tells("green")
    assert world.color == "green"
    world.source.update(Update(KEY, None))
    assert world.endpoint is None


@scenario
async def test_what_was_before_goes_late_and_harms_nothing(world: World) -> None:
    """A StatefulSet's pod comes back under its name before the hub says that the one before is gone."""
    world.broker_tells()
    world.attach(container="c1")
    world.source.update(Update(KEY, None))
    world.attachments.remove("c1", "eth0")
    world.api_has_it()
    await world.source.pod("shop", "web-0", "u1")
    world.attach("10.48.0.8", container="c2")
    world.source.update(Update(KEY, None))
    assert world.color == "blue"


@scenario
async def test_in_sync_waits_for_pods_that_the_hub_does_not_tell_of(world: World) -> None:
    world.attach()
    world.source.sync_status(IN_SYNC)
    assert world.sink.status.state is SyncState.RESYNC
    assert "1 pods" in world.sink.status.reason
    world.api_has_it()
    await world.sink.state(SyncState.IN_SYNC)
    assert world.color == "blue"
    assert world.api.asked == [PATH]


@scenario
async def test_an_attached_pod_that_nobody_knows_holds_nothing_up(world: World) -> None:
    world.attach()
    world.source.sync_status(IN_SYNC)
    await world.sink.state(SyncState.IN_SYNC)
    assert world.endpoint is None


@scenario
async def test_another_pod_of_the_name_is_refused(world: World) -> None:
    world.api_has_it()
    with pytest.raises(ApiError, match="another one by now"):
        await world.source.pod("shop", "web-0", "u2")


@scenario
async def test_what_is_no_pod_here_passes(world: World) -> None:
    other = WorkloadEndpoint(ResourceKey(Kind.WORKLOAD_ENDPOINT, "peer/1"), "", "", (), labels={})
    machine = WorkloadEndpoint(ResourceKey(Kind.WORKLOAD_ENDPOINT, "vm", "default"), "n1", "calivm", ())
    pool = Update(ResourceKey(Kind.IP_POOL, "a"), None, "bad")
    for update in (Update(other.key, other), Update(machine.key, machine), pool, Update(other.key, None)):
        world.source.update(update)
        assert world.sink.updates[-1] is update
