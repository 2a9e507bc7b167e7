"""Addresses of this node's tunnels, taken from what it gives addresses of, as Calico's start-up takes them.

    a pool that the node may use needs the tunnel ──► an address under a handle of its own, kept across restarts
    none needs it any more                        ──► released

WireGuard is needed by settings, whatever the pools' modes; with host encryption its device has the node's address.

    range of a pod CIDR        its second address, which workloads never get (Calico: podCIDR + 1)
    blocks of this node        one that is free, beside those of workloads
    Calico's blocks in an API  the same, in the block itself: handle ``vxlan-tunnel-addr-<node>``

A disabled pool counts: its workloads are still there (in Calico they lose their way, node#1057). Invariant: an address
is never taken where felixpy does not give addresses itself; nobody would know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from felixpy.calc import wireguard
from felixpy.calc.entry_settings import EntrySettings
from felixpy.calc.mtu import Tunnel
from felixpy.calc.overlay import DEVICES, is_in_use
from felixpy.calc.underlay import TUNNELS, Way
from felixpy.ipam.assignment import NoAddress, Wanted
from felixpy.ipam.block import BlockError
from felixpy.ipam.local import SMALLEST_WITH_ENDS, LocalAddresses, second_address
from felixpy.model.net import Family, Net, format_address
from felixpy.model.resources import IPPool, Node
from felixpy.standing import Standing
from felixpy.store.store import Store

if TYPE_CHECKING:
    from felixpy.ipam.blocks import CalicoBlocks


class Kind(Struct, frozen=True):
    """What Calico calls a tunnel's address: in IPAM, in a Node, in the annotations of Kubernetes' Node."""

    handle: str
    type: str
    field: tuple[str, ...]
    annotation: str


KINDS: Mapping[Tunnel, Kind] = {
    Tunnel.IPIP: Kind("ipip-tunnel-addr", "ipipTunnelAddress", ("bgp", "ipv4IPIPTunnelAddr"), "IPv4IPIPTunnelAddr"),
    Tunnel.VXLAN: Kind("vxlan-tunnel-addr", "vxlanTunnelAddress", ("ipv4VXLANTunnelAddr",), "IPv4VXLANTunnelAddr"),
    Tunnel.VXLAN_V6: Kind(
        "vxlan-v6-tunnel-addr", "vxlanV6TunnelAddress", ("ipv6VXLANTunnelAddr",), "IPv6VXLANTunnelAddr"
    ),
    Tunnel.WIREGUARD: Kind(
        "wireguard-tunnel-addr",
        "wireguardTunnelAddress",
        ("wireguard", "interfaceIPv4Address"),
        "IPv4WireguardInterfaceAddr",
    ),
    Tunnel.WIREGUARD_V6: Kind(
        "wireguard-v6-tunnel-addr",
        "wireguardV6TunnelAddress",
        ("wireguard", "interfaceIPv6Address"),
        "IPv6WireguardInterfaceAddr",
    ),
}


def tunnel_fields(addresses: Mapping[Tunnel, bytes]) -> dict[str, Any]:
    """As fields of a Node's spec."""
    found: dict[str, Any] = {}
    for tunnel, packed in addresses.items():
        *path, name = KINDS[tunnel].field
        place = found
        for part in path:
            place = place.setdefault(part, {})
        place[name] = format_address(packed)
    return found


def pools_that_need(tunnel: Tunnel, store: Store, settings: EntrySettings) -> list[IPPool]:
    """The pools by which this node needs an address of a tunnel's device, by name."""
    family, way = _FAMILIES[tunnel], _WAYS.get(tunnel)
    if way is None and (settings.wireguard_host_encryption_enabled or not settings.encrypts(family)):
        return []
    if way is not None and not is_in_use(way, family, store, settings):
        return []
    found = [
        pool
        for pool in store.pools.values()
        if pool.cidr.family is family
        and (way is None or TUNNELS.get(pool.encapsulation) is way)
        and "Tunnel" in pool.allowed_uses
        and pool.node_selector.matches(store.labels)
    ]
    return sorted(found, key=lambda pool: pool.key)


_WAYS: Mapping[Tunnel, Way] = {tunnel: way for (way, _), tunnel in DEVICES.items()}
_FAMILIES: Mapping[Tunnel, Family] = {
    **{tunnel: family for (_, family), tunnel in DEVICES.items()},
    **{tunnel: family for family, tunnel in wireguard.TUNNELS.items()},
}


class TunnelAddresses:
    """Finds them. ``ranges`` are what this node may give addresses of; ``problems`` what could not be had, and why."""

    def __init__(
        self,
        store: Store,
        settings: Callable[[], EntrySettings],
        ranges: Callable[[Family], Sequence[Net]],
        local: LocalAddresses | None = None,
        blocks: CalicoBlocks | None = None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._ranges = ranges
        self._local = local
        self._blocks = blocks
        self.problems: dict[Tunnel, str] = {}
        self._given: dict[Tunnel, bytes] = {}
        self._held: Mapping[str, tuple[Net, ...]] | None = None
        """What handles have in the node's blocks, read once for all tunnels."""
        self._standing = Standing(level="warning")

    async def find(self, told: Node | None) -> dict[Tunnel, bytes]:
        """Addresses by tunnel. ``told`` is what this node said of itself before."""
        before = _addresses(told)
        self._held = None
        found: dict[Tunnel, bytes] = {}
        for tunnel, kind in KINDS.items():
            handle = f"{kind.handle}-{self._store.node_name}"
            pools = pools_that_need(tunnel, self._store, self._settings())
            had = self._given.get(tunnel) or before.get(tunnel)
            what = f"{tunnel} gets no address"
            try:
                packed = await self._one(tunnel, handle, pools, had)
            except (NoAddress, BlockError) as error:
                self.problems[tunnel] = f"{what}: {error}"
                self._standing.fails(what, str(error))
                packed = had  # it is still this node's, as far as anybody knows
            else:
                self.problems.pop(tunnel, None)
                self._standing.works(what)
            if packed is None:
                self._given.pop(tunnel, None)
            else:
                found[tunnel] = self._given[tunnel] = packed
        return found

    async def _one(self, tunnel: Tunnel, handle: str, pools: list[IPPool], had: bytes | None) -> bytes | None:
        if self._blocks is not None:
            return await self._of_blocks(self._blocks, tunnel, handle, pools)
        if not pools:
            if had is not None and self._local is not None:
                await self._local.release(handle, (Net.host(had),))
            return None
        family = _FAMILIES[tunnel]
        ranges = [net for net in self._ranges(family) if any(pool.cidr.covers(net) for pool in pools)]
        for net in ranges:
            if net.length <= SMALLEST_WITH_ENDS[family]:
                return second_address(net)
        if self._local is None or not ranges:
            return None
        is_ours = had is not None and self._local.owner_of(had) in (None, handle)
        if had is not None and is_ours and any(net.covers(had) for net in ranges):
            self._local.adopt(handle, (Net.host(had),))
            return had
        (address,) = await self._local.assign(Wanted(handle, (family,), ranges=tuple(ranges)))
        return address.packed

    async def _of_blocks(self, blocks: CalicoBlocks, tunnel: Tunnel, handle: str, pools: list[IPPool]) -> bytes | None:
        if self._held is None:
            self._held = await blocks.by_handle()
        held = self._held.get(handle, ())
        if not pools:
            await blocks.release(handle, held)
            return None
        usable = [one for one in held if any(pool.cidr.covers(one) for pool in pools)]
        if usable:
            blocks.adopt(handle, tuple(usable))
            return usable[0].packed
        await blocks.release(handle, held)
        able = {one.cidr.family: tuple(pool.key.name for pool in pools if not pool.disabled) for one in pools}
        if not any(able.values()):
            return None  # a disabled pool gives nothing new
        attributes = {"node": self._store.node_name, "type": KINDS[tunnel].type}
        wanted = Wanted(handle, (_FAMILIES[tunnel],), pools=able, attributes=attributes, use="Tunnel")
        (address,) = await blocks.assign(wanted)
        return address.packed


def _addresses(node: Node | None) -> dict[Tunnel, bytes]:
    if node is None:
        return {}
    said = {
        Tunnel.IPIP: node.ipip_ipv4,
        Tunnel.VXLAN: node.vxlan_ipv4,
        Tunnel.VXLAN_V6: node.vxlan_ipv6,
        Tunnel.WIREGUARD: node.wireguard_ipv4,
        Tunnel.WIREGUARD_V6: node.wireguard_ipv6,
    }
    return {tunnel: packed for tunnel, packed in said.items() if packed is not None}
