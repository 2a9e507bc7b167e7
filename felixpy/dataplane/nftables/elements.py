"""Set members (``ElementKey``) as nf_tables elements, and back. Pure."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import assert_never

from felixpy.calc.entries import ANY_NET, STANDING_SETS, ElementKey, SetName, SetType, set_type
from felixpy.calc.policy.classes import MemberKey
from felixpy.dataplane.packet_filter import Member
from felixpy.model.net import Family, Net
from felixpy.netlink import nftables as nft
from felixpy.netlink.columns import tuples
from felixpy.netlink.message import Message
from felixpy.netlink.nftables import KernelElement, KernelSet

_PROTOCOL_PORT = struct.Struct(">B3xH2x")  # each field of a concatenation is padded to four bytes
ADDRESS_TYPES = {Family.V4: nft.TYPE_IPV4_ADDR, Family.V6: nft.TYPE_IPV6_ADDR}


EXACT_SOURCES = SetName("allowed-hosts")
"""Where those of ``ALLOWED_SOURCES`` are that are single addresses: to leave many prefixes takes long."""


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
        case SetType.HOST:
            return KernelSet(name, address, length, 0)
        case SetType.INTERFACE:
            return KernelSet(name, nft.TYPE_IFNAME, nft.INTERFACE_NAME_BYTES, 0)
        case SetType.HOST_PORT:
            triple = (address << 6 | nft.TYPE_INET_PROTOCOL) << 6 | nft.TYPE_INET_SERVICE
            return KernelSet(name, triple, length + 8, 0)
        case SetType.ADDRESS_MAP:
            return KernelSet(name, address, length, nft.NFT_SET_MAP, address, length)
        case SetType.LOOP_MAP:
            return KernelSet(name, address << 6 | address, 2 * length, nft.NFT_SET_MAP, address, length)
        case _:
            assert_never(name.type)


def map_shape(name: str) -> KernelSet:
    """Type of a map of classes: ``mark : verdict``."""
    return KernelSet(name, nft.TYPE_MARK, 4, nft.NFT_SET_MAP, nft.NFT_DATA_VERDICT)


def set_fields(name: SetName, family: Family) -> tuple[int, ...]:
    """Field lengths of a concatenation with intervals, which the kernel has to know; otherwise empty."""
    if name.type is SetType.NET_INTERFACE:
        return (family.bits // 8, nft.INTERFACE_NAME_BYTES)
    return ()


def encode(key: Member, data: int | None = None) -> bytes:
    """List entries of one member: one, or two for an interval (its start and its open end).

    ``data`` is the address that a map has for it, which a message that removes it does not name.
    """
    net = key.net
    if isinstance(key, MemberKey):
        return _encode_member(key)
    address = b"" if data is None else data.to_bytes(len(net.packed))
    match key.set.type:
        case SetType.HOST_INTERFACE:
            return nft.element(net.packed + nft.interface_name(key.interface))
        case SetType.INTERFACE:
            return nft.element(nft.interface_name(key.interface))
        case SetType.NET_INTERFACE:
            interface = nft.interface_name(key.interface)
            if net.is_host:
                return nft.element(net.packed + interface)
            return nft.element(net.packed + interface, key_end=_last(net) + interface)
        case SetType.NET:
            return _encode_interval(net)
        case SetType.HOST:
            return nft.element(net.packed)
        case SetType.ADDRESS_MAP:
            return nft.element(net.packed, data=address)
        case SetType.LOOP_MAP:
            return nft.element(net.packed * 2, data=address)
        case _:
            raise ValueError(f"{key.set} holds no members of this kind")


def encode_all(keys: Sequence[Member], data: Mapping[Member, int]) -> list[bytes]:
    """``encode`` of members of one set of the kernel's, of which there may be thousands; ``data`` is of maps."""
    shape = set_type(keys[0].set)
    if shape is SetType.INTERFACE:
        encoded = [nft.interface_name(one.interface) for one in keys if isinstance(one, ElementKey)]
    elif shape is SetType.HOST_INTERFACE:
        encoded = [one.net.packed + nft.interface_name(one.interface) for one in keys if isinstance(one, ElementKey)]
    elif shape is SetType.HOST:
        encoded = [one.net.packed for one in keys]
    else:
        return [encode(key, data.get(key)) for key in keys]
    return nft.plain_elements(encoded)


def _encode_member(key: MemberKey) -> bytes:
    net = key.net
    match set_type(key.set):
        case SetType.HOST:
            return nft.element(net.packed)
        case SetType.HOST_PORT:
            return nft.element(net.packed + _PROTOCOL_PORT.pack(key.protocol, key.port))
        case SetType.NET:
            return _encode_interval(net)
        case _:
            raise ValueError(f"{key.set} holds no members of this kind")


def _encode_interval(net: Net) -> bytes:
    after = int.from_bytes(_last(net), "big") + 1
    start = nft.element(net.packed)
    if after >> net.family.bits:
        return start  # the interval is open at the top of the address space
    return start + nft.element(after.to_bytes(len(net.packed), "big"), interval_end=True)


def place_of(key: Member) -> str:
    """The set of the kernel's that holds a member."""
    name = key.set
    return EXACT_SOURCES if name is SetName.ALLOWED_SOURCES and key.net.is_host else name


def decode_datagram(name: SetName, family: Family, message: Message) -> set[Member]:
    """Members in one datagram of a dump, of a set without intervals.

    Raises:
        NotOursError: somebody put something into the set that is no member in our form.
    """
    if name.type is SetType.HOST_INTERFACE:
        length = family.bits // 8
        keys = nft.decode_keys(message, length + nft.INTERFACE_NAME_BYTES)
        if keys is not None:
            nets = tuples(Net, [key[:length] for key in keys], repeat(family.bits))
            return set(tuples(ElementKey, repeat(_said_of(name)), nets, [_interface(key[length:]) for key in keys]))
    if name.type is SetType.HOST and (keys := nft.decode_keys(message, family.bits // 8)) is not None:
        nets = tuples(Net, keys, repeat(family.bits))
        if name in STANDING_SETS:
            return set(tuples(ElementKey, repeat(name), nets, repeat("")))
        return set(tuples(MemberKey, repeat(str(name)), nets, repeat(0), repeat(0)))
    return decode(name, family, nft.decode_elements(message))


def decode(name: SetName, family: Family, elements: Iterable[KernelElement]) -> set[Member]:
    """Members of a whole set.

    Raises:
        NotOursError: somebody put something into the set that is no member in our form.
    """
    length = family.bits // 8
    match name.type:
        case SetType.HOST_INTERFACE | SetType.NET_INTERFACE:
            return {_pair(name, one, length) for one in elements}
        case SetType.NET:
            return _in_set(name, _intervals(family, elements))
        case SetType.INTERFACE:
            return {ElementKey(name, ANY_NET[family], _interface(_whole(one))) for one in elements}
        case SetType.HOST:
            return _in_set(name, (Net.host(_whole(one)) for one in elements))
        case SetType.HOST_PORT:
            return {_address_port(name, _whole(one), length) for one in elements}
        case SetType.ADDRESS_MAP | SetType.LOOP_MAP:
            return set(decode_addresses(name, family, elements))
        case _:
            assert_never(name.type)


def _in_set(name: SetName, nets: Iterable[Net]) -> set[Member]:
    if name in STANDING_SETS:
        return {ElementKey(name, net) for net in nets}
    return {MemberKey(str(name), net) for net in nets}


def decode_addresses(name: SetName, family: Family, elements: Iterable[KernelElement]) -> dict[ElementKey, int]:
    """Members of a map of addresses, and what it has for them.

    Raises:
        NotOursError: somebody put something into the map that is no member in our form.
    """
    length = family.bits // 8
    found = {}
    for one in elements:
        key = _whole(one)
        if name.type is SetType.LOOP_MAP and key[:length] != key[length:]:
            raise NotOursError("two addresses")
        found[ElementKey(name, Net.host(key[:length]))] = int.from_bytes(one.data)
    return found


def decode_map(elements: Iterable[KernelElement]) -> dict[int, str]:
    """Chains by mark."""
    return {int.from_bytes(one.key, sys.byteorder): one.chain for one in elements}


def _whole(one: KernelElement) -> bytes:
    if not one.key or one.key_end is not None:
        raise NotOursError("a catch-all, or a range")
    return one.key


def _address_port(name: SetName, key: bytes, length: int) -> MemberKey:
    protocol, port = _PROTOCOL_PORT.unpack(key[length:])
    return MemberKey(str(name), Net.host(key[:length]), protocol, port)


def _pair(name: SetName, one: KernelElement, length: int) -> ElementKey:
    key, end = one.key, one.key_end
    if not key or (end is not None and key[length:] != end[length:]):
        raise NotOursError("a catch-all, or a range of interfaces")
    address = key[:length]
    net = Net.host(address) if end is None else _net(address, end[:length])
    if net.is_host and name.type is SetType.NET_INTERFACE:
        raise NotOursError("a single address among prefixes")
    return ElementKey(_said_of(name), net, _interface(key[length:]))


def _said_of(name: SetName) -> SetName:
    """The set that a member of a set of the kernel's is wanted in."""
    return SetName.ALLOWED_SOURCES if name == EXACT_SOURCES else name


def _intervals(family: Family, elements: Iterable[KernelElement]) -> set[Net]:
    members: set[Net] = set()
    start: bytes | None = None
    for one in sorted(elements, key=lambda element: (element.key, not element.interval_end)):
        if not one.key:
            raise NotOursError("a catch-all")
        if start is not None:
            last = int.from_bytes(one.key, "big") - 1
            members.add(_net(start, last.to_bytes(len(one.key), "big")))
        start = None if one.interval_end else one.key
    if start is not None:
        members.add(_net(start, b"\xff" * (family.bits // 8)))
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
