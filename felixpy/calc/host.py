"""What the calculation has to know of the node's own kernel, gathered by the dataplane and passed in."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

from msgspec import Struct, field

from felixpy.calc.entries import Key, SettingsKey, SettingValues, Value
from felixpy.calc.entry_settings import EntrySettings
from felixpy.calc.reserved import Reserved, Way
from felixpy.model.net import FAMILIES, Family, Net, format_address

ALL_INTERFACES = "all"


class HostAddress(NamedTuple):
    """An address of an interface that is no workload's, whether that is up, its MTU; ``net`` keeps the host bits.

    ``interface`` is empty for the node's address on ``lo``: packets leave by whatever a route says.
    """

    interface: str
    net: Net
    up: bool = True
    mtu: int = 1500


class Host(Struct, frozen=True, dict=True):
    """Facts of the node: addresses, whether the kernel has IPv6, and ``net.ipv4.conf.default.rp_filter``.

    ``not_masqueraded``: destinations that ip-masq-agent's file leaves alone; everything while that is not known.
    ``loopback``: addresses of ``lo``, which routers have. ``gateways`` are the next hops of others' routes, ``uplinks``
    the interfaces that default routes go through, ``uplink_mtu`` the least of theirs, ``peers`` what the node is told
    by: the broker in use.
    ``wireguard_keys`` are the public keys of this node's own devices that stand.
    """

    addresses: tuple[HostAddress, ...] = ()
    ipv6: bool = True
    rp_filter: int = 1
    loopback: tuple[Net, ...] = ()
    gateways: tuple[Way, ...] = ()
    uplinks: tuple[str, ...] = ()
    uplink_mtu: int = 1500
    peers: tuple[Way, ...] = ()
    not_masqueraded: tuple[Net, ...] = ()
    wireguard_keys: Mapping[Family, bytes] = field(default_factory=dict)

    @cached_property
    def reserved(self) -> Reserved:
        """What no workload, block or tunnel may have, because the node's own network needs it."""
        own = [(one.interface, one.net) for one in self.addresses]
        own += [("lo", net) for net in self.loopback]
        return Reserved(own, self.gateways, self.peers, self.uplinks)

    def parent_interface(self, gateway: bytes, own: Net | None) -> str | None:
        """Interface that reaches another node on the link: its subnet has the gateway. None where no subnet has it."""
        return next((one.interface for one in self.parents(own) if one.net.covers(gateway)), None)

    def parents(self, own: Net | None) -> list[HostAddress]:
        """Addresses in the order in which their interfaces are asked whether another node is on their link.

        The longest subnet first, then one that is up, then the one with our node address, then the first by name:
        never what the order in which interfaces came would say.
        """
        mine = own.packed if own is not None else None
        return sorted(
            self.addresses, key=lambda one: (-one.net.length, not one.up, one.net.packed != mine, one.interface)
        )

    def interface_with(self, address: bytes) -> HostAddress | None:
        """The interface that has an address of the node: of several one that is up, then the first by name.

        Only if no other has it, ``lo``: so nodes that tell routers of their address themselves (BGP to the host).
        """
        having = [one for one in self.addresses if one.net.packed == address]
        if not having:
            having = [HostAddress("", net, mtu=self.uplink_mtu) for net in self.loopback if net.packed == address]
        return min(having, key=lambda one: (not one.up, one.interface), default=None)


def supported_families(settings: EntrySettings, host: Host) -> tuple[Family, ...]:
    """Families that felixpy programs on this node."""
    v6 = settings.ipv6_support and host.ipv6
    if settings.ipv4_support:
        return FAMILIES if v6 else (Family.V4,)
    return (Family.V6,) if v6 else ()


def kept_from_device(address: bytes, device: str, host: Host) -> str:
    """Why a tunnel's device does not get an address that it should have, empty if it does."""
    if kept_from := host.reserved.kept_from_tunnel(address):
        return f"{device} does not get {format_address(address)}, {kept_from}; give this node another tunnel address"
    return ""


def host_entries(settings: EntrySettings, host: Host) -> dict[Key, Value]:
    """Forwarding for the whole node. Per-interface forwarding does not suffice in IPv6 (DESIGN §11.2)."""
    if not settings.ip_forwarding:
        return {}
    families = supported_families(settings, host)
    entries: dict[Key, Value] = {SettingsKey(ALL_INTERFACES, family): _FORWARDING for family in families}
    if Family.V4 in families and settings.encrypts(Family.V4) and settings.wireguard_host_encryption_enabled:
        entries[SettingsKey(ALL_INTERFACES, Family.V4)] = _FORWARDING_BY_MARK
    return entries


_FORWARDING = SettingValues(forwarding=1)
_FORWARDING_BY_MARK = SettingValues(forwarding=1, src_valid_mark=1)
"""With host encryption the reverse path filter has to see by the mark that a packet came to the device itself."""
