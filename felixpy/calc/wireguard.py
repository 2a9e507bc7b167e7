"""Nodes and blocks -> WireGuard devices of this node, their peers, the table and the rule that lead into them. Pure.

    own node     device, its address, the rule that sends packets without the mark to the table
    own blocks   ``throw`` in the table: the main table knows the way
    endpoints    the same for their addresses, wherever a block says that these are
    other node   a peer with all that it may send, and routes to that through the device
                 ``throw`` where it cannot be a peer: what goes there is not encrypted, and its Node says so

The packets that the device itself sends carry a mark, at which the rule lets them pass. The key is what a peer is known
by, so two nodes with one key cannot be told apart: neither is a peer. Invariant: what is local is never led into the
tunnel; one family's fault never takes the other's peer.
"""

from __future__ import annotations

from collections.abc import Iterator

from felixpy.calc.entries import (
    AddressKey,
    DeviceKey,
    Key,
    Peer,
    PeerKey,
    PolicyRuleKey,
    Route,
    RouteKey,
    RouteType,
    SettingsKey,
    SettingValues,
    Value,
    WireGuard,
)
from felixpy.calc.entry_settings import EntrySettings
from felixpy.calc.host import Host, kept_from_device, supported_families
from felixpy.calc.mtu import Tunnel, device_mtu
from felixpy.model.net import Family, Net, format_address
from felixpy.model.resources import Node
from felixpy.store.store import Store

TUNNELS = {Family.V4: Tunnel.WIREGUARD, Family.V6: Tunnel.WIREGUARD_V6}

_METRIC = {Family.V4: 0, Family.V6: 1024}
_SCOPE_LINK = {Family.V4: 253, Family.V6: 0}
_LOOSE = SettingValues(rp_filter=2)


def encrypted_families(settings: EntrySettings, host: Host) -> tuple[Family, ...]:
    """Families of which this node encrypts what it sends to others, if it can."""
    return tuple(family for family in supported_families(settings, host) if settings.encrypts(family))


def own_node_entries(store: Store, settings: EntrySettings, host: Host) -> tuple[dict[Key, Value], list[str]]:
    """This node's devices with their addresses, and the rules that lead into them."""
    entries: dict[Key, Value] = {}
    problems: list[str] = []
    own = store.nodes.get(store.node_name)
    for family in encrypted_families(settings, host):
        name, tunnel, mark = settings.wireguard_name(family), TUNNELS[family], settings.wireguard_mark
        address = own.address(family) if own else None
        parent = host.interface_with(address.packed) if address else None
        table = settings.wireguard_table(family)
        missing = (
            "the mark masks leave no bit for it" if not mark
            else f"RouteTableRanges has no table for {family}" if table is None
            else f"it has no {family} address yet" if address is None
            else f"no interface has {format_address(address.packed)}" if parent is None
            else ""
        )  # fmt: skip
        if missing or own is None or address is None or parent is None or table is None:
            problems.append(f"no {name} on this node: {missing}")
            continue
        mtu = device_mtu(tunnel, parent.mtu, settings.mtu_of(tunnel))
        problems += [mtu.problem] if mtu.problem else []
        entries[DeviceKey(family, name)] = WireGuard(
            settings.wireguard_port(family), mark, mtu.mtu, settings.wireguard_threading_enabled
        )
        entries[PolicyRuleKey(family, settings.wireguard_routing_rule_priority, table, mark)] = None
        if family is Family.V4:  # nodes begin to encrypt one after another
            entries[SettingsKey(name, family)] = _LOOSE
        if device_address := own_address(own, family, settings):
            problem = "" if device_address == address.packed else kept_from_device(device_address, name, host)
            if problem:
                problems.append(problem)
            else:
                entries[AddressKey(device_address, name)] = None
    return entries, problems


def own_address(own: Node, family: Family, settings: EntrySettings) -> bytes | None:
    """The address of this node's device: with host encryption the node's own, by which others know it."""
    if settings.wireguard_host_encryption_enabled:
        address = own.address(family)
        return address.packed if address else None
    return own.wireguard_address(family)


def other_node_entries(
    name: str, store: Store, settings: EntrySettings, host: Host
) -> tuple[dict[Key, Value], list[str]]:
    """Another node as a peer, and the routes to what it has; the node may be known from blocks alone."""
    entries: dict[Key, Value] = {}
    problems: list[str] = []
    node = store.nodes.get(name)
    for family in encrypted_families(settings, host):
        table = settings.wireguard_table(family)
        if table is None:
            continue
        allowed = tuple(sorted(set(_allowed(name, node, family, store, settings))))
        problem = _why_no_peer(name, node, family, store, host)
        kind, interface, scope = RouteType.THROW, None, 0
        if not problem and node is not None:
            interface = settings.wireguard_name(family)
            kind, scope = RouteType.UNICAST, _SCOPE_LINK[family]
            address, key = node.address(family), node.wireguard_key(family)
            assert address is not None and key is not None
            entries[PeerKey(family, interface, key)] = Peer(
                address.packed, settings.wireguard_port(family), allowed, settings.wireguard_persistent_keep_alive
            )
        elif allowed:
            problems.append(problem)
        for net in allowed:
            if covered := host.reserved.covered_by(net):
                problems.append(f"{net} covers {covered}: it is not encrypted")
                continue
            entries[_key(net, table)] = Route(kind, interface, scope=scope, protocol=settings.device_route_protocol)
    return entries, problems


def _why_no_peer(name: str, node: Node | None, family: Family, store: Store, host: Host) -> str:
    """Why a node cannot be a peer; empty if it can."""
    address = node.address(family) if node else None
    key = node.wireguard_key(family) if node else None
    if node is None or address is None:
        return f"node {name} has no {family} address: what goes there is not encrypted"
    if key is None:
        return f"node {name} publishes no {family} WireGuard key: what goes there is not encrypted"
    if key == host.wireguard_keys.get(family):
        return f"node {name} publishes this node's own WireGuard key; write another one into one of the two key files"
    others = [one for one in store.key_owners(family, key) if one != store.node_name]
    if len(others) > 1:
        return f"nodes {' and '.join(sorted(others))} publish the same WireGuard key"
    return ""


def _allowed(name: str, node: Node | None, family: Family, store: Store, settings: EntrySettings) -> Iterator[Net]:
    """What a node may send, and what is sent to it: its blocks, what it has borrowed, addresses of its devices."""
    yield from store.prefixes_of(name, family)
    if node is None:
        return
    if address := node.wireguard_address(family):
        yield Net.host(address)
    for packed in node.tunnel_addresses:
        if len(packed) * 8 == family.bits and not store.is_in_block_of(name, Net.host(packed)):
            yield Net.host(packed)
    own = node.address(family)
    if settings.wireguard_host_encryption_enabled and own is not None:
        yield Net.host(own.packed)


def local_entries(nets: tuple[Net, ...], settings: EntrySettings, host: Host) -> dict[Key, Value]:
    """What is on this node is not led into the tunnel, whatever a block says of it."""
    entries: dict[Key, Value] = {}
    for family in encrypted_families(settings, host):
        if (table := settings.wireguard_table(family)) is not None:
            throw = Route(RouteType.THROW, None, protocol=settings.device_route_protocol)
            entries |= {_key(net, table): throw for net in nets if net.family is family}
    return entries


def _key(net: Net, table: int) -> RouteKey:
    return RouteKey(net.family, net, _METRIC[net.family], table)
