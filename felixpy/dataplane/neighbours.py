"""Permanent neighbour entries of workloads whose MAC is known, both families.

Ours are the permanent entries signed with our route protocol number (NDA_PROTOCOL, Linux 5.0).
"""

from __future__ import annotations

from felixpy.calc.entries import NeighbourKey
from felixpy.config import Settings
from felixpy.dataplane.links import Links
from felixpy.dataplane.table import KeyedTable, Waiting
from felixpy.model.net import Family
from felixpy.netlink import rtnetlink
from felixpy.netlink.rtnetlink import KernelNeighbour
from felixpy.netlink.transport import NetlinkSocket, Request


class NeighbourTable:
    """Keyed table of neighbours with its way to read and write."""

    def __init__(self, links: Links, settings: Settings) -> None:
        self.links = links
        self.settings = settings
        self.table: KeyedTable[NeighbourKey, bytes, KernelNeighbour] = KeyedTable(
            "neighbours", self._resolve, interface_of=lambda key, mac: key.interface
        )

    def read(self, socket: NetlinkSocket) -> dict[NeighbourKey, KernelNeighbour]:
        """Our neighbour entries of both families.

        Raises:
            NetlinkError: the kernel refused, or the table kept changing.
        """
        found = {}
        for family in Family:
            for message in socket.dump_all(rtnetlink.neighbour_dump_request(family)):
                neighbour = rtnetlink.decode_neighbour(message)
                if neighbour is None or neighbour.protocol != self.settings.device_route_protocol:
                    continue
                interface = self.links.name_of(neighbour.interface)
                if interface is not None:
                    found[NeighbourKey(interface, neighbour.address)] = neighbour
        return found

    @staticmethod
    def request(key: NeighbourKey, neighbour: KernelNeighbour, *, delete: bool) -> Request:
        return rtnetlink.neighbour_request(neighbour, delete=delete)

    def _resolve(self, key: NeighbourKey, mac: bytes) -> KernelNeighbour:
        link = self.links.by_name.get(key.interface)
        if link is None:
            raise Waiting(f"interface {key.interface} does not exist")
        if not link.up:
            raise Waiting(f"interface {key.interface} is down")
        return KernelNeighbour(link.ifindex, key.address, mac, self.settings.device_route_protocol)
