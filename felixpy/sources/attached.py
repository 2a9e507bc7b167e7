"""Pods that the container runtime attached here, of which a broker tells who they are: how a node with a hub has them.

    broker ── endpoint ───────────┐
    runtime ── attachment ────────┼──► an endpoint, once both are known
    API server ── pod, if asked ──┘

As with the Kubernetes API as source, an attachment says where a pod's packets are, the endpoint who it is. A pod that
is attached before the broker tells of it is asked for at the API server: one request for each that the runtime adds,
and no watch. Invariants: what is no pod of this node passes as it is; the stream is not in sync before it is known of
each attached pod who it is. It must never tell an endpoint that nobody attached.
"""

from __future__ import annotations

import asyncio
import random
import time

import msgspec
from msgspec.structs import replace

from felixpy.cni.attachments import LocalAttachments, PodKey
from felixpy.kubernetes.client import NOT_FOUND, Api, ApiError
from felixpy.kubernetes.names import endpoint_key
from felixpy.kubernetes.pods import ORCHESTRATOR, PodFacts, decode_pod
from felixpy.model.policy import ORCHESTRATOR_LABEL
from felixpy.model.resources import ResourceKey, Update, WorkloadEndpoint
from felixpy.sources import Sink, Source, SyncState, SyncStatus
from felixpy.sources.ending import end

LEAVE_SECONDS = 1.0
ASK_AGAIN_SECONDS = 1.0


class AttachedPods:
    """A source whose endpoints of this node's pods are where ``attachments`` say. Runs ``source``."""

    def __init__(self, source: Source, node: str, prefix: str, api: Api, attachments: LocalAttachments) -> None:
        self._source = source
        self._node = node
        self._prefix = prefix
        self._api = api
        self._attachments = attachments
        self._sink: Sink | None = None
        self._told: dict[ResourceKey, WorkloadEndpoint] = {}
        self._heard: dict[ResourceKey, WorkloadEndpoint] = {}
        """As the broker tells of them."""
        self._asked: dict[ResourceKey, WorkloadEndpoint] = {}
        """As the API told of them, until the broker does."""
        self._pods: dict[ResourceKey, PodKey] = {}
        """Those that are attached."""
        self._asking: asyncio.Task[None] | None = None

    async def run(self, sink: Sink) -> None:
        """Deliver for ever."""
        self._sink = sink
        self._attachments.follow(self._refresh)
        try:
            await self._source.run(self)
        finally:
            await end([self._asking] if self._asking else [], LEAVE_SECONDS)
            await self._api.close()

    # --- as a sink ---------------------------------------------------------------------------------------------

    def update(self, update: Update) -> None:
        """Take what the broker tells."""
        assert self._sink is not None
        key, found = update.key, update.resource
        before = self._heard.pop(key, None)
        if self._is_pod(found):
            assert isinstance(found, WorkloadEndpoint)
            self._heard[key] = found
            self._asked.pop(key, None)
        elif found is not None or (before is None and key not in self._asked):
            self._told.pop(key, None)
            self._sink.update(update)
            return
        self._tell(key, update.received_ns, update.published_ns)

    def sync_status(self, status: SyncStatus) -> None:
        """Pass on the state of the stream, once pods are known that the hub has not told of yet."""
        assert self._sink is not None
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None
        unknown = [pod for key, pod in self._pods.items() if key not in self._heard and key not in self._asked]
        if status.state is not SyncState.IN_SYNC or not unknown:
            self._sink.sync_status(status)
            return
        reason = f"asking the API server for {len(unknown)} pods that are attached and that the hub does not tell of"
        self._sink.sync_status(replace(status, state=SyncState.RESYNC, reason=reason))
        self._asking = asyncio.create_task(self._ask(unknown, status))

    async def _ask(self, unknown: list[PodKey], status: SyncStatus) -> None:
        assert self._sink is not None
        for pod in unknown:
            while pod in self._pods.values():
                try:
                    await self.pod(*pod, uid="")
                    break
                except ApiError as error:
                    if error.status == NOT_FOUND:
                        break
                    self._sink.sync_status(replace(status, state=SyncState.RESYNC, reason=str(error)))
                await asyncio.sleep(random.uniform(0.5, 1.0) * ASK_AGAIN_SECONDS)
        self._sink.sync_status(status)

    def ignored(self, what: str) -> None:
        assert self._sink is not None
        self._sink.ignored(what)

    def _is_pod(self, resource: object) -> bool:
        return (
            isinstance(resource, WorkloadEndpoint)
            and resource.node == self._node
            and resource.labels.get(ORCHESTRATOR_LABEL) == ORCHESTRATOR
        )

    # --- pods --------------------------------------------------------------------------------------------------

    async def pod(self, namespace: str, name: str, uid: str) -> PodFacts:
        """A pod of this node, as the API server tells of it now.

        Raises:
            ApiError: there is none, or the server does not answer.
        """
        raw = msgspec.Raw(await self._api.request("GET", f"/api/v1/namespaces/{namespace}/pods/{name}"))
        facts = decode_pod(raw, self._prefix)
        if uid and facts.uid != uid:
            raise ApiError(NOT_FOUND, f"pod {namespace}/{name} is another one by now")
        if facts.error:
            raise ApiError(0, f"pod {namespace}/{name} cannot be used: {facts.error}")
        key = endpoint_key(self._node, namespace, name)
        if facts.endpoint is not None and key not in self._heard:
            self._asked[key] = facts.endpoint
            self._refresh((namespace, name))
        return facts

    def _refresh(self, pod: PodKey) -> None:
        """The runtime attached or detached a pod, or it is known now who it is."""
        key = endpoint_key(self._node, *pod)
        if self._attachments.of_pod(*pod) is not None:
            self._pods[key] = pod
        elif self._pods.pop(key, None) is not None:
            self._asked.pop(key, None)
        self._tell(key, time.monotonic_ns())

    def _tell(self, key: ResourceKey, received_ns: int, published_ns: int = 0) -> None:
        endpoint = self._attached(key)
        if endpoint == self._told.get(key) or self._sink is None:
            return
        if endpoint is not None:
            self._told[key] = endpoint
        else:
            del self._told[key]
        self._sink.update(Update(key, endpoint, "", received_ns, published_ns))

    def _attached(self, key: ResourceKey) -> WorkloadEndpoint | None:
        endpoint, pod = self._heard.get(key) or self._asked.get(key), self._pods.get(key)
        attachment = self._attachments.of_pod(*pod) if pod is not None else None
        if endpoint is None or attachment is None or not attachment.addresses:
            return None
        return replace(endpoint, interface=attachment.interface, addresses=attachment.addresses, mac=attachment.mac)
