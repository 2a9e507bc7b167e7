"""Which blocks a node tries, in which order, and of which pools. Pure.

Two nodes begin at different places of a pool, so that they seldom want one block; a node begins at the same place
each time, so that a claim that a crash left half done is found and ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

from felixpy.model.net import Family, Net
from felixpy.model.resources import IPPool

FNV_OFFSET, FNV_PRIME = 0x811C9DC5, 0x01000193


def fnv32(text: str) -> int:
    """FNV-1, 32 bits, as Go's ``hash/fnv.New32``."""
    value = FNV_OFFSET
    for byte in text.encode():
        value = (value * FNV_PRIME & 0xFFFFFFFF) ^ byte
    return value


def blocks_of(pool: Net, length: int, node: str) -> Iterator[Net]:
    """Every block of a pool once: from the node's own place upwards, then from the beginning."""
    count = 1 << (length - pool.length)
    size = 1 << (len(pool.packed) * 8 - length)
    first, start = int.from_bytes(pool.packed, "big"), fnv32(node) % count
    for number in chain(range(start, count), range(start)):
        yield Net((first + number * size).to_bytes(len(pool.packed), "big"), length)


def pools_for(
    pools: Iterable[IPPool],
    family: Family,
    asked: Sequence[str],
    node_labels: Mapping[str, str],
    namespace_labels: Mapping[str, str],
    use: str = "Workload",
) -> tuple[list[IPPool], list[str]]:
    """The pools that addresses of a family may come of, the widest first, and what was asked for and is none.

    Pools that are asked for, by name or CIDR, need not select the node and the namespace; disabled ones give nothing.
    """
    able = [pool for pool in pools if not pool.disabled and pool.cidr.family is family and use in pool.allowed_uses]
    able.sort(key=lambda pool: (pool.cidr.length, pool.cidr, pool.key))
    if asked:
        by_name = {name: pool for pool in able for name in (pool.key.name, str(pool.cidr))}
        found = [by_name[_canonical(text)] for text in asked if _canonical(text) in by_name]
        return found, [text for text in asked if _canonical(text) not in by_name]
    return [pool for pool in able if _selects(pool, node_labels, namespace_labels)], []


def _canonical(text: str) -> str:
    try:
        return str(Net.parse(text)) if "/" in text else text
    except ValueError:
        return text


def _selects(pool: IPPool, node_labels: Mapping[str, str], namespace_labels: Mapping[str, str]) -> bool:
    if pool.manual:
        return False
    return pool.node_selector.matches(node_labels) and pool.namespace_selector.matches(namespace_labels)
