"""Node: which address of each family other nodes route to, and where its tunnels end."""

from __future__ import annotations

import re
from typing import NamedTuple

from msgspec.structs import astuple, replace

from felixpy.model.invalid import Ignored, InvalidResource
from felixpy.model.net import FAMILIES, Family, Net, quote
from felixpy.model.objects import Metadata, NodeBGP, NodeSpec, NodeStatus, NodeWireguard
from felixpy.model.resources import Kind, Node, ResourceKey
from felixpy.model.special import special_range
from felixpy.model.wireguard import parse_key

# Felix looks at the first two; CalicoNodeIP is written beside spec.bgp and is better than no address at all.
_MAC = re.compile(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5}")
_BGP_FIELDS = {family: f"spec.bgp.ipv{family.version}Address" for family in FAMILIES}
_NO_BGP, _NO_WIREGUARD, _NO_STATUS = NodeBGP(), NodeWireguard(), NodeStatus()
_NOTHING = astuple(_NO_BGP)
_ADDRESS_TYPES = ("InternalIP", "ExternalIP", "CalicoNodeIP")


def convert_node(
    key: ResourceKey, metadata: Metadata, spec: NodeSpec, ignored: Ignored, status: NodeStatus | None = None
) -> Node:
    """Check and convert.

    ``spec.bgp`` comes first if it is a CIDR, then ``spec.addresses``; a bare address in ``spec.bgp`` is the last
    resort. An empty ``spec.bgp`` means a node that takes no part in routing: it has labels, but no address.

    A bad address of one family never takes the other's: it is told and left out, as is a bad address of a tunnel.

    Raises:
        InvalidResource: an address cannot be used and there is no other one.
    """
    labels = metadata.labels or {}
    bgp = spec.bgp
    if bgp is not None and astuple(bgp) == _NOTHING:
        return Node(key, labels=labels, routed=False)
    bgp = bgp or _NO_BGP
    texts = {Family.V4: bgp.ipv4_address, Family.V6: bgp.ipv6_address}
    addresses: dict[Family, Net | None] = {}
    wrong: list[InvalidResource] = []
    for family, text in texts.items():
        try:
            addresses[family] = _address(text, family, _BGP_FIELDS[family], spec, ignored)
        except InvalidResource as error:
            wrong.append(error)
    if wrong and not any(addresses.values()):
        raise wrong[0]
    for reason in wrong:
        ignored(f"Node {key.name}: {reason}")
    tunnels = _Tunnels(key.name, ignored)
    wireguard, status = spec.wireguard or _NO_WIREGUARD, status or _NO_STATUS
    return Node(
        key,
        ipv4=addresses.get(Family.V4),
        ipv6=addresses.get(Family.V6),
        labels=labels,
        vxlan_ipv4=tunnels.address(spec.ipv4_vxlan_tunnel_addr, Family.V4, "spec.ipv4VXLANTunnelAddr"),
        vxlan_ipv6=tunnels.address(spec.ipv6_vxlan_tunnel_addr, Family.V6, "spec.ipv6VXLANTunnelAddr"),
        vxlan_mac=tunnels.mac(spec.vxlan_tunnel_mac_addr, "spec.vxlanTunnelMACAddr"),
        vxlan_mac_ipv6=tunnels.mac(spec.vxlan_tunnel_mac_addr_v6, "spec.vxlanTunnelMACAddrV6"),
        ipip_ipv4=tunnels.address(bgp.ipv4_ipip_tunnel_addr, Family.V4, "spec.bgp.ipv4IPIPTunnelAddr"),
        wireguard_ipv4=tunnels.address(
            wireguard.interface_ipv4_address, Family.V4, "spec.wireguard.interfaceIPv4Address"
        ),
        wireguard_ipv6=tunnels.address(
            wireguard.interface_ipv6_address, Family.V6, "spec.wireguard.interfaceIPv6Address"
        ),
        wireguard_public_key=tunnels.key(status.wireguard_public_key, "status.wireguardPublicKey"),
        wireguard_public_key_ipv6=tunnels.key(status.wireguard_public_key_v6, "status.wireguardPublicKeyV6"),
    )


def merged_node(name: str, applied: Node | None, state: Node | None) -> Node | None:
    """A node out of what was applied of it and what it says of itself: the former wins, field by field.

    Labels, and whether it takes part in routing, are said by what was applied alone.
    """
    if applied is None or state is None or not applied.routed:
        known = applied or state
        return known if known is applied else known and replace(known, key=ResourceKey(Kind.NODE, name))
    missing = {name: getattr(state, name) for name, default in _MERGED.items() if getattr(applied, name) == default}
    return replace(applied, **missing)


_APPLIED_ALONE = frozenset({"key", "labels", "routed"})
_MERGED = {
    name: default
    for name, default in zip(Node.__struct_fields__[1:], Node.__struct_defaults__, strict=True)
    if name not in _APPLIED_ALONE
}


class _Tunnels(NamedTuple):
    """Reads fields of a node's tunnels; what cannot be used is told and left out."""

    node: str
    ignored: Ignored

    def address(self, text: str | None, family: Family, field: str) -> bytes | None:
        if not text:
            return None
        try:
            net = _parse(text, family, field)
        except InvalidResource as error:
            self.ignored(f"Node {self.node}: {field}: {error.reason}")
            return None
        if special := special_range(net):
            self.ignored(f"Node {self.node}: {field}: {net} lies in {special}")
            return None
        return net.packed

    def key(self, text: str | None, field: str) -> bytes | None:
        if not text:
            return None
        try:
            return parse_key(text)
        except ValueError as error:
            self.ignored(f"Node {self.node}: {field}: {quote(text)} {error}")
            return None

    def mac(self, text: str | None, field: str) -> bytes | None:
        if not text:
            return None
        if not _MAC.fullmatch(text):
            self.ignored(f"Node {self.node}: {field}: {quote(text)} is not a MAC address")
            return None
        mac = bytes.fromhex(text.replace(":", ""))
        if mac[0] & 1 or not any(mac):
            self.ignored(f"Node {self.node}: {field}: {text} is not the MAC address of one interface")
            return None
        return mac


def _address(text: str | None, family: Family, field: str, spec: NodeSpec, ignored: Ignored) -> Net | None:
    bgp = _parse(text, family, field) if text else None
    if bgp is not None and text and "/" in text:
        return bgp
    if bgp is not None:
        ignored(f"Node field {field} without prefix length")
    return _listed(spec, family) or bgp


def _parse(text: str, family: Family, field: str) -> Net:
    try:
        net = Net.parse_interface(text)
    except ValueError as error:
        raise InvalidResource(str(error), field=field) from None
    if net.family is not family:
        raise InvalidResource(f"{quote(text)} is not an {family} address", field=field)
    return net


def _listed(spec: NodeSpec, family: Family) -> Net | None:
    found: dict[str, Net] = {}
    for entry in spec.addresses or ():
        # Host names are legal entries of this list; as in Felix, what is no address is passed over.
        try:
            net = Net.parse_interface(entry.address or "")
        except ValueError:
            continue
        if net.family is family and entry.type:
            found.setdefault(entry.type, net)
    return next((found[kind] for kind in _ADDRESS_TYPES if kind in found), None)
