"""Policies, profiles, sets and endpoints -> classes, chains and members of sets, piece by piece. Pure.

    take(key)  an object changed: what depends on it is noted
    flush()    what was noted is calculated: the entries that changed

Here a change is taken and handed to those that it concerns: ``in_force`` holds policies, tiers and profiles,
``assignment`` gives classes to this node's endpoints, ``host_endpoints`` to its interfaces, ``chains_in_use`` makes the
chains that these ask, and ``sets_in_use`` the sets that the chains name.

Invariant: the entries are those that the same objects would give from scratch, but for the numbers of classes. A policy
has chains only if a local endpoint is asked by it, and a selector has members only if such a chain names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from msgspec.structs import replace

from felixpy.calc.policy.assignment import Assignment
from felixpy.calc.policy.chains_in_use import ChainsInUse
from felixpy.calc.policy.classes import EndpointClassKey, PolicyKey, PolicyValue
from felixpy.calc.policy.host_endpoints import HostEndpoints
from felixpy.calc.policy.in_force import InForce, PolicyState
from felixpy.calc.policy.order import ChainId, owner_name, passes, tier_rank
from felixpy.calc.policy.output import GONE, Output, PolicyChanges
from felixpy.calc.policy.rules_of import is_unconditional
from felixpy.calc.policy.selection import ProfileLabels
from felixpy.calc.policy.sets_in_use import SetsInUse
from felixpy.calc.policy.settings import PolicySettings
from felixpy.calc.policy.unknown_peers import told_wider
from felixpy.calc.policy.walk import InUse
from felixpy.model.net import FAMILIES, Family
from felixpy.model.policy import (
    NAMESPACE_PROFILE,
    SERVICE_ACCOUNT_PROFILE,
    Direction,
    EndpointSlice,
    HostEndpoint,
    NetworkSet,
    Policy,
    Profile,
    Tier,
)
from felixpy.model.resources import POLICY_KINDS, Kind, ResourceKey, WorkloadEndpoint
from felixpy.store.peers import Peer
from felixpy.store.store import Store

_PROFILE_KINDS = (Kind.PROFILE, Kind.NAMESPACE, Kind.SERVICE_ACCOUNT)
_HOST_POLICIES = frozenset({Kind.GLOBAL_NETWORK_POLICY})


class PolicyCalculation:
    """The state of policy on one node."""

    def __init__(self, store: Store, settings: PolicySettings, problems: dict[ResourceKey, str] | None = None) -> None:
        """``problems``: where to say what is wrong with an object of a kind that nothing else is calculated of."""
        self.store = store
        self.settings = settings
        self.problems = {} if problems is None else problems
        self.is_complete = False
        self._unknown_peers = ""
        self._output = Output(settings.families)
        self._labels = ProfileLabels()
        self._in_force = InForce()
        changed: set[ChainId] = set()
        self._sets = SetsInUse(self._labels, self._output, changed)
        self._chains = ChainsInUse(self._in_force, self._sets, self._output, changed, settings.log_prefix)
        common = self._labels, self._in_force, self._chains, self._output
        self.assignment = Assignment(*common, settings.without_profile)
        self._host_endpoints = HostEndpoints(*common, self.problems, settings.host_addresses)
        self.peers, self.workloads, self.hosts = self._selections = (
            self._sets.peers,
            self.assignment.workloads,
            self._host_endpoints.hosts,
        )
        self._shown: dict[str, ResourceKey] = {}
        self._interface_of: dict[ResourceKey, str] = {}
        self._dirty_endpoints: set[ResourceKey] = set()

    # --- what is asked by others ---------------------------------------------------------------------------------

    def entries(self) -> dict[PolicyKey, PolicyValue]:
        """Every entry of the families that are on."""
        return self._output.all() | self._sets.members(self._output.families)

    def adopt(self, numbers: Mapping[tuple[Direction, str], int]) -> None:
        """Numbers of classes by their names, as the kernel has them: before anything is complete."""
        self.assignment.adopt(numbers)

    def settled(self) -> None:
        """The kernel has all that was told."""
        self.assignment.settled()

    def complete(self) -> None:
        """Everything that there is has been taken: classes may be given."""
        if not self.is_complete:
            self.is_complete = True
            self.assignment.complete()
            self._host_endpoints.complete()

    def open_endpoints(self) -> Iterator[ResourceKey]:
        """Local endpoints that name no profile and that, in a direction at least, no policy selects."""
        return self.assignment.open_endpoints()

    @property
    def tiers(self) -> Mapping[str, Tier]:
        """Tiers that have an object."""
        return self._in_force.tiers

    def asking(self, policy: ResourceKey) -> int:
        """How many local endpoints, workloads' and hosts', a policy selects."""
        state = self._in_force.policies.get(policy)
        if state is None:
            return 0
        watched = [found for found in (state.workloads, state.hosts) if found is not None]
        return sum(len(held.things) for each in watched for held in each.held())

    def classes(self) -> Iterator[tuple[str, int, str, int]]:
        """Direction, number, what is asked, and how many endpoints are in the class."""
        return self.assignment.described()

    def sets(self) -> Iterator[tuple[str, str, int, str]]:
        """Name, what it stands for, how many members, and the policies whose rules name it."""
        for name, words, count, chains in self._sets.described():
            yield name, words, count, ", ".join(sorted({owner_name(chain.owner) for chain in chains}))

    def in_use(self) -> InUse:
        """What a packet would be asked now; valid until the next change."""
        return InUse(self._output.entries, self._chains.owners(), self._sets.contents())

    def deciders(self) -> dict[str, tuple[str, str]]:
        """Whose chain it is, by its name: the policy's tier and the policy, or nothing and the profile."""
        return self._chains.deciders()

    def counts(self) -> dict[str, int]:
        """Policies and selectors that are in use on this node."""
        return {"policies": len(self._chains.policies()), "selectors": len(self.peers)}

    # --- changes -------------------------------------------------------------------------------------------------

    def reconfigure(self, settings: PolicySettings) -> None:
        """Take other settings, or facts of the host."""
        before, self.settings = self.settings, settings
        if settings.families != before.families:
            self._change_families(settings.families)
        self.assignment.use_without_profile(settings.without_profile)
        self._chains.use_log_prefix(settings.log_prefix)
        self._host_endpoints.use_addresses(settings.host_addresses)
        if settings.interface_prefixes != before.interface_prefixes:
            self._dirty_endpoints.update(self.store.endpoints)

    def use_peers(self, unknown: str) -> set[ResourceKey]:
        """Take why the endpoints of other nodes are not known, empty if they are: policies that are wider by it tell
        so. Returns whose problems are other ones now."""
        if unknown == self._unknown_peers:
            return set()
        self._unknown_peers = unknown
        told = set()
        for objects in self.store.policy.values():
            for key, found in objects.items():
                if isinstance(found, Policy):
                    before = self.problems.get(key)
                    self._tell_of_policy(key, found)
                    told |= {key} if self.problems.get(key) != before else set()
        return told

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
        moved = self.assignment.assign()
        self._host_endpoints.calculate()
        self._chains.compile()
        self._chains.clear_up()
        for key in self._dirty_endpoints | moved:
            self._show_endpoint(key)
        self._dirty_endpoints.clear()
        return self._output.take_changes()

    # --- objects -------------------------------------------------------------------------------------------------

    def _take_endpoint(self, key: ResourceKey) -> None:
        peer = self.store.peer(key)
        self._sets.put_peer(key, peer)
        endpoint = self.store.endpoints.get(key)
        if endpoint is None:
            peer = None
        old, new = self.workloads.put(key, peer.identity if peer else None)
        if old is not new:
            self.assignment.touch_changed(old, new)
        if endpoint is not None or key in self._interface_of:
            self._dirty_endpoints.add(key)

    def _take_network_set(self, key: ResourceKey) -> None:
        found = self.store.policy[key.kind].get(key)
        assert found is None or isinstance(found, NetworkSet)
        peer = Peer(self.store.identities.of(found.labels, found.profiles), found.nets) if found else None
        self._sets.put_peer(key, peer)
        self._tell(key, found.problems if found else ())

    def _take_host_endpoint(self, key: ResourceKey) -> None:
        found = self.store.policy[key.kind].get(key)
        assert found is None or isinstance(found, HostEndpoint)
        identity = self.store.identities.of(found.labels, found.profiles) if found else None
        peer = Peer(identity, found.addresses, found.ports) if found and identity else None
        self._sets.put_peer(key, peer)
        is_local = found is not None and found.node == self.store.node_name
        self._host_endpoints.put(key, found if is_local else None, identity)

    def _take_policy(self, key: ResourceKey) -> None:
        found = self.store.policy[key.kind].get(key)
        assert found is None or isinstance(found, Policy)
        self._tell_of_policy(key, found)
        new = None if found is None or found.staged else found
        old = self._in_force.policies.get(key)
        if old is not None and new is not None and _shape(old.policy) == _shape(new):
            old.policy = new
        else:
            if old is not None:
                self._end_policy(old)
            if new is not None:
                self._begin_policy(new)
        self._chains.touch(key)

    def _tell_of_policy(self, key: ResourceKey, policy: Policy | None) -> None:
        wider = told_wider(policy, self._unknown_peers) if policy and self._unknown_peers else ()
        self._tell(key, (*policy.problems, *wider) if policy else ())

    def _begin_policy(self, policy: Policy) -> None:
        for_workloads = not policy.do_not_track and not policy.pre_dnat
        state = PolicyState(
            policy,
            self.workloads.watch(policy.subject) if for_workloads else None,
            self.hosts.watch(policy.subject) if policy.key.kind in _HOST_POLICIES else None,
        )
        self._in_force.add(state)
        self._mark(state)

    def _end_policy(self, state: PolicyState) -> None:
        self._mark(state)
        self._in_force.remove(state)
        if state.workloads is not None:
            self.workloads.unwatch(state.workloads)
        if state.hosts is not None:
            self.hosts.unwatch(state.hosts)

    def _mark(self, state: PolicyState) -> None:
        """Whoever a policy is for is calculated again."""
        if state.workloads is not None:
            self.assignment.touch(state.workloads.held())
        if state.hosts is not None and state.hosts.projections:
            self._host_endpoints.touch()

    def _take_tier(self, key: ResourceKey) -> None:
        found = self.store.policy[key.kind].get(key)
        assert found is None or isinstance(found, Tier)
        tiers = self._in_force.tiers
        before = tier_rank(key.name, tiers)
        tiers.pop(key.name, None)
        if found is not None:
            tiers[key.name] = found
        if tier_rank(key.name, tiers) == before:
            return
        for state in self._in_force.of_tier(key.name):
            self._mark(state)

    def _take_profile(self, key: ResourceKey) -> None:
        found = self.store.policy[key.kind].get(key)
        assert found is None or isinstance(found, Profile)
        self._tell(key, found.problems if found else ())
        name = found.name if found else _profile_name(key)
        old, new = self._in_force.put_profile(name, key.kind, found)
        if self._labels.take(name, new.labels if new else {}):
            for selection in self._selections:
                selection.profile_changed(name)
        if _profile_shape(old) != _profile_shape(new):
            self.assignment.touch(self.workloads.with_profile(name))
            if any(True for _ in self.hosts.with_profile(name)):
                self._host_endpoints.touch()
        if old is None or new is None or (old.ingress, old.egress) != (new.ingress, new.egress):
            self._chains.touch(name)

    def _take_slice(self, key: ResourceKey) -> None:
        found = self.store.policy[key.kind].get(key)
        assert found is None or isinstance(found, EndpointSlice)
        self._sets.put_slice(key, found)

    def _take_service(self, key: ResourceKey) -> None:
        """Its EndpointSlices say everything."""

    def _tell(self, key: ResourceKey, problems: Iterable[str]) -> None:
        if text := "; ".join(problems):
            self.problems[key] = text
        else:
            self.problems.pop(key, None)

    # --- interfaces ----------------------------------------------------------------------------------------------

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
        classes, families = self.assignment.classes_of(key), [address.family for address in endpoint.addresses]
        for family in FAMILIES:
            place = EndpointClassKey(family, endpoint.interface)
            if family in families:
                self._output.put(place, classes)
            else:
                self._output.drop(place)

    def _has_interface(self, endpoint: WorkloadEndpoint) -> bool:
        interface = endpoint.interface
        is_workloads = interface.startswith(self.settings.interface_prefixes)
        return is_workloads and self.store.interface_owner(interface) == endpoint.key


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
