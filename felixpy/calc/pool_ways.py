"""Ways to other nodes through one pool -> nexthops, native or through a tunnel. Pure.

What is the same for all nodes (this node's own address, the pool's tunnel, whether its device is there, which
interfaces have which subnets) is found out once. So another mode of a pool costs each node its own part alone.
Invariant: no way is guessed; where there is none the node says why, or the pool does.
"""

from __future__ import annotations

from felixpy.calc.entries import Key, Nexthop, NexthopKey, Value
from felixpy.calc.entry_settings import EntrySettings
from felixpy.calc.host import Host, supported_families
from felixpy.calc.overlay import (
    DEVICES,
    ipip_device,
    is_in_use,
    is_programmed,
    mac_conflict,
    outer_family,
    vxlan_gateway,
)
from felixpy.calc.underlay import TUNNELS, Way, way_to
from felixpy.model.net import Family, Net, format_address
from felixpy.model.resources import IPPool, Node
from felixpy.store.store import Store


class PoolWays:
    """How nodes are reached through a pool, as long as store, settings and host stay as they are."""

    def __init__(self, pool: IPPool, store: Store, settings: EntrySettings, host: Host) -> None:
        self._pool, self._store, self._settings, self._host = pool, store, settings, host
        self._family, self._name = pool.cidr.family, pool.key.name
        family = self._family
        self._is_ours = is_programmed(pool.encapsulation, settings) and family in supported_families(settings, host)
        own_node = store.nodes.get(store.node_name)
        self._own = own_node.address(family) if own_node else None
        self._parents = host.parents(self._own)
        self._tunnel = tunnel = TUNNELS.get(pool.encapsulation)
        self._is_in_use = tunnel is not None and is_in_use(tunnel, family, store, settings)
        self._may_cross = tunnel is Way.VXLAN and family in settings.crossed_families

    def entries(self, node_name: str) -> tuple[dict[Key, Value], str]:
        """The nexthop of one way, and what is wrong with it; the node may be known from blocks alone."""
        if not self._is_ours:
            return {}, ""
        nexthop, problem = self.nexthop(node_name)
        return ({NexthopKey(self._family, node_name, self._name): nexthop} if nexthop else {}), problem

    def nexthop(self, node_name: str) -> tuple[Nexthop | None, str]:
        """Where packets for another node go first, and what is wrong; no nexthop where there is no way."""
        family = self._family
        node = self._store.nodes.get(node_name)
        if node is not None and self._may_cross:
            outer = outer_family(family, node, self._store, self._settings, self._host)
            if outer is not family:
                return self._through_vxlan(node, outer)
        address = node.address(family) if node else None
        if node is None or address is None:
            return None, f"node {node_name} has no {family} address"
        way = way_to(self._pool.encapsulation, self._own, address)
        if way is Way.NATIVE:
            return self._natively(node_name, address)
        if not self._is_in_use:
            return None, ""  # the pool's problem
        if self._own is None:
            return None, f"this node has no {family} address of its own yet"
        if (way, family) not in DEVICES:
            return None, f"{way} does not carry {family}"
        if way is Way.IPIP:
            return Nexthop(ipip_device(self._own, self._host), address.packed), ""
        return self._through_vxlan(node, family)

    def _natively(self, node_name: str, address: Net) -> tuple[Nexthop | None, str]:
        for parent in self._parents:
            if parent.net.covers(address.packed):
                return Nexthop(parent.interface, address.packed), ""
        return None, (
            f"node {node_name} at {format_address(address.packed)} is in no subnet of this node: its blocks get no "
            "route; give the pool vxlanMode CrossSubnet, unless routers know the blocks"
        )

    def _through_vxlan(self, node: Node, outer: Family) -> tuple[Nexthop | None, str]:
        if problem := mac_conflict(node, outer, self._store):
            return None, problem
        family = self._family
        missing = "" if node.vxlan_address(family) else f"node {node.key.name} has no {family} VXLAN tunnel address yet"
        gateway = vxlan_gateway(node, family, outer)
        return (Nexthop(DEVICES[Way.VXLAN, outer], gateway) if gateway else None), missing
