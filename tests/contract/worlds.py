"""Two kernels under one interface: the fake, and the real one in the test's network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from felixpy.dataplane.fake import FakePacketFilter
from felixpy.dataplane.iptables import LegacyFilter, NftVariantFilter
from felixpy.dataplane.nftables.filter import NftablesFilter
from felixpy.dataplane.packet_filter import PacketFilter
from felixpy.model.net import Family, Net
from felixpy.netlink import rtnetlink
from felixpy.netlink.fake import FakeKernel, FakeSocket
from felixpy.netlink.message import Request
from felixpy.netlink.rtnetlink import KernelNeighbour, KernelRoute, KernelRouteKey, Link
from felixpy.netlink.transport import NETLINK_ROUTE, NetlinkSocket
from tests.kernel import ip

FILTERS: dict[str, Callable[[Family], PacketFilter]] = {
    "fake": FakePacketFilter,
    "nftables": NftablesFilter,
    "legacy": LegacyFilter,
    "nft": NftVariantFilter,
}


class World(Protocol):
    """A kernel's routing tables: what others do to it, and a socket."""

    socket: NetlinkSocket

    def add_link(self, name: str) -> None:
        """An interface that is up."""

    def set_link(self, name: str, *, up: bool) -> None: ...

    def delete_link(self, name: str) -> None: ...

    def add_address(self, name: str, address: str) -> None: ...


class FakeWorld:
    def __init__(self) -> None:
        self.kernel = FakeKernel()
        self.socket: NetlinkSocket = FakeSocket(self.kernel)

    def add_link(self, name: str) -> None:
        self.kernel.add_link(name)

    def set_link(self, name: str, *, up: bool) -> None:
        self.kernel.set_link(name, up=up)

    def delete_link(self, name: str) -> None:
        self.kernel.delete_link(name)

    def add_address(self, name: str, address: str) -> None:
        self.kernel.add_address(name, Net.parse_interface(address))


class KernelWorld:
    def __init__(self) -> None:
        self.socket = NetlinkSocket(NETLINK_ROUTE)

    def add_link(self, name: str) -> None:
        ip(f"link add {name} type veth peer name p-{name}", f"link set {name} up", f"link set p-{name} up")

    def set_link(self, name: str, *, up: bool) -> None:
        ip(f"link set {name} {'up' if up else 'down'}")

    def delete_link(self, name: str) -> None:
        ip(f"link del {name}")

    def add_address(self, name: str, address: str) -> None:
        ip(f"addr add {address} dev {name}{' nodad' if ':' in address else ''}")


class Tables:
    """Reading and writing through a world's socket, as the dataplane does."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.socket = world.socket

    def do(self, *requests: Request) -> list[int]:
        """Send all at once; error numbers by request, 0 for those that were done."""
        refusals = self.socket.transact(requests)
        return [refusals[index].errno if index in refusals else 0 for index in range(len(requests))]

    def routes(self, family: Family, protocol: int, interface: int = 0) -> dict[KernelRouteKey, KernelRoute]:
        request = rtnetlink.route_dump_request(family, 254, interface)
        found = asyncio.run(self.socket.dump_sliced(request))
        decoded = [one for one in map(rtnetlink.decode_route, found) if one is not None]
        return {key: route for key, route in decoded if route.protocol == protocol}

    def neighbours(self, family: Family) -> set[KernelNeighbour]:
        found = asyncio.run(self.socket.dump_sliced(rtnetlink.neighbour_dump_request(family)))
        decoded = (rtnetlink.decode_neighbour(message) for message in found)
        return {one for one in decoded if one is not None and one.protocol}

    def link(self, name: str) -> Link | None:
        found = map(rtnetlink.decode_link, self.socket.dump_all(rtnetlink.link_dump_request()))
        return next((link for link in found if link.name == name), None)

    def index(self, name: str) -> int:
        link = self.link(name)
        assert link is not None
        return link.ifindex
