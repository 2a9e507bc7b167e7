"""v3 objects as they come off the wire: which fields exist and of which type, and nothing else.

The structs are the schema that ``msgspec`` checks untyped objects against; every field may be absent or null, as in
Kubernetes. Meaning, defaults and rules between fields are the business of the modules that convert them. A field that
the agent does not act upon is listed (``Any``) so that it is not reported as unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal, TypeVar, get_args

import msgspec

from felixpy.model.invalid import NOT_KNOWN, UNREADABLE, Ignored, InvalidResource
from felixpy.model.net import quote


class Object(msgspec.Struct, rename="camel"):
    """Fields that are ``camelCase`` on the wire."""


class Metadata(Object):
    name: str | None = None
    namespace: str | None = None
    labels: dict[str, str] | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: Any = None


class KnownMetadata(Metadata, forbid_unknown_fields=True):
    """All of Kubernetes' ObjectMeta."""

    annotations: Any = None
    deletion_grace_period_seconds: Any = None
    finalizers: Any = None
    generate_name: Any = None
    generation: Any = None
    managed_fields: Any = None
    owner_references: Any = None
    resource_version: Any = None
    self_link: Any = None
    uid: Any = None


class NodeAddress(Object):
    address: str | None = None
    type: str | None = None


class NodeBGP(Object):
    ipv4_address: str | None = None
    ipv6_address: str | None = None
    as_number: Any = None
    ipv4_ipip_tunnel_addr: str | None = msgspec.field(name="ipv4IPIPTunnelAddr", default=None)
    route_reflector_cluster_id: Any = msgspec.field(name="routeReflectorClusterID", default=None)


class NodeWireguard(Object):
    interface_ipv4_address: str | None = msgspec.field(name="interfaceIPv4Address", default=None)
    interface_ipv6_address: str | None = msgspec.field(name="interfaceIPv6Address", default=None)


class NodeStatus(Object):
    wireguard_public_key: str | None = None
    wireguard_public_key_v6: str | None = msgspec.field(name="wireguardPublicKeyV6", default=None)
    pod_cidrs: Any = msgspec.field(name="podCIDRs", default=None)
    mtu: Any = None


class NodeSpec(Object):
    bgp: NodeBGP | None = None
    addresses: list[NodeAddress] | None = None
    orch_refs: Any = None
    wireguard: NodeWireguard | None = None
    ipv4_vxlan_tunnel_addr: str | None = msgspec.field(name="ipv4VXLANTunnelAddr", default=None)
    ipv6_vxlan_tunnel_addr: str | None = msgspec.field(name="ipv6VXLANTunnelAddr", default=None)
    vxlan_tunnel_mac_addr: str | None = msgspec.field(name="vxlanTunnelMACAddr", default=None)
    vxlan_tunnel_mac_addr_v6: str | None = msgspec.field(name="vxlanTunnelMACAddrV6", default=None)


class _KnownNodeAddress(NodeAddress, forbid_unknown_fields=True):
    pass


class _KnownNodeBGP(NodeBGP, forbid_unknown_fields=True):
    pass


class _KnownNodeWireguard(NodeWireguard, forbid_unknown_fields=True):
    pass


class _KnownNodeStatus(NodeStatus, forbid_unknown_fields=True):
    pass


class _KnownNodeSpec(NodeSpec, forbid_unknown_fields=True):
    bgp: _KnownNodeBGP | None = None
    addresses: list[_KnownNodeAddress] | None = None  # type: ignore[assignment]
    wireguard: _KnownNodeWireguard | None = None


class UsualNode(Object, forbid_unknown_fields=True):
    """A whole Node of which nothing has to be told: no field is unknown or of a wrong type."""

    api_version: Literal["projectcalico.org/v3"]
    kind: Literal["Node"]
    metadata: KnownMetadata
    spec: _KnownNodeSpec
    status: _KnownNodeStatus | None = None


class UsualNodeState(Object, forbid_unknown_fields=True):
    """What a node says of itself, likewise."""

    api_version: Literal["felixpy/v1"]
    kind: Literal["NodeState"]
    metadata: KnownMetadata
    spec: _KnownNodeSpec
    status: _KnownNodeStatus | None = None


class IPPoolSpec(Object):
    cidr: str | None = None
    block_size: int | None = None
    nat_outgoing: bool | None = None
    disabled: bool | None = None
    ipip_mode: str | None = None
    vxlan_mode: str | None = None
    node_selector: str | None = None
    namespace_selector: str | None = None
    allowed_uses: list[str] | None = None
    disable_bgp_export: bool | None = msgspec.field(name="disableBGPExport", default=None)
    assignment_mode: str | None = None


class ServiceRange(Object):
    cidr: str | None = None


class BGPConfigurationSpec(Object):
    service_cluster_ips: list[ServiceRange] | None = msgspec.field(name="serviceClusterIPs", default=None)
    service_external_ips: list[ServiceRange] | None = msgspec.field(name="serviceExternalIPs", default=None)
    service_load_balancer_ips: list[ServiceRange] | None = msgspec.field(name="serviceLoadBalancerIPs", default=None)
    as_number: Any = None
    bind_mode: Any = None
    communities: Any = None
    ignored_interfaces: Any = None
    listen_port: Any = None
    local_workload_peering_ipv4: Any = msgspec.field(name="localWorkloadPeeringIPV4", default=None)
    local_workload_peering_ipv6: Any = msgspec.field(name="localWorkloadPeeringIPV6", default=None)
    log_severity_screen: Any = None
    node_mesh_max_restart_time: Any = None
    node_mesh_password: Any = None
    node_to_node_mesh_enabled: Any = None
    prefix_advertisements: Any = None
    program_cluster_routes: Any = None
    service_load_balancer_aggregation: Any = None


class EndpointPortObject(Object):
    name: str | None = None
    protocol: int | str | None = None
    port: int | None = None
    host_port: Any = None
    host_ip: Any = msgspec.field(name="hostIP", default=None)


class IPNATObject(Object):
    internal_ip: str | None = msgspec.field(name="internalIP", default=None)
    external_ip: str | None = msgspec.field(name="externalIP", default=None)


class WorkloadEndpointSpec(Object):
    node: str | None = None
    interface_name: str | None = None
    ip_networks: list[str] | None = None
    ipv4_gateway: str | None = None
    ipv6_gateway: str | None = None
    mac: str | None = None
    allow_spoofed_source_prefixes: list[str] | None = None
    orchestrator: str | None = None
    workload: Any = None
    pod: Any = None
    endpoint: Any = None
    container_id: Any = msgspec.field(name="containerID", default=None)
    ip_nats: list[IPNATObject] | None = msgspec.field(name="ipNATs", default=None)
    profiles: list[str] | None = None
    ports: list[EndpointPortObject] | None = None
    service_account_name: str | None = None
    qos_controls: Any = None


class _KnownEndpointSpec(WorkloadEndpointSpec, forbid_unknown_fields=True):
    pass


class UsualEndpoint(Object, forbid_unknown_fields=True):
    """A whole WorkloadEndpoint, likewise."""

    api_version: Literal["projectcalico.org/v3"]
    kind: Literal["WorkloadEndpoint"]
    metadata: KnownMetadata
    spec: _KnownEndpointSpec
    status: Any = None


class BlockAttribute(Object):
    handle_id: Any = msgspec.field(name="handle_id", default=None)
    secondary: dict[str, str] | None = None
    alternate: Any = None


class IPAMBlockSpec(Object):
    cidr: str | None = None
    affinity: str | None = None
    allocations: list[int | None] | None = None
    attributes: list[BlockAttribute] | None = None
    deleted: bool | str | None = None
    affinity_claim_time: Any = None
    strict_affinity: Any = None
    unallocated: Any = None
    sequence_number: Any = None
    sequence_number_for_allocation: Any = None


class _KnownBlockAttribute(BlockAttribute, forbid_unknown_fields=True):
    pass


class _KnownBlockSpec(IPAMBlockSpec, forbid_unknown_fields=True):
    attributes: list[_KnownBlockAttribute] | None = None  # type: ignore[assignment]


class UsualBlock(Object, forbid_unknown_fields=True):
    """A whole IPAMBlock, likewise."""

    api_version: Literal["projectcalico.org/v3"]
    kind: Literal["IPAMBlock"]
    metadata: KnownMetadata
    spec: _KnownBlockSpec
    status: Any = None


class BlockAffinitySpec(Object):
    cidr: str | None = None
    node: str | None = None
    state: str | None = None
    type: str | None = None
    deleted: bool | str | None = None


class InstallationPool(Object):
    cidr: str | None = None
    name: str | None = None
    block_size: int | None = None
    encapsulation: str | None = None
    nat_outgoing: str | None = None
    node_selector: str | None = None
    namespace_selector: str | None = None
    allowed_uses: list[str] | None = None
    disable_bgp_export: bool | None = msgspec.field(name="disableBGPExport", default=None)
    disable_new_allocations: bool | None = None
    assignment_mode: str | None = None


OBJECT_FIELDS = frozenset({"apiVersion", "kind", "metadata", "spec", "status"})

# The words of msgspec's messages: "Expected `str | null`, got `int` - at `$.spec.cidr`".
_MESSAGE = re.compile(r"Expected `(?P<want>[^`]*)`, got `(?P<got>[^`]*)`")
_UNKNOWN = re.compile(r"unknown field `(?P<name>[^`]*)`")
_PLACE = re.compile(r"- at (?P<key>`key` in )?`\$?\.?(?P<path>[^`]*)`")
_WORDS = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "nothing",
}

T = TypeVar("T", bound=msgspec.Struct)


def read_struct(value: object, struct: type[T], path: str) -> T:
    """``value`` as ``struct``, null as an empty one.

    Raises:
        InvalidResource: a field has the wrong type; ``field`` is its path below ``path``.
    """
    if value is None:
        return struct()
    try:
        return msgspec.convert(value, struct)
    except UnicodeEncodeError:
        raise InvalidResource("holds half of a surrogate pair, which is not text", field=path) from None
    except UNREADABLE as error:
        raise _wrong_type(str(error), path) from None


def _wrong_type(message: str, path: str) -> InvalidResource:
    place = _PLACE.search(message)
    inner = place["path"] if place else ""
    field = f"{path}{'' if inner.startswith('[') or not inner else '.'}{inner}".replace("[...]", "").lstrip(".")
    types = _MESSAGE.search(message)
    if place and place["key"]:
        return InvalidResource("every key must be text", field=field)
    if unknown := _UNKNOWN.search(message):
        return InvalidResource(NOT_KNOWN, field=f"{field}.{quote(unknown['name'])[1:-1]}")
    if not types:
        return InvalidResource(message.partition(" - at ")[0].lower(), field=field)
    wanted = [_WORDS.get(word, word) for word in types["want"].split(" | ") if word != "null"]
    got = "a quoted text" if types["got"] == "str" else _WORDS.get(types["got"], types["got"])
    return InvalidResource(f"must be {' or '.join(wanted)}, not {got}", field=field)


def known_fields(struct: type[msgspec.Struct]) -> frozenset[str]:
    """The names that ``struct`` has on the wire."""
    return frozenset(struct.__struct_encode_fields__)


METADATA_FIELDS = known_fields(KnownMetadata)


def report_unknown_fields(value: object, struct: type[msgspec.Struct], kind: str, path: str, ignored: Ignored) -> None:
    """Tell ``ignored`` of the fields of ``value`` that ``struct`` does not have, down to the structs in it."""
    report_unknown(value, known_fields(struct), kind, path, ignored)
    if not isinstance(value, Mapping):
        return
    for name, inner in _inner_structs(struct):
        found = value.get(name)
        for place, one in enumerate(found) if isinstance(found, list) else [(None, found)]:
            index = "" if place is None else f"[{place}]"
            report_unknown_fields(one, inner, kind, f"{path}.{name}{index}", ignored)


@cache
def _inner_structs(struct: type[msgspec.Struct]) -> tuple[tuple[str, type[msgspec.Struct]], ...]:
    """Fields that are structs or lists of structs, by their names on the wire."""
    return tuple(
        (field.encode_name, inner) for field in msgspec.structs.fields(struct) for inner in _structs_of(field.type)
    )


def _structs_of(kind: Any) -> Iterator[type[msgspec.Struct]]:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
    for argument in get_args(kind):
        yield from _structs_of(argument)


def report_unknown(value: object, known: frozenset[str], kind: str, path: str, ignored: Ignored) -> None:
    """Tell ``ignored`` of the fields of ``value`` that are not ``known``."""
    if isinstance(value, Mapping) and not value.keys() <= known:
        for name in sorted(str(name) for name in value.keys() - known):
            field = f"{path}.{name}" if path else name
            # Names come from outside: escaped and cut, as they end up in logs.
            ignored(f"{kind} field {quote(field)[1:-1]}")
