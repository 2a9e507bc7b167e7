"""Addresses out of what this node alone disposes of: its pod CIDRs, blocks that an operator gave it, its own pools.

    ranges of the node ──► the next one after the last that was given, which nobody has

Invariant: what is taken is what the journal of attachments says, so there is nothing else to keep or to lose; nobody
but this node gives addresses of its ranges. An address that came back is given again as late as possible. No I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from felixpy.ipam.assignment import NoAddress, Wanted
from felixpy.model.net import Family, Net, format_address

SMALLEST_WITH_ENDS = {Family.V4: 29, Family.V6: 125}
"""In ranges of this length or a shorter one the first two addresses stay free (the network's, and the one that other
programs take for a gateway or a tunnel), and the last one of IPv4, its broadcast address."""

Ranges = Callable[[Family], Sequence[Net]]
"""The ranges of this node per family, as they are now."""


class LocalAddresses:
    """A store in memory. ``reserved`` are addresses of the ranges that somebody else has, such as a tunnel's."""

    def __init__(self, ranges: Ranges, where: str, reserved: Callable[[], frozenset[bytes]] = frozenset) -> None:
        self._ranges = ranges
        self._where = where
        self._reserved = reserved
        self._owner: dict[bytes, str] = {}
        self._last: dict[Net, int] = {}

    def __len__(self) -> int:
        return len(self._owner)

    def owner_of(self, address: bytes) -> str | None:
        return self._owner.get(address)

    def adopt(self, handle: str, addresses: tuple[Net, ...]) -> None:
        for address in addresses:
            self._owner[address.packed] = handle
            for net in self._ranges(address.family):
                if net.covers(address):
                    self._last[net] = _ordinal(net, address.packed)

    async def assign(self, wanted: Wanted) -> tuple[Net, ...]:
        found = tuple(self._choose(wanted, family) for family in wanted.families)  # raises before anything is taken
        for address in found:
            self._owner[address.packed] = wanted.handle
        return found

    async def release(self, handle: str, addresses: tuple[Net, ...]) -> None:
        for address in addresses:
            if self._owner.get(address.packed) == handle:
                del self._owner[address.packed]

    def exhausted(self, families: tuple[Family, ...]) -> str:
        for family in families:
            try:
                self._choose(Wanted("", (family,)), family, note=False)
            except NoAddress as error:
                return str(error)
        return ""

    def _choose(self, wanted: Wanted, family: Family, *, note: bool = True) -> Net:
        ranges = self._allowed(wanted, family)
        for address in wanted.requested:
            if address.family is family:
                return self._requested(address, ranges)
        reserved = self._reserved()
        for net in ranges:
            first, last = usable(net)
            for ordinal in _after(self._last.get(net, last), first, last):
                packed = _address(net, ordinal)
                if packed in self._owner or packed in reserved:
                    continue
                if note:
                    self._last[net] = ordinal
                return Net.host(packed)
        full = ", ".join(map(str, ranges))
        raise NoAddress(
            f"no {family} address is free in {full}: give this node more addresses, or run fewer workloads on it"
        )

    def _allowed(self, wanted: Wanted, family: Family) -> list[Net]:
        ranges = [net for net in wanted.ranges if net.family is family] or list(self._ranges(family))
        if not ranges:
            raise NoAddress(f"this node has no {family} range to give addresses of: {self._where}", later=True)
        pools = wanted.pools.get(family, ())
        if not pools:
            return ranges
        try:
            nets = [Net.parse(text) for text in pools]
        except ValueError:
            raise NoAddress(f"pools by name ({', '.join(pools)}) need IPAM by blocks; name CIDRs here") from None
        inside = [net for net in ranges if any(pool.covers(net) for pool in nets)]
        inside += [pool for pool in nets if any(net.covers(pool) and net not in inside for net in ranges)]
        if not inside:
            raise NoAddress(f"none of this node's {family} ranges lies in {', '.join(pools)}")
        return inside

    def _requested(self, address: Net, ranges: Sequence[Net]) -> Net:
        text = format_address(address.packed)
        if not any(net.covers(address) for net in ranges):
            has = ", ".join(map(str, ranges))
            raise NoAddress(f"the address {text} that is asked for is in no range of this node, which has {has}")
        owner = self._owner.get(address.packed)
        if owner is not None or address.packed in self._reserved():
            raise NoAddress(f"the address {text} that is asked for is in use by {owner or 'this node'}", later=True)
        return address


def second_address(net: Net) -> bytes:
    """The address that stays free in a wide range for a tunnel: the one behind the network's own."""
    return _address(net, 1)


def usable(net: Net) -> tuple[int, int]:
    """First and last ordinal of a range that a workload can have."""
    size = 1 << (len(net.packed) * 8 - net.length)
    if net.length > SMALLEST_WITH_ENDS[net.family]:
        return 0, size - 1
    return 2, size - (2 if net.family is Family.V4 else 1)


def _after(last: int, first: int, end: int) -> Iterator[int]:
    """All ordinals from first to end, beginning behind the one that was given last."""
    start = last + 1 if first <= last < end else first
    yield from range(start, end + 1)
    yield from range(first, start)


def _ordinal(net: Net, packed: bytes) -> int:
    return int.from_bytes(packed, "big") - int.from_bytes(net.packed, "big")


def _address(net: Net, ordinal: int) -> bytes:
    return (int.from_bytes(net.packed, "big") + ordinal).to_bytes(len(net.packed), "big")
