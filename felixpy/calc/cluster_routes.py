"""IPAM blocks -> routes to other nodes, blackholes for what this node owns and nobody uses. Pure.

A route to another node names a nexthop (``felixpy.calc.overlay``), which says whether its packets are encapsulated:
when that changes, no route does. Where there is no way to a node its blocks have no route, and the node says why: so
a node without a tunnel that is in no subnet of ours, where a route by guess would hide the one that leads there. What
a local workload has is never routed to another node, whatever a block says: with a lower metric that route would stand
beside the workload's and win.
"""

from __future__ import annotations

from collections.abc import Container

from felixpy.calc import wireguard
from felixpy.calc.entries import Key, Route, RouteType, Value
from felixpy.calc.entry_settings import EntrySettings
from felixpy.calc.host import Host, supported_families
from felixpy.calc.overlay import is_programmed, nexthop_key, route_key
from felixpy.config import ProgramClusterRoutes
from felixpy.model.net import Net
from felixpy.model.resources import BlockAffinity, IPAMBlock, IPPool, ResourceKey
from felixpy.store.store import Store
from felixpy.store.ways import way_key


def block_entries(
    block: IPAMBlock | BlockAffinity,
    store: Store,
    settings: EntrySettings,
    host: Host,
    open_ways: Container[ResourceKey],
) -> tuple[dict[Key, Value], str]:
    """Routes of one block, and why some are missing (empty if none is, or if its node says so).

    ``open_ways``: those that have a nexthop, as they were calculated: no block asks again how its node is reached.
    """
    if block.cidr.family not in supported_families(settings, host):
        return {}, ""
    pool = store.covering_pool(block.cidr)
    entries: dict[Key, Value] = {}
    if block.host == store.node_name:
        entries |= wireguard.local_entries((block.cidr,), settings, host)
    if not _is_ours_to_make(pool, settings):
        return entries, ""
    problems: list[str] = []
    if block.host == store.node_name:
        if block.cidr.is_host:
            pass  # a blackhole for one address would keep its own workload route out
        elif covered := host.reserved.covered_by(block.cidr):
            problems.append(_covers(block.cidr, covered))
        else:
            entries[route_key(block.cidr)] = Route(
                RouteType.BLACKHOLE,
                None,
                source=settings.route_source(block.cidr.family),
                protocol=settings.device_route_protocol,
            )
    elif block.host:
        problems.append(_route_to(block.host, block.cidr, pool, store, settings, host, open_ways, entries))
    if isinstance(block, IPAMBlock):
        for borrowed in block.borrowed:
            if borrowed.node not in (store.node_name, block.host):
                problems.append(
                    _route_to(borrowed.node, borrowed.address, pool, store, settings, host, open_ways, entries)
                )
    return entries, "; ".join(dict.fromkeys(filter(None, problems)))


def _covers(destination: Net, covered: str) -> str:
    return f"{destination} covers {covered}: no route is made for it; correct the block or its pool"


def _is_ours_to_make(pool: IPPool | None, settings: EntrySettings) -> bool:
    if pool is None:
        return settings.program_cluster_routes is not ProgramClusterRoutes.DISABLED
    return is_programmed(pool.encapsulation, settings)


def _route_to(
    node_name: str,
    destination: Net,
    pool: IPPool | None,
    store: Store,
    settings: EntrySettings,
    host: Host,
    open_ways: Container[ResourceKey],
    entries: dict[Key, Value],
) -> str:
    if destination.is_host and store.address_owner(destination) is not None:
        return ""
    if covered := host.reserved.covered_by(destination):
        return _covers(destination, covered)
    if pool is None:
        return "no pool covers this block yet"
    if way_key(node_name, pool.key) not in open_ways:
        return ""
    entries[route_key(destination)] = Route(
        RouteType.UNICAST,
        None,
        source=settings.route_source(destination.family),
        protocol=settings.device_route_protocol,
        nexthop=nexthop_key(node_name, pool),
    )
    return ""
