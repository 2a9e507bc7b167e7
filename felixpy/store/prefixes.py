"""Prefixes of both families: which of them covers another, and what lies within one. Pure.

No question costs more the more prefixes there are, but for those that its answer names: a prefix has at most 32 or 128
wider ones, and what lies within it stands together in order.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator

from felixpy.model.net import Family, Net


class Prefixes:
    """Counted prefixes."""

    def __init__(self, nets: Iterable[Net] = ()) -> None:
        self._count: dict[Net, int] = {}
        self._sorted: dict[Family, list[Net]] = {family: [] for family in Family}
        self._by_length: dict[Family, dict[int, dict[int, Net]]] = {family: {} for family in Family}
        """By length, the longest first, and then by the bits that count, as a number."""
        for net in nets:
            self.add(net)

    def add(self, net: Net) -> bool:
        """Count a prefix; whether it is new."""
        count = self._count.get(net, 0)
        self._count[net] = count + 1
        if not count:
            family, length = net.family, net.length
            insort(self._sorted[family], net)
            by_length = self._by_length[family]
            if length not in by_length:
                by_length[length] = {}
                self._by_length[family] = dict(sorted(by_length.items(), reverse=True))
            self._by_length[family][length][_bits(net, length)] = net
        return not count

    def discard(self, net: Net) -> bool:
        """Count one less; whether it is gone."""
        self._count[net] -= 1
        if self._count[net]:
            return False
        del self._count[net]
        in_order, by_length = self._sorted[net.family], self._by_length[net.family]
        del in_order[bisect_left(in_order, net)]
        of_length = by_length[net.length]
        del of_length[_bits(net, net.length)]
        if not of_length:
            del by_length[net.length]
        return True

    def __contains__(self, net: object) -> bool:
        return net in self._count

    def covering(self, net: Net) -> Iterator[Net]:
        """Those that hold ``net``, itself if it is there, the longest first."""
        packed = net.packed
        number, bits = int.from_bytes(packed, "big"), len(packed) * 8
        for length, nets in self._by_length[net.family].items():
            if length <= net.length and (wider := nets.get(number >> (bits - length))) is not None:
                yield wider

    def cover(self, net: Net) -> bool:
        """Whether one of them is wider than ``net`` and holds it."""
        return any(wider != net for wider in self.covering(net))

    def within(self, net: Net) -> Iterator[Net]:
        """Those that ``net`` holds, itself if it is there."""
        in_order = self._sorted[net.family]
        host_bits = (1 << (net.family.bits - net.length)) - 1
        last = (int.from_bytes(net.packed, "big") | host_bits).to_bytes(len(net.packed), "big")
        start = bisect_left(in_order, Net(net.packed, net.length))
        return iter(in_order[start : bisect_right(in_order, Net(last, net.family.bits))])


def _bits(net: Net, length: int) -> int:
    return int.from_bytes(net.packed, "big") >> (len(net.packed) * 8 - length)
