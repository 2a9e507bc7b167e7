"""Who claims a place (an address, an interface) and who has it: the first by rank. Pure.

Where few claim it, every change concerns all of them. Where many do, a change concerns the one that it is about, the
one that had the place and the one that has it: nothing that is told of the others may name the owner.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Collection
from typing import Any, Generic, NamedTuple, TypeVar

from felixpy.model.keys import ResourceKey
from felixpy.store.index import Index

P = TypeVar("P")
Rank = tuple[Any, ...]

CROWD = 8
"""With more claimants, a change does not concern all of them."""


class _Crowd(NamedTuple):
    """Many claimants of one place, in the order of their ranks."""

    in_order: list[tuple[Rank, ResourceKey]]
    ranks: dict[ResourceKey, Rank]

    def put(self, key: ResourceKey, rank: Rank) -> None:
        self.ranks[key] = rank
        insort(self.in_order, (rank, key))

    def take(self, key: ResourceKey) -> None:
        del self.in_order[bisect_left(self.in_order, (self.ranks.pop(key), key))]


class Claims(Generic[P]):
    """Claimants by place. ``rank`` is asked for a key while it is a claimant; lower comes first."""

    def __init__(self, rank: Callable[[ResourceKey], Rank]) -> None:
        self._rank = rank
        self._index: Index[P, ResourceKey] = Index()
        self._crowds: dict[P, _Crowd] = {}

    def at(self, place: P) -> Collection[ResourceKey]:
        """All claimants."""
        return self._index.at(place)

    def is_crowded(self, place: P) -> bool:
        """Whether so many claim a place that a change does not concern all of them."""
        return place in self._crowds

    def owner(self, place: P) -> ResourceKey | None:
        """Who has the place."""
        if crowd := self._crowds.get(place):
            return crowd.in_order[0][1]
        keys = self._index.at(place)
        if len(keys) == 1:  # nearly always
            return next(iter(keys))
        return min(keys, key=self._rank, default=None)

    def add(self, place: P, key: ResourceKey) -> Collection[ResourceKey]:
        """Returns whom it concerns."""
        crowd = self._crowds.get(place)
        if crowd is None:
            keys = self._index.add(place, key)
            if len(keys) > CROWD:
                crowd = self._crowds[place] = _Crowd([], {})
                for one in keys:
                    crowd.put(one, self._rank(one))
            return keys
        before = self.owner(place)
        self._index.add(place, key)
        crowd.put(key, self._rank(key))
        return _these(key, before, self.owner(place))

    def discard(self, place: P, key: ResourceKey) -> Collection[ResourceKey]:
        """Returns whom it concerns of those that remain."""
        crowd = self._crowds.get(place)
        keys = self._index.discard(place, key)
        if crowd is None:
            return keys
        before = self.owner(place)
        crowd.take(key)
        if len(keys) <= CROWD:
            del self._crowds[place]
            return keys
        after = self.owner(place)
        return _these(after) if before != after else ()

    def ranked_anew(self, place: P, key: ResourceKey) -> Collection[ResourceKey]:
        """The rank of a claimant is another; returns whom it concerns."""
        crowd = self._crowds.get(place)
        if crowd is None:
            keys = self._index.at(place)
            return keys if len(keys) > 1 else ()
        before = self.owner(place)
        crowd.take(key)
        crowd.put(key, self._rank(key))
        after = self.owner(place)
        return _these(before, after) if before != after else ()


def _these(*keys: ResourceKey | None) -> set[ResourceKey]:
    return {key for key in keys if key is not None}


class Youngest(str):
    """A time of creation, of which the later one comes first."""

    __slots__ = ()

    def __lt__(self, other: str) -> bool:
        return str.__gt__(self, other)

    def __gt__(self, other: str) -> bool:
        return str.__lt__(self, other)
