"""Dirty objects -> changed table entries. From scratch is the same path with every object dirty.

Every object contributes entries; where two contribute the same kernel key the object of the lower rank wins (a local
workload before anything else), then the first by key, so that the order of updates never matters.
No I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from heapq import heapify, heappop, heappush
from itertools import chain
from typing import Final, NamedTuple, cast

from felixpy.calc import wireguard
from felixpy.calc.cluster_routes import block_entries
from felixpy.calc.endpoints import endpoint_entries
from felixpy.calc.entries import Key, Value
from felixpy.calc.entry_settings import EntrySettings
from felixpy.calc.host import Host, host_entries, supported_families
from felixpy.calc.nat import external_node_entries, masq_agent_entries, node_entries, pool_entries
from felixpy.calc.overlay import other_node_entries, own_node_entries, pool_problem
from felixpy.calc.policy.graph import KINDS as POLICY_DEPENDS_ON
from felixpy.calc.policy.graph import PolicyCalculation
from felixpy.calc.policy.output import GONE
from felixpy.calc.policy.settings import PolicySettings
from felixpy.calc.pool_ways import PoolWays
from felixpy.calc.services import service_entries
from felixpy.config import ProgramClusterRoutes, Settings
from felixpy.model.net import FAMILIES, Family
from felixpy.model.policy import PolicyAction
from felixpy.model.resources import Kind, ResourceKey
from felixpy.store.store import Store
from felixpy.store.ways import is_way, whole

HOST: Final = ResourceKey(Kind.FELIX_CONFIGURATION, "")
"""The node itself as an object: forwarding, external nodes. No resource can have an empty name."""

Calculated = tuple[dict[Key, Value], str]
"""The entries of an object, and what is wrong with it."""

NOTHING: Final[Calculated] = ({}, "")


class Known(NamedTuple):
    """What objects are calculated from. ``open_ways`` are the ways that have a nexthop: ways come before what leads
    along them, so that nobody else has to decide how a node is reached.
    """

    store: Store
    settings: EntrySettings
    host: Host
    open_ways: Container[ResourceKey]
    pool_ways: dict[str, PoolWays]
    """By the names of pools, as far as they have been asked for, until a pool or this node changes."""

    def through(self, name: str) -> PoolWays | None:
        """The ways through a pool; None if there is no such pool."""
        found = self.pool_ways.get(name)
        if found is None and (pool := self.store.pools.get(ResourceKey(Kind.IP_POOL, name))):
            found = self.pool_ways[name] = PoolWays(pool, self.store, self.settings, self.host)
        return found


def _host_entries(thing: ResourceKey, known: Known) -> Calculated:
    settings, host = known.settings, known.host
    entries = host_entries(settings, host) | external_node_entries(settings, host)
    return entries | masq_agent_entries(settings, host), ""


def _endpoint(thing: ResourceKey, known: Known) -> Calculated:
    endpoint = known.store.endpoints.get(thing)
    return endpoint_entries(endpoint, known.store, known.settings, known.host) if endpoint else NOTHING


def _pool(thing: ResourceKey, known: Known) -> Calculated:
    pool = known.store.pools.get(thing)
    if pool is None:
        return NOTHING
    return pool_entries(pool, known.store, known.settings, known.host), pool_problem(pool, known.settings)


def _node(thing: ResourceKey, known: Known) -> Calculated:
    store, settings, host, open_ways, _ = known
    node = store.nodes.get(thing.name)
    entries: dict[Key, Value] = {}
    problems: list[str] = []
    is_own = thing.name == store.node_name
    if is_own:
        entries, problems = own_node_entries(store, settings, host)
    elif node:
        entries, problems = other_node_entries(node, store, settings, host, open_ways)
    if store.encrypts:
        encrypted, others = (
            wireguard.own_node_entries(store, settings, host)
            if is_own
            else wireguard.other_node_entries(thing.name, store, settings, host)
        )
        entries |= encrypted
        problems += others
    if node:
        entries |= node_entries(node, settings, host)
    return entries, "; ".join(dict.fromkeys(problems))


def _way(thing: ResourceKey, known: Known) -> Calculated:
    ways = known.through(thing.namespace)
    return ways.entries(thing.name) if ways is not None and known.store.ways.things(thing) else NOTHING


def _block(thing: ResourceKey, known: Known) -> Calculated:
    block = known.store.blocks.get(thing)
    store, settings, host, open_ways, _ = known
    return block_entries(block, store, settings, host, open_ways) if block else NOTHING


def _bgp_configuration(thing: ResourceKey, known: Known) -> Calculated:
    found = known.store.bgp_configurations.get(thing)
    return (service_entries(found, known.settings, known.host), "; ".join(found.problems)) if found else NOTHING


CALCULATIONS: Final[Mapping[Kind, Callable[[ResourceKey, Known], Calculated]]] = {
    Kind.WORKLOAD_ENDPOINT: _endpoint,
    Kind.IP_POOL: _pool,
    Kind.NODE: _node,
    Kind.IPAM_BLOCK: _block,
    Kind.BLOCK_AFFINITY: _block,
    Kind.BGP_CONFIGURATION: _bgp_configuration,
}
"""Who calculates the entries of a kind. Other kinds contribute none: a FelixConfiguration becomes settings."""

PRECEDENCE: Final = (Kind.WORKLOAD_ENDPOINT, Kind.IP_POOL, Kind.NODE, Kind.IPAM_BLOCK, Kind.BLOCK_AFFINITY)
"""Whose value of a kernel key counts where objects of several kinds contribute it, first come first."""

_RANK: Final = {kind: rank for rank, kind in enumerate(PRECEDENCE)}


class Absent:
    """Marks a key that nobody wants any more; elements have the value None."""


ABSENT: Final = Absent()
Changes = dict[Key, Value | Absent]


def policy_settings(settings: Settings, families: tuple[Family, ...], host: Host) -> PolicySettings:
    """What policy depends on."""
    return PolicySettings(
        families,
        PolicyAction(settings.endpoint_without_profile_action),
        settings.log_prefix,
        tuple((address.interface, address.net.packed) for address in host.addresses),
        settings.interface_prefix,
    )


class Calculation:
    """Contributions of all objects, and what is wrong with any of them (``problems``).

    Until the snapshot is complete, policy opens nothing for an endpoint of which it has anything to ask.
    """

    def __init__(self, store: Store, settings: Settings, host: Host) -> None:
        self.store = store
        self._use(settings)
        self.host = host
        self.problems: dict[ResourceKey, str] = {}
        families = supported_families(self.settings, host)
        self.policy = PolicyCalculation(store, policy_settings(settings, families, host), self.problems)
        self._wrong_parts: dict[ResourceKey, dict[ResourceKey, str]] = {}
        self._entries: dict[ResourceKey, dict[Key, Value]] = {}
        self._own_node = ResourceKey(Kind.NODE, store.node_name)
        self._known = Known(store, self.settings, host, self._entries.keys(), {})
        self._owner: dict[Key, ResourceKey] = {}
        self._rivals: dict[Key, _Rivals] = {}

    def keys_of(self, thing: ResourceKey) -> Iterable[Key]:
        """Table keys that an object contributes to, a node by all its parts."""
        keys = self.keys_of_part(thing)
        if thing.kind is not Kind.NODE:
            return keys
        return chain(keys, *map(self.keys_of_part, self.store.ways.of_node(thing.name)))

    def keys_of_part(self, part: ResourceKey) -> Iterable[Key]:
        """Table keys that an object contributes to without its ways, or that a way does."""
        return self._entries.get(part, {}).keys()

    def owner_of(self, key: Key) -> ResourceKey | None:
        """The object whose value of a key counts."""
        owner = self._owner.get(key)
        return whole(owner) if owner else None

    def owners_of(self, keys: Iterable[Key]) -> set[ResourceKey]:
        """The objects, or parts of nodes, whose values of these keys count."""
        owner = self._owner
        return {found for key in keys if (found := owner.get(key)) is not None}

    def entries(self) -> Changes:
        """Every entry that counts, for a table that starts empty."""
        entries: Changes = {key: self._entries[owner][key] for key, owner in self._owner.items()}
        return entries | self.policy.entries()

    def reconfigure(self, settings: Settings, host: Host) -> Changes:
        """Take other settings or facts of the host: everything that depends on them is calculated again."""
        before = self.settings
        self._use(settings)
        known, self.host = self.host, host
        self.policy.reconfigure(policy_settings(settings, supported_families(self.settings, host), host))
        if self.settings != before or (known.ipv6, known.rp_filter) != (host.ipv6, host.rp_filter):
            return self.calculate({HOST, *self._entries, *self.store.all_keys()})
        if host == known:
            return self.calculate(())
        reserved = known.reserved.changed(host.reserved)
        blocks = self.store.blocks if reserved else ()
        return self.calculate({HOST, *self.store.node_keys(), *blocks, *self.store.claimants(reserved)})

    def _use(self, settings: Settings) -> None:
        self.settings = EntrySettings.of(settings)
        self.store.encrypts = any(map(self.settings.encrypts, FAMILIES))
        self.store.encapsulation_decides = settings.program_cluster_routes is not ProgramClusterRoutes.ENABLED

    def use_peers(self, unknown: str) -> set[ResourceKey]:
        """``unknown``: why the endpoints of other nodes are not known, empty if they are; returns whose problems are
        other ones now."""
        return self.policy.use_peers(unknown)

    def complete(self) -> Changes:
        """Everything that there is has been taken: policy is told from now on."""
        self.policy.complete()
        return self.calculate(())

    def calculate(self, dirty: Iterable[ResourceKey]) -> Changes:
        """Calculate objects again and return every entry that changed."""
        if self._known.settings is not self.settings or self._known.host is not self.host:
            self._known = Known(self.store, self.settings, self.host, self._entries.keys(), {})
        changes: Changes = {}
        ways: list[ResourceKey] = []
        others: set[ResourceKey] = set()
        for thing in dirty:
            if is_way(thing):
                ways.append(thing)
                continue
            others.add(thing)
            if thing.kind is Kind.IP_POOL or thing == self._own_node:
                self._known.pool_ways.clear()
        for way in ways:
            was_open = way in self._entries
            entries, problem = _way(way, self._known)
            self._note(way, problem)
            self._contribute(way, entries, changes)
            if was_open != bool(entries):  # what leads along it has a route where it exists
                others.update(self.store.ways.things(way))
        self._calculate_into(others, changes)
        for key, value in self.policy.flush().items():
            changes[key] = ABSENT if value is GONE else cast("Value", value)
        return changes

    def _calculate_into(self, things: Iterable[ResourceKey], changes: Changes) -> None:
        for thing in things:
            if thing.kind in CALCULATIONS or thing == HOST:
                entries, problem = self._calculate(thing)
                self._note(thing, problem)
                self._contribute(thing, entries, changes)
            if thing.kind in POLICY_DEPENDS_ON:
                self.policy.take(thing)

    def _note(self, part: ResourceKey, problem: str) -> None:
        """What is wrong with a node is what is wrong with its parts, once each."""
        if not problem and not self.problems:
            return
        thing = whole(part)
        if not problem and thing not in self.problems:
            return
        if thing.kind is Kind.NODE and (problem or thing in self._wrong_parts):
            parts = self._wrong_parts.pop(thing, {}) | {part: problem}
            if parts := {one: words for one, words in parts.items() if words}:
                self._wrong_parts[thing] = parts
            problem = "; ".join(dict.fromkeys(parts[one] for one in sorted(parts)))
        if problem:
            self.problems[thing] = problem
        else:
            self.problems.pop(thing, None)

    def _calculate(self, thing: ResourceKey) -> Calculated:
        if thing == HOST:
            return _host_entries(thing, self._known)
        calculate = CALCULATIONS.get(thing.kind)
        return calculate(thing, self._known) if calculate else NOTHING

    def _contribute(self, thing: ResourceKey, entries: dict[Key, Value], changes: Changes) -> None:
        old = self._entries.get(thing, {})
        if entries:
            self._entries[thing] = entries
        else:
            self._entries.pop(thing, None)
        if not old.keys() <= entries.keys():
            for key in old.keys() - entries.keys():
                self._withdraw(thing, key, changes)
        for key, value in entries.items():
            if key not in old:
                owner = self._owner.setdefault(key, thing)
                if owner is thing:
                    changes[key] = value
                else:
                    self._contest(thing, owner, key, value, changes)
            elif old[key] != value and self._owner[key] == thing:
                changes[key] = value

    def _contest(self, thing: ResourceKey, owner: ResourceKey, key: Key, value: Value, changes: Changes) -> None:
        """Two objects want one key: one of them waits."""
        if _rank(thing) < _rank(owner):
            self._owner[key] = thing
            changes[key] = value
            thing = owner
        self._rivals.setdefault(key, _Rivals()).add(thing)

    def _withdraw(self, thing: ResourceKey, key: Key, changes: Changes) -> None:
        rivals = self._rivals.get(key)
        if self._owner[key] != thing:
            assert rivals is not None
            rivals.discard(thing)
        elif rivals:
            heir = rivals.first()
            rivals.discard(heir)
            self._owner[key] = heir
            changes[key] = self._entries[heir][key]
        else:
            del self._owner[key]
            changes[key] = ABSENT
        if rivals is not None and not rivals:
            del self._rivals[key]


class _Rivals:
    """Who would have a key if its owner did not, in the order of their ranks."""

    def __init__(self) -> None:
        self._waiting: set[ResourceKey] = set()
        self._heap: list[tuple[tuple[int, ResourceKey], ResourceKey]] = []

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, thing: ResourceKey) -> None:
        if thing not in self._waiting:
            self._waiting.add(thing)
            heappush(self._heap, (_rank(thing), thing))

    def discard(self, thing: ResourceKey) -> None:
        """What leaves stays in the heap until it comes up, or until the heap is mostly such."""
        self._waiting.discard(thing)
        if len(self._heap) > 2 * len(self._waiting) + 8:
            self._heap = [(_rank(one), one) for one in self._waiting]
            heapify(self._heap)

    def first(self) -> ResourceKey:
        while self._heap[0][1] not in self._waiting:
            heappop(self._heap)
        return self._heap[0][1]


def _rank(thing: ResourceKey) -> tuple[int, ResourceKey]:
    return _RANK.get(thing.kind, len(_RANK)), thing
