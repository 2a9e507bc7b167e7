"""Cases of VXLAN and IPIP: resources, and what the calculation makes of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from felixpy.calc.entries import (
    AddressKey,
    DeviceKey,
    FdbKey,
    Ipip,
    Key,
    NeighbourKey,
    Nexthop,
    NexthopKey,
    Route,
    RouteKey,
    RouteType,
    Vxlan,
)
from felixpy.calc.graph import HOST, Calculation, Changes
from felixpy.calc.host import Host, HostAddress
from felixpy.calc.mtu import Tunnel
from felixpy.config import SettingsSource, resolve
from felixpy.dataplane.devices import ALIAS, can_become
from felixpy.model.invalid import InvalidResource
from felixpy.model.net import Family, Net, format_address, parse_address
from felixpy.model.parse import parse_resource
from felixpy.model.resources import Absent, Update
from felixpy.model.vtep import format_mac, vtep_mac
from felixpy.netlink.tunnels import KernelDevice
from felixpy.store.store import Store
from tests.underlay.vectors import Answer, elsewhere, same

USUAL = {
    "node1": {
        "ipv4": "10.9.0.1/24", "ipv6": "fd09::1/64", "vxlan4": "10.48.1.63", "vxlan6": "fd00:48:0:1::3f",
        "ipip4": "10.48.1.60",
    },
    "node2": {
        "ipv4": "10.9.0.2/24", "ipv6": "fd09::2/64", "vxlan4": "10.48.2.63", "vxlan6": "fd00:48:0:2::3f",
        "ipip4": "10.48.2.60",
    },
    "node3": {
        "ipv4": "10.9.7.3/24", "ipv6": "fd09:7::3/64", "vxlan4": "10.48.3.63", "vxlan6": "fd00:48:0:3::3f",
        "ipip4": "10.48.3.60",
    },
}  # fmt: skip
"""What cases leave out of the nodes that all of them use."""

PACKETS = "tests/underlay/test_vxlan.py sends packets and looks at the kernel"


def ask(case: dict[str, Any]) -> Iterator[Answer]:
    given, expect = case["given"], case["expect"]
    if "names" in given:
        yield from _macs(given, expect)
    elif "existing" in given:
        yield from _compatible(given)
    elif "invalid" in expect:
        yield from _invalid(given, expect)
    elif "kernel" in given or "messages" in expect or "sequence" in given:
        yield elsewhere("everything", PACKETS)
    else:
        yield from _world(given, expect)


def _macs(given: Mapping[str, Any], expect: Mapping[str, Any]) -> Iterator[Answer]:
    for name in given["names"]:
        for key, family in (("v4", Family.V4), ("v6", Family.V6)):
            if key in expect[name]:
                yield same(f"MAC of {name} {key}", expect[name][key], format_mac(vtep_mac(name, family)))


def _invalid(given: Mapping[str, Any], expect: Mapping[str, Any]) -> Iterator[Answer]:
    try:
        parse_resource(_document("IPPool", "pool", _pool_spec(given["pool"])))
    except InvalidResource as error:
        yield same("invalid", expect["invalid"], error.field)
    else:
        yield Answer("invalid", expect["invalid"], "accepted", False)


def _compatible(given: Mapping[str, Any]) -> Iterator[Answer]:
    """Whether a device that stands can be changed into the usual one."""
    local = parse_address("10.9.0.1")
    mac = vtep_mac("node1", Family.V4)
    usual = KernelDevice("vxlan", 1450, True, ALIAS, 4096, 4789, local, 2, mac)
    for one in given["existing"]:
        changes: dict[str, Any] = {}
        changes |= {"port": one["port"]} if "port" in one else {}
        changes |= {"vni": one["id"]} if "id" in one else {}
        changes |= {"local": parse_address(one["local"])} if "local" in one else {}
        changes |= {"kind": one["kind"]} if "kind" in one else {}
        changes |= {"plain": False} if {"external", "learning", "group", "l2miss"} & one.keys() else {}
        yield Answer(str(one), "made anew", "kept", bool(changes) and not can_become(usual._replace(**changes), usual))


# --- a world of resources -------------------------------------------------------------------------------------------


def _document(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": name}, "spec": spec}


def _pool_spec(pool: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in pool.items() if key not in ("kind", "name")}


def _node(given: Mapping[str, Any]) -> dict[str, Any]:
    known = {**USUAL.get(given["name"], {}), **given}
    bgp = {"ipv4Address": known.get("ipv4"), "ipv6Address": known.get("ipv6"), "ipv4IPIPTunnelAddr": known.get("ipip4")}
    spec = {
        "bgp": bgp,
        "ipv4VXLANTunnelAddr": known.get("vxlan4"),
        "ipv6VXLANTunnelAddr": known.get("vxlan6"),
        "vxlanTunnelMACAddr": known.get("vxlanTunnelMACAddr"),
        "vxlanTunnelMACAddrV6": known.get("vxlanTunnelMACAddrV6"),
        "wireguard": {"interfaceIPv4Address": known.get("wireguard4")},
    }
    status = {"wireguardPublicKey": known.get("wireguardPublicKey")}
    return {**_document("Node", given["name"], spec), "status": status}


def _block(given: Mapping[str, Any]) -> dict[str, Any]:
    net = Net.parse(given["cidr"])
    allocations: list[int | None] = [None] * (1 << min(net.family.bits - net.length, 12))
    attributes = []
    for address, node in given.get("allocations", {}).items():
        offset = int.from_bytes(parse_address(address), "big") - int.from_bytes(net.packed, "big")
        allocations[offset] = len(attributes)
        attributes.append({"handle_id": address, "secondary": {"node": node}})
    spec = {
        "cidr": given["cidr"],
        "affinity": f"host:{given['node']}",
        "allocations": allocations,
        "attributes": attributes,
    }
    return _document("IPAMBlock", re.sub(r"[./:]", "-", given["cidr"]), spec)


class World:
    """A calculation of what a case gives, and its entries as the cases name them."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        own = given.get("self", "node1")
        own = {"name": own} if isinstance(own, str) else own
        nodes = [own, *given.get("nodes", []), *([given["node"]] if "node" in given else [])]
        listed = given.get("pools", [given["pool"]] if "pool" in given else [])
        documents = [_node(one) for one in nodes]
        documents += [_document("IPPool", one.get("name", f"p{n}"), _pool_spec(one)) for n, one in enumerate(listed)]
        documents += [_block(one) for one in given.get("blocks", [])]
        settings, _ = resolve([SettingsSource("case", {"FelixHostname": own["name"], **given.get("settings", {})})])
        self.calculation = Calculation(Store(own["name"]), settings, self._host(own, given))
        self.take(*documents)
        self.calculation.calculate({HOST, *self.calculation.store.all_keys()})

    def _host(self, own: Mapping[str, Any], given: Mapping[str, Any]) -> Host:
        known = {**USUAL.get(own["name"], {}), **own}
        parent = given.get("parent", {"name": "eth0", "mtu": given.get("parent_mtu", 1500)})
        addresses = [known[key] for key in ("ipv4", "ipv6") if known.get(key)]
        # What the interface has: a /32 that is told is one of a wider network.
        return Host(
            tuple(HostAddress(parent["name"], Net.parse_interface(one), True, parent["mtu"]) for one in addresses)
        )

    def take(self, *documents: dict[str, Any]) -> Changes:
        changes: Changes = {}
        for document in documents:
            resource = parse_resource(document)
            if resource is not None and not isinstance(resource, Absent):
                changes |= self.calculation.calculate(self.calculation.store.apply(Update(resource.key, resource)))
        return changes

    def take_node(self, given: Mapping[str, Any]) -> Changes:
        return self.take(_node(given))

    def of(self, kind: type[Key]) -> dict[Any, Any]:
        return {key: value for key, value in self.calculation.entries().items() if isinstance(key, kind)}

    @property
    def problems(self) -> str:
        return "; ".join(self.calculation.problems.values())

    def fdb(self, family: Family) -> list[list[str]]:
        return sorted([format_mac(k.mac), format_address(v)] for k, v in self.of(FdbKey).items() if k.family is family)

    def neighbours(self, family: Family) -> list[list[str]]:
        found = self.of(NeighbourKey).items()
        return sorted([format_address(k.address), format_mac(v)] for k, v in found if k.family is family)

    def nexthops(self) -> list[dict[str, Any]]:
        found: list[tuple[NexthopKey, Nexthop]] = list(self.of(NexthopKey).items())
        return [
            {"family": k.family.version, "via": format_address(v.gateway), "dev": v.interface, "onlink": True}
            for k, v in found
        ]

    def way(self, route: Route) -> str:
        if route.type is RouteType.BLACKHOLE:
            return "blackhole"
        return str(self.of(NexthopKey)[route.nexthop]) if route.nexthop else str(route)

    def routes(self) -> dict[str, Route]:
        found: dict[RouteKey, Route] = self.of(RouteKey)
        return {str(key.destination): route for key, route in found.items()}

    def node_of(self, route: Route) -> str:
        return route.nexthop.node if route.nexthop else self.way(route)

    def tunnelled(self, *, native: bool) -> list[str]:
        devices = {str(tunnel) for tunnel in Tunnel}
        routes = {dst: self.way(route) for dst, route in self.routes().items() if route.nexthop}
        return sorted(dst for dst, way in routes.items() if any(f"dev {one} " in way for one in devices) != native)

    def links(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for key, value in self.of(DeviceKey).items():
            if isinstance(value, Vxlan):
                found[key.name] = {
                    "name": key.name, "kind": "vxlan", "id": value.vni, "port": value.port,
                    "local": format_address(value.local), "dev": value.parent, "parent": value.parent,
                    "address": format_mac(value.mac), "mac": format_mac(value.mac), "mtu": value.mtu,
                    "learning": False, "up": True,
                }  # fmt: skip
            elif isinstance(value, Ipip):
                found[key.name] = {"name": key.name, "kind": "ipip", "mtu": value.mtu, "up": True, "remote": None}
        return found

    def addresses(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for key in self.of(AddressKey):
            found.setdefault(key.interface, []).append(str(Net.host(key.address)))
        return found


def _world(given: Mapping[str, Any], expect: Mapping[str, Any]) -> Iterator[Answer]:
    world = World(given)
    if "first" in expect:
        for key, wanted in expect["first"].items():
            yield from _one(world, key, wanted)
        changed = {name: dict(one) for name, one in ((n["name"], n) for n in given.get("nodes", []))}
        for path, value in given.get("then", {}).items():
            name, _, field = path.partition(".")
            changed[name][field] = value
        world.take(*(_node(one) for one in changed.values()))
        yield Answer("then", "routes", world.routes(), bool(world.routes()) and not world.problems)
        return
    for key, wanted in expect.items():
        yield from _one(world, key, wanted)


def _family(world: World) -> Family:
    """The family that a case without a word of it speaks of."""
    pools = list(world.calculation.store.pools.values())
    return pools[0].cidr.family if pools else Family.V4


def _one(world: World, key: str, wanted: Any) -> Iterator[Answer]:
    if key in _VIEWS:
        yield from _VIEWS[key](world, wanted)
    elif key in set(Tunnel):
        yield same(key, wanted, "present" if key in world.links() else "absent")
    else:
        yield elsewhere(key, PACKETS)


def _fdb(family: Family | None) -> Callable[[World, Any], Iterator[Answer]]:
    return lambda world, wanted: iter([same("fdb", sorted(wanted), world.fdb(family or _family(world)))])


def _neigh(family: Family | None) -> Callable[[World, Any], Iterator[Answer]]:
    return lambda world, wanted: iter([same("neigh", sorted(wanted), world.neighbours(family or _family(world)))])


def _nexthops(world: World, wanted: list[dict[str, Any]]) -> Iterator[Answer]:
    got = world.nexthops()
    yield same("number of nexthops", len(wanted), len(got))
    for one in wanted:
        yield Answer("nexthop", one, got, any(one.items() <= each.items() for each in got))


def _routes(world: World, wanted: list[Any]) -> Iterator[Answer]:
    got = world.routes()
    destinations = [one["dst"] if isinstance(one, dict) else one[0] if isinstance(one, list) else one for one in wanted]
    ends = {str(Net.host(one)) for node in world.calculation.store.nodes.values() for one in node.tunnel_addresses}
    listed = [one for one in got if one in destinations or one not in ends]  # addresses of tunnels without a block
    yield same("routes", sorted(destinations), sorted(listed))
    for one in wanted:
        if isinstance(one, dict) and one["dst"] in got:
            text = one.get("effective") or one.get("via")
            if text:
                yield Answer(
                    f"route {one['dst']}", text, world.way(got[one["dst"]]), text in world.way(got[one["dst"]])
                )
        elif isinstance(one, list) and one[0] in got:
            yield same(f"route {one[0]}", one[1], world.node_of(got[one[0]]))


def _links(world: World, wanted: Any) -> Iterator[Answer]:
    got = world.links()
    for one in wanted if isinstance(wanted, list) else [wanted]:
        name = one if isinstance(one, str) else one.get("name", next(iter(got), ""))
        found = got.get(name, {})
        fields = {} if isinstance(one, str) else {key: value for key, value in one.items() if key in found}
        yield Answer(f"link {name}", one, found, bool(found) and fields.items() <= found.items())


def _addresses(world: World, wanted: Any) -> Iterator[Answer]:
    if isinstance(wanted, dict):
        for name, listed in wanted.items():
            yield same(f"addresses of {name}", sorted(listed), sorted(world.addresses().get(name, [])))
    else:
        yield same("addresses", sorted(wanted), sorted(one for some in world.addresses().values() for one in some))


def _told(world: World, wanted: str) -> Iterator[Answer]:
    yield Answer("problem", wanted, world.problems, wanted in world.problems)


def _winner(world: World, wanted: str) -> Iterator[Answer]:
    nodes = sorted(name for name in world.calculation.store.nodes if name != world.calculation.store.node_name)
    address = world.calculation.store.nodes[nodes[0]].address(Family.V4)
    assert address is not None
    behind = [node for _, node in world.fdb(Family.V4)]
    yield same("whose the FDB entry is", [format_address(address.packed)], behind)


def _untouched(world: World, wanted: bool) -> Iterator[Answer]:
    others = [key for key in world.of(RouteKey) if key.family is Family.V4]
    yield same("IPv4 routes", [], others)


def _own_family(world: World, wanted: bool) -> Iterator[Answer]:
    wrong = [
        (name, address)
        for name, some in world.addresses().items()
        for address in some
        if (":" in address) != ("v6" in name)
    ]
    yield same("addresses of the other family", [], wrong)


_VIEWS: dict[str, Callable[[World, Any], Iterator[Answer]]] = {
    "fdb": _fdb(None),
    "fdb4": _fdb(Family.V4),
    "fdb6": _fdb(Family.V6),
    "neigh": _neigh(None),
    "neigh4": _neigh(Family.V4),
    "neigh6": _neigh(Family.V6),
    "nexthops": _nexthops,
    "routes": _routes,
    "not": lambda world, wanted: iter([same("absent", [], [one for one in wanted if one in world.routes()])]),
    "tunnel": lambda world, wanted: iter([same("tunnel", sorted(wanted), world.tunnelled(native=False))]),
    "native": lambda world, wanted: iter([same("native", sorted(wanted), world.tunnelled(native=True))]),
    "links": _links,
    "link": _links,
    "addresses": _addresses,
    "problem": _told,
    "warning": _told,
    "winner": _winner,
    "v4_untouched": _untouched,
    "no_address_of_other_family": _own_family,
}
