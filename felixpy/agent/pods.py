"""What pods ask of the network, as the Kubernetes API tells: their own annotations and those of their namespace.

A pod of this node is known by the watch, mostly before the runtime asks for it; a namespace is asked for when it is
needed, once a minute at most. Invariant: what cannot be known now is no wish for nothing: the runtime tries again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import msgspec

from felixpy.cni.wishes import PodWishes, wishes_of
from felixpy.kubernetes.client import NOT_FOUND, Api, ApiError
from felixpy.kubernetes.pods import PodFacts, asked

NAMESPACE_SECONDS = 60.0
MOST_NAMESPACES = 1000


class _Metadata(msgspec.Struct):
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class _Object(msgspec.Struct):
    metadata: _Metadata


class _Namespace(NamedTuple):
    until: float
    annotations: Mapping[str, str]
    labels: Mapping[str, str]


class PodSource(Protocol):
    """A source that knows this node's pods."""

    async def pod(self, namespace: str, name: str, uid: str) -> PodFacts:
        """Raises ApiError: there is none, or it cannot be told now."""


class ApiPods:
    """``Pods`` of the CNI server."""

    def __init__(self, source: PodSource, api: Api, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._api = api
        self._clock = clock
        self._namespaces: dict[str, _Namespace] = {}

    async def wishes(self, namespace: str, pod: str, uid: str) -> PodWishes:
        try:
            facts = await self._source.pod(namespace, pod, uid)
            around = await self._namespace(namespace)
        except ApiError as error:
            return PodWishes(refused=f"the API does not tell of it: {error}", later=True)
        return wishes_of(dict(facts.asks), around.annotations, around.labels)

    async def _namespace(self, name: str) -> _Namespace:
        held = self._namespaces.get(name)
        if held is not None and self._clock() < held.until:
            return held
        try:
            body = await self._api.request("GET", f"/api/v1/namespaces/{name}")
            metadata = msgspec.json.decode(body, type=_Object).metadata
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ApiError(0, f"namespace {name} cannot be read: {error}") from None
        except ApiError as error:
            if error.status == NOT_FOUND or held is None:
                raise
            return held  # what is a minute old is better than no pod at all
        if len(self._namespaces) >= MOST_NAMESPACES:
            self._namespaces.clear()
        found = _Namespace(
            self._clock() + NAMESPACE_SECONDS, dict(asked(metadata.annotations or {})), metadata.labels or {}
        )
        self._namespaces[name] = found
        return found
