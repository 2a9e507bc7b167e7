"""Nodes and pools -> tunnel devices of this node, what they know of other nodes, and nexthops to these. Pure.

    own node     device, its address                           where a pool needs the tunnel
    other node   FDB entry and neighbour of its tunnel's end   where a pool needs VXLAN, with blocks or without
                 a route to the address of its tunnel          where no block of it has that address
    way          the nexthop of a node and a pool              native or through a tunnel, see ``pool_ways``

IPv4 goes by the address of the other's device, as with Calico; IPv6 by the link-local address of its MAC: the former
lies in the other's own block, and the kernel checks IPv6 gateways against the routes that stand. Where settings say so,
one family's packets travel through the other's device between two nodes of which one has no address of theirs: then
both ends come to the same, and to no way at all otherwise. Invariant: an IPv4 address that is missing or wrong never
takes a node's IPv6, nor the other way round.
"""

from __future__ import annotations

from collections.abc import Container, Iterator

from felixpy.calc import wireguard
from felixpy.calc.entries import (
    MAIN_TABLE,
    AddressKey,
    DeviceKey,
    FdbKey,
    Ipip,
    Key,
    NeighbourKey,
    NexthopKey,
    Route,
    RouteKey,
    RouteType,
    SettingsKey,
    SettingValues,
    Value,
    Vxlan,
)
from felixpy.calc.entry_settings import EntrySettings
from felixpy.calc.host import Host, kept_from_device, supported_families
from felixpy.calc.mtu import OWN_IPIP, DeviceMTU, Tunnel, device_mtu, pod_mtu
from felixpy.calc.underlay import CROSS_SUBNET, TUNNELS, Way, subnet_warning
from felixpy.config import ProgramClusterRoutes
from felixpy.model.net import Family, Net, format_address, parse_address
from felixpy.model.resources import Encapsulation, IPPool, Node, ResourceKey
from felixpy.model.vtep import link_local
from felixpy.store.store import Store
from felixpy.store.ways import way_key

_LOOSE = SettingValues(rp_filter=2)
_SCOPE_LINK = 253
_WORKLOAD_GATEWAY = Net.host(parse_address("169.254.1.1"))

METRIC = {Family.V4: 0, Family.V6: 1024}
"""One metric for all cluster routes. IPv6 stores 1024 for a route without one."""

DEVICES = {
    (Way.VXLAN, Family.V4): Tunnel.VXLAN,
    (Way.VXLAN, Family.V6): Tunnel.VXLAN_V6,
    (Way.IPIP, Family.V4): Tunnel.IPIP,
}
"""The device of a tunnel over a family, which carries that family; IPIP carries IPv4 only."""

_BY_WAY = {way: frozenset(one for one, tunnel in TUNNELS.items() if tunnel is way) for way in Way}

_PROGRAMMED = {
    None: {ProgramClusterRoutes.ENABLED, ProgramClusterRoutes.NO_ENCAPSULATION},
    Way.IPIP: {ProgramClusterRoutes.ENABLED, ProgramClusterRoutes.IPIP},
    Way.VXLAN: set(ProgramClusterRoutes),  # as in Felix: nobody else does it
}


def is_programmed(encapsulation: Encapsulation, settings: EntrySettings) -> bool:
    """Whether routes to other nodes of such a pool are ours to make, and not a BGP speaker's."""
    return settings.program_cluster_routes in _PROGRAMMED[TUNNELS.get(encapsulation)]


def is_in_use(way: Way, family: Family, store: Store, settings: EntrySettings) -> bool:
    """Whether this node needs a tunnel's device; the settings override the pools, in IPv4."""
    enabled = _override(way, family, settings)
    if enabled is not None:
        return enabled
    return not _BY_WAY[way].isdisjoint(store.encapsulations(family))


def _override(way: Way, family: Family, settings: EntrySettings) -> bool | None:
    if family is Family.V6:
        return None
    return {Way.VXLAN: settings.vxlan_enabled, Way.IPIP: settings.ipip_enabled}.get(way)


def carried_families(way: Way, outer: Family, store: Store, settings: EntrySettings, host: Host) -> tuple[Family, ...]:
    """Families that this node's tunnel over one of them carries; none if it needs no such device."""
    families = supported_families(settings, host)
    if outer not in families or _override(way, outer, settings) is False:
        return ()
    return tuple(
        family
        for family in families
        if (family is outer or (way is Way.VXLAN and family in settings.crossed_families))
        and is_in_use(way, family, store, settings)
    )


def outer_family(family: Family, node: Node, store: Store, settings: EntrySettings, host: Host) -> Family:
    """The family of the VXLAN packets around those of a family to a node: itself, or the other one where they cross."""
    own = store.nodes.get(store.node_name)
    if own is None or family not in settings.crossed_families or (own.address(family) and node.address(family)):
        return family
    other = family.other
    carries = family in carried_families(Way.VXLAN, other, store, settings, host)
    return other if carries and own.address(other) and node.address(other) else family


def pool_problem(pool: IPPool, settings: EntrySettings) -> str:
    """Why blocks of a pool on other nodes get no route, whatever the nodes are; empty if they may."""
    way = TUNNELS.get(pool.encapsulation)
    if way is None or _override(way, pool.cidr.family, settings) is not False:
        return ""
    name = "VXLANEnabled" if way is Way.VXLAN else "IpInIpEnabled"
    return f"{name} is false: blocks of this pool on other nodes get no route"


def nexthop_key(node_name: str, pool: IPPool) -> NexthopKey:
    return NexthopKey(pool.cidr.family, node_name, pool.key.name)


def ipip_device(own: Net, host: Host) -> str:
    """``tunl0``, unless the kernel could take another address of the node for the outer source.

    It takes what the route to the other node says: with one address on the interfaces that lead out, that is it. One
    with a host prefix, such as a virtual one that comes and goes, is not taken beside one with a subnet. With an
    address on ``lo`` nobody knows what routes say.
    """
    parent = host.interface_with(own.packed)
    if parent is None:
        return Tunnel.IPIP
    if not parent.interface:
        return OWN_IPIP
    leading = {*host.uplinks, parent.interface}
    others = (one.net for one in host.addresses if one.interface in leading and one.net.packed != own.packed)
    rivals = (net for net in others if net.family is Family.V4 and (parent.net.is_host or not net.is_host))
    return OWN_IPIP if any(rivals) else Tunnel.IPIP


def vxlan_gateway(node: Node, family: Family, outer: Family) -> bytes | None:
    """The address by which packets of a family go to a node's VXLAN device over another, or the same."""
    return node.vxlan_address(family) if family is Family.V4 else link_local(node.vtep_mac(outer))


def other_node_entries(
    node: Node, store: Store, settings: EntrySettings, host: Host, open_ways: Container[ResourceKey]
) -> tuple[dict[Key, Value], list[str]]:
    """What another node gives this one's kernel besides membership of sets, and nexthops of the ways to it.

    ``open_ways``: those that have a nexthop, as they were calculated.
    """
    entries: dict[Key, Value] = {}
    problems: list[str] = []
    for family in supported_families(settings, host):
        entries |= _tunnel_end(node, family, store, settings, host)
    for address in _addresses_without_block(node, store, settings):
        if covered := host.reserved.covered_by(address):
            problems.append(f"its tunnel address {covered}: no route is made for it; give it another one")
            continue
        pool = store.covering_pool(address)
        if pool is None:
            problems.append(_outside(address))
        elif way_key(node.key.name, pool.key) in open_ways:
            entries[route_key(address)] = Route(
                RouteType.UNICAST,
                None,
                protocol=settings.device_route_protocol,
                nexthop=nexthop_key(node.key.name, pool),
            )
    return entries, problems


def _tunnel_end(
    node: Node, family: Family, store: Store, settings: EntrySettings, host: Host
) -> Iterator[tuple[Key, Value]]:
    """FDB entry and neighbour of the VXLAN device of another node that packets of a family go to."""
    if not is_in_use(Way.VXLAN, family, store, settings):
        return
    outer = outer_family(family, node, store, settings, host)
    address, own = node.address(outer), store.nodes.get(store.node_name)
    if own is None or own.address(outer) is None:
        return  # this node has no such device
    if address is None or mac_conflict(node, outer, store):
        return
    gateway = vxlan_gateway(node, family, outer)
    if gateway is None:
        return
    device, mac = DEVICES[Way.VXLAN, outer], node.vtep_mac(outer)
    yield FdbKey(device, mac, outer), address.packed
    yield NeighbourKey(device, gateway), mac


def mac_conflict(node: Node, family: Family, store: Store) -> str:
    """Why a node's VXLAN device cannot be told from another's; of several the first by name keeps the MAC."""
    owner = store.mac_owner(family, node.vtep_mac(family))
    if owner in (None, node.key.name):
        return ""
    return f"nodes {owner} and {node.key.name} have the same VXLAN MAC"


def _addresses_without_block(node: Node, store: Store, settings: EntrySettings) -> Iterator[Net]:
    """Addresses of a node's tunnels in use that no block leads to: they get routes of their own."""
    ends = (
        (Way.VXLAN, Family.V4, node.vxlan_ipv4),
        (Way.VXLAN, Family.V6, node.vxlan_ipv6),
        (Way.IPIP, Family.V4, node.ipip_ipv4),
    )
    for way, family, packed in ends:
        if packed is None or not is_in_use(way, family, store, settings):
            continue
        address = Net.host(packed)
        if store.address_owner(address) is None and not store.is_in_block_of(node.key.name, address):
            yield address


def _outside(address: Net) -> str:
    return (
        f"its tunnel address {format_address(address.packed)} is in no IP pool, so nobody has a route to it and what "
        "this node sends to remote workloads gets no answer; give it an address of a pool"
    )


def route_key(destination: Net) -> RouteKey:
    return RouteKey(destination.family, destination, METRIC[destination.family], MAIN_TABLE)


# --- this node -------------------------------------------------------------------------------------------------------


def own_node_entries(store: Store, settings: EntrySettings, host: Host) -> tuple[dict[Key, Value], list[str]]:
    """This node's tunnel devices with their addresses."""
    entries: dict[Key, Value] = {}
    problems: list[str] = []
    own = store.nodes.get(store.node_name)
    for (way, outer), tunnel in DEVICES.items():
        carried = carried_families(way, outer, store, settings, host)
        address = own.address(outer) if own else None
        if not carried or (address is None and _can_do_without(own, outer, carried, settings)):
            continue
        parent = host.interface_with(address.packed) if address else None
        if own is None or address is None or parent is None:
            why = f"no interface has {format_address(address.packed)}" if address else f"it has no {outer} address yet"
            problems.append(f"no {tunnel} on this node: {why}")
            continue
        mtu = device_mtu(tunnel, parent.mtu, settings.mtu_of(tunnel), carries_ipv6=Family.V6 in carried)
        if mtu.problem:
            problems.append(mtu.problem)
        name: str = tunnel
        if way is Way.IPIP:
            name = ipip_device(address, host)
            entries[DeviceKey(outer, name)] = Ipip(mtu.mtu, address.packed if name == OWN_IPIP else b"")
        else:
            mac = settings.vxlan_mac(outer) or own.vtep_mac(outer)
            link = parent.interface if mtu.fits else ""
            entries[DeviceKey(outer, tunnel)] = Vxlan(
                settings.vxlan_vni, settings.vxlan_port, address.packed, link, mac, mtu.mtu
            )
        for family in carried:
            inner, problem = _inner_entries(way, name, family, own, store, settings, host)
            entries |= inner
            problems += [problem] if problem else []
    for family in supported_families(settings, host):
        if CROSS_SUBNET & store.encapsulations(family) and own is not None:
            warning = subnet_warning(store.node_name, own.address(family))
            problems += [warning] if warning else []
    return entries, problems


def _can_do_without(own: Node | None, outer: Family, carried: tuple[Family, ...], settings: EntrySettings) -> bool:
    """Whether nothing is missing where a node without an address of a family has no tunnel over it."""
    return outer not in carried or (
        own is not None and outer in settings.crossed_families and bool(own.address(outer.other))
    )


def _inner_entries(
    way: Way, name: str, family: Family, own: Node, store: Store, settings: EntrySettings, host: Host
) -> tuple[dict[Key, Value], str]:
    """What a family that goes through a device needs on it, and what is wrong."""
    entries: dict[Key, Value] = {}
    problem = ""
    if family is Family.V4:  # while nodes change their ways one after another, packets come in by the other one
        entries[SettingsKey(name, family)] = _LOOSE
    address = own_tunnel_address(DEVICES[way, family], own, settings)
    if address and not (problem := kept_from_device(address, name, host)):
        entries[AddressKey(address, name)] = None
        net = Net.host(address)
        if store.covering_pool(net) is None and not store.is_in_block_of(store.node_name, net):
            problem = _outside(net)
    if family is Family.V4 and name == Tunnel.VXLAN_V6 and own.ipv4 is None:
        # The kernel answers workloads that ask for their gateway only if it has a route to that.
        entries[route_key(_WORKLOAD_GATEWAY)] = Route(
            RouteType.UNICAST, name, scope=_SCOPE_LINK, protocol=settings.device_route_protocol
        )
    return entries, problem


def own_tunnel_address(tunnel: Tunnel, own: Node | None, settings: EntrySettings) -> bytes | None:
    """The address of this node's device: as set on the machine, else as its Node says."""
    if configured := settings.tunnel_address(tunnel):
        return configured
    if own is None:
        return None
    return {
        Tunnel.VXLAN: own.vxlan_ipv4,
        Tunnel.VXLAN_V6: own.vxlan_ipv6,
        Tunnel.IPIP: own.ipip_ipv4,
    }.get(tunnel)


def workload_mtu(store: Store, settings: EntrySettings, host: Host) -> DeviceMTU | None:
    """What this node's workloads may use in both families; None while no interface of the node is known."""
    own = store.nodes.get(store.node_name)
    devices: list[int] = []
    parents: list[int] = []
    families = supported_families(settings, host)
    for family in families:
        address = own.address(family) if own else None
        parent = host.interface_with(address.packed) if address else None
        if parent is None:
            continue
        parents.append(parent.mtu)
        for (way, outer), tunnel in DEVICES.items():
            if outer is family and (carried := carried_families(way, outer, store, settings, host)):
                ipv6 = Family.V6 in carried
                devices.append(device_mtu(tunnel, parent.mtu, settings.mtu_of(tunnel), carries_ipv6=ipv6).mtu)
        if settings.encrypts(family):
            tunnel = wireguard.TUNNELS[family]
            devices.append(device_mtu(tunnel, parent.mtu, settings.mtu_of(tunnel)).mtu)
    if not parents:
        return None
    return pod_mtu(min(parents), [*devices, *parents], ipv6=Family.V6 in families)
