"""What a netlink message is: a header of 16 bytes and a payload, in which attributes stand (linux/netlink.h).

Every length is rounded up to four bytes. Must never do I/O.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

NLM_F_REQUEST, NLM_F_MULTI, NLM_F_ACK, NLM_F_ECHO, NLM_F_DUMP_INTR = 0x1, 0x2, 0x4, 0x8, 0x10
NLM_F_ROOT, NLM_F_MATCH = 0x100, 0x200
NLM_F_DUMP = NLM_F_ROOT | NLM_F_MATCH
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x200
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLA_F_NESTED, NLA_F_NET_BYTEORDER = 0x8000, 0x4000
NLA_TYPE_MASK = 0x3FFF

_HEADER = struct.Struct("=IHHII")
ATTRIBUTE = struct.Struct("=HH")
"""Header of an attribute: length with it and without padding, type."""
_PAD = (b"", b"\0\0\0", b"\0\0", b"\0")


class Request(NamedTuple):
    """A message to send: type, flags (NLM_F_REQUEST is added) and payload."""

    type: int
    flags: int
    payload: bytes


class Message(NamedTuple):
    """A message received: header fields and payload after the 16-byte header. ``port``: of the socket that asked."""

    type: int
    flags: int
    sequence: int
    payload: bytes
    port: int = 0


def datagram(requests: Sequence[Request], first: int, ack_at: int) -> bytes:
    """Messages one behind the other, numbered from ``first``; the one at ``ack_at`` asks for an acknowledgement."""
    parts: list[bytes] = []
    for index, (kind, flags, payload) in enumerate(requests):
        size = len(payload)
        flags |= NLM_F_REQUEST | (NLM_F_ACK if index == ack_at else 0)
        parts += _HEADER.pack(16 + size, kind, flags, first + index, 0), payload, _PAD[size & 3]
    return b"".join(parts)


def parse_messages(data: bytes) -> list[Message]:
    """Messages of one datagram."""
    messages: list[tuple[int, int, int, bytes, int]] = []
    offset, end = 0, len(data)
    while offset + 16 <= end:
        length, kind, flags, sequence, port = _HEADER.unpack_from(data, offset)
        if length < 16:
            break
        messages.append((kind, flags, sequence, data[offset + 16 : offset + length], port))
        offset += (length + 3) & ~3
    return list(map(partial(tuple.__new__, Message), messages))


def attribute(kind: int, data: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    length = 4 + len(data)
    return ATTRIBUTE.pack(length, kind) + data + _PAD[length & 3]


def nested(kind: int, *attributes: bytes) -> bytes:
    """A nested attribute."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def attributes(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """(type, value) pairs of an attribute stream; flag bits are masked off the type."""
    end = len(data)
    while offset + 4 <= end:
        length, kind = ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            return
        yield kind & NLA_TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def be32(value: int) -> bytes:
    """A number of an attribute in network order, as nfnetlink has them."""
    return struct.pack(">I", value & 0xFFFFFFFF)


def number(data: bytes) -> int:
    """The number of an attribute in network order, of any length."""
    return int.from_bytes(data, "big")


def zero_terminated(value: str) -> bytes:
    """A string for an attribute, zero-terminated."""
    return value.encode() + b"\0"


def text_of(data: bytes) -> str:
    """The string of an attribute, without the zeros that end it."""
    return data.rstrip(b"\0").decode(errors="replace")


def text_attribute(kind: int, value: str) -> bytes:
    """An attribute with a string."""
    return attribute(kind, zero_terminated(value))
