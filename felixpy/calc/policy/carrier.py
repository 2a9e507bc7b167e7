"""Where the number of a class travels: names of the sets that hold it, and bits of the packet's mark.

Each direction has up to 12 bits with nftables, where a set per bit names the interfaces whose class has it
(``to-class-0`` …), and ``to-policed`` those that are in another class than the usual one, so a packet of theirs without
bits is denied. Interfaces of the usual class are in none, and that class may become any other without touching them.
There the first numbers have codes with few bits set, because an endpoint is a member of a set per bit.
With iptables the member of a pair of address and interface carries the number in its skbinfo; there the bits of both
directions stand side by side.

Invariant: only bits of the mask are used, one each for Pass and Accepted, the others for classes. Pure.
"""

from __future__ import annotations

from functools import cache
from math import comb
from typing import Final, NamedTuple

from felixpy.calc.entries import SetName
from felixpy.calc.policy.classes import Direction

NFT_CLASS_BITS: Final = 12
"""4,095 classes of a direction; a lookup each for a new connection, so no more than are needed."""

MIN_BITS: Final = 5

PREFIX: Final = {Direction.INGRESS: "to", Direction.EGRESS: "from"}
POLICED: Final = {direction: SetName(f"{PREFIX[direction]}-policed") for direction in Direction}
BIT_SETS: Final = {
    direction: tuple(SetName(f"{PREFIX[direction]}-class-{bit}") for bit in range(NFT_CLASS_BITS))
    for direction in Direction
}
MAPS: Final = {direction: f"{PREFIX[direction]}-class" for direction in Direction}
CLASS_SETS: Final = tuple(
    name for direction in (Direction.EGRESS, Direction.INGRESS) for name in (POLICED[direction], *BIT_SETS[direction])
)


class Field(NamedTuple):
    """Some neighbouring bits of the mark."""

    shift: int
    bits: int

    @property
    def mask(self) -> int:
        return ((1 << self.bits) - 1) << self.shift

    @property
    def largest(self) -> int:
        return (1 << self.bits) - 1

    def of(self, value: int) -> int:
        """The mark that has this value in this field."""
        return value << self.shift


class MarkBits(NamedTuple):
    """``mask`` is all of it. ``to_host``: a mark (value and mask) for packets to the node itself."""

    mask: int
    passed: int
    accepted: int
    to_host: tuple[int, int]
    ingress: Field
    egress: Field

    def of(self, direction: Direction) -> Field:
        return self.ingress if direction is Direction.INGRESS else self.egress


def nftables_marks(mask: int) -> MarkBits:
    """The two directions share their bits, one after the other.

    Raises:
        ValueError: the mask has too few bits.
    """
    low, bits = _run(mask)
    classes = Field(low + 3, min(bits - 3, NFT_CLASS_BITS))
    host = 1 << (low + 2)
    return MarkBits(mask, 1 << low, 2 << low, (host, host), classes, classes)


def iptables_marks(mask: int) -> MarkBits:
    """All ones as ingress class says that a packet is to the node itself.

    Raises:
        ValueError: the mask has too few bits.
    """
    low, bits = _run(mask)
    half = (bits - 2) // 2
    ingress, egress = Field(low + 2, half), Field(low + 2 + half, half)
    return MarkBits(mask, 1 << low, 2 << low, (ingress.mask, ingress.mask), ingress, egress)


@cache
def code_of(number: int, bits: int) -> int:
    """What stands for a class in so many bits, those with few bits set first; 0 if the number is too large."""
    if number >= 1 << bits:
        return 0
    ones = 0
    while number >= comb(bits, ones):
        number -= comb(bits, ones)
        ones += 1
    code = 0
    for left in range(ones, 0, -1):  # of the codes with so many ones, the one with this place among them
        place = next(one for one in reversed(range(bits)) if comb(one, left) <= number)
        number -= comb(place, left)
        code |= 1 << place
    return code


@cache
def number_of(code: int, bits: int) -> int:
    """The number of a class by its code."""
    places = [place for place in range(bits) if code >> place & 1]
    fewer = sum(comb(bits, ones) for ones in range(len(places)))
    return fewer + sum(comb(place, left) for left, place in enumerate(places, 1))


def _run(mask: int) -> tuple[int, int]:
    """The longest run of bits in a mask: its lowest bit and its length."""
    best, at = (0, 0), 0
    while mask >> at:
        bits = 0
        while mask >> (at + bits) & 1:
            bits += 1
        if bits > best[1]:
            best = at, bits
        at += bits + 1
    if best[1] < 2 * MIN_BITS - 1:
        raise ValueError(f"the mark mask {mask:#010x} has no {2 * MIN_BITS - 1} bits side by side, which policy needs")
    return best
