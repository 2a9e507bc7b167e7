"""rtnetlink messages that make a workload's interface: a veth pair, one end in another namespace, addresses on it.

Encoders write what ``ip`` would write. Numbers are from linux/if_link.h, linux/veth.h, linux/if_addr.h and
linux/rtnetlink.h. pyroute2 is the oracle of these in the tests.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from felixpy.model.net import Family, Net
from felixpy.netlink.message import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    Request,
    attribute,
    attributes,
    nested,
    text_attribute,
    text_of,
)
from felixpy.netlink.rtnetlink import (
    IFA_ADDRESS,
    IFA_FLAGS,
    IFA_LOCAL,
    IFF_UP,
    IFLA_ADDRESS,
    IFLA_AF_SPEC,
    IFLA_IFNAME,
    RTM_DELLINK,
    RTM_GETLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_SETLINK,
)

IFLA_MTU, IFLA_OPERSTATE, IFLA_LINKINFO, IFLA_IFALIAS, IFLA_GROUP, IFLA_NET_NS_FD = 4, 16, 18, 20, 27, 28
IFLA_INFO_KIND, IFLA_INFO_DATA = 1, 2
VETH_INFO_PEER = 1
IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 8, 1
IFA_F_NODAD = 0x02
IF_OPER_UP = 6
RT_SCOPE_LINK = 253

_LINK = struct.Struct("=BBHiII")
_ADDRESS = struct.Struct("=BBBBI")
_U32 = struct.Struct("=I")


class End(NamedTuple):
    """One end of a veth pair."""

    name: str
    mac: bytes


UNFINISHED_GROUP = 0x66707930
"""Group (``ip link show group``) of a link that has no alias yet: a new link takes it in the message that makes it."""


class NamedLink(NamedTuple):
    """A link with what marks it as ours."""

    ifindex: int
    name: str
    alias: str
    up: bool
    mac: bytes
    mtu: int
    group: int = 0
    sends: bool = True
    """Whether its operational state is up: before, the kernel drops what is sent by it."""

    @property
    def is_unfinished(self) -> bool:
        """Whether whoever made it did not get to its mark."""
        return self.group == UNFINISHED_GROUP and not self.alias


def veth_request(host: End, container: End, namespace: int, *, mtu: int = 0) -> Request:
    """Make a pair, both ends down: ``host`` in the socket's namespace, ``container`` in that of a descriptor.

    The other end is made where it belongs; to move it later would cost the kernel grace periods. ``mtu`` 0 leaves
    both to the kernel. A name that is in use is refused (EEXIST). The node's end is in ``UNFINISHED_GROUP``.
    """
    own, peer = _end(host, mtu), [*_end(container, mtu), attribute(IFLA_NET_NS_FD, _U32.pack(namespace))]
    own.append(attribute(IFLA_GROUP, _U32.pack(UNFINISHED_GROUP)))
    data = nested(IFLA_INFO_DATA, nested(VETH_INFO_PEER, _LINK.pack(0, 0, 0, 0, 0, 0), *peer))
    own.append(nested(IFLA_LINKINFO, attribute(IFLA_INFO_KIND, b"veth"), data))
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, _LINK.pack(0, 0, 0, 0, 0, 0) + b"".join(own))


def _end(end: End, mtu: int) -> list[bytes]:
    parts = [text_attribute(IFLA_IFNAME, end.name), attribute(IFLA_ADDRESS, end.mac)]
    return [*parts, attribute(IFLA_MTU, _U32.pack(mtu))] if mtu else parts


def link_mark_request(name: str, alias: str) -> Request:
    """Set what marks a link, which is finished by it. A new link does not take an alias: the kernel reads it of
    RTM_SETLINK only.
    """
    parts = [
        text_attribute(IFLA_IFNAME, name),
        attribute(IFLA_GROUP, _U32.pack(0)),
        text_attribute(IFLA_IFALIAS, alias),
    ]
    return Request(RTM_SETLINK, 0, _LINK.pack(0, 0, 0, 0, 0, 0) + b"".join(parts))


def link_no_own_address_request(name: str) -> Request:
    """No link-local IPv6 address comes by itself when the link, which is down, goes up."""
    mode = nested(Family.V6, attribute(IFLA_INET6_ADDR_GEN_MODE, bytes((IN6_ADDR_GEN_MODE_NONE,))))
    return Request(
        RTM_SETLINK, 0, _LINK.pack(0, 0, 0, 0, 0, 0) + text_attribute(IFLA_IFNAME, name) + nested(IFLA_AF_SPEC, mode)
    )


def link_up_request(name: str) -> Request:
    return Request(RTM_SETLINK, 0, _LINK.pack(0, 0, 0, 0, IFF_UP, IFF_UP) + text_attribute(IFLA_IFNAME, name))


def link_delete_request(index: int) -> Request:
    return Request(RTM_DELLINK, 0, _LINK.pack(0, 0, 0, index, 0, 0))


def link_get_request(name: str) -> Request:
    """Ask for one link by name; the answer is a link message, ENODEV if there is none.

    From Linux 6.8 on the kernel first does what is due of a carrier that came or went (``linkwatch_sync_dev``).
    """
    return Request(RTM_GETLINK, 0, _LINK.pack(0, 0, 0, 0, 0, 0) + text_attribute(IFLA_IFNAME, name))


def decode_named_link(message: Message) -> NamedLink:
    """Name, alias, MAC and MTU of a link message."""
    _, _, _, index, flags, _ = _LINK.unpack_from(message.payload)
    found = dict(attributes(message.payload, _LINK.size))
    name, alias = (text_of(found.get(kind, b"")) for kind in (IFLA_IFNAME, IFLA_IFALIAS))
    mtu: int = _U32.unpack(found[IFLA_MTU])[0] if IFLA_MTU in found else 0
    group: int = _U32.unpack(found[IFLA_GROUP])[0] if IFLA_GROUP in found else 0
    sends = found.get(IFLA_OPERSTATE) == bytes((IF_OPER_UP,))
    return NamedLink(index, name, alias, bool(flags & IFF_UP), found.get(IFLA_ADDRESS, b""), mtu, group, sends)


def address_request(index: int, net: Net) -> Request:
    """Put an address on an interface, with the prefix length of its subnet; IPv6 without duplicate detection."""
    scope = RT_SCOPE_LINK if net.packed[:2] == b"\xfe\x80" else 0
    header = _ADDRESS.pack(net.family, net.length, 0, scope, index)
    if net.family is Family.V4:
        parts = [attribute(IFA_LOCAL, net.packed), attribute(IFA_ADDRESS, net.packed)]
    else:
        parts = [attribute(IFA_LOCAL, net.packed), attribute(IFA_FLAGS, _U32.pack(IFA_F_NODAD))]
    return Request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, header + b"".join(parts))


def addresses_of(messages: Iterable[Message], index: int) -> set[Net]:
    """The addresses of one interface in a dump of addresses (``address_dump_request``)."""
    found = set()
    for message in messages:
        family, length, _, _, interface = _ADDRESS.unpack_from(message.payload)
        values = dict(attributes(message.payload, _ADDRESS.size))
        address = values.get(IFA_LOCAL) or values.get(IFA_ADDRESS)
        if interface == index and address and family in (Family.V4, Family.V6):
            found.add(Net(address, length))
    return found
