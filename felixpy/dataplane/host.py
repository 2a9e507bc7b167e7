"""Facts of the node for the calculation, read from the kernel: addresses of its own interfaces, IPv6, rp_filter."""

from __future__ import annotations

import contextlib
from pathlib import Path

from felixpy.calc.host import Host, HostAddress
from felixpy.calc.reserved import Way
from felixpy.dataplane.interface_settings import PROC_SYS_NET, read_proc
from felixpy.dataplane.links import Links
from felixpy.dataplane.routes import Ways
from felixpy.model.net import format_address
from felixpy.netlink.inventory import is_usable, read_addresses
from felixpy.netlink.lookup import leading_route, open_lookup
from felixpy.netlink.rtnetlink import RTN_UNICAST

STRICT = 1
"""Felix's assumption if ``default.rp_filter`` cannot be read (reference/felix.md §3.1)."""


async def read_host(
    links: Links,
    workload_prefixes: tuple[str, ...],
    ways: Ways | None = None,
    peers: tuple[bytes, ...] = (),
    ours: int = 0,
    tunnels: tuple[str, ...] = (),
) -> Host:
    """Read the facts; workload interfaces are left out, so the cost does not grow with workloads. ``links`` is told
    which interfaces have addresses.

    ``ways`` are what the last reading of routes and the notifications since then have of others' routes; ``peers``
    whom the node is connected to; ``ours`` the protocol number of our routes; ``tunnels`` the names of WireGuard's
    devices.

    Raises:
        OSError: the kernel refused.
    """
    own = [link.ifindex for link in links.by_name.values() if is_host_interface(link.name, workload_prefixes)]
    loopback = links.by_name.get("lo")
    read = await read_addresses([*own, *([loopback.ifindex] if loopback else [])])
    usable = [(links.by_index.get(address.interface), address.net) for address in read if is_usable(address)]
    addresses = [HostAddress(link.name, net, link.up, link.mtu) for link, net in usable if link and link.name != "lo"]
    on_loopback = tuple(sorted(net for link, net in usable if link and link.name == "lo"))
    subnets = {one.net.packed for one in addresses if not one.net.is_host}
    # With host encryption a tunnel has the node's address, too: it is where its subnet is, or on ``lo``.
    known = {name: subnets.union(net.packed for net in on_loopback) for name in tunnels}
    addresses = [
        one for one in addresses if not (one.net.is_host and one.net.packed in known.get(one.interface, subnets))
    ]
    addresses.sort()  # links have the order in which they came: to tell the same in another order is no change
    ways = ways or Ways()
    uplinks = {name: links.by_name[name].mtu for index in ways.uplinks if (name := links.name_of(index))}
    links.addressed = frozenset(address.interface for address in addresses).union(uplinks if on_loopback else ())
    rp_filter = read_proc(f"{PROC_SYS_NET}/ipv4/conf/default/rp_filter")
    gateways = {
        Way(gateway, name, name.startswith(workload_prefixes))
        for gateway, index in ways.gateways
        if (name := links.name_of(index))
    }
    return Host(
        tuple(addresses),
        Path(f"{PROC_SYS_NET}/ipv6").exists(),
        STRICT if rp_filter is None else rp_filter,
        loopback=on_loopback,
        gateways=tuple(sorted(gateways)),
        uplinks=tuple(sorted(uplinks)),
        uplink_mtu=min(uplinks.values(), default=1500) if on_loopback else 1500,
        peers=_read_peers(links, workload_prefixes, peers, ours),
    )


def _read_peers(
    links: Links, workload_prefixes: tuple[str, ...], peers: tuple[bytes, ...], ours: int
) -> tuple[Way, ...]:
    """How the node reaches whom it is connected to; nothing of the node itself and of whom no route leads to."""
    found = []
    with contextlib.closing(open_lookup()) as lookup:
        for peer in peers:
            try:
                route = leading_route(lookup, peer)
            except OSError:
                continue
            name = links.name_of(route.interface)
            if name is not None and route.kind == RTN_UNICAST:
                found.append(Way(peer, name, route.protocol == ours or name.startswith(workload_prefixes)))
    return tuple(found)


async def read_own_interfaces(links: Links, prefixes: tuple[str, ...], ways: Ways) -> dict[str, str]:
    """Interfaces with one of some prefixes that are the node's own all the same, and what says so.

    An address with a subnet says it, a single one does not: CNI plugins put the workloads' gateway there.

    Raises:
        OSError: the kernel refused.
    """
    named = [link for link in links.by_name.values() if link.name.startswith(prefixes) and link.name != "lo"]
    uplinks = {links.name_of(index) for index in ways.uplinks}
    own = {link.name: "which a default route goes through" for link in named if link.name in uplinks}
    for address in await read_addresses([link.ifindex for link in named]):
        link = links.by_index.get(address.interface)
        if link is not None and is_usable(address) and not address.net.is_host:
            own[link.name] = f"which carries the node's address {format_address(address.net.packed)}"
    return own


def is_host_interface(name: str, workload_prefixes: tuple[str, ...]) -> bool:
    """Whether an interface is the node's own: no workload's, not the loopback."""
    return name != "lo" and not name.startswith(workload_prefixes)
