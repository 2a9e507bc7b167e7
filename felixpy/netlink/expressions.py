"""Expressions of nf_tables rules, in the form in which the kernel prints them.

Registers, attribute order, no flag bits inside values: so a rule read back can be compared with the rule that was sent.
An expression is these very bytes: a node with many policies sends and compares tens of thousands of them.
Numbers are from linux/netfilter/nf_tables.h; the bytes are compared with those of ``nft`` in the tests.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Final, Self

from felixpy.model.net import Family
from felixpy.netlink.message import attribute, attributes, be32, nested, text_attribute, text_of, zero_terminated

# linux/netfilter.h: NFPROTO_*
NFPROTO_ARP = 3
NFPROTO: dict[int, int] = {Family.V4: 2, Family.V6: 10, NFPROTO_ARP: NFPROTO_ARP}
MATCH_NAME, MATCH_INFO = 1, 3

# Registers as the kernel prints them: 1..4 are 16 bytes each, 8..23 the same space by 4 bytes.
REG_VERDICT, REG_1, REG_2 = 0, 1, 2
REG32_01, REG32_02 = 9, 10
REG32_04, REG32_05 = 12, 13

NF_DROP, NF_ACCEPT = 0, 1
NFT_JUMP, NFT_GOTO, NFT_RETURN = 0xFFFFFFFD, 0xFFFFFFFC, 0xFFFFFFFB

NFT_CMP_EQ, NFT_CMP_NEQ = 0, 1
NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_TRANSPORT_HEADER = 1, 2
NFT_META_MARK, NFT_META_IIFNAME, NFT_META_OIFNAME, NFT_META_L4PROTO = 3, 6, 7, 16
NFT_CT_STATE = 0
NFT_CT_SOURCE = {Family.V4: 19, Family.V6: 21}  # NFT_CT_SRC_IP, NFT_CT_SRC_IP6
CT_INVALID, CT_ESTABLISHED, CT_RELATED = 1, 2, 4
NF_NAT_RANGE_PROTO_SPECIFIED, NF_NAT_RANGE_PROTO_RANDOM_FULLY = 0x2, 0x10
NF_NAT_RANGE_MAP_IPS = 0x1
NFT_NAT_SNAT, NFT_NAT_DNAT = 0, 1
NFT_REJECT_ICMP_UNREACH = 0
ICMP_PORT_UNREACH, ICMPV6_PORT_UNREACH = 3, 4
NFT_LIMIT_PKTS = 0
_FIB_RESULT_ADDRTYPE, _FIB_SOURCE, _FIB_OUTPUT = 3, 1, 16  # NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_SADDR, NFTA_FIB_F_OIF


@cache
def _name(name: str) -> bytes:
    return text_attribute(1, name)


class Expression(bytes):
    """One expression as it stands in the list of a rule's: name and attributes in ascending order.

    Nested values are attribute streams.
    """

    __slots__ = ()

    def __new__(cls, name: str, attributes: Iterable[tuple[int, bytes]]) -> Self:
        values = b"".join([attribute(kind, value) for kind, value in attributes])
        return bytes.__new__(cls, nested(1, _name(name), nested(2, values)))

    @property
    def name(self) -> str:
        return text_of(self._parts[1])

    @property
    def attributes(self) -> tuple[tuple[int, bytes], ...]:
        return tuple(attributes(self._parts[2]))

    @property
    def _parts(self) -> dict[int, bytes]:
        return dict(attributes(self, 4))

    def __repr__(self) -> str:
        return f"Expression({self.name!r}, {self.attributes!r})"


# Attributes that felixpy sets, per expression; others that a newer kernel prints are its defaults and are not compared.
_COMPARED = {
    "payload": (1, 2, 3, 4),
    "meta": (1, 2, 3),
    "cmp": (1, 2, 3),
    "lookup": (1, 2, 3, 5),
    "bitwise": (1, 2, 3, 4, 5),
    "ct": (1, 2, 3),
    "immediate": (1, 2),
    "masq": (1, 2, 3),
    "nat": (1, 2, 3, 4, 5, 6, 7),
    "reject": (1, 2),
    "range": (1, 2, 3, 4),
    "limit": (1, 2, 3, 4, 5),
    "log": (1, 2, 3, 4, 5, 6),
    "notrack": (),
    "counter": (),
}

PORTS: Final = "ports"
"""An expression of our own: a lookup of register 1 in an anonymous set of ports, with the set's content.

The kernel keeps such a set beside the rule, under a number; ``port_ranges`` and ``named_ports`` go between the two.
"""


_PORTS_NAME: Final = text_attribute(1, PORTS)


@cache
def payload(base: int, offset: int, length: int, register: int = REG_1) -> Expression:
    return Expression("payload", ((1, be32(register)), (2, be32(base)), (3, be32(offset)), (4, be32(length))))


def source_type(*, of_output: bool) -> Expression:
    """What the source address is for the node (RTN_LOCAL: its own), or for the output interface alone."""
    flags = _FIB_SOURCE | (_FIB_OUTPUT if of_output else 0)
    return Expression("fib", ((1, be32(REG_1)), (2, be32(_FIB_RESULT_ADDRTYPE)), (3, be32(flags))))


@cache
def meta(key: int, register: int = REG_1) -> Expression:
    return Expression("meta", ((1, be32(register)), (2, be32(key))))


@lru_cache(1 << 12)
def compare(data: bytes, operation: int = NFT_CMP_EQ) -> Expression:
    return Expression("cmp", ((1, be32(REG_1)), (2, be32(operation)), (3, attribute(1, data))))


def mark(value: int) -> bytes:
    """A mark as the kernel holds it: in the order of the machine."""
    return struct.pack("=I", value)


def lookup_verdict(map_name: str) -> Expression:
    """Go where a verdict map says for register 1, if it says anything."""
    return Expression("lookup", ((1, zero_terminated(map_name)), (2, be32(REG_1)), (3, be32(REG_VERDICT))))


def set_mark() -> Expression:
    """The packet's mark becomes register 1."""
    return Expression("meta", ((2, be32(NFT_META_MARK)), (3, be32(REG_1))))


def merge(keep: bytes, put: bytes) -> Expression:
    """``register 1 = register 1 & keep ^ put``."""
    return Expression(
        "bitwise",
        ((1, be32(REG_1)), (2, be32(REG_1)), (3, be32(len(keep))), (4, attribute(1, keep)), (5, attribute(1, put))),
    )


def in_range(first: bytes, last: bytes, operation: int = NFT_CMP_EQ) -> Expression:
    """Register 1 lies between two values, both included, or does not."""
    return Expression(
        "range", ((1, be32(REG_1)), (2, be32(operation)), (3, attribute(1, first)), (4, attribute(1, last)))
    )


def limit(packets: int, seconds: int, burst: int) -> Expression:
    values = struct.pack(">Q", packets), struct.pack(">Q", seconds), be32(burst), be32(NFT_LIMIT_PKTS), be32(0)
    return Expression("limit", tuple(enumerate(values, start=1)))


def log(prefix: str, level: int) -> Expression:
    return Expression("log", ((2, zero_terminated(prefix)), (5, be32(level))))


def notrack() -> Expression:
    return Expression("notrack", ())


@cache
def counter() -> Expression:
    """Count packets and bytes, from 0; what is counted is no part of the rule's comparable form."""
    return Expression("counter", ())


def port_set(ranges: Iterable[tuple[int, int]], *, negated: bool = False) -> Expression:
    """Register 1 is a port in one of the ranges, or in none: see ``PORTS``. They must not overlap or touch."""
    content = b"".join(struct.pack(">HH", first, last) for first, last in sorted(ranges))
    return Expression(PORTS, ((1, content), *(((5, be32(1)),) if negated else ())))


def has_ports(expressions: Iterable[Expression]) -> bool:
    """Whether a ``PORTS`` expression is among them."""
    return _PORTS_NAME in b"".join(expressions)


def port_ranges(expression: Expression) -> list[tuple[int, int]]:
    """The content of a ``PORTS`` expression."""
    return list(struct.iter_unpack(">HH", expression.attributes[0][1]))


def lookup_data(map_name: str) -> Expression:
    """Register 1 becomes what a map has for it; the rule ends if that is nothing."""
    return Expression("lookup", ((1, zero_terminated(map_name)), (2, be32(REG_1)), (3, be32(REG_1))))


def lookup(set_name: str, *, negated: bool = False) -> Expression:
    flags = ((5, be32(1)),) if negated else ()
    return Expression("lookup", ((1, zero_terminated(set_name)), (2, be32(REG_1)), *flags))


def mask(bits: bytes) -> Expression:
    """``register 1 &= bits``."""
    zero = bytes(len(bits))
    return Expression(
        "bitwise",
        (
            (1, be32(REG_1)),
            (2, be32(REG_1)),
            (3, be32(len(bits))),
            (4, attribute(1, bits)),
            (5, attribute(1, zero)),
        ),
    )


def conntrack_state() -> Expression:
    return Expression("ct", ((1, be32(REG_1)), (2, be32(NFT_CT_STATE))))


def conntrack_source(family: Family, *, reply: bool) -> Expression:
    """Who sends the packets of a connection in one direction."""
    key = be32(NFT_CT_SOURCE[family])
    return Expression("ct", ((1, be32(REG_1)), (2, key), (3, bytes((reply,)))))


@lru_cache(1 << 14)
def verdict(code: int, chain: str | None = None) -> Expression:
    inner = attribute(1, be32(code)) + (text_attribute(2, chain) if chain else b"")
    return Expression("immediate", ((1, be32(REG_VERDICT)), (2, attribute(2, inner))))


def immediate(data: bytes, register: int) -> Expression:
    return Expression("immediate", ((1, be32(register)), (2, attribute(1, data))))


def masquerade(flags: int, *, port_registers: tuple[int, int] | None = None) -> Expression:
    ports = ((2, be32(port_registers[0])), (3, be32(port_registers[1]))) if port_registers else ()
    return Expression("masq", ((1, be32(flags)), *ports))


def address_nat(
    family: Family,
    address_register: int,
    flags: int,
    *,
    port_registers: tuple[int, int] | None = None,
    destination: bool = False,
) -> Expression:
    ports = ((5, be32(port_registers[0])), (6, be32(port_registers[1]))) if port_registers else ()
    return Expression(
        "nat",
        (
            (1, be32(NFT_NAT_DNAT if destination else NFT_NAT_SNAT)),
            (2, be32(NFPROTO[family])),
            (3, be32(address_register)),
            (4, be32(address_register)),
            *ports,
            (7, be32(flags)),
        ),
    )


def reject(code: int) -> Expression:
    return Expression("reject", ((1, be32(NFT_REJECT_ICMP_UNREACH)), (2, bytes((code,)))))


@lru_cache(1 << 13)  # a node with many policies has few different ones
def decode(data: bytes) -> Expression:
    """An expression as the kernel prints it, without the header of its entry."""
    found = dict(attributes(data))
    kind = text_of(found.get(1, b""))
    compared = _COMPARED.get(kind)
    values = [
        (which, value)
        for which, value in attributes(found.get(2, b""))
        if (compared is None or which in compared) and not (kind == "lookup" and which == 5 and not any(value))
    ]
    return Expression(kind, tuple(sorted(values)))
