"""Which policy, profile or end of a tier decides, told by the names and comments that chains of ours bear. Pure.

Invariant: says only what stands in the kernel; what a chain of ours without a comment decides is called "a policy".
Names of chains: ``felixpy.calc.policy.layout`` and ``host_layout``; comments of policies: ``graph``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from felixpy.calc.policy.classes import Direction, Use
from felixpy.calc.policy.policy_rules import END_OF_TIER, NO_PROFILE
from felixpy.explain.packet import Action, Chain, Rule, owner

NO_CLASS = "the interface has no class yet"
NO_POLICY = "no policy, and no profile that denies anything"
UNDECIDED = "no policy and no profile decides"

_PREFIX = "(?:raw-|mangle-|filter-|fpy-)"
_POLICY = re.compile(rf"{_PREFIX}({'|'.join(Use)})-[a-z2-7]{{16}}")
_CLASS = re.compile(rf"{_PREFIX}([tf])-[a-z2-7]{{16}}(?:\.\d+)?")
_DISPATCH = re.compile(rf"{_PREFIX}(from|to)-class(?:-\d+)?")
_DONE = re.compile(rf"{_PREFIX}[te]-done")
_HOST = re.compile(rf"{_PREFIX}(?:host|via)-(in|out)(?:-.*)?")
_FAILSAFE = re.compile(rf"{_PREFIX}failsafe-(in|out)")
_WORDS = {"accept": "allows", "goto": "allows", "drop": "denies", "reject": "denies", "return": "passes"}
_INWARD = frozenset({"t", "to", "in"})


class Decision(NamedTuple):
    """``who`` is a policy with its tier, a profile, or an end; ``did``: allows, denies, or passes to the next tier."""

    direction: Direction
    who: str
    did: str

    def __str__(self) -> str:
        return f"{self.who} ({self.direction})"


class Said(NamedTuple):
    """What one policy says of a packet, whether it is asked or another one has decided before; ``rule``: by which rule.

    ``did``: allows, denies, passes, or nothing.
    """

    direction: Direction
    who: str
    did: str
    rule: str = ""

    def __str__(self) -> str:
        return f"{self.who} ({self.direction})"


def asks(table: str, chain: Chain) -> bool:
    """Whether a chain of ours asks policies in order."""
    is_ours = owner(table, chain.name) == "felixpy"
    return is_ours and bool(_CLASS.fullmatch(chain.name) or _HOST.fullmatch(chain.name))


def said(chain: Chain, kind: str, rule: str) -> Said | None:
    """What a policy's chain says by an action of this kind, empty if by none; None if it is no policy's."""
    found = _POLICY.fullmatch(chain.name)
    if not found:
        return None
    who = (chain.rules[0].comment if chain.rules else "") or f"a policy or profile without rules ({chain.name})"
    return Said(Use(found[1]).direction, who, _WORDS.get(kind, "nothing"), rule)


def decision(table: str, chain: Chain, rule: Rule, action: Action) -> Decision | None:
    """What a rule of a chain decides by an action; None if it is no matter of policy."""
    did = _WORDS.get(action.kind)
    if did is None or owner(table, chain.name) != "felixpy":
        return None
    if found := _POLICY.fullmatch(chain.name):
        return Decision(Use(found[1]).direction, chain.rules[0].comment or "a policy", did)
    if did == "passes":
        return None
    if found := _FAILSAFE.fullmatch(chain.name):
        return Decision(_direction(found[1]), "failsafe ports", did)
    if found := _DISPATCH.fullmatch(chain.name):
        if did == "denies":
            return Decision(_direction(found[1]), NO_CLASS, did)
        return Decision(_direction(found[1]), NO_POLICY, did) if _DONE.fullmatch(action.target) else None
    if found := _CLASS.fullmatch(chain.name) or _HOST.fullmatch(chain.name):
        if did == "allows":
            return Decision(_direction(found[1]), UNDECIDED, did) if rule is chain.rules[-1] else None
        is_end = rule.comment.startswith(END_OF_TIER)
        return Decision(_direction(found[1]), rule.comment if is_end else NO_PROFILE, did)
    if rule.comment == "no policy":
        is_inward = chain.name.endswith("-to")
        return Decision(Direction.INGRESS if is_inward else Direction.EGRESS, NO_POLICY, did)
    return None


def _direction(word: str) -> Direction:
    return Direction.INGRESS if word in _INWARD else Direction.EGRESS
