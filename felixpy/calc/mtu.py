"""MTUs of tunnel devices and of workloads: the parent's, less what the encapsulation takes. Pure.

    IPIP                outer IPv4 20
    VXLAN               outer IPv4 20 or IPv6 40, UDP 8, VXLAN 8, inner Ethernet 14
    WireGuard           outer IPv4 20 or IPv6 40, UDP 8, header and tag 32

Invariant: a device that carries IPv6 never gets less than 1280, because the kernel takes IPv6 from an interface below
it without a word; where the parent has no room for that the packets come out fragmented, and ``problem`` says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple

from felixpy.model.net import Family

LEAST_IPV6 = 1280
"""RFC 8200 §5; ``addrconf_notify`` in the kernel."""

LEAST_IPV4 = 68
DEFAULT_PARENT = 1460
"""Felix's assumption where no interface fits: what Google's network has, and less than most."""


class Tunnel(StrEnum):
    """The devices that carry packets between nodes, by the names that Calico gives them."""

    IPIP = "tunl0"
    VXLAN = "vxlan.calico"
    VXLAN_V6 = "vxlan-v6.calico"
    WIREGUARD = "wireguard.cali"
    WIREGUARD_V6 = "wg-v6.cali"

    @property
    def outer(self) -> Family:
        """The family of the packets that the tunnel sends, which is also the one that it carries above all."""
        return Family.V6 if self in (Tunnel.VXLAN_V6, Tunnel.WIREGUARD_V6) else Family.V4

    @property
    def overhead(self) -> int:
        return OVERHEADS[self]


OWN_IPIP = "tunl-felixpy"
"""A device of our own for IPIP, where ``tunl0``, which takes no outer source, could send by an address that no other
node knows."""

OVERHEADS: Mapping[Tunnel, int] = {
    Tunnel.IPIP: 20,
    Tunnel.VXLAN: 50,
    Tunnel.VXLAN_V6: 70,
    Tunnel.WIREGUARD: 60,
    Tunnel.WIREGUARD_V6: 80,
}

_WORDS = {
    Tunnel.IPIP: "IPIP",
    Tunnel.VXLAN: "VXLAN",
    Tunnel.VXLAN_V6: "VXLAN over IPv6",
    Tunnel.WIREGUARD: "WireGuard",
    Tunnel.WIREGUARD_V6: "WireGuard over IPv6",
}


class DeviceMTU(NamedTuple):
    """What a device gets; ``computed`` is what there is room for; ``problem`` is empty if all is well."""

    mtu: int
    computed: int
    problem: str = ""

    @property
    def fits(self) -> bool:
        """Whether the parent carries a full packet in one piece."""
        return self.mtu <= self.computed


def device_mtu(tunnel: Tunnel, parent_mtu: int, configured: int = 0, *, carries_ipv6: bool | None = None) -> DeviceMTU:
    """The MTU of a tunnel device over a parent; ``configured`` is the setting, 0 for none, and wins.

    A setting above what the parent carries is used as it is, as far as the kernel takes it, and told.
    """
    ipv6 = tunnel.outer is Family.V6 if carries_ipv6 is None else carries_ipv6
    room = parent_mtu - tunnel.overhead
    wanted = configured or room
    least = LEAST_IPV6 if ipv6 else LEAST_IPV4
    if wanted < least:
        needs = least + tunnel.overhead
        inner = "IPv6" if ipv6 else "IPv4"
        if configured:
            problem = f"MTU {configured} set for {tunnel} is too small for {inner} (needs {least})"
        else:
            problem = f"underlay MTU {parent_mtu} is too small for {inner} in {_WORDS[tunnel]} (needs {needs})"
        return DeviceMTU(least, wanted if not configured else room, problem)
    if wanted > room:
        problem = f"MTU {wanted} set for {tunnel} is more than the underlay's {parent_mtu} carries ({room})"
        return DeviceMTU(wanted, room, problem)
    return DeviceMTU(wanted, room)


def pod_mtu(parent_mtu: int, devices: Iterable[int], *, ipv6: bool) -> DeviceMTU:
    """What workloads may use, which is one number for both families: the smallest of the devices in use."""
    least = min(devices, default=parent_mtu)
    if ipv6 and least < LEAST_IPV6:
        problem = f"workloads would get MTU {least}, which is too small for IPv6 (needs {LEAST_IPV6})"
        return DeviceMTU(LEAST_IPV6, least, problem)
    return DeviceMTU(least, least)
