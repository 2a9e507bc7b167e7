"""Anonymous sets of ports: beside the rule and under a number in the kernel, within the rule in its comparable form."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence

from felixpy.model.net import Family
from felixpy.netlink.expressions import REG_1, Expression, port_ranges, port_set
from felixpy.netlink.message import Request, attribute, be32, text_of, zero_terminated
from felixpy.netlink.nftables import (
    NEWSETELEM,
    NFT_SET_ANONYMOUS,
    NFT_SET_CONSTANT,
    NFT_SET_INTERVAL,
    TYPE_INET_SERVICE,
    KernelElement,
    KernelSet,
    NftRule,
    element,
    new_set,
    set_elements,
)


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
        "lookup", ((1, zero_terminated("__set%d")), (2, be32(REG_1)), (4, be32(set_id)), *expression.attributes[1:])
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
                yield text_of(one.attributes[0][1])


def _named_ports(one: Expression, contents: Mapping[str, Sequence[tuple[int, int]]]) -> Expression:
    if one.name != "lookup":
        return one
    ranges = contents.get(text_of(one.attributes[0][1]))
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
