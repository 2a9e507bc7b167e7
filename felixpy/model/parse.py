"""The one place where untrusted JSON becomes a resource.

Sources and the command line call it. Whatever the input, the outcome is a resource, ``Absent``, None for a kind that
is not ours, or ``InvalidResource``; never another exception, and never a value that breaks a rule of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import msgspec

from felixpy.model import kubernetes_policy, policies
from felixpy.model.bgp import convert_bgp_configuration
from felixpy.model.header import Header
from felixpy.model.invalid import UNREADABLE, Ignored, InvalidResource, ignore
from felixpy.model.ipam import convert_block_affinity, convert_ipam_block
from felixpy.model.keys import NAMESPACED, Kind, ResourceKey
from felixpy.model.names import check_name, check_namespace, cidr_name
from felixpy.model.net import Net, quote
from felixpy.model.node import convert_node
from felixpy.model.objects import (
    METADATA_FIELDS,
    OBJECT_FIELDS,
    BGPConfigurationSpec,
    BlockAffinitySpec,
    IPAMBlockSpec,
    IPPoolSpec,
    Metadata,
    NodeSpec,
    NodeStatus,
    UsualBlock,
    UsualEndpoint,
    UsualNode,
    UsualNodeState,
    WorkloadEndpointSpec,
    read_struct,
    report_unknown,
    report_unknown_fields,
)
from felixpy.model.pool import convert_ip_pool
from felixpy.model.repeated import repeated_key
from felixpy.model.resources import Absent, FelixConfiguration, Node, Resource
from felixpy.model.workload import convert_workload_endpoint, created

__all__ = [
    "MAX_PAYLOAD_BYTES",
    "Ignored",
    "InvalidResource",
    "cidr_name",
    "ignore",
    "nests_deeper",
    "object_key",
    "parse_json",
    "parse_payload",
    "parse_resource",
]

MAX_PAYLOAD_BYTES = 1 << 20
MAX_SETTINGS_DEPTH = 16
"""No setting nests more than three deep. Settings are kept as they are, and comparing or printing them recurses."""

CRD_VERSION = "crd.projectcalico.org/v1"
API_VERSIONS = frozenset({"projectcalico.org/v3", CRD_VERSION})
CRD_METADATA = "projectcalico.org/metadata"
"""Annotation in which Calico keeps the labels of its own objects in the classic form, as JSON."""

DEFAULT_NAMESPACE = "default"

_NOT_CALICO: Mapping[tuple[str, str], Kind] = {
    ("networking.k8s.io/v1", "NetworkPolicy"): Kind.KUBERNETES_NETWORK_POLICY,
    ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"): Kind.CLUSTER_NETWORK_POLICY,
    ("v1", "Namespace"): Kind.NAMESPACE,
    ("v1", "ServiceAccount"): Kind.SERVICE_ACCOUNT,
    ("v1", "Service"): Kind.SERVICE,
    ("discovery.k8s.io/v1", "EndpointSlice"): Kind.ENDPOINT_SLICE,
    ("felixpy/v1", "NodeState"): Kind.NODE_STATE,
}
"""Kinds that are Kubernetes' or our own; all others are Calico's."""

_KINDS: Mapping[tuple[str, str], Kind] = {
    (version, kind.value): kind for version in API_VERSIONS for kind in Kind if kind not in _NOT_CALICO.values()
} | dict(_NOT_CALICO)
_KIND_NAMES = frozenset(name for _, name in _KINDS)
_FREE_FORM = frozenset({Kind.NAMESPACE, Kind.SERVICE_ACCOUNT, Kind.SERVICE, Kind.ENDPOINT_SLICE})
"""Kinds of which we need a few fields of many: the others are not told."""

_IPAM = frozenset({Kind.IPAM_BLOCK, Kind.BLOCK_AFFINITY})


def parse_json(payload: bytes) -> object:
    """Decode JSON of at most ``MAX_PAYLOAD_BYTES``.

    Raises:
        InvalidResource: too large, not JSON, or nested too deeply.
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise InvalidResource(f"{len(payload)} bytes are more than the {MAX_PAYLOAD_BYTES} that an object may have")
    try:
        found = msgspec.json.decode(payload)
    except RecursionError:
        raise InvalidResource("JSON is nested too deeply") from None
    except UNREADABLE as error:
        raise InvalidResource(f"not JSON: {_not_utf8(payload) or error}") from None
    try:
        key = repeated_key(payload)
    except (ValueError, RecursionError):
        raise InvalidResource("JSON is nested too deeply, or holds half of a surrogate pair") from None
    if key is not None:
        raise InvalidResource(f"holds the key {quote(key)} twice in one object; which of them is meant cannot be told")
    return found


def _not_utf8(payload: bytes) -> str:
    """Which byte is not UTF-8; empty if all are."""
    try:
        payload.decode()
    except UnicodeDecodeError as error:
        return f"byte {error.start} is not UTF-8"
    return ""


def nests_deeper(value: object, limit: int) -> bool:
    """Whether more than ``limit`` lists and objects stand in each other."""
    layer = [value]
    for _ in range(limit):
        layer = [
            item
            for each in layer
            if isinstance(each, Mapping | list)
            for item in (each.values() if isinstance(each, Mapping) else each)
        ]
        if not layer:
            return False
    return any(isinstance(each, Mapping | list) for each in layer)


def parse_resource(obj: object, ignored: Ignored = ignore) -> Resource | Absent | None:
    """One v3 object as a resource; None for a kind that is not ours, after telling ``ignored``.

    Raises:
        InvalidResource
    """
    header = _read_header(obj, ignored)
    return None if header is None else _convert(header, ignored)


def parse_payload(payload: bytes, key: ResourceKey, ignored: Ignored = ignore) -> Resource | Absent:
    """A payload that must hold exactly the object that ``key`` names; the result carries ``key``.

    An IPAMBlock or BlockAffinity may be keyed by the name of its CIDR (``cidr_name``) or by its own name.

    Raises:
        InvalidResource
    """
    if key.kind in _USUAL and (usual := _usual(payload, key)):
        return usual
    try:
        obj = parse_json(payload)
        header = _read_header(obj, ignored)
        if header is None or header.key.kind is not key.kind:
            raise InvalidResource(f"the topic is for kind {key.kind}, the object is another kind")
        if header.key != key and key.kind not in _IPAM:
            raise InvalidResource(f"the topic is for {key}, the object is {header.key}", field="metadata.name")
        resource = _convert(header, ignored)
        if header.key == key:
            return resource
        return _under_cidr_name(resource, header, key)
    except InvalidResource as error:
        error.key = key
        raise


def _usual(payload: bytes, key: ResourceKey) -> Resource | None:
    """The object, if there is nothing to tell of it: in half of the time. None: look again, and more closely."""
    if len(payload) > MAX_PAYLOAD_BYTES or b"\\u" in payload:  # which could be half of a surrogate pair
        return None
    decoder, convert = _USUAL[key.kind]
    try:
        found = decoder.decode(payload)
        if repeated_key(payload) is not None:
            return None
        name, namespace = check_name(found.metadata.name, "metadata.name"), found.metadata.namespace
        if key.kind in NAMESPACED:
            namespace = check_namespace(namespace or DEFAULT_NAMESPACE, "metadata.namespace")
        if name != key.name or (namespace or "") != key.namespace:
            return None
        resource = convert(key, found)
    except UNREADABLE:  # InvalidResource too is a ValueError
        return None
    return None if isinstance(resource, Absent) else resource


def _told(what: str) -> NoReturn:
    """There is something to tell of an object."""
    raise InvalidResource(what)


def _usual_endpoint(key: ResourceKey, found: UsualEndpoint) -> Resource:
    return convert_workload_endpoint(key, found.metadata, found.spec)


def _usual_block(key: ResourceKey, found: UsualBlock) -> Resource | Absent:
    return convert_ipam_block(key, found.spec)


def _usual_node(key: ResourceKey, found: UsualNode) -> Resource:
    return convert_node(key, found.metadata, found.spec, _told, found.status)


def _usual_node_state(key: ResourceKey, found: UsualNodeState) -> Resource:
    node = convert_node(key, found.metadata, found.spec, _told, found.status)
    return msgspec.structs.replace(node, since=created(found.metadata))


_USUAL: Mapping[Kind, tuple[msgspec.json.Decoder[Any], Callable[[ResourceKey, Any], Resource | Absent]]] = {
    Kind.WORKLOAD_ENDPOINT: (msgspec.json.Decoder(UsualEndpoint), _usual_endpoint),
    Kind.IPAM_BLOCK: (msgspec.json.Decoder(UsualBlock), _usual_block),
    Kind.NODE: (msgspec.json.Decoder(UsualNode), _usual_node),
    Kind.NODE_STATE: (msgspec.json.Decoder(UsualNodeState), _usual_node_state),
}
"""Kinds of which there are thousands: read at one go where they are as they nearly always are."""


def object_key(obj: object) -> ResourceKey | None:
    """The key of an object of ours, also if the rest of it is invalid; None if that cannot be told."""
    try:
        header = _read_header(obj, ignore)
    except InvalidResource:
        return None
    return header.key if header else None


def _read_header(obj: object, ignored: Ignored) -> Header | None:
    if not isinstance(obj, Mapping):
        raise InvalidResource("is not an object with apiVersion, kind, metadata and spec")
    kind = _known_kind(obj, ignored)
    if kind is None:
        return None
    raw = obj.get("metadata")
    metadata = read_struct(raw, Metadata, "metadata")
    name = check_name(metadata.name, "metadata.name")
    if kind in NAMESPACED:
        namespace = check_namespace(metadata.namespace or DEFAULT_NAMESPACE, "metadata.namespace")
    elif metadata.namespace:
        raise InvalidResource(f"{kind} is cluster-wide; remove the namespace", field="metadata.namespace")
    else:
        namespace = ""
    if kind not in _FREE_FORM:
        report_unknown(obj, OBJECT_FIELDS, kind, "", ignored)
        report_unknown(raw, METADATA_FIELDS, kind, "metadata", ignored)
    if obj.get("apiVersion") == CRD_VERSION:
        _take_kept_labels(metadata, raw)
    return Header(ResourceKey(kind, name, namespace), metadata, obj.get("spec"), obj)


def _take_kept_labels(metadata: Metadata, raw: object) -> None:
    annotations = raw.get("annotations") if isinstance(raw, Mapping) else None
    kept = annotations.get(CRD_METADATA) if isinstance(annotations, Mapping) else None
    if isinstance(kept, str):
        try:
            found = msgspec.json.decode(kept, type=Metadata)
        except UNREADABLE as error:
            raise InvalidResource(
                f"is not JSON of metadata: {error}", field=f"metadata.annotations[{CRD_METADATA}]"
            ) from None
        metadata.labels = {**(metadata.labels or {}), **(found.labels or {})}


def _known_kind(obj: Mapping[object, object], ignored: Ignored) -> Kind | None:
    name, version = obj.get("kind"), obj.get("apiVersion")
    for field, value in (("kind", name), ("apiVersion", version)):
        if not value:
            raise InvalidResource("is missing", field=field)
        if not isinstance(value, str):
            raise InvalidResource("must be text", field=field)
    kind = _KINDS.get((str(version), str(name)))
    if kind is None:  # Kubernetes has a Node of its own
        ignored(f"kind {quote(name)[1:-1]}{f' of {quote(version)[1:-1]}' if name in _KIND_NAMES else ''}")
    return kind


def _convert(header: Header, ignored: Ignored) -> Resource | Absent:
    try:
        return _CONVERT[header.key.kind](header, ignored)
    except InvalidResource as error:
        error.key = header.key
        raise


def _under_cidr_name(resource: Resource | Absent, header: Header, key: ResourceKey) -> Resource | Absent:
    # The converter has proved that the CIDR is there and canonicalisable, also if the object says it is deleted.
    text = header.spec.get("cidr") if isinstance(header.spec, Mapping) else None
    if cidr_name(Net.parse(str(text))) != key.name:
        raise InvalidResource(f"the topic is for {key}, the object is {header.key} of {text}", field="spec.cidr")
    return msgspec.structs.replace(resource, key=key)


def _workload_endpoint(header: Header, ignored: Ignored) -> Resource:
    report_unknown_fields(header.spec, WorkloadEndpointSpec, header.key.kind, "spec", ignored)
    spec = read_struct(header.spec, WorkloadEndpointSpec, "spec")
    return convert_workload_endpoint(header.key, header.metadata, spec)


def _ip_pool(header: Header, ignored: Ignored) -> Resource:
    report_unknown_fields(header.spec, IPPoolSpec, header.key.kind, "spec", ignored)
    pool = convert_ip_pool(header.key, read_struct(header.spec, IPPoolSpec, "spec"))
    return msgspec.structs.replace(pool, disabled=True) if _gives_no_more(header.object) else pool


def _gives_no_more(pool: Mapping[Any, Any]) -> bool:
    """It is being deleted, which lasts until its addresses are free, or Calico's controller took it out of use."""
    metadata, status = pool.get("metadata"), pool.get("status")
    if isinstance(metadata, Mapping) and metadata.get("deletionTimestamp"):
        return True
    conditions = status.get("conditions") if isinstance(status, Mapping) else None
    return isinstance(conditions, list) and any(
        isinstance(one, Mapping) and one.get("type") == "Allocatable" and one.get("status") == "False"
        for one in conditions
    )


def _node(header: Header, ignored: Ignored) -> Resource:
    report_unknown_fields(header.spec, NodeSpec, header.key.kind, "spec", ignored)
    spec = read_struct(header.spec, NodeSpec, "spec")
    return convert_node(header.key, header.metadata, spec, ignored, _node_status(header, ignored))


def _node_status(header: Header, ignored: Ignored) -> NodeStatus:
    """What others wrote of a node besides: if it cannot be read, the node is what its ``spec`` says."""
    status = header.object.get("status")
    report_unknown_fields(status, NodeStatus, header.key.kind, "status", ignored)
    try:
        return read_struct(status, NodeStatus, "status")
    except InvalidResource as error:
        ignored(f"Node {header.key.name}: {error}")
        return NodeStatus()


def _node_state(header: Header, ignored: Ignored) -> Resource:
    """A Node that its own node wrote: the same fields, and since when it says so."""
    node = _node(header, ignored)
    assert isinstance(node, Node)
    return msgspec.structs.replace(node, since=created(header.metadata))


def _ipam_block(header: Header, ignored: Ignored) -> Resource | Absent:
    report_unknown_fields(header.spec, IPAMBlockSpec, header.key.kind, "spec", ignored)
    return convert_ipam_block(header.key, read_struct(header.spec, IPAMBlockSpec, "spec"))


def _block_affinity(header: Header, ignored: Ignored) -> Resource | Absent:
    report_unknown_fields(header.spec, BlockAffinitySpec, header.key.kind, "spec", ignored)
    return convert_block_affinity(header.key, read_struct(header.spec, BlockAffinitySpec, "spec"))


def _felix_configuration(header: Header, ignored: Ignored) -> Resource:
    spec = {} if header.spec is None else header.spec
    if not isinstance(spec, Mapping) or not all(isinstance(name, str) for name in spec):
        raise InvalidResource("must be an object of settings", field="spec")
    if nests_deeper(spec, MAX_SETTINGS_DEPTH):
        raise InvalidResource("is nested too deeply", field="spec")
    return FelixConfiguration(header.key, spec, created(header.metadata))


def _bgp_configuration(header: Header, ignored: Ignored) -> Resource:
    report_unknown_fields(header.spec, BGPConfigurationSpec, header.key.kind, "spec", ignored)
    return convert_bgp_configuration(header.key, read_struct(header.spec, BGPConfigurationSpec, "spec"))


_CONVERT: dict[Kind, Callable[[Header, Ignored], Resource | Absent]] = {
    **policies.CONVERT,
    **kubernetes_policy.CONVERT,
    Kind.WORKLOAD_ENDPOINT: _workload_endpoint,
    Kind.IP_POOL: _ip_pool,
    Kind.NODE: _node,
    Kind.NODE_STATE: _node_state,
    Kind.IPAM_BLOCK: _ipam_block,
    Kind.BLOCK_AFFINITY: _block_affinity,
    Kind.FELIX_CONFIGURATION: _felix_configuration,
    Kind.BGP_CONFIGURATION: _bgp_configuration,
}
