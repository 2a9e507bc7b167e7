"""Facts of the node for the calculation, read from the kernel: addresses of its own interfaces, IPv6, rp_filter."""

from __future__ import annotations

from pathlib import Path

from felixpy.calc.host import Host, HostAddress
from felixpy.dataplane.interface_settings import PROC_SYS_NET, read_proc
from felixpy.dataplane.links import Links
from felixpy.netlink.inventory import is_usable, read_addresses

STRICT = 1
"""Felix's assumption if ``default.rp_filter`` cannot be read (reference/felix.md §3.1)."""


async def read_host(links: Links, workload_prefixes: tuple[str, ...]) -> Host:
    """Read the facts; workload interfaces are left out, so the cost does not grow with workloads. ``links`` is told
    which interfaces have addresses.

    Raises:
        OSError: the kernel refused.
    """
    own = [link.ifindex for link in links.by_name.values() if is_host_interface(link.name, workload_prefixes)]
    addresses = [
        HostAddress(link.name, address.net, link.up)
        for address in await read_addresses(own)
        if is_usable(address) and (link := links.by_index.get(address.interface)) is not None
    ]
    addresses.sort()  # links have the order in which they came: to tell the same in another order is no change
    links.addressed = frozenset(address.interface for address in addresses)
    rp_filter = read_proc(f"{PROC_SYS_NET}/ipv4/conf/default/rp_filter")
    return Host(tuple(addresses), Path(f"{PROC_SYS_NET}/ipv6").exists(), STRICT if rp_filter is None else rp_filter)


def is_host_interface(name: str, workload_prefixes: tuple[str, ...]) -> bool:
    """Whether an interface is the node's own: no workload's, not the loopback."""
    return name != "lo" and not name.startswith(workload_prefixes)
