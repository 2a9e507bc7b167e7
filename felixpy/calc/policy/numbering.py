"""Numbers of classes in one direction, from 1. Pure.

What they become in the kernel is each back-end's own (``carrier``); ``USUAL`` may cost an endpoint nothing there, so
the class that most endpoints are in should have it. Invariant: a number that was given up is not given to another class
before what the kernel had of it is gone (``settled``), so no endpoint is ever taken for one of another class.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heappop, heappush
from typing import Final

USUAL: Final = 1
"""The number of the class that endpoints are in of which nothing is said."""


class Numbers:
    """Who has which number."""

    def __init__(self) -> None:
        self._next = USUAL + 1
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

    @property
    def is_usual_free(self) -> bool:
        """Whether no class has the usual number."""
        return USUAL not in self._taken

    def take(self, name: str, *, usual: bool) -> int:
        """A number for a new class; ``usual``: the usual one, if that is free."""
        if (adopted := self._adopted.pop(name, None)) is not None:
            return adopted
        if usual and self.is_usual_free:
            self._taken.add(USUAL)
            return USUAL
        while True:
            if self._free:
                number = heappop(self._free)
            else:
                number = self._next
                self._next += 1
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
            if USUAL < number < self._next:
                heappush(self._free, number)
        self._resting.clear()
        self._adopted.clear()
