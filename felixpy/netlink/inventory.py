"""Rarely needed facts of the node: addresses, and default routes learnt by advertisement.

What is asked never grows with the number of workloads: the kernel filters, and callers leave workload interfaces out.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable

from felixpy.model.net import Family, family_of
from felixpy.netlink.rtnetlink import (
    RTPROT_RA,
    InterfaceAddress,
    address_dump_request,
    decode_address,
    decode_route,
    route_dump_request,
)
from felixpy.netlink.transport import NETLINK_ROUTE, NetlinkError, NetlinkSocket

MAIN_TABLE = 254
FEW = 32


async def read_addresses(interfaces: Iterable[int]) -> list[InterfaceAddress]:
    """Addresses of the given interfaces, both families, in the kernel's order; none of an interface that has gone.

    Raises:
        OSError: the kernel refused.
    """
    found: list[InterfaceAddress] = []
    interfaces = list(interfaces)
    if len(interfaces) > FEW:  # one look at all of them costs less
        wanted = set(interfaces)
        with contextlib.closing(NetlinkSocket(NETLINK_ROUTE)) as netlink:
            addresses = await netlink.decode_sliced(address_dump_request(0), decode_address)
        return [address for address in addresses if address and address.interface in wanted]
    with contextlib.closing(NetlinkSocket(NETLINK_ROUTE)) as netlink:
        for interface in interfaces:
            try:
                addresses = await netlink.decode_sliced(address_dump_request(interface), decode_address)
            except NetlinkError as error:
                if error.errno != errno.ENODEV:
                    raise
                continue
            found += [address for address in addresses if address and address.interface == interface]
    return found


async def read_advertised_default_interfaces() -> set[int]:
    """Interfaces (by index) that an IPv6 default route learnt by router advertisement goes through.

    Raises:
        OSError: the kernel refused.
    """
    request = route_dump_request(Family.V6, MAIN_TABLE, protocol=RTPROT_RA)
    with contextlib.closing(NetlinkSocket(NETLINK_ROUTE)) as netlink:
        routes = [found for found in await netlink.decode_sliced(request, decode_route) if found]
    return {
        route.interface
        for key, route in routes
        if key.destination.length == 0 and key.table == MAIN_TABLE and route.protocol == RTPROT_RA and route.interface
    }


def is_usable(address: InterfaceAddress) -> bool:
    """Global unicast as the kernel understands it: no loopback, no IPv6 link-local."""
    packed = address.net.packed
    if family_of(packed) is Family.V4:
        return packed[0] != 127
    return not (packed[0] == 0xFE and packed[1] & 0xC0 == 0x80) and packed != bytes(15) + b"\x01"
