"""Node: which address of each family other nodes route to."""

from __future__ import annotations

from felixpy.model.invalid import Ignored, InvalidResource
from felixpy.model.net import Family, Net, quote
from felixpy.model.objects import Metadata, NodeBGP, NodeSpec
from felixpy.model.resources import Node, ResourceKey

# Felix looks at the first two; CalicoNodeIP is written beside spec.bgp and is better than no address at all.
_ADDRESS_TYPES = ("InternalIP", "ExternalIP", "CalicoNodeIP")


def convert_node(key: ResourceKey, metadata: Metadata, spec: NodeSpec, ignored: Ignored) -> Node:
    """Check and convert.

    ``spec.bgp`` comes first if it is a CIDR, then ``spec.addresses``; a bare address in ``spec.bgp`` is the last
    resort. An empty ``spec.bgp`` means a node that takes no part in routing: it has labels, but no address.

    Raises:
        InvalidResource
    """
    labels = metadata.labels or {}
    bgp = spec.bgp
    if bgp is not None and bgp == NodeBGP():
        return Node(key, labels=labels)
    bgp = bgp or NodeBGP()
    return Node(
        key,
        ipv4=_address(bgp.ipv4_address, Family.V4, "spec.bgp.ipv4Address", spec, ignored),
        ipv6=_address(bgp.ipv6_address, Family.V6, "spec.bgp.ipv6Address", spec, ignored),
        labels=labels,
    )


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
