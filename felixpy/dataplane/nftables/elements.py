"""Set members (``ElementKey``) as nf_tables elements, and back. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat

from felixpy.calc.entries import ElementKey, SetName, SetType
from felixpy.model.net import Family, Net
from felixpy.netlink import nftables as nft
from felixpy.netlink.columns import tuples
from felixpy.netlink.message import Message
from felixpy.netlink.nftables import KernelElement, KernelSet

ADDRESS_TYPES = {Family.V4: nft.TYPE_IPV4_ADDR, Family.V6: nft.TYPE_IPV6_ADDR}


class NotOursError(ValueError):
    """A set holds what we never write: a range that is no prefix, a range of interfaces, a catch-all."""


def set_shape(name: SetName, family: Family) -> KernelSet:
    """Type of a set in this family: ``ipv4_addr``, ``ipv4_addr . ifname``, with or without intervals."""
    address, length = ADDRESS_TYPES[family], family.bits // 8
    pair, pair_length = address << 6 | nft.TYPE_IFNAME, length + nft.INTERFACE_NAME_BYTES
    match name.type:
        case SetType.HOST_INTERFACE:
            return KernelSet(name, pair, pair_length, 0)
        case SetType.NET_INTERFACE:
            return KernelSet(name, pair, pair_length, nft.NFT_SET_INTERVAL | nft.NFT_SET_CONCAT)
        case SetType.NET:
            return KernelSet(name, address, length, nft.NFT_SET_INTERVAL)


def set_fields(name: SetName, family: Family) -> tuple[int, ...]:
    """Field lengths of a concatenation with intervals, which the kernel has to know; otherwise empty."""
    if name.type is SetType.NET_INTERFACE:
        return (family.bits // 8, nft.INTERFACE_NAME_BYTES)
    return ()


def encode(key: ElementKey) -> bytes:
    """List entries of one member: one, or two for an interval (its start and its open end)."""
    net = key.net
    match key.set.type:
        case SetType.HOST_INTERFACE:
            return nft.element(net.packed + nft.interface_name(key.interface))
        case SetType.NET_INTERFACE:
            interface = nft.interface_name(key.interface)
            return nft.element(net.packed + interface, key_end=_last(net) + interface)
        case SetType.NET:
            after = int.from_bytes(_last(net), "big") + 1
            start = nft.element(net.packed)
            if after >> net.family.bits:
                return start  # the interval is open at the top of the address space
            return start + nft.element(after.to_bytes(len(net.packed), "big"), interval_end=True)


def decode_datagram(name: SetName, family: Family, message: Message) -> set[ElementKey]:
    """Members in one datagram of a dump, of a set whose members have an interface.

    Raises:
        NotOursError: somebody put something into the set that is no member in our form.
    """
    if name.type is SetType.HOST_INTERFACE:
        length = family.bits // 8
        keys = nft.decode_keys(message, length + nft.INTERFACE_NAME_BYTES)
        if keys is not None:
            nets = tuples(Net, [key[:length] for key in keys], repeat(family.bits))
            return set(tuples(ElementKey, repeat(name), nets, [_interface(key[length:]) for key in keys]))
    return decode(name, family, nft.decode_elements(message))


def decode(name: SetName, family: Family, elements: Iterable[KernelElement]) -> set[ElementKey]:
    """Members of a whole set.

    Raises:
        NotOursError: somebody put something into the set that is no member in our form.
    """
    length = family.bits // 8
    match name.type:
        case SetType.HOST_INTERFACE | SetType.NET_INTERFACE:
            return {_pair(name, one, length) for one in elements}
        case SetType.NET:
            return _intervals(name, family, elements)


def _pair(name: SetName, one: KernelElement, length: int) -> ElementKey:
    key, end = one.key, one.key_end
    if not key or (end is not None and key[length:] != end[length:]):
        raise NotOursError("a catch-all, or a range of interfaces")
    address = key[:length]
    net = Net.host(address) if end is None else _net(address, end[:length])
    return ElementKey(name, net, _interface(key[length:]))


def _intervals(name: SetName, family: Family, elements: Iterable[KernelElement]) -> set[ElementKey]:
    members: set[ElementKey] = set()
    start: bytes | None = None
    for one in sorted(elements, key=lambda element: (element.key, not element.interval_end)):
        if not one.key:
            raise NotOursError("a catch-all")
        if start is not None:
            last = int.from_bytes(one.key, "big") - 1
            members.add(ElementKey(name, _net(start, last.to_bytes(len(one.key), "big"))))
        start = None if one.interval_end else one.key
    if start is not None:
        members.add(ElementKey(name, _net(start, b"\xff" * (family.bits // 8))))
    return members


def _interface(field: bytes) -> str:
    return field.rstrip(b"\0").decode(errors="replace")


def _last(net: Net) -> bytes:
    host_bits = (1 << (net.family.bits - net.length)) - 1
    return (int.from_bytes(net.packed, "big") | host_bits).to_bytes(len(net.packed), "big")


def _net(first: bytes, last: bytes) -> Net:
    low, high = int.from_bytes(first, "big"), int.from_bytes(last, "big")
    size = high - low + 1
    if size <= 0 or size & (size - 1) or low & (size - 1):
        raise NotOursError(f"{first.hex()}-{last.hex()}")
    return Net(first, len(first) * 8 - (size.bit_length() - 1))
