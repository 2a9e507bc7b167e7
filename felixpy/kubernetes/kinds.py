"""The collections of the API server that become resources of ours: one line each, and how their objects are read.

Objects of ``projectcalico.org`` and of Kubernetes' policy go through ``felixpy.model.parse`` as they came. A classic
Calico cluster stores its kinds in ``crd.projectcalico.org/v1``; where both groups have a kind, that one is the store
and the other a view of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from felixpy.kubernetes.client import NOT_FOUND, Api, ApiError
from felixpy.model.invalid import Ignored, InvalidResource, ignore
from felixpy.model.parse import object_key, parse_resource
from felixpy.model.resources import Absent, Resource, ResourceKey

CALICO_STORE, CALICO_V3 = "crd.projectcalico.org/v1", "projectcalico.org/v3"
_CALICO = (CALICO_STORE, CALICO_V3)

DISCOVERY_SECONDS = 30.0
"""For so long the answer counts which kinds there are; the kinds that are missing are looked for again after it."""


class KindOfObject(NamedTuple):
    """A collection: the API groups that may have it, the best first, and the name of its kind there.

    ``lazily``: it is not followed before a rule names it.
    """

    plural: str
    name: str
    groups: tuple[str, ...] = _CALICO
    lazily: bool = False

    def path(self, group: str) -> str:
        return f"{group_path(group)}/{self.plural}"

    def __str__(self) -> str:
        return f"{self.plural} of {self.groups[-1]}"


def group_path(group: str) -> str:
    """Where a group is: the first one, ``v1``, has a place of its own."""
    return f"/apis/{group}" if "/" in group else f"/api/{group}"


KINDS = (
    KindOfObject("ippools", "IPPool"),
    KindOfObject("ipamblocks", "IPAMBlock"),
    KindOfObject("blockaffinities", "BlockAffinity"),
    KindOfObject("felixconfigurations", "FelixConfiguration"),
    KindOfObject("bgpconfigurations", "BGPConfiguration"),
    KindOfObject("tiers", "Tier"),
    KindOfObject("networkpolicies", "NetworkPolicy"),
    KindOfObject("globalnetworkpolicies", "GlobalNetworkPolicy"),
    KindOfObject("stagednetworkpolicies", "StagedNetworkPolicy"),
    KindOfObject("stagedglobalnetworkpolicies", "StagedGlobalNetworkPolicy"),
    KindOfObject("stagedkubernetesnetworkpolicies", "StagedKubernetesNetworkPolicy"),
    KindOfObject("networksets", "NetworkSet"),
    KindOfObject("globalnetworksets", "GlobalNetworkSet"),
    KindOfObject("hostendpoints", "HostEndpoint"),
    KindOfObject("namespaces", "Namespace", ("v1",)),
    KindOfObject("serviceaccounts", "ServiceAccount", ("v1",)),
    KindOfObject("networkpolicies", "NetworkPolicy", ("networking.k8s.io/v1",)),
    KindOfObject("clusternetworkpolicies", "ClusterNetworkPolicy", ("policy.networking.k8s.io/v1alpha2",)),
    KindOfObject("services", "Service", ("v1",), lazily=True),
    KindOfObject("endpointslices", "EndpointSlice", ("discovery.k8s.io/v1",), lazily=True),
)


class Read(Struct, frozen=True):
    """An object as it was read: the resource, none if the object says that it is gone, or why it cannot be used.

    ``names_services``: a rule of it may name a Service.
    """

    key: ResourceKey | None
    resource: Resource | None = None
    error: str = ""
    names_services: bool = False


def reader(entry: KindOfObject, group: str, ignored: Ignored = ignore) -> Callable[[msgspec.Raw], Read]:
    """How objects of this kind, in this group, are read."""

    def read(raw: msgspec.Raw) -> Read:
        try:
            obj = msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return Read(None, error=f"{entry.plural}: not an object: {error}")
        names_services = group in _CALICO and b'"services"' in bytes(raw)
        return read_object(as_written(obj, entry, group), ignored, names_services=names_services)

    return read


def as_written(obj: Any, entry: KindOfObject, group: str) -> Any:
    """An object as its author wrote it: a list's items have no kind, Calico's store has zeros for what is not set."""
    if not isinstance(obj, dict):
        return obj
    spec = obj.get("spec")
    if group == CALICO_STORE and isinstance(spec, dict) and spec.get("blockSize") == 0:
        del spec["blockSize"]
    return obj | {"apiVersion": group, "kind": entry.name}


def read_object(obj: object, ignored: Ignored = ignore, *, names_services: bool = False) -> Read:
    """One object through the model's parser."""
    try:
        resource = parse_resource(obj, ignored)
    except InvalidResource as error:
        return Read(error.key or object_key(obj), error=str(error))
    if resource is None:
        return Read(None)
    return Read(resource.key, None if isinstance(resource, Absent) else resource, names_services=names_services)


class Discovery:
    """Which of the groups' kinds the server has. One question at a time, however many ask."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._known: dict[str, frozenset[str]] = {}
        self._asked_at: dict[str, float] = {}
        self._lock = asyncio.Lock()

    async def find(self, entry: KindOfObject) -> str | None:
        """The group that has a kind, None if none has.

        Raises:
            ApiError: it cannot be told.
        """
        for group in entry.groups:
            if entry.plural in await self._plurals(group):
                return group
        return None

    def doubt(self, group: str) -> None:
        """What is known of a group is not so any more."""
        self._asked_at.pop(group, None)

    async def _plurals(self, group: str) -> frozenset[str]:
        async with self._lock:
            if time.monotonic() - self._asked_at.get(group, -DISCOVERY_SECONDS) >= DISCOVERY_SECONDS:
                self._known[group] = await self._ask(group)
                self._asked_at[group] = time.monotonic()
            return self._known[group]

    async def _ask(self, group: str) -> frozenset[str]:
        try:
            answer: Mapping[str, Any] = await self._api.get(group_path(group))
        except ApiError as error:
            if error.status == NOT_FOUND:
                return frozenset()
            raise
        return frozenset(each.get("name", "") for each in answer.get("resources") or ())
