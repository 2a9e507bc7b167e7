"""A kernel's routing tables in memory, behind the interface of ``NetlinkSocket``: for random histories and faults.

It takes the same bytes as the kernel and refuses what the kernel refuses, with the same error numbers; one contract
suite runs against it and against the real one. It has no nexthop objects, as kernels before 5.3. Only what felixpy
sends is known. Must never be asked what a test about packets wants to know, and never be more lenient than the kernel.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator, Sequence

from msgspec import Struct, field

from felixpy.model.net import Family, Net, family_of
from felixpy.netlink import rtnetlink
from felixpy.netlink.message import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    Request,
    attribute,
    attributes,
    nested,
    text_attribute,
)
from felixpy.netlink.rtnetlink import KernelNeighbour, KernelRoute, KernelRouteKey
from felixpy.netlink.transport import NETLINK_ROUTE, DumpInterrupted, NetlinkError, NetlinkSocket, Refusal

IPV6_DEFAULT_METRIC = 1024
IPV4_SETTINGS, IPV6_SETTINGS = 32, 53  # lengths of the arrays in Linux 6.x
MESSAGES_PER_DATAGRAM = 20


class FakeRefusalError(OSError):
    """What the kernel answers to one message."""


class FakeLink(Struct):
    """An interface: flags, MAC, the prefixes of its addresses, and its settings by number."""

    name: str
    up: bool = True
    mac: bytes = bytes(6)
    addresses: list[Net] = field(default_factory=list)
    inet: list[int] = field(default_factory=lambda: [0] * IPV4_SETTINGS)
    inet6: list[int] = field(default_factory=lambda: [0] * IPV6_SETTINGS)


class FakeKernel:
    """Links, routes, permanent neighbours and IPv4 interface settings of one network namespace."""

    def __init__(self) -> None:
        self.links: dict[int, FakeLink] = {1: FakeLink("lo")}
        self.routes: dict[KernelRouteKey, KernelRoute] = {}
        self.neighbours: dict[tuple[int, bytes], KernelNeighbour] = {}
        self.refuses: Callable[[Request], int] = lambda request: 0
        """An error number for a request that is to fail besides, 0 for none."""
        self.interruptions = 0
        """How many of the next dumps are marked interrupted."""
        self._next_index = 2

    # --- what others do ------------------------------------------------------------------------------------------

    def add_link(self, name: str, *, up: bool = True) -> int:
        """A new interface; its index was never used before."""
        index, self._next_index = self._next_index, self._next_index + 1
        self.links[index] = FakeLink(name, up)
        return index

    def set_link(self, name: str, *, up: bool) -> None:
        """Up or down. An interface that goes down loses its routes of both families, and its neighbours."""
        index = self.index_of(name)
        self.links[index].up = up
        if not up:
            self._flush(index)

    def delete_link(self, name: str) -> None:
        index = self.index_of(name)
        self._flush(index)
        del self.links[index]

    def add_address(self, name: str, address: Net) -> None:
        self.links[self.index_of(name)].addresses.append(address)

    def index_of(self, name: str) -> int:
        return next(index for index, link in self.links.items() if link.name == name)

    def _flush(self, index: int) -> None:
        self.routes = {key: route for key, route in self.routes.items() if route.interface != index}
        self.neighbours = {place: one for place, one in self.neighbours.items() if place[0] != index}

    # --- requests ------------------------------------------------------------------------------------------------

    def take(self, request: Request) -> None:
        """Carry out one request.

        Raises:
            FakeRefusalError: as the kernel would.
        """
        if number := self.refuses(request):
            raise FakeRefusalError(number)
        message = Message(request.type, request.flags, 0, request.payload)
        match request.type:
            case rtnetlink.RTM_NEWROUTE:
                self._new_route(message)
            case rtnetlink.RTM_DELROUTE:
                self._delete_route(message)
            case rtnetlink.RTM_NEWNEIGH:
                self._new_neighbour(message)
            case rtnetlink.RTM_DELNEIGH:
                self._delete_neighbour(message)
            case rtnetlink.RTM_SETLINK:
                self._set_link(message)
            case _:
                raise FakeRefusalError(errno.EOPNOTSUPP)

    def _new_route(self, message: Message) -> None:
        key, route = _route(message)
        if key.family is Family.V6 and not key.metric:
            key = key._replace(metric=IPV6_DEFAULT_METRIC)
        network = Net.parse_masked(str(key.destination))
        if key.family is Family.V4 and network != key.destination:
            raise FakeRefusalError(errno.EINVAL)
        key = key._replace(destination=network)
        if route.type == rtnetlink.RTN_UNICAST:
            self._check_way(key.family, route)
        if route.source is not None and not self._is_local(route.source):
            raise FakeRefusalError(errno.EINVAL)
        _check_flags(message.flags, key in self.routes)
        self.routes[key] = route

    def _check_way(self, family: Family, route: KernelRoute) -> None:
        link = self.links.get(route.interface)
        if link is None:
            raise FakeRefusalError(errno.ENODEV)
        if not link.up:
            raise FakeRefusalError(errno.ENETDOWN)
        if route.gateway is not None and not route.onlink and not self._is_on_link(route.interface, route.gateway):
            raise FakeRefusalError(errno.ENETUNREACH if family is Family.V4 else errno.EHOSTUNREACH)

    def _is_local(self, address: bytes) -> bool:
        return any(address == one.packed for link in self.links.values() for one in link.addresses)

    def _is_on_link(self, index: int, gateway: bytes) -> bool:
        return any(one.covers(gateway) for one in self.links[index].addresses)

    def _delete_route(self, message: Message) -> None:
        key, asked = _route(message)
        found = self.routes.get(key)
        same = found is not None and (found.type, found.protocol) == (asked.type, asked.protocol)
        if found is None or not same or asked.interface not in (0, found.interface):
            raise FakeRefusalError(errno.ESRCH)
        del self.routes[key]

    def _new_neighbour(self, message: Message) -> None:
        neighbour = rtnetlink.decode_neighbour(message)
        if neighbour is None:
            raise FakeRefusalError(errno.EINVAL)
        place = neighbour.interface, neighbour.address
        link = self.links.get(neighbour.interface)
        if link is None:
            raise FakeRefusalError(errno.ENODEV)
        _check_flags(message.flags, place in self.neighbours)
        self.neighbours[place] = neighbour

    def _delete_neighbour(self, message: Message) -> None:
        place = rtnetlink.decode_neighbour_key(message)
        if place is None:
            raise FakeRefusalError(errno.EINVAL)
        if place[0] not in self.links:
            raise FakeRefusalError(errno.ENODEV)
        if self.neighbours.pop(place, None) is None:
            raise FakeRefusalError(errno.ENOENT)

    def _set_link(self, message: Message) -> None:
        index = rtnetlink.decode_link(message).ifindex
        if index not in self.links:
            raise FakeRefusalError(errno.ENODEV)
        for family, conf in _nested(message.payload[16:], rtnetlink.IFLA_AF_SPEC):
            if family == Family.V4:
                for number, value in _nested(conf, rtnetlink.IFLA_INET_CONF):
                    self.links[index].inet[number - 1] = struct.unpack("=I", value)[0]

    # --- dumps ---------------------------------------------------------------------------------------------------

    def answer(self, request: Request) -> list[Message]:
        """Messages of a dump."""
        kind = request.type
        if kind == rtnetlink.RTM_GETLINK:
            return [_message(rtnetlink.RTM_NEWLINK, _encode_link(*one)) for one in self.links.items()]
        if kind == rtnetlink.RTM_GETNEIGH:
            return [
                _message(rtnetlink.RTM_NEWNEIGH, rtnetlink.neighbour_request(one).payload)
                for one in self.neighbours.values()
                if family_of(one.address) == request.payload[0]
            ]
        if kind == rtnetlink.RTM_GETNEIGHTBL:
            return []
        if kind != rtnetlink.RTM_GETROUTE:
            raise FakeRefusalError(errno.EOPNOTSUPP)
        wanted, _ = _route(Message(kind, 0, 0, request.payload))
        return [
            _message(rtnetlink.RTM_NEWROUTE, rtnetlink.route_request(key, route).payload)
            for key, route in self.routes.items()
            if (key.family, key.table) == (wanted.family, wanted.table) and _filter_of(request) in (0, route.interface)
        ]


class FakeSocket(NetlinkSocket):
    """``NetlinkSocket`` to a fake kernel; counts as the real one does and never opens a socket."""

    def __init__(self, kernel: FakeKernel) -> None:
        super().__init__(NETLINK_ROUTE)
        self.kernel = kernel

    def transact(self, requests: Sequence[Request], *, batch: bool = False) -> dict[int, Refusal]:
        refusals = {}
        self.sends += bool(requests)
        self.messages_sent += len(requests)
        self.bytes_sent += sum(16 + len(request.payload) for request in requests)
        for index, request in enumerate(requests):
            try:
                self.kernel.take(request)
            except FakeRefusalError as refusal:
                refusals[index] = Refusal(int(refusal.args[0]))
        return refusals

    def dump(self, request: Request) -> Iterator[list[Message]]:
        self.dumps_sent += 1
        interrupted, self.kernel.interruptions = self.kernel.interruptions, max(self.kernel.interruptions - 1, 0)
        try:
            messages = self.kernel.answer(request)
        except FakeRefusalError as refusal:
            raise NetlinkError(int(refusal.args[0]), "not in this kernel") from None
        for start in range(0, max(len(messages), 1), MESSAGES_PER_DATAGRAM):
            yield messages[start : start + MESSAGES_PER_DATAGRAM]
        if interrupted:
            raise DumpInterrupted

    def close(self) -> None:
        """Nothing is open."""


def _route(message: Message) -> tuple[KernelRouteKey, KernelRoute]:
    decoded = rtnetlink.decode_route(message)
    if decoded is None:
        raise FakeRefusalError(errno.EINVAL)
    return decoded


def _filter_of(request: Request) -> int:
    """The interface that a dump asks for; ``decode_route`` drops it, because the type of a dump request is none."""
    found = dict(attributes(request.payload, 12)).get(rtnetlink.RTA_OIF, bytes(4))
    return int(struct.unpack("=I", found)[0])


def _check_flags(flags: int, exists: bool) -> None:
    if exists and flags & NLM_F_EXCL:
        raise FakeRefusalError(errno.EEXIST)
    if exists and not flags & NLM_F_REPLACE:
        raise FakeRefusalError(errno.EEXIST)
    if not exists and not flags & NLM_F_CREATE:
        raise FakeRefusalError(errno.ENOENT)


def _nested(data: bytes, kind: int) -> Iterator[tuple[int, bytes]]:
    return attributes(dict(attributes(data)).get(kind, b""))


def _message(kind: int, payload: bytes) -> Message:
    return Message(kind, 0, 0, payload)


def _encode_link(index: int, link: FakeLink) -> bytes:
    header = struct.pack("=BBHiII", 0, 0, 1, index, rtnetlink.IFF_UP if link.up else 0, 0)
    inet = nested(Family.V4, attribute(rtnetlink.IFLA_INET_CONF, struct.pack(f"={len(link.inet)}I", *link.inet)))
    inet6 = nested(Family.V6, attribute(rtnetlink.IFLA_INET6_CONF, struct.pack(f"={len(link.inet6)}I", *link.inet6)))
    name = text_attribute(rtnetlink.IFLA_IFNAME, link.name)
    return header + name + attribute(rtnetlink.IFLA_ADDRESS, link.mac) + nested(rtnetlink.IFLA_AF_SPEC, inet, inet6)
