"""Nodes as the API has them -> Nodes of ours, and the blocks that their podCIDRs are. Pure.

Calico's annotations come first, the kubelet's InternalIP next. What is no address is passed over, as in Calico
(libcalico-go, ``backend/k8s/resources/node.go``): a bad annotation of one node must not cost that node its labels.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from felixpy.model.invalid import ignore
from felixpy.model.names import cidr_name
from felixpy.model.net import FAMILIES, Family, Net
from felixpy.model.node import convert_node
from felixpy.model.objects import Metadata, NodeBGP, NodeWireguard
from felixpy.model.objects import NodeSpec as CalicoNodeSpec
from felixpy.model.objects import NodeStatus as CalicoNodeStatus
from felixpy.model.resources import IPAMBlock, Kind, Node, ResourceKey

CALICO = "projectcalico.org/"
ADDRESS_ANNOTATION = {Family.V4: f"{CALICO}IPv4Address", Family.V6: f"{CALICO}IPv6Address"}
KEY_ANNOTATION = {Family.V4: f"{CALICO}WireguardPublicKey", Family.V6: f"{CALICO}WireguardPublicKeyV6"}
_ADDRESS_TYPES = ("InternalIP", "ExternalIP")


class _Camel(msgspec.Struct, rename="camel"):
    pass


class NodeMetadata(_Camel):
    name: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class NodeSpec(_Camel):
    pod_cidr: str = msgspec.field(name="podCIDR", default="")
    pod_cidrs: list[str] | None = msgspec.field(name="podCIDRs", default=None)


class NodeAddress(_Camel):
    type: str = ""
    address: str = ""


class NodeCondition(_Camel):
    type: str = ""
    status: str = ""
    reason: str = ""
    message: str = ""
    last_heartbeat_time: str | None = None
    last_transition_time: str | None = None


class NodeStatus(_Camel):
    addresses: list[NodeAddress] | None = None
    conditions: list[NodeCondition] | None = None


class KubernetesNode(_Camel):
    metadata: NodeMetadata
    spec: NodeSpec = msgspec.field(default_factory=NodeSpec)
    status: NodeStatus = msgspec.field(default_factory=NodeStatus)


class NodeFacts(Struct, frozen=True):
    """What is kept of a node. ``error`` says why its object cannot be used at all."""

    name: str
    node: Node | None = None
    pod_cidrs: tuple[Net, ...] = ()
    error: str = ""


_NODE = msgspec.json.Decoder(KubernetesNode)


def decode_node(raw: msgspec.Raw) -> NodeFacts:
    """A node's facts."""
    try:
        node = _NODE.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return NodeFacts("", error=f"not a node: {error}")
    return node_facts(node)


def decode_own_node(body: bytes) -> KubernetesNode:
    """This node's own object.

    Raises:
        msgspec.DecodeError
    """
    return _NODE.decode(body)


def node_facts(node: KubernetesNode) -> NodeFacts:
    name, spec = node.metadata.name, calico_spec(node)
    key, labels = ResourceKey(Kind.NODE, name), dict(node.metadata.labels or {})
    converted = convert_node(key, Metadata(labels=labels), spec, ignore, calico_status(node))
    return NodeFacts(name, converted, tuple(pod_cidrs(node)))


def calico_spec(node: KubernetesNode) -> CalicoNodeSpec:
    """The ``spec`` of the Calico Node that a node is."""
    annotations = node.metadata.annotations or {}
    ipv4, ipv6 = (_address(node, family) for family in FAMILIES)
    return CalicoNodeSpec(
        bgp=NodeBGP(
            ipv4_address=str(ipv4) if ipv4 else None,
            ipv6_address=str(ipv6) if ipv6 else None,
            ipv4_ipip_tunnel_addr=annotations.get(f"{CALICO}IPv4IPIPTunnelAddr"),
        ),
        ipv4_vxlan_tunnel_addr=annotations.get(f"{CALICO}IPv4VXLANTunnelAddr"),
        ipv6_vxlan_tunnel_addr=annotations.get(f"{CALICO}IPv6VXLANTunnelAddr"),
        vxlan_tunnel_mac_addr=annotations.get(f"{CALICO}VXLANTunnelMACAddr"),
        vxlan_tunnel_mac_addr_v6=annotations.get(f"{CALICO}VXLANTunnelMACAddrV6"),
        wireguard=NodeWireguard(
            interface_ipv4_address=annotations.get(f"{CALICO}IPv4WireguardInterfaceAddr"),
            interface_ipv6_address=annotations.get(f"{CALICO}IPv6WireguardInterfaceAddr"),
        ),
    )


def calico_status(node: KubernetesNode) -> CalicoNodeStatus:
    """The ``status`` of the Calico Node that a node is."""
    annotations = node.metadata.annotations or {}
    return CalicoNodeStatus(
        wireguard_public_key=annotations.get(KEY_ANNOTATION[Family.V4]),
        wireguard_public_key_v6=annotations.get(KEY_ANNOTATION[Family.V6]),
    )


def pod_cidrs(node: KubernetesNode) -> list[Net]:
    """The ranges that Kubernetes gave to the node: at most one of each family."""
    found = []
    for text in node.spec.pod_cidrs or ([node.spec.pod_cidr] if node.spec.pod_cidr else []):
        try:
            found.append(Net.parse_masked(text))
        except ValueError:
            continue
    return found


def pod_cidr_blocks(facts: NodeFacts) -> list[IPAMBlock]:
    """The ranges as blocks that belong to the node."""
    return [IPAMBlock(ResourceKey(Kind.IPAM_BLOCK, cidr_name(cidr)), cidr, facts.name) for cidr in facts.pod_cidrs]


def _address(node: KubernetesNode, family: Family) -> Net | None:
    annotated = (node.metadata.annotations or {}).get(ADDRESS_ANNOTATION[family])
    if (net := _parsed(annotated, family)) is not None:
        return net
    for kind in _ADDRESS_TYPES:
        for entry in node.status.addresses or ():
            if entry.type == kind and (net := _parsed(entry.address, family)) is not None:
                return net
    return None


def _parsed(text: str | None, family: Family) -> Net | None:
    if not text:
        return None
    try:
        net = Net.parse_interface(text)
    except ValueError:
        return None
    return net if net.family is family else None
