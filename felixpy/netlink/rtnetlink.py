"""rtnetlink messages: routes, neighbours, links with their IPv4 and IPv6 settings, addresses.

Encoders write what ``ip`` would write; decoders read only what felixpy compares. Numbers are from linux/rtnetlink.h,
linux/neighbour.h, linux/if_link.h, linux/if_addr.h and linux/ip.h. pyroute2 is the oracle of these in the tests.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import repeat
from types import MappingProxyType
from typing import NamedTuple

from felixpy.model.net import Family, Net
from felixpy.netlink.columns import SomeAttributes, by_length, columns, same, together, tuples
from felixpy.netlink.message import (
    ATTRIBUTE,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    Request,
    attribute,
    attributes,
    nested,
    text_of,
)

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30

RTM_NEWNEIGHTBL, RTM_GETNEIGHTBL = 64, 66
RTM_NEWNETCONF = 80

RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_CACHEINFO, RTA_TABLE, RTA_PREF = 1, 4, 5, 6, 7, 12, 15, 20
RTA_MULTIPATH, RTA_VIA, RTA_NH_ID = 9, 18, 30
RTNH_F_ONLINK = 4
RTM_F_CLONED, RTM_F_FIB_MATCH = 0x200, 0x2000
RTN_UNICAST, RTN_LOCAL, RTN_BLACKHOLE = 1, 2, 6
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253
RTPROT_KERNEL, RTPROT_RA = 2, 9
LOOPBACK_INDEX = 1

NDA_DST, NDA_LLADDR, NDA_CACHEINFO, NDA_PROBES, NDA_PROTOCOL = 1, 2, 3, 4, 12
NUD_PERMANENT = 0x80
NDTA_PARMS, NDTPA_IFINDEX, NDTPA_PROXY_DELAY = 6, 1, 13

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINKINFO, IFLA_IFALIAS, IFLA_AF_SPEC = 1, 3, 4, 18, 20, 26
IFLA_INET_CONF, IFLA_INET6_CONF = 1, 2
IFF_UP, IFF_RUNNING, IFF_LOWER_UP = 1, 0x40, 0x10000

IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
IFA_F_DADFAILED = 0x08

IPV4_DEVCONF: Mapping[str, int] = {"forwarding": 1, "proxy_arp": 3, "rp_filter": 8, "route_localnet": 26}
IPV6_DEVCONF: Mapping[str, int] = {"forwarding": 0, "accept_ra": 3}
"""Places in the kernel's arrays of u32; in IPv4 they count from 1 (linux/ip.h)."""

NETCONFA_IFINDEX = 1
NETCONF: Mapping[str, int] = {"forwarding": 2, "rp_filter": 3, "proxy_arp": 5}
"""Settings of which the kernel sends notifications (linux/netconf.h); in IPv6 only ``forwarding``."""
NETCONFA_IFINDEX_ALL = -1

_ROUTE = struct.Struct("=BBBBBBBBI")
_NEXTHOP = struct.Struct("=HBBI")
_NEIGHBOUR = struct.Struct("=BBHiHBB")
_LINK = struct.Struct("=BBHiII")
_ADDRESS = struct.Struct("=BBBBI")
_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")
_U32_ATTRIBUTE = struct.Struct("=HHI")
_MAC_AND_PROTOCOL = struct.Struct("=HH6s2xHHB3x")
_HEADER_V4, _HEADER_V6 = ATTRIBUTE.pack(8, RTA_DST), ATTRIBUTE.pack(20, RTA_DST)  # NDA_DST has the same number
_ROUTE_NUMBERS = frozenset({RTA_OIF, RTA_PRIORITY, RTA_TABLE, RTA_NH_ID})
# Neighbours: address, MAC, probes, cache information, protocol.
_V4_SIGNED_NEIGHBOUR = struct.Struct("=BBHiHBB4s4s4s6s2x4s4x4s16x4sB3x")
_V6_SIGNED_NEIGHBOUR = struct.Struct("=BBHiHBB4s16s4s6s2x4s4x4s16x4sB3x")
_SIGNED_NEIGHBOURS = {one.size: one for one in (_V4_SIGNED_NEIGHBOUR, _V6_SIGNED_NEIGHBOUR)}
_NEIGHBOUR_HEADERS = tuple(
    ATTRIBUTE.pack(size, kind)
    for size, kind in ((10, NDA_LLADDR), (8, NDA_PROBES), (20, NDA_CACHEINFO), (5, NDA_PROTOCOL))
)
_IN_LINK_INET, _IN_LINK_INET6 = (IFLA_AF_SPEC, Family.V4, IFLA_INET_CONF), (IFLA_AF_SPEC, Family.V6, IFLA_INET6_CONF)
_IN_TABLE_INDEX, _IN_TABLE_DELAY = (NDTA_PARMS, NDTPA_IFINDEX), (NDTA_PARMS, NDTPA_PROXY_DELAY)
_TABLE_ATTRIBUTES = SomeAttributes(4, _IN_TABLE_INDEX, _IN_TABLE_DELAY)
_TICKS = os.sysconf("SC_CLK_TCK")
_LINK_ATTRIBUTES = SomeAttributes(
    _LINK.size, (IFLA_IFNAME,), (IFLA_ADDRESS,), (IFLA_MTU,), _IN_LINK_INET, _IN_LINK_INET6
)


class KernelRoute(NamedTuple):
    """A route as the kernel stores it; ``interface`` is an index, 0 for blackholes (the kernel's ``lo`` in IPv6).

    ``nexthop``: the number of the nexthop object (``ip nexthop``) that leads to ``interface``, 0 if there is none.
    """

    type: int
    interface: int
    gateway: bytes | None = None
    onlink: bool = False
    source: bytes | None = None
    scope: int = 0
    protocol: int = 0
    nexthop: int = 0


class KernelRouteKey(NamedTuple):
    """What makes a route unique for the kernel: family, table, destination, metric, in IPv4 the type of service."""

    family: Family
    destination: Net
    metric: int
    table: int
    tos: int = 0


class KernelNeighbour(NamedTuple):
    """A neighbour entry of ours or a permanent one of somebody else's; ``protocol`` is 0 if nobody signed it."""

    interface: int
    address: bytes
    mac: bytes
    protocol: int


class InterfaceAddress(NamedTuple):
    """An address on an interface, by index; ``net`` keeps the host bits."""

    interface: int
    net: Net


_NONE: Mapping[str, int] = MappingProxyType({})


class Link(NamedTuple):
    """An interface with those of its settings that ``IPV4_DEVCONF`` and ``IPV6_DEVCONF`` name; none if not told.

    ``carrier``: whether anything is at the other end, without which the kernel keeps no nexthop objects.
    """

    ifindex: int
    name: str
    up: bool
    mac: bytes
    inet: Mapping[str, int] = _NONE
    inet6: Mapping[str, int] = _NONE
    mtu: int = 0
    carrier: bool = True

    def settings(self, family: Family) -> Mapping[str, int]:
        """Those of its settings that this message carries."""
        return self.inet if family is Family.V4 else self.inet6

    def told(self, family: Family, news: Mapping[str, int]) -> Link:
        """The same with those of its settings that are news."""
        known = self.settings(family)
        settings = _shared(tuple((name, news.get(name, value)) for name, value in known.items()))
        return self._replace(inet=settings) if family is Family.V4 else self._replace(inet6=settings)


def route_request(
    key: tuple[Family, Net, int, int, int], route: KernelRoute, *, delete: bool = False, exclusive: bool = False
) -> Request:
    """Create or replace a route, or delete exactly this one (type, protocol and metric have to match).

    ``key``: family, destination, metric, table, type of service, as in ``KernelRouteKey``. ``exclusive``: refused with
    EEXIST where any route has this key, whosever it is.
    """
    family, destination, metric, table, tos = key
    header = _ROUTE.pack(
        family,
        destination.length,
        0,
        tos,
        table if table < 256 else 0,
        route.protocol,
        route.scope if not delete else (route.scope if family is Family.V4 else 0),
        route.type,
        RTNH_F_ONLINK if route.onlink else 0,
    )
    parts = [header, attribute(RTA_DST, destination.packed)]
    if route.nexthop:  # it stands for interface and gateway, which the kernel does not want to be told besides
        parts.append(_U32_ATTRIBUTE.pack(8, RTA_NH_ID, route.nexthop))
    elif route.interface:
        parts.append(_U32_ATTRIBUTE.pack(8, RTA_OIF, route.interface))
    if route.gateway and not route.nexthop:
        parts.append(attribute(RTA_GATEWAY, route.gateway))
    if route.source:
        parts.append(attribute(RTA_PREFSRC, route.source))
    if metric:
        parts.append(_U32_ATTRIBUTE.pack(8, RTA_PRIORITY, metric))
    if table >= 256:
        parts.append(_U32_ATTRIBUTE.pack(8, RTA_TABLE, table))
    if delete:
        return Request(RTM_DELROUTE, 0, b"".join(parts))
    return Request(RTM_NEWROUTE, NLM_F_CREATE | (NLM_F_EXCL if exclusive else NLM_F_REPLACE), b"".join(parts))


def route_dump_request(family: Family, table: int, interface: int = 0, protocol: int = 0) -> Request:
    """Dump one table, or its routes through one interface (by index) or of one protocol.

    The kernel filters because the socket asks for strict checking (Linux 4.20).
    """
    parts = [_ROUTE.pack(family, 0, 0, 0, table if table < 256 else 0, protocol, 0, 0, 0)]
    parts.append(attribute(RTA_TABLE, _U32.pack(table)))
    if interface:
        parts.append(attribute(RTA_OIF, _U32.pack(interface)))
    return Request(RTM_GETROUTE, 0, b"".join(parts))


def route_protocol(message: Message) -> int:
    """Who made a route (``rtm_protocol``)."""
    return message.payload[5]


def route_table(message: Message) -> int:
    """The routing table of a route (``rtm_table``), where its number is below 256."""
    return message.payload[4]


def is_default_route(message: Message) -> bool:
    """Whether a route message is of a default route (``rtm_dst_len``)."""
    return message.payload[1] == 0


def decode_ways(payload: bytes) -> list[tuple[bytes, int]]:
    """(gateway, interface) of each way of a route message; an empty gateway: what it leads to is on the link."""
    found = dict(attributes(payload, _ROUTE.size))
    if RTA_MULTIPATH not in found:
        return [_way(found, found.get(RTA_OIF, bytes(4)))]
    ways, rest = [], found[RTA_MULTIPATH]  # struct rtnexthop: length, flags, hops, interface, attributes
    while len(rest) >= _NEXTHOP.size:
        length, _, _, interface = _NEXTHOP.unpack_from(rest)
        ways.append(_way(dict(attributes(rest[:length], _NEXTHOP.size)), _U32.pack(interface)))
        rest = rest[max((length + 3) & ~3, _NEXTHOP.size) :]
    return ways


def _way(found: Mapping[int, bytes], interface: bytes) -> tuple[bytes, int]:
    return found.get(RTA_GATEWAY) or found.get(RTA_VIA, b"")[2:], int(_U32.unpack(interface)[0])


def decode_routes(messages: Sequence[Message]) -> list[tuple[KernelRouteKey, KernelRoute]]:
    """Keys and values of route messages, normalised, without cached clones and other families.

    In the order of the messages: of several routes with one key, which the kernel allows (``ip route append``), it uses
    the one that it dumps first.
    """
    decoded = {length: _decode_routes_alike(alike) for length, alike in by_length(messages).items()}
    if len(decoded) == 1:
        (routes,) = decoded.values()
    else:
        next_of = {length: iter(some) for length, some in decoded.items()}
        routes = [next(next_of[len(message.payload)]) for message in messages]
    return list(filter(None, routes))


def _decode_routes_alike(alike: list[Message]) -> list[tuple[KernelRouteKey, KernelRoute] | None]:
    """What each of some messages of one length means; None for what is left out."""
    taken = _decode_routes_together(alike) if len(alike) > 1 else None
    return list(map(_decode_any_route, alike) if taken is None else taken)


def decode_route(message: Message) -> tuple[KernelRouteKey, KernelRoute] | None:
    """Key and value of an IPv4 or IPv6 route message, normalised; None for cached clones and other families."""
    return _decode_any_route(message)


def _decode_any_route(message: Message) -> tuple[KernelRouteKey, KernelRoute] | None:
    """A route with whatever attributes.

    Normalised: IPv6 blackholes lose their ``lo``; multipath routes keep interface 0 and no gateway.
    """
    family, length, _, tos, table, protocol, scope, kind, flags = _ROUTE.unpack_from(message.payload)
    if flags & RTM_F_CLONED or family not in (Family.V4, Family.V6):
        return None
    destination: bytes | None = None
    interface, gateway, source, metric, nexthop = 0, None, None, 0, 0
    for attr, value in attributes(message.payload, _ROUTE.size):
        if attr == RTA_DST:
            destination = value
        elif attr == RTA_OIF:
            interface = _U32.unpack(value)[0]
        elif attr == RTA_GATEWAY:
            gateway = value
        elif attr == RTA_PRIORITY:
            metric = _U32.unpack(value)[0]
        elif attr == RTA_PREFSRC:
            source = value
        elif attr == RTA_TABLE:
            table = _U32.unpack(value)[0]
        elif attr == RTA_NH_ID:
            nexthop = _U32.unpack(value)[0]
    if destination is None:
        destination = bytes(4 if family == Family.V4 else 16)
    if kind != RTN_UNICAST:
        interface = 0
    key = KernelRouteKey(Family(family), Net(destination, length), metric, table, tos)
    return key, KernelRoute(kind, interface, gateway, bool(flags & RTNH_F_ONLINK), source, scope, protocol, nexthop)


def _decode_routes_together(alike: list[Message]) -> Iterable[tuple[KernelRouteKey, KernelRoute]] | None:
    """Routes with the same attributes, in one go, because a full node has ten thousand; None if one is otherwise."""
    taken = together(_ROUTE, alike, _ROUTE_NUMBERS)
    if taken is None:
        return None
    families, lengths, _, services, tables, protocols, scopes, kinds, flags = taken.header
    family, found = families[0], taken.found
    if family not in (Family.V4, Family.V6) or not same(families, family) or any(map(RTM_F_CLONED.__and__, flags)):
        return None
    none, nothing = repeat(0), repeat(None)
    interfaces = found.get(RTA_OIF, none)
    if not same(kinds, RTN_UNICAST):
        interfaces = tuple(one if kind == RTN_UNICAST else 0 for kind, one in zip(kinds, interfaces, strict=False))
    destinations = found.get(RTA_DST) or repeat(bytes(Family(family).bits // 8))
    nets = tuples(Net, destinations, lengths)
    metrics, tables = found.get(RTA_PRIORITY, none), found.get(RTA_TABLE, tables)
    keys = tuples(KernelRouteKey, repeat(Family(family)), nets, metrics, tables, services)
    ways = interfaces, found.get(RTA_GATEWAY, nothing), [bool(flag & RTNH_F_ONLINK) for flag in flags]
    sources, nexthops = found.get(RTA_PREFSRC, nothing), found.get(RTA_NH_ID, none)
    return zip(keys, tuples(KernelRoute, kinds, *ways, sources, scopes, protocols, nexthops), strict=True)


def neighbour_request(neighbour: KernelNeighbour, *, delete: bool = False) -> Request:
    """Create or replace a permanent neighbour signed with ``protocol`` (NDA_PROTOCOL, Linux 5.0), or delete it."""
    family = Family.V4 if len(neighbour.address) == 4 else Family.V6
    header = _NEIGHBOUR.pack(family, 0, 0, neighbour.interface, NUD_PERMANENT, 0, 0)
    if delete:
        return Request(RTM_DELNEIGH, 0, header + attribute(NDA_DST, neighbour.address))
    address = _HEADER_V4 if family is Family.V4 else _HEADER_V6
    signed = _MAC_AND_PROTOCOL.pack(10, NDA_LLADDR, neighbour.mac, 5, NDA_PROTOCOL, neighbour.protocol)
    return Request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, header + address + neighbour.address + signed)


def neighbour_dump_request(family: Family) -> Request:
    return Request(RTM_GETNEIGH, 0, _NEIGHBOUR.pack(family, 0, 0, 0, 0, 0, 0))


def decode_neighbours(messages: Iterable[Message]) -> list[KernelNeighbour]:
    """Permanent neighbour entries; those in any other state are left out."""
    neighbours: list[KernelNeighbour] = []
    for length, alike in by_length(messages).items():
        layout = _SIGNED_NEIGHBOURS.get(length)
        if (usual := _decode_signed_neighbours(layout, alike) if layout else None) is not None:
            neighbours += usual
        else:
            neighbours += filter(None, map(_decode_any_neighbour, alike))
    return neighbours


def decode_neighbour(message: Message) -> KernelNeighbour | None:
    """A permanent neighbour entry, None for any other state."""
    return next(iter(decode_neighbours([message])), None)


def _decode_signed_neighbours(layout: struct.Struct, alike: list[Message]) -> Iterable[KernelNeighbour] | None:
    """Entries as ours, of which a full node has ten thousand, in one go; None if one is another."""
    families, _, _, interfaces, states, _, _, *headers, protocols = columns(layout, alike)
    at_address, addresses, at_mac, macs, *others = headers
    family, at = (Family.V4, _HEADER_V4) if layout is _V4_SIGNED_NEIGHBOUR else (Family.V6, _HEADER_V6)
    in_order = same(families, family) and same(at_address, at)
    if not (in_order and all(map(same, (at_mac, *others), _NEIGHBOUR_HEADERS)) and same(states, NUD_PERMANENT)):
        return None
    return tuples(KernelNeighbour, interfaces, addresses, macs, protocols)


def _decode_any_neighbour(message: Message) -> KernelNeighbour | None:
    _, _, _, interface, state, _, _ = _NEIGHBOUR.unpack_from(message.payload)
    if not state & NUD_PERMANENT:
        return None
    found = dict(attributes(message.payload, _NEIGHBOUR.size))
    if NDA_DST not in found or NDA_LLADDR not in found:
        return None
    protocol = found.get(NDA_PROTOCOL, b"\0")[0]
    return KernelNeighbour(interface, found[NDA_DST], found[NDA_LLADDR], protocol)


def neighbour_table_dump_request(family: Family) -> Request:
    """Dump the parameters of neighbour discovery, of each interface."""
    return Request(RTM_GETNEIGHTBL, 0, bytes((family, 0, 0, 0)))  # struct ndtmsg


def decode_proxy_delay(message: Message) -> tuple[int, int] | None:
    """(interface index, ``proxy_delay`` as /proc/sys has it), None for a table's own parameters (``default``)."""
    found = _TABLE_ATTRIBUTES.of(message.payload)
    if _IN_TABLE_INDEX not in found or _IN_TABLE_DELAY not in found:
        return None
    milliseconds: int = _U64.unpack(found[_IN_TABLE_DELAY])[0]
    return _U32.unpack(found[_IN_TABLE_INDEX])[0], milliseconds * _TICKS // 1000


def link_dump_request() -> Request:
    """Dump all links. Without IFLA_EXT_MASK, for which the kernel walks all links before its first answer
    (``rtnl_calcit``, 2 ms for 5,000): to leave out the IPv6 counters by it saves nothing in all.
    """
    return Request(RTM_GETLINK, 0, _LINK.pack(0, 0, 0, 0, 0, 0))


def decode_link(message: Message) -> Link:
    """A link message (RTM_NEWLINK or RTM_DELLINK)."""
    _, _, _, index, flags, _ = _LINK.unpack_from(message.payload)
    found = _LINK_ATTRIBUTES.of(message.payload)
    name = text_of(found.get((IFLA_IFNAME,), b""))
    inet = _interface_settings(Family.V4, found.get(_IN_LINK_INET, b""))
    inet6 = _interface_settings(Family.V6, found.get(_IN_LINK_INET6, b""))
    mtu = int.from_bytes(found.get((IFLA_MTU,), b""), sys.byteorder)
    carrier = bool(flags & (IFF_RUNNING | IFF_LOWER_UP))
    return Link(index, name, bool(flags & IFF_UP), found.get((IFLA_ADDRESS,), b""), inet, inet6, mtu, carrier)


@lru_cache(256)  # interfaces of one kind have the same settings: one object for all of them
def _interface_settings(family: Family, array: bytes) -> Mapping[str, int]:
    places = {name: place - 1 for name, place in IPV4_DEVCONF.items()} if family is Family.V4 else IPV6_DEVCONF
    return _shared(
        tuple((name, _U32.unpack_from(array, 4 * at)[0]) for name, at in places.items() if len(array) >= 4 * (at + 1))
    )


@lru_cache(256)
def _shared(settings: tuple[tuple[str, int], ...]) -> Mapping[str, int]:
    return MappingProxyType(dict(settings))


def is_af_specific(message: Message) -> bool:
    """Whether a link notification speaks of one family only (a bridge port, IPv6 flags) and not of the link."""
    return bool(message.payload[:1] != b"\0")


def link_settings_request(index: int, settings: Mapping[str, int]) -> Request:
    """Set IPv4 settings of one interface by netlink, which works where ``/proc/sys`` is read-only."""
    values = [attribute(IPV4_DEVCONF[name], _U32.pack(value)) for name, value in settings.items()]
    conf = nested(IFLA_AF_SPEC, nested(Family.V4, nested(IFLA_INET_CONF, *values)))
    return Request(RTM_SETLINK, 0, _LINK.pack(0, 0, 0, index, 0, 0) + conf)


def address_dump_request(interface: int) -> Request:
    """Dump the addresses of one interface, both families; the kernel filters as it does for routes."""
    return Request(RTM_GETADDR, 0, _ADDRESS.pack(0, 0, 0, 0, interface))


def decode_address(message: Message) -> InterfaceAddress | None:
    """An IPv4 or IPv6 address; None for other families, and if another node has it (DAD failed)."""
    family, length, flags, _, interface = _ADDRESS.unpack_from(message.payload)
    if family not in (Family.V4, Family.V6):
        return None
    found = dict(attributes(message.payload, _ADDRESS.size))
    address = found.get(IFA_LOCAL) or found.get(IFA_ADDRESS)  # with a peer, IFA_ADDRESS is the peer's
    if IFA_FLAGS in found:
        flags = _U32.unpack(found[IFA_FLAGS])[0]
    return InterfaceAddress(interface, Net(address, length)) if address and not flags & IFA_F_DADFAILED else None


def address_interface(message: Message) -> int:
    """Interface index of an address message (``struct ifaddrmsg``)."""
    return int(_U32.unpack_from(message.payload, 4)[0])


def decode_netconf(message: Message) -> tuple[int, int, dict[str, int]]:
    """(family, interface index or ``NETCONFA_IFINDEX_ALL``, settings that changed) of a RTM_NEWNETCONF."""
    found = dict(attributes(message.payload, 4))
    index = int.from_bytes(found.get(NETCONFA_IFINDEX, b"\0"), sys.byteorder, signed=True)
    settings = {
        name: int.from_bytes(found[number], sys.byteorder) for name, number in NETCONF.items() if number in found
    }
    return message.payload[0], index, settings


def decode_neighbour_key(message: Message) -> tuple[int, bytes] | None:
    """(interface index, address) of a neighbour message in any state."""
    _, _, _, interface, _, _, _ = _NEIGHBOUR.unpack_from(message.payload)
    address = dict(attributes(message.payload, _NEIGHBOUR.size)).get(NDA_DST)
    return None if address is None else (interface, address)
