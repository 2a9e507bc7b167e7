"""Objects that are compared and swapped: what blocks and affinities need of the Kubernetes API.

Invariant: an object is written only over the version that was read, and deleted only if it is still that one.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from felixpy.ipam.block import is_deleted
from felixpy.kubernetes.client import CONFLICT, NOT_FOUND, Api, ApiError
from felixpy.kubernetes.kinds import CALICO_STORE, Discovery, KindOfObject

BLOCKS = KindOfObject("ipamblocks", "IPAMBlock")
AFFINITIES = KindOfObject("blockaffinities", "BlockAffinity")
POOLS = KindOfObject("ippools", "IPPool")
HANDLES = KindOfObject("ipamhandles", "IPAMHandle")
RESERVATIONS = KindOfObject("ipreservations", "IPReservation")
CONFIGURATION = KindOfObject("ipamconfigurations", "IPAMConfiguration")
CONFIGURATION_IN_STORE = KindOfObject("ipamconfigs", "IPAMConfig")


class Conflict(Exception):
    """The object is there already, or is another one by now."""


class Unavailable(Exception):
    """The store does not answer. ``unknown``: a write may have been done."""

    def __init__(self, reason: str, *, unknown: bool = False) -> None:
        super().__init__(reason)
        self.unknown = unknown


class Stored(Struct, frozen=True):
    """An object as it was read."""

    metadata: Mapping[str, Any]
    spec: Mapping[str, Any]


class Objects(Protocol):
    """Get, create, replace and delete; each raises ``Unavailable`` if there is no answer."""

    async def get(self, kind: KindOfObject, name: str) -> Stored | None: ...

    async def items(self, kind: KindOfObject) -> list[Stored]: ...

    async def create(self, kind: KindOfObject, name: str, spec: Mapping[str, Any]) -> Stored:
        """Raises: Conflict."""

    async def replace(self, kind: KindOfObject, stored: Stored, spec: Mapping[str, Any]) -> Stored:
        """Raises: Conflict."""

    async def delete(self, kind: KindOfObject, stored: Stored) -> None:
        """Raises: Conflict: it has changed. That it is gone already is success."""


class KubernetesObjects:
    """The API server, in whichever group it has Calico's kinds."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._discovery = Discovery(api)

    async def get(self, kind: KindOfObject, name: str) -> Stored | None:
        group = await self._group(kind)
        if group is None:
            return None
        try:
            return _stored(await self._ask("GET", kind, group, name))
        except ApiError as error:
            if error.status == NOT_FOUND:
                return None
            raise Unavailable(str(error)) from None

    async def items(self, kind: KindOfObject) -> list[Stored]:
        group = await self._group(kind)
        if group is None:
            return []
        try:
            found = msgspec.json.decode(await self._api.request("GET", kind.path(group)))
        except ApiError as error:
            raise Unavailable(str(error)) from None
        return [Stored(one.get("metadata") or {}, one.get("spec") or {}) for one in found.get("items") or []]

    async def create(self, kind: KindOfObject, name: str, spec: Mapping[str, Any]) -> Stored:
        group = await self._writable(kind)
        body = _body(kind, group, {"name": name}, spec)
        return _stored(await self._write("POST", kind, group, "", body))

    async def replace(self, kind: KindOfObject, stored: Stored, spec: Mapping[str, Any]) -> Stored:
        group = await self._writable(kind)
        metadata = {key: value for key, value in stored.metadata.items() if key != "managedFields"}
        body = _body(kind, group, metadata, {**stored.spec, **spec})
        return _stored(await self._write("PUT", kind, group, stored.metadata["name"], body))

    async def delete(self, kind: KindOfObject, stored: Stored) -> None:
        group = await self._writable(kind)
        conditions = {key: stored.metadata[key] for key in ("uid", "resourceVersion") if key in stored.metadata}
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": conditions}
        try:
            await self._write("DELETE", kind, group, stored.metadata["name"], body)
        except _Missing:
            return

    async def _group(self, kind: KindOfObject) -> str | None:
        try:
            return await self._discovery.find(kind)
        except ApiError as error:
            raise Unavailable(str(error)) from None

    async def _writable(self, kind: KindOfObject) -> str:
        group = await self._group(kind)
        if group is None:
            raise Unavailable(f"the API server has no {kind.plural}; install the CRDs, or set IPAMType=PodCIDR")
        return group

    async def _ask(self, method: str, kind: KindOfObject, group: str, name: str, body: Any = None) -> Any:
        path = f"{kind.path(group)}/{name}" if name else kind.path(group)
        return msgspec.json.decode(await self._api.request(method, path, body))

    async def _write(self, method: str, kind: KindOfObject, group: str, name: str, body: Any) -> Any:
        try:
            return await self._ask(method, kind, group, name, body)
        except ApiError as error:
            if error.status == CONFLICT:
                raise Conflict(str(error)) from None
            if error.status == NOT_FOUND:
                raise _Missing(str(error)) from None
            raise Unavailable(str(error), unknown=error.status == 0 or error.status >= 500) from None


class _Missing(Conflict):
    """The object that was to be written is gone."""


def _stored(found: Any) -> Stored:
    return Stored(found.get("metadata") or {}, found.get("spec") or {})


def _body(kind: KindOfObject, group: str, metadata: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    if kind is AFFINITIES:
        deleted = is_deleted(spec)  # text in the one group and a boolean in the other
        spec = {**spec, "deleted": str(deleted).lower() if group == CALICO_STORE else deleted}
        metadata = {**metadata, "labels": {**(metadata.get("labels") or {}), **affinity_labels(spec)}}
    return {"apiVersion": group, "kind": kind.name, "metadata": dict(metadata), "spec": dict(spec)}


def affinity_labels(spec: Mapping[str, Any]) -> dict[str, str]:
    """Labels of a BlockAffinity, by which alone Calico's library finds those of a node that is gone."""
    return {
        "projectcalico.org/hostname-hash": hostname_hash(str(spec["node"])),
        "projectcalico.org/affinity-type": str(spec.get("type") or "host"),
        "projectcalico.org/ip-version": "6" if ":" in str(spec["cidr"]) else "4",
    }


def hostname_hash(node: str) -> str:
    """A node's name as the value of a label, which is shorter than a name may be."""
    return base64.b32encode(hashlib.sha3_256(node.encode()).digest()).decode().rstrip("=")
