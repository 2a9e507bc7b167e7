"""What entries depend on of the settings: each declared setting either is part of it, or changes no entry."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from felixpy.calc.entry_settings import EntrySettings
from felixpy.calc.graph import HOST, Calculation, policy_settings
from felixpy.calc.host import supported_families
from felixpy.config import Failsafe, Rate, Settings
from felixpy.config.settings import DECLARATIONS
from felixpy.config.values import PortRange, TableRange
from felixpy.model.net import Net, parse_address
from felixpy.model.policy import Policy, PolicyAction, Rule
from felixpy.model.resources import Encapsulation, Kind, ResourceKey, Update
from felixpy.model.selectors import ALL
from felixpy.store.store import Store
from tests.calc.samples import ENCRYPTED as SETTINGS
from tests.calc.samples import HOST_FACTS, NODE, affinity, block, endpoint, nets, node, pool

WORLD = [
    endpoint("a", "10.65.0.2", "fd00:65::2", mac="ee:ee:ee:ee:ee:01", sources=["198.51.100.0/24"]),
    endpoint("b", "10.65.0.3", floating=[("203.0.113.9", "10.65.0.3")]),
    pool("four", "10.65.0.0/16", nat=True),
    pool("six", "fd00:65::/64", nat=True),
    pool("tunnel", "10.66.0.0/16", encapsulation=Encapsulation.VXLAN),
    pool("tunnel6", "fd00:66::/64", encapsulation=Encapsulation.VXLAN),
    pool("ipip", "10.67.0.0/16", encapsulation=Encapsulation.IPIP),
    node(NODE, "192.0.2.1/24", "2001:db8::1/64", vxlan=("fd00:66::3",)),
    node("n2", "192.0.2.2/24", "2001:db8::2/64", key=2),
    block("10.65.0.0/26", NODE),
    block("10.65.0.64/26", "n2"),
    affinity("fd00:65::40/122", "n2"),
    Policy(ResourceKey(Kind.GLOBAL_NETWORK_POLICY, "log"), "default", None, ALL, (Rule(PolicyAction.LOG),), None),
]
ANOTHER: dict[str, Any] = {
    "interface_prefix": ("veth",),
    "nat_port_range": PortRange(1000, 2000),
    "nat_outgoing_address": parse_address("192.0.2.1"),
    "nat_outgoing_address_ipv6": parse_address("2001:db8::1"),
    "device_route_source_address": parse_address("192.0.2.1"),
    "device_route_source_address_ipv6": parse_address("2001:db8::1"),
    "vxlan_enabled": False,
    "ipip_enabled": False,
    "vxlan_mtu": 1400,
    "vxlan_mtu_v6": 1400,
    "ipip_mtu": 1400,
    "ipv4_vxlan_tunnel_address": parse_address("10.66.0.1"),
    "ipv6_vxlan_tunnel_address": parse_address("fd00:66::1"),
    "ipip_tunnel_address": parse_address("10.67.0.1"),
    "vxlan_tunnel_mac": bytes.fromhex("660000000001"),
    "vxlan_tunnel_mac_v6": bytes.fromhex("660000000001"),
    "external_nodes_cidr_list": nets("192.0.2.0/24"),
    "failsafe_inbound_host_ports": (Failsafe(6, 2222),),
    "failsafe_outbound_host_ports": (Failsafe(17, 53, Net.parse("192.0.2.53/32")),),
    "wireguard_mtu": 1400,
    "wireguard_mtu_v6": 1400,
    "wireguard_interface_name": "wg4",
    "wireguard_interface_name_v6": "wg6",
    "route_table_ranges": (TableRange(7, 8),),
    "log_action_rate_limit": Rate(10, 60),
}
"""Another value, where the default does not show one."""


def other(attribute: str) -> Any:
    value = getattr(SETTINGS, attribute)
    if attribute in ANOTHER:
        return ANOTHER[attribute]
    if isinstance(value, bool):
        return not value
    if isinstance(value, StrEnum):
        return next(each for each in type(value) if each is not value)
    if isinstance(value, Path | None):
        return Path("/elsewhere")
    return value + type(value)(1)


def seen(settings: Settings) -> object:
    """What entries depend on of the settings."""
    entry = EntrySettings.of(settings)
    return entry, policy_settings(settings, supported_families(entry, HOST_FACTS), HOST_FACTS)


def calculation(settings: Settings) -> Calculation:
    found = Calculation(Store(NODE), settings, HOST_FACTS)
    for resource in WORLD:
        found.store.apply(Update(resource.key, resource))
    found.policy.complete()
    found.calculate({HOST, *found.store.all_keys()})
    return found


@pytest.mark.parametrize("attribute", DECLARATIONS)
def test_entries_differ_exactly_where_their_settings_do(attribute: str) -> None:
    changed = replace(SETTINGS, **{attribute: other(attribute)})
    differ = seen(changed) != seen(SETTINGS)
    running, started = calculation(SETTINGS), calculation(changed)
    assert (running.entries() != started.entries()) == differ
    assert (running.reconfigure(changed, HOST_FACTS) != {}) == differ
    assert running.problems == started.problems
    assert running.entries() == started.entries()


def test_entry_settings_are_the_settings_of_the_same_names() -> None:
    changed = replace(SETTINGS, **{each: other(each) for each in DECLARATIONS})
    for each in EntrySettings.__struct_fields__:
        assert getattr(EntrySettings.of(changed), each) == getattr(changed, each)
