"""Members that ``allowed-sources`` needs in an IP set besides those that endpoints declare. Pure.

For a packet from 10.1.2.3 the kernel looks in a set of type ``hash:net,iface`` at the most specific network that holds
the address and is there with any interface, and at no wider one (``mtype_test_cidrs`` in ip_set_hash_gen.h). With
10.0.0.0/8 of cali1 alone cali1 may use it; once cali2 declares 10.1.0.0/16, the kernel looks there for cali1, too. So:

    declared                                  in the kernel besides
    (10.0.0.0/8, cali1) (10.1.0.0/16, cali2)  (10.1.0.0/16, cali1)

A member carries a mark, the class of its interface, and an implied one that of the wider member.

Invariant: for each declared (P, interface) and each prefix Q in P that another interface declares, the kernel has
(Q, interface), with the same mark. What one interface declares never nests for long (``felixpy.calc.endpoints``), so a
member that a wider one of the same interface covers is such an implied one. Must never grow with endpoints that declare
nothing.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator, Mapping

from felixpy.model.net import Net
from felixpy.slices import in_slices
from felixpy.store.index import Index

Pair = tuple[Net, str]
"""A prefix and the interface that may use it as source."""

MarkedPair = tuple[Net, str, int]
"""With the mark that the kernel has for it, or 0."""


class AllowedSources:
    """The declared pairs, with the way from a prefix to those around it and in it."""

    def __init__(self) -> None:
        self._interfaces: Index[Net, str] = Index()
        self._nets: list[Net] = []  # sorted, so that what lies in a prefix follows it
        self._lengths: Counter[int] = Counter()
        self._marks: dict[Pair, int] = {}

    def __iter__(self) -> Iterator[Pair]:
        return ((net, interface) for net in self._nets for interface in self._interfaces.at(net))

    def add(self, net: Net, interface: str, mark: int = 0) -> list[MarkedPair]:
        """Declare a pair. Returns the members that the kernel needs for it; implied ones first, so that nobody who may
        use a prefix now is without it for a moment. To declare it again, with this mark or another one, is the same.
        """
        self._note(net, interface)
        self._marks[net, interface] = mark
        members = [(inner, interface, mark) for inner in self._inside(net)]
        members += self._implied_at(net)
        return [*members, (net, interface, mark)]

    def remove(self, net: Net, interface: str) -> list[Pair]:
        """Declare a pair no longer. Returns the members that the kernel needs no more; to remove what is not declared
        is the same.
        """
        self._marks.pop((net, interface), None)
        if self._interfaces.at(net) and not self._interfaces.discard(net, interface):
            self._nets.pop(bisect_left(self._nets, net))
            self._lengths[net.length] -= 1
            if not self._lengths[net.length]:
                del self._lengths[net.length]
        members = []
        if not self._interfaces.at(net):
            members = [(net, interface), *((net, other) for _, other, _ in self._implied_at(net))]
        elif not self._implies(net, interface):
            members = [(net, interface)]
        members += [
            (inner, interface)
            for inner in self._inside(net)
            if interface not in self._interfaces.at(inner) and not self._implies(inner, interface)
        ]
        return members

    def users(self, net: Net) -> int:
        """How many interfaces the kernel has at a prefix."""
        return len({*self._interfaces.at(net), *(interface for _, interface, _ in self._implied_at(net))})

    def _note(self, net: Net, interface: str) -> None:
        if not self._interfaces.at(net):
            insort(self._nets, net)
            self._lengths[net.length] += 1
        self._interfaces.add(net, interface)

    def _inside(self, net: Net) -> Iterator[Net]:
        """Declared prefixes in this one."""
        for at in range(bisect_left(self._nets, net), len(self._nets)):
            if not net.covers(self._nets[at]):
                return
            if self._nets[at] != net:
                yield self._nets[at]

    def _around(self, net: Net) -> Iterator[Net]:
        """Declared prefixes that this one lies in."""
        for length in self._lengths:
            if length < net.length and self._interfaces.at(wider := net.widened(length)):
                yield wider

    def _implied_at(self, net: Net) -> list[MarkedPair]:
        return [
            (net, interface, self._marks.get((outer, interface), 0))
            for outer in self._around(net)
            for interface in self._interfaces.at(outer)
        ]

    def _implies(self, net: Net, interface: str) -> bool:
        return any(interface in self._interfaces.at(outer) for outer in self._around(net))


async def declared_by(members: Mapping[Pair, int]) -> tuple[AllowedSources, set[Pair]]:
    """What the members of a set, by their marks, mean: the declared pairs, and those of them that lack implied members
    with their mark. In slices.

    A prefix with implied members only has lost who declared it: they count as declared, so that they will be removed.
    """
    present = AllowedSources()
    async for some in in_slices(members):
        for net, interface in some:
            present._note(net, interface)
    declared = AllowedSources()
    async for nets in in_slices(list(present._nets), 1):
        for net in nets:
            interfaces = present._interfaces.at(net)
            own = [interface for interface in interfaces if not present._implies(net, interface)]
            for interface in own or interfaces:
                declared._note(net, interface)
                declared._marks[net, interface] = members[net, interface]
    incomplete: set[Pair] = set()
    async for nets in in_slices(list(declared._nets), 1):
        for net in nets:
            for outer in declared._around(net):
                incomplete.update(
                    (outer, interface)
                    for interface in declared._interfaces.at(outer)
                    if members.get((net, interface)) != members[outer, interface]
                )
    return declared, incomplete
