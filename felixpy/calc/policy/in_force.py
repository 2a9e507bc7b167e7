"""The policies, tiers and profiles that are in force, and where they are found. Pure.

What follows from a change of one is not decided here: ``PolicyCalculation`` notes it.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct, field

from felixpy.calc.policy.classes import Use
from felixpy.calc.policy.order import PolicyAsked, policy_asked
from felixpy.calc.policy.selection import Held, Watched
from felixpy.model.policy import Policy, Profile, Tier
from felixpy.model.resources import Kind, ResourceKey
from felixpy.store.index import Index

_PROFILE_KINDS = (Kind.PROFILE, Kind.NAMESPACE, Kind.SERVICE_ACCOUNT)  # of several with one name, the first


class PolicyState(Struct, eq=False):
    """A policy in force, and where its selector is watched. One of another order, tier or direction is a new state."""

    policy: Policy
    workloads: Watched | None
    hosts: Watched | None
    _asked: dict[Use, PolicyAsked | None] = field(default_factory=dict)

    def asked(self, use: Use) -> PolicyAsked | None:
        """How it is asked in a use, told once: thousands of endpoints may ask it; None if it has not the direction."""
        if use not in self._asked:
            self._asked[use] = policy_asked(self.policy, use)
        return self._asked[use]


class InForce:
    """Policies by their key, their subject and their tier; tiers and profiles by their name."""

    def __init__(self) -> None:
        self.policies: dict[ResourceKey, PolicyState] = {}
        self.tiers: dict[str, Tier] = {}
        self.profiles: dict[str, Profile] = {}
        self._profile_objects: dict[str, dict[Kind, Profile]] = {}
        self._of_subject: Index[str, ResourceKey] = Index()
        self._of_tier: Index[str, ResourceKey] = Index()

    def add(self, state: PolicyState) -> None:
        policy = state.policy
        self.policies[policy.key] = state
        self._of_subject.add(policy.subject.text, policy.key)
        self._of_tier.add(policy.tier, policy.key)

    def remove(self, state: PolicyState) -> None:
        policy = state.policy
        del self.policies[policy.key]
        self._of_subject.discard(policy.subject.text, policy.key)
        self._of_tier.discard(policy.tier, policy.key)

    def of_tier(self, name: str) -> Iterator[PolicyState]:
        return (self.policies[key] for key in self._of_tier.at(name))

    def selecting(self, held: Held) -> Iterator[PolicyState]:
        """The policies whose subject an identity is."""
        for watched in held.projection.watched:
            for key in self._of_subject.at(watched.selector.text):
                yield self.policies[key]

    def put_profile(self, name: str, kind: Kind, profile: Profile | None) -> tuple[Profile | None, Profile | None]:
        """Several kinds of objects make a profile of one name: which one it was, and which one it is."""
        objects = self._profile_objects.setdefault(name, {})
        objects.pop(kind, None)
        if profile is not None:
            objects[kind] = profile
        if not objects:
            del self._profile_objects[name]
        old = self.profiles.pop(name, None)
        new = next((objects[kind] for kind in _PROFILE_KINDS if kind in objects), None)
        if new is not None:
            self.profiles[name] = new
        return old, new
