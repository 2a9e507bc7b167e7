"""Rules of Calico's policies and profiles: from the v3 object to what is enforced.

A rule that cannot be enforced as it is written never lets more through than it says: of Deny and Pass a Deny of
everything is left, of Allow and Log nothing, and ``problems`` says so. Invariant: no rule raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

from msgspec.structs import replace

from felixpy.model.invalid import InvalidResource
from felixpy.model.net import Family, Net, quote
from felixpy.model.objects import EndpointPortObject, read_struct
from felixpy.model.policy import (
    ANY,
    NAMESPACE_LABEL,
    NAMESPACE_PREFIX,
    SERVICE_ACCOUNT_LABEL,
    SERVICE_ACCOUNT_PREFIX,
    Direction,
    EndpointPort,
    Entity,
    Icmp,
    PolicyAction,
    Ports,
    Rule,
    ServiceName,
)
from felixpy.model.policy_objects import EntityObject, IcmpObject, RuleObject, ServiceAccounts
from felixpy.model.selectors import ALL, Selector, conjunction, equals, has, is_in, negation, parse_selector

TCP, UDP, SCTP, ICMP, ICMPV6, UDPLITE = 6, 17, 132, 1, 58, 136
PROTOCOLS = {"tcp": TCP, "udp": UDP, "icmp": ICMP, "icmpv6": ICMPV6, "sctp": SCTP, "udplite": UDPLITE}
WITH_PORTS = frozenset({TCP, UDP, SCTP})
ICMP_FAMILY = {ICMP: Family.V4, ICMPV6: Family.V6}


def convert_rules(
    raw: list[object] | None, direction: Direction, namespace: str | None, problems: list[str]
) -> tuple[Rule, ...]:
    """The rules of one direction; ``namespace`` None for what is cluster-wide."""
    return enforceable(
        raw, f"spec.{direction}", problems, lambda item, field: [_rule(item, direction, namespace, field, problems)]
    )


def enforceable(
    raw: list[object] | None,
    path: str,
    problems: list[str],
    convert: Callable[[object, str], list[Rule]],
    action_of: Callable[[object], PolicyAction | None] | None = None,
) -> tuple[Rule, ...]:
    """Rules one by one; what is left of one that cannot be used is decided by its action, None: unknown."""
    rules: list[Rule] = []
    for position, item in enumerate(raw or ()):
        try:
            if not isinstance(item, Mapping):
                raise InvalidResource("must be an object", field=f"{path}[{position}]")
            found = convert(item, f"{path}[{position}]")
        except InvalidResource as error:
            action = (action_of or _written_action)(item)
            if action in (PolicyAction.ALLOW, PolicyAction.LOG):
                problems.append(f"{error}: the rule is left out")
                found = []
            else:
                problems.append(f"{error}: the rule denies everything")
                found = [Rule(PolicyAction.DENY)]
        rules += [replace(rule, position=position) if position else rule for rule in found]
    return tuple(rules)


def _written_action(item: object) -> PolicyAction | None:
    return _ACTIONS.get(str(item.get("action"))) if isinstance(item, Mapping) else None


_ACTIONS = {action.value: action for action in PolicyAction}


def _rule(item: object, direction: Direction, namespace: str | None, path: str, problems: list[str]) -> Rule:
    raw = read_struct(item, RuleObject, path)
    action = _ACTIONS.get(raw.action or "")
    if action is None:
        raise InvalidResource(f"{quote(raw.action or '')} must be {', '.join(PolicyAction)}", field=f"{path}.action")
    protocol = _protocol(raw.protocol, f"{path}.protocol")
    icmp = _icmp(raw.icmp, f"{path}.icmp") if raw.icmp is not None else None
    not_icmp = _icmp(raw.not_icmp, f"{path}.notICMP") if raw.not_icmp is not None else None
    if (icmp or not_icmp) and protocol not in ICMP_FAMILY:
        raise InvalidResource("must be ICMP or ICMPv6 in a rule with icmp or notICMP", field=f"{path}.protocol")
    family = _family(raw, protocol, path)
    rule = Rule(
        action,
        family,
        protocol,
        _protocol(raw.not_protocol, f"{path}.notProtocol") if raw.not_protocol is not None else None,
        icmp,
        not_icmp,
        _entity(raw.source, protocol, namespace, f"{path}.source") if raw.source is not None else ANY,
        _entity(raw.destination, protocol, namespace, f"{path}.destination") if raw.destination is not None else ANY,
    )
    served, other = (
        (rule.source, rule.destination) if direction is Direction.INGRESS else (rule.destination, rule.source)
    )
    if other.service:
        wrong = "destination" if direction is Direction.INGRESS else "source"
        raise InvalidResource(f"cannot be used in {direction} rules", field=f"{path}.{wrong}.services")
    if served.service and direction is Direction.EGRESS and protocol not in (None, *WITH_PORTS):
        raise InvalidResource("must be TCP, UDP or SCTP beside services", field=f"{path}.protocol")
    if raw.http is not None:
        if action is not PolicyAction.ALLOW or direction is not Direction.INGRESS:
            raise InvalidResource("is possible in Allow rules of ingress only", field=f"{path}.http")
        problems.append(f"{path}.http: is not enforced: the rule allows whatever its other fields say")
    return rule


def _family(raw: RuleObject, protocol: int | None, path: str) -> Family | None:
    if raw.ip_version not in (None, 4, 6):
        raise InvalidResource(f"{raw.ip_version} must be 4 or 6", field=f"{path}.ipVersion")
    family = {4: Family.V4, 6: Family.V6}.get(raw.ip_version or 0)
    implied = ICMP_FAMILY.get(protocol or 0)
    if family and implied and family is not implied:
        raise InvalidResource(f"{raw.ip_version} is not the family of that protocol", field=f"{path}.ipVersion")
    return family or implied


def _protocol(value: int | str | None, field: str) -> int | None:
    if value is None or value == "":
        return None
    number = PROTOCOLS.get(value.lower()) if isinstance(value, str) else value
    if number is None and isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 3:
        number = int(value)
    if number is None or not 1 <= number <= 255:
        reason = f"{quote(value)} must be TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite or a number from 1 to 255"
        raise InvalidResource(reason, field=field)
    return number


def port_protocol(value: int | str | None, field: str) -> int:
    """The protocol of a port of an endpoint, TCP if none is named.

    Raises:
        InvalidResource
    """
    number = _protocol(value, field) or TCP
    if number not in WITH_PORTS:
        raise InvalidResource(f"{quote(value)} must be TCP, UDP or SCTP", field=field)
    return number


def endpoint_ports(objects: Iterable[EndpointPortObject], field: str) -> tuple[EndpointPort, ...]:
    """The ports of an endpoint that have names; others are for the hosts' ports only, and those are not ours.

    Raises:
        InvalidResource
    """
    found = []
    for index, port in enumerate(objects):
        protocol = port_protocol(port.protocol, f"{field}[{index}].protocol")
        if port.port is None or not 0 < port.port < 65536:
            raise InvalidResource(f"{quote(port.port)} must be from 1 to 65535", field=f"{field}[{index}].port")
        if port.name:
            found.append(EndpointPort(port.name, protocol, port.port))
    return _shared(tuple(found))


@lru_cache(1 << 12)
def _shared(ports: tuple[EndpointPort, ...]) -> tuple[EndpointPort, ...]:
    """One object for ports that are equal: pods of a deployment are many."""
    return ports


def _icmp(raw: IcmpObject, field: str) -> Icmp | None:
    if raw.type is None and raw.code is None:
        return None
    if raw.type is None:
        raise InvalidResource("is missing beside code", field=f"{field}.type")
    if not 0 <= raw.type <= 254:
        raise InvalidResource(f"{raw.type} must be from 0 to 254", field=f"{field}.type")
    if raw.code is not None and not 0 <= raw.code <= 255:
        raise InvalidResource(f"{raw.code} must be from 0 to 255", field=f"{field}.code")
    return Icmp(raw.type, raw.code)


def _entity(raw: EntityObject, protocol: int | None, namespace: str | None, path: str) -> Entity:
    if raw == _NOTHING:
        return ANY
    ports, named = _ports(raw.ports, protocol, path, "ports")
    not_ports, not_named = _ports(raw.not_ports, protocol, path, "notPorts")
    selector, not_selector = _selectors(raw, namespace, path)
    return Entity(
        convert_nets(raw.nets, f"{path}.nets") if raw.nets else (),
        convert_nets(raw.not_nets, f"{path}.notNets") if raw.not_nets else (),
        selector,
        not_selector,
        _service(raw, namespace, path) if raw.services else None,
        ports,
        named,
        not_ports,
        not_named,
    )


_NOTHING = EntityObject()


def _ports(
    values: list[int | str] | None, protocol: int | None, path: str, field: str
) -> tuple[tuple[Ports, ...], tuple[str, ...]]:
    """Those of a rule, numbers and names, if its protocol has ports."""
    if not values:
        return (), ()
    numbers, names = convert_ports(values, f"{path}.{field}")
    if not (protocol in WITH_PORTS or (protocol is None and not numbers)):
        raise InvalidResource("need the protocol TCP, UDP or SCTP", field=f"{path}.{field}")
    return numbers, names


def convert_nets(texts: list[str] | None, field: str) -> tuple[Net, ...]:
    """Prefixes; host bits are dropped, as Calico does.

    Raises:
        InvalidResource
    """
    found: dict[Net, None] = {}
    for index, text in enumerate(texts or ()):
        try:
            found[Net.parse_masked(text)] = None
        except ValueError as error:
            raise InvalidResource(str(error), field=f"{field}[{index}]") from None
    return tuple(found)


def convert_ports(values: list[int | str] | None, field: str) -> tuple[tuple[Ports, ...], tuple[str, ...]]:
    """Numbers and ranges, and names.

    Raises:
        InvalidResource
    """
    numbers: dict[Ports, None] = {}
    names: dict[str, None] = {}
    for index, value in enumerate(values or ()):
        found = convert_port(value, f"{field}[{index}]")
        if isinstance(found, Ports):
            numbers[found] = None
        else:
            names[found] = None
    return tuple(numbers), tuple(names)


def convert_port(value: int | str, field: str) -> Ports | str:
    """A number, ``first:last`` or a name.

    Raises:
        InvalidResource
    """
    if type(value) is int and 0 <= value <= 65535:
        return Ports(value, value)
    first, colon, last = str(value).partition(":")
    if not colon:
        last = first
    if not all(part.isascii() and part.isdigit() and len(part) <= 5 for part in (first, last)):
        if colon or not isinstance(value, str) or not value or len(value) > 128:
            raise InvalidResource(f"{quote(value)} must be a port, a range like 80:90, or a name", field=field)
        return value
    ports = Ports(int(first), int(last))
    if not 0 <= ports.first <= ports.last <= 65535:
        raise InvalidResource(f"{quote(value)} must be from 0 to 65535, the smaller number first", field=field)
    return ports


def merged_ports(ports: Iterable[Ports]) -> tuple[Ports, ...]:
    """The same ports in as few ranges as possible, in order."""
    merged: list[Ports] = []
    for one in sorted(ports):
        if merged and one.first <= merged[-1].last + 1:
            merged[-1] = Ports(merged[-1].first, max(merged[-1].last, one.last))
        else:
            merged.append(one)
    return tuple(merged)


# --- selectors ---------------------------------------------------------------------------------------------------


def read_selector(text: str | None, field: str) -> Selector | None:
    """A selector of endpoints, None if there is none.

    Raises:
        InvalidResource
    """
    if not text or not text.strip(" \t"):
        return None
    try:
        selector = parse_selector(text)
    except ValueError as error:
        raise InvalidResource(str(error), field=field) from None
    if selector.has_global:
        raise InvalidResource("global() is for namespaceSelector", field=field)
    return selector


def read_namespace_selector(text: str | None, field: str, *, rule: bool) -> Selector | None:
    """A selector of namespaces as one of endpoints. ``all()`` is each that has a namespace, ``global()`` has none.

    Raises:
        InvalidResource
    """
    if not text or not text.strip(" \t"):
        return None
    try:
        selector = parse_selector(text)
    except ValueError as error:
        raise InvalidResource(str(error), field=field) from None
    if selector.is_all:
        return has(NAMESPACE_LABEL)
    if selector.is_global and rule:
        return negation(has(NAMESPACE_LABEL))
    if selector.has_global:
        where = "must stand alone" if rule else "is for rules only"
        raise InvalidResource(f"global() {where}", field=field)
    return selector.prefixed(NAMESPACE_PREFIX)


def read_service_account_selector(text: str | None, field: str) -> Selector | None:
    """A selector of service accounts as one of endpoints.

    Raises:
        InvalidResource
    """
    selector = read_selector(text, field)
    if selector is None:
        return None
    return has(SERVICE_ACCOUNT_LABEL) if selector.is_all else selector.prefixed(SERVICE_ACCOUNT_PREFIX)


def _service_accounts(raw: ServiceAccounts | None, path: str) -> Selector | None:
    if raw is None:
        return None
    named = is_in(SERVICE_ACCOUNT_LABEL, raw.names) if raw.names else None
    selected = read_service_account_selector(raw.selector, f"{path}.selector")
    parts = [part for part in (named, selected) if part is not None]
    return conjunction(*parts) if parts else None


def _selectors(raw: EntityObject, namespace: str | None, path: str) -> tuple[Selector | None, Selector | None]:
    """What endpoints must match, and what they must not.

    In a policy of a namespace the namespace counts as soon as endpoints are asked for in any way.
    """
    if not (raw.selector or raw.not_selector or raw.namespace_selector or raw.service_accounts):
        return None, None
    selector = read_selector(raw.selector, f"{path}.selector")
    unwanted = read_selector(raw.not_selector, f"{path}.notSelector")
    namespaces = read_namespace_selector(raw.namespace_selector, f"{path}.namespaceSelector", rule=True)
    accounts = _service_accounts(raw.service_accounts, f"{path}.serviceAccounts")
    asked = [part for part in (selector, accounts) if part is not None]
    if namespaces is not None:
        asked.insert(0, namespaces)
    elif namespace is not None and (asked or unwanted is not None):
        asked.insert(0, equals(NAMESPACE_LABEL, namespace))
    if not asked:
        return None, unwanted
    return conjunction(*asked, *([] if unwanted is None else [negation(unwanted)])), None


def _service(raw: EntityObject, namespace: str | None, path: str) -> ServiceName | None:
    services = raw.services
    if services is None or not services.name:
        if services is not None and services.namespace:
            raise InvalidResource("is missing beside namespace", field=f"{path}.services.name")
        return None
    for field, value in (
        ("selector", raw.selector),
        ("notSelector", raw.not_selector),
        ("namespaceSelector", raw.namespace_selector),
        ("serviceAccounts", raw.service_accounts),
        ("nets", raw.nets),
        ("notNets", raw.not_nets),
        ("ports", raw.ports),
        ("notPorts", raw.not_ports),
    ):
        if value:
            raise InvalidResource("cannot be used beside services", field=f"{path}.{field}")
    where = services.namespace or namespace
    if not where:
        raise InvalidResource("is missing", field=f"{path}.services.namespace")
    return ServiceName(where, services.name)


def subject(
    selector: Selector | None, namespaces: Selector | None, accounts: Selector | None, namespace: str | None
) -> Selector:
    """Which endpoints a policy is for."""
    parts = [part for part in (selector, namespaces, accounts) if part is not None]
    if namespace is not None:
        parts.append(equals(NAMESPACE_LABEL, namespace))
    return conjunction(*parts) if parts else ALL
