"""Packets with an id, by hand: what is sent, and what of it a reader recognises. Pure.

TCP SYN     the id is the sequence number
UDP         the id is the payload
SCTP INIT   the id is the initiate tag, and the initial TSN; CRC32c is right, or connection tracking calls it invalid
ICMP echo   the id is the payload
"""

from __future__ import annotations

import struct

from felixpy.model.net import Family, family_of

TCP, UDP, SCTP, UDPLITE = 6, 17, 132, 136
ICMP = {Family.V4: 1, Family.V6: 58}
ECHO = {Family.V4: 8, Family.V6: 128}
ASKED = {Family.V4: (8, 13, 15, 17), Family.V6: (128, 139)}
"""Types of ICMP that may begin a conversation, as connection tracking sees it."""
PROTOCOLS = {"tcp": TCP, "udp": UDP, "sctp": SCTP, "udplite": UDPLITE}
ETHERTYPE = {Family.V4: 0x0800, Family.V6: 0x86DD}


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC32C = _crc_table()


def crc32c(data: bytes) -> int:
    """The checksum of SCTP (RFC 9260 appendix A).

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    value = 0xFFFFFFFF
    for byte in data:
        value = _CRC32C[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


def checksum(data: bytes) -> int:
    """The checksum of IP (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def transport(
    source: bytes,
    destination: bytes,
    protocol: int,
    ports: tuple[int, int],
    number: int,
    icmp: tuple[int, int] = (0, 0),
    padding: bytes = b"",
) -> bytes:
    """What follows the header of IP; ``ports``: of source and destination, nothing in ICMP."""
    family = family_of(source)
    tag = struct.pack(">I", number)
    if protocol == TCP:
        data = struct.pack(">HHIIBBHHH", *ports, number, 0, 5 << 4, 2, 1024, 0, 0) + padding
        return _with_checksum(source, destination, protocol, data, 16)
    if protocol in (UDP, UDPLITE):
        data = (
            struct.pack(">HHHH", *ports, 12 + len(padding), 0) + tag + padding
        )  # in UDP-Lite the length is that of what is summed
        return _with_checksum(source, destination, protocol, data, 6)
    if protocol == SCTP:
        init = struct.pack(">BBHIIHHI", 1, 0, 20, number, 0x10000, 1, 1, number)
        head = struct.pack(">HHI", *ports, 0)
        return head + struct.pack("<I", crc32c(head + bytes(4) + init)) + init
    if protocol == ICMP[family]:
        data = struct.pack(">BBHHH", icmp[0] or ECHO[family], icmp[1], 0, 7, 1) + tag + padding
        if family is Family.V6:
            return _with_checksum(source, destination, protocol, data, 2)
        return data[:2] + struct.pack(">H", checksum(data)) + data[4:]
    return struct.pack(">HH", *ports) + tag


def packet(
    source: bytes,
    destination: bytes,
    protocol: int,
    ports: tuple[int, int],
    number: int,
    icmp: tuple[int, int] = (0, 0),
) -> bytes:
    """A whole packet of IP; ``icmp``: type and code, an echo request if there are none."""
    data = transport(source, destination, protocol, ports, number, icmp)
    return (
        _v6(source, destination, protocol, data)
        if len(source) == 16
        else _v4(source, destination, protocol, data, number)
    )


def _v4(
    source: bytes,
    destination: bytes,
    protocol: int,
    data: bytes,
    number: int,
    fragment: int = 0x4000,
    options: bytes = b"",
) -> bytes:
    words = 5 + len(options) // 4
    size = 4 * words + len(data)
    head = struct.pack(">BBHHHBBH", 0x40 | words, 0, size, number & 0xFFFF, fragment, 64, protocol, 0)
    whole = head + source + destination + options
    return whole[:10] + struct.pack(">H", checksum(whole)) + whole[12:] + data


def _v6(source: bytes, destination: bytes, protocol: int, data: bytes) -> bytes:
    return struct.pack(">IHBB", 6 << 28, len(data), protocol, 64) + source + destination + data


HOP_BY_HOP, FRAGMENT, DESTINATION_OPTIONS = 0, 44, 60
_PADDING = b"\1\4\0\0\0\0"  # PadN of six bytes
_MORE, _CUT = 1, 16


def _fragments(source: bytes, destination: bytes, protocol: int, data: bytes, number: int) -> list[bytes]:
    parts = [(0, data[:_CUT], _MORE), (_CUT // 8, data[_CUT:], 0)]
    if len(source) == 4:
        return [_v4(source, destination, protocol, part, number, more << 13 | at) for at, part, more in parts]
    return [
        _v6(source, destination, FRAGMENT, struct.pack(">BBHI", protocol, 0, at << 3 | more, number) + part)
        for at, part, more in parts
    ]


def _with_options(source: bytes, destination: bytes, protocol: int, data: bytes, number: int) -> list[bytes]:
    if len(source) == 4:
        return [_v4(source, destination, protocol, data, number, options=b"\1\1\1\0")]  # no operation, end of list
    return [_v6(source, destination, DESTINATION_OPTIONS, bytes((protocol, 0)) + _PADDING + data)]


def _hop_by_hop(source: bytes, destination: bytes, protocol: int, data: bytes, number: int) -> list[bytes]:
    if len(source) == 4:
        return _with_options(source, destination, protocol, data, number)
    return [_v6(source, destination, HOP_BY_HOP, bytes((protocol, 0)) + _PADDING + data)]


def _atomic(source: bytes, destination: bytes, protocol: int, data: bytes, number: int) -> list[bytes]:
    """A fragment that is all of it (RFC 6946); IPv4 has no such thing."""
    if len(source) == 4:
        return [_v4(source, destination, protocol, data, number, 0)]
    return [_v6(source, destination, FRAGMENT, struct.pack(">BBHI", protocol, 0, 0, number) + data)]


SHAPES = {
    "fragments": _fragments,
    "lastfirst": lambda *what: _fragments(*what)[::-1],
    "options": _with_options,
    "hopbyhop": _hop_by_hop,
    "atomic": _atomic,
}
"""Other ways to send one packet, which must make no difference."""


def shaped(
    shape: str, source: bytes, destination: bytes, protocol: int, ports: tuple[int, int], number: int,
    icmp: tuple[int, int] = (0, 0),
) -> list[bytes]:  # fmt: skip
    """The packets that are sent for one; longer than one fragment."""
    if not shape:
        return [packet(source, destination, protocol, ports, number, icmp)]
    data = transport(source, destination, protocol, ports, number, icmp, padding=bytes(24))
    return SHAPES[shape](source, destination, protocol, data, number)


def number_of(data: bytes) -> int | None:
    """The id of a packet of IP that was made here; None of any other."""
    if len(data) < 28:
        return None
    if data[0] >> 4 == 4:
        is_later = int.from_bytes(data[6:8], "big") & 0x1FFF
        return None if is_later else _number(data[9], data[(data[0] & 15) * 4 :], Family.V4)
    protocol, at = data[6], 40
    while protocol in (HOP_BY_HOP, FRAGMENT, DESTINATION_OPTIONS) and len(data) >= at + 8:
        if protocol == FRAGMENT and int.from_bytes(data[at + 2 : at + 4], "big") >> 3:
            return None
        protocol, at = data[at], at + (8 if protocol == FRAGMENT else 8 * (data[at + 1] + 1))
    return _number(protocol, data[at:], Family.V6)


def _number(protocol: int, data: bytes, family: Family) -> int | None:
    at = None
    if protocol == TCP and len(data) >= 20 and data[13] == 2:
        at = 4
    elif protocol in (UDP, UDPLITE) and len(data) >= 12:
        at = 8
    elif protocol == SCTP and len(data) >= 32 and data[12] == 1:
        at = 16
    elif protocol == ICMP[family] and len(data) >= 12 and data[0] in ASKED[family]:
        at = 8
    elif protocol not in (TCP, UDP, UDPLITE, SCTP, ICMP[family]) and len(data) >= 8:
        at = 4
    return None if at is None else int(struct.unpack_from(">I", data, at)[0])


def number_in(protocol: int, data: bytes, family: Family) -> int | None:
    """The id of what a raw socket of IPv6 reads, which begins behind the header of IP."""
    return _number(protocol, data, family)


def _with_checksum(source: bytes, destination: bytes, protocol: int, data: bytes, at: int) -> bytes:
    if family_of(source) is Family.V6:
        pseudo = source + destination + struct.pack(">IxxxB", len(data), protocol)
    else:
        pseudo = source + destination + struct.pack(">xBH", protocol, len(data))
    found = checksum(pseudo + data) or 0xFFFF
    return data[:at] + struct.pack(">H", found) + data[at + 2 :]
