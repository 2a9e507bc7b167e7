"""CALICO_ROUTER_ID: a BGP router id for a node that has no IPv4 address, the same as Calico's. Pure."""

from __future__ import annotations

import hashlib

from felixpy.model.net import format_address, parse_address

_LARGEST_UNICAST = 223


def router_id(node_name: str) -> str:
    """Four bytes of the SHA-256 of the node's name as an address: ``nodeTest`` → ``109.174.215.226``.

    The first is brought below the multicast addresses.
    """
    digest = hashlib.sha256(node_name.encode()).digest()
    first = digest[0] - 32 if digest[0] > _LARGEST_UNICAST else digest[0]
    return format_address(bytes([first]) + digest[1:4])


def chosen_router_id(setting: str, node_name: str, ipv4: bytes | None) -> str:
    """What CALICO_ROUTER_ID means: ``hash``, an address as it stands, or empty for the node's IPv4 address.

    Raises:
        ValueError: neither.
    """
    if setting == "hash":
        return router_id(node_name)
    if setting:
        packed = parse_address(setting)
        if len(packed) != 4:
            raise ValueError("a router id has the form of an IPv4 address")
        return format_address(packed)
    return format_address(ipv4) if ipv4 else ""
