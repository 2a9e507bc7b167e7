"""What follows from a node's name for the end of its VXLAN tunnel: its MAC and, from that, an IPv6 address. Pure.

Interoperates with Calico's nodes, which derive the MACs in the same way.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

from felixpy.model.net import Family

_LOCALLY_ADMINISTERED = 0x66
_UNIVERSAL_BIT = 0x02


@lru_cache(maxsize=32768)
def vtep_mac(node_name: str, family: Family) -> bytes:
    """The MAC of a node's VXLAN device: ``66:`` and five bytes of the SHA-1 of its name, for IPv6 of ``<name>-v6``."""
    name = node_name if family is Family.V4 else f"{node_name}-v6"
    digest = hashlib.sha1(name.encode(), usedforsecurity=False).digest()
    return bytes([_LOCALLY_ADMINISTERED]) + digest[:5]


def link_local(mac: bytes) -> bytes:
    """The IPv6 link-local address that a kernel gives an interface with this MAC (RFC 4291, appendix A)."""
    identifier = bytes([mac[0] ^ _UNIVERSAL_BIT]) + mac[1:3] + b"\xff\xfe" + mac[3:]
    return b"\xfe\x80" + bytes(6) + identifier


def format_mac(mac: bytes) -> str:
    """``66:2d:bf:44:a6:8b``"""
    return mac.hex(":")
