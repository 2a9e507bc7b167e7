"""Which nodes are led to through which pools, and by what: blocks, borrowed addresses, addresses of tunnels. Pure.

Each (node, pool) is a way: one nexthop in the kernel, whatever the number of blocks. It is calculated by itself, so
that a change of a pool concerns one way of each node and nothing else of it, and no block.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from felixpy.model.resources import Kind, ResourceKey
from felixpy.store.index import Index


def way_key(node: str, pool: ResourceKey) -> ResourceKey:
    """A way as an object that is calculated: a part of a node, told from it by a namespace, which no node has."""
    return ResourceKey(Kind.NODE, node, pool.name)


def is_way(key: ResourceKey) -> bool:
    return bool(key.namespace) and key.kind is Kind.NODE


def whole(key: ResourceKey) -> ResourceKey:
    """The object that people know of which this is a part, or the same."""
    return ResourceKey(Kind.NODE, key.name) if is_way(key) else key


class Ways:
    """Ways by node and by pool, and what leads there."""

    def __init__(self) -> None:
        self._of: dict[ResourceKey, frozenset[ResourceKey]] = {}
        self._things: Index[ResourceKey, ResourceKey] = Index()
        self._by_node: Index[str, ResourceKey] = Index()
        self._by_pool: Index[str, ResourceKey] = Index()

    def all(self) -> Collection[ResourceKey]:
        """Every way; as all that is returned here, valid until the next change."""
        return self._things.places()

    def nodes(self) -> Collection[str]:
        """Every node that something leads to."""
        return self._by_node.places()

    def of_node(self, name: str) -> Collection[ResourceKey]:
        """The ways to a node."""
        return self._by_node.at(name)

    def through(self, pool: ResourceKey) -> Collection[ResourceKey]:
        """The ways to all nodes through a pool."""
        return self._by_pool.at(pool.name)

    def things(self, way: ResourceKey) -> Collection[ResourceKey]:
        """What leads along a way: blocks, and the node itself where its tunnel's address does."""
        return self._things.at(way)

    def lead(self, thing: ResourceKey, ways: Iterable[ResourceKey]) -> set[ResourceKey]:
        """Say along which ways a thing leads now. Returns those that begin or end with that."""
        old, new = self._of.pop(thing, frozenset()), frozenset(ways)
        if new:
            self._of[thing] = new
        changed = set()
        for way in old - new:
            if not self._things.discard(way, thing):
                self._by_node.discard(way.name, way)
                self._by_pool.discard(way.namespace, way)
                changed.add(way)
        for way in new - old:
            if len(self._things.add(way, thing)) == 1:
                self._by_node.add(way.name, way)
                self._by_pool.add(way.namespace, way)
                changed.add(way)
        return changed
