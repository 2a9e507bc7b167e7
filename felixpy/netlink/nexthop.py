"""Nexthop objects (``ip nexthop``, Linux 5.3): where the packets of many routes go, in one place.

Numbers are from linux/nexthop.h. pyroute2 is the oracle of these in the tests.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from felixpy.model.net import Family
from felixpy.netlink.columns import by_length, together, tuples
from felixpy.netlink.message import NLM_F_CREATE, NLM_F_REPLACE, Message, Request, attribute, attributes
from felixpy.netlink.rtnetlink import RTNH_F_ONLINK

RTM_NEWNEXTHOP, RTM_DELNEXTHOP, RTM_GETNEXTHOP = 104, 105, 106
NHA_ID, NHA_OIF, NHA_GATEWAY = 1, 5, 6

_NEXTHOP = struct.Struct("=BBBBI")
_U32 = struct.Struct("=I")
_ID_AND_INTERFACE = struct.Struct("=HHIHHI")
_ID = struct.Struct("=HHI")
_NUMBERS = frozenset({NHA_ID, NHA_OIF})


class KernelNexthop(NamedTuple):
    """A nexthop object as the kernel stores it; ``interface`` is an index, ``gateway`` tells the family."""

    id: int
    interface: int
    gateway: bytes
    onlink: bool
    protocol: int


def nexthop_request(nexthop: KernelNexthop, *, delete: bool = False) -> Request:
    """Create or replace a nexthop, atomically for all its routes; or delete it, and with it its routes."""
    if delete:
        return Request(RTM_DELNEXTHOP, 0, _NEXTHOP.pack(0, 0, 0, 0, 0) + _ID.pack(8, NHA_ID, nexthop.id))
    family = Family.V4 if len(nexthop.gateway) == 4 else Family.V6
    header = _NEXTHOP.pack(family, 0, nexthop.protocol, 0, RTNH_F_ONLINK if nexthop.onlink else 0)
    way = _ID_AND_INTERFACE.pack(8, NHA_ID, nexthop.id, 8, NHA_OIF, nexthop.interface)
    payload = header + way + attribute(NHA_GATEWAY, nexthop.gateway)
    return Request(RTM_NEWNEXTHOP, NLM_F_CREATE | NLM_F_REPLACE, payload)


def nexthop_dump_request() -> Request:
    """Dump all nexthop objects; a kernel that has none refuses with EOPNOTSUPP."""
    return Request(RTM_GETNEXTHOP, 0, _NEXTHOP.pack(0, 0, 0, 0, 0))


def decode_nexthops(messages: list[Message]) -> list[KernelNexthop]:
    """Nexthops of a dump, many in one go: there is one for each other node and pool."""
    found: list[KernelNexthop] = []
    for alike in by_length(messages).values():
        taken = together(_NEXTHOP, alike, _NUMBERS) if len(alike) > 1 else None
        if taken is None or not taken.found.keys() >= {NHA_ID, NHA_OIF, NHA_GATEWAY}:
            found += map(decode_nexthop, alike)
            continue
        _, _, protocols, _, flags = taken.header
        onlink = [bool(flag & RTNH_F_ONLINK) for flag in flags]
        ways = (taken.found[kind] for kind in (NHA_ID, NHA_OIF, NHA_GATEWAY))
        found += tuples(KernelNexthop, *ways, onlink, protocols)
    return found


def decode_nexthop(message: Message) -> KernelNexthop:
    """A nexthop; what felixpy never makes (groups, blackholes, without gateway) has no gateway here."""
    _, _, protocol, _, flags = _NEXTHOP.unpack_from(message.payload)
    number, interface, gateway = 0, 0, b""
    for kind, value in attributes(message.payload, _NEXTHOP.size):
        if kind == NHA_ID:
            number = _U32.unpack(value)[0]
        elif kind == NHA_OIF:
            interface = _U32.unpack(value)[0]
        elif kind == NHA_GATEWAY:
            gateway = value
    return KernelNexthop(number, interface, gateway, bool(flags & RTNH_F_ONLINK), protocol)
