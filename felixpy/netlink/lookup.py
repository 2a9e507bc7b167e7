"""Asks the kernel's routing what it would do with one packet (rtnetlink(7), ``RTM_GETROUTE`` for one address).

The answer obeys rules, tables, marks and, for IPv4 input, the reverse path filter. Changes nothing.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from felixpy.model.net import Family
from felixpy.netlink.message import Request, attribute, attributes
from felixpy.netlink.rtnetlink import (
    RTA_DST,
    RTA_GATEWAY,
    RTA_OIF,
    RTA_PREFSRC,
    RTM_F_FIB_MATCH,
    RTM_GETROUTE,
    decode_ways,
    route_protocol,
)
from felixpy.netlink.transport import NETLINK_ROUTE, NetlinkSocket

RTA_SRC, RTA_IIF, RTA_MARK = 2, 3, 16
RTA_VIA = 18
_ROUTE = struct.Struct("=BBBBBBBBI")
_U32 = struct.Struct("=I")


class Found(NamedTuple):
    """A route as the kernel would use it; ``kind`` is ``rtm_type``: 1 unicast, 2 local, 3 broadcast, 5 multicast."""

    kind: int
    interface: int
    gateway: bytes = b""
    source: bytes = b""


def look_up(
    socket: NetlinkSocket,
    destination: bytes,
    *,
    source: bytes = b"",
    input_interface: int = 0,
    output_interface: int = 0,
    mark: int = 0,
) -> Found:
    """The route of a packet; interfaces are indexes, 0 for none.

    Raises:
        NetlinkError: there is none: ENETUNREACH, EHOSTUNREACH, EINVAL (blackhole), EACCES (prohibit), EXDEV (the
            reverse path filter).
    """
    family, bits = (Family.V4, 32) if len(destination) == 4 else (Family.V6, 128)
    parts = [
        _ROUTE.pack(family, bits, bits if source else 0, 0, 0, 0, 0, 0, 0),
        attribute(RTA_DST, destination),
    ]
    if source:
        parts.append(attribute(RTA_SRC, source))
    for kind, number in ((RTA_IIF, input_interface), (RTA_OIF, output_interface), (RTA_MARK, mark)):
        if number:
            parts.append(attribute(kind, _U32.pack(number)))
    message = socket.ask(Request(RTM_GETROUTE, 0, b"".join(parts)))
    kind = _ROUTE.unpack_from(message.payload)[7]
    found = dict(attributes(message.payload, _ROUTE.size))
    gateway = found.get(RTA_GATEWAY) or found.get(RTA_VIA, b"")[2:]
    interface = _U32.unpack(found[RTA_OIF])[0] if RTA_OIF in found else 0
    return Found(kind, interface, gateway, found.get(RTA_PREFSRC, b""))


class Leads(NamedTuple):
    """The route of the tables that leads to an address: who made it, and its first way."""

    kind: int
    protocol: int
    gateway: bytes
    interface: int


def leading_route(socket: NetlinkSocket, destination: bytes) -> Leads:
    """The very route that leads to an address (``RTM_F_FIB_MATCH``, Linux 4.13), not what it means for a packet.

    Raises:
        NetlinkError: there is none, or it leads nowhere.
    """
    family, bits = (Family.V4, 32) if len(destination) == 4 else (Family.V6, 128)
    header = _ROUTE.pack(family, bits, 0, 0, 0, 0, 0, 0, RTM_F_FIB_MATCH)
    message = socket.ask(Request(RTM_GETROUTE, 0, header + attribute(RTA_DST, destination)))
    return Leads(message.payload[7], route_protocol(message), *decode_ways(message.payload)[0])


def open_lookup() -> NetlinkSocket:
    """A socket for ``look_up``; the caller closes it."""
    return NetlinkSocket(NETLINK_ROUTE)
