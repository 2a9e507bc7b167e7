"""Policies, profiles, sets and endpoints -> classes, chains and members of sets, piece by piece. Pure.

    take(key)  an object changed: what depends on it is noted
    flush()    what was noted is calculated: the entries that changed

An endpoint's policies are told by its identity (labels and profiles), so two pods of one deployment cost one list. A
policy has chains only if a local endpoint is asked by it, and a selector has members only if such a chain names it.

Invariant: the entries are those that the same objects would give from scratch, but for the numbers of classes. Until
``complete`` nothing is known for sure, and no endpoint gets a class that asks something: it would be asked too little.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from felixpy.calc.policy.classes import (
    ClassKey,
    EndpointClass,
    EndpointClasses,
    EndpointClassKey,
    HostEndpointChains,
    HostEndpointKey,
    MemberKey,
    PolicyChain,
    PolicyChainKey,
    PolicyKey,
    PolicySet,
    PolicySetKey,
    PolicyValue,
    TierChains,
    Use,
    comment_text,
    text_hash,
)
from felixpy.calc.policy.numbering import Numbers
from felixpy.calc.policy.order import Asked, ChainId, asked, asked_profiles, asked_tiers, passes, rules_in, tier_rank
from felixpy.calc.policy.rules_of import is_unconditional, rules_of
from felixpy.calc.policy.selection import Held, ProfileLabels, Selection, Watched
from felixpy.calc.policy.sets import NetsSet, PortSet, SelectorSet, ServiceSet
from felixpy.calc.policy.unknown_peers import told_wider
from felixpy.model.net import FAMILIES, Family, Net
from felixpy.model.policy import (
    NAMESPACE_PROFILE,
    SERVICE_ACCOUNT_PROFILE,
    Direction,
    EndpointSlice,
    HostEndpoint,
    NetworkSet,
    Policy,
    PolicyAction,
    Profile,
    Rule,
    ServiceName,
    Tier,
)
from felixpy.model.resources import POLICY_KINDS, Kind, ResourceKey, WorkloadEndpoint
from felixpy.model.selectors import ALL, Selector
from felixpy.store.index import Index
from felixpy.store.peers import Peer
from felixpy.store.store import Store

K = TypeVar("K")

GONE: Final = object()
"""Marks an entry that nobody wants any more."""

PolicyChanges = dict[PolicyKey, "PolicyValue | object"]

_PROFILE_KINDS = (Kind.PROFILE, Kind.NAMESPACE, Kind.SERVICE_ACCOUNT)  # of several with one name, the first
_HOST_POLICIES = frozenset({Kind.GLOBAL_NETWORK_POLICY})
_WORKLOAD_USE = {Direction.INGRESS: Use.WORKLOAD_INGRESS, Direction.EGRESS: Use.WORKLOAD_EGRESS}


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """What policy depends on of the settings and of the host."""

    families: tuple[Family, ...]
    without_profile: PolicyAction = PolicyAction.ALLOW
    log_prefix: str = "calico-packet"
    host_addresses: tuple[tuple[str, bytes], ...] = ()
    interface_prefixes: tuple[str, ...] = ("",)
    """How interfaces of workloads begin: others get no class."""
    knows_peers: bool = True
    """Whether the source tells of the endpoints of other nodes."""


class Output:
    """Entries as they change. Those of families that are off are known, and not told."""

    def __init__(self, families: tuple[Family, ...]) -> None:
        self.families = families
        self.changes: PolicyChanges = {}
        self.entries: dict[PolicyKey, PolicyValue] = {}
        """All but members, of which there may be hundreds of thousands: the sets know them."""

    def put(self, key: PolicyKey, value: PolicyValue) -> None:
        if self.entries.get(key, GONE) == value:
            return
        self.entries[key] = value
        self._tell(key, value)

    def drop(self, key: PolicyKey) -> None:
        if key in self.entries:
            del self.entries[key]
            self._tell(key, GONE)

    def set(self, key: PolicySetKey, value: PolicySet | None) -> None:
        if value is None:
            self.drop(key)
        else:
            self.put(key, value)

    def member(self, key: MemberKey, *, present: bool) -> None:
        self._tell(key, None if present else GONE)

    def _tell(self, key: PolicyKey, value: PolicyValue | object) -> None:
        if key.family in self.families:
            self.changes[key] = value


@dataclass(slots=True, eq=False)
class _Policy:
    """A policy in force, and where its selector is watched."""

    policy: Policy
    workloads: Watched | None
    hosts: Watched | None


@dataclass(slots=True, eq=False)
class _Set:
    """A set in use: which chains name it."""

    content: SelectorSet | PortSet | ServiceSet | NetsSet
    users: set[ChainId] = field(default_factory=set)
    watched: Watched | None = None


@dataclass(slots=True, eq=False)
class _Chain:
    """A chain in use, and the sets that it names, by what they are made of."""

    refs: int = 0
    sets: set[tuple[object, ...]] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class _Class:
    """A class of endpoints in one direction, and the identities that are in it."""

    number: int
    asked: Asked
    held: set[Held] = field(default_factory=set)


class PolicyCalculation:
    """The state of policy on one node."""

    def __init__(self, store: Store, settings: PolicySettings, problems: dict[ResourceKey, str] | None = None) -> None:
        """``problems``: where to say what is wrong with an object of a kind that nothing else is calculated of."""
        self.store = store
        self.settings = settings
        self.problems = {} if problems is None else problems
        self.is_complete = False
        self._output = Output(settings.families)
        labels = ProfileLabels()
        self._labels = labels
        self.peers = Selection(labels, self._peer_moved)
        self.workloads = Selection(labels, self._workload_moved)
        self.hosts = Selection(labels, self._host_moved)
        self._peer: dict[ResourceKey, Peer] = {}
        self._with_port: Index[str, ResourceKey] = Index()
        self._policies: dict[ResourceKey, _Policy] = {}
        self._of_subject: Index[str, ResourceKey] = Index()
        self._of_tier: Index[str, ResourceKey] = Index()
        self._tiers: dict[str, Tier] = {}
        self._profiles: dict[str, Profile] = {}
        self._profile_objects: dict[str, dict[Kind, Profile]] = {}
        self._slices: dict[ResourceKey, EndpointSlice] = {}
        self._of_service: Index[ServiceName, ResourceKey] = Index()
        self._local_hosts: dict[ResourceKey, HostEndpoint] = {}
        self._sets: dict[tuple[object, ...], _Set] = {}
        self._by_selector: dict[str, list[tuple[object, ...]]] = {}
        self._by_service: dict[ServiceName, list[tuple[object, ...]]] = {}
        self._chains: dict[ChainId, _Chain] = {}
        self._classes: dict[Direction, dict[tuple[object, ...], _Class]] = {way: {} for way in Direction}
        self._class_of: dict[Direction, dict[Held, _Class]] = {way: {} for way in Direction}
        self._numbers = {way: Numbers() for way in Direction}
        self._shown: dict[str, ResourceKey] = {}
        self._interface_of: dict[ResourceKey, str] = {}
        self._host_chains: Counter[ChainId] = Counter()
        self._dirty_held: set[Held] = set()
        self._dirty_endpoints: set[ResourceKey] = set()
        self._dirty_chains: set[ChainId] = set()
        self._dirty_hosts = False
        self._idle_sets: set[tuple[object, ...]] = set()
        self._idle_chains: set[ChainId] = set()

    # --- what is asked by others ---------------------------------------------------------------------------------

    def entries(self) -> dict[PolicyKey, PolicyValue]:
        """Every entry of the families that are on."""
        found: dict[PolicyKey, PolicyValue] = {
            key: value for key, value in self._output.entries.items() if key.family in self._output.families
        }
        for each in self._sets.values():
            found |= {key: None for key in each.content.members() if key.family in self._output.families}
        return found

    def adopt(self, numbers: Mapping[tuple[Direction, str], int]) -> None:
        """Numbers of classes by their names, as the kernel has them: before anything is complete."""
        for way in Direction:
            self._numbers[way].adopt({name: number for (of, name), number in numbers.items() if of is way})

    def settled(self) -> None:
        """The kernel has all that was told."""
        for numbers in self._numbers.values():
            numbers.settled()

    def complete(self) -> None:
        """Everything that there is has been taken: classes may be given."""
        if not self.is_complete:
            self.is_complete = True
            self._dirty_held.update(self.workloads.held())
            self._dirty_hosts = True

    def open_endpoints(self) -> Iterator[ResourceKey]:
        """Local endpoints that name no profile and that, in a direction at least, no policy selects: nothing is asked
        of their traffic there."""
        for held in self.workloads.held():
            if held.identity.profiles or self.settings.without_profile is not PolicyAction.ALLOW:
                continue
            if any((found := self._class_of[way].get(held)) and not found.asked.tiers for way in Direction):
                yield from held.things

    @property
    def tiers(self) -> Mapping[str, Tier]:
        """Tiers that have an object."""
        return self._tiers

    def asking(self, policy: ResourceKey) -> int:
        """How many local endpoints, workloads' and hosts', a policy selects."""
        state = self._policies.get(policy)
        if state is None:
            return 0
        watched = [found for found in (state.workloads, state.hosts) if found is not None]
        return sum(len(held.things) for each in watched for held in each.held())

    def classes(self) -> Iterator[tuple[str, int, str, int]]:
        """Direction, number, what is asked, and how many endpoints are in the class."""
        for way, classes in self._classes.items():
            for each in classes.values():
                yield way.value, each.number, _class_words(each.asked), sum(len(held.things) for held in each.held)

    def sets(self) -> Iterator[tuple[str, str, int, str]]:
        """Name, what it stands for, how many members, and the policies whose rules name it."""
        for each in self._sets.values():
            members = Counter(key.set for key in each.content.members())
            users = ", ".join(sorted({_owner_name(chain.owner) for chain in each.users}))
            for name, words in each.content.described():
                yield name, words, members[name], users

    def counts(self) -> dict[str, int]:
        """Policies and selectors that are in use on this node."""
        policies = {chain.owner for chain in self._chains if not isinstance(chain.owner, str)}
        return {"policies": len(policies), "selectors": len(self.peers)}

    # --- changes -------------------------------------------------------------------------------------------------

    def reconfigure(self, settings: PolicySettings) -> None:
        """Take other settings, or facts of the host."""
        before, self.settings = self.settings, settings
        if settings.families != before.families:
            self._change_families(settings.families)
        if settings.without_profile is not before.without_profile:
            self._dirty_held.update(self.workloads.held())
        if settings.log_prefix != before.log_prefix:
            self._dirty_chains.update(self._chains)
        if settings.host_addresses != before.host_addresses:
            self._dirty_hosts = True
        if settings.interface_prefixes != before.interface_prefixes:
            self._dirty_endpoints.update(self.store.endpoints)

    def _change_families(self, families: tuple[Family, ...]) -> None:
        before = self.entries()
        self._output.families = families
        after = self.entries()
        self._output.changes |= dict.fromkeys(before.keys() - after.keys(), GONE)
        self._output.changes |= {key: value for key, value in after.items() if key not in before}

    def take(self, key: ResourceKey) -> None:
        """An object has changed in the store, or is gone. Other kinds than ``KINDS`` change nothing."""
        if (take := _TAKE.get(key.kind)) is not None:
            take(self, key)

    def flush(self) -> PolicyChanges:
        """Calculate what has to be, and return the entries that changed."""
        moved = self._assign()
        if self._dirty_hosts:
            self._dirty_hosts = False
            self._calculate_hosts()
        self._compile()
        self._clear_up()
        for key in self._dirty_endpoints | moved:
            self._show_endpoint(key)
        self._dirty_endpoints.clear()
        changes, self._output.changes = self._output.changes, {}
        return changes

    # --- objects -------------------------------------------------------------------------------------------------

    def _take_endpoint(self, key: ResourceKey) -> None:
        self._put_peer(key, self.store.peer(key))
        endpoint = self.store.endpoints.get(key)
        peer = self._peer.get(key) if endpoint else None
        old, new = self.workloads.put(key, peer.identity if peer else None)
        if old is not new:
            self._dirty_held.update(held for held in (old, new) if held is not None)
        if endpoint is not None or key in self._interface_of:
            self._dirty_endpoints.add(key)

    def _take_network_set(self, key: ResourceKey) -> None:
        found = self.store.policy[key.kind].get(key)
        assert found is None or isinstance(found, NetworkSet)
        peer = Peer(self.store.identities.of(found.labels, found.profiles), found.nets) if found else None
        self._put_peer(key, peer)
        self._tell(key, found.problems if found else ())

    def _take_host_endpoint(self, key: ResourceKey) -> None:
        found = self.store.policy[key.kind].get(key)
        assert found is None or isinstance(found, HostEndpoint)
        peer = None
        if found is not None:
            identity = self.store.identities.of(found.labels, found.profiles)
            peer = Peer(identity, found.addresses, found.ports)
        self._put_peer(key, peer)
        if found is not None and found.node == self.store.node_name:
            self._local_hosts[key] = found
            assert peer is not None
            self.hosts.put(key, peer.identity)
        elif key in self._local_hosts:
            del self._local_hosts[key]
            self.hosts.put(key, None)
            self.problems.pop(key, None)
        else:
            return
        self._dirty_hosts = True

    def _take_policy(self, key: ResourceKey) -> None:
        found = self.store.policy[key.kind].get(key)
        assert found is None or isinstance(found, Policy)
        wider = told_wider(found) if found and not self.settings.knows_peers else ()
        self._tell(key, (*found.problems, *wider) if found else ())
        new = None if found is None or found.staged else found
        old = self._policies.get(key)
        if old is not None and new is not None and _shape(old.policy) == _shape(new):
            old.policy = new
        else:
            if old is not None:
                self._end_policy(old)
            if new is not None:
                self._begin_policy(new)
        self._touch_chains(key)

    def _begin_policy(self, policy: Policy) -> None:
        for_workloads = not policy.do_not_track and not policy.pre_dnat
        state = self._policies[policy.key] = _Policy(
            policy,
            self.workloads.watch(policy.subject) if for_workloads else None,
            self.hosts.watch(policy.subject) if policy.key.kind in _HOST_POLICIES else None,
        )
        self._of_subject.add(policy.subject.text, policy.key)
        self._of_tier.add(policy.tier, policy.key)
        self._mark(state)

    def _end_policy(self, state: _Policy) -> None:
        policy = state.policy
        self._mark(state)
        del self._policies[policy.key]
        self._of_subject.discard(policy.subject.text, policy.key)
        self._of_tier.discard(policy.tier, policy.key)
        if state.workloads is not None:
            self.workloads.unwatch(state.workloads)
        if state.hosts is not None:
            self.hosts.unwatch(state.hosts)

    def _mark(self, state: _Policy) -> None:
        """Whoever a policy is for is calculated again."""
        if state.workloads is not None:
            self._dirty_held.update(state.workloads.held())
        if state.hosts is not None and state.hosts.projections:
            self._dirty_hosts = True

    def _touch_chains(self, owner: ResourceKey | str) -> None:
        self._dirty_chains.update(chain for use in Use if (chain := ChainId(use, owner)) in self._chains)

    def _take_tier(self, key: ResourceKey) -> None:
        found = self.store.policy[key.kind].get(key)
        assert found is None or isinstance(found, Tier)
        before = tier_rank(key.name, self._tiers)
        self._tiers.pop(key.name, None)
        if found is not None:
            self._tiers[key.name] = found
        if tier_rank(key.name, self._tiers) == before:
            return
        for policy in self._of_tier.at(key.name):
            self._mark(self._policies[policy])

    def _take_profile(self, key: ResourceKey) -> None:
        found = self.store.policy[key.kind].get(key)
        assert found is None or isinstance(found, Profile)
        self._tell(key, found.problems if found else ())
        name = found.name if found else _profile_name(key)
        objects = self._profile_objects.setdefault(name, {})
        objects.pop(key.kind, None)
        if found is not None:
            objects[key.kind] = found
        if not objects:
            del self._profile_objects[name]
        old = self._profiles.pop(name, None)
        new = next((objects[kind] for kind in _PROFILE_KINDS if kind in objects), None)
        if new is not None:
            self._profiles[name] = new
        if self._labels.take(name, new.labels if new else {}):
            for selection in (self.peers, self.workloads, self.hosts):
                selection.profile_changed(name)
        if _profile_shape(old) != _profile_shape(new):
            self._dirty_held.update(self.workloads.with_profile(name))
            self._dirty_hosts |= any(True for _ in self.hosts.with_profile(name))
        if old is None or new is None or (old.ingress, old.egress) != (new.ingress, new.egress):
            self._touch_chains(name)

    def _take_slice(self, key: ResourceKey) -> None:
        found = self.store.policy[key.kind].get(key)
        assert found is None or isinstance(found, EndpointSlice)
        old = self._slices.pop(key, None)
        if found is not None:
            self._slices[key] = found
            self._of_service.add(found.service, key)
            for each in self._service_sets(found.service):
                each.add(each.of(found))
        if old is not None:
            if found is None or found.service != old.service:
                self._of_service.discard(old.service, key)
            for each in self._service_sets(old.service):
                each.discard(each.of(old))

    def _take_service(self, key: ResourceKey) -> None:
        """Its EndpointSlices say everything."""

    def _service_sets(self, service: ServiceName) -> Iterator[ServiceSet]:
        for spec in self._by_service.get(service, ()):
            found = self._sets[spec].content
            assert isinstance(found, ServiceSet)
            yield found

    def _tell(self, key: ResourceKey, problems: Iterable[str]) -> None:
        if text := "; ".join(problems):
            self.problems[key] = text
        else:
            self.problems.pop(key, None)

    # --- members -------------------------------------------------------------------------------------------------

    def _put_peer(self, key: ResourceKey, new: Peer | None) -> None:
        """Members are added before others go, so that what both give stays."""
        old = self._peer.get(key)
        before, after = self.peers.put(key, new.identity if new else None)
        had = before.projection.watched if before and old else frozenset[Watched]()
        has = after.projection.watched if after else frozenset[Watched]()
        self._note_ports(key, old, new)
        if new is None:
            self._peer.pop(key, None)
        else:
            self._peer[key] = new
            same = old is not None and (old.nets, old.ports) == (new.nets, new.ports)
            for watched in has if not same else has - had:
                self._enter(watched, new)
        if old is not None:
            same = new is not None and (old.nets, old.ports) == (new.nets, new.ports)
            for watched in had if not same else had - has:
                self._leave(watched, old)

    def _note_ports(self, key: ResourceKey, old: Peer | None, new: Peer | None) -> None:
        had = {port.name for port in old.ports} if old and old.ports else set()
        has = {port.name for port in new.ports} if new and new.ports else set()
        for name in had - has:
            self._with_port.discard(name, key)
        for name in has - had:
            self._with_port.add(name, key)

    def _peer_moved(self, held: Held, lost: Iterable[Watched], gained: Iterable[Watched]) -> None:
        for watched in gained:
            if watched.selector.text in self._by_selector:
                for thing in held.things:
                    self._enter(watched, self._peer[thing])
        for watched in lost:
            if watched.selector.text in self._by_selector:
                for thing in held.things:
                    self._leave(watched, self._peer[thing])

    def _enter(self, watched: Watched, peer: Peer) -> None:
        for spec in self._by_selector.get(watched.selector.text, ()):
            each = self._sets[spec]
            if isinstance(each.content, SelectorSet):
                if each.content.add(peer):
                    self._dirty_chains |= each.users
            elif isinstance(each.content, PortSet) and peer.ports:
                each.content.add(each.content.of(peer))

    def _leave(self, watched: Watched, peer: Peer) -> None:
        for spec in self._by_selector.get(watched.selector.text, ()):
            each = self._sets[spec]
            if isinstance(each.content, SelectorSet):
                if each.content.discard(peer):
                    self._dirty_chains |= each.users
            elif isinstance(each.content, PortSet) and peer.ports:
                each.content.discard(each.content.of(peer))

    def _workload_moved(self, held: Held, lost: Iterable[Watched], gained: Iterable[Watched]) -> None:
        self._dirty_held.add(held)

    def _host_moved(self, held: Held, lost: Iterable[Watched], gained: Iterable[Watched]) -> None:
        self._dirty_hosts = True

    # --- sets ----------------------------------------------------------------------------------------------------

    def need(self, spec: tuple[object, ...], chain: ChainId, make: Callable[[], _Set]) -> _Set:
        found = self._sets.get(spec)
        if found is None:
            found = make()
        found.users.add(chain)
        return found

    def make_selector(self, spec: tuple[object, ...], selector: Selector) -> _Set:
        watched = self.peers.watch(selector)
        made = SelectorSet(selector.text, self._output)
        found = self._sets[spec] = _Set(made, watched=watched)
        self._by_selector.setdefault(selector.text, []).append(spec)
        made.show()
        for held in watched.held():
            for thing in held.things:
                made.add(self._peer[thing])
        return found

    def make_ports(self, spec: tuple[object, ...], selector: Selector, protocol: int, names: tuple[str, ...]) -> _Set:
        watched = self.peers.watch(selector)
        made = PortSet(selector.text, protocol, names, self._output)
        found = self._sets[spec] = _Set(made, watched=watched)
        self._by_selector.setdefault(selector.text, []).append(spec)
        made.show()
        for thing in {thing for name in names for thing in self._with_port.at(name)}:
            held = self.peers.held_of(thing)
            if held is not None and watched in held.projection.watched:
                made.add(made.of(self._peer[thing]))
        return found

    def make_service(self, spec: tuple[object, ...], service: ServiceName, ports: bool) -> _Set:
        made = ServiceSet(service, ports=ports, output=self._output)
        found = self._sets[spec] = _Set(made)
        self._by_service.setdefault(service, []).append(spec)
        made.show()
        for key in self._of_service.at(service):
            made.add(made.of(self._slices[key]))
        return found

    def make_nets(self, spec: tuple[object, ...], nets: tuple[Net, ...]) -> _Set:
        made = NetsSet(nets, self._output)
        self._sets[spec] = _Set(made)
        made.show()
        return self._sets[spec]

    def _unmake(self, spec: tuple[object, ...]) -> None:
        found = self._sets.pop(spec)
        found.content.hide()
        if found.watched is not None:
            _remove(self._by_selector, found.watched.selector.text, spec)
            self.peers.unwatch(found.watched)
        if isinstance(found.content, ServiceSet):
            _remove(self._by_service, found.content.service, spec)

    # --- chains --------------------------------------------------------------------------------------------------

    def _acquire(self, chains: Iterable[ChainId]) -> None:
        for chain in chains:
            state = self._chains.get(chain)
            if state is None:
                state = self._chains[chain] = _Chain()
                self._dirty_chains.add(chain)
            state.refs += 1

    def _release(self, chains: Iterable[ChainId]) -> None:
        for chain in chains:
            state = self._chains[chain]
            state.refs -= 1
            if not state.refs:
                self._idle_chains.add(chain)

    def _compile(self) -> None:
        """A chain that is made may make sets, and none of these changes another chain."""
        while self._dirty_chains:
            chain = self._dirty_chains.pop()
            state = self._chains.get(chain)
            if state is None or not state.refs:
                continue
            rules, comment, prefix = self._source_of(chain)
            sets = _SetsOfChain(self, chain)
            for family in FAMILIES:
                value = PolicyChain(chain.use, rules_of(rules, family, sets, prefix), comment)
                self._output.put(PolicyChainKey(family, chain.name), value)
            self._use_sets(chain, state, sets.used)

    def _use_sets(self, chain: ChainId, state: _Chain, used: set[tuple[object, ...]]) -> None:
        for spec in state.sets - used:
            users = self._sets[spec].users
            users.discard(chain)
            if not users:
                self._idle_sets.add(spec)
        state.sets = used

    def _source_of(self, chain: ChainId) -> tuple[tuple[Rule, ...], str, str]:
        """Rules, comment and prefix of what is logged."""
        direction = chain.use.direction
        if isinstance(chain.owner, str):
            profile = self._profiles[chain.owner]
            words = {"t": "", "k": "Profile", "p": chain.owner, "n": chain.owner}
            return rules_in(profile, direction) or (), comment_text(f"Profile {chain.owner}"), self._prefix(words)
        policy = self._policies[chain.owner].policy
        key = policy.key
        path = f"{key.namespace}/{key.name}" if key.namespace else key.name
        words = {"t": policy.tier, "k": key.kind, "p": path, "n": key.name}
        return rules_in(policy, direction) or (), comment_text(f"tier {policy.tier}: {key}"), self._prefix(words)

    def _prefix(self, words: Mapping[str, str]) -> str:
        text = self.settings.log_prefix
        for letter, word in words.items():
            text = text.replace(f"%{letter}", word)
        return f"{text}: "

    def _clear_up(self) -> None:
        for chain in self._idle_chains:
            state = self._chains[chain]
            if state.refs:
                continue
            self._use_sets(chain, state, set())
            del self._chains[chain]
            for family in FAMILIES:
                self._output.drop(PolicyChainKey(family, chain.name))
        self._idle_chains.clear()
        for spec in self._idle_sets:
            if spec in self._sets and not self._sets[spec].users:
                self._unmake(spec)
        self._idle_sets.clear()

    # --- classes -------------------------------------------------------------------------------------------------

    def _assign(self) -> set[ResourceKey]:
        """Give identities their classes; returns the endpoints whose numbers changed.

        Where all of a class go, the class changes and nobody moves. Otherwise those move that go.
        """
        dirty, self._dirty_held = self._dirty_held, set()
        wanted = {held: self._asked(held) for held in dirty if held.things}
        moved: set[ResourceKey] = set()
        for way in Direction:
            of = self._class_of[way]
            goals = {held: asks[way] for held, asks in wanted.items()}
            leaving: dict[int, tuple[_Class | None, list[Held]]] = {}
            for held in dirty:
                old, goal = of.get(held), goals.get(held)
                if old is None and goal is None:
                    continue
                if old is not None and goal is not None and _content(old.asked) == _content(goal):
                    continue
                leaving.setdefault(id(old), (old, []))[1].append(held)
            for old, group in leaving.values():
                moved |= self._move(way, old, group, goals)
        return moved

    def _move(
        self, way: Direction, old: _Class | None, group: list[Held], goals: Mapping[Held, Asked | None]
    ) -> set[ResourceKey]:
        classes, of = self._classes[way], self._class_of[way]
        by_goal: dict[tuple[object, ...], list[Held]] = {}
        for held in group:
            if goal := goals.get(held):
                by_goal.setdefault(_content(goal), []).append(held)
        kept: tuple[object, ...] | None = None
        if old is not None and len(old.held) == len(group):
            fresh = [content for content in by_goal if content not in classes]
            if fresh:
                kept = max(fresh, key=lambda content: (sum(len(held.things) for held in by_goal[content]), content))
                goal = goals[by_goal[kept][0]]
                assert goal is not None
                self._change_class(way, old, goal)
        moved: set[ResourceKey] = set()
        for content, several in by_goal.items():
            if content == kept:
                continue
            goal = goals[several[0]]
            assert goal is not None
            new = classes.get(content) or self._new_class(way, goal)
            for held in several:
                new.held.add(held)
                of[held] = new
                moved |= held.things
        for held in group:
            if old is not None and of.get(held) is not old:
                old.held.discard(held)
            if goals.get(held) is None:
                of.pop(held, None)
                moved |= held.things
                if old is not None:
                    old.held.discard(held)
        if old is not None and not old.held:
            self._end_class(way, old)
        return moved

    def _asked(self, held: Held) -> dict[Direction, Asked | None]:
        policies = [
            state.policy
            for watched in held.projection.watched
            for key in self._of_subject.at(watched.selector.text)
            if (state := self._policies[key]).workloads is not None
        ]
        found: dict[Direction, Asked | None] = {}
        for way, use in _WORKLOAD_USE.items():
            answer = asked(
                policies,
                self._tiers,
                held.identity.profiles,
                self._profiles.get,
                use,
                self.settings.without_profile,
            )
            found[way] = answer if self.is_complete or answer.is_open else None
        return found

    def _new_class(self, way: Direction, goal: Asked) -> _Class:
        made = _Class(self._numbers[way].take(_class_name(way, goal)), goal)
        self._classes[way][_content(goal)] = made
        self._acquire(goal.chains)
        self._show_class(way, made)
        return made

    def _change_class(self, way: Direction, changed: _Class, goal: Asked) -> None:
        del self._classes[way][_content(changed.asked)]
        self._classes[way][_content(goal)] = changed
        self._acquire(goal.chains)
        self._release(changed.asked.chains)
        changed.asked = goal
        self._show_class(way, changed)

    def _end_class(self, way: Direction, ended: _Class) -> None:
        del self._classes[way][_content(ended.asked)]
        self._release(ended.asked.chains)
        self._numbers[way].give(ended.number)
        for family in FAMILIES:
            self._output.drop(ClassKey(family, way, ended.number))

    def _show_class(self, way: Direction, shown: _Class) -> None:
        asks = shown.asked
        value = EndpointClass(_class_name(way, asks), asks.tiers, asks.profiles, asks.end, _class_comment(asks))
        for family in FAMILIES:
            self._output.put(ClassKey(family, way, shown.number), value)

    def _show_endpoint(self, key: ResourceKey) -> None:
        """The classes of an endpoint's interface, if it is the one that has it."""
        endpoint = self.store.endpoints.get(key)
        if endpoint is not None and not self._has_interface(endpoint):
            endpoint = None
        shown = self._interface_of.get(key)
        if shown is not None and (endpoint is None or endpoint.interface != shown):
            del self._interface_of[key]
            if self._shown.get(shown) == key:
                del self._shown[shown]
                for family in FAMILIES:
                    self._output.drop(EndpointClassKey(family, shown))
        if endpoint is None:
            return
        self._interface_of[key] = endpoint.interface
        self._shown[endpoint.interface] = key
        held = self.workloads.held_of(key)
        ingress, egress = (
            found.number if held is not None and (found := self._class_of[way].get(held)) else 0
            for way in (Direction.INGRESS, Direction.EGRESS)
        )
        families = {address.family for address in endpoint.addresses}
        for family in FAMILIES:
            place = EndpointClassKey(family, endpoint.interface)
            if family in families:
                self._output.put(place, EndpointClasses(ingress, egress))
            else:
                self._output.drop(place)

    def _has_interface(self, endpoint: WorkloadEndpoint) -> bool:
        interface = endpoint.interface
        is_workloads = interface.startswith(self.settings.interface_prefixes)
        return is_workloads and self.store.interface_owner(interface) == endpoint.key

    # --- host endpoints ------------------------------------------------------------------------------------------

    def _calculate_hosts(self) -> None:
        """All of this node's: there are few, and they compete for interfaces."""
        values: dict[HostEndpointKey, HostEndpointChains] = {}
        chains: Counter[ChainId] = Counter()
        for interface, endpoint in self._interfaces().items():
            value, used = self._asked_host(endpoint)
            values |= {HostEndpointKey(family, interface): value for family in FAMILIES}
            chains.update(used)
        self._acquire((chains - self._host_chains).elements())
        self._release((self._host_chains - chains).elements())
        self._host_chains = chains
        for key in [key for key in self._output.entries if isinstance(key, HostEndpointKey) and key not in values]:
            self._output.drop(key)
        for key, value in values.items():
            self._output.put(key, value)

    def _interfaces(self) -> dict[str, HostEndpoint]:
        """Which host endpoint an interface has: of several the first by name."""
        found: dict[str, HostEndpoint] = {}
        for key, endpoint in sorted(self._local_hosts.items()):
            interface = endpoint.interface or self._interface_with(endpoint.addresses)
            if interface is None:
                self.problems[key] = "no interface of this node has one of spec.expectedIPs"
            elif interface in found:
                self.problems[key] = f"interface {interface} is already that of {found[interface].key}"
            else:
                self.problems.pop(key, None)
                found[interface] = endpoint
        return found if self.is_complete else {}

    def _interface_with(self, addresses: tuple[Net, ...]) -> str | None:
        wanted = {address.packed for address in addresses}
        return next((interface for interface, packed in self.settings.host_addresses if packed in wanted), None)

    def _asked_host(self, endpoint: HostEndpoint) -> tuple[HostEndpointChains, list[ChainId]]:
        held = self.hosts.held_of(endpoint.key)
        watched = held.projection.watched if held else ()
        policies = [self._policies[key].policy for each in watched for key in self._of_subject.at(each.selector.text)]
        used: list[ChainId] = []

        def tiers(of: Iterable[Policy], use: Use, *, ends: bool = True) -> tuple[tuple[TierChains, ...], bool]:
            found, chains, decided = asked_tiers(of, self._tiers, use, ends=ends)
            used.extend(chains)
            return found, decided

        def profiles(use: Use, decided: bool) -> tuple[str, ...]:
            chains = () if decided else asked_profiles(endpoint.profiles, self._profiles.get, use, fold=False)[0]
            used.extend(chains)
            return tuple(chain.name for chain in chains)

        normal = [policy for policy in policies if not policy.do_not_track and not policy.pre_dnat]
        forward = [policy for policy in normal if policy.apply_on_forward]
        untracked = [policy for policy in policies if policy.do_not_track]
        ingress, ingress_decided = tiers(normal, Use.HOST_INGRESS)
        egress, egress_decided = tiers(normal, Use.HOST_EGRESS)
        value = HostEndpointChains(
            ingress=ingress,
            egress=egress,
            profiles_ingress=profiles(Use.HOST_INGRESS, ingress_decided),
            profiles_egress=profiles(Use.HOST_EGRESS, egress_decided),
            forward_ingress=tiers(forward, Use.FORWARD_INGRESS)[0],
            forward_egress=tiers(forward, Use.FORWARD_EGRESS)[0],
            pre_dnat=tiers([policy for policy in policies if policy.pre_dnat], Use.PRE_DNAT, ends=False)[0],
            untracked_ingress=tiers(untracked, Use.UNTRACKED_INGRESS, ends=False)[0],
            untracked_egress=tiers(untracked, Use.UNTRACKED_EGRESS, ends=False)[0],
            comment=comment_text(str(endpoint.key)),
        )
        return value, used


class _SetsOfChain:
    """Makes the sets that a chain names, and remembers which."""

    def __init__(self, calculation: PolicyCalculation, chain: ChainId) -> None:
        self.used: set[tuple[object, ...]] = set()
        self._calculation = calculation
        self._chain = chain

    def _need(self, spec: tuple[object, ...], make: Callable[[], _Set]) -> _Set:
        self.used.add(spec)
        return self._calculation.need(spec, self._chain, make)

    def selector(self, selector: Selector, family: Family) -> tuple[str, str]:
        spec = ("selector", selector.text)
        found = self._need(spec, lambda: self._calculation.make_selector(spec, selector)).content
        assert isinstance(found, SelectorSet)
        return found.hosts, found.nets if found.has_prefixes(family) else ""

    def ports(self, selector: Selector | None, protocol: int, names: tuple[str, ...]) -> str:
        chosen = selector or ALL
        spec = ("ports", chosen.text, protocol, names)
        found = self._need(spec, lambda: self._calculation.make_ports(spec, chosen, protocol, names)).content
        assert isinstance(found, PortSet)
        return found.name

    def service(self, service: ServiceName, *, ports: bool) -> str:
        spec = ("service", service, ports)
        found = self._need(spec, lambda: self._calculation.make_service(spec, service, ports)).content
        assert isinstance(found, ServiceSet)
        return found.name

    def nets(self, nets: tuple[Net, ...]) -> str:
        spec = ("nets", nets)
        found = self._need(spec, lambda: self._calculation.make_nets(spec, nets)).content
        assert isinstance(found, NetsSet)
        return found.name


def _shape(policy: Policy) -> object:
    """What classes depend on of a policy: all but its rules."""
    ways = (policy.ingress, policy.egress)
    may_pass = tuple(None if rules is None else passes(rules) for rules in ways)
    return replace(policy, ingress=None, egress=None, problems=()), may_pass


def _profile_shape(profile: Profile | None) -> object:
    """What classes depend on of a profile."""
    if profile is None:
        return None
    return tuple(
        rules and (rules[0].action if is_unconditional(rules[0]) else True)
        for rules in (profile.ingress, profile.egress)
    )


def _profile_name(key: ResourceKey) -> str:
    if key.kind is Kind.NAMESPACE:
        return f"{NAMESPACE_PROFILE}{key.name}"
    if key.kind is Kind.SERVICE_ACCOUNT:
        return f"{SERVICE_ACCOUNT_PROFILE}{key.namespace}.{key.name}"
    return key.name


def _content(asks: Asked) -> tuple[object, ...]:
    return asks.tiers, asks.profiles, asks.end


def _class_name(way: Direction, asks: Asked) -> str:
    words = [way.value, asks.end.value]
    for tier in asks.tiers:
        words += ["tier", tier.name, tier.end.value, *tier.chains, "passes", *map(str, tier.passes)]
    return text_hash(*words, "profiles", *asks.profiles)


def _class_comment(asks: Asked) -> str:
    return comment_text(_class_words(asks))


def _class_words(asks: Asked) -> str:
    names = {chain.name: _owner_name(chain.owner) for chain in asks.chains}
    parts = [f"{tier.name} [{' '.join(names[chain] for chain in tier.chains)}]" for tier in asks.tiers]
    parts += [f"profile {names[chain]}" for chain in asks.profiles]
    return ", ".join([*parts, asks.end.value.lower()])


def _owner_name(owner: ResourceKey | str) -> str:
    if isinstance(owner, str):
        return owner
    return f"{owner.namespace}/{owner.name}" if owner.namespace else owner.name


def _remove(index: dict[K, list[tuple[object, ...]]], key: K, spec: tuple[object, ...]) -> None:
    index[key].remove(spec)
    if not index[key]:
        del index[key]


_TAKE: Final[Mapping[Kind, Callable[[PolicyCalculation, ResourceKey], None]]] = {
    Kind.WORKLOAD_ENDPOINT: PolicyCalculation._take_endpoint,
    **dict.fromkeys((kind for kind, holds in POLICY_KINDS.items() if holds is Policy), PolicyCalculation._take_policy),
    Kind.TIER: PolicyCalculation._take_tier,
    **dict.fromkeys(_PROFILE_KINDS, PolicyCalculation._take_profile),
    Kind.NETWORK_SET: PolicyCalculation._take_network_set,
    Kind.GLOBAL_NETWORK_SET: PolicyCalculation._take_network_set,
    Kind.HOST_ENDPOINT: PolicyCalculation._take_host_endpoint,
    Kind.SERVICE: PolicyCalculation._take_service,
    Kind.ENDPOINT_SLICE: PolicyCalculation._take_slice,
}
"""Kinds that policy depends on, and who takes a change of one."""

KINDS: Final = frozenset(_TAKE)
