"""What address detection looks at: interfaces with addresses, and the kernel's choice of a source. Sends no packet."""

from __future__ import annotations

import contextlib
import socket
import struct

from felixpy.model.net import Family, Net, parse_address
from felixpy.netlink.message import Message, Request, attributes
from felixpy.netlink.rtnetlink import IFA_ADDRESS, IFA_FLAGS, IFA_LOCAL, RTM_GETADDR, decode_link, link_dump_request
from felixpy.netlink.transport import NETLINK_ROUTE, NetlinkSocket
from felixpy.node.detection import Address, Interface, Surroundings

_ADDRESS = struct.Struct("=BBBBI")
_TEMPORARY, _DADFAILED, _DEPRECATED, _TENTATIVE, _OPTIMISTIC = 0x01, 0x08, 0x20, 0x40, 0x04  # linux/if_addr.h
_DISCARD_PORT = 9


def read_surroundings() -> Surroundings:
    """Interfaces in the kernel's order.

    Raises:
        OSError: the kernel refused.
    """
    with contextlib.closing(NetlinkSocket(NETLINK_ROUTE)) as netlink:
        links = [decode_link(message) for message in netlink.dump_all(link_dump_request())]
        found = [
            _decode(message) for message in netlink.dump_all(Request(RTM_GETADDR, 0, _ADDRESS.pack(0, 0, 0, 0, 0)))
        ]
    interfaces = [
        Interface(link.name, tuple(address for one in found if one and one[0] == link.ifindex for address in one[1:]))
        for link in links
        if link.up
    ]
    return Surroundings(interfaces, source_for)


def _decode(message: Message) -> tuple[int, Address] | None:
    family, length, flags, _, index = _ADDRESS.unpack_from(message.payload)
    if family not in (Family.V4, Family.V6):
        return None
    known = dict(attributes(message.payload, _ADDRESS.size))
    packed = known.get(IFA_LOCAL) or known.get(IFA_ADDRESS)
    if not packed:
        return None
    if IFA_FLAGS in known:
        flags = struct.unpack("=I", known[IFA_FLAGS])[0]
    unusable = bool(flags & _DADFAILED or (flags & _TENTATIVE and not flags & _OPTIMISTIC))
    temporary = family == Family.V6 and bool(flags & _TEMPORARY)  # in IPv4 the bit says: not the first of its subnet
    return index, Address(Net(packed, length), temporary, bool(flags & _DEPRECATED), unusable)


def source_for(host: str, family: Family) -> bytes | None:
    """The source address of packets to a host, by connecting a UDP socket, which sends nothing."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host, _DISCARD_PORT))
            return parse_address(probe.getsockname()[0].partition("%")[0])
    except OSError:
        return None
