"""IPAM blocks -> routes to other nodes, blackholes for what this node owns and nobody uses. Pure.

A block is routed natively only if a pool without encapsulation covers it: traffic of an IPIP or VXLAN pool must never
leave the node unencapsulated by accident. What a local workload has is never routed to another node,
whatever a block says: with a lower metric that route would stand beside the workload's and win. A node that is in no
subnet of ours gets no route by guess: nobody on the link answers for it, and the route would hide the one that leads
there (a router that knows the block).
"""

from __future__ import annotations

from felixpy.calc.entries import Key, Route, RouteKey, RouteType, Value
from felixpy.calc.entry_settings import EntrySettings
from felixpy.calc.host import Host, supported_families
from felixpy.config import ProgramClusterRoutes
from felixpy.model.net import Family, Net, format_address
from felixpy.model.resources import BlockAffinity, Encapsulation, IPAMBlock
from felixpy.store.store import Store

# One metric for all cluster routes. IPv6 stores 1024 for a route without one.
METRIC = {Family.V4: 0, Family.V6: 1024}


def block_entries(
    block: IPAMBlock | BlockAffinity, store: Store, settings: EntrySettings, host: Host
) -> tuple[dict[Key, Value], str]:
    """Routes of one block, and why some are missing (empty if none is)."""
    if settings.program_cluster_routes is ProgramClusterRoutes.DISABLED:
        return {}, ""
    if block.cidr.family not in supported_families(settings, host):
        return {}, ""
    entries: dict[Key, Value] = {}
    problems: list[str] = []
    if block.host == store.node_name:
        if block.cidr.is_host:
            pass  # a blackhole for one address would keep its own workload route out
        elif covered := host.reserved.covered_by(block.cidr):
            problems.append(_covers(block.cidr, covered))
        else:
            entries[_key(block.cidr)] = Route(RouteType.BLACKHOLE, None, protocol=settings.device_route_protocol)
    elif block.host:
        _route_to(block.host, block.cidr, block.cidr, store, settings, host, entries, problems)
    if isinstance(block, IPAMBlock):
        for borrowed in block.borrowed:
            if borrowed.node not in (store.node_name, block.host):
                _route_to(borrowed.node, borrowed.address, block.cidr, store, settings, host, entries, problems)
    return entries, "; ".join(dict.fromkeys(problems))


def encapsulation_problem(encapsulation: Encapsulation) -> str:
    """What to tell about a pool, empty if it is routed."""
    if encapsulation is Encapsulation.NONE:
        return ""
    return f"encapsulation {encapsulation} is not yet supported: blocks of this pool on other nodes get no route"


def _covers(destination: Net, covered: str) -> str:
    return f"{destination} covers {covered}: no route is made for it; correct the block or its pool"


def _key(destination: Net) -> RouteKey:
    return RouteKey(destination.family, destination, METRIC[destination.family])


def _route_to(
    node_name: str,
    destination: Net,
    block: Net,
    store: Store,
    settings: EntrySettings,
    host: Host,
    entries: dict[Key, Value],
    problems: list[str],
) -> None:
    if destination.is_host and store.address_owner(destination) is not None:
        return
    if covered := host.reserved.covered_by(destination):
        problems.append(_covers(destination, covered))
        return
    pool = store.covering_pool(block)
    if pool is None:
        problems.append("no pool covers this block yet")
        return
    if pool.encapsulation is not Encapsulation.NONE:
        problems.append(f"{pool.key}: {encapsulation_problem(pool.encapsulation)}")
        return
    node = store.nodes.get(node_name)
    address = node.address(destination.family) if node else None
    if address is None:
        problems.append(f"node {node_name} has no {destination.family} address")
        return
    own = store.nodes.get(store.node_name)  # decides between two interfaces in one subnet
    parent = host.parent_interface(address.packed, own.address(destination.family) if own else None)
    if parent is None:
        problems.append(
            f"node {node_name} at {format_address(address.packed)} is in no subnet of this node: its blocks get no "
            "route; give the pool vxlanMode CrossSubnet, unless routers know the blocks"
        )
        return
    entries[_key(destination)] = Route(
        RouteType.UNICAST,
        parent,
        gateway=address.packed,
        onlink=True,
        protocol=settings.device_route_protocol,
    )
