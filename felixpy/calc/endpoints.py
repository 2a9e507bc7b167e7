"""A local workload endpoint -> its routes, neighbours, interface settings and set members. Pure."""

from __future__ import annotations

from functools import cache

from felixpy.calc import wireguard
from felixpy.calc.entries import (
    ElementKey,
    Key,
    NeighbourKey,
    Route,
    RouteKey,
    RouteType,
    SetName,
    SettingsKey,
    SettingValues,
    Value,
)
from felixpy.calc.entry_settings import EntrySettings
from felixpy.calc.host import Host, supported_families
from felixpy.calc.policy.sets import without_covered
from felixpy.model.net import Family, Net
from felixpy.model.resources import WorkloadEndpoint
from felixpy.store.store import Store

SCOPE_UNIVERSE, SCOPE_LINK = 0, 253


def endpoint_entries(
    endpoint: WorkloadEndpoint, store: Store, settings: EntrySettings, host: Host
) -> tuple[dict[Key, Value], str]:
    """Entries of one endpoint, and what is wrong with it (empty if nothing).

    An address that two endpoints claim belongs to one whose interface is there and up, then to the youngest; so does an
    interface. The loser keeps the rest of its own. What the node itself has or needs belongs to none.
    """
    if not store.local(endpoint):
        return {}, ""
    if not endpoint.interface.startswith(settings.interface_prefix):
        prefixes = ", ".join(settings.interface_prefix)
        return {}, f"interface {endpoint.interface} does not start with an InterfacePrefix ({prefixes})"
    owner = store.interface_owner(endpoint.interface)
    if owner != endpoint.key:
        return {}, f"interface {endpoint.interface} is {_taken(endpoint.interface, store, owner)}"
    entries: dict[Key, Value] = {}
    problems = []
    families = supported_families(settings, host)
    present: set[Family] = set()
    had: list[Net] = []
    for address in endpoint.addresses:
        family = address.family
        if family not in families:
            continue
        owner = store.address_owner(address)
        if owner != endpoint.key:
            problems.append(f"address {address} is {_taken(address, store, owner)}")
            continue
        if kept_from := host.reserved.kept_from(address.packed, endpoint.interface):
            problems.append(f"address {address} is {kept_from}: no workload gets it; give this one another address")
            continue
        present.add(family)
        had.append(address)
        entries |= _address_entries(endpoint, address, settings)
    entries |= wireguard.local_entries(tuple(had), settings, host)
    entries |= _setting_entries(endpoint, present, settings, host)
    entries |= _allowed_source_entries(endpoint, families, settings)
    problems += endpoint.problems
    if endpoint.ip_nats and not settings.floating_ips:
        problems.append("spec.ipNATs has no effect: the setting FloatingIPs is Disabled")
    elif endpoint.ip_nats:
        problems += _add_floating(endpoint, entries, store, settings, host)
    if not endpoint.addresses:
        problems.append("no address in spec.ipNetworks: not ready")
    return entries, "; ".join(problems)


def _taken(place: Net | str, store: Store, owner: object) -> str:
    crowded = store.is_crowded(place)
    return "claimed by many endpoints, and another one has it" if crowded else f"already used by {owner}"


def _address_entries(endpoint: WorkloadEndpoint, address: Net, settings: EntrySettings) -> dict[Key, Value]:
    interface = endpoint.interface
    entries: dict[Key, Value] = {
        **_route_entry(interface, address, settings),
        ElementKey(SetName.FROM_WORKLOAD, address, interface): None,
        ElementKey(SetName.TO_WORKLOAD, address, interface): None,
    }
    if endpoint.mac:
        entries[NeighbourKey(interface, address.packed)] = endpoint.mac
    return entries


def _route_entry(interface: str, address: Net, settings: EntrySettings) -> dict[Key, Value]:
    family = address.family
    if family is Family.V4:
        metric, scope = settings.ipv4_normal_route_priority, SCOPE_LINK
    else:
        metric, scope = settings.ipv6_normal_route_priority, SCOPE_UNIVERSE  # IPv6 has no scopes: the kernel stores 0
    source = settings.route_source(family)
    route = Route(RouteType.UNICAST, interface, None, False, source, scope, settings.device_route_protocol)
    return {RouteKey(family, address, metric): route}


def _add_floating(
    endpoint: WorkloadEndpoint, entries: dict[Key, Value], store: Store, settings: EntrySettings, host: Host
) -> list[str]:
    """Add the entries of the floating addresses that lead to addresses which the endpoint has.

    The route says where such an address belongs, for whoever announces routes; what is sent to it is translated before
    it is routed. Of several that lead to one address the first is what a workload sees that calls itself.
    """
    problems = []
    loops: dict[Net, Net] = {}
    for external, internal in endpoint.ip_nats:
        if ElementKey(SetName.TO_WORKLOAD, internal, endpoint.interface) not in entries:
            continue  # its family is off, or another endpoint has the address, which is told already
        owner = store.external_owner(external)
        if owner != endpoint.key:
            problems.append(f"floating address {external} is {_taken(external, store, owner)}")
        elif kept_from := host.reserved.kept_from(external.packed, endpoint.interface):
            problems.append(f"floating address {external} is {kept_from}: no workload gets it; give this one another")
        else:
            entries |= _route_entry(endpoint.interface, external, settings)
            entries[ElementKey(SetName.FLOATING, external)] = internal.packed
            loops[internal] = min(external, loops.get(internal, external))
    entries |= {ElementKey(SetName.FLOATING_LOOPS, internal): external.packed for internal, external in loops.items()}
    return problems


def _setting_entries(
    endpoint: WorkloadEndpoint, present: set[Family], settings: EntrySettings, host: Host
) -> dict[Key, Value]:
    interface = endpoint.interface
    entries: dict[Key, Value] = {}
    if Family.V4 in present:
        spoofing = settings.workload_source_spoofing_any and endpoint.allowed_source_prefixes
        entries[SettingsKey(interface, Family.V4)] = _ipv4_values(0 if spoofing else host.rp_filter)
    if host.ipv6:
        # Even with IPv6 off: a workload must not be able to configure the node by router advertisements.
        entries[SettingsKey(interface, Family.V6)] = _IPV6_VALUES if Family.V6 in present else _IPV6_OFF_VALUES
    return entries


@cache
def _ipv4_values(rp_filter: int) -> SettingValues:
    return SettingValues(
        {"forwarding": 1, "proxy_arp": 1, "route_localnet": 1, "rp_filter": rp_filter, "neigh/proxy_delay": 0}
    )


_IPV6_VALUES = SettingValues(accept_ra=0, forwarding=1)
_IPV6_OFF_VALUES = SettingValues(accept_ra=0)


def _allowed_source_entries(
    endpoint: WorkloadEndpoint, families: tuple[Family, ...], settings: EntrySettings
) -> dict[Key, Value]:
    if not settings.workload_source_spoofing_any:
        return {}
    prefixes = without_covered(prefix for prefix in endpoint.allowed_source_prefixes if prefix.family in families)
    return {ElementKey(SetName.ALLOWED_SOURCES, prefix, endpoint.interface): None for prefix in prefixes}
