"""The rules of one policy, for one use, as abstract rules. Pure.

Invariant: a rule becomes rules with the same matches, one per action; a match that cannot be said is never left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from felixpy.calc.policy.classes import (
    ANYWHERE,
    Direction,
    EndOfTier,
    PolicyAction,
    PolicyChain,
    PolicyRule,
    Side,
    TierChains,
    Use,
)
from felixpy.calc.rule import (
    Action,
    ChainKey,
    Chains,
    Destination,
    DestinationIn,
    DestinationPortIn,
    Goto,
    Icmp,
    Log,
    Marked,
    Match,
    NoTrack,
    PortIn,
    Protocol,
    Rule,
    SetMark,
    Source,
    SourceIn,
    SourcePortIn,
    Table,
    Verdict,
    jump,
)
from felixpy.calc.rules import RuleSettings
from felixpy.config import PortRange

MAX_LOG_PREFIX = 29  # of the target LOG of iptables, with its final zero byte 30
FORWARD_DONE = "via-done"
END_OF_TIER = "end of tier "
NO_PROFILE = "no profile allows it"
"""Comments of rules that deny what no policy decided, by which they are told from others when they are counted."""


def policy_rules(chain: PolicyChain, settings: RuleSettings) -> tuple[Rule, ...]:
    """The chain of a policy. Its first rule has the policy's name as comment."""
    rules = [rule for one in chain.rules for rule in _rules(one, chain.use, settings)]
    if rules:
        first = rules[0]
        rules[0] = Rule(first.matches, first.action, chain.comment, first.counted)
    return tuple(rules)


def _rules(rule: PolicyRule, use: Use, settings: RuleSettings) -> Iterator[Rule]:
    matches = tuple(_matches(rule))
    if rule.action is PolicyAction.LOG:
        limit = (settings.log_limit,) if settings.log_limit else ()
        yield Rule((*matches, *limit), Log(rule.log_prefix[:MAX_LOG_PREFIX]))
        return
    *first, last = actions(rule.action, use, settings)
    for action in first:
        yield Rule(matches, action)
    decides = rule.action is not PolicyAction.PASS
    yield Rule(matches, last, counted=decides and settings.count_decisions)


def actions(action: PolicyAction, use: Use, settings: RuleSettings) -> tuple[Action, ...]:
    """What a decision becomes in the kernel, by where it is made."""
    marks = settings.marks
    match action:
        case PolicyAction.DENY:
            only_drops = use in (Use.PRE_DNAT, Use.UNTRACKED_INGRESS, Use.UNTRACKED_EGRESS)
            return (Verdict.DROP if only_drops else Verdict(settings.deny),)
        case PolicyAction.PASS:
            return (SetMark(marks.passed, marks.passed), Verdict.RETURN)
        case _:
            pass
    accepted = SetMark(marks.accepted, marks.accepted)
    match use:
        case Use.WORKLOAD_INGRESS:
            return (Goto("t-done"),)
        case Use.WORKLOAD_EGRESS:
            return (Goto("e-done"),)
        case Use.FORWARD_INGRESS:
            return (Goto(FORWARD_DONE),)
        case Use.PRE_DNAT:
            return (accepted, Verdict.ACCEPT)
        case Use.UNTRACKED_INGRESS | Use.UNTRACKED_EGRESS:
            return (NoTrack(), accepted, Verdict.ACCEPT)
        case _:
            return (Verdict.ACCEPT,)


_DECIDING = re.compile(
    rf"({'|'.join(Use)})-[a-z2-7]{{16}}|([tf])-[a-z2-7]{{16}}(?:\.\d+)?|(?:host|via)-(in|out)(?:-.+)?"
)


def direction_of_chain(name: str) -> Direction | None:
    """The direction in which a chain of this name decides, as a policy's, a class's or a host endpoint's."""
    found = _DECIDING.fullmatch(name)
    if found is None:
        return None
    if found[1]:
        return Use(found[1]).direction
    return Direction.INGRESS if found[2] == "t" or found[3] == "in" else Direction.EGRESS


def _matches(rule: PolicyRule) -> Iterator[Match]:
    if rule.protocol is not None and rule.icmp is None and rule.not_icmp is None:
        yield Protocol(rule.protocol)
    if rule.not_protocol is not None:
        yield Protocol(rule.not_protocol, negated=True)
    if rule.icmp is not None:
        yield Icmp(*rule.icmp)
    if rule.not_icmp is not None:
        yield Icmp(*rule.not_icmp, negated=True)
    if rule.source != ANYWHERE:
        yield from _side(rule.source, source=True)
    if rule.destination != ANYWHERE:
        yield from _side(rule.destination, source=False)


def _side(side: Side, *, source: bool) -> Iterator[Match]:
    in_net, in_set, in_ports = (Source, SourceIn, SourcePortIn) if source else (
        Destination, DestinationIn, DestinationPortIn
    )  # fmt: skip
    for net in side.nets:
        yield in_net(net)
    for net in side.not_nets:
        yield in_net(net, True)
    for name in side.sets:
        yield in_set(name)
    for name in side.not_sets:
        yield in_set(name, True)
    if side.ports:
        yield PortIn(tuple(PortRange(*ports) for ports in side.ports), source)
    if side.not_ports:
        yield PortIn(tuple(PortRange(*ports) for ports in side.not_ports), source, negated=True)
    for name in side.port_sets:
        yield in_ports(name)
    for name in side.not_port_sets:
        yield in_ports(name, True)


def tier_chains(
    table: Table,
    name: str,
    tiers: Iterable[TierChains],
    settings: RuleSettings,
    end: Rule | None,
    asked: tuple[Rule, ...] = (),
) -> Chains:
    """A chain that asks tiers in order, with a chain for each that a Pass can leave.

    ``end``: how a tier ends that denies what it did not decide, None if it does not; ``asked`` comes after each chain.
    """
    passed = settings.marks.passed
    chains: Chains = {}
    root: list[Rule] = []
    for index, tier in enumerate(tiers):
        close = () if end is None or tier.end is EndOfTier.PASS else (end._replace(comment=END_OF_TIER + tier.name),)
        if not any(tier.passes):
            root += [rule for chain in tier.chains for rule in (jump(chain), *asked)]
            root += close
            continue
        part = f"{name}.{index}"
        root += [Rule((), SetMark(0, passed)), jump(part), *asked]
        rules: list[Rule] = []
        for chain, passes in zip(tier.chains, tier.passes, strict=True):
            rules += [jump(chain), *asked]
            if passes:
                rules.append(Rule((Marked(passed, passed),), Verdict.RETURN))
        chains[ChainKey(table, part)] = (*rules, *close)
    chains[ChainKey(table, name)] = tuple(root)
    return chains
