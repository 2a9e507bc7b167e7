"""Keys by the place where they meet: an interface, an address, a node. Pure.

Most places have a few keys, and there are tens of thousands of places: a tuple takes 56 bytes where a set takes 216.
A place with many keys (all routes through the uplink) has a set, so that no change costs more the more keys there are.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Generic, TypeVar

P = TypeVar("P")
K = TypeVar("K")

FEW = 8


class Index(Generic[P, K]):
    """Which keys are at a place. What is returned is valid until the next change."""

    def __init__(self) -> None:
        self._at: dict[P, tuple[K, ...] | set[K]] = {}

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
            if isinstance(keys, set):
                keys.add(key)
            else:
                keys = (*keys, key) if len(keys) < FEW else {*keys, key}
                self._at[place] = keys
        return keys

    def discard(self, place: P, key: K) -> Collection[K]:
        """Take a key from a place; returns those that remain there."""
        keys = self._at.get(place, ())
        if isinstance(keys, set):
            keys.discard(key)
        else:
            keys = tuple(one for one in keys if one != key)
            self._at[place] = keys
        if not keys:
            self._at.pop(place, None)
        return keys
