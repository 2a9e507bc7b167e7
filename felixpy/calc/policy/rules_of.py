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
from felixpy.model.net import FAMILIES, Family, Net
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
    return rule.source == ANY and rule == Rule(rule.action, position=rule.position)


def rules_of(rules: tuple[Rule, ...], sets: Sets, log_prefix: str) -> dict[Family, tuple[PolicyRule, ...]]:
    """What is left of the rules for each family. What is the same for all of them is the same object."""
    found: dict[Family, list[PolicyRule]] = {family: [] for family in FAMILIES}
    for rule in rules:
        some: list[PolicyRule] | None = None
        for family, of_family in found.items():
            if some is None or _depends_on_family(rule, sets):
                some = list(_rules(rule, family, sets, log_prefix))
            of_family += some
        if is_unconditional(rule) and rule.action is not PolicyAction.LOG:
            break  # nothing comes so far
    return {family: tuple(some) for family, some in found.items()}


def _depends_on_family(rule: Rule, sets: Sets) -> bool:
    ends = [end for end in (rule.source, rule.destination) if end != ANY]
    if rule.family is not None or any(end.nets or end.not_nets for end in ends):
        return True
    asked = [one for end in ends for one in (end.selector if _is_asked(end) else None, end.not_selector)]
    return any(len({sets.selector(one, family) for family in FAMILIES}) > 1 for one in asked if one is not None)


def _is_asked(entity: Entity) -> bool:
    """Whether the selector is: with named ports alone, they are those of the endpoints that it matches."""
    return not entity.named_ports or bool(entity.ports)


def _rules(rule: Rule, family: Family, sets: Sets, log_prefix: str) -> Iterator[PolicyRule]:
    if rule.family not in (None, family) or not (
        _has_family(rule.source, family) and _has_family(rule.destination, family)
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
    if not (entity.nets or entity.not_nets):
        return True
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
    nets, not_nets = _of(entity.nets, family), _of(entity.not_nets, family)
    in_sets: tuple[str, ...] = (sets.nets(nets),) if len(nets) > 1 else ()
    in_port_sets: tuple[str, ...] = ()
    not_sets: tuple[str, ...] = (sets.nets(not_nets),) if len(not_nets) > 1 else ()
    if entity.not_selector is not None:
        not_sets += tuple(name for name in sets.selector(entity.not_selector, family) if name)
    if entity.service is not None and is_source:
        in_sets += (sets.service(entity.service, ports=False),)
    elif entity.service is not None:
        in_port_sets = (sets.service(entity.service, ports=True),)
    not_port_sets: tuple[str, ...] = ()
    if entity.not_named_ports:
        not_port_sets = (sets.ports(entity.selector, protocol or 0, tuple(sorted(entity.not_named_ports))),)
    base = Side(
        nets=nets if len(nets) == 1 else (),
        not_nets=not_nets if len(not_nets) == 1 else (),
        sets=in_sets,
        not_sets=not_sets,
        ports=merged_ports(entity.ports),
        not_ports=merged_ports(entity.not_ports),
        port_sets=in_port_sets,
        not_port_sets=not_port_sets,
    )
    by_ports = _with_named_ports(base, entity, protocol, sets, apart=apart) if entity.named_ports else [base]
    return [end for side in by_ports for end in _by_selector(side, entity, family, sets, apart=apart)]


def _of(nets: tuple[Net, ...], family: Family) -> tuple[Net, ...]:
    return without_covered(net for net in nets if net.family is family) if nets else ()


def _with_named_ports(base: Side, entity: Entity, protocol: int | None, sets: Sets, *, apart: bool) -> list[Side]:
    """Ports by number and ports by name are alternatives."""
    named = sets.ports(entity.selector, protocol or 0, tuple(sorted(entity.named_ports)))
    by_name = base._replace(ports=(), port_sets=(*base.port_sets, named))
    if not base.ports:
        return [by_name]
    if apart:
        by_name = by_name._replace(not_ports=merged_ports((*base.not_ports, *base.ports)))
    return [base, by_name]


def _by_selector(side: Side, entity: Entity, family: Family, sets: Sets, *, apart: bool) -> list[Side]:
    if entity.selector is None or not _is_asked(entity):
        return [side]
    hosts, prefixes = sets.selector(entity.selector, family)
    found = [side._replace(sets=(*side.sets, hosts))]
    if prefixes:
        others = (*side.not_sets, hosts) if apart else side.not_sets
        found.append(side._replace(sets=(*side.sets, prefixes), not_sets=others))
    return found
