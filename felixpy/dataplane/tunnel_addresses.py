"""Addresses of our tunnel devices.

All on a VXLAN device of ours are ours; on ``tunl0``, which others use, those that we signed (IFA_PROTO). The last IPv4
address of a device is what lets it take packets, so it stays as long as the device does.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection

from felixpy.calc.entries import AddressKey
from felixpy.calc.mtu import Tunnel
from felixpy.dataplane.links import Links
from felixpy.dataplane.ownership import Ownership
from felixpy.dataplane.table import MISSING, KeyedTable, Waiting
from felixpy.model.net import Net
from felixpy.netlink.message import Message
from felixpy.netlink.rtnetlink import RTM_DELADDR
from felixpy.netlink.transport import NetlinkError, NetlinkSocket
from felixpy.netlink.tunnels import KernelAddress, address_dump_request, decode_tunnel_address


class TunnelAddressTable:
    """Keyed table of addresses with its way to read."""

    def __init__(
        self,
        links: Links,
        ownership: Ownership,
        clock: Callable[[], float],
        lingers: Callable[[str], bool] = lambda device: False,
        devices: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self.links = links
        self.ownership = ownership
        self._clock = clock
        self._devices = devices
        self.table: KeyedTable[AddressKey, None, KernelAddress] = KeyedTable(
            "addresses",
            self._resolve,
            ours=self._is_ours,
            removable=lambda key, address: not lingers(key.interface),
            interface_of=lambda key, value: key.interface,
        )

    def _resolve(self, key: AddressKey, value: None) -> KernelAddress:
        link = self.links.by_name.get(key.interface)
        if link is None:
            raise Waiting(f"interface {key.interface} does not exist", gone=True)
        present = self.table.committed.get(key)
        if present is not None and present.net == Net.host(key.address) and present.interface == link.ifindex:
            return present  # whoever signed it: a kernel before 5.18 knows no signature
        return KernelAddress(link.ifindex, Net.host(key.address), self.ownership.device_route_protocol)

    def _is_ours(self, key: AddressKey, address: KernelAddress) -> bool:
        if self.links.name_of(address.interface) != key.interface:
            return False
        return key.interface != Tunnel.IPIP or address.protocol == self.ownership.device_route_protocol

    async def read(self, socket: NetlinkSocket) -> dict[AddressKey, KernelAddress]:
        """Addresses of the devices that may be ours.

        Raises:
            NetlinkError: the kernel refused.
        """
        found: dict[AddressKey, KernelAddress] = {}
        for name in self._devices():
            if (link := self.links.by_name.get(name)) is None:
                continue
            try:
                addresses = await socket.decode_sliced(address_dump_request(link.ifindex), decode_tunnel_address)
            except NetlinkError as error:
                if error.errno != errno.ENODEV:
                    raise
                continue
            for address in addresses:
                if address is not None and address.interface == link.ifindex:
                    self._take(AddressKey(address.net.packed, name), address, found)
        return found

    def _take(self, key: AddressKey, address: KernelAddress, found: dict[AddressKey, KernelAddress]) -> None:
        if key in self.table.desired or self._is_ours(key, address):
            found[key] = address

    def notify(self, message: Message) -> None:
        """Take an address notification."""
        address = decode_tunnel_address(message)
        name = self.links.name_of(address.interface) if address else None
        if address is None or name is None or name not in self._devices():
            return
        key = AddressKey(address.net.packed, name)
        if message.type == RTM_DELADDR:
            if key in self.table.committed:
                self.table.observe(key, MISSING, self._clock())
        elif key in self.table.desired or self._is_ours(key, address):
            self.table.observe(key, address, self._clock())
