"""What of a valid object no agent acts upon, for whoever publishes it. Pure.

One entry per kind. Who makes felixpy act upon something takes its line out of here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from felixpy.model.policy import Policy
from felixpy.model.resources import Absent, Kind, Resource, WorkloadEndpoint

Object = Mapping[str, Any]


def unenforced(resource: Resource | Absent, obj: Object) -> list[str]:
    """One sentence for each thing that will have no effect; ``obj`` is the object as written."""
    told = _TOLD.get(resource.key.kind)
    if told is None or isinstance(resource, Absent):
        return []
    return [f"{resource.key}: {text}" for text in told(resource, obj)]


def _endpoint(resource: Resource, obj: Object) -> Iterator[str]:
    spec = obj.get("spec")
    if isinstance(resource, WorkloadEndpoint):
        yield from resource.problems
    if isinstance(spec, Mapping):
        yield from (f"spec.{field} {text}" for field, text in _ENDPOINT_FIELDS.items() if spec.get(field))


def _policy(resource: Resource, obj: Object) -> Iterator[str]:
    if isinstance(resource, Policy):
        yield from resource.problems


_ENDPOINT_FIELDS: Final = {
    "qosControls": "has no effect: felixpy limits neither bandwidth nor connections",
}
_POLICIES: Final = (
    Kind.TIER,
    Kind.NETWORK_POLICY,
    Kind.GLOBAL_NETWORK_POLICY,
    Kind.KUBERNETES_NETWORK_POLICY,
    Kind.CLUSTER_NETWORK_POLICY,
    Kind.HOST_ENDPOINT,
)
_TOLD: Final[Mapping[Kind, Callable[[Resource, Object], Iterator[str]]]] = {
    Kind.WORKLOAD_ENDPOINT: _endpoint,
    **dict.fromkeys(_POLICIES, _policy),
}
