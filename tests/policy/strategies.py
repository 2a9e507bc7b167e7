"""Random objects of every kind that policy knows, as users write them, over a small world where things meet.

Every object is valid. There are few labels, addresses and names, so that selectors match, addresses are shared by
several endpoints, prefixes cover each other, and profiles and tiers that are named may be missing.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

Object = dict[str, Any]

NAMESPACES = ("x", "y")
ADDRESSES = ("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.1.1", "192.0.2.1", "fd00::1", "fd00::2", "fd00:1::1")
NETS = ("10.0.0.0/24", "10.0.0.0/30", "10.0.0.2/32", "10.0.0.0/8", "192.0.2.0/24", "fd00::/64", "fd00::/16", "::/0")
NOT_NETS = tuple(net for net in NETS if not net.endswith("/0"))
PORTS = (80, 81, 8080)
PORT_NAMES = ("web", "dns")
LABELS = st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from(["1", "2"]), max_size=2)

CALICO, KUBERNETES, CLUSTER = "projectcalico.org/v3", "networking.k8s.io/v1", "policy.networking.k8s.io/v1alpha2"


def _some(values: Any, most: int = 2, least: int = 0) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(values), min_size=least, max_size=most, unique=True)


def made(version: str, kind: str, name: str, spec: Object, namespace: str = "", labels: Object | None = None) -> Object:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {}), "labels": labels or {}}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}


def _dropping_empty(raw: Object) -> Object:
    return {key: value for key, value in raw.items() if value not in (None, "", [], {})}


_TERMS = (
    "all()", "has(a)", "!has(b)", "a == '1'", "a != '1'", "b in {'1', '2'}", "b not in {'2'}", "a starts with '1'",
    "a == '1' && b == '2'", "a == '2' || has(b)", "!(a == '1' && has(b))",
)  # fmt: skip
SELECTORS = st.sampled_from(
    (*_TERMS, "inherited == 'yes'", "projectcalico.org/namespace == 'x'", "pcns.t == '1' || a == '1'")
)
LABEL_SELECTORS = st.fixed_dictionaries(
    {},
    optional={
        "matchLabels": LABELS,
        "matchExpressions": st.lists(
            st.one_of(
                st.fixed_dictionaries(
                    {
                        "key": st.sampled_from(["a", "b"]),
                        "operator": st.sampled_from(["In", "NotIn"]),
                        "values": _some(["1", "2"], least=1),
                    }
                ),
                st.fixed_dictionaries(
                    {"key": st.sampled_from(["a", "b"]), "operator": st.sampled_from(["Exists", "DoesNotExist"])}
                ),
            ),
            max_size=1,
        ),
    },
)
NAMESPACE_SELECTORS = st.one_of(
    st.just({}), st.fixed_dictionaries({"matchLabels": st.just({"t": "1"})}),
    st.just({"matchExpressions": [{"key": "t", "operator": "NotIn", "values": ["1"]}]}),
)  # fmt: skip


# --- Calico's rules ----------------------------------------------------------------------------------------------


@st.composite
def entities(draw: st.DrawFn, protocol: object, side: str, direction: str, namespaced: bool) -> Object:
    served = side == ("source" if direction == "ingress" else "destination")
    if served and protocol in (None, "TCP", "UDP") and draw(st.integers(0, 9)) == 0:
        return {"services": {"name": "s", "namespace": draw(st.sampled_from(NAMESPACES))}}
    maybe = st.one_of(st.none(), st.none(), SELECTORS)
    raw: Object = {"selector": draw(maybe), "notSelector": draw(st.one_of(st.none(), st.none(), maybe))}
    raw["namespaceSelector"] = draw(
        st.sampled_from([None, None, None, None, "all()", "global()", "t == '1'", "t != '1'"])
    )
    if draw(st.integers(0, 5)) == 0:
        raw["serviceAccounts"] = draw(
            st.sampled_from([{"names": ["s"]}, {"selector": "l == '1'"}, {"selector": "all()"},
                             {"names": ["s", "o"], "selector": "l != '1'"}])
        )  # fmt: skip
    if draw(st.integers(0, 3)) == 0:
        raw["nets"] = draw(_some(NETS, 3, 1))
    if draw(st.integers(0, 3)) == 0:
        raw["notNets"] = draw(_some(NOT_NETS, 3, 1))
    numbers = (80, "81", "79:80", "8000:9000") if protocol in ("TCP", "UDP", 132) else ()
    if protocol in (None, "TCP", "UDP", 132):
        for field in ("ports", "notPorts"):
            if draw(st.integers(0, 3)) == 0:
                raw[field] = draw(_some((*numbers, *PORT_NAMES), 3, 1))
    return _dropping_empty(raw)


@st.composite
def rules(draw: st.DrawFn, direction: str, namespaced: bool = False) -> Object:
    protocol = draw(st.sampled_from([None, None, None, "TCP", "TCP", "UDP", 132, "ICMP", "ICMPv6", 47]))
    raw: Object = {
        "action": draw(st.sampled_from(["Allow", "Allow", "Deny", "Pass", "Log"])),
        "protocol": protocol,
        "source": draw(entities(protocol, "source", direction, namespaced)),
        "destination": draw(entities(protocol, "destination", direction, namespaced)),
    }
    if protocol in ("ICMP", "ICMPv6"):
        for field in ("icmp", "notICMP"):
            raw[field] = draw(st.sampled_from([None, {"type": 8}, {"type": 8, "code": 0}, {"type": 128, "code": 1}]))
    else:
        raw["ipVersion"] = draw(st.sampled_from([None, None, None, 4, 6]))
        raw["notProtocol"] = draw(st.sampled_from([None, None, None, "TCP", 17]))
    return _dropping_empty(raw)


@st.composite
def calico_policies(draw: st.DrawFn, kind: str, name: str, namespace: str = "") -> Object:
    spec: Object = {
        "tier": draw(st.sampled_from([None, None, "t1", "t2", "kube-admin"])),
        "order": draw(st.sampled_from([None, 1, 1, 2.5])),
        "selector": draw(SELECTORS),
        "ingress": draw(st.lists(rules("ingress", bool(namespace)), max_size=3)),
        "egress": draw(st.lists(rules("egress", bool(namespace)), max_size=2)),
        "types": draw(st.sampled_from([None, None, ["Ingress"], ["Egress"], ["Ingress", "Egress"]])),
        "serviceAccountSelector": draw(st.sampled_from([None, None, None, "l == '1'", "all()"])),
    }
    if not namespace:
        spec["namespaceSelector"] = draw(st.sampled_from([None, None, None, "all()", "t == '1'"]))
        spec["applyOnForward"] = draw(st.booleans())
        if draw(st.integers(0, 9)) == 0:
            spec |= {"doNotTrack": True, "applyOnForward": True}
    return made(CALICO, kind, name, _dropping_empty(spec), namespace)


# --- Kubernetes' policies ----------------------------------------------------------------------------------------

_PEERS = st.one_of(
    st.fixed_dictionaries({"podSelector": LABEL_SELECTORS}),
    st.fixed_dictionaries({"namespaceSelector": NAMESPACE_SELECTORS}),
    st.fixed_dictionaries({"podSelector": LABEL_SELECTORS, "namespaceSelector": NAMESPACE_SELECTORS}),
    st.just({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.2/32", "10.0.1.0/24"]}}),
    st.just({"ipBlock": {"cidr": "fd00::/16"}}),
)
_PORTS = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"port": st.sampled_from([80, 81, *PORT_NAMES])}, optional={"protocol": st.just("UDP")}),
    st.sampled_from([{"port": 80, "endPort": 90}, {"protocol": "SCTP"}, {"protocol": "UDP"}]),
)


@st.composite
def kubernetes_policies(draw: st.DrawFn, name: str, namespace: str) -> Object:
    spec: Object = {"podSelector": draw(LABEL_SELECTORS)}
    types = draw(st.sampled_from([None, ["Ingress"], ["Egress"], ["Ingress", "Egress"]]))
    if types:
        spec["policyTypes"] = types
    for direction, word in (("ingress", "from"), ("egress", "to")):
        if draw(st.booleans()):
            spec[direction] = draw(
                st.lists(
                    st.fixed_dictionaries(
                        {}, optional={word: st.lists(_PEERS, max_size=2), "ports": st.lists(_PORTS, max_size=3)}
                    ),
                    max_size=2,
                )
            )
    return made(KUBERNETES, "NetworkPolicy", name, spec, namespace)


_PODS = st.fixed_dictionaries({"namespaceSelector": NAMESPACE_SELECTORS, "podSelector": LABEL_SELECTORS})
_SUBJECTS = st.one_of(
    st.fixed_dictionaries({"namespaces": NAMESPACE_SELECTORS}), st.fixed_dictionaries({"pods": _PODS})
)
_PROTOCOLS = st.sampled_from(
    [{"tcp": {"destinationPort": {"number": 80}}}, {"udp": {"destinationPort": {"range": {"start": 80, "end": 81}}}},
     {"sctp": {}}, {"tcp": {}}, {"destinationNamedPort": "web"}]
)  # fmt: skip


@st.composite
def cluster_policies(draw: st.DrawFn, name: str) -> Object:
    spec: Object = {
        "tier": draw(st.sampled_from(["Admin", "Baseline"])),
        "priority": draw(st.sampled_from([1, 2])),
        "subject": draw(_SUBJECTS),
    }
    networks = st.fixed_dictionaries({"networks": _some(NETS, 2, 1)})
    for direction, word, peers in (("ingress", "from", _SUBJECTS), ("egress", "to", st.one_of(_SUBJECTS, networks))):
        entry = st.fixed_dictionaries(
            {"action": st.sampled_from(["Accept", "Deny", "Pass"]), word: st.lists(peers, min_size=1, max_size=2)},
            optional={"protocols": st.lists(_PROTOCOLS, max_size=2)},
        )
        if draw(st.booleans()):
            spec[direction] = draw(st.lists(entry, max_size=2))
    return made(CLUSTER, "ClusterNetworkPolicy", name, spec)


# --- everything else ---------------------------------------------------------------------------------------------


@st.composite
def workloads(draw: st.DrawFn, name: str, namespace: str) -> Object:
    spec: Object = {
        "node": draw(st.sampled_from(["n1", "n1", "n2"])),
        "interfaceName": f"cali{draw(st.sampled_from([name, name, name, 'shared']))}",
        "ipNetworks": draw(_some(ADDRESSES, 3)),
        "orchestrator": draw(st.sampled_from(["k8s", "k8s", "cni"])),
        "serviceAccountName": draw(st.sampled_from(["", "s", "o"])),
        "profiles": draw(st.one_of(st.just([f"kns.{namespace}", f"ksa.{namespace}.s"]),
                                   _some(["p1", "p2", f"kns.{namespace}"], 3))),
        "ports": draw(st.lists(st.fixed_dictionaries(
            {"name": st.sampled_from(PORT_NAMES), "protocol": st.sampled_from(["TCP", "UDP"]),
             "port": st.sampled_from(PORTS)}), max_size=2)),
    }  # fmt: skip
    return made(CALICO, "WorkloadEndpoint", name, spec, namespace, draw(LABELS))


@st.composite
def hosts(draw: st.DrawFn, name: str) -> Object:
    spec: Object = {
        "node": draw(st.sampled_from(["n1", "n2"])),
        "interfaceName": draw(st.sampled_from(["eth0", "eth1", "*"])),
        "expectedIPs": draw(_some(ADDRESSES, 2)),
        "profiles": draw(_some(["p1", "p2"], 2)),
    }
    return made(CALICO, "HostEndpoint", name, spec, labels=draw(LABELS))


@st.composite
def profiles(draw: st.DrawFn, name: str) -> Object:
    spec: Object = {
        "ingress": draw(st.lists(st.one_of(st.just({"action": "Allow"}), rules("ingress")), max_size=2)),
        "egress": draw(st.lists(st.one_of(st.just({"action": "Allow"}), rules("egress")), max_size=2)),
        "labelsToApply": draw(st.sampled_from([{}, {"inherited": "yes"}, {"a": "1"}, {"a": "2", "inherited": "yes"}])),
    }
    return made(CALICO, "Profile", name, spec)


@st.composite
def network_sets(draw: st.DrawFn, name: str, namespace: str = "") -> Object:
    kind = "NetworkSet" if namespace else "GlobalNetworkSet"
    return made(CALICO, kind, name, {"nets": draw(_some(NETS, 3))}, namespace, draw(LABELS))


@st.composite
def tiers(draw: st.DrawFn, name: str) -> Object:
    spec = {
        "order": draw(st.sampled_from([None, 5, 2e6])),
        "defaultAction": draw(st.sampled_from([None, "Deny", "Pass"])),
    }
    return made(CALICO, "Tier", name, _dropping_empty(spec))


@st.composite
def slices(draw: st.DrawFn, name: str, namespace: str) -> Object:
    version = draw(st.sampled_from(["4", "6"]))
    fitting = [address for address in ADDRESSES if (":" in address) == (version == "6")]
    base = made("discovery.k8s.io/v1", "EndpointSlice", name, {}, namespace,
                 {"kubernetes.io/service-name": draw(st.sampled_from(["s", "o"]))})  # fmt: skip
    ports = st.fixed_dictionaries({"protocol": st.sampled_from(["TCP", "UDP"]), "port": st.sampled_from(PORTS)})
    return {
        **base,
        "addressType": f"IPv{version}",
        "endpoints": [{"addresses": draw(_some(fitting, 2))}],
        "ports": draw(st.lists(ports, max_size=2)),
    }


def _labelled(version: str, kind: str, name: str, namespace: str, label: str) -> st.SearchStrategy[Object]:
    values = st.sampled_from([{}, {label: "1"}, {label: "2"}])
    return values.map(lambda labels: made(version, kind, name, {}, namespace, labels))


OBJECTS: st.SearchStrategy[Object] = st.one_of(
    *(workloads(name, namespace) for name, namespace in (("w1", "x"), ("w2", "x"), ("w3", "y"), ("w4", "y"))),
    *(workloads(name, namespace) for name, namespace in (("w1", "x"), ("w2", "x"), ("w3", "y"))),
    *(calico_policies("GlobalNetworkPolicy", name) for name in ("g1", "g2", "g3")),
    *(calico_policies("NetworkPolicy", name, namespace) for name, namespace in (("g1", "x"), ("n2", "y"))),
    *(calico_policies("StagedGlobalNetworkPolicy", name) for name in ("s1",)),
    *(kubernetes_policies(name, namespace) for name, namespace in (("g1", "x"), ("k2", "y"))),
    *(cluster_policies(name) for name in ("c1", "c2")),
    *(profiles(name) for name in ("p1", "p2", "kns.y")),
    *(tiers(name) for name in ("t1", "t2")),
    network_sets("e1"),
    network_sets("e2", "x"),
    hosts("h1"),
    hosts("h2"),
    slices("l1", "x"),
    slices("l2", "x"),
    *(_labelled("v1", "Namespace", name, "", "t") for name in NAMESPACES),
    _labelled("v1", "ServiceAccount", "s", "x", "l"),
)

START = st.tuples(
    *(workloads(name, namespace) for name, namespace in (("w1", "x"), ("w2", "x"), ("w3", "y"))),
    *(_labelled("v1", "Namespace", name, "", "t") for name in NAMESPACES),
    st.one_of(calico_policies("GlobalNetworkPolicy", "g1"), kubernetes_policies("g1", "x"), cluster_policies("c1")),
)
"""What histories begin with, so that they are about something."""
