"""Permanent neighbour entries of workloads whose MAC is known, and of other nodes' tunnels, both families.

Ours are the permanent entries signed with our route protocol number (NDA_PROTOCOL, Linux 5.0), and all of those on our
VXLAN devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from felixpy.calc.entries import NeighbourKey
from felixpy.dataplane.fdb import VXLAN_DEVICES
from felixpy.dataplane.links import Links
from felixpy.dataplane.ownership import Ownership
from felixpy.dataplane.table import MISSING, KeyedTable, Waiting
from felixpy.model.net import Family
from felixpy.netlink import rtnetlink
from felixpy.netlink.columns import tuples
from felixpy.netlink.message import Message
from felixpy.netlink.rtnetlink import KernelNeighbour
from felixpy.netlink.transport import NetlinkSocket
from felixpy.slices import emptied, in_slices


class NeighbourTable:
    """Keyed table of neighbours with its way to read and write."""

    def __init__(self, links: Links, ownership: Ownership, clock: Callable[[], float]) -> None:
        self.links = links
        self._clock = clock
        self.ownership = ownership
        self.table: KeyedTable[NeighbourKey, bytes, KernelNeighbour] = KeyedTable(
            "neighbours",
            self._resolve,
            ours=self._is_ours,
            interface_of=lambda key, mac: key.interface,
        )

    async def read(self, socket: NetlinkSocket) -> dict[NeighbourKey, KernelNeighbour]:
        """Our neighbour entries of both families, in slices.

        Raises:
            NetlinkError: the kernel refused, or the table kept changing.
        """
        found: dict[NeighbourKey, KernelNeighbour] = {}
        for family in Family:
            dumped = await socket.decode_together(rtnetlink.neighbour_dump_request(family), rtnetlink.decode_neighbours)
            async for parts in in_slices(emptied(dumped, dumped.pop), 1):
                for neighbours in parts:
                    found.update(self._ours(neighbours))
        return found

    def _is_ours(self, key: NeighbourKey, neighbour: KernelNeighbour) -> bool:
        """Whether we signed an entry, and it is still the key's: its interface may have another name by now."""
        signed = neighbour.protocol == self.ownership.device_route_protocol or key.interface in VXLAN_DEVICES
        return signed and self.links.name_of(neighbour.interface) == key.interface

    def renamed(self, names: Mapping[int, str]) -> None:
        """Interfaces that are up have got other names, with which their entries stay; ``names`` are the former ones."""
        table, moved = self.table, dict[NeighbourKey, KernelNeighbour]()
        for index, former in names.items():
            name = self.links.name_of(index)
            for key in list(table.wanted_on(former)):
                neighbour = table.committed.get(key)
                if name is not None and neighbour is not None and neighbour.interface == index:
                    moved[NeighbourKey(name, key.address)] = neighbour
                    table.forget((key,))
        for key, neighbour in moved.items():
            table.learn(key, neighbour)
        table.mark(moved)

    def _ours(self, neighbours: Iterable[KernelNeighbour]) -> Iterator[tuple[NeighbourKey, KernelNeighbour]]:
        """Those that we signed, with their keys."""
        protocol, links = self.ownership.device_route_protocol, self.links.by_index
        by_name = self.links.by_name
        tunnels = {by_name[name].ifindex for name in VXLAN_DEVICES if name in by_name}
        known = [one for one in neighbours if one.interface in links]
        ours = [one for one in known if one.protocol == protocol or one.interface in tunnels]
        interfaces, addresses = [links[one.interface].name for one in ours], [one.address for one in ours]
        return zip(tuples(NeighbourKey, interfaces, addresses), ours, strict=True)

    def notify(self, message: Message) -> None:
        """Take a neighbour notification; only entries that are wanted, or signed by us, matter."""
        place = rtnetlink.decode_neighbour_key(message)
        interface = self.links.name_of(place[0]) if place else None
        if place is None or interface is None:
            return
        key = NeighbourKey(interface, place[1])
        neighbour = rtnetlink.decode_neighbour(message) if message.type == rtnetlink.RTM_NEWNEIGH else None
        if neighbour is not None and (
            key in self.table.desired
            or neighbour.protocol == self.ownership.device_route_protocol
            or interface in VXLAN_DEVICES
        ):
            self.table.observe(key, neighbour, self._clock())
        elif neighbour is None and key in self.table.committed:
            self.table.observe(key, MISSING, self._clock())

    def _resolve(self, key: NeighbourKey, mac: bytes) -> KernelNeighbour:
        link = self.links.by_name.get(key.interface)
        if link is None:
            raise Waiting(f"interface {key.interface} does not exist")
        if not link.up:
            raise Waiting(f"interface {key.interface} is down")
        return KernelNeighbour(link.ifindex, key.address, mac, self.ownership.device_route_protocol)
