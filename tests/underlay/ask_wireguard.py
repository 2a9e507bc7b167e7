"""Cases of WireGuard: nodes, keys and blocks, and what the calculation and the messages make of them.

A key is given by a name; the one that stands for it is made of the name. Where a case says nothing of the settings,
both families are encrypted; where it says nothing of blocks, each node has its usual one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from felixpy.calc.entries import DeviceKey, Peer, PeerKey, PolicyRuleKey, RouteKey, RouteType, WireGuard
from felixpy.calc.graph import Changes
from felixpy.model.net import Family, Net, format_address
from felixpy.model.resources import Update
from felixpy.model.wireguard import format_key, parse_key, public_key
from felixpy.netlink.wireguard import (
    WGPEER_F_REPLACE_ALLOWEDIPS,
    PeerChange,
    WireGuardPeer,
    peer_requests,
)
from tests.underlay.ask_overlay import World
from tests.underlay.vectors import Answer, same

ON = {"WireguardEnabled": True, "WireguardEnabledV6": True}
USUAL_BLOCKS = {"node1": "10.48.1.0/26", "node2": "10.48.2.0/26", "node3": "10.48.3.0/26"}
PEER = {  # a case says "as wg-02" of it
    "nodes": [{"kind": "Node", "name": "node2", "wireguardPublicKey": "K2"}],
    "blocks": [{"kind": "IPAMBlock", "cidr": "10.48.2.0/26", "node": "node2"}],
    "tunnel_addresses": ["10.48.2.62"],
}


def key_named(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def ask(case: dict[str, Any]) -> Iterator[Answer]:
    given, expect = case["given"], case["expect"]
    if given.get("peer"):
        given = {**PEER, **given}
    world = _world(given)
    if "message" in expect:
        yield from _block_gone(world, given, expect)
        return
    if "messages" in expect:
        yield from _another_key(world, given, expect)
        return
    for name, wanted in expect.items():
        yield from _VIEWS[name](world, wanted)


def _world(given: Mapping[str, Any]) -> World:
    nodes = [_with_key(one, given) for one in given.get("nodes", [])]
    names = ["node1", *(one["name"] for one in nodes)]
    blocks = list(given.get("blocks", ()))
    having = {one["node"] for one in blocks}
    blocks += [{"cidr": USUAL_BLOCKS[name], "node": name} for name in names if name not in having]
    settings = {**ON, **given.get("settings", {})}
    return World({**given, "nodes": nodes, "blocks": blocks, "settings": settings})


def _with_key(node: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(node)
    if "wireguardPublicKey" in node:
        found["wireguardPublicKey"] = format_key(key_named(node["wireguardPublicKey"]))
    if addresses := given.get("tunnel_addresses"):
        found["wireguard4"] = addresses[0]
    return found


def _peers(world: World) -> dict[bytes, Peer]:
    return {key.public_key: peer for key, peer in world.of(PeerKey).items() if key.family is Family.V4}


def _shown(key: bytes, peer: Peer, name: str) -> dict[str, Any]:
    return {
        "key": name if key == key_named(name) else format_key(key),
        "endpoint": f"{format_address(peer.endpoint)}:{peer.port}",
        "allowed_ips": list(map(str, peer.allowed)),
        "keepalive": peer.keepalive,
    }


def _links(world: World, wanted: list[dict[str, Any]]) -> Iterator[Answer]:
    devices: dict[DeviceKey, WireGuard] = world.of(DeviceKey)
    got = [{"name": key.name, "port": one.port, "mtu": one.mtu} for key, one in devices.items()]
    yield same("links", sorted(wanted, key=str), sorted(got, key=str))


def _mark(world: World, wanted: str) -> Iterator[Answer]:
    mark, mask = world.calculation.settings.wireguard_mark, 0xFFFF0000
    yield Answer("fwmark", wanted, f"{mark:#x}", mark.bit_count() == 1 and mark & mask == mark)


def _rules(world: World, wanted: list[str]) -> Iterator[Answer]:
    settings = world.calculation.settings
    mark, tables = settings.wireguard_mark, {family: settings.wireguard_table(family) for family in Family}
    got = []
    for key in world.of(PolicyRuleKey):
        text = str(key).replace(f"{mark:#x}/{mark:#x}", "M/M")
        text = text.replace(f"lookup {tables[key.family]}", f"lookup T{key.family.version}")
        got.append(text if key.family is Family.V4 else f"-6 {text}")
    yield same("rules", sorted(wanted), sorted(got))


def _published(world: World, wanted: dict[str, str]) -> Iterator[Answer]:
    for name in wanted:
        text = format_key(public_key(key_named(name)))
        yield Answer(name, "base64 of 32 bytes", text, parse_key(text) == public_key(key_named(name)))


def _peer(world: World, wanted: dict[str, Any]) -> Iterator[Answer]:
    got = [_shown(key, peer, wanted["key"]) for key, peer in _peers(world).items()]
    yield same("peer", [wanted], got)


def _table(world: World, wanted: list[str]) -> Iterator[Answer]:
    table = world.calculation.settings.wireguard_table(Family.V4)
    got = []
    for key, route in world.of(RouteKey).items():
        if key.family is Family.V4 and key.table == table:
            throws = route.type is RouteType.THROW
            got.append(f"throw {key.destination}" if throws else f"{key.destination} dev {route.interface}")
    yield same("table", sorted(wanted), sorted(got))


def _no_peers(world: World, wanted: list[Any]) -> Iterator[Answer]:
    yield same("peers", wanted, list(_peers(world)))


def _both(world: World, wanted: str) -> Iterator[Answer]:
    table = world.calculation.settings.wireguard_table(Family.V4)
    blocks = [USUAL_BLOCKS[name] for name in ("node2", "node3")]
    routes = {str(key.destination): route for key, route in world.of(RouteKey).items() if key.table == table}
    yield same("both", [wanted] * len(blocks), [routes[one].type.name.lower() for one in blocks])


def _problem(world: World, wanted: str) -> Iterator[Answer]:
    yield Answer("problem", wanted, world.problems, wanted in world.problems)


def _another_key(world: World, given: Mapping[str, Any], expect: Mapping[str, Any]) -> Iterator[Answer]:
    before = _peers(world)
    (node,) = given["nodes"]
    names = {node["wireguardPublicKey"], given["then"]["wireguardPublicKey"]}
    changes = world.take_node(_with_key({**node, **given["then"]}, given))
    got = []
    for key, value in changes.items():
        if isinstance(key, PeerKey) and key.family is Family.V4:
            name = next(one for one in names if key_named(one) == key.public_key)
            if not isinstance(value, Peer):
                got.append(f"peer {name} removed")
                continue
            whole = [value.allowed] == [one.allowed for one in before.values()]
            got.append(f"peer {name} with {'all' if whole else 'some'} allowed IPs")
    yield same("messages", sorted(expect["messages"]), sorted(got))


def _block_gone(world: World, given: Mapping[str, Any], expect: Mapping[str, Any]) -> Iterator[Answer]:
    ((key, before),) = world.of(PeerKey).items()
    gone = Net.parse("10.48.2.0/26")
    block = next(one for one, found in world.calculation.store.blocks.items() if found.cidr == gone)
    calculation = world.calculation
    changes: Changes = calculation.calculate(calculation.store.apply(Update(block, None)))
    after = changes[key]
    assert isinstance(after, Peer)
    change = PeerChange(key.public_key, _kernel(after), _kernel(before))
    (request,) = peer_requests(0, key.interface, change)
    flags = WGPEER_F_REPLACE_ALLOWEDIPS.to_bytes(4, "little") in request.payload
    remaining = [str(net) for net in change.allowed]
    left = [str(net) for net in before.allowed if net != gone]
    whole = flags and set(left) <= set(remaining) and str(gone) not in remaining
    yield Answer("message", expect["message"], (flags, remaining), whole)


def _kernel(peer: Peer) -> WireGuardPeer:
    return WireGuardPeer((peer.endpoint, peer.port), peer.allowed, peer.keepalive)


_VIEWS = {
    "links": _links,
    "fwmark": _mark,
    "ip_rules": _rules,
    "published": _published,
    "peer": _peer,
    "table_T4": _table,
    "peers": _no_peers,
    "both": _both,
    "problem": _problem,
}
