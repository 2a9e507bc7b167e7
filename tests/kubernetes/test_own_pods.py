"""Own pods: the API says who a pod is, the attachment where its packets are, and an endpoint needs both."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from felixpy.cni.attachments import Attachment, LocalAttachments
from felixpy.config import Settings
from felixpy.config.values import IPAMType
from felixpy.kubernetes.access import Access, Identity
from felixpy.kubernetes.client import Api, ApiError
from felixpy.kubernetes.kinds import Read
from felixpy.kubernetes.names import endpoint_key
from felixpy.model.net import Net
from felixpy.model.resources import IPAMBlock, IPNat, Kind, ResourceKey, WorkloadEndpoint
from felixpy.sources import SyncState
from felixpy.sources.kubernetes import PODS, KubernetesSource
from felixpy.sources.once import Collected
from tests.kubernetes.test_conversion import POD, merged

KEY = endpoint_key("n1", "shop", "web-0")
WEB = ("shop", "web-0")


class Pods(Api):
    """Answers for single pods; ``asked`` are the paths."""

    def __init__(self) -> None:
        super().__init__(Access(Identity("http://nowhere")))
        self.objects: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []

    async def request(self, method: str, path: str, body: Any = None, **more: Any) -> bytes:
        self.asked.append(path)
        await asyncio.sleep(0)
        if path not in self.objects:
            raise ApiError(404, f"{path}: not found")
        return msgspec.json.encode(self.objects[path])


class World:
    def __init__(self, *, attaches: bool = True) -> None:
        self.api, self.sink = Pods(), Collected()
        self.attachments = LocalAttachments() if attaches else None
        self.source = KubernetesSource(Settings(nodename="n1"), self.api, self.attachments)
        self.source._sink = self.sink
        if self.attachments is not None:
            self.attachments.follow(self.source.refresh)
        self.version = 1

    def watch_brings(self, **change: Any) -> None:
        """The watch brings the pod as it is after a change."""
        self.version += 1
        metadata = {"resourceVersion": str(self.version)} | change.pop("metadata", {})
        pod = merged(POD, {"metadata": metadata, **change})
        self.source._own_pods.tell(WEB, msgspec.Raw(msgspec.json.encode(pod)))

    def attach(self, address: str = "10.48.0.7", container: str = "c1", uid: str = "u1") -> None:
        assert self.attachments is not None
        mac = bytes.fromhex("eeeeeeeeeeee")
        attachment = Attachment(*WEB, uid, container, "cali1", (Net.parse(address),), mac, f"/run/netns/{container}")
        self.attachments.put(attachment)

    def detach(self, container: str = "c1") -> None:
        assert self.attachments is not None
        self.attachments.remove(container, "eth0")

    @property
    def endpoint(self) -> WorkloadEndpoint | None:
        update = self.sink.updates.get(KEY)
        resource = update.resource if update else None
        assert resource is None or isinstance(resource, WorkloadEndpoint)
        return resource

    @property
    def addresses(self) -> list[str]:
        return [str(each) for each in self.endpoint.addresses] if self.endpoint else []


def test_the_last_list_completes_the_snapshot_without_a_pause() -> None:
    """The API tells when a list is whole: no quiet time, not even a turn of the loop."""
    world = World()
    awaited = [*world.source._unlisted]
    assert len(awaited) > 5
    for what in awaited:
        assert world.sink.status.state is not SyncState.IN_SYNC
        world.source.listed(what)
    assert world.sink.status.state is SyncState.IN_SYNC


def test_pod_then_attachment() -> None:
    async def run() -> None:
        world = World()
        world.watch_brings(metadata={"labels": {"app": "web"}})
        assert world.sink.updates == {}
        world.attach()
        assert world.addresses == ["10.48.0.7/32"]
        assert world.endpoint is not None
        assert world.endpoint.interface == "cali1"
        assert world.endpoint.mac == bytes.fromhex("eeeeeeeeeeee")
        assert world.endpoint.labels["app"] == "web"
        assert world.api.asked == []
        world.watch_brings(metadata={"labels": {"app": "db"}})
        assert world.endpoint.labels["app"] == "db"
        world.detach()
        assert world.endpoint is None

    asyncio.run(run())


def test_floating_addresses_lead_to_what_the_attachment_has() -> None:
    """The API tells of the pod's own addresses later than the plugin knows them."""

    async def run() -> None:
        world = World()
        world.watch_brings(metadata={"annotations": {"cni.projectcalico.org/floatingIPs": '["203.0.113.9"]'}})
        world.attach()
        assert world.endpoint is not None
        assert world.endpoint.ip_nats == (IPNat(Net.parse("203.0.113.9"), Net.parse("10.48.0.7")),)

    asyncio.run(run())


def test_an_attachment_whose_pod_has_not_come_asks_for_it_at_once() -> None:
    async def run() -> None:
        world = World()
        path = f"/api/v1/namespaces/{WEB[0]}/pods/{WEB[1]}"
        world.api.objects[path] = merged(POD, {"metadata": {"resourceVersion": "9"}})
        world.attach()
        world.attach(address="10.48.0.8")  # again: one question at a time
        assert world.endpoint is None
        for _ in range(10):
            await asyncio.sleep(0)
        assert world.api.asked == [path]
        assert world.addresses == ["10.48.0.8/32"]
        told = len(world.sink.updates)
        world.version = 8
        world.watch_brings()  # what the watch brings then is no news
        assert (len(world.sink.updates), world.addresses) == (told, ["10.48.0.8/32"])

    asyncio.run(run())


def test_a_pod_of_the_same_name_made_anew_is_not_taken_for_the_old_one() -> None:
    async def run() -> None:
        world = World()
        world.watch_brings()
        world.attach()
        world.attach(address="10.48.0.9", container="c2", uid="u2")  # the new one, ahead of the watch
        assert world.endpoint is None
        world.detach("c1")
        assert world.endpoint is None
        world.watch_brings(metadata={"uid": "u2"})
        assert world.addresses == ["10.48.0.9/32"]

    asyncio.run(run())


def test_what_the_kubelet_tells_of_a_pod_that_is_not_attached_counts_for_nothing() -> None:
    """After DEL the kubelet tells its addresses for a while, and they may be another's by then."""

    async def run() -> None:
        world = World()
        world.watch_brings()
        world.attach()
        world.detach()
        world.watch_brings(status={"podIPs": [{"ip": "10.48.0.7"}]})
        assert world.endpoint is None
        world.watch_brings(metadata={"annotations": {"cni.projectcalico.org/podIPs": "10.48.0.7/32"}})
        assert world.addresses == ["10.48.0.7/32"]  # Calico's plugin says so

    asyncio.run(run())


def test_without_a_plugin_of_ours_the_pod_says_everything() -> None:
    async def run() -> None:
        world = World(attaches=False)
        world.watch_brings()
        assert world.sink.updates == {}  # no address yet: nothing to tell
        world.watch_brings(status={"podIPs": [{"ip": "10.48.0.7"}, {"ip": "fd48::7"}]})
        assert world.addresses == ["10.48.0.7/32", "fd48::7/128"]
        world.watch_brings(status={"phase": "Succeeded"})
        assert world.endpoint is None

    asyncio.run(run())


def test_a_pod_that_cannot_be_read_says_why_and_goes_well_again() -> None:
    async def run() -> None:
        world = World(attaches=False)
        world.watch_brings(status={"podIP": "10.48.0.300"})
        assert "10.48.0.300" in world.sink.updates[KEY].error
        world.watch_brings(status={"podIP": "10.48.0.3"})
        assert (world.sink.updates[KEY].error, world.addresses) == ("", ["10.48.0.3/32"])

    asyncio.run(run())


def test_the_watch_asks_for_the_own_pods_alone() -> None:
    world = World()
    assert world.source._own_pods.collection.path == PODS
    assert world.source._own_pods.collection.field_selector == "spec.nodeName=n1"
    assert world.source._peers.collection.field_selector == "spec.nodeName!=n1"


# --- pod CIDRs -------------------------------------------------------------------------------------------------------

RANGE = ResourceKey(Kind.IPAM_BLOCK, "10-48-0-0-24")


def with_node(settings: Settings) -> World:
    world = World()
    world.source = KubernetesSource(settings, world.api, world.attachments)
    world.source._sink = world.sink
    node = {"metadata": {"name": "n1", "resourceVersion": "1"}, "spec": {"podCIDRs": ["10.48.0.0/24"]}}
    world.source._nodes.tell(("", "n1"), msgspec.Raw(msgspec.json.encode(node)))
    return world


def held(world: World, key: ResourceKey) -> bool:
    return key in world.sink.updates and world.sink.updates[key].resource is not None


def test_pod_cidrs_are_blocks_once_it_is_known_that_there_are_no_others() -> None:
    world = with_node(Settings(nodename="n1"))
    followers = dict(zip(("ipamblocks", "blockaffinities"), world.source._blocks, strict=True))
    followers["ipamblocks"].listed()
    assert not held(world, RANGE)
    followers["blockaffinities"].listed()
    assert held(world, RANGE)
    claimed = Read(ResourceKey(Kind.IPAM_BLOCK, "b"), IPAMBlock(RANGE, Net.parse("10.9.0.0/26"), "n1"))
    followers["ipamblocks"].changed(("", "b"), claimed)
    assert not held(world, RANGE)  # Calico's IPAM is at work
    followers["ipamblocks"].changed(("", "b"), None)
    assert held(world, RANGE)
    world.source._nodes.forget()
    assert not held(world, RANGE)


def test_with_calicos_ipam_pod_cidrs_mean_nothing() -> None:
    world = with_node(Settings(nodename="n1", ipam_type=IPAMType.CALICO))
    for follower in world.source._blocks:
        follower.listed()
    assert not held(world, RANGE)
    assert held(world, ResourceKey(Kind.NODE, "n1"))
