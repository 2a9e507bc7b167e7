"""nf_tables messages by nfnetlink: tables, chains, sets, elements and rules.

Numbers are from linux/netfilter/nf_tables.h; the bytes are compared with those of ``nft`` in the tests.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Final, NamedTuple

from felixpy.model.net import Family
from felixpy.netlink import expressions
from felixpy.netlink.expressions import NF_ACCEPT, NF_DROP, NFPROTO, NFT_GOTO, Expression
from felixpy.netlink.message import (
    ATTRIBUTE,
    NLA_F_NESTED,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_ECHO,
    Message,
    Request,
    attribute,
    attributes,
    be32,
    nested,
    number,
    text_attribute,
    text_of,
    zero_terminated,
)

NFNL_SUBSYS_NFTABLES = 10
NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 0x10, 0x11
NEWTABLE, GETTABLE, DELTABLE = 0, 1, 2
NEWCHAIN, GETCHAIN, DELCHAIN = 3, 4, 5
NEWRULE, GETRULE, DELRULE = 6, 7, 8
NEWSET, GETSET, DELSET = 9, 10, 11
NEWSETELEM, GETSETELEM, DELSETELEM = 12, 13, 14
NEWGEN = 15

HOOK_PREROUTING, HOOK_INPUT, HOOK_FORWARD, HOOK_OUTPUT, HOOK_POSTROUTING = range(5)

TABLE_FLAGS, NFT_TABLE_F_DORMANT = 2, 0x1
NFT_SET_ANONYMOUS, NFT_SET_CONSTANT, NFT_SET_INTERVAL, NFT_SET_MAP = 0x1, 0x2, 0x4, 0x8
NFT_SET_CONCAT = 0x80
NFT_SET_ELEM_INTERVAL_END = 0x1
SET_TABLE, SET_NAME, SET_FLAGS, SET_KEY_TYPE, SET_KEY_LEN, SET_DESC, SET_ID, SET_USERDATA = 1, 2, 3, 4, 5, 9, 10, 13
SET_DATA_TYPE, SET_DATA_LEN = 6, 7
ELEMENT_KEY, ELEMENT_DATA, ELEMENT_FLAGS, ELEMENT_KEY_END = 1, 2, 3, 10
RULE_TABLE, RULE_CHAIN, RULE_HANDLE, RULE_EXPRESSIONS, RULE_COMPAT, RULE_POSITION, RULE_USERDATA = 1, 2, 3, 4, 5, 6, 7
CHAIN_TABLE, CHAIN_HANDLE, CHAIN_NAME, CHAIN_HOOK, CHAIN_POLICY, CHAIN_TYPE = 1, 2, 3, 4, 5, 7

# libnftables' numbers of data types, which tell `nft list` how to print keys; a concatenation shifts by six bits.
TYPE_IPV4_ADDR, TYPE_IPV6_ADDR, TYPE_IFNAME = 7, 8, 41
TYPE_INET_PROTOCOL, TYPE_INET_SERVICE, TYPE_MARK = 12, 13, 19
NFT_DATA_VERDICT = 0xFFFFFF00
INTERFACE_NAME_BYTES = 16

COUNTER_PACKETS = 2

UDATA_RULE_COMMENT = 0
UDATA_SET_KEYBYTEORDER, UDATA_SET_DATABYTEORDER, UDATA_SET_COMMENT = 0, 1, 7
BYTEORDER_HOST_ENDIAN, BYTEORDER_BIG_ENDIAN = 1, 2


_FRAME = struct.pack(">BBH", 0, 0, NFNL_SUBSYS_NFTABLES)
_BATCH_BEGIN, _BATCH_END = Request(NFNL_MSG_BATCH_BEGIN, 0, _FRAME), Request(NFNL_MSG_BATCH_END, 0, _FRAME)


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


NOT_IN_KERNEL = (errno.EINVAL, errno.EOPNOTSUPP)
"""nfnetlink's answers, to a request for tables, of a kernel without nf_tables."""


_VERDICT_TYPE: Final = be32(NFT_DATA_VERDICT)


def interface_name(text: str) -> bytes:
    """An interface name as a 16-byte key field."""
    return text.encode().ljust(INTERFACE_NAME_BYTES, b"\0")


# --- messages ----------------------------------------------------------------------------------------------------


def request(command: int, flags: int, family: int, *parts: bytes) -> Request:
    """``family``: a ``Family``, or NFPROTO_ARP."""
    return Request(NFNL_SUBSYS_NFTABLES << 8 | command, flags, _header(family) + b"".join(parts))


@cache
def _header(family: int) -> bytes:
    return struct.pack(">BBH", NFPROTO[family], 0, 0)


def batch(requests: Sequence[Request]) -> list[Request]:
    """Wrap requests into one transaction; the first of ``requests`` has index 1 in the result."""
    return [_BATCH_BEGIN, *requests, _BATCH_END]


def new_table(family: Family, table: str) -> Request:
    return request(NEWTABLE, NLM_F_CREATE, family, text_attribute(1, table))


def wake_table(family: Family, table: str) -> Request:
    """Set a standing table's flags to none: one that is dormant has its rules looked at again."""
    return request(NEWTABLE, NLM_F_CREATE, family, text_attribute(1, table), attribute(TABLE_FLAGS, be32(0)))


def delete_table(family: int, table: str) -> Request:
    return request(DELTABLE, 0, family, text_attribute(1, table))


def new_chain(family: Family, table: str, chain: str, hook: Hook | None = None) -> Request:
    parts = [text_attribute(CHAIN_TABLE, table), text_attribute(CHAIN_NAME, chain)]
    if hook is not None:
        where = nested(CHAIN_HOOK, attribute(1, be32(hook.hook)), attribute(2, be32(hook.priority)))
        parts += [where, attribute(CHAIN_POLICY, be32(NF_ACCEPT)), text_attribute(CHAIN_TYPE, hook.type)]
    return request(NEWCHAIN, NLM_F_CREATE, family, *parts)


def get_chain(family: Family, table: str, chain: str) -> Request:
    return request(GETCHAIN, 0, family, text_attribute(CHAIN_TABLE, table), text_attribute(CHAIN_NAME, chain))


def rename_chain(family: Family, table: str, handle: int, name: str) -> Request:
    """Another name for a chain, from the end of the transaction on: within it, the chain has its old one."""
    where = text_attribute(CHAIN_TABLE, table), attribute(CHAIN_HANDLE, struct.pack(">Q", handle))
    return request(NEWCHAIN, 0, family, *where, text_attribute(CHAIN_NAME, name))


def delete_chain(family: Family, table: str, chain: str) -> Request:
    return request(
        DELCHAIN,
        0,
        family,
        text_attribute(CHAIN_TABLE, table),
        text_attribute(CHAIN_NAME, chain),
    )


def new_rule(
    family: Family,
    table: str,
    chain: str,
    rule: NftRule,
    *,
    last: bool = True,
    before: int | None = None,
    echo: bool = False,
    protocol: int | None = None,
) -> Request:
    """Add a rule at the end or at the begin of a chain, or ``before`` the rule of a handle; with ``echo`` the kernel
    tells the handle. Extensions of xtables are told the ``protocol`` they match.
    """
    parts = [_in_chain(table, chain)]
    if before is not None:
        parts.append(attribute(RULE_POSITION, struct.pack(">Q", before)))
    content = b"".join(rule.expressions)
    parts += ATTRIBUTE.pack(4 + len(content), RULE_EXPRESSIONS | NLA_F_NESTED), content
    if protocol is not None:
        parts.append(nested(RULE_COMPAT, attribute(1, be32(protocol)), attribute(2, be32(0))))
    if rule.comment:
        text = zero_terminated(rule.comment)
        parts.append(attribute(RULE_USERDATA, bytes((UDATA_RULE_COMMENT, len(text))) + text))
    flags = NLM_F_CREATE | (NLM_F_APPEND if last and before is None else 0) | (NLM_F_ECHO if echo else 0)
    return request(NEWRULE, flags, family, *parts)


@lru_cache(1)
def _in_chain(table: str, chain: str) -> bytes:
    """The begin of every rule message of one chain: its rules come one after another."""
    return text_attribute(RULE_TABLE, table) + text_attribute(RULE_CHAIN, chain)


def delete_rule(family: Family, table: str, chain: str, handle: int) -> Request:
    return request(DELRULE, 0, family, _in_chain(table, chain), attribute(RULE_HANDLE, struct.pack(">Q", handle)))


def flush_chain(family: Family, table: str, chain: str) -> Request:
    """Delete all rules of a chain: a DELRULE without a handle."""
    return request(DELRULE, 0, family, text_attribute(RULE_TABLE, table), text_attribute(RULE_CHAIN, chain))


def new_set(
    family: Family, table: str, shape: KernelSet, set_id: int, fields: Sequence[int] = (), *, comment: str = ""
) -> Request:
    """Create a set; ``fields`` are the byte lengths of a concatenation with intervals (Linux 5.6)."""
    parts = [
        text_attribute(SET_TABLE, table),
        text_attribute(SET_NAME, shape.name),
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
    return request(DELSET, 0, family, text_attribute(SET_TABLE, table), text_attribute(SET_NAME, set_name))


def _set_userdata(shape: KernelSet, fields: Sequence[int], comment: str) -> bytes:
    """What libnftables wants to know of a set to print it, and the comment, as ``nft`` would write it."""
    in_host_order = shape.key_type in (TYPE_MARK, TYPE_IFNAME)
    order = BYTEORDER_HOST_ENDIAN if in_host_order else 0 if fields else BYTEORDER_BIG_ENDIAN
    text = zero_terminated(comment) if comment else b""
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


def plain_elements(keys: Iterable[bytes]) -> list[bytes]:
    """``element`` of keys that have nothing else, of a length that is a multiple of four."""
    return [_key_headers(len(key)) + key for key in keys]


def map_element(key: bytes, chain: str | None) -> bytes:
    """One list entry of a verdict map: goto a chain; without a chain, as it is named in a deletion."""
    parts = [nested(ELEMENT_KEY, attribute(1, key))]
    if chain is not None:
        goto = attribute(1, be32(NFT_GOTO)) + text_attribute(2, chain)
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
    return request(0, 0, family, text_attribute(1, table), text_attribute(2, set_name)).payload


def flush_set(family: Family, table: str, set_name: str) -> Request:
    return request(DELSETELEM, 0, family, text_attribute(1, table), text_attribute(2, set_name))


def dump(command: int, family: int, *parts: bytes) -> Request:
    """A dump of chains, sets or rules (filtered by table where the kernel can) or of one set's elements."""
    return request(command, 0, family, *parts)


def get_rules(family: Family, table: str, chain: str) -> Request:
    return dump(GETRULE, family, _in_chain(table, chain))


def get_elements(family: Family, table: str, set_name: str) -> Request:
    return dump(GETSETELEM, family, text_attribute(1, table), text_attribute(2, set_name))


# --- decoders ----------------------------------------------------------------------------------------------------


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
        hook = Hook(text_of(found.get(CHAIN_TYPE, b"")), number(where[1]), priority)
    policy = number(found[CHAIN_POLICY]) if CHAIN_POLICY in found else NF_ACCEPT
    return text_of(found[CHAIN_TABLE]), text_of(found[CHAIN_NAME]), hook, policy


def decode_rule(message: Message) -> tuple[str, str, NftRule]:
    """(table, chain, rule in comparable form)."""
    found = message_attributes(message)
    decoded = tuple(
        expressions.decode(value) for kind, value in attributes(found.get(RULE_EXPRESSIONS, b"")) if kind == 1
    )
    return text_of(found[RULE_TABLE]), text_of(found[RULE_CHAIN]), NftRule(decoded, _comment(found))


def _comment(rule: Mapping[int, bytes]) -> str:
    userdata = rule.get(RULE_USERDATA, b"")
    if len(userdata) > 2 and userdata[0] == UDATA_RULE_COMMENT:
        return text_of(userdata[2 : 2 + userdata[1]])
    return ""


_DROP: Final = b"".join(attribute(kind, value) for kind, value in expressions.verdict(NF_DROP).attributes)
_COUNTER, _REJECT = text_attribute(1, "counter"), text_attribute(1, "reject")
"""What tells an expression from others where it is not taken apart: the drop by its verdict, others by their name."""


def decode_counted(message: Message) -> CountedRule | None:
    """The counter of a rule, None if it has none. Expressions are not taken apart: a large table has thousands."""
    found = message_attributes(message)
    content = found.get(RULE_EXPRESSIONS, b"")
    at = content.find(_COUNTER)
    if at < 0:
        return None
    _, values = next(attributes(content, at + len(_COUNTER)))
    denied = any(content.find(one, at) >= 0 for one in (_DROP, _REJECT))
    packets = number(dict(attributes(values))[COUNTER_PACKETS])
    return CountedRule(text_of(found[RULE_TABLE]), text_of(found[RULE_CHAIN]), _comment(found), denied, packets)


def rule_handle(message: Message) -> int:
    """The number of a rule in its table, from a rule message."""
    return number(message_attributes(message)[RULE_HANDLE])


def chain_handle(message: Message) -> int:
    """The number of a chain in its table, from a chain message."""
    return number(message_attributes(message)[CHAIN_HANDLE])


def decode_table(message: Message) -> tuple[str, int]:
    """(name, flags)."""
    found = message_attributes(message)
    return text_of(found[1]), number(found.get(TABLE_FLAGS, b"\0"))


def decode_set(message: Message) -> tuple[str, KernelSet]:
    """(table, shape)."""
    found = message_attributes(message)
    flags = number(found.get(SET_FLAGS, b"\0"))
    shape = KernelSet(
        text_of(found[SET_NAME]),
        number(found.get(SET_KEY_TYPE, b"\0")),
        number(found.get(SET_KEY_LEN, b"\0")),
        flags,
        number(found.get(SET_DATA_TYPE, b"\0")),
        number(found.get(SET_DATA_LEN, b"\0")) if found.get(SET_DATA_TYPE) != _VERDICT_TYPE else 0,
    )
    return text_of(found[SET_TABLE]), shape


def table_of(message: Message, command: int) -> str:
    """The table that a notification speaks of; every object has it as its first attribute."""
    return text_of(message_attributes(message).get(1, b"")) if command != NEWGEN else ""


def chain_of(message: Message, command: int) -> str:
    """The chain of a chain or rule message."""
    number = RULE_CHAIN if command in (NEWRULE, DELRULE) else CHAIN_NAME
    return text_of(message_attributes(message).get(number, b""))


def set_of(message: Message) -> str:
    """The set of an element message."""
    return text_of(message_attributes(message).get(2, b""))


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
    return text_of(verdict.get(2, b"")) if number(verdict.get(1, b"\0")) == NFT_GOTO else ""


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
                bool(number(found.get(ELEMENT_FLAGS, b"\0")) & NFT_SET_ELEM_INTERVAL_END),
                _verdict_chain(found[ELEMENT_DATA]) if ELEMENT_DATA in found else "",
                _map_value(found[ELEMENT_DATA]) if ELEMENT_DATA in found else b"",
            )
        )
    return elements
