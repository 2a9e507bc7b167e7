"""The classes of interfaces as members of sets: which bits an interface has, or which mark its pairs carry.

    nftables   to-policed { cali1 }  to-class-0 { cali1 }  to-class-3 { cali1 }      class 9
    iptables   to-workload { 10.48.0.1,cali1 skbmark 0x00280000/0x01fc0000 }

With nftables an interface of the usual class has no members besides its pairs: it costs as much as without policy.

Invariant: whoever has a number that no class bears, or that does not fit into the mark, is denied, and never open.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple, Protocol

from felixpy.calc.entries import ANY_NET, ElementKey, SetName
from felixpy.calc.policy.carrier import BIT_SETS, POLICED, MarkBits, code_of
from felixpy.calc.policy.classes import Direction, EndpointClasses
from felixpy.calc.policy.numbering import USUAL
from felixpy.dataplane.packet_filter import Member
from felixpy.model.net import Family
from felixpy.store.index import Index

PAIRS = {
    SetName.FROM_WORKLOAD: Direction.EGRESS,
    SetName.ALLOWED_SOURCES: Direction.EGRESS,
    SetName.TO_WORKLOAD: Direction.INGRESS,
}
"""Sets of pairs of an address, or a prefix, and an interface; and the direction whose class they carry."""


MOST_PLACES = 1 << 12
"""So many are remembered; a node has some dozens, but numbers come and go."""

_WAYS = (Direction.INGRESS, Direction.EGRESS)
"""In the order of ``EndpointClasses``."""

_NONE: Final[frozenset[SetName]] = frozenset()


class _Place(NamedTuple):
    """What some classes are to an interface: sets that it is in, whether one of the numbers has no place, and in how
    many directions there is no class.
    """

    sets: frozenset[SetName]
    is_over: bool
    denied: int


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
        self._pairs: Index[str, ElementKey] = Index()
        self._bits: dict[str, frozenset[SetName]] = {}
        self._places: dict[EndpointClasses | None, _Place] = {}
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
        self._places.clear()
        for interface in {*self._classes, *self._pairs.places()}:
            self._write(interface, self._place_of(self._classes.get(interface)))

    def want(self, interface: str, classes: EndpointClasses) -> None:
        """An interface has these classes."""
        old = self._classes.get(interface)
        if old == classes:
            return
        place = self._place_of(classes)
        self.denied += place.denied - self._place_of(old).denied
        self._classes[interface] = classes
        self._write(interface, place)

    def knows(self, interface: str) -> bool:
        """Whether an interface has classes; one that is gone has none."""
        return interface in self._classes

    def capacity(self) -> int:
        """How many classes a direction can have besides the usual one."""
        return min(self._largest(direction) for direction in Direction) - 1

    def drop(self, interface: str) -> None:
        """An interface has no classes any more: it is gone, or policy does not know it."""
        if (old := self._classes.pop(interface, None)) is not None:
            self.denied -= self._place_of(old).denied
            self._write(interface, self._place_of(None))

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

    def _number(self, interface: str, direction: Direction) -> int | None:
        """The class of a direction; None where policy does not know the interface."""
        classes = self._classes.get(interface)
        if classes is None:
            return None
        return classes.ingress if direction is Direction.INGRESS else classes.egress

    def _write(self, interface: str, place: _Place) -> None:
        if place.is_over != (interface in self.too_many):
            self.too_many ^= {interface}
            self.judged_anew.add(interface)
        if self._marks_pairs:
            for key in self._pairs.at(interface):
                self._members.want(key, self._mark(interface, PAIRS[key.set]))
        else:
            self._write_bits(interface, place.sets)

    def _write_bits(self, interface: str, wanted: frozenset[SetName]) -> None:
        had = self._bits.get(interface, _NONE)
        if wanted == had:
            return
        whole, want = ANY_NET[self._family], self._members.want
        for name in wanted - had if had else wanted:
            want(ElementKey(name, whole, interface), None)
        for name in had - wanted:
            self._members.drop(ElementKey(name, whole, interface))
        if wanted:
            self._bits[interface] = wanted
        else:
            del self._bits[interface]

    def _place_of(self, classes: EndpointClasses | None) -> _Place:
        """Found once for all interfaces of the same classes."""
        place = self._places.get(classes)
        if place is None:
            if len(self._places) >= MOST_PLACES:
                self._places.clear()
            some = [] if classes is None else [*zip(_WAYS, classes, strict=True)]
            is_over = any(number and not self._fits(direction, number) for direction, number in some)
            sets = () if self._marks_pairs else (name for one in some for name in self._sets_of(*one))
            denied = 0 if classes is None else classes.count(0)
            place = self._places[classes] = _Place(frozenset(sets), is_over, denied)
        return place

    def _sets_of(self, direction: Direction, number: int) -> tuple[SetName, ...]:
        """The sets that tell a class; that the number does not fit into the mark tells that of being in no bit's."""
        if number == USUAL:
            return ()
        bits = self._marks.of(direction).bits if self._marks else 0
        return _sets_of(direction, number if self._fits(direction, number) else 0, bits)

    def _fits(self, direction: Direction, number: int) -> bool:
        return number <= self._largest(direction)

    def _largest(self, direction: Direction) -> int:
        """The last number that a direction has a place for; in pairs the one after it says that it is to the node."""
        if self._marks is None:
            return 0
        found = self._marks.of(direction)
        return found.largest - 1 if self._marks_pairs else found.largest

    def _mark(self, interface: str, direction: Direction) -> int | None:
        """The mark that a pair carries, None for none."""
        if self._marks is None:
            return None
        found = self._marks.of(direction)
        number = self._number(interface, direction)
        return found.of(number) if number and self._fits(direction, number) else None


@lru_cache(MOST_PLACES)
def _sets_of(direction: Direction, number: int, bits: int) -> tuple[SetName, ...]:
    code = code_of(number, bits) if number else 0
    return (POLICED[direction], *(name for bit, name in enumerate(BIT_SETS[direction]) if code >> bit & 1))
