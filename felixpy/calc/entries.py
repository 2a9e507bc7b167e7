"""What the calculation produces: entries of keyed tables, in the kernel's own words.

Every entry is (table, key, value). Keys are the kernel's keys, so that two producers of one kernel object meet in
one key. Interfaces are named here; the dataplane turns names into indexes when it writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, IntEnum
from functools import lru_cache
from typing import ClassVar, Final, NamedTuple

from felixpy.calc.policy.classes import PolicyKey, PolicyValue
from felixpy.model.net import Family, Net, family_of, format_address
from felixpy.model.wireguard import format_key

MAIN_TABLE = 254  # RT_TABLE_MAIN


class RouteType(IntEnum):
    """``rtm_type`` (rtnetlink(7))."""

    UNICAST = 1
    BLACKHOLE = 6
    THROW = 9
    """Here is no answer: go on with the next rule's table."""


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
        table = f" table {self.table}" if self.table != MAIN_TABLE else ""
        return f"{self.destination}{f' tos {self.tos:#04x}' if self.tos else ''} metric {self.metric}{table}"


class NexthopKey(NamedTuple):
    """A nexthop object: where packets of a pool for a node go first. Its number is the dataplane's business.

    One for each pool, so that a pool whose mode changes, or a node that moves, is one write and touches no route.
    """

    family: Family
    node: str
    pool: str

    def __str__(self) -> str:
        return (
            f"{self.family} to node {self.node} for {self.pool}" if self.node else f"{self.family} object {self.pool}"
        )


class Nexthop(NamedTuple):
    """Where a nexthop object leads: always ``onlink``, as the gateway may lie in no subnet of the interface."""

    interface: str
    gateway: bytes

    def __str__(self) -> str:
        return f"via {format_address(self.gateway)} dev {self.interface} onlink"


class Route(NamedTuple):
    """The rest of a route. ``interface`` is None for a blackhole; ``scope`` is always 0 (global) for IPv6.

    ``nexthop`` stands for interface and gateway.
    """

    type: RouteType
    interface: str | None
    gateway: bytes | None = None
    onlink: bool = False
    source: bytes | None = None
    scope: int = 0
    protocol: int = 0
    nexthop: NexthopKey | None = None

    def __str__(self) -> str:
        if self.type is not RouteType.UNICAST:
            return self.type.name.lower()
        if self.nexthop is not None:
            return f"nexthop {self.nexthop}"
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


class DeviceKey(NamedTuple):
    """A tunnel device of ours, by its name. Keys of all tables meet in one dictionary: this order is nobody else's."""

    family: Family
    name: str

    def __str__(self) -> str:
        return self.name


class Vxlan(NamedTuple):
    """A VXLAN device: ``local`` is the node's address, ``parent`` the interface that has it.

    ``parent`` is empty where the device must be wider than the parent carries: the kernel then asks for no room.
    """

    vni: int
    port: int
    local: bytes
    parent: str
    mac: bytes
    mtu: int

    def __str__(self) -> str:
        parent = f" dev {self.parent}" if self.parent else ""
        local = format_address(self.local)
        return (
            f"vxlan id {self.vni} local {local}{parent} dstport {self.port} address {self.mac.hex(':')} mtu {self.mtu}"
        )


class Ipip(NamedTuple):
    """``tunl0``, which the kernel's module makes in every namespace; or a device of our own, with an outer source."""

    mtu: int
    local: bytes = b""

    def __str__(self) -> str:
        local = f" local {format_address(self.local)}" if self.local else ""
        return f"ipip{local} mtu {self.mtu} up"


class WireGuard(NamedTuple):
    """A WireGuard device, but for its private key, which stays with the dataplane.

    ``mark`` is what its own encrypted packets carry, so that no rule leads them into it again.
    """

    port: int
    mark: int
    mtu: int
    threaded: bool = False

    def __str__(self) -> str:
        threaded = " threaded" if self.threaded else ""
        return f"wireguard listen-port {self.port} fwmark {self.mark:#x} mtu {self.mtu}{threaded}"


class PeerKey(NamedTuple):
    """Another node as a peer of a WireGuard device: what the kernel knows it by is its public key."""

    family: Family
    interface: str
    public_key: bytes

    def __str__(self) -> str:
        return f"{format_key(self.public_key)} dev {self.interface}"


class Peer(NamedTuple):
    """Where a peer is, and what it may send and is sent: sorted. ``keepalive`` is seconds, 0 for none."""

    endpoint: bytes
    port: int
    allowed: tuple[Net, ...]
    keepalive: int

    def __str__(self) -> str:
        address = format_address(self.endpoint)
        endpoint = f"[{address}]:{self.port}" if len(self.endpoint) == 16 else f"{address}:{self.port}"
        keepalive = f" persistent-keepalive {self.keepalive}" if self.keepalive else ""
        return f"endpoint {endpoint} allowed-ips {','.join(map(str, self.allowed)) or '(none)'}{keepalive}"


class PolicyRuleKey(NamedTuple):
    """A routing policy rule: packets without the mark ask this table, before those of higher numbers; no value."""

    family: Family
    priority: int
    table: int
    mark: int

    def __str__(self) -> str:
        return f"{self.priority}: not from all fwmark {self.mark:#x}/{self.mark:#x} lookup {self.table}"


class AddressKey(NamedTuple):
    """An address of a tunnel device of ours, without neighbours (/32 or /128); no value.

    The other way round it would be equal to a ``NeighbourKey``.
    """

    address: bytes
    interface: str

    @property
    def family(self) -> Family:
        return family_of(self.address)

    def __str__(self) -> str:
        return f"{format_address(self.address)} dev {self.interface}"


class FdbKey(NamedTuple):
    """An entry of a VXLAN device's forwarding database; its value is the address of the node behind the MAC."""

    interface: str
    mac: bytes
    family: Family

    def __str__(self) -> str:
        return f"{self.mac.hex(':')} dev {self.interface}"


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


class SetType(Enum):
    """Shape of a set's members."""

    HOST_INTERFACE = "address, interface"
    NET_INTERFACE = "prefix, interface"
    NET = "prefix"
    INTERFACE = "interface"
    HOST = "address"
    HOST_PORT = "address, protocol, port"
    ADDRESS_MAP = "address : address"
    LOOP_MAP = "the same address twice : address"


class SetName(str):
    """A set that rules refer to; one of each per family. ``type`` is the shape of its members.

    The standing sets are named here. Others are named by the calculation: such a name begins with what tells its shape
    (``SHAPES``), so that a set of ours that is found in the kernel says by its name what it holds.

    Raises:
        ValueError: no set of ours can have this name.
    """

    FROM_WORKLOAD: ClassVar[SetName]  # (source address, input interface)
    TO_WORKLOAD: ClassVar[SetName]  # (destination address, output interface)
    ALLOWED_SOURCES: ClassVar[SetName]  # (source prefix, input interface): allowSpoofedSourcePrefixes
    POOLS: ClassVar[SetName]  # every pool but LoadBalancer-only ones
    MASQ_POOLS: ClassVar[SetName]  # pools with natOutgoing
    HOSTS: ClassVar[SetName]  # node addresses: exact, as a change of an interval set costs as much as it has members
    EXTERNAL_HOSTS: ClassVar[SetName]  # ExternalNodesCIDRList
    NOT_MASQUERADED: ClassVar[SetName]  # destinations that ip-masq-agent's file leaves alone
    SERVICE_RANGES: ClassVar[SetName]  # ranges of Services, from the default BGPConfiguration
    FLOATING: ClassVar[SetName]  # floating address : the workload's own
    FLOATING_LOOPS: ClassVar[SetName]  # source and destination, both a workload's own address : its floating one

    type: SetType

    def __new__(cls, name: str) -> SetName:
        if known := _known.get(name):
            return known
        shape = (
            _STANDING.get(name)
            or _MAPS.get(name)
            or next((shape for start, shape in SHAPES.items() if name.startswith(start)), None)
        )
        if shape is None:
            raise ValueError(f"no set has the name {name!r}")
        self = super().__new__(cls, name)
        self.type = shape
        if name in _STANDING or name in _MAPS:
            _known[name] = self
        return self


_known: Final[dict[str, SetName]] = {}
"""One object per standing set: they are compared by identity."""

_STANDING: Final[Mapping[str, SetType]] = {
    "from-workload": SetType.HOST_INTERFACE,
    "to-workload": SetType.HOST_INTERFACE,
    "allowed-sources": SetType.NET_INTERFACE,
    "pools": SetType.NET,
    "masq-pools": SetType.NET,
    "hosts": SetType.HOST,
    "external-hosts": SetType.NET,
    "service-ranges": SetType.NET,
    "not-masqueraded": SetType.NET,
}
_MAPS: Final[Mapping[str, SetType]] = {"floating": SetType.ADDRESS_MAP, "floating-loops": SetType.LOOP_MAP}
SHAPES: Final[Mapping[str, SetType]] = {
    "s-": SetType.HOST,
    "c-": SetType.NET,
    "n-": SetType.HOST_PORT,
    "allowed-hosts": SetType.HOST_INTERFACE,
    "from-policed": SetType.INTERFACE,
    "to-policed": SetType.INTERFACE,
    "from-class-": SetType.INTERFACE,
    "to-class-": SetType.INTERFACE,
}
"""How the names of calculated sets begin, by the shape of their members: of selectors, and of classes."""

STANDING_SETS: Final = tuple(SetName(name) for name in _STANDING)
"""The sets that are always there, in the order in which they are made: those of endpoints first."""

(
    SetName.FROM_WORKLOAD,
    SetName.TO_WORKLOAD,
    SetName.ALLOWED_SOURCES,
    SetName.POOLS,
    SetName.MASQ_POOLS,
    SetName.HOSTS,
    SetName.EXTERNAL_HOSTS,
    SetName.SERVICE_RANGES,
    SetName.NOT_MASQUERADED,
) = STANDING_SETS

ADDRESS_MAPS: Final = tuple(SetName(name) for name in _MAPS)
"""Maps of addresses to addresses, which are always there, too; with iptables they are chains."""

SetName.FLOATING, SetName.FLOATING_LOOPS = ADDRESS_MAPS


@lru_cache(8192)
def set_type(name: str) -> SetType:
    """Shape of the members of a set of ours, by its name.

    Raises:
        ValueError: no set of ours can have this name.
    """
    return SetName(name).type


class ElementKey(NamedTuple):
    """A member of a set. ``interface`` is empty for sets of prefixes; ``net`` is /32 or /128 in address sets and maps.

    In a set of interfaces ``net`` is the whole address space of the family (``ANY_NET``).

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
        if self.set.type is SetType.INTERFACE:
            return f"{self.set} {{ {self.interface} }}"
        member = format_address(self.net.packed) if self.net.is_host else str(self.net)
        return f"{self.set} {{ {member}{' . ' + self.interface if self.interface else ''} }}"


ANY_NET: Final = {Family.V4: Net(bytes(4), 0), Family.V6: Net(bytes(16), 0)}

RoutingKey = (
    RouteKey | NeighbourKey | SettingsKey | NexthopKey | DeviceKey | AddressKey | FdbKey | PeerKey | PolicyRuleKey
)
"""Keys of the tables that are not a packet filter's."""

Key = RoutingKey | ElementKey | PolicyKey
"""Any table key but a chain's; elements carry no value (None), but for those of maps: the address, packed."""

Value = Route | bytes | SettingValues | Nexthop | Vxlan | Ipip | WireGuard | Peer | PolicyValue
