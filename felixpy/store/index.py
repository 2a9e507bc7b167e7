"""Keys by the place where they meet: an interface, an address, a node. Pure.

Most places have a few keys, and there are tens of thousands of places: a tuple takes 56 bytes where a set takes 216,
and for the twenty pods of a deployment 200 where a set takes 2,264.
A place with many keys (all routes through the uplink) has a set, so that no change costs more the more keys there are.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Generic, TypeVar

P = TypeVar("P")
K = TypeVar("K")

FEW = 32

Some = tuple[K, ...] | set[K]
"""Keys of one place."""


def added(keys: Some[K], key: K) -> Some[K]:
    """With another key; a set is changed."""
    if key in keys:
        return keys
    if isinstance(keys, set):
        keys.add(key)
        return keys
    return (*keys, key) if len(keys) < FEW else {*keys, key}


def without(keys: Some[K], key: K) -> Some[K]:
    """Without a key; a set is changed."""
    if isinstance(keys, set):
        keys.discard(key)
        return keys
    return tuple(one for one in keys if one != key)


class Index(Generic[P, K]):
    """Which keys are at a place. What is returned is valid until the next change."""

    def __init__(self) -> None:
        self._at: dict[P, Some[K]] = {}

    def __len__(self) -> int:
        """At how many places there are keys."""
        return len(self._at)

    def at(self, place: P) -> Collection[K]:
        return self._at.get(place, ())

    def places(self) -> Collection[P]:
        """Where there are keys; valid until the next change."""
        return self._at.keys()

    def add(self, place: P, key: K) -> Collection[K]:
        """Put a key at a place; returns all that share it."""
        keys = self._at.get(place)
        if keys is None:
            keys = self._at[place] = (key,)
        elif key not in keys:
            keys = self._at[place] = added(keys, key)
        return keys

    def discard(self, place: P, key: K) -> Collection[K]:
        """Take a key from a place; returns those that remain there."""
        keys = without(self._at.get(place, ()), key)
        if keys:
            self._at[place] = keys
        else:
            self._at.pop(place, None)
        return keys
