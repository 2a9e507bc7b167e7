"""Policies, classes and selectors for ``felixpy show``: what this node makes of them, and whether the kernel has it."""

from __future__ import annotations

from collections.abc import Iterator

from felixpy.agent.agent import Agent
from felixpy.calc.policy.classes import Direction, Use
from felixpy.calc.policy.order import ChainId, policy_rank, rules_in, tier_rank
from felixpy.commands.survey import Line
from felixpy.model.policy import Policy
from felixpy.model.resources import POLICY_KINDS


def policies(agent: Agent) -> list[Line]:
    """Every policy in the order in which it is asked, with how many endpoints of this node ask it."""
    policy, known = agent.calculation.policy, agent.store.policy
    found = [
        (tier_rank(one.tier, policy.tiers), policy_rank(one), one)
        for kind, holds in POLICY_KINDS.items()
        if holds is Policy
        for one in known[kind].values()
        if isinstance(one, Policy)
    ]
    return [_policy(agent, one) for _, _, one in sorted(found, key=lambda item: item[:2])]


def _policy(agent: Agent, policy: Policy) -> Line:
    order = "last" if policy.order is None else f"order {policy.order:g}"
    ways = [f"{way} {len(rules)}" for way in Direction if (rules := rules_in(policy, way)) is not None]
    asking = agent.calculation.policy.asking(policy.key)
    wanted = f"tier {policy.tier}, {order}, rules: {', '.join(ways)}; {asking} endpoints"
    note = agent.calculation.problems.get(policy.key, "")
    if policy.staged:
        return Line("policies", str(policy.key), f"tier {policy.tier}, {order}, staged: never enforced", "", note)
    chains = [ChainId(use, policy.key).name for use in Use]
    return Line("policies", str(policy.key), wanted, _kernel(agent, chains), note)


def classes(agent: Agent) -> list[Line]:
    """What endpoints are asked, by direction and number."""
    return [
        Line("classes", f"{way} {number}", f"{words}; {count} endpoints", "")
        for way, number, words, count in sorted(agent.calculation.policy.classes())
    ]


def selectors(agent: Agent) -> list[Line]:
    """The sets that rules name, with their members."""
    return [
        Line("selectors", name, words, f"{members} members", f"named by {users}")
        for name, words, members, users in sorted(agent.calculation.policy.sets())
    ]


def _kernel(agent: Agent, chains: list[str]) -> str:
    """The families in which the kernel has one of the chains."""
    return ", ".join(str(family) for family in _families(agent, frozenset(chains)))


def _families(agent: Agent, chains: frozenset[str]) -> Iterator[object]:
    for family, tables in agent.dataplane.filters.items():
        if any(getattr(key, "name", "") in chains for key in tables.chains.committed):
            yield family
