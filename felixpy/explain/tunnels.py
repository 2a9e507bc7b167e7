"""The packet around a packet: what leaves the node where the way leads into a tunnel. Only reads the kernel.

VXLAN      gateway → neighbour's MAC → node behind that MAC (FDB); from the device's own address to its port
IPIP       gateway is the other node
WireGuard  the peer that is allowed what the packet is for; with the mark at which no rule leads back into the device
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Mapping

from msgspec import Struct, field

from felixpy.calc.mtu import OWN_IPIP, Tunnel
from felixpy.dataplane.devices import ALIAS
from felixpy.dataplane.wireguard_channel import KERNEL, USERSPACE, read_device
from felixpy.explain.packet import UDP, Packet
from felixpy.explain.walk import Around, Outcome, Verdict
from felixpy.model.net import FAMILIES, family_of, format_address
from felixpy.model.vtep import format_mac
from felixpy.model.wireguard import format_key
from felixpy.netlink import rtnetlink
from felixpy.netlink.transport import NETLINK_ROUTE, NetlinkError, NetlinkSocket
from felixpy.netlink.tunnels import (
    KernelDevice,
    decode_device,
    decode_fdb,
    device_kind_dump_request,
    device_query,
    fdb_dump_request,
)
from felixpy.netlink.wireguard import WireGuardDevice

IPIP = 4


class Tunnels(Struct):
    """Tunnel devices by name, and what the kernel knows behind them."""

    devices: dict[str, KernelDevice] = field(default_factory=dict)
    neighbours: Mapping[tuple[str, bytes], bytes] = field(default_factory=dict)
    """(device, gateway) → MAC."""
    fdb: Mapping[tuple[str, bytes], bytes] = field(default_factory=dict)
    """(device, MAC) → node."""
    wireguard: Mapping[str, WireGuardDevice | None] = field(default_factory=dict)
    """By name; None for one that cannot be asked."""

    def around(self, verdict: Verdict) -> Around | None:
        """The packet around one that leaves by a tunnel; None for one that does not."""
        inner = verdict.packet
        device = self.devices.get(inner.oif) if verdict.outcome is Outcome.PASSES else None
        if device is None:
            return None
        if inner.oif in self.wireguard:
            return self._encrypted(inner, device.mtu)
        gateway = verdict.route.gateway or inner.destination
        if device.kind == "ipip":
            outer = Packet(inner.family, device.local, gateway, IPIP)
            return Around(inner.oif, "IPIP", device.mtu, outer)
        kind = f"VXLAN id {device.vni}"
        mac = self.neighbours.get((inner.oif, gateway))
        if mac is None:
            fault = f"{format_address(gateway)} has no neighbour entry on {inner.oif}"
            return Around(inner.oif, kind, device.mtu, fault=fault)
        node = self.fdb.get((inner.oif, mac))
        if node is None:
            return Around(inner.oif, kind, device.mtu, fault=f"{inner.oif} does not know where {format_mac(mac)} is")
        outer = Packet(family_of(node), device.local, node, UDP, device.port, vni=device.vni)
        return Around(inner.oif, kind, device.mtu, outer)

    def _encrypted(self, inner: Packet, mtu: int) -> Around:
        device = self.wireguard[inner.oif]
        if device is None:
            return Around(inner.oif, "WireGuard", mtu, fault=f"{inner.oif} cannot be asked for its peers")
        allowed = [
            (net.length, key)
            for key, peer in device.peers.items()
            for net in peer.allowed
            if net.covers(inner.destination)
        ]
        if not allowed:
            fault = f"no peer of {inner.oif} is allowed {format_address(inner.destination)}"
            return Around(inner.oif, "WireGuard", mtu, fault=fault)
        key = max(allowed)[1]
        endpoint, kind = device.peers[key].endpoint, f"WireGuard peer {format_key(key)}"
        if endpoint is None:
            return Around(inner.oif, kind, mtu, fault=f"the peer {format_key(key)} has no endpoint")
        address, port = endpoint
        outer = Packet(family_of(address), b"", address, UDP, port, source_port=device.port, mark=device.mark)
        return Around(inner.oif, kind, mtu, outer)


def read_tunnels() -> Tunnels:
    """Our tunnel devices.

    Raises:
        NetlinkError: the kernel refused.
    """
    found = Tunnels()
    names: dict[int, str] = {}
    neighbours: dict[tuple[str, bytes], bytes] = {}
    fdb: dict[tuple[str, bytes], bytes] = {}
    with contextlib.closing(NetlinkSocket(NETLINK_ROUTE)) as socket:
        for name in (Tunnel.VXLAN, Tunnel.VXLAN_V6, Tunnel.IPIP, OWN_IPIP):
            with contextlib.suppress(NetlinkError):  # not on this node
                message = socket.ask(device_query(name))
                names[rtnetlink.decode_link(message).ifindex] = name
                found.devices[name] = decode_device(message)
        _read_wireguard(found, socket)
        if not names:
            return found
        for index, device in names.items():
            if found.devices[device].kind == "vxlan":
                for entry in filter(None, map(decode_fdb, socket.dump_all(fdb_dump_request(index)))):
                    fdb[device, entry.mac] = entry.destination
        for family in FAMILIES:
            messages = socket.dump_all(rtnetlink.neighbour_dump_request(family))
            for one in rtnetlink.decode_neighbours(messages):
                if one.interface in names:
                    neighbours[names[one.interface], one.address] = one.mac
    found.neighbours, found.fdb = neighbours, fdb
    return found


def _read_wireguard(found: Tunnels, socket: NetlinkSocket) -> None:
    """Devices of ours, whatever the settings call them."""
    peers: dict[str, WireGuardDevice | None] = {}
    for kind in (KERNEL, USERSPACE):
        try:
            links = socket.dump_all(device_kind_dump_request(kind))
        except NetlinkError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # the kernel knows no such devices
                raise
            continue
        for link in links:
            device, name = decode_device(link), rtnetlink.decode_link(link).name
            if device.kind != kind or device.alias != ALIAS:
                continue
            found.devices[name], peers[name] = device, None
            with contextlib.suppress(OSError):
                peers[name] = read_device(kind, name)
    found.wireguard = peers
