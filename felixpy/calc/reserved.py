"""The node's own network: addresses that no object may cover. Pure.

One mistaken object must not cut a node off, because then nothing would reach it that takes the object back: an endpoint
with an address that the node itself has or needs, a block over it. What a workload is on purpose is no mistake: an
address that the node reaches through an endpoint's own interface (a broker or a router that is a workload) is that
endpoint's, and what is reached by a cluster route may lie in a block. What a tunnel's device of this node has is local
from then on, so it is nothing of the network either. A look costs the same however many addresses and objects
there are; must never be asked to decide anything else.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable
from typing import NamedTuple

from felixpy.model.net import FAMILIES, Family, Net, family_of, format_address


class Way(NamedTuple):
    """An address that the node needs and the interface through which it reaches it.

    ``by_cluster``: through a workload's interface, or by a route of ours.
    """

    address: bytes
    interface: str
    by_cluster: bool = False


class _Need(NamedTuple):
    words: str
    interface: str = ""


def _address_for_all(net: Net) -> tuple[bytes, str] | None:
    """The address of a connected subnet that the kernel keeps for all its machines, before any route of ours.

    IPv4: the last one. The first one is a machine's like any other since Linux 5.14. IPv6: the first one, which is each
    router's (RFC 4291, 2.6.1), and this node is one.
    """
    bits = len(net.packed) * 8
    if net.length >= bits - 1:
        return None
    value, rest = int.from_bytes(net.packed, "big"), (1 << bits - net.length) - 1
    if net.family is Family.V4:
        return (value | rest).to_bytes(4, "big"), "the broadcast address"
    return (value & ~rest).to_bytes(16, "big"), "the address of all routers"


class Reserved:
    """Reserved addresses by value, and in order for blocks.

    ``own``: the node's addresses with their interfaces; ``uplinks``: interfaces that default routes go through.
    """

    def __init__(
        self,
        own: Collection[tuple[str, Net]] = (),
        gateways: Iterable[Way] = (),
        peers: Iterable[Way] = (),
        uplinks: Iterable[str] = (),
    ) -> None:
        self._needs: dict[bytes, _Need] = {}
        in_blocks: dict[Family, set[bytes]] = {family: set() for family in FAMILIES}
        leads = set(uplinks)
        for interface, net in own:
            self._needs[net.packed] = _Need(f"this node's own ({interface})")
            # A tunnel's address may come from the node's own block: as a single one, and nothing else is behind it.
            if not net.is_host or interface in leads:
                in_blocks[net.family].add(net.packed)
        for what, ways in (("a gateway of this node", gateways), ("what this node is told by (the broker)", peers)):
            for address, interface, by_cluster in ways:
                if address in in_blocks[family_of(address)] and not self._needs[address].interface:
                    continue
                self._needs[address] = _Need(f"{what}, reached through {interface}", interface)
                if not by_cluster:
                    in_blocks[family_of(address)].add(address)
        for interface, net in own:
            if shared := _address_for_all(net):
                self._needs.setdefault(shared[0], _Need(f"{shared[1]} of a subnet of this node ({interface})"))
        self._in_order = {family: sorted(addresses) for family, addresses in in_blocks.items()}

    def kept_from(self, address: bytes, interface: str) -> str:
        """Why an endpoint behind an interface must not have an address, empty if it may."""
        need = self._needs.get(address)
        return "" if need is None or need.interface == interface else need.words

    def kept_from_tunnel(self, address: bytes) -> str:
        """Why no device of a tunnel on this node must have an address, empty if one may."""
        at = self._of(family_of(address), address)
        return self._needs[address].words if at == [address] else ""

    def covered_by(self, net: Net) -> str:
        """What a route for a prefix would cover, with the address; empty if nothing."""
        if net.is_host:
            need = self._needs.get(net.packed)
            covers = need is not None and (not need.interface or net.packed in self._of(net.family, net.packed))
            return f"{format_address(net.packed)}, {need.words}" if need is not None and covers else ""
        first = self._of(net.family, net.packed)
        if not first or not net.covers(first[0]):
            return ""
        return f"{format_address(first[0])}, {self._needs[first[0]].words}"

    def _of(self, family: Family, at_least: bytes) -> list[bytes]:
        """The first address that blocks must not cover from one on."""
        in_order = self._in_order[family]
        at = bisect_left(in_order, at_least)
        return in_order[at : at + 1]

    def changed(self, other: Reserved) -> set[Net]:
        """Addresses of which the two say different things."""
        return {Net.host(address) for address, _ in self._needs.items() ^ other._needs.items()}
