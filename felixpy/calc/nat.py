"""Pools and nodes -> members of the sets that the NAT rule looks at. Pure.

The NAT rule itself stands in ``felixpy.calc.rules``. A disabled pool still counts, a LoadBalancer-only pool is no pool
for the exclusion but may be masqueraded itself (reference/felix.md §1.6).
"""

from __future__ import annotations

from felixpy.calc.entries import ElementKey, Key, SetName, Value
from felixpy.calc.entry_settings import EntrySettings
from felixpy.calc.host import Host, supported_families
from felixpy.calc.policy.sets import without_covered
from felixpy.model.net import Net
from felixpy.model.resources import IPPool, Node
from felixpy.store.store import Store


def pool_entries(pool: IPPool, store: Store, settings: EntrySettings, host: Host) -> dict[Key, Value]:
    """Set members of one pool: none where a wider pool of the same set covers it."""
    if pool.cidr.family not in supported_families(settings, host):
        return {}
    entries: dict[Key, Value] = {}
    if not pool.load_balancer_only and not store.pool_cidrs.cover(pool.cidr):
        entries[ElementKey(SetName.POOLS, pool.cidr)] = None
    if pool.nat_outgoing and not store.masqueraded_cidrs.cover(pool.cidr):
        entries[ElementKey(SetName.MASQ_POOLS, pool.cidr)] = None
    return entries


def node_entries(node: Node, settings: EntrySettings, host: Host) -> dict[Key, Value]:
    """A node's addresses as members of the set of such."""
    addresses = (node.address(family) for family in supported_families(settings, host))
    return {ElementKey(SetName.HOSTS, Net.host(address.packed)): None for address in addresses if address}


def masq_agent_entries(settings: EntrySettings, host: Host) -> dict[Key, Value]:
    """Destinations that ip-masq-agent's file leaves alone."""
    families = supported_families(settings, host)
    outermost = without_covered(host.not_masqueraded)
    return {ElementKey(SetName.NOT_MASQUERADED, cidr): None for cidr in outermost if cidr.family in families}


def external_node_entries(settings: EntrySettings, host: Host) -> dict[Key, Value]:
    """ExternalNodesCIDRList as members of its set."""
    families = supported_families(settings, host)
    outermost = without_covered(settings.external_nodes_cidr_list)
    return {ElementKey(SetName.EXTERNAL_HOSTS, cidr): None for cidr in outermost if cidr.family in families}
