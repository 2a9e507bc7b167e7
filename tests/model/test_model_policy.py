"""Policies and their kin: what is made of each field, and what is left of a rule that cannot be enforced."""

from __future__ import annotations

from typing import Any

import pytest

from felixpy.model.invalid import InvalidResource
from felixpy.model.net import Family, Net
from felixpy.model.parse import parse_resource
from felixpy.model.policy import (
    EndOfTier,
    EndpointPort,
    EndpointSlice,
    Entity,
    HostEndpoint,
    Icmp,
    NetworkSet,
    Policy,
    PolicyAction,
    Ports,
    Profile,
    Rule,
    ServiceName,
    SlicePort,
    Tier,
)
from felixpy.model.resources import WorkloadEndpoint

VERSIONS = {"kns": "networking.k8s.io/v1", "cnp": "policy.networking.k8s.io/v1alpha2"}


def made(kind: str, spec: object = None, *, version: str = "projectcalico.org/v3", **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": "p", **metadata}, "spec": spec}


def policy(spec: dict[str, Any], *, namespace: str = "") -> Policy:
    kind = "NetworkPolicy" if namespace else "GlobalNetworkPolicy"
    found = parse_resource(made(kind, spec, **({"namespace": namespace} if namespace else {})))
    assert isinstance(found, Policy)
    return found


def rule(raw: dict[str, Any], *, namespace: str = "", direction: str = "ingress") -> Rule:
    found = policy({direction: [raw]}, namespace=namespace)
    assert not found.problems, found.problems
    rules = found.ingress if direction == "ingress" else found.egress
    assert rules is not None and len(rules) == 1
    return rules[0]


def source(raw: dict[str, Any], *, namespace: str = "", **fields: Any) -> Entity:
    return rule({"action": "Allow", "source": raw, **fields}, namespace=namespace).source


def texts(entity: Entity) -> tuple[str | None, str | None]:
    return (
        entity.selector.text if entity.selector else None,
        entity.not_selector.text if entity.not_selector else None,
    )


ALLOW, DENY = {"action": "Allow"}, {"action": "Deny"}


@pytest.mark.parametrize(
    ("spec", "ingress", "egress"),
    [
        ({}, True, False),
        ({"ingress": [ALLOW]}, True, False),
        ({"egress": [ALLOW]}, False, True),
        ({"ingress": [ALLOW], "egress": [ALLOW]}, True, True),
        ({"types": ["Egress"]}, False, True),
        ({"types": ["Egress"], "ingress": [ALLOW]}, False, True),
        ({"preDNAT": True, "applyOnForward": True}, True, False),
    ],
)
def test_directions_of_a_policy(spec: dict[str, Any], ingress: bool, egress: bool) -> None:
    found = policy(spec)
    assert (found.ingress is not None, found.egress is not None) == (ingress, egress)


@pytest.mark.parametrize(
    ("spec", "namespace", "subject"),
    [
        ({}, "", "all()"),
        ({"selector": "a == 'b'"}, "", "a == 'b'"),
        ({}, "x", "projectcalico.org/namespace == 'x'"),
        ({"selector": "a == 'b' || has(c)"}, "x", "(a == 'b' || has(c)) && projectcalico.org/namespace == 'x'"),
        ({"namespaceSelector": "all()"}, "", "has(projectcalico.org/namespace)"),
        ({"selector": "all()", "namespaceSelector": "team != 'red'"}, "", "pcns.team != 'red'"),
        ({"serviceAccountSelector": "level == 'high'"}, "x",
         "pcsa.level == 'high' && projectcalico.org/namespace == 'x'"),
    ],
)  # fmt: skip
def test_whom_a_policy_is_for(spec: dict[str, Any], namespace: str, subject: str) -> None:
    assert policy(spec, namespace=namespace).subject.text == subject


OWN = "projectcalico.org/namespace == 'x'"


@pytest.mark.parametrize(
    ("raw", "namespace", "selector", "unwanted"),
    [
        ({}, "x", None, None),
        ({"nets": ["10.0.0.0/8"]}, "x", None, None),
        ({"selector": "a == 'b'"}, "", "a == 'b'", None),
        ({"selector": "all()"}, "", "all()", None),
        ({"selector": "a == 'b'"}, "x", f"{OWN} && a == 'b'", None),
        ({"notSelector": "a == 'b'"}, "", None, "a == 'b'"),
        ({"notSelector": "a == 'b'"}, "x", f"{OWN} && !a == 'b'", None),
        ({"selector": "has(c)", "notSelector": "a == 'b' || has(d)"}, "", "has(c) && !(a == 'b' || has(d))", None),
        ({"namespaceSelector": "t == '1'"}, "x", "pcns.t == '1'", None),
        ({"namespaceSelector": "all()", "selector": "a == 'b'"}, "x", "has(projectcalico.org/namespace) && a == 'b'",
         None),
        ({"namespaceSelector": "global()"}, "x", "!has(projectcalico.org/namespace)", None),
        ({"serviceAccounts": {"names": ["s", "t"]}}, "x", f"{OWN} && projectcalico.org/serviceaccount in {{'s', 't'}}",
         None),
        ({"serviceAccounts": {"names": ["s"], "selector": "l == '1'"}}, "",
         "projectcalico.org/serviceaccount in {'s'} && pcsa.l == '1'", None),
    ],
)  # fmt: skip
def test_whom_a_rule_means(raw: dict[str, Any], namespace: str, selector: str | None, unwanted: str | None) -> None:
    assert texts(source(raw, namespace=namespace)) == (selector, unwanted)


def test_fields_of_a_rule() -> None:
    found = rule(
        {
            "action": "Pass",
            "ipVersion": 6,
            "protocol": "tcp",
            "notProtocol": 132,
            "source": {"nets": ["10.1.2.3/8"], "notNets": ["10.1.0.0/16"], "notPorts": ["80:90", "web"]},
            "destination": {"ports": [80, "443", "1:2", "web"]},
        }
    )
    assert found == Rule(
        PolicyAction.PASS,
        Family.V6,
        6,
        132,
        source=Entity(
            nets=(Net.parse("10.0.0.0/8"),),
            not_nets=(Net.parse("10.1.0.0/16"),),
            not_ports=(Ports(80, 90),),
            not_named_ports=("web",),
        ),
        destination=Entity(ports=(Ports(80, 80), Ports(443, 443), Ports(1, 2)), named_ports=("web",)),
    )
    assert rule({"action": "Log", "protocol": "ICMP", "icmp": {"type": 8, "code": 0}}).icmp == Icmp(8, 0)
    found = rule({"action": "Deny", "protocol": "ICMPv6", "notICMP": {"type": 128}})
    assert (found.family, found.not_icmp) == (Family.V6, Icmp(128))
    found = rule({"action": "Allow", "source": {"services": {"name": "web"}}}, namespace="y")
    assert found.source.service == ServiceName("y", "web")


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ({"protocol": "QUIC"}, "protocol"),
        ({"protocol": 0}, "protocol"),
        ({"protocol": "300"}, "protocol"),
        ({"destination": {"ports": [80]}}, "destination.ports"),
        ({"protocol": "ICMP", "destination": {"ports": ["web"]}}, "destination.ports"),
        ({"protocol": "TCP", "source": {"ports": ["90:80"]}}, "source.ports[0]"),
        ({"protocol": "TCP", "source": {"ports": [65536]}}, "source.ports[0]"),
        ({"protocol": "TCP", "icmp": {"type": 8}}, "protocol"),
        ({"protocol": "ICMP", "icmp": {"code": 8}}, "icmp.type"),
        ({"protocol": "ICMP", "icmp": {"type": 255}}, "icmp.type"),
        ({"protocol": "ICMP", "ipVersion": 6}, "ipVersion"),
        ({"ipVersion": 5}, "ipVersion"),
        ({"source": {"nets": ["10.0.0.0/33"]}}, "source.nets[0]"),
        ({"source": {"selector": "a ="}}, "source.selector"),
        ({"source": {"selector": "global()"}}, "source.selector"),
        ({"source": {"namespaceSelector": "global() || a == 'b'"}}, "source.namespaceSelector"),
        ({"source": {"services": {"name": "web"}}}, "source.services.namespace"),
        ({"destination": {"services": {"name": "web", "namespace": "x"}}}, "destination.services"),
        ({"source": {"services": {"name": "w", "namespace": "x"}, "nets": ["10.0.0.0/8"]}}, "source.nets"),
        ({"source": {"domains": ["example.org"]}}, "source.domains"),
        ({"later": 1}, "later"),
        ({"source": {"nets": "10.0.0.0/8"}}, "source.nets"),
    ],
)
def test_a_rule_that_cannot_be_enforced_lets_nothing_more_through(raw: dict[str, Any], field: str) -> None:
    place = ".".join(part for part in ("spec.ingress[1]", field) if part)
    for action, left in (("Allow", []), ("Log", []), ("Deny", [Rule(PolicyAction.DENY, position=1)])):
        found = policy({"ingress": [DENY, {"action": action, **raw}, ALLOW]})
        assert found.ingress == (
            Rule(PolicyAction.DENY), *left, Rule(PolicyAction.ALLOW, position=2),
        )  # fmt: skip
        (problem,) = found.problems
        assert problem.startswith(f"{place}: ")
        assert problem.endswith("the rule is left out" if not left else "the rule denies everything")
    assert policy({"ingress": [{"action": "Pass", **raw}]}).ingress == (Rule(PolicyAction.DENY),)


@pytest.mark.parametrize("raw", [None, 3, [], {}, {"action": "Accept"}, {"action": 7}])
def test_what_is_no_rule_denies(raw: object) -> None:
    found = policy({"ingress": [raw]})
    assert found.ingress == (Rule(PolicyAction.DENY),)
    assert len(found.problems) == 1


def test_a_match_of_http_is_named_as_not_enforced() -> None:
    found = policy({"ingress": [{"action": "Allow", "protocol": "TCP", "http": {"methods": ["GET"]}}]})
    assert found.ingress == (Rule(PolicyAction.ALLOW, protocol=6),)
    (problem,) = found.problems
    assert problem.startswith("spec.ingress[0].http: is not enforced")


@pytest.mark.parametrize(
    ("kind", "spec", "field"),
    [
        ("GlobalNetworkPolicy", {"selector": "a ="}, "spec.selector"),
        ("GlobalNetworkPolicy", {"selector": 3}, "spec.selector"),
        ("GlobalNetworkPolicy", {"namespaceSelector": "global()"}, "spec.namespaceSelector"),
        ("GlobalNetworkPolicy", {"types": ["ingress"]}, "spec.types[0]"),
        ("GlobalNetworkPolicy", {"order": "1"}, "spec.order"),
        ("GlobalNetworkPolicy", {"doNotTrack": True}, "spec.doNotTrack"),
        ("GlobalNetworkPolicy", {"preDNAT": True, "doNotTrack": True, "applyOnForward": True}, "spec.preDNAT"),
        ("GlobalNetworkPolicy", {"preDNAT": True, "applyOnForward": True, "types": ["Egress"]}, "spec.preDNAT"),
        ("GlobalNetworkPolicy", {"ingress": {}}, "spec.ingress"),
        ("Tier", {"defaultAction": "Allow"}, "spec.defaultAction"),
        ("HostEndpoint", {"node": "n1"}, "spec.interfaceName"),
        ("HostEndpoint", {"interfaceName": "eth0"}, "spec.node"),
        ("HostEndpoint", {"node": "n1", "expectedIPs": ["10.0.0.0/8"]}, "spec.expectedIPs[0]"),
    ],
)
def test_what_is_refused_as_a_whole(kind: str, spec: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidResource) as caught:
        parse_resource(made(kind, spec))
    assert caught.value.field == field


def test_tiers_and_those_that_are_built_in() -> None:
    found = parse_resource(made("Tier", {"order": 5, "defaultAction": "Pass"}))
    assert isinstance(found, Tier) and (found.order, found.end) == (5, EndOfTier.PASS)
    found = parse_resource(made("Tier", {}, name="default"))
    assert isinstance(found, Tier) and (found.order, found.end) == (1_000_000, EndOfTier.DENY)
    for spec in ({"order": 1}, {"defaultAction": "Pass"}):
        with pytest.raises(InvalidResource):
            parse_resource(made("Tier", spec, name="default"))


def test_profiles_from_three_kinds() -> None:
    found = parse_resource(made("Profile", {"ingress": [ALLOW], "labelsToApply": {"a": "b"}}))
    assert isinstance(found, Profile)
    assert (found.name, found.ingress, found.egress, found.labels) == ("p", (Rule(PolicyAction.ALLOW),), (), {"a": "b"})
    found = parse_resource({**made("Namespace", {"finalizers": []}, version="v1", labels={"t": "1"}), "status": {}})
    assert isinstance(found, Profile)
    assert (found.name, found.ingress, found.egress) == ("kns.p", *2 * ((Rule(PolicyAction.ALLOW),),))
    assert found.labels == {"pcns.t": "1", "pcns.projectcalico.org/name": "p"}
    found = parse_resource({**made("ServiceAccount", version="v1", namespace="x", labels={"t": "1"}), "secrets": []})
    assert isinstance(found, Profile)
    assert (found.name, found.ingress, found.egress) == ("ksa.x.p", (), ())
    assert found.labels == {"pcsa.t": "1", "pcsa.projectcalico.org/name": "p"}


def test_labels_cannot_say_what_only_a_namespace_says() -> None:
    labels = {"pcns.team": "red", "pcsa.x": "1", "projectcalico.org/namespace": "other", "app": "web"}
    spec = {
        "node": "n1", "interfaceName": "cali1", "orchestrator": "k8s", "serviceAccountName": "s",
        "profiles": ["kns.x", "ksa.x.s"],
        "ports": [{"name": "web", "protocol": "UDP", "port": 80}, {"hostPort": 1, "port": 2, "protocol": "TCP"}],
    }  # fmt: skip
    found = parse_resource(made("WorkloadEndpoint", spec, namespace="x", labels=labels))
    assert isinstance(found, WorkloadEndpoint)
    assert found.labels == {
        "app": "web", "projectcalico.org/namespace": "x", "projectcalico.org/orchestrator": "k8s",
        "projectcalico.org/serviceaccount": "s",
    }  # fmt: skip
    assert found.profiles == ("kns.x", "ksa.x.s")
    assert found.ports == (EndpointPort("web", 17, 80),)
    for kind, namespace in (("NetworkSet", {"namespace": "x"}), ("GlobalNetworkSet", {})):
        network_set = parse_resource(made(kind, {"nets": ["10.0.0.1/8", "nonsense"]}, labels=labels, **namespace))
        assert isinstance(network_set, NetworkSet)
        own = {"projectcalico.org/namespace": "x"} if namespace else {}
        assert network_set.labels == {"app": "web", **own}
        assert network_set.profiles == (("kns.x",) if namespace else ())
        assert network_set.nets == (Net.parse("10.0.0.0/8"),)
        assert network_set.problems[0].startswith("spec.nets[1]: ")


def test_host_endpoints() -> None:
    spec = {"node": "n1", "interfaceName": "*", "expectedIPs": ["10.0.0.1", "fd00::1"], "profiles": ["a"]}
    found = parse_resource(made("HostEndpoint", spec, labels={"a": "b"}))
    assert isinstance(found, HostEndpoint)
    assert (found.node, found.interface, found.profiles, found.labels) == ("n1", "*", ("a",), {"a": "b"})
    assert found.addresses == (Net.parse("10.0.0.1"), Net.parse("fd00::1"))


def test_labels_that_the_classic_form_keeps_in_an_annotation() -> None:
    annotations = {"projectcalico.org/metadata": '{"labels":{"a":"b"},"uid":"1"}'}
    obj = made("GlobalNetworkSet", {"nets": []}, version="crd.projectcalico.org/v1", annotations=annotations)
    found = parse_resource(obj)
    assert isinstance(found, NetworkSet) and found.labels == {"a": "b"}
    obj["metadata"]["annotations"] = {"projectcalico.org/metadata": "{"}
    with pytest.raises(InvalidResource):
        parse_resource(obj)


def test_endpoint_slices() -> None:
    obj = {
        **made("EndpointSlice", version="discovery.k8s.io/v1", namespace="x",
               labels={"kubernetes.io/service-name": "web"}),
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": False}}, {"addresses": ["10.0.0.2"]}],
        "ports": [{"name": "", "protocol": "UDP", "port": 53}, {"port": 80}],
    }  # fmt: skip
    del obj["spec"]
    found = parse_resource(obj)
    assert isinstance(found, EndpointSlice)
    assert found.service == ServiceName("x", "web")
    assert found.addresses == (Net.parse("10.0.0.1"), Net.parse("10.0.0.2"))
    assert found.ports == (SlicePort(6, 80), SlicePort(17, 53))


# --- Kubernetes --------------------------------------------------------------------------------------------------


def kubernetes(spec: dict[str, Any]) -> Policy:
    found = parse_resource(made("NetworkPolicy", spec, version="networking.k8s.io/v1", namespace="x"))
    assert isinstance(found, Policy)
    return found


K8S = "projectcalico.org/orchestrator == 'k8s'"


def test_a_kubernetes_policy() -> None:
    found = kubernetes(
        {
            "podSelector": {"matchLabels": {"b": "2", "a": "1"}, "matchExpressions": [
                {"key": "c", "operator": "In", "values": ["y", "x"]},
                {"key": "d", "operator": "NotIn", "values": ["z"]},
                {"key": "e", "operator": "Exists"},
                {"key": "f", "operator": "DoesNotExist"},
            ]},
            "ingress": [{"from": [{"podSelector": {}}, {"namespaceSelector": {}},
                                  {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}],
                         "ports": [{"port": 80}, {"port": 81, "endPort": 90}, {"protocol": "UDP"},
                                   {"protocol": "UDP", "port": 5}, {"port": "web"}]}],
        }
    )  # fmt: skip
    assert (found.tier, found.order, found.egress, found.problems) == ("default", 1000, None, ())
    assert found.subject.text == (
        f"{K8S} && a == '1' && b == '2' && c in {{'x', 'y'}} && d not in {{'z'}} && has(e) && !has(f) && {OWN}"
    )
    assert found.ingress is not None
    tcp = Entity(ports=(Ports(80, 90),), named_ports=("web",))
    assert [(r.protocol, r.destination) for r in found.ingress] == 3 * [(6, tcp), (17, Entity())]
    assert [texts(r.source)[0] for r in found.ingress[:4:2]] == [
        f"{K8S} && {OWN}", f"{K8S} && has(projectcalico.org/namespace)",
    ]  # fmt: skip
    assert found.ingress[4].source == Entity(nets=(Net.parse("10.0.0.0/8"),), not_nets=(Net.parse("10.1.0.0/16"),))


@pytest.mark.parametrize(
    ("spec", "ingress", "egress"),
    [
        ({}, (), None),
        ({"egress": []}, (), ()),
        ({"policyTypes": ["Egress"]}, None, ()),
        ({"ingress": [{}]}, (Rule(PolicyAction.ALLOW),), None),
        ({"ingress": [{"from": [], "ports": []}]}, (Rule(PolicyAction.ALLOW),), None),
        ({"ingress": [{"ports": [{}]}]}, (Rule(PolicyAction.ALLOW, protocol=6),), None),
    ],
)
def test_directions_and_empty_parts_of_a_kubernetes_policy(
    spec: dict[str, Any], ingress: tuple[Rule, ...] | None, egress: tuple[Rule, ...] | None
) -> None:
    found = kubernetes({"podSelector": {}, **spec})
    assert (found.ingress, found.egress) == (ingress, egress)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        {"from": [{}]},
        {"from": [{"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}]},
        {"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}}]},
        {"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "later": 1}]}}]},
        {"from": [{"later": {}}]},
        {"ports": [{"protocol": "ICMP"}]},
        {"ports": [{"endPort": 3}]},
        {"ports": [{"port": "web", "endPort": 3}]},
        {"ports": [{"port": 9, "endPort": 3}]},
        {"to": []},
    ],
)
def test_an_entry_that_cannot_be_converted_is_left_out(entry: object) -> None:
    found = kubernetes({"podSelector": {}, "ingress": [entry, {"ports": [{"port": 1}]}]})
    assert found.ingress == (
        Rule(PolicyAction.ALLOW, protocol=6, destination=Entity(ports=(Ports(1, 1),)), position=1),
    )
    assert found.problems[0].startswith("spec.ingress[0]")


def cluster(**spec: Any) -> Policy:
    base = {"tier": "Admin", "priority": 7, "subject": {"namespaces": {}}}
    found = parse_resource(made("ClusterNetworkPolicy", {**base, **spec}, version=VERSIONS["cnp"]))
    assert isinstance(found, Policy)
    return found


def test_a_cluster_policy() -> None:
    team = {"matchLabels": {"team": "red"}}
    found = cluster(
        subject={"pods": {"namespaceSelector": team, "podSelector": {"matchLabels": {"a": "1"}}}},
        ingress=[{"action": "Accept", "from": [{"namespaces": team}], "protocols": [
            {"tcp": {"destinationPort": {"number": 80}}},
            {"udp": {"destinationPort": {"range": {"start": 1, "end": 9}}}},
            {"sctp": {}}, {"destinationNamedPort": "web"}]}],
    )  # fmt: skip
    assert (found.tier, found.order, found.egress, found.problems) == ("kube-admin", 7, None, ())
    assert found.subject.text == f"{K8S} && a == '1' && pcns.team == 'red'"
    assert found.ingress is not None
    assert [(r.protocol, r.destination) for r in found.ingress] == [
        (6, Entity(ports=(Ports(80, 80),))), (17, Entity(ports=(Ports(1, 9),))), (132, Entity()),
        (None, Entity(named_ports=("web",))),
    ]  # fmt: skip
    found = cluster(tier="Baseline", egress=[{"action": "Deny", "to": [{"networks": ["10.0.0.0/8"]}]}])
    assert (found.tier, found.ingress) == ("kube-baseline", None)
    assert found.egress == (Rule(PolicyAction.DENY, destination=Entity(nets=(Net.parse("10.0.0.0/8"),))),)


@pytest.mark.parametrize(
    "peer", [{"nodes": {}}, {"domainNames": ["a"]}, {}, {"networks": ["10.0.0.0/8"]}, {"pods": {"podSelector": {}}}]
)
def test_a_peer_of_a_cluster_policy_that_is_not_known_fails_closed(peer: dict[str, Any]) -> None:
    for action, left in (("Accept", ()), ("Deny", (Rule(PolicyAction.DENY),)), ("Pass", (Rule(PolicyAction.DENY),))):
        found = cluster(ingress=[{"action": action, "from": [{"namespaces": {}}, peer]}])
        assert found.ingress == left
        assert found.problems


@pytest.mark.parametrize(
    "spec",
    [
        {"tier": "Other"},
        {"priority": None},
        {"priority": 1001},
        {"subject": None},
        {"subject": {"namespaces": {}, "pods": {}}},
    ],
)
def test_a_cluster_policy_that_is_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(InvalidResource):
        cluster(**spec)


@pytest.mark.parametrize("kind", ["StagedNetworkPolicy", "StagedGlobalNetworkPolicy", "StagedKubernetesNetworkPolicy"])
def test_staged_policies_are_read_and_marked(kind: str) -> None:
    namespace = {} if "Global" in kind else {"namespace": "x"}
    found = parse_resource(made(kind, {"stagedAction": "Set", "ingress": []}, **namespace))
    assert isinstance(found, Policy) and found.staged
