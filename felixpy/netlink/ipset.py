"""Messages of the kernel's IP sets (ipset(8)): encoders, decoders and the words for their error numbers.

Used by the iptables back-ends over ``NetlinkSocket``. One message holds one member, because the kernel stops a message
of many members at the first bad one, while single messages are each answered on their own; many of them go out in one
send. Adding a member that is there and deleting one that is not succeed (no ``NLM_F_EXCL``, as ``ipset -exist``).
Must never open a socket, know a set's name or start a process.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from functools import cache
from itertools import repeat
from typing import NamedTuple

from felixpy.model.net import Family, Net
from felixpy.netlink.columns import same, tuples
from felixpy.netlink.message import ATTRIBUTE, NLA_F_NESTED, NLM_F_ACK, Message, Request, attribute, attributes, nested
from felixpy.netlink.transport import Refusal

# linux/netfilter/ipset/ip_set.h
PROTOCOL = 7
MAX_NAME_LENGTH = 31
_SUBSYSTEM = 6 << 8
_CREATE, _DESTROY, _FLUSH, _RENAME, _SWAP, _LIST, _ADD, _DEL, _TYPE = 2, 3, 4, 5, 6, 7, 9, 10, 13
_ATTR_PROTOCOL, _ATTR_SETNAME, _ATTR_TYPENAME, _ATTR_SETNAME2 = 1, 2, 3, 3
_ATTR_REVISION, _ATTR_FAMILY, _ATTR_FLAGS, _ATTR_DATA, _ATTR_ADT, _ATTR_REVISION_MIN = 4, 5, 6, 7, 8, 10
_ATTR_INDEX = 11
_DATA_IP, _DATA_CIDR, _DATA_FLAGS, _DATA_MAXELEM, _DATA_IFACE, _DATA_REFERENCES = 1, 3, 8, 19, 23, 25
_DATA_PORT, _DATA_PROTOCOL, _DATA_MARK = 4, 7, 27
_IP_V4, _IP_V6 = 1, 2
_ADDRESS_BYTES = {
    ATTRIBUTE.pack(8 + size, _DATA_IP | NLA_F_NESTED) + ATTRIBUTE.pack(4 + size, kind): size
    for size, kind in ((4, _IP_V4), (16, _IP_V6))
}
"""How long the address is that follows the headers of a usual member, as the kernel prints them."""
_NETORDER = 0x4000
_LENGTH_HEADER = ATTRIBUTE.pack(5, _DATA_CIDR)
_PREFIX_LENGTH = struct.Struct("=HHB3x")
_MARK = struct.Struct(">II")
_MARK_HEADER = ATTRIBUTE.pack(4 + _MARK.size, _DATA_MARK | _NETORDER)
"""What stands before a mark and its mask, in both directions: of the attributes of 64 bits, none is aligned on x86."""
_FLAG_LIST_HEADER = 1 << 2
_FLAG_NOMATCH = 1 << 2
_FLAG_WITH_MARK = 1 << 6  # IPSET_FLAG_WITH_SKBINFO
_ADDRESS_HEADERS = {
    size: ATTRIBUTE.pack(8 + size, _DATA_IP | NLA_F_NESTED) + ATTRIBUTE.pack(4 + size, kind | _NETORDER)
    for size, kind in ((4, _IP_V4), (16, _IP_V6))
}
"""What stands before an address in a message of ours."""

HASH_NET = "hash:net"
HASH_NET_IFACE = "hash:net,iface"
HASH_IP_PORT = "hash:ip,port"
HIGHEST_REVISION = {HASH_NET: 7, HASH_NET_IFACE: 8, HASH_IP_PORT: 7}
"""Revisions that this encoder was written for and that ipset 7.17 (Debian 12) lists; older kernels answer with less."""

_ERRORS = {
    4097: "the kernel speaks another ipset protocol",
    4098: "the kernel does not know this set type",
    4099: "the kernel's limit of sets is reached",
    4100: "the set is in use by rules",
    4101: "a set of that name exists",
    4102: "the sets are of different types",
    4103: "the member or set exists with other properties",
    4104: "invalid prefix length",
    4106: "invalid address family",
    4109: "the set is referenced",
    4110: "an IPv4 address was expected",
    4111: "an IPv6 address was expected",
    4352: "the set is full (MaxIpsetSize)",
    4353: "the element is not usable in this set",
}


class Member(NamedTuple):
    """A member of a ``hash:net`` (no interface), ``hash:net,iface`` or ``hash:ip,port`` set.

    ``mark`` is what ``-j SET --map-mark`` gives a packet in the bits of ``mask``.
    """

    net: Net
    interface: str = ""
    protocol: int = 0
    port: int = 0
    mark: int = 0
    mask: int = 0


class SetHeader(NamedTuple):
    """What the kernel says of a set without its members; rules hold its ``kernel_index`` (-1 before Linux 4.20).

    ``marks``: whether its members can carry a mark (skbinfo).
    """

    name: str
    type: str
    revision: int
    family: int
    max_elements: int
    references: int
    kernel_index: int = -1
    marks: bool = False


def words(refusal: Refusal) -> str:
    """The meaning of a refusal; ipset has error numbers of its own above 4096."""
    if refusal.errno == 2:
        return "the set does not exist"
    return refusal.message or _ERRORS.get(refusal.errno) or os.strerror(refusal.errno)


def create(name: str, kind: str, family: Family, revision: int, max_elements: int, *, marks: bool = False) -> Request:
    """Create a set; an equal one that exists already is a success."""
    flags = attribute(_DATA_FLAGS | _NETORDER, struct.pack(">I", _FLAG_WITH_MARK)) if marks else b""
    return _request(
        _CREATE,
        attribute(_ATTR_SETNAME, _text(name)),
        attribute(_ATTR_TYPENAME, _text(kind)),
        attribute(_ATTR_REVISION, bytes((revision,))),
        attribute(_ATTR_FAMILY, bytes((family,))),
        nested(_ATTR_DATA, attribute(_DATA_MAXELEM | _NETORDER, struct.pack(">I", max_elements)), flags),
    )


def add(name: str, member: Member) -> Request:
    return Request(_SUBSYSTEM | _ADD, 0, _in_set(name) + _member(member))


def delete(name: str, member: Member) -> Request:
    return Request(_SUBSYSTEM | _DEL, 0, _in_set(name) + _member(member))


def flush(name: str) -> Request:
    return _request(_FLUSH, attribute(_ATTR_SETNAME, _text(name)))


def destroy(name: str) -> Request:
    return _request(_DESTROY, attribute(_ATTR_SETNAME, _text(name)))


def swap(name: str, other: str) -> Request:
    """Exchange the contents of two sets of one type and family; rules keep referring to the name."""
    return _request(_SWAP, attribute(_ATTR_SETNAME, _text(name)), attribute(_ATTR_SETNAME2, _text(other)))


def rename(name: str, new_name: str) -> Request:
    """Rename a set that no rule refers to."""
    return _request(_RENAME, attribute(_ATTR_SETNAME, _text(name)), attribute(_ATTR_SETNAME2, _text(new_name)))


def list_headers() -> Request:
    """Dump the headers of all sets of the network namespace."""
    return _request(_LIST, attribute(_ATTR_FLAGS | _NETORDER, struct.pack(">I", _FLAG_LIST_HEADER)))


def list_members(name: str) -> Request:
    """Dump one set with its members."""
    return _request(_LIST, attribute(_ATTR_SETNAME, _text(name)))


def type_revisions(kind: str, family: Family) -> Request:
    """Ask for the revisions of a set type.

    The answer is one message that no end of dump follows; the acknowledgement ends ``NetlinkSocket.dump`` instead.
    """
    request = _request(_TYPE, attribute(_ATTR_TYPENAME, _text(kind)), attribute(_ATTR_FAMILY, bytes((family,))))
    return request._replace(flags=NLM_F_ACK)


def decode_revision(message: Message, kind: str) -> int:
    """The revision to create a set with: the highest that the kernel and this encoder both know."""
    for attribute_type, value in attributes(message.payload, 4):
        if attribute_type == _ATTR_REVISION:
            return min(value[0], HIGHEST_REVISION[kind])
    return 0


def decode_header(message: Message) -> SetHeader | None:
    """Header of a set, or None for a message that only continues the members of one."""
    found = dict(attributes(message.payload, 4))
    if _ATTR_TYPENAME not in found:
        return None
    data = dict(attributes(found.get(_ATTR_DATA, b"")))
    return SetHeader(
        name=_untext(found[_ATTR_SETNAME]),
        type=_untext(found[_ATTR_TYPENAME]),
        revision=found[_ATTR_REVISION][0],
        family=found[_ATTR_FAMILY][0],
        max_elements=int.from_bytes(data.get(_DATA_MAXELEM, b""), "big"),
        references=int.from_bytes(data.get(_DATA_REFERENCES, b""), "big"),
        kernel_index=int.from_bytes(found[_ATTR_INDEX], "big") if _ATTR_INDEX in found else -1,
        marks=bool(int.from_bytes(data.get(_DATA_FLAGS, b""), "big") & _FLAG_WITH_MARK),
    )


def decode_members(message: Message) -> list[Member]:
    """Members in one message of a ``list_members`` dump."""
    members: list[Member] = []
    for kind, value in attributes(message.payload, 4):
        for run in _runs(value) if kind == _ATTR_ADT else ():
            members += _decode_alike(run) or [_decode_member(data) for _, data in attributes(run)]
    return members


def _runs(data: bytes) -> Iterator[bytes]:
    """Members one behind the other, in runs of the same length."""
    at = 0
    while at + 4 <= len(data):
        header, start = data[at : at + 4], at
        size = max(ATTRIBUTE.unpack(header)[0] + 3 & ~3, 4)
        while data[at : at + 4] == header:
            at += size
        yield data[start:at]


def _decode_alike(data: bytes) -> list[Member] | None:
    """Members with an address, a length and perhaps an interface, all with the same headers as the first one.

    Taken apart in one go, because a full node has twenty thousand; None if one is another.
    """
    size, _ = ATTRIBUTE.unpack_from(data)
    address = _ADDRESS_BYTES.get(data[4:12], 0)
    interface = 20 + address
    if not address or size < interface or len(data) % size:
        return None
    layout, expected = f"=12s{address}s4sB3x", [data[:12], _LENGTH_HEADER]
    if interface < size:
        named, kind = ATTRIBUTE.unpack_from(data, interface)
        if kind != _DATA_IFACE:
            return None
        layout += f"4s{named - 4}s{-named % 4}x"
        expected.append(data[interface : interface + 4])
    marked = size - struct.calcsize(layout) == len(_MARK_HEADER) + _MARK.size
    if marked:
        layout += f"4s{_MARK.size}s"
        expected.append(_MARK_HEADER)
    if struct.calcsize(layout) != size:
        return None
    fields = list(zip(*struct.iter_unpack(layout, data), strict=True))
    if not all(map(same, fields[::2], expected)):
        return None
    nets = tuples(Net, fields[1], fields[3])
    interfaces = map(_untext, fields[5]) if interface < size and expected[2:] != [_MARK_HEADER] else repeat("")
    if not marked:
        return list(tuples(Member, nets, interfaces, repeat(0), repeat(0), repeat(0), repeat(0)))
    marks, masks = zip(*_MARK.iter_unpack(b"".join(fields[-1])), strict=True)
    return list(tuples(Member, nets, interfaces, repeat(0), repeat(0), marks, masks))


def _decode_member(data: bytes) -> Member:
    packed, length, interface = b"", -1, ""
    protocol = port = mark = mask = 0
    for kind, value in attributes(data):
        if kind == _DATA_IP:
            packed = value[4:]
        elif kind == _DATA_PROTOCOL:
            protocol = value[0]
        elif kind == _DATA_PORT:
            port = int.from_bytes(value, "big")
        elif kind == _DATA_MARK:
            mark, mask = _MARK.unpack(value)
        elif kind == _DATA_CIDR:
            length = value[0]
        elif kind == _DATA_IFACE:
            interface = _untext(value)
        elif kind == _DATA_FLAGS and int.from_bytes(value, "big") & _FLAG_NOMATCH:
            interface = f"nomatch {interface}"  # an exception that we never write: equal to no member of ours
    return Member(Net(packed, length if length >= 0 else len(packed) * 8), interface, protocol, port, mark, mask)


def _member(member: Member) -> bytes:
    (packed, length), interface, protocol, port, mark, mask = member
    data = _ADDRESS_HEADERS[len(packed)] + packed
    if protocol:
        data += attribute(_DATA_PORT | _NETORDER, struct.pack(">H", port)) + attribute(
            _DATA_PROTOCOL, bytes((protocol,))
        )
        return ATTRIBUTE.pack(4 + len(data), _ATTR_DATA | NLA_F_NESTED) + data
    data += _PREFIX_LENGTH.pack(5, _DATA_CIDR, length)
    if interface:
        data += attribute(_DATA_IFACE, _text(interface))
    if mask:
        data += _MARK_HEADER + _MARK.pack(mark, mask)
    return ATTRIBUTE.pack(4 + len(data), _ATTR_DATA | NLA_F_NESTED) + data


@cache
def _in_set(name: str) -> bytes:
    """The begin of every message about a member of one set; there are a dozen sets."""
    return _request(0, attribute(_ATTR_SETNAME, _text(name))).payload


def _request(command: int, *parts: bytes) -> Request:
    return Request(
        _SUBSYSTEM | command, 0, b"\2\0\0\0" + attribute(_ATTR_PROTOCOL, bytes((PROTOCOL,))) + b"".join(parts)
    )


def _text(text: str) -> bytes:
    return text.encode(errors="surrogateescape") + b"\0"


def _untext(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="surrogateescape")
