"""The rules of a policy or profile as conjunctions for one family. Pure.

What a list offers as alternatives becomes a rule each: a selector that also matches prefixes is two sets, ports by
number and by name are two matches. Invariant: the rules together match what the written rule matches, no packet is
logged by two of them, and a rule that can match nothing in the family is not there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from felixpy.calc.policy.classes import ANYWHERE, PolicyRule, Side
from felixpy.calc.policy.sets import without_covered
from felixpy.model.net import Family, Net
from felixpy.model.policy import ANY, Entity, PolicyAction, Rule, ServiceName
from felixpy.model.policy_rules import merged_ports
from felixpy.model.selectors import Selector


class Sets(Protocol):
    """Names of the sets that rules need; asking for one makes it."""

    def selector(self, selector: Selector, family: Family) -> tuple[str, str]:
        """The set of addresses, and that of prefixes: empty if there is none."""

    def ports(self, selector: Selector | None, protocol: int, names: tuple[str, ...]) -> str: ...

    def service(self, service: ServiceName, *, ports: bool) -> str: ...

    def nets(self, nets: tuple[Net, ...]) -> str: ...


def is_unconditional(rule: Rule) -> bool:
    """Whether a rule matches every packet."""
    return rule == Rule(rule.action, position=rule.position)


def rules_of(rules: tuple[Rule, ...], family: Family, sets: Sets, log_prefix: str) -> tuple[PolicyRule, ...]:
    """What is left of the rules for a family."""
    found: list[PolicyRule] = []
    for rule in rules:
        found += _rules(rule, family, sets, log_prefix)
        if is_unconditional(rule) and rule.action is not PolicyAction.LOG:
            break  # nothing comes so far
    return tuple(found)


def _rules(rule: Rule, family: Family, sets: Sets, log_prefix: str) -> Iterator[PolicyRule]:
    if rule.family not in (None, family) or not all(
        _has_family(end, family) for end in (rule.source, rule.destination)
    ):
        return
    is_log = rule.action is PolicyAction.LOG
    prefix = log_prefix if is_log else ""
    for source in _sides(rule.source, rule.protocol, family, sets, is_source=True, apart=is_log):
        for destination in _sides(rule.destination, rule.protocol, family, sets, is_source=False, apart=is_log):
            yield PolicyRule(
                rule.action,
                rule.protocol,
                rule.not_protocol,
                rule.icmp,
                rule.not_icmp,
                source,
                destination,
                prefix,
                rule.position,
            )


def _has_family(entity: Entity, family: Family) -> bool:
    """A list of prefixes of which none is of the family, or that leaves nothing of it, matches nothing there."""
    for nets in (entity.nets, entity.not_nets):
        if nets and not any(net.family is family for net in nets):
            return False
    return not any(net.family is family and not net.length for net in entity.not_nets)


def _sides(
    entity: Entity, protocol: int | None, family: Family, sets: Sets, *, is_source: bool, apart: bool
) -> list[Side]:
    """The alternatives of one end; ``apart``: none matches what another one does."""
    if entity == ANY:
        return [ANYWHERE]
    nets = _of(entity.nets, family)
    not_nets = _of(entity.not_nets, family)
    base = ANYWHERE
    if len(nets) == 1:
        base = base._replace(nets=nets)
    elif nets:
        base = base._replace(sets=(sets.nets(nets),))
    if len(not_nets) == 1:
        base = base._replace(not_nets=not_nets)
    elif not_nets:
        base = base._replace(not_sets=(sets.nets(not_nets),))
    if entity.not_selector is not None:
        unwanted = tuple(name for name in sets.selector(entity.not_selector, family) if name)
        base = base._replace(not_sets=base.not_sets + unwanted)
    if entity.service is not None and is_source:
        base = base._replace(sets=(*base.sets, sets.service(entity.service, ports=False)))
    elif entity.service is not None:
        base = base._replace(port_sets=(sets.service(entity.service, ports=True),))
    if entity.not_ports:
        base = base._replace(not_ports=merged_ports(entity.not_ports))
    if entity.not_named_ports:
        base = base._replace(
            not_port_sets=(sets.ports(entity.selector, protocol or 0, tuple(sorted(entity.not_named_ports))),)
        )
    return [
        end
        for side in _by_ports(base, entity, protocol, sets, apart=apart)
        for end in _by_selector(side, entity, family, sets, apart=apart)
    ]


def _of(nets: tuple[Net, ...], family: Family) -> tuple[Net, ...]:
    return without_covered(net for net in nets if net.family is family)


def _by_ports(base: Side, entity: Entity, protocol: int | None, sets: Sets, *, apart: bool) -> list[Side]:
    numbers = merged_ports(entity.ports)
    if not entity.named_ports:
        return [base._replace(ports=numbers)] if numbers else [base]
    named = sets.ports(entity.selector, protocol or 0, tuple(sorted(entity.named_ports)))
    by_name = base._replace(port_sets=(*base.port_sets, named))
    if not numbers:
        return [by_name]
    if apart:
        by_name = by_name._replace(not_ports=merged_ports((*base.not_ports, *numbers)))
    return [base._replace(ports=numbers), by_name]


def _by_selector(side: Side, entity: Entity, family: Family, sets: Sets, *, apart: bool) -> list[Side]:
    if entity.selector is None or (entity.named_ports and not entity.ports):
        return [side]  # the named ports are those of endpoints that the selector matches
    hosts, prefixes = sets.selector(entity.selector, family)
    found = [side._replace(sets=(*side.sets, hosts))]
    if prefixes:
        others = (*side.not_sets, hosts) if apart else side.not_sets
        found.append(side._replace(sets=(*side.sets, prefixes), not_sets=others))
    return found
