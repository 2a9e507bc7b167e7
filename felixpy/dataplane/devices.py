"""Tunnel devices of this node, with Calico's names, so that a node that comes from Felix keeps device and traffic.

What stands under a name that is wanted is changed in place where the kernel can, else made anew. Ours to remove are
those that we signed (IFLA_IFALIAS). Nodes do not change at the same instant: one that needs a device no more keeps it
for a while for what others still send through it, and one that has just made it lets others make theirs before it
leads through it what had another way until then. ``tunl0`` is the kernel's and shared with others: it is set up,
signed, and never removed; it takes no outer source, for which there is a device of our own. The calculation says what a
device has; what of it the kernel does not take is refused and tried again.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from felixpy.calc.entries import DeviceKey, Ipip, Vxlan, WireGuard
from felixpy.calc.mtu import OWN_IPIP, Tunnel
from felixpy.dataplane.links import LinkEvents, Links
from felixpy.dataplane.table import MISSING, KeyedTable, Waiting
from felixpy.dataplane.wireguard import WireGuardDevices, is_wireguard
from felixpy.dataplane.wireguard_channel import KERNEL, USERSPACE
from felixpy.model.net import Family
from felixpy.netlink.message import (
    Message,
    Request,
    text_attribute,
)
from felixpy.netlink.rtnetlink import IFLA_IFNAME, RTM_DELLINK, decode_link
from felixpy.netlink.transport import NetlinkError, NetlinkSocket
from felixpy.netlink.tunnels import (
    KernelDevice,
    decode_device,
    device_delete_request,
    device_kind_dump_request,
    device_query,
    device_settings_request,
    device_unsign_request,
    ipip_change_request,
    ipip_create_request,
    vxlan_change_request,
    vxlan_create_request,
    wireguard_create_request,
)

ALIAS = "felixpy"
"""Signs a device as ours; it is what ``ip link`` shows people, too."""

POOLS_KEYS = {
    Tunnel.VXLAN.value: DeviceKey(Family.V4, Tunnel.VXLAN),
    Tunnel.VXLAN_V6.value: DeviceKey(Family.V6, Tunnel.VXLAN_V6),
    Tunnel.IPIP.value: DeviceKey(Family.V4, Tunnel.IPIP),
    OWN_IPIP: DeviceKey(Family.V4, OWN_IPIP),
}
"""Devices that pools need, by name; those of WireGuard have the names that the settings give them."""

LINGER_SECONDS = 10.0
"""For so long a device that nobody needs takes what other nodes still send."""

SETTLING_SECONDS = 1.0
"""For so long after a device was made the others may need to make theirs."""

_NO_IPIP = "this kernel has no IPIP (module ipip)"


class DeviceTable:
    """Keyed table of tunnel devices with its way to read and write."""

    def __init__(self, links: Links, clock: Callable[[], float], wireguard: WireGuardDevices) -> None:
        self.links = links
        self.wireguard = wireguard
        self._former: dict[str, DeviceKey] = {}
        self._clock = clock
        self._lingers_until: dict[DeviceKey, float] = {}
        self._settles_at: dict[str, float] = {}
        self.table: KeyedTable[DeviceKey, Vxlan | Ipip | WireGuard, KernelDevice] = KeyedTable(
            "devices",
            self._resolve,
            ours=lambda key, device: device.alias == ALIAS,
            removable=lambda key, device: self._clock() >= self._lingers_until.get(key, 0.0),
            interface_of=lambda key, device: device.parent if isinstance(device, Vxlan) else None,
            describe=lambda device: f"a {device.kind or 'strange'} device",
        )

    @property
    def keys(self) -> dict[str, DeviceKey]:
        """Devices that may be ours, by name."""
        return {**self._former, **POOLS_KEYS, **self.wireguard.names}

    def tunnel_of(self, key: DeviceKey) -> Tunnel:
        """Which tunnel a device is."""
        if key.name in POOLS_KEYS:
            return Tunnel.IPIP if key.name == OWN_IPIP else Tunnel(key.name)
        return Tunnel.WIREGUARD if key.family is Family.V4 else Tunnel.WIREGUARD_V6

    def standing(self, name: str) -> KernelDevice | None:
        """A device that is as it is wanted, by its name."""
        key = self.keys.get(name)
        return self.table.committed.get(key) if key is not None else None

    def public_keys(self) -> dict[Family, bytes]:
        """The public keys of this node's WireGuard devices that stand."""
        wanted = ((key, self.table.committed.get(key)) for key in self.wireguard.names.values())
        return {key.family: one.key for key, one in wanted if one and one.key and key in self.table.desired}

    def drop(self, key: DeviceKey) -> None:
        """No longer need a device."""
        if key in self.table.desired:
            self._lingers_until[key] = self._clock() + LINGER_SECONDS
        self.table.drop(key)

    def lingers(self, name: str) -> bool:
        """Whether a device that nobody needs stays for a while."""
        key = self.keys.get(name)
        return key is not None and key not in self.table.desired and self._clock() < self._lingers_until.get(key, 0.0)

    def settles_in(self, name: str) -> float:
        """Seconds until others have made their device, too, as far as can be expected."""
        return max(self._settles_at.get(name, 0.0) - self._clock(), 0.0)

    def settling(self) -> list[str]:
        """Devices whose others may not have theirs yet."""
        return [name for name in self._settles_at if self.settles_in(name)]

    def next_removal(self) -> float | None:
        """When the first device may go, on the clock; None if none waits for that."""
        waits = [
            self._lingers_until.get(key, 0.0)
            for key in self.table.dirty
            if key not in self.table.desired and key in self.table.committed and key not in self.table.refused
        ]
        return min(waits, default=None)

    def _resolve(self, key: DeviceKey, device: Vxlan | Ipip | WireGuard) -> KernelDevice:
        if isinstance(device, WireGuard):
            return self.wireguard.resolve(key, device, ALIAS, self.table.committed.get(key))
        if isinstance(device, Ipip):
            return KernelDevice("ipip", device.mtu, True, ALIAS, local=device.local)
        link = self.links.by_name.get(device.parent) if device.parent else None
        if device.parent and link is None:
            raise Waiting(f"interface {device.parent} does not exist")
        return KernelDevice(
            "vxlan",
            device.mtu,
            True,
            ALIAS,
            device.vni,
            device.port,
            device.local,
            link.ifindex if link else 0,
            device.mac,
        )

    async def read(self, socket: NetlinkSocket) -> dict[DeviceKey, KernelDevice]:
        """Devices under our names that are wanted or signed.

        Raises:
            NetlinkError: the kernel refused.
        """
        found = {}
        self._former = await self._read_former(socket)
        for name, key in self.keys.items():
            device = self._ask(socket, name) if name in self.links.by_name else None
            if device is not None and (key in self.table.desired or device.alias == ALIAS):
                found[key] = device
        return found

    async def _read_former(self, socket: NetlinkSocket) -> dict[str, DeviceKey]:
        """WireGuard devices that we made under another name: they would keep the port."""
        found: dict[str, DeviceKey] = {}
        for kind in (KERNEL, USERSPACE):
            try:
                links = await socket.dump_sliced(device_kind_dump_request(kind))
            except NetlinkError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
                continue
            for link in links:
                device, name = decode_device(link), decode_link(link).name
                if device.alias == ALIAS and device.kind == kind:
                    found[name] = DeviceKey(Family.V4, name)
        return found

    def _ask(self, socket: NetlinkSocket, name: str) -> KernelDevice | None:
        try:
            return self._completed(name, decode_device(socket.ask(device_query(name))))
        except NetlinkError as error:
            if error.errno != errno.ENODEV:
                raise
            return None

    def notify(self, message: Message) -> None:
        """Take a link notification."""
        keys = self.keys
        if not any(name.encode() in message.payload for name in keys):
            return
        key = keys.get(decode_link(message).name)
        if key is None:
            return
        device, known = decode_device(message), self.table.committed.get(key)
        if known is not None and is_wireguard(known) and known.kind == device.kind:
            device = device._replace(port=known.port, mark=known.mark, key=known.key, threaded=known.threaded)
        elif message.type != RTM_DELLINK:
            device = self._completed(key.name, device)
        if message.type == RTM_DELLINK:
            if key in self.table.committed:
                self.table.observe(key, MISSING, self._clock())
        elif key in self.table.desired or device.alias == ALIAS:
            self.table.observe(key, device, self._clock())

    def _completed(self, name: str, device: KernelDevice) -> KernelDevice:
        """With what no link message tells."""
        return (
            self.wireguard.complete(name, device) if name in self.wireguard.names and is_wireguard(device) else device
        )

    async def write(self, key: DeviceKey, wanted: KernelDevice, socket: NetlinkSocket) -> tuple[LinkEvents, str]:
        """Make one device as it is wanted. Returns what that does to links, and why it could not be done."""
        try:
            present = self._ask(socket, key.name)
            if is_wireguard(wanted):
                events, reason = await self._write_wireguard(key, present, wanted, socket)
            else:
                events, reason = self._write(key.name, present, wanted, socket)
            if reason and key.name not in self.links.by_name:
                return events, reason
            stands = socket.ask(device_query(key.name))
        except NetlinkError as error:
            reason = _NO_IPIP if wanted.kind == "ipip" and error.errno == errno.ENODEV else str(error)
            return LinkEvents(), reason
        except OSError as error:
            return LinkEvents(), str(error)
        events = _both(events, self.links.notify([stands]))
        device = self._completed(key.name, decode_device(stands))
        self.table.learn(key, device)
        if is_wireguard(wanted):
            wanted = self.wireguard.resolve(key, self._wireguard_wanted(key), ALIAS, device)
        if not reason and device != wanted:
            reason = f"the kernel made it otherwise: {_difference(wanted, device)}"
        return events, reason

    def _write(
        self, name: str, present: KernelDevice | None, wanted: KernelDevice, socket: NetlinkSocket
    ) -> tuple[LinkEvents, str]:
        events = LinkEvents()
        if name == Tunnel.IPIP:
            if present is None:
                return events, _NO_IPIP
            if not can_become(present, wanted):
                return events, f"{name} is another program's: a device of kind {present.kind or 'unknown'} with ends"
        elif present is not None and not can_become(present, wanted):
            events = self._delete(name, socket)
            present = None
        if present is None:
            create = vxlan_create_request if wanted.kind == "vxlan" else ipip_create_request
            if reason := _send(socket, create(name, wanted)):
                return events, _NO_IPIP if wanted.kind == "ipip" and "not supported" in reason else reason
            present = decode_device(socket.ask(device_query(name)))
            self._settles_at[name] = self._clock() + SETTLING_SECONDS
        index = self._index(name, socket)
        change = vxlan_change_request if wanted.kind == "vxlan" else ipip_change_request
        moves = (present.local, present.link) != (wanted.local, wanted.link)
        if moves and (reason := _send(socket, change(index, wanted))):
            return events, reason
        settings = device_settings_request(
            index,
            mtu=wanted.mtu if present.mtu != wanted.mtu else 0,
            mac=wanted.mac if present.mac != wanted.mac else b"",
            alias=wanted.alias if present.alias != wanted.alias else "",
            up=not present.up,
        )
        lost = {name} if present.mac != wanted.mac else set[str]()  # its neighbours go with the MAC
        return _both(events, LinkEvents(changed=lost, lost=lost)), _send(socket, settings)

    def _wireguard_wanted(self, key: DeviceKey) -> WireGuard:
        wanted = self.table.desired[key]
        assert isinstance(wanted, WireGuard)
        return wanted

    async def _write_wireguard(
        self, key: DeviceKey, present: KernelDevice | None, wanted: KernelDevice, socket: NetlinkSocket
    ) -> tuple[LinkEvents, str]:
        """
        Raises:
            OSError: the kernel refused, or the program behind the device, or there is no key.
        """
        name, events = key.name, LinkEvents()
        if present is not None and not is_wireguard(present):
            return events, f"{name} is another program's: a device of kind {present.kind or 'unknown'}"
        if present is None:
            refusals = socket.transact([wireguard_create_request(name, wanted.mtu)])
            if any(one.errno == errno.EOPNOTSUPP for one in refusals.values()):
                if reason := await self.wireguard.make_in_user_space(name):
                    return events, reason
            elif refusals:
                return events, str(next(iter(refusals.values())))
            link = socket.ask(device_query(name))
            events = self.links.notify([link])
            present = decode_device(link)
        self.wireguard.configure(key, present, wanted)
        settings = device_settings_request(
            self._index(name, socket),
            mtu=wanted.mtu if present.mtu != wanted.mtu else 0,
            alias=wanted.alias if present.alias != wanted.alias else "",
            up=not present.up,
        )
        if reason := _send(socket, settings):
            return events, f"UDP port {wanted.port}: {reason}" if "in use" in reason else reason
        if wanted.threaded is not None and wanted.threaded != self.wireguard.complete(name, present).threaded:
            self.wireguard.use_threads(name, wanted.threaded)
        return events, ""

    def _index(self, name: str, socket: NetlinkSocket) -> int:
        return decode_link(socket.ask(device_query(name))).ifindex

    def remove(self, key: DeviceKey, socket: NetlinkSocket) -> tuple[LinkEvents, str]:
        """Remove a device of ours; ``tunl0`` only loses our signature."""
        try:
            if key.name == Tunnel.IPIP:
                index = self._index(key.name, socket)
                return LinkEvents(), _send(socket, device_unsign_request(index))
            return self._delete(key.name, socket), ""
        except NetlinkError as error:
            return LinkEvents(), "" if error.errno == errno.ENODEV else str(error)
        except OSError as error:
            return LinkEvents(), str(error)

    def _delete(self, name: str, socket: NetlinkSocket) -> LinkEvents:
        """
        Raises:
            NetlinkError: the kernel refused.
        """
        link = socket.ask(device_query(name))
        index = decode_link(link).ifindex
        for refusal in socket.transact([device_delete_request(index)]).values():
            raise NetlinkError(refusal.errno, str(refusal))
        gone = link.payload[:16] + text_attribute(IFLA_IFNAME, name)
        return self.links.notify([Message(RTM_DELLINK, 0, 0, gone)])


def can_become(present: KernelDevice, wanted: KernelDevice) -> bool:
    """Whether the kernel can change one into the other (measured on 6.18; reference of kernel behaviour)."""
    fixed = (present.kind, present.vni, present.port, len(present.local), present.plain, bool(present.link))
    return fixed == (wanted.kind, wanted.vni, wanted.port, len(wanted.local), wanted.plain, bool(wanted.link))


def _send(socket: NetlinkSocket, request: Request) -> str:
    refusals = socket.transact([request])
    return str(next(iter(refusals.values()), ""))


def _both(one: LinkEvents, other: LinkEvents) -> LinkEvents:
    return LinkEvents(one.changed | other.changed, one.lost | other.lost)


def _difference(wanted: KernelDevice, device: KernelDevice) -> str:
    pairs = zip(KernelDevice._fields, wanted, device, strict=True)
    return ", ".join(f"{name} {_shown(got)} and not {_shown(want)}" for name, want, got in pairs if want != got)


def _shown(value: object) -> object:
    return (value.hex() or "none") if isinstance(value, bytes) else value
