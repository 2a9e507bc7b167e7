"""In which order an endpoint is asked: tiers, policies in them, and then profiles. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from felixpy.calc.policy.classes import TierChains, Use, chain_name
from felixpy.calc.policy.rules_of import is_unconditional
from felixpy.model.policies import BUILT_IN_TIERS
from felixpy.model.policy import Direction, EndOfTier, Policy, PolicyAction, Profile, Rule, Tier
from felixpy.model.resources import ResourceKey


class ChainId(NamedTuple):
    """The rules of a policy or profile, for one use. ``owner`` is the policy's key, or the name of the profile."""

    use: Use
    owner: ResourceKey | str

    @property
    def name(self) -> str:
        return _name_of(self)


def owner_name(owner: ResourceKey | str) -> str:
    """A policy or a profile, for people."""
    if isinstance(owner, str):
        return owner
    return f"{owner.namespace}/{owner.name}" if owner.namespace else owner.name


@lru_cache(1 << 16)
def _name_of(chain: ChainId) -> str:
    owner = ("Profile", chain.owner) if isinstance(chain.owner, str) else chain.owner
    return chain_name(chain.use, *owner)


class Asked(NamedTuple):
    """What is asked in one direction, in order, and what is done with a packet that nothing decided."""

    tiers: tuple[TierChains, ...]
    profiles: tuple[str, ...]
    end: PolicyAction
    chains: tuple[ChainId, ...]
    """Of all tiers and profiles."""

    @property
    def is_open(self) -> bool:
        """Everything is allowed, and nothing asked."""
        return not self.tiers and not self.profiles and self.end is PolicyAction.ALLOW


def rules_in(policy: Policy | Profile, direction: Direction) -> tuple[Rule, ...] | None:
    """The rules of a direction; None if a policy has not this direction."""
    return policy.ingress if direction is Direction.INGRESS else policy.egress


def passes(rules: tuple[Rule, ...] | None) -> bool:
    return any(rule.action is PolicyAction.PASS for rule in rules or ())


def policy_rank(policy: Policy) -> tuple[float, str]:
    """Order in a tier; ties by name, namespace and kind."""
    key = policy.key
    order = math.inf if policy.order is None else policy.order
    return order, f"{key.name}/{key.namespace}/{key.kind}"


class TierRank(NamedTuple):
    """Tiers without an object come after all others."""

    missing: bool
    order: float
    name: str
    end: EndOfTier


def tier_rank(name: str, tiers: Mapping[str, Tier]) -> TierRank:
    if found := tiers.get(name):
        return TierRank(False, math.inf if found.order is None else found.order, name, found.end)
    if built_in := BUILT_IN_TIERS.get(name):
        return TierRank(False, built_in[0], name, built_in[1])
    return TierRank(True, math.inf, name, EndOfTier.DENY)


class PolicyAsked(NamedTuple):
    """A policy as it is asked in one use; those of a tier in their order if sorted."""

    rank: tuple[float, str]
    tier: str
    chain: ChainId
    name: str
    """Of the chain."""
    passes: bool


def policy_asked(policy: Policy, use: Use) -> PolicyAsked | None:
    """None if it has not the direction of the use."""
    rules = rules_in(policy, use.direction)
    if rules is None:
        return None
    chain = ChainId(use, policy.key)
    return PolicyAsked(policy_rank(policy), policy.tier, chain, chain.name, passes(rules))


def asked_tiers(
    policies: Iterable[PolicyAsked | None], tiers: Mapping[str, Tier], *, ends: bool = True
) -> tuple[tuple[TierChains, ...], tuple[ChainId, ...], bool]:
    """Tiers that have one of the policies, their chains, and whether the last one surely decides.

    What comes after a tier that surely decides is left out. Without ``ends`` no tier decides at its end.
    """
    by_tier: dict[str, list[PolicyAsked]] = {}
    for policy in policies:
        if policy is not None:
            by_tier.setdefault(policy.tier, []).append(policy)
    found: list[TierChains] = []
    chains: list[ChainId] = []
    for rank in sorted(tier_rank(name, tiers) for name in by_tier):
        _, _, ids, names, may_pass = zip(*sorted(by_tier[rank.name]), strict=True)
        end = rank.end if ends else EndOfTier.PASS
        found.append(TierChains(rank.name, end, names, may_pass))
        chains += ids
        if end is EndOfTier.DENY and not any(may_pass):
            return tuple(found), tuple(chains), True
    return tuple(found), tuple(chains), False


def asked_profiles(
    names: Iterable[str], profile: Callable[[str], Profile | None], use: Use, *, fold: bool
) -> tuple[tuple[ChainId, ...], PolicyAction]:
    """Chains of profiles, and what comes after them: a profile that is not there denies, also before later ones.

    With ``fold`` a profile that decides everything at once is no chain but the end.
    """
    chains: list[ChainId] = []
    for name in names:
        found = profile(name)
        if found is None:
            break
        rules = rules_in(found, use.direction)
        if not rules:
            continue
        first = rules[0]
        decides = is_unconditional(first) and first.action in (PolicyAction.ALLOW, PolicyAction.DENY)
        if decides and fold:
            return tuple(chains), first.action
        chains.append(ChainId(use, name))
        if decides:
            break
    return tuple(chains), PolicyAction.DENY


def asked(
    policies: Iterable[PolicyAsked | None],
    tiers: Mapping[str, Tier],
    names: tuple[str, ...],
    profile: Callable[[str], Profile | None],
    use: Use,
    without_profile: PolicyAction,
) -> Asked:
    """What a workload endpoint is asked in one direction."""
    found, chains, decided = asked_tiers(policies, tiers)
    if decided:
        return Asked(found, (), PolicyAction.DENY, chains)
    if not names:
        return Asked(found, (), PolicyAction.DENY if found else without_profile, chains)
    profiles, end = asked_profiles(names, profile, use, fold=True)
    return Asked(found, tuple(one.name for one in profiles), end, (*chains, *profiles))
