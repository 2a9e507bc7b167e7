"""The Kubernetes source: this node's pods, all nodes, pools and blocks, as the API server has them.

Invariant: the sink holds what the API tells, and of this node's own pods what the container runtime attached, which is
known first: an attachment says where a pod's packets are, the Pod object who it is, and an endpoint needs both. An API
server that is away, or a kind that cannot be read, removes nothing. It must never write to the API server.
"""

from __future__ import annotations

import asyncio
import random
import time
from functools import partial

import msgspec
from msgspec.structs import replace

from felixpy.cni.attachments import Attachment, LocalAttachments, PodKey
from felixpy.config import Settings
from felixpy.config.values import IPAMType
from felixpy.kubernetes.client import FORBIDDEN, NOT_FOUND, Api, ApiError
from felixpy.kubernetes.following import Following
from felixpy.kubernetes.kinds import KINDS, Read, reader
from felixpy.kubernetes.names import endpoint_key
from felixpy.kubernetes.nodes import NodeFacts, decode_node, pod_cidr_blocks
from felixpy.kubernetes.pods import PodFacts, decode_pod, with_floating
from felixpy.kubernetes.reflector import Collection, ObjectKey, Reflector
from felixpy.model.resources import IPAMBlock, Kind, ResourceKey, Update, WorkloadEndpoint
from felixpy.sources import Sink, SyncState, SyncStatus
from felixpy.sources.ending import end

BLOCK_KINDS = frozenset({"ipamblocks", "blockaffinities"})
PODS, NODES = "/api/v1/pods", "/api/v1/nodes"
LEAVE_SECONDS = 1.0
ASK_AGAIN_SECONDS = 1.0
"""Between two questions for a pod that was attached and that the API does not tell of yet."""


class KubernetesSource:
    """Source of one node's resources. Without ``attachments``, another CNI plugin than ours attaches the pods."""

    def __init__(self, settings: Settings, api: Api, attachments: LocalAttachments | None = None) -> None:
        self._settings = settings
        self._node = settings.nodename
        self._api = api
        self._attachments = attachments
        self._following = Following(api, partial(reader, ignored=self._ignored))
        self._sink: Sink | None = None
        self._unlisted: set[str] = set()
        self._failing: dict[str, ApiError] = {}
        self._status = SyncStatus(SyncState.CONNECTING)
        self._told: dict[ResourceKey, WorkloadEndpoint | str] = {}
        self._asking: dict[PodKey, asyncio.Task[None]] = {}
        prefix = settings.interface_prefix[0]
        self._own_pods = Reflector(
            api,
            Collection(PODS, partial(decode_pod, prefix=prefix), f"spec.nodeName={self._node}"),
            _OwnPods(self, "own pods"),
        )
        self._node_follower = _Nodes(self, "nodes")
        self._nodes = Reflector(api, Collection(NODES, decode_node), self._node_follower)
        self._peers = Reflector(
            api,
            Collection(PODS, partial(decode_pod, prefix=prefix), f"spec.nodeName!={self._node}"),
            _Peers(self, "other nodes' pods"),
        )
        self._kinds = [(entry, _Objects(self, str(entry))) for entry in KINDS if not entry.lazily]
        self._blocks = [follower for entry, follower in self._kinds if entry.plural in BLOCK_KINDS]
        self._collections = len(self._unlisted)

    async def run(self, sink: Sink) -> None:
        """Deliver for ever."""
        self._sink = sink
        if self._attachments is not None:
            self._attachments.follow(self._attached)
        self._tell()
        following = self._following
        parts = [following.collection(one) for one in (self._own_pods, self._nodes, self._peers)]
        parts += [following.kind(entry, follower) for entry, follower in self._kinds]
        parts += [
            following.lazily(entry, partial(_Objects, self, str(entry), awaited=False))
            for entry in KINDS
            if entry.lazily
        ]
        tasks = [asyncio.create_task(part) for part in parts]
        try:
            await asyncio.gather(*tasks)
        finally:
            await end([*tasks, *self._asking.values()], LEAVE_SECONDS)
            await self._api.close()

    # --- what followers tell -----------------------------------------------------------------------------------

    def services_named(self) -> None:
        self._following.services_named()

    def _ignored(self, what: str) -> None:
        if self._sink is not None:
            self._sink.ignored(what)

    def deliver(self, update: Update) -> None:
        if self._sink is not None:
            self._sink.update(update)

    # --- own pods ----------------------------------------------------------------------------------------------

    def _attached(self, pod: PodKey) -> None:
        """The runtime attached or detached a pod of this node."""
        self.refresh(pod)

    def refresh(self, pod: PodKey) -> None:
        """Tell what a pod of this node is now, if that is news."""
        held = self._own_pods.held.get(pod)
        facts = held.content if held else None
        attachment = self._attachments.of_pod(*pod) if self._attachments is not None else None
        if attachment is not None and (facts is None or _is_another(facts, attachment)):
            self._ask(pod)
        self._tell_endpoint(pod, facts, attachment)

    def _tell_endpoint(self, pod: PodKey, facts: PodFacts | None, attachment: Attachment | None) -> None:
        key = endpoint_key(self._node, *pod)
        endpoint = None
        if facts is not None:
            endpoint = facts.endpoint if self._attachments is None else attached_endpoint(facts, attachment)
            endpoint = endpoint if endpoint is not None and endpoint.addresses else None
        error = facts.error if facts is not None else ""
        news = endpoint if endpoint is not None else error
        if (self._told.get(key) or "") == (news or ""):
            return
        if news:
            self._told[key] = news
        else:
            del self._told[key]
        self.deliver(Update(key, endpoint, error, time.monotonic_ns()))

    async def pod(self, namespace: str, name: str, uid: str) -> PodFacts:
        """A pod of this node, as it is known, or as the server tells of it now.

        Raises:
            ApiError: there is none, or the server does not answer.
        """
        key = namespace, name
        held = self._own_pods.held.get(key)
        if held is not None and not (uid and held.content.uid and held.content.uid != uid):
            return held.content
        raw = msgspec.Raw(await self._api.request("GET", f"/api/v1/namespaces/{namespace}/pods/{name}"))
        facts = decode_pod(raw, self._settings.interface_prefix[0])
        if uid and facts.uid != uid:
            raise ApiError(NOT_FOUND, f"pod {namespace}/{name} is another one by now")
        self._own_pods.tell(key, raw)
        return facts

    def _ask(self, pod: PodKey) -> None:
        """Ask the server for a pod that was attached before the watch brought it."""
        if pod not in self._asking:
            task = self._asking[pod] = asyncio.create_task(self._ask_until_known(pod))
            task.add_done_callback(lambda _: self._asking.pop(pod, None))

    async def _ask_until_known(self, pod: PodKey) -> None:
        namespace, name = pod
        while self._attachments is not None and (attachment := self._attachments.of_pod(*pod)) is not None:
            held = self._own_pods.held.get(pod)
            if held is not None and not _is_another(held.content, attachment):
                return
            try:
                raw = msgspec.Raw(await self._api.request("GET", f"/api/v1/namespaces/{namespace}/pods/{name}"))
                self._own_pods.tell(pod, raw)
            except ApiError as error:
                if error.status in (NOT_FOUND, FORBIDDEN):
                    return  # the watch will bring it, if it is to come
            await asyncio.sleep(random.uniform(0.5, 1.0) * ASK_AGAIN_SECONDS)

    # --- blocks ------------------------------------------------------------------------------------------------

    def ranges_changed(self) -> None:
        """Decide anew whether a node's pod CIDRs are its blocks.

        They mean nothing with Calico's IPAM, whose nodes claim blocks: not where the settings say so, not where there
        are such blocks, and not before it is known that there are none.
        """
        listed = not any(follower.is_awaited for follower in self._blocks)
        claimed = any(follower.count for follower in self._blocks)
        wanted = self._settings.ipam_type is not IPAMType.CALICO and listed and not claimed
        self._node_follower.pod_cidrs_count(wanted)

    # --- state of the stream -----------------------------------------------------------------------------------

    def expect(self, what: str) -> None:
        self._unlisted.add(what)

    def is_awaited(self, what: str) -> bool:
        return what in self._unlisted

    def listed(self, what: str) -> None:
        self._unlisted.discard(what)
        self._failing.pop(what, None)
        self.ranges_changed()
        self._tell()

    def recovered(self, what: str) -> None:
        self._failing.pop(what, None)
        self._tell()

    def failed(self, what: str, error: ApiError) -> None:
        self._failing[what] = error
        self._tell()

    def _tell(self) -> None:
        status = self._judge()
        if status != self._status and self._sink is not None:
            self._status = status
            self._sink.sync_status(status)

    def _judge(self) -> SyncStatus:
        if not self._unlisted:
            reasons = "; ".join(sorted({str(error) for error in self._failing.values()}))
            return SyncStatus(SyncState.IN_SYNC if not reasons else SyncState.CONNECTING, reasons)
        refused = [error for what, error in sorted(self._failing.items()) if error.status]
        if refused:
            hint = "; see the rights in config/kubernetes" if refused[0].status == FORBIDDEN else ""
            return SyncStatus(SyncState.DEGRADED, f"snapshot incomplete: {refused[0]}{hint}")
        if self._failing:
            return SyncStatus(SyncState.CONNECTING, str(next(iter(self._failing.values()))))
        listed = self._collections - len(self._unlisted)
        return SyncStatus(SyncState.RESYNC, "reading the Kubernetes API", listed, self._collections)


class _Follower:
    """What all collections have in common: whether they are complete."""

    def __init__(self, source: KubernetesSource, what: str, *, awaited: bool = True) -> None:
        self._source = source
        self._what = what
        if awaited:
            source.expect(what)

    @property
    def is_awaited(self) -> bool:
        """Whether it is not known yet as a whole."""
        return self._source.is_awaited(self._what)

    def listed(self) -> None:
        self._source.listed(self._what)

    def failed(self, error: ApiError) -> None:
        self._source.failed(self._what, error)

    def recovered(self) -> None:
        self._source.recovered(self._what)


class _OwnPods(_Follower):
    def changed(self, key: ObjectKey, content: PodFacts | None) -> None:
        self._source.refresh(key)


class _Peers(_Follower):
    """Pods of other nodes, of which only those with addresses matter."""

    def __init__(self, source: KubernetesSource, what: str) -> None:
        super().__init__(source, what)
        self._keys: dict[ObjectKey, ResourceKey] = {}

    def changed(self, key: ObjectKey, content: PodFacts | None) -> None:
        now = time.monotonic_ns()
        endpoint = content.endpoint if content and content.endpoint and content.endpoint.addresses else None
        before = self._keys.pop(key, None)
        if before is not None and (endpoint is None or endpoint.key != before):
            self._source.deliver(Update(before, None, received_ns=now))
        if endpoint is not None:
            self._keys[key] = endpoint.key
            self._source.deliver(Update(endpoint.key, endpoint, received_ns=now))


class _Nodes(_Follower):
    """Nodes, and what of their pod CIDRs counts as blocks."""

    def __init__(self, source: KubernetesSource, what: str) -> None:
        super().__init__(source, what)
        self._ranges: dict[str, dict[ResourceKey, IPAMBlock]] = {}
        self._count = False

    def changed(self, key: ObjectKey, content: NodeFacts | None) -> None:
        name = key[1]
        node, error = (content.node, content.error) if content else (None, "")
        self._source.deliver(Update(ResourceKey(Kind.NODE, name), node, error, time.monotonic_ns()))
        before = self._ranges.pop(name, {})
        after = {block.key: block for block in pod_cidr_blocks(content)} if content else {}
        if after:
            self._ranges[name] = after
        if self._count:
            self._tell(before, after)

    def pod_cidrs_count(self, count: bool) -> None:
        """Whether pod CIDRs are where addresses come from. Told of all nodes when the answer becomes another one."""
        if count != self._count:
            self._count = count
            every = {key: block for blocks in self._ranges.values() for key, block in blocks.items()}
            self._tell({} if count else every, every if count else {})

    def _tell(self, before: dict[ResourceKey, IPAMBlock], after: dict[ResourceKey, IPAMBlock]) -> None:
        now = time.monotonic_ns()
        for gone in before.keys() - after.keys():
            self._source.deliver(Update(gone, None, received_ns=now))
        for block in after.values():
            if before.get(block.key) != block:
                self._source.deliver(Update(block.key, block, received_ns=now))


class _Objects(_Follower):
    """Objects that are resources of ours already."""

    def __init__(self, source: KubernetesSource, what: str, *, awaited: bool = True) -> None:
        super().__init__(source, what, awaited=awaited)
        self._keys: dict[ObjectKey, ResourceKey] = {}

    def changed(self, key: ObjectKey, content: Read | None) -> None:
        now = time.monotonic_ns()
        if content is not None and content.names_services:
            self._source.services_named()
        ours = content.key if content else None
        was_any = bool(self._keys)
        before = self._keys.pop(key, None)
        if before is not None and before != ours:
            self._source.deliver(Update(before, None, received_ns=now))
        if content is not None and ours is not None:
            self._keys[key] = ours
            self._source.deliver(Update(ours, content.resource, content.error, now))
        if bool(self._keys) != was_any:
            self._source.ranges_changed()

    @property
    def count(self) -> int:
        return len(self._keys)


def attached_endpoint(pod: PodFacts, attachment: Attachment | None) -> WorkloadEndpoint | None:
    """The endpoint of a pod on this node: the API says who it is, the attachment where its packets are.

    Without an attachment it is one that another CNI plugin attached: Calico's, if it says so in the pod.
    """
    endpoint = pod.endpoint
    if endpoint is None:
        return None
    if attachment is None:
        return endpoint if pod.annotated else None
    if _is_another(pod, attachment):
        return None
    here = replace(endpoint, interface=attachment.interface, addresses=attachment.addresses, mac=attachment.mac)
    return with_floating(here, pod)


def _is_another(pod: PodFacts, attachment: Attachment) -> bool:
    """Whether the attachment is that of another pod of the same name: one of the two is about to change."""
    return bool(attachment.uid and pod.uid and attachment.uid != pod.uid)
