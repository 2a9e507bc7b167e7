"""How packets for another node get there: natively, or in VXLAN or IPIP. Pure.

One decision for (encapsulation of the pool, own address, address of the other node), the same for every block, so that
a change of any of them changes one nexthop. Invariant: a pool that always encapsulates never gives a native way, and no
way is guessed: without an address there is none.
"""

from __future__ import annotations

from enum import StrEnum

from felixpy.model.net import Net
from felixpy.model.resources import Encapsulation


class Way(StrEnum):
    """How packets travel between two nodes."""

    NATIVE = "native"
    VXLAN = "VXLAN"
    IPIP = "IPIP"


TUNNELS = {
    Encapsulation.IPIP: Way.IPIP,
    Encapsulation.IPIP_CROSS_SUBNET: Way.IPIP,
    Encapsulation.VXLAN: Way.VXLAN,
    Encapsulation.VXLAN_CROSS_SUBNET: Way.VXLAN,
}
"""The tunnel that a pool uses at all; one without encapsulation is not here."""

CROSS_SUBNET = frozenset({Encapsulation.IPIP_CROSS_SUBNET, Encapsulation.VXLAN_CROSS_SUBNET})


def way_to(encapsulation: Encapsulation, own: Net | None, peer: Net) -> Way:
    """How packets of a pool get to another node.

    ``own`` and ``peer`` are the nodes' addresses of one family, with the prefix lengths of their subnets. Native within
    CrossSubnet means that the other's address lies in *our* subnet; both sides have to come to the same, or strict
    reverse path filters drop what arrives.
    """
    tunnel = TUNNELS.get(encapsulation)
    if tunnel is None:
        return Way.NATIVE
    if encapsulation in CROSS_SUBNET and own is not None and own.covers(peer.packed):
        return Way.NATIVE
    return tunnel


def subnet_warning(node_name: str, own: Net | None) -> str:
    """What is odd about the address that a node publishes, where pools depend on its subnet; empty if nothing is."""
    if own is None or not own.is_host:
        return ""
    return f"{node_name} publishes {own}: every node counts as another subnet"
