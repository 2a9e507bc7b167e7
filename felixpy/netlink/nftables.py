"""nf_tables messages by nfnetlink: tables, chains, sets, elements, rules and their expressions.

Expressions are written in the form in which the kernel prints them (registers, attribute order, no flag bits inside
values), so that a rule read back can be compared with the rule that was sent. Numbers are from
linux/netfilter/nf_tables.h; the bytes are compared with those of ``nft`` in the tests.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Final, NamedTuple

from felixpy.model.net import Family
from felixpy.netlink.message import (
    ATTRIBUTE,
    NLA_F_NESTED,
    NLM_F_APPEND,
    NLM_F_CREATE,
    Message,
    Request,
    attribute,
    attributes,
    nested,
)

NFNL_SUBSYS_NFTABLES = 10
NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 0x10, 0x11
NEWTABLE, GETTABLE, DELTABLE = 0, 1, 2
NEWCHAIN, GETCHAIN, DELCHAIN = 3, 4, 5
NEWRULE, GETRULE, DELRULE = 6, 7, 8
NEWSET, GETSET, DELSET = 9, 10, 11
NEWSETELEM, GETSETELEM, DELSETELEM = 12, 13, 14
NEWGEN = 15

# linux/netfilter.h: NFPROTO_* and hooks
NFPROTO_ARP = 3
NFPROTO: dict[int, int] = {Family.V4: 2, Family.V6: 10, NFPROTO_ARP: NFPROTO_ARP}
HOOK_PREROUTING, HOOK_INPUT, HOOK_FORWARD, HOOK_OUTPUT, HOOK_POSTROUTING = range(5)

TABLE_FLAGS, NFT_TABLE_F_DORMANT = 2, 0x1
NFT_SET_ANONYMOUS, NFT_SET_CONSTANT, NFT_SET_INTERVAL, NFT_SET_MAP = 0x1, 0x2, 0x4, 0x8
NFT_SET_CONCAT = 0x80
NFT_SET_ELEM_INTERVAL_END = 0x1
SET_TABLE, SET_NAME, SET_FLAGS, SET_KEY_TYPE, SET_KEY_LEN, SET_DESC, SET_ID, SET_USERDATA = 1, 2, 3, 4, 5, 9, 10, 13
SET_DATA_TYPE, SET_DATA_LEN = 6, 7
ELEMENT_KEY, ELEMENT_DATA, ELEMENT_FLAGS, ELEMENT_KEY_END = 1, 2, 3, 10
RULE_TABLE, RULE_CHAIN, RULE_HANDLE, RULE_EXPRESSIONS, RULE_COMPAT, RULE_USERDATA = 1, 2, 3, 4, 5, 7
MATCH_NAME, MATCH_INFO = 1, 3
CHAIN_TABLE, CHAIN_NAME, CHAIN_HOOK, CHAIN_POLICY, CHAIN_TYPE = 1, 3, 4, 5, 7

# libnftables' numbers of data types, which tell `nft list` how to print keys; a concatenation shifts by six bits.
TYPE_IPV4_ADDR, TYPE_IPV6_ADDR, TYPE_IFNAME = 7, 8, 41
TYPE_INET_PROTOCOL, TYPE_INET_SERVICE, TYPE_MARK = 12, 13, 19
NFT_DATA_VERDICT = 0xFFFFFF00
INTERFACE_NAME_BYTES = 16

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
COUNTER_PACKETS = 2

UDATA_RULE_COMMENT = 0
UDATA_SET_KEYBYTEORDER, UDATA_SET_DATABYTEORDER, UDATA_SET_COMMENT = 0, 1, 7
BYTEORDER_HOST_ENDIAN, BYTEORDER_BIG_ENDIAN = 1, 2


_FRAME = struct.pack(">BBH", 0, 0, NFNL_SUBSYS_NFTABLES)
_BATCH_BEGIN, _BATCH_END = Request(NFNL_MSG_BATCH_BEGIN, 0, _FRAME), Request(NFNL_MSG_BATCH_END, 0, _FRAME)


class Expression(NamedTuple):
    """One expression: name and its attributes in ascending order; nested values are attribute streams."""

    name: str
    attributes: tuple[tuple[int, bytes], ...]


class NftRule(NamedTuple):
    """A rule in comparable form."""

    expressions: tuple[Expression, ...]
    comment: str = ""


class Hook(NamedTuple):
    """Where a base chain is attached."""

    type: str
    hook: int
    priority: int


class CountedRule(NamedTuple):
    """What the counter of a rule says; ``denied``: the rule drops or rejects."""

    table: str
    chain: str
    comment: str
    denied: bool
    packets: int


class KernelSet(NamedTuple):
    """A set's shape; ``data_type`` and ``data_length`` are those of a map's values, or 0; verdicts have no length."""

    name: str
    key_type: int
    key_length: int
    flags: int
    data_type: int = 0
    data_length: int = 0


class KernelElement(NamedTuple):
    """An element as the kernel prints it; ``chain`` is where a verdict map's goes to, ``data`` another map's value."""

    key: bytes
    key_end: bytes | None
    interval_end: bool
    chain: str = ""
    data: bytes = b""


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


NOT_IN_KERNEL = (errno.EINVAL, errno.EOPNOTSUPP)
"""nfnetlink's answers, to a request for tables, of a kernel without nf_tables."""


def be32(value: int) -> bytes:
    return struct.pack(">I", value & 0xFFFFFFFF)


_VERDICT_TYPE: Final = be32(NFT_DATA_VERDICT)


def name(text: str) -> bytes:
    return text.encode() + b"\0"


def interface_name(text: str) -> bytes:
    """An interface name as a 16-byte key field."""
    return text.encode().ljust(INTERFACE_NAME_BYTES, b"\0")


# --- messages ----------------------------------------------------------------------------------------------------


def request(command: int, flags: int, family: int, *parts: bytes) -> Request:
    """``family``: a ``Family``, or NFPROTO_ARP."""
    header = struct.pack(">BBH", NFPROTO[family], 0, 0)
    return Request(NFNL_SUBSYS_NFTABLES << 8 | command, flags, header + b"".join(parts))


def batch(requests: Sequence[Request]) -> list[Request]:
    """Wrap requests into one transaction; the first of ``requests`` has index 1 in the result."""
    return [_BATCH_BEGIN, *requests, _BATCH_END]


def new_table(family: Family, table: str) -> Request:
    return request(NEWTABLE, NLM_F_CREATE, family, attribute(1, name(table)))


def wake_table(family: Family, table: str) -> Request:
    """Set a standing table's flags to none: one that is dormant has its rules looked at again."""
    return request(NEWTABLE, NLM_F_CREATE, family, attribute(1, name(table)), attribute(TABLE_FLAGS, be32(0)))


def delete_table(family: int, table: str) -> Request:
    return request(DELTABLE, 0, family, attribute(1, name(table)))


def new_chain(family: Family, table: str, chain: str, hook: Hook | None = None) -> Request:
    parts = [attribute(CHAIN_TABLE, name(table)), attribute(CHAIN_NAME, name(chain))]
    if hook is not None:
        where = nested(CHAIN_HOOK, attribute(1, be32(hook.hook)), attribute(2, be32(hook.priority)))
        parts += [where, attribute(CHAIN_POLICY, be32(NF_ACCEPT)), attribute(CHAIN_TYPE, name(hook.type))]
    return request(NEWCHAIN, NLM_F_CREATE, family, *parts)


def delete_chain(family: Family, table: str, chain: str) -> Request:
    return request(DELCHAIN, 0, family, attribute(CHAIN_TABLE, name(table)), attribute(CHAIN_NAME, name(chain)))


def new_rule(
    family: Family, table: str, chain: str, rule: NftRule, *, last: bool = True, protocol: int | None = None
) -> Request:
    """Add a rule at the end or at the begin of a chain; extensions of xtables are told the ``protocol`` they match."""
    parts = [attribute(RULE_TABLE, name(table)), attribute(RULE_CHAIN, name(chain))]
    parts.append(nested(RULE_EXPRESSIONS, *(_encode_expression(one) for one in rule.expressions)))
    if protocol is not None:
        parts.append(nested(RULE_COMPAT, attribute(1, be32(protocol)), attribute(2, be32(0))))
    if rule.comment:
        text = name(rule.comment)
        parts.append(attribute(RULE_USERDATA, bytes((UDATA_RULE_COMMENT, len(text))) + text))
    return request(NEWRULE, NLM_F_CREATE | (NLM_F_APPEND if last else 0), family, *parts)


def delete_rule(family: Family, table: str, chain: str, handle: int) -> Request:
    where = attribute(RULE_TABLE, name(table)), attribute(RULE_CHAIN, name(chain))
    return request(DELRULE, 0, family, *where, attribute(RULE_HANDLE, struct.pack(">Q", handle)))


def flush_chain(family: Family, table: str, chain: str) -> Request:
    """Delete all rules of a chain: a DELRULE without a handle."""
    return request(DELRULE, 0, family, attribute(RULE_TABLE, name(table)), attribute(RULE_CHAIN, name(chain)))


def new_set(
    family: Family, table: str, shape: KernelSet, set_id: int, fields: Sequence[int] = (), *, comment: str = ""
) -> Request:
    """Create a set; ``fields`` are the byte lengths of a concatenation with intervals (Linux 5.6)."""
    parts = [
        attribute(SET_TABLE, name(table)),
        attribute(SET_NAME, name(shape.name)),
        attribute(SET_FLAGS, be32(shape.flags)),
        attribute(SET_KEY_TYPE, be32(shape.key_type)),
        attribute(SET_KEY_LEN, be32(shape.key_length)),
        attribute(SET_ID, be32(set_id)),
        attribute(SET_USERDATA, _set_userdata(shape, fields, comment)),
    ]
    if shape.data_type:
        parts.append(attribute(SET_DATA_TYPE, be32(shape.data_type)))
    if shape.data_length:
        parts.append(attribute(SET_DATA_LEN, be32(shape.data_length)))
    if fields:
        concat = nested(2, *(nested(1, attribute(1, be32(length))) for length in fields))
        parts.append(nested(SET_DESC, concat))
    return request(NEWSET, NLM_F_CREATE, family, *parts)


def delete_set(family: Family, table: str, set_name: str) -> Request:
    return request(DELSET, 0, family, attribute(SET_TABLE, name(table)), attribute(SET_NAME, name(set_name)))


def _set_userdata(shape: KernelSet, fields: Sequence[int], comment: str) -> bytes:
    """What libnftables wants to know of a set to print it, and the comment, as ``nft`` would write it."""
    in_host_order = shape.key_type in (TYPE_MARK, TYPE_IFNAME)
    order = BYTEORDER_HOST_ENDIAN if in_host_order else 0 if fields else BYTEORDER_BIG_ENDIAN
    text = name(comment) if comment else b""
    about = bytes((UDATA_SET_COMMENT, len(text))) + text if comment else b""
    data = struct.pack("=BBI", UDATA_SET_DATABYTEORDER, 4, BYTEORDER_BIG_ENDIAN) if shape.data_length else b""
    return struct.pack("=BBI", UDATA_SET_KEYBYTEORDER, 4, order) + data + about


@cache
def _key_headers(length: int) -> bytes:
    """The three attribute headers before the key of an element that has nothing but a key."""
    return nested(1, nested(ELEMENT_KEY, attribute(1, bytes(length))))[: -((length + 3) & ~3)]


def element(key: bytes, *, key_end: bytes | None = None, interval_end: bool = False, data: bytes = b"") -> bytes:
    """One list entry of an element message; ``data`` is what a map has for the key."""
    if key_end is None and not interval_end and not data and not len(key) & 3:
        return _key_headers(len(key)) + key
    parts = [nested(ELEMENT_KEY, attribute(1, key))]
    if data:
        parts.append(nested(ELEMENT_DATA, attribute(1, data)))
    if interval_end:
        parts.append(attribute(ELEMENT_FLAGS, be32(NFT_SET_ELEM_INTERVAL_END)))
    if key_end is not None:
        parts.append(nested(ELEMENT_KEY_END, attribute(1, key_end)))
    return nested(1, *parts)


def map_element(key: bytes, chain: str | None) -> bytes:
    """One list entry of a verdict map: goto a chain; without a chain, as it is named in a deletion."""
    parts = [nested(ELEMENT_KEY, attribute(1, key))]
    if chain is not None:
        goto = attribute(1, be32(NFT_GOTO)) + attribute(2, name(chain))
        parts.append(nested(ELEMENT_DATA, nested(2, goto)))
    return nested(1, *parts)


def set_elements(command: int, family: Family, table: str, set_name: str, elements: Iterable[bytes]) -> Request:
    """NEWSETELEM or DELSETELEM with the given list entries (at most 64 KiB: an attribute's limit)."""
    entries = b"".join(elements)
    flags = NLM_F_CREATE if command == NEWSETELEM else 0
    payload = _in_set(family, table, set_name) + ATTRIBUTE.pack(4 + len(entries), 3 | NLA_F_NESTED) + entries
    return Request(NFNL_SUBSYS_NFTABLES << 8 | command, flags, payload)


@cache
def _in_set(family: Family, table: str, set_name: str) -> bytes:
    """The begin of every element message of one set; there are a dozen sets."""
    return request(0, 0, family, attribute(1, name(table)), attribute(2, name(set_name))).payload


def flush_set(family: Family, table: str, set_name: str) -> Request:
    return request(DELSETELEM, 0, family, attribute(1, name(table)), attribute(2, name(set_name)))


def dump(command: int, family: int, *parts: bytes) -> Request:
    """A dump of chains, sets or rules (filtered by table where the kernel can) or of one set's elements."""
    return request(command, 0, family, *parts)


def get_elements(family: Family, table: str, set_name: str) -> Request:
    return dump(GETSETELEM, family, attribute(1, name(table)), attribute(2, name(set_name)))


# --- expressions -------------------------------------------------------------------------------------------------


def payload(base: int, offset: int, length: int, register: int = REG_1) -> Expression:
    return Expression("payload", ((1, be32(register)), (2, be32(base)), (3, be32(offset)), (4, be32(length))))


RTN_LOCAL = 2  # linux/rtnetlink.h
_FIB_RESULT_ADDRTYPE, _FIB_SOURCE, _FIB_OUTPUT = 3, 1, 16  # NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_SADDR, NFTA_FIB_F_OIF


def source_type(*, of_output: bool) -> Expression:
    """What the source address is for the node (RTN_LOCAL: its own), or for the output interface alone."""
    flags = _FIB_SOURCE | (_FIB_OUTPUT if of_output else 0)
    return Expression("fib", ((1, be32(REG_1)), (2, be32(_FIB_RESULT_ADDRTYPE)), (3, be32(flags))))


def meta(key: int, register: int = REG_1) -> Expression:
    return Expression("meta", ((1, be32(register)), (2, be32(key))))


def compare(data: bytes, operation: int = NFT_CMP_EQ) -> Expression:
    return Expression("cmp", ((1, be32(REG_1)), (2, be32(operation)), (3, attribute(1, data))))


def mark(value: int) -> bytes:
    """A mark as the kernel holds it: in the order of the machine."""
    return struct.pack("=I", value)


def lookup_verdict(map_name: str) -> Expression:
    """Go where a verdict map says for register 1, if it says anything."""
    return Expression("lookup", ((1, name(map_name)), (2, be32(REG_1)), (3, be32(REG_VERDICT))))


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
    return Expression("log", ((2, name(prefix)), (5, be32(level))))


def notrack() -> Expression:
    return Expression("notrack", ())


def counter() -> Expression:
    """Count packets and bytes, from 0; what is counted is no part of the rule's comparable form."""
    return Expression("counter", ())


def port_set(ranges: Iterable[tuple[int, int]], *, negated: bool = False) -> Expression:
    """Register 1 is a port in one of the ranges, or in none: see ``PORTS``. They must not overlap or touch."""
    content = b"".join(struct.pack(">HH", first, last) for first, last in sorted(ranges))
    return Expression(PORTS, ((1, content), *(((5, be32(1)),) if negated else ())))


def port_ranges(expression: Expression) -> list[tuple[int, int]]:
    """The content of a ``PORTS`` expression."""
    return list(struct.iter_unpack(">HH", expression.attributes[0][1]))


def port_set_requests(
    family: Family, table: str, expression: Expression, set_id: int
) -> tuple[list[Request], Expression]:
    """Messages that make an anonymous set of ports within a transaction, and the lookup that refers to it."""
    ranges = port_ranges(expression)
    single = all(first == last for first, last in ranges)
    flags = NFT_SET_ANONYMOUS | NFT_SET_CONSTANT | (0 if single else NFT_SET_INTERVAL)
    shape = KernelSet("__set%d", TYPE_INET_SERVICE, 2, flags)
    entries: list[bytes] = []
    for first, last in ranges:
        entries.append(element(struct.pack(">H", first)))
        if not single and last < 0xFFFF:
            entries.append(element(struct.pack(">H", last + 1), interval_end=True))
    fill = set_elements(NEWSETELEM, family, table, "__set%d", entries)
    fill = fill._replace(payload=fill.payload + attribute(4, be32(set_id)))
    found = Expression(
        "lookup", ((1, name("__set%d")), (2, be32(REG_1)), (4, be32(set_id)), *expression.attributes[1:])
    )
    return [new_set(family, table, shape, set_id), fill], found


def named_ports(rule: NftRule, contents: Mapping[str, Sequence[tuple[int, int]]]) -> NftRule:
    """A rule as it was read, with lookups in anonymous sets as ``PORTS``; ``contents`` by the kernel's names."""
    return rule._replace(expressions=tuple(_named_ports(one, contents) for one in rule.expressions))


def anonymous_sets(rule: NftRule | str) -> Iterator[str]:
    """Names of anonymous sets that a rule looks into; ``__set%d`` is libnftables' and our way to name them."""
    if isinstance(rule, NftRule):
        for one in rule.expressions:
            if one.name == "lookup" and one.attributes[0][1].startswith(b"__set"):
                yield _text(one.attributes[0][1])


def _named_ports(one: Expression, contents: Mapping[str, Sequence[tuple[int, int]]]) -> Expression:
    if one.name != "lookup":
        return one
    ranges = contents.get(_text(one.attributes[0][1]))
    negated = any(kind == 5 for kind, _ in one.attributes)
    return one if ranges is None else port_set(ranges, negated=negated)


def decode_port_ranges(elements: Iterable[KernelElement], flags: int) -> list[tuple[int, int]]:
    """Ranges from the elements of an anonymous set of ports with these flags."""
    # Two bytes, and two that fill the attribute up.
    ends = sorted((int.from_bytes(one.key[:2], "big"), not one.interval_end) for one in elements)
    if not flags & NFT_SET_INTERVAL:
        return [(port, port) for port, _ in ends]
    after = [port - 1 for port, _ in ends[1:]] + [0xFFFF]
    return [(port, last) for (port, begins), last in zip(ends, after, strict=True) if begins]


def lookup_data(map_name: str) -> Expression:
    """Register 1 becomes what a map has for it; the rule ends if that is nothing."""
    return Expression("lookup", ((1, name(map_name)), (2, be32(REG_1)), (3, be32(REG_1))))


def lookup(set_name: str, *, negated: bool = False) -> Expression:
    flags = ((5, be32(1)),) if negated else ()
    return Expression("lookup", ((1, name(set_name)), (2, be32(REG_1)), *flags))


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


def verdict(code: int, chain: str | None = None) -> Expression:
    inner = attribute(1, be32(code)) + (attribute(2, name(chain)) if chain else b"")
    return Expression("immediate", ((1, be32(REG_VERDICT)), (2, attribute(2, inner))))


_DROP: Final = b"".join(attribute(kind, value) for kind, value in verdict(NF_DROP).attributes)
_COUNTER, _REJECT = attribute(1, name("counter")), attribute(1, name("reject"))
"""What tells an expression from others where it is not taken apart: the drop by its verdict, others by their name."""


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


def _encode_expression(expression: Expression) -> bytes:
    data = (attribute(kind, value) for kind, value in expression.attributes)
    return nested(1, attribute(1, name(expression.name)), nested(2, *data))


# --- decoders ----------------------------------------------------------------------------------------------------


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def _number(value: bytes) -> int:
    return int.from_bytes(value, "big")


def message_attributes(message: Message) -> dict[int, bytes]:
    """Attributes after the four bytes of ``nfgenmsg``."""
    return dict(attributes(message.payload, 4))


def decode_chain(message: Message) -> tuple[str, str, Hook | None, int]:
    """(table, chain, hook or None, policy)."""
    found = message_attributes(message)
    hook = None
    if CHAIN_HOOK in found:
        where = dict(attributes(found[CHAIN_HOOK]))
        priority = struct.unpack(">i", where[2])[0]
        hook = Hook(_text(found.get(CHAIN_TYPE, b"")), _number(where[1]), priority)
    policy = _number(found[CHAIN_POLICY]) if CHAIN_POLICY in found else NF_ACCEPT
    return _text(found[CHAIN_TABLE]), _text(found[CHAIN_NAME]), hook, policy


def decode_rule(message: Message) -> tuple[str, str, NftRule]:
    """(table, chain, rule in comparable form)."""
    found = message_attributes(message)
    expressions = tuple(
        _decode_expression(value) for kind, value in attributes(found.get(RULE_EXPRESSIONS, b"")) if kind == 1
    )
    return _text(found[RULE_TABLE]), _text(found[RULE_CHAIN]), NftRule(expressions, _comment(found))


def _comment(rule: Mapping[int, bytes]) -> str:
    userdata = rule.get(RULE_USERDATA, b"")
    if len(userdata) > 2 and userdata[0] == UDATA_RULE_COMMENT:
        return _text(userdata[2 : 2 + userdata[1]])
    return ""


def decode_counted(message: Message) -> CountedRule | None:
    """The counter of a rule, None if it has none. Expressions are not taken apart: a large table has thousands."""
    found = message_attributes(message)
    expressions = found.get(RULE_EXPRESSIONS, b"")
    at = expressions.find(_COUNTER)
    if at < 0:
        return None
    _, values = next(attributes(expressions, at + len(_COUNTER)))
    denied = any(expressions.find(one, at) >= 0 for one in (_DROP, _REJECT))
    packets = _number(dict(attributes(values))[COUNTER_PACKETS])
    return CountedRule(_text(found[RULE_TABLE]), _text(found[RULE_CHAIN]), _comment(found), denied, packets)


def rule_handle(message: Message) -> int:
    """The number of a rule in its table, from a rule message."""
    return _number(message_attributes(message)[RULE_HANDLE])


def _decode_expression(data: bytes) -> Expression:
    found = dict(attributes(data))
    kind = _text(found.get(1, b""))
    compared = _COMPARED.get(kind)
    values = [
        (number, value)
        for number, value in attributes(found.get(2, b""))
        if (compared is None or number in compared) and not (kind == "lookup" and number == 5 and not any(value))
    ]
    return Expression(kind, tuple(sorted(values)))


def decode_table(message: Message) -> tuple[str, int]:
    """(name, flags)."""
    found = message_attributes(message)
    return _text(found[1]), _number(found.get(TABLE_FLAGS, b"\0"))


def decode_set(message: Message) -> tuple[str, KernelSet]:
    """(table, shape)."""
    found = message_attributes(message)
    flags = _number(found.get(SET_FLAGS, b"\0"))
    shape = KernelSet(
        _text(found[SET_NAME]),
        _number(found.get(SET_KEY_TYPE, b"\0")),
        _number(found.get(SET_KEY_LEN, b"\0")),
        flags,
        _number(found.get(SET_DATA_TYPE, b"\0")),
        _number(found.get(SET_DATA_LEN, b"\0")) if found.get(SET_DATA_TYPE) != _VERDICT_TYPE else 0,
    )
    return _text(found[SET_TABLE]), shape


def table_of(message: Message, command: int) -> str:
    """The table that a notification speaks of; every object has it as its first attribute."""
    return _text(message_attributes(message).get(1, b"")) if command != NEWGEN else ""


def chain_of(message: Message, command: int) -> str:
    """The chain of a chain or rule message."""
    number = RULE_CHAIN if command in (NEWRULE, DELRULE) else CHAIN_NAME
    return _text(message_attributes(message).get(number, b""))


def set_of(message: Message) -> str:
    """The set of an element message."""
    return _text(message_attributes(message).get(2, b""))


def decode_keys(message: Message, length: int) -> list[bytes] | None:
    """Keys of the elements in one datagram of a dump, if all are ``length`` bytes (a multiple of four) and no more.

    None if one has anything else: taken apart in one go because a full node has twenty thousand.
    """
    data = message_attributes(message).get(3, b"")
    headers = _printed_key_headers(length)
    pairs = (
        list(struct.iter_unpack(f"={len(headers)}s{length}s", data)) if len(data) % (len(headers) + length) == 0 else []
    )
    keys = [key for before, key in pairs if before == headers]
    return keys if len(keys) * (len(headers) + length) == len(data) else None


@cache
def _printed_key_headers(length: int) -> bytes:
    """``_key_headers`` as the kernel prints them, without the flag of nested attributes."""
    return b"".join(ATTRIBUTE.pack(length + inside, 1) for inside in (12, 8, 4))


def _map_value(data: bytes) -> bytes:
    """The value of an element of a map; empty for a verdict."""
    return dict(attributes(data)).get(1, b"")


def _verdict_chain(data: bytes) -> str:
    """The chain that an element of a verdict map goes to; empty for any other verdict."""
    verdict = dict(attributes(dict(attributes(data)).get(2, b"")))
    return _text(verdict.get(2, b"")) if _number(verdict.get(1, b"\0")) == NFT_GOTO else ""


def decode_elements(message: Message) -> list[KernelElement]:
    """Elements of one datagram of an element dump."""
    elements = []
    for _, entry in attributes(message_attributes(message).get(3, b"")):
        found = dict(attributes(entry))
        key_end = found.get(ELEMENT_KEY_END)
        elements.append(
            KernelElement(
                found[ELEMENT_KEY][4:] if ELEMENT_KEY in found else b"",
                key_end[4:] if key_end is not None else None,
                bool(_number(found.get(ELEMENT_FLAGS, b"\0")) & NFT_SET_ELEM_INTERVAL_END),
                _verdict_chain(found[ELEMENT_DATA]) if ELEMENT_DATA in found else "",
                _map_value(found[ELEMENT_DATA]) if ELEMENT_DATA in found else b"",
            )
        )
    return elements
