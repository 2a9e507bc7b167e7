"""Numbers of classes in one direction. Pure.

Numbers with few bits set come first: with nftables an endpoint is a member of a set per bit. Invariant: a number that
was given up is not given to another class before what the kernel had of it is gone (``settled``), so no endpoint is
ever taken for one of another class.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heappop, heappush

BITS = 12
"""Numbers of so many bits are given in the order of their bits; what does not fit comes after them."""

_PLACES = tuple(sorted(range(1 << BITS), key=lambda number: (number.bit_count(), number)))
_PLACE_OF = {number: place for place, number in enumerate(_PLACES)}


def number_at(place: int) -> int:
    return _PLACES[place] if place < len(_PLACES) else place


def place_of(number: int) -> int:
    return _PLACE_OF.get(number, number)


class Numbers:
    """Who has which number."""

    def __init__(self) -> None:
        self._next = 1
        self._free: list[int] = []
        self._resting: list[int] = []
        self._adopted: dict[str, int] = {}
        self._taken: set[int] = set()

    @property
    def highest(self) -> int:
        """How many were given, of those that were never given before."""
        return self._next

    def adopt(self, numbers: Mapping[str, int]) -> None:
        """Numbers that the kernel has for classes of these names: they get them again."""
        self._adopted = {name: number for name, number in numbers.items() if number not in self._taken}
        self._taken.update(self._adopted.values())

    def take(self, name: str) -> int:
        """A number for a new class."""
        if (adopted := self._adopted.pop(name, None)) is not None:
            return adopted
        while True:
            if self._free:
                place = heappop(self._free)
            else:
                place = self._next
                self._next += 1
            number = number_at(place)
            if number not in self._taken:
                self._taken.add(number)
                return number

    def give(self, number: int) -> None:
        """A class is gone."""
        self._resting.append(number)

    def settled(self) -> None:
        """The kernel has everything that was calculated: nothing bears the numbers that were given up."""
        for number in (*self._resting, *self._adopted.values()):
            self._taken.discard(number)
            if place_of(number) < self._next:
                heappush(self._free, place_of(number))
        self._resting.clear()
        self._adopted.clear()
