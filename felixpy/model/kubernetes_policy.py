"""Kubernetes' NetworkPolicy and ClusterNetworkPolicy as policies of Calico's form.

All peers are pods (endpoints of the orchestrator ``k8s``) but for ``ipBlock`` and ``networks``. A rule that cannot be
converted as written lets nothing more through: of an Accept nothing is left, of a Deny or Pass a Deny of everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from felixpy.model.header import Header
from felixpy.model.invalid import Ignored, InvalidResource
from felixpy.model.keys import Kind
from felixpy.model.net import quote
from felixpy.model.objects import known_fields, read_struct, report_unknown
from felixpy.model.policy import (
    ANY,
    DEFAULT_TIER,
    NAMESPACE_LABEL,
    NAMESPACE_PREFIX,
    ORCHESTRATOR_LABEL,
    Direction,
    Entity,
    Policy,
    PolicyAction,
    Ports,
    Rule,
)
from felixpy.model.policy_objects import (
    ClusterEgress,
    ClusterIngress,
    ClusterPeer,
    ClusterPolicySpec,
    ClusterPort,
    ClusterProtocol,
    ClusterSubject,
    ClusterTransport,
    EgressObject,
    IngressObject,
    KubernetesPolicySpec,
    LabelSelector,
    PeerObject,
    PodSubject,
    PortObject,
)
from felixpy.model.policy_rules import (
    PROTOCOLS,
    SCTP,
    TCP,
    UDP,
    convert_nets,
    convert_port,
    enforceable,
    merged_ports,
)
from felixpy.model.selectors import ALL, Selector, conjunction, equals, has, is_in, negation, not_in

ORDER = 1000.0
"""Of every NetworkPolicy, which has none: all of them are at one order, where Calico puts them."""

TIERS = {"Admin": "kube-admin", "Baseline": "kube-baseline"}

_PODS = equals(ORCHESTRATOR_LABEL, "k8s")
_ANY_NAMESPACE = has(NAMESPACE_LABEL)


def label_selector(selector: LabelSelector | None, field: str, prefix: str = "") -> Selector:
    """A selector of labels in Kubernetes' form; an empty one is ``all()``.

    Raises:
        InvalidResource
    """
    if selector is None:
        return ALL
    terms = [equals(prefix + label, value) for label, value in sorted((selector.match_labels or {}).items())]
    for index, item in enumerate(selector.match_expressions or ()):
        place = f"{field}.matchExpressions[{index}]"
        if not item.key:
            raise InvalidResource("is missing", field=f"{place}.key")
        label = prefix + item.key
        match item.operator:
            case "In" | "NotIn" if item.values:
                terms.append((is_in if item.operator == "In" else not_in)(label, sorted(set(item.values))))
            case "In" | "NotIn":
                raise InvalidResource(f"are missing for {item.operator}", field=f"{place}.values")
            case "Exists":
                terms.append(has(label))
            case "DoesNotExist":
                terms.append(negation(has(label)))
            case _:
                reason = f"{quote(item.operator or '')} must be In, NotIn, Exists or DoesNotExist"
                raise InvalidResource(reason, field=f"{place}.operator")
    return conjunction(*terms)


def _namespaces(selector: LabelSelector, field: str) -> Selector:
    found = label_selector(selector, field, NAMESPACE_PREFIX)
    return _ANY_NAMESPACE if found.is_all else found


# --- NetworkPolicy -----------------------------------------------------------------------------------------------


def convert_kubernetes_policy(header: Header, ignored: Ignored) -> Policy:
    """NetworkPolicy of ``networking.k8s.io/v1``, and its staged form.

    Raises:
        InvalidResource: whom it is for, or its types, cannot be told.
    """
    key = header.key
    staged = key.kind is Kind.STAGED_KUBERNETES_NETWORK_POLICY
    known = _POLICY if staged else _POLICY - {"stagedAction"}
    report_unknown(header.spec, known, "NetworkPolicy", "spec", ignored)
    spec = read_struct(header.spec, KubernetesPolicySpec, "spec")
    for index, name in enumerate(spec.policy_types or ()):
        if name not in ("Ingress", "Egress"):
            raise InvalidResource(f"{quote(name)} must be Ingress or Egress", field=f"spec.policyTypes[{index}]")
    types = spec.policy_types or (["Ingress", "Egress"] if spec.egress is not None else ["Ingress"])
    problems: list[str] = []

    def ingress(item: object, path: str) -> list[Rule]:
        entry = read_struct(item, IngressObject, path)
        return _rules(entry.peers, "from", entry.ports, Direction.INGRESS, key.namespace, path)

    def egress(item: object, path: str) -> list[Rule]:
        entry = read_struct(item, EgressObject, path)
        return _rules(entry.peers, "to", entry.ports, Direction.EGRESS, key.namespace, path)

    return Policy(
        key=key,
        tier=DEFAULT_TIER,
        order=ORDER,
        subject=conjunction(
            _PODS, label_selector(spec.pod_selector, "spec.podSelector"), equals(NAMESPACE_LABEL, key.namespace)
        ),
        ingress=enforceable(spec.ingress, "spec.ingress", problems, ingress, _allow) if "Ingress" in types else None,
        egress=enforceable(spec.egress, "spec.egress", problems, egress, _allow) if "Egress" in types else None,
        staged=staged,
        problems=tuple(problems),
    )


def _allow(item: object) -> PolicyAction:
    return PolicyAction.ALLOW


def _rules(
    peers: list[PeerObject] | None,
    word: str,
    ports: list[PortObject] | None,
    direction: Direction,
    namespace: str,
    path: str,
) -> list[Rule]:
    entities = [_peer(peer, namespace, f"{path}.{word}[{index}]") for index, peer in enumerate(peers or ())] or [ANY]
    return [
        _allowing(entity, protocol, numbers, names, direction)
        for entity in entities
        for protocol, numbers, names in _ports(ports, path)
    ]


def _allowing(
    peer: Entity,
    protocol: int | None,
    ports: tuple[Ports, ...],
    names: tuple[str, ...],
    direction: Direction,
    action: PolicyAction = PolicyAction.ALLOW,
) -> Rule:
    if direction is Direction.INGRESS:
        source, destination = peer, Entity(ports=ports, named_ports=names)
    else:
        source, destination = ANY, Entity(peer.nets, peer.not_nets, peer.selector, ports=ports, named_ports=names)
    return Rule(action, protocol=protocol, source=source, destination=destination)


def _peer(peer: PeerObject, namespace: str, field: str) -> Entity:
    if peer.ip_block is not None:
        if peer.pod_selector is not None or peer.namespace_selector is not None:
            raise InvalidResource("cannot be used beside selectors", field=f"{field}.ipBlock")
        if not peer.ip_block.cidr:
            raise InvalidResource("is missing", field=f"{field}.ipBlock.cidr")
        return Entity(
            convert_nets([peer.ip_block.cidr], f"{field}.ipBlock.cidr"),
            convert_nets(peer.ip_block.except_, f"{field}.ipBlock.except"),
        )
    if peer.pod_selector is None and peer.namespace_selector is None:
        raise InvalidResource("names no peer", field=field)
    if peer.namespace_selector is None:
        where = equals(NAMESPACE_LABEL, namespace)
    else:
        where = _namespaces(peer.namespace_selector, f"{field}.namespaceSelector")
    return Entity(selector=conjunction(_PODS, label_selector(peer.pod_selector, f"{field}.podSelector"), where))


_AnyPorts = tuple[int | None, tuple[Ports, ...], tuple[str, ...]]


def _ports(objects: list[PortObject] | None, path: str) -> list[_AnyPorts]:
    """Per protocol the ports that are allowed: none means all of the protocol's."""
    if not objects:
        return [(None, (), ())]
    whole: set[int] = set()
    numbers: dict[int, list[Ports]] = {}
    names: dict[int, list[str]] = {}
    for index, item in enumerate(objects):
        field = f"{path}.ports[{index}]"
        protocol = PROTOCOLS.get((item.protocol or "TCP").lower())
        if protocol not in (TCP, UDP, SCTP):
            raise InvalidResource(f"{quote(item.protocol)} must be TCP, UDP or SCTP", field=f"{field}.protocol")
        numbers.setdefault(protocol, [])
        if item.port is None:
            if item.end_port is not None:
                raise InvalidResource("needs port", field=f"{field}.endPort")
            whole.add(protocol)
            continue
        port = item.port if item.end_port is None else f"{item.port}:{item.end_port}"
        found = convert_port(port, f"{field}.{'port' if item.end_port is None else 'endPort'}")
        if isinstance(found, Ports):
            numbers[protocol].append(found)
        else:
            names.setdefault(protocol, []).append(found)
    return [
        (protocol, (), ())
        if protocol in whole
        else (protocol, merged_ports(numbers[protocol]), tuple(dict.fromkeys(names.get(protocol, ()))))
        for protocol in numbers
    ]


# --- ClusterNetworkPolicy ----------------------------------------------------------------------------------------

_ACTIONS = {"Accept": PolicyAction.ALLOW, "Deny": PolicyAction.DENY, "Pass": PolicyAction.PASS}


def convert_cluster_policy(header: Header, ignored: Ignored) -> Policy:
    """ClusterNetworkPolicy of ``policy.networking.k8s.io``.

    Raises:
        InvalidResource: its tier, priority or subject cannot be told.
    """
    report_unknown(header.spec, _CLUSTER_POLICY, header.key.kind, "spec", ignored)
    spec = read_struct(header.spec, ClusterPolicySpec, "spec")
    tier = TIERS.get(spec.tier or "")
    if tier is None:
        raise InvalidResource(f"{quote(spec.tier or '')} must be Admin or Baseline", field="spec.tier")
    if spec.priority is None or not 0 <= spec.priority <= 1000:
        raise InvalidResource(f"{quote(spec.priority)} must be from 0 to 1000", field="spec.priority")
    problems: list[str] = []

    def ingress(item: object, path: str) -> list[Rule]:
        rule = read_struct(item, ClusterIngress, path)
        return _cluster_rules(rule.action, rule.peers, "from", rule.protocols, Direction.INGRESS, path)

    def egress(item: object, path: str) -> list[Rule]:
        rule = read_struct(item, ClusterEgress, path)
        return _cluster_rules(rule.action, rule.peers, "to", rule.protocols, Direction.EGRESS, path)

    return Policy(
        key=header.key,
        tier=tier,
        order=float(spec.priority),
        subject=_cluster_subject(spec.subject),
        ingress=enforceable(spec.ingress, "spec.ingress", problems, ingress, _action) if spec.ingress else None,
        egress=enforceable(spec.egress, "spec.egress", problems, egress, _action) if spec.egress else None,
        problems=tuple(problems),
    )


def _action(item: object) -> PolicyAction | None:
    return _ACTIONS.get(str(item.get("action"))) if isinstance(item, Mapping) else None


def _cluster_subject(subject: ClusterSubject | None) -> Selector:
    if subject is None or (subject.namespaces is None) is (subject.pods is None):
        raise InvalidResource("must have either namespaces or pods", field="spec.subject")
    if subject.namespaces is not None:
        return conjunction(_PODS, _namespaces(subject.namespaces, "spec.subject.namespaces"))
    assert subject.pods is not None
    return _pods(subject.pods, "spec.subject.pods")


def _pods(pods: PodSubject, field: str) -> Selector:
    for name, selector in (("namespaceSelector", pods.namespace_selector), ("podSelector", pods.pod_selector)):
        if selector is None:
            raise InvalidResource("is missing", field=f"{field}.{name}")
    assert pods.namespace_selector is not None
    return conjunction(
        _PODS,
        label_selector(pods.pod_selector, f"{field}.podSelector"),
        _namespaces(pods.namespace_selector, f"{field}.namespaceSelector"),
    )


def _cluster_rules(
    written: str | None,
    peers: list[ClusterPeer] | None,
    word: str,
    protocols: list[ClusterProtocol] | None,
    direction: Direction,
    path: str,
) -> list[Rule]:
    action = _ACTIONS.get(written or "")
    if action is None:
        raise InvalidResource(f"{quote(written or '')} must be Accept, Deny or Pass", field=f"{path}.action")
    if not peers:
        raise InvalidResource("is missing", field=f"{path}.{word}")
    entities = [_cluster_peer(peer, direction, f"{path}.{word}[{index}]") for index, peer in enumerate(peers)]
    matches = list(_cluster_ports(protocols, path))
    return [
        _allowing(entity, protocol, numbers, names, direction, action)
        for entity in entities
        for protocol, numbers, names in matches
    ]


def _cluster_peer(peer: ClusterPeer, direction: Direction, field: str) -> Entity:
    named = [name for name in ("namespaces", "pods", "networks") if getattr(peer, name) is not None]
    if len(named) != 1:
        raise InvalidResource("must name one of namespaces, pods and networks", field=field)
    if peer.namespaces is not None:
        return Entity(selector=conjunction(_PODS, _namespaces(peer.namespaces, f"{field}.namespaces")))
    if peer.pods is not None:
        return Entity(selector=_pods(peer.pods, f"{field}.pods"))
    if direction is Direction.INGRESS:
        raise InvalidResource("is possible in egress rules only", field=f"{field}.networks")
    if not peer.networks:
        raise InvalidResource("is empty", field=f"{field}.networks")
    return Entity(nets=convert_nets(peer.networks, f"{field}.networks"))


def _cluster_ports(protocols: list[ClusterProtocol] | None, path: str) -> Iterable[_AnyPorts]:
    if not protocols:
        yield None, (), ()
    for index, item in enumerate(protocols or ()):
        field = f"{path}.protocols[{index}]"
        transports = [(TCP, "tcp", item.tcp), (UDP, "udp", item.udp), (SCTP, "sctp", item.sctp)]
        chosen = [(number, name, found) for number, name, found in transports if found is not None]
        if len(chosen) + (item.destination_named_port is not None) != 1:
            raise InvalidResource("must name one of tcp, udp, sctp and destinationNamedPort", field=field)
        if item.destination_named_port is not None:
            name = convert_port(item.destination_named_port, f"{field}.destinationNamedPort")
            if isinstance(name, Ports):
                raise InvalidResource("must be a name", field=f"{field}.destinationNamedPort")
            yield None, (), (name,)
        for number, name, transport in chosen:
            yield number, _cluster_port(transport, f"{field}.{name}"), ()


def _cluster_port(transport: ClusterTransport, field: str) -> tuple[Ports, ...]:
    port: ClusterPort | None = transport.destination_port
    if port is None:
        return ()
    field = f"{field}.destinationPort"
    if (port.number is None) is (port.range is None):
        raise InvalidResource("must have either number or range", field=field)
    if port.number is not None:
        first = last = port.number
    else:
        assert port.range is not None
        if port.range.start is None or port.range.end is None:
            raise InvalidResource("must have start and end", field=f"{field}.range")
        first, last = port.range.start, port.range.end
    if not 0 < first <= last < 65536:
        raise InvalidResource("must be from 1 to 65535, the smaller number first", field=field)
    return (Ports(first, last),)


_POLICY = known_fields(KubernetesPolicySpec)
_CLUSTER_POLICY = known_fields(ClusterPolicySpec)

CONVERT = {
    Kind.KUBERNETES_NETWORK_POLICY: convert_kubernetes_policy,
    Kind.STAGED_KUBERNETES_NETWORK_POLICY: convert_kubernetes_policy,
    Kind.CLUSTER_NETWORK_POLICY: convert_cluster_policy,
}
