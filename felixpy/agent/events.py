"""Events on objects of the cluster that cannot be enforced as they are written, for who looks with kubectl.

    a problem stands ──► Warning NotEnforced on its object ──► once in the whole cluster, whatever the number of nodes

An Event's name follows from object and reason, so the second node that has the same to say is told that it exists, and
is content. Invariant: one Event in ``SPACING_SECONDS`` at most, and each is told again only when the API server has
forgotten it. It must never stop the agent: an API server that is away or refuses is one line in the log.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from felixpy.kubernetes.client import CONFLICT, NOT_FOUND, Api, ApiError
from felixpy.kubernetes.kinds import KINDS, Discovery, KindOfObject, group_path
from felixpy.model.resources import POLICY_KINDS, Kind, ResourceKey
from felixpy.standing import Standing

LOOK_SECONDS = 10.0
"""Between two looks, with jitter: what all nodes notice at once they do not tell at once."""
SPACING_SECONDS = 1.0
FORGOTTEN_SECONDS = 3600.0
"""So long an API server keeps an Event (``--event-ttl``)."""

REASON = "NotEnforced"
MAX_MESSAGE, MAX_NAME = 1024, 200
CLUSTER_NAMESPACE = "default"
"""Where Events on objects without a namespace are."""
NOT_TOLD = "Events cannot be written"

_CALICO = {entry.name: entry for entry in KINDS if len(entry.groups) > 1}
_OF_KUBERNETES = {entry.name: entry for entry in KINDS if len(entry.groups) == 1 and not entry.lazily}
_TOLD_OF: Mapping[Kind, KindOfObject] = MappingProxyType(
    {
        **{kind: _CALICO[kind.value] for kind in (*POLICY_KINDS, Kind.IP_POOL) if kind.value in _CALICO},
        Kind.KUBERNETES_NETWORK_POLICY: _OF_KUBERNETES["NetworkPolicy"],
        Kind.CLUSTER_NETWORK_POLICY: _OF_KUBERNETES["ClusterNetworkPolicy"],
    }
)
"""Kinds on which there are Events: those that people write, and no endpoints (their status is their own)."""


class Events:
    """``problems``: all that stand now, by object."""

    def __init__(self, api: Api, problems: Callable[[], Iterable[tuple[ResourceKey, str]]]) -> None:
        self._api = api
        self._discovery = Discovery(api)
        self._problems = problems
        self._told: dict[tuple[ResourceKey, str], float] = {}
        self._standing = Standing(level="warning")

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS * random.uniform(0.5, 1.5))
            await self.tell()

    async def tell(self) -> None:
        """Tell what stands and was not told, or so long ago that it is forgotten."""
        standing = [one for one in self._problems() if one[0].kind in _TOLD_OF]
        self._told = {one: at for one, at in self._told.items() if one in set(standing)}
        for one in standing:
            if time.monotonic() - self._told.get(one, -FORGOTTEN_SECONDS) < FORGOTTEN_SECONDS:
                continue
            try:
                await self._write(*one)
            except ApiError as error:
                self._standing.fails(NOT_TOLD, str(error))
                return
            self._standing.works(NOT_TOLD)
            self._told[one] = time.monotonic()
            await asyncio.sleep(SPACING_SECONDS)

    async def _write(self, key: ResourceKey, reason: str) -> None:
        entry = _TOLD_OF[key.kind]
        group = await self._discovery.find(entry) or entry.groups[-1]
        found = await self._object(entry, group, key)
        if found is None:
            return  # it is gone, and with it the problem
        namespace = key.namespace or CLUSTER_NAMESPACE
        uid = str(found.get("uid", ""))
        digest = hashlib.sha256("\0".join((*key, uid, reason)).encode()).hexdigest()[:16]
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{key.name[:MAX_NAME]}.{digest}", "namespace": namespace},
            "involvedObject": {
                "apiVersion": group,
                "kind": entry.name,
                "name": key.name,
                "namespace": key.namespace,
                "uid": uid,
                "resourceVersion": str(found.get("resourceVersion", "")),
            },
            "type": "Warning",
            "reason": REASON,
            "message": reason if len(reason) <= MAX_MESSAGE else f"{reason[: MAX_MESSAGE - 1]}…",
            "source": {"component": "felixpy"},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            await self._api.request("POST", f"{group_path('v1')}/namespaces/{namespace}/events", body)
        except ApiError as error:
            if error.status not in (CONFLICT, NOT_FOUND):  # another node told it; its namespace is gone
                raise

    async def _object(self, entry: KindOfObject, group: str, key: ResourceKey) -> Mapping[str, Any] | None:
        """The object's metadata: an Event without its uid is not shown by ``kubectl describe``."""
        place = f"/namespaces/{key.namespace}" if key.namespace else ""
        path = f"{group_path(group)}{place}/{entry.plural}"
        answer = await self._api.get(path, fieldSelector=f"metadata.name={key.name}")
        items = answer.get("items") or [] if isinstance(answer, dict) else []
        return items[0].get("metadata", {}) if items else None
