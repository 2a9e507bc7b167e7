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
        self._lengths: dict[Family, dict[int, int]] = {family: {} for family in Family}
        for net in nets:
            self.add(net)

    def add(self, net: Net) -> bool:
        """Count a prefix; whether it is new."""
        count = self._count.get(net, 0)
        self._count[net] = count + 1
        if not count:
            insort(self._sorted[net.family], net)
            lengths = self._lengths[net.family]
            lengths[net.length] = lengths.get(net.length, 0) + 1
        return not count

    def discard(self, net: Net) -> bool:
        """Count one less; whether it is gone."""
        self._count[net] -= 1
        if self._count[net]:
            return False
        del self._count[net]
        in_order, lengths = self._sorted[net.family], self._lengths[net.family]
        del in_order[bisect_left(in_order, net)]
        lengths[net.length] -= 1
        if not lengths[net.length]:
            del lengths[net.length]
        return True

    def __contains__(self, net: object) -> bool:
        return net in self._count

    def covering(self, net: Net) -> Iterator[Net]:
        """Those that hold ``net``, itself if it is there, the longest first."""
        for length in sorted(self._lengths[net.family], reverse=True):
            if length <= net.length and (wider := net.widened(length)) in self._count:
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
