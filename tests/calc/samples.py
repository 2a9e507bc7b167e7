"""Resources and facts of a node ``n1`` (192.0.2.1, 2001:db8::1 on eth0) for tests of the calculation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

from felixpy.calc.entries import ElementKey, Key, Route, RouteKey, SetName, SettingsKey, SettingValues
from felixpy.calc.graph import Calculation
from felixpy.calc.host import Host, HostAddress
from felixpy.calc.policy.classes import PolicyKey
from felixpy.config import Settings
from felixpy.model.net import Family, Net
from felixpy.model.resources import (
    BGPConfiguration,
    BlockAffinity,
    Borrowed,
    Encapsulation,
    IPAMBlock,
    IPNat,
    IPPool,
    Kind,
    Node,
    Resource,
    ResourceKey,
    Update,
    WorkloadEndpoint,
)
from felixpy.store.store import Store

NODE = "n1"
SETTINGS = Settings(nodename=NODE)
ENCRYPTED = Settings(nodename=NODE, wireguard_enabled=True, wireguard_enabled_v6=True)
HOST_FACTS = Host(
    (
        HostAddress("eth0", Net.parse_interface("192.0.2.1/24")),
        HostAddress("eth0", Net.parse_interface("2001:db8::1/64")),
        HostAddress("eth1", Net.parse_interface("198.51.100.1/24")),
    ),
    ipv6=True,
    rp_filter=1,
)


def nets(*texts: str) -> tuple[Net, ...]:
    return tuple(Net.parse(text) for text in texts)


def endpoint(
    name: str,
    *addresses: str,
    interface: str = "",
    node: str = NODE,
    mac: str = "",
    sources: Iterable[str] = (),
    created: str = "",
    floating: Iterable[tuple[str, str]] = (),
) -> WorkloadEndpoint:
    """``floating``: external addresses, each with the internal one."""
    return WorkloadEndpoint(
        ResourceKey(Kind.WORKLOAD_ENDPOINT, name, "default"),
        node,
        interface or f"cali-{name}",
        nets(*addresses),
        bytes.fromhex(mac.replace(":", "")) if mac else None,
        nets(*sources),
        created,
        ip_nats=tuple(IPNat(*nets(*pair)) for pair in floating),
    )


def pool(
    name: str,
    cidr: str,
    *,
    nat: bool = False,
    disabled: bool = False,
    encapsulation: Encapsulation = Encapsulation.NONE,
    uses: Iterable[str] = ("Workload", "Tunnel"),
) -> IPPool:
    net = Net.parse(cidr)
    size = 26 if net.family is Family.V4 else 122
    return IPPool(ResourceKey(Kind.IP_POOL, name), net, size, nat, disabled, encapsulation, frozenset(uses))


def node(
    name: str,
    *addresses: str,
    vxlan: Iterable[str] = (),
    ipip: str = "",
    mac: str = "",
    key: int = 0,
    wireguard: Iterable[str] = (),
) -> Node:
    """``key``: the byte that both WireGuard keys are made of, 0 for none."""
    ours = {net.family: net.packed for net in map(Net.parse, wireguard)}
    parsed = {net.family: net for net in map(Net.parse_interface, addresses)}
    ends = {net.family: net.packed for net in map(Net.parse, vxlan)}
    return Node(
        ResourceKey(Kind.NODE, name),
        parsed.get(Family.V4),
        parsed.get(Family.V6),
        vxlan_ipv4=ends.get(Family.V4),
        vxlan_ipv6=ends.get(Family.V6),
        vxlan_mac=bytes.fromhex(mac.replace(":", "")) or None,
        ipip_ipv4=Net.parse(ipip).packed if ipip else None,
        wireguard_ipv4=ours.get(Family.V4),
        wireguard_ipv6=ours.get(Family.V6),
        wireguard_public_key=bytes((key,) * 32) if key else None,
        wireguard_public_key_ipv6=bytes((key,) * 32) if key else None,
    )


def block(cidr: str, host: str | None, *borrowed: tuple[str, str]) -> IPAMBlock:
    key = ResourceKey(Kind.IPAM_BLOCK, cidr.replace("/", "-").replace(":", "-").replace(".", "-"))
    lent = tuple(Borrowed(Net.parse(address), name) for address, name in borrowed)
    return IPAMBlock(key, Net.parse(cidr), host, lent)


def affinity(cidr: str, host: str) -> BlockAffinity:
    name = f"{host}-{cidr}".replace("/", "-").replace(":", "-").replace(".", "-")
    return BlockAffinity(ResourceKey(Kind.BLOCK_AFFINITY, name), Net.parse(cidr), host)


def service_ranges(*ranges: str, name: str = "default") -> BGPConfiguration:
    return BGPConfiguration(ResourceKey(Kind.BGP_CONFIGURATION, name), nets(*ranges))


def calculated(*resources: Resource, settings: Settings = SETTINGS, host: Host = HOST_FACTS) -> Calculation:
    """Everything taken in the order given, calculated update by update."""
    store = Store(settings.nodename)
    calculation = Calculation(store, settings, host)
    for resource in resources:
        calculation.calculate(store.apply(Update(resource.key, resource)))
    return calculation


POLICY_KEYS = get_args(PolicyKey)


def said(calculation: Calculation) -> dict[str, str]:
    """Every entry as text: what the key says and the value in words; a line for each setting of an interface.

    Not what policy says: ``tests/policy`` is about that.
    """
    found: dict[str, str] = {}
    for key, value in calculation.entries().items():
        if isinstance(key, POLICY_KEYS):
            continue
        if isinstance(key, SettingsKey) and isinstance(value, SettingValues):
            found |= {sysctl_name(key, name): str(number) for name, number in value.items()}
        else:
            found[str(key)] = text(value)
    return found


def sysctl_name(key: SettingsKey, name: str) -> str:
    group, _, name = name.rpartition("/")
    return f"net.ipv{key.family.version}.{group or 'conf'}.{key.interface}.{name}"


def text(value: object) -> str:
    if isinstance(value, bytes):
        return value.hex(":")
    return "" if value is None else str(value)


def routes(calculation: Calculation) -> dict[str, str]:
    """Destination (with the metric where it is not the family's default) to the rest of the route, as it leads."""
    found = {}
    entries = calculation.entries()
    for key, value in entries.items():
        if isinstance(key, RouteKey) and isinstance(value, Route):
            default = 0 if key.family is Family.V4 else 1024
            name = str(key.destination) if key.metric == default else str(key)
            found[name] = str(entries[value.nexthop] if value.nexthop else value)
    return found


def members(calculation: Calculation, *names: SetName) -> set[str]:
    """Members of sets, as text."""
    keys: Iterable[Key] = calculation.entries()
    return {str(key) for key in keys if isinstance(key, ElementKey) and (not names or key.set in names)}


def problems(calculation: Calculation) -> dict[str, str]:
    return {key.name: reason for key, reason in calculation.problems.items()}
