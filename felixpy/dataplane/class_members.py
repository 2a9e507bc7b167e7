"""The classes of interfaces as members of sets: which bits an interface has, or which mark its pairs carry.

    nftables   to-policed { cali1 }  to-class-0 { cali1 }  to-class-3 { cali1 }      class 9
    iptables   to-workload { 10.48.0.1,cali1 skbmark 0x00280000/0x01fc0000 }

An interface without a class that asks something has no members besides its pairs: it costs as much as without policy.

Invariant: whoever has a number that no class bears, or that does not fit into the mark, is denied, and never open.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from felixpy.calc.entries import ANY_NET, ElementKey, SetName
from felixpy.calc.policy.carrier import BIT_SETS, POLICED, MarkBits, code_of, open_code
from felixpy.calc.policy.classes import Direction, EndpointClasses
from felixpy.dataplane.packet_filter import Member
from felixpy.model.net import Family
from felixpy.store.index import Index

PAIRS = {
    SetName.FROM_WORKLOAD: Direction.EGRESS,
    SetName.ALLOWED_SOURCES: Direction.EGRESS,
    SetName.TO_WORKLOAD: Direction.INGRESS,
}
"""Sets of pairs of an address, or a prefix, and an interface; and the direction whose class they carry."""


class Members(Protocol):
    """What of the table of members is needed here."""

    def want(self, key: Member, value: int | None) -> None: ...

    def drop(self, key: Member) -> None: ...


class ClassMembers:
    """Classes of the interfaces of one family. ``denied`` is how many interfaces have a direction without a class."""

    def __init__(self, family: Family, members: Members, *, marks_pairs: bool) -> None:
        """``marks_pairs``: members of pairs carry the class; else interfaces are members of sets of its bits."""
        self._family = family
        self._members = members
        self._classes: dict[str, EndpointClasses] = {}
        self._in_class: Index[tuple[Direction, int], str] = Index()
        self._open: set[tuple[Direction, int]] = set()
        self._pairs: Index[str, ElementKey] = Index()
        self._bits: dict[str, dict[Direction, set[SetName]]] = {}
        self._marks: MarkBits | None = None
        self._marks_pairs = marks_pairs
        self.denied = 0
        self.too_many: set[str] = set()
        """Interfaces that are denied because their class has a number that does not fit into the mark."""
        self.judged_anew: set[str] = set()
        """Interfaces that came to be among them, or left them, and of which that was not told yet."""

    def configure(self, marks: MarkBits) -> None:
        """Take another meaning of the mark; all members are looked at again."""
        if marks == self._marks:
            return
        self._marks = marks
        for interface in {*self._classes, *self._pairs.places()}:
            self._write(interface)

    def interfaces_of(self, direction: Direction, number: int) -> frozenset[str]:
        """Interfaces that have a class."""
        return frozenset(self._in_class.at((direction, number)))

    def want(self, interface: str, classes: EndpointClasses) -> None:
        """An interface has these classes."""
        old = self._classes.get(interface)
        if old == classes:
            return
        self._note(interface, old, classes)
        self._classes[interface] = classes
        self._write(interface)

    def knows(self, interface: str) -> bool:
        """Whether an interface has classes; one that is gone has none."""
        return interface in self._classes

    def capacity(self) -> int:
        """How many classes a direction can have."""
        return min(self._largest(direction) for direction in Direction)

    def drop(self, interface: str) -> None:
        """An interface has no classes any more: it is gone, or policy does not know it."""
        if (old := self._classes.pop(interface, None)) is not None:
            self._note(interface, old, None)
            self._write(interface)

    def open(self, direction: Direction, number: int, *, is_open: bool) -> None:
        """A class asks nothing, or asks something."""
        key = direction, number
        if (key in self._open) == is_open:
            return
        self._open ^= {key}
        for interface in list(self._in_class.at(key)):
            self._write(interface)

    def want_pair(self, key: ElementKey) -> None:
        """A pair of an address and an interface is wanted."""
        if self._marks_pairs:
            self._pairs.add(key.interface, key)
            self._members.want(key, self._mark(key.interface, PAIRS[key.set]))
        else:
            self._members.want(key, None)

    def drop_pair(self, key: ElementKey) -> None:
        if self._marks_pairs:
            self._pairs.discard(key.interface, key)
        self._members.drop(key)

    def _note(self, interface: str, old: EndpointClasses | None, new: EndpointClasses | None) -> None:
        for classes, sign in ((old, -1), (new, 1)):
            if classes is None:
                continue
            for direction, number in zip((Direction.INGRESS, Direction.EGRESS), classes, strict=True):
                if sign < 0:
                    self._in_class.discard((direction, number), interface)
                else:
                    self._in_class.add((direction, number), interface)
                self.denied += sign * (number == 0)

    def _numbers(self, interface: str) -> Iterator[tuple[Direction, int | None]]:
        """The class of each direction; None where nothing is asked."""
        classes = self._classes.get(interface)
        for direction in Direction:
            number = None
            if classes is not None:
                number = classes.ingress if direction is Direction.INGRESS else classes.egress
            yield direction, None if number is None or (direction, number) in self._open else number

    def _write(self, interface: str) -> None:
        is_over = any(number and not self._fits(direction, number) for direction, number in self._numbers(interface))
        if is_over != (interface in self.too_many):
            self.too_many ^= {interface}
            self.judged_anew.add(interface)
        if not self._marks_pairs:
            self._write_bits(interface)
            return
        for key in self._pairs.at(interface):
            self._members.want(key, self._mark(interface, PAIRS[key.set]))

    def _write_bits(self, interface: str) -> None:
        whole = ANY_NET[self._family]
        for direction, number in self._numbers(interface):
            wanted = set()
            if number is not None:
                wanted = {POLICED[direction]}
                if self._fits(direction, number):
                    code = code_of(number, self._bits_of(direction))
                    wanted |= {name for bit, name in enumerate(BIT_SETS[direction]) if code >> bit & 1}
            had = self._bits.setdefault(interface, {}).get(direction, set())
            for name in wanted - had:
                self._members.want(ElementKey(name, whole, interface), None)
            for name in had - wanted:
                self._members.drop(ElementKey(name, whole, interface))
            if wanted:
                self._bits[interface][direction] = wanted
            else:
                self._bits[interface].pop(direction, None)
        if not self._bits[interface]:
            del self._bits[interface]

    def _bits_of(self, direction: Direction) -> int:
        return self._marks.of(direction).bits if self._marks else 0

    def _fits(self, direction: Direction, number: int) -> bool:
        return number <= self._largest(direction)

    def _largest(self, direction: Direction) -> int:
        """The last number that a direction has a place for; in pairs the two after it mean other things."""
        if self._marks is None:
            return 0
        found = self._marks.of(direction)
        return open_code(found) - 1 if self._marks_pairs else found.largest

    def _mark(self, interface: str, direction: Direction) -> int | None:
        """The mark that a pair carries, None for none."""
        if self._marks is None:
            return None
        found = self._marks.of(direction)
        number = dict(self._numbers(interface))[direction]
        if number is None:
            return found.of(open_code(found))
        return found.of(number) if number and self._fits(direction, number) else None
