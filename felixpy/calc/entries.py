"""What the calculation produces: entries of keyed tables, in the kernel's own words.

Every entry is (table, key, value). Keys are the kernel's keys, so that two producers of one kernel object meet in
one key. Interfaces are named here; the dataplane turns names into indexes when it writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, IntEnum, StrEnum
from typing import NamedTuple

from felixpy.model.net import Family, Net, family_of, format_address

MAIN_TABLE = 254  # RT_TABLE_MAIN


class RouteType(IntEnum):
    """``rtm_type`` (rtnetlink(7))."""

    UNICAST = 1
    BLACKHOLE = 6


class RouteKey(NamedTuple):
    """The kernel's key of a route. IPv6 has no metric 0: the kernel stores 1024 for it.

    ``tos``: the type of service that an IPv4 route is for; other programs' alone have one.
    """

    family: Family
    destination: Net
    metric: int
    table: int = MAIN_TABLE
    tos: int = 0

    def __str__(self) -> str:
        return f"{self.destination}{f' tos {self.tos:#04x}' if self.tos else ''} metric {self.metric}"


class Route(NamedTuple):
    """The rest of a route. ``interface`` is None for a blackhole; ``scope`` is always 0 (global) for IPv6."""

    type: RouteType
    interface: str | None
    gateway: bytes | None = None
    onlink: bool = False
    source: bytes | None = None
    scope: int = 0
    protocol: int = 0

    def __str__(self) -> str:
        if self.type is RouteType.BLACKHOLE:
            return "blackhole"
        via = f"via {format_address(self.gateway)} " if self.gateway else ""
        source = f" src {format_address(self.source)}" if self.source else ""
        return f"{via}dev {self.interface}{' onlink' if self.onlink else ''}{source}"


class NeighbourKey(NamedTuple):
    """A permanent neighbour entry; its value is the MAC, six bytes."""

    interface: str
    address: bytes

    @property
    def family(self) -> Family:
        return family_of(self.address)

    def __str__(self) -> str:
        return f"{format_address(self.address)} dev {self.interface}"


class SettingsKey(NamedTuple):
    """The kernel's settings of an interface in one family, ``net.ipv4.conf.<interface>`` or its IPv6 twin."""

    interface: str
    family: Family

    def __str__(self) -> str:
        return f"net.ipv{self.family.version}.conf.{self.interface}"


class SettingValues(dict[str, int]):
    """Values by name. ``neigh/proxy_delay`` stands for ``net.ipv4.neigh.<interface>.proxy_delay``.

    One object serves all interfaces with the same values: it is never changed.
    """

    __slots__ = ()

    def besides(self, known: Mapping[str, int]) -> SettingValues:
        """Those of the values that are not known to be so."""
        return SettingValues({name: value for name, value in self.items() if known.get(name) != value})

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.items())


class SetName(StrEnum):
    """The sets that rules refer to; one of each per family."""

    FROM_WORKLOAD = "from-workload"  # (source address, input interface)
    TO_WORKLOAD = "to-workload"  # (destination address, output interface)
    ALLOWED_SOURCES = "allowed-sources"  # (source prefix, input interface): allowSpoofedSourcePrefixes
    POOLS = "pools"  # every pool but LoadBalancer-only ones
    MASQ_POOLS = "masq-pools"  # pools with natOutgoing
    HOSTS = "hosts"  # node addresses and ExternalNodesCIDRList


class SetType(Enum):
    """Shape of a set's members."""

    HOST_INTERFACE = "address, interface"
    NET_INTERFACE = "prefix, interface"
    NET = "prefix"


SET_TYPES = {
    SetName.FROM_WORKLOAD: SetType.HOST_INTERFACE,
    SetName.TO_WORKLOAD: SetType.HOST_INTERFACE,
    SetName.ALLOWED_SOURCES: SetType.NET_INTERFACE,
    SetName.POOLS: SetType.NET,
    SetName.MASQ_POOLS: SetType.NET,
    SetName.HOSTS: SetType.NET,
}


class ElementKey(NamedTuple):
    """A member of a set. ``interface`` is empty for sets of prefixes; ``net`` is /32 or /128 in address sets.

    Members of one ``NET`` set, and of one interface in a ``NET_INTERFACE`` set, never cover each other: nft interval
    sets refuse overlaps, so the calculation leaves out what a wider member covers.
    """

    set: SetName
    net: Net
    interface: str = ""

    @property
    def family(self) -> Family:
        return family_of(self.net.packed)

    def __str__(self) -> str:
        member = format_address(self.net.packed) if self.net.is_host else str(self.net)
        return f"{self.set} {{ {member}{' . ' + self.interface if self.interface else ''} }}"


Key = RouteKey | NeighbourKey | SettingsKey | ElementKey
"""Any table key but a chain's; elements carry no value (None)."""

Value = Route | bytes | SettingValues | None
