"""Which rules let more through where the endpoints of other nodes are not known. Pure.

A selector that finds too few endpoints makes an Allow rule narrower, which is safe. In a rule that denies or passes on,
and in ``notSelector`` of one that allows, it makes the policy wider: that is told, and never silent.
"""

from __future__ import annotations

from collections.abc import Iterator

from felixpy.model.policy import Entity, Policy, PolicyAction, Rule


def told_wider(policy: Policy, reason: str) -> Iterator[str]:
    """One sentence for each direction of a policy that asks for endpoints in such a way; ``reason``: why it may not."""
    if policy.staged:
        return
    for direction, rules in (("ingress", policy.ingress), ("egress", policy.egress)):
        found = [rule.position for rule in rules or () if _is_wider(rule, _peer(rule, direction))]
        if found:
            numbers = ", ".join(f"spec.{direction}[{position}]" for position in dict.fromkeys(found))
            yield (
                f"{numbers}: the endpoints of other nodes are not known ({reason}), so these are not held off: make "
                "them known, or name their networks instead (nets, or a NetworkSet)"
            )


def _peer(rule: Rule, direction: str) -> Entity:
    """The end of a packet that is not the endpoint itself."""
    return rule.source if direction == "ingress" else rule.destination


def _is_wider(rule: Rule, peer: Entity) -> bool:
    denies = rule.action in (PolicyAction.DENY, PolicyAction.PASS)
    allows = rule.action in (PolicyAction.ALLOW, PolicyAction.PASS)
    return (denies and peer.selector is not None) or (allows and peer.not_selector is not None)
