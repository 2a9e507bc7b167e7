"""Rarely needed facts of the node, read through pyroute2: addresses, and default routes learnt by advertisement.

The only module that imports pyroute2. Its cost per message (0.3 ms) keeps it away from anything that grows with the
number of workloads: the kernel is asked to filter, and callers leave workload interfaces out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from pyroute2 import AsyncIPRoute

from felixpy.model.net import Family, Net, family_of, parse_address
from felixpy.netlink.rtnetlink import RTPROT_RA

IFA_F_DADFAILED = 0x08
AF_INET6 = Family.V6.value
MAIN_TABLE = 254


class InterfaceAddress(NamedTuple):
    """An address on an interface, by index; ``net`` keeps the host bits."""

    interface: int
    net: Net


async def read_addresses(interfaces: Iterable[int]) -> list[InterfaceAddress]:
    """Addresses of the given interfaces, both families, in the kernel's order.

    Raises:
        OSError: the kernel refused.
    """
    found = []
    async with AsyncIPRoute(strict_check=True, ext_ack=True) as netlink:
        for interface in interfaces:
            async for message in await netlink.addr("dump", dump_filter=None, index=interface):
                text = message.get("IFA_LOCAL") or message.get("IFA_ADDRESS")
                flags = message.get("IFA_FLAGS") or message["flags"]
                if text and message["index"] == interface and not flags & IFA_F_DADFAILED:
                    found.append(InterfaceAddress(interface, Net(parse_address(text), message["prefixlen"])))
    return found


async def read_advertised_default_interfaces() -> set[int]:
    """Interfaces (by index) that an IPv6 default route learnt by router advertisement goes through.

    Raises:
        OSError: the kernel refused.
    """
    found = set()
    async with AsyncIPRoute(strict_check=True, ext_ack=True) as netlink:
        routes = await netlink.route("dump", dump_filter=None, family=AF_INET6, proto=RTPROT_RA, table=MAIN_TABLE)
        async for message in routes:
            interface = message.get("RTA_OIF")
            if message["dst_len"] == 0 and message["proto"] == RTPROT_RA and interface is not None:
                found.add(int(interface))
    return found


def is_usable(address: InterfaceAddress) -> bool:
    """Global unicast as the kernel understands it: no loopback, no IPv6 link-local."""
    packed = address.net.packed
    if family_of(packed) is Family.V4:
        return packed[0] != 127
    return not (packed[0] == 0xFE and packed[1] & 0xC0 == 0x80) and packed != bytes(15) + b"\x01"
