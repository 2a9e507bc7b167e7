"""Forwarding databases of our VXLAN devices: behind which node a MAC is. All permanent entries with a destination there
are ours, as the device is."""

from __future__ import annotations

import errno
from collections.abc import Callable
from itertools import chain

from felixpy.calc.entries import FdbKey
from felixpy.calc.mtu import Tunnel
from felixpy.dataplane.links import Links
from felixpy.dataplane.table import MISSING, KeyedTable, Waiting
from felixpy.model.net import Family
from felixpy.netlink.message import Message
from felixpy.netlink.rtnetlink import RTM_DELNEIGH
from felixpy.netlink.transport import NetlinkError, NetlinkSocket
from felixpy.netlink.tunnels import AF_BRIDGE, KernelFdb, decode_fdb, decode_fdb_entries, fdb_dump_request

VXLAN_DEVICES = {Tunnel.VXLAN.value: Family.V4, Tunnel.VXLAN_V6.value: Family.V6}


class FdbTable:
    """Keyed table of FDB entries with its way to read."""

    def __init__(self, links: Links, clock: Callable[[], float]) -> None:
        self.links = links
        self._clock = clock
        self.table: KeyedTable[FdbKey, bytes, KernelFdb] = KeyedTable(
            "fdb", self._resolve, interface_of=lambda key, value: key.interface
        )

    def _resolve(self, key: FdbKey, node: bytes) -> KernelFdb:
        link = self.links.by_name.get(key.interface)
        if link is None:
            raise Waiting(f"interface {key.interface} does not exist")
        return KernelFdb(link.ifindex, key.mac, node)

    async def read(self, socket: NetlinkSocket) -> dict[FdbKey, KernelFdb]:
        """Entries of our devices.

        Raises:
            NetlinkError: the kernel refused.
        """
        found: dict[FdbKey, KernelFdb] = {}
        for name, family in VXLAN_DEVICES.items():
            if (link := self.links.by_name.get(name)) is None:
                continue
            try:
                dumped = await socket.decode_together(fdb_dump_request(link.ifindex), decode_fdb_entries)
            except NetlinkError as error:
                if error.errno not in (errno.ENODEV, errno.EINVAL):
                    raise
                continue
            for entry in chain.from_iterable(dumped):
                if entry.interface == link.ifindex:
                    found[FdbKey(name, entry.mac, family)] = entry
        return found

    def notify(self, message: Message) -> None:
        """Take a notification of a forwarding database (``is_fdb``)."""
        entry = decode_fdb(message)
        name = self.links.name_of(entry.interface) if entry else None
        if entry is None or name not in VXLAN_DEVICES:
            return
        key = FdbKey(name, entry.mac, VXLAN_DEVICES[name])
        if message.type == RTM_DELNEIGH:
            if self.table.committed.get(key) == entry:
                self.table.observe(key, MISSING, self._clock())
        else:
            self.table.observe(key, entry, self._clock())


def is_fdb(message: Message) -> bool:
    """Whether a neighbour message speaks of a forwarding database."""
    return bool(message.payload[:1] == bytes((AF_BRIDGE,)))
