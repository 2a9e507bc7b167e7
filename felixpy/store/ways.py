"""Which nodes are led to through which pools, and by what: blocks, borrowed addresses, addresses of tunnels. Pure.

Each (node, pool) is one nexthop in the kernel, whatever the number of blocks; so a change of a pool or a node concerns
as many nexthops as it has, and no block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from felixpy.model.resources import Kind, ResourceKey

Way = tuple[str, ResourceKey]
"""Name of a node, key of a pool."""


class Ways:
    """Counts, by node and by pool, what leads there."""

    def __init__(self) -> None:
        self._of: dict[ResourceKey, frozenset[Way]] = {}
        self._pools: dict[str, Counter[ResourceKey]] = {}
        self._nodes: dict[ResourceKey, set[str]] = {}

    def nodes(self) -> Iterable[str]:
        """Every node that something leads to."""
        return self._pools.keys()

    def pools_of(self, node: str) -> list[ResourceKey]:
        """The pools through which something leads to a node, by name."""
        return sorted(self._pools.get(node, ()))

    def keys_through(self, pool: ResourceKey) -> set[ResourceKey]:
        """Keys of the nodes that are led to through a pool."""
        return {ResourceKey(Kind.NODE, name) for name in self._nodes.get(pool, ())}

    def lead(self, thing: ResourceKey, ways: Iterable[Way]) -> set[ResourceKey]:
        """Say where a thing leads to now. Returns keys of the nodes that have a pool more or less by it."""
        old, new = self._of.pop(thing, frozenset()), frozenset(ways)
        if new:
            self._of[thing] = new
        changed = set()
        for node, pool in old - new:
            counts = self._pools[node]
            counts[pool] -= 1
            if not counts[pool]:
                del counts[pool]
                changed.add(node)
                self._nodes[pool].discard(node)
                if not self._nodes[pool]:
                    del self._nodes[pool]
                if not counts:
                    del self._pools[node]
        for node, pool in new - old:
            counts = self._pools.setdefault(node, Counter())
            counts[pool] += 1
            if counts[pool] == 1:
                changed.add(node)
                self._nodes.setdefault(pool, set()).add(node)
        return {ResourceKey(Kind.NODE, name) for name in changed}
