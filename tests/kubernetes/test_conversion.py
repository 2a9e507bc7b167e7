"""Pods, nodes and objects of the API server -> resources: tables of cases."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from felixpy.kubernetes.kinds import CALICO_STORE, CALICO_V3, KINDS, reader
from felixpy.kubernetes.names import interface_name
from felixpy.kubernetes.nodes import NodeFacts, decode_node, pod_cidr_blocks
from felixpy.kubernetes.pods import PodFacts, decode_pod
from felixpy.model.net import Net
from felixpy.model.policy import EndpointPort
from felixpy.model.resources import FelixConfiguration, IPAMBlock, IPNat, IPPool, Kind, WorkloadEndpoint

JSON = dict[str, Any]


def merged(base: JSON, change: JSON) -> JSON:
    """A merge patch: null takes a field away."""
    result = dict(base)
    for name, value in change.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, dict):
            result[name] = merged(result.get(name, {}), value)
        else:
            result[name] = value
    return result


POD: JSON = {
    "metadata": {"name": "web-0", "namespace": "shop", "uid": "u1", "creationTimestamp": "2026-01-02T03:04:05Z"},
    "spec": {"nodeName": "n1", "containers": [{"name": "c"}]},
    "status": {"phase": "Running"},
}


def pod(change: JSON) -> PodFacts:
    return decode_pod(msgspec.Raw(msgspec.json.encode(merged(POD, change))), "cali")


def endpoint(change: JSON) -> WorkloadEndpoint:
    facts = pod(change)
    assert facts.error == ""
    assert facts.endpoint is not None
    return facts.endpoint


def annotated(**annotations: str) -> JSON:
    return {"metadata": {"annotations": {f"cni.projectcalico.org/{name}": text for name, text in annotations.items()}}}


def test_a_pod_is_an_endpoint_of_its_node() -> None:
    found = endpoint({"spec": {"serviceAccountName": "seller"}, "metadata": {"labels": {"app": "web"}}})
    assert found.key == (Kind.WORKLOAD_ENDPOINT, "n1-k8s-web--0-eth0", "shop")
    assert found.node == "n1"
    assert found.interface == interface_name("cali", "shop", "web-0")
    assert found.profiles == ("kns.shop", "ksa.shop.seller")
    assert found.created == "2026-01-02T03:04:05Z"
    assert found.labels == {
        "app": "web",
        "projectcalico.org/namespace": "shop",
        "projectcalico.org/orchestrator": "k8s",
        "projectcalico.org/serviceaccount": "seller",
    }


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("no node yet", {"spec": {"nodeName": ""}}),
        ("network of the host", {"spec": {"hostNetwork": True}}),
        ("succeeded", {"status": {"phase": "Succeeded"}}),
        ("failed", {"status": {"phase": "Failed"}}),
        ("deleted, and its addresses were released",
         merged(annotated(podIP=""), {"metadata": {"deletionTimestamp": "2026-01-02T03:04:06Z"}})),
    ],
)  # fmt: skip
def test_a_pod_that_is_no_endpoint(what: str, change: JSON) -> None:
    facts = pod(merged({"status": {"podIPs": [{"ip": "10.48.0.1"}]}}, change))
    assert (facts.endpoint, facts.error) == (None, ""), what
    assert (facts.namespace, facts.name, facts.uid) == ("shop", "web-0", "u1")


BOTH = ["10.48.0.1/32", "fd48::1/128"]


@pytest.mark.parametrize(
    ("what", "change", "addresses", "by_annotation"),
    [
        ("none yet", {}, [], False),
        ("podIPs", {"status": {"podIPs": [{"ip": "10.48.0.1"}, {"ip": "fd48::1"}], "podIP": "10.48.0.9"}}, BOTH, False),
        ("podIP", {"status": {"podIP": "10.48.0.1"}}, BOTH[:1], False),
        ("annotation with prefix lengths", annotated(podIPs="10.48.0.1/32,fd48::1/128"), BOTH, True),
        ("annotation of one", annotated(podIP="10.48.0.1/32"), BOTH[:1], True),
        ("status before annotation", merged(annotated(podIPs="10.48.0.7/32"), {"status": {"podIP": "10.48.0.1"}}),
         BOTH[:1], True),
        ("of AWS", {"metadata": {"annotations": {"vpc.amazonaws.com/pod-ips": "10.48.0.1"}}}, BOTH[:1], False),
        ("deleted, addresses still its own",
         {"metadata": {"deletionTimestamp": "2026-01-02T03:04:06Z"}, "status": {"podIP": "10.48.0.1"}},
         BOTH[:1], False),
        ("deleted under Calico, not released",
         merged(annotated(podIP="10.48.0.1/32"), {"metadata": {"deletionTimestamp": "2026-01-02T03:04:06Z"}}),
         BOTH[:1], True),
    ],
)  # fmt: skip
def test_addresses_of_a_pod(what: str, change: JSON, addresses: list[str], by_annotation: bool) -> None:
    facts = pod(change)
    assert facts.endpoint is not None, what
    assert [str(each) for each in facts.endpoint.addresses] == addresses, what
    assert facts.annotated is by_annotation, what


def test_a_pod_that_is_being_deleted_says_so() -> None:
    asked_for = {"metadata": {"deletionTimestamp": "2026-01-02T03:04:06Z"}}
    assert [endpoint(change).deleted for change in ({}, asked_for)] == ["", "2026-01-02T03:04:06Z"]


def test_a_bad_address_is_an_error_of_that_pod() -> None:
    facts = pod({"status": {"podIP": "10.48.0.300"}})
    assert facts.endpoint is None
    assert "10.48.0.300" in facts.error


def test_ports_with_names_of_every_container() -> None:
    ports = [
        {"name": "http", "containerPort": 8080},
        {"name": "dns", "containerPort": 53, "protocol": "UDP"},
        {"containerPort": 9000},
        {"name": "odd", "containerPort": 1, "protocol": "ICMP"},
    ]
    init = [{"ports": [{"name": "proxy", "containerPort": 15001, "protocol": "TCP"}]}]
    found = endpoint({"spec": {"containers": [{"ports": ports}, {}], "initContainers": init}})
    assert found.ports == (EndpointPort("http", 6, 8080), EndpointPort("dns", 17, 53), EndpointPort("proxy", 6, 15001))


def test_a_pod_cannot_give_itself_a_namespace_or_a_service_account() -> None:
    labels = {"projectcalico.org/namespace": "kube-system", "projectcalico.org/serviceaccount": "admin", "pcns.a": "b"}
    found = endpoint({"metadata": {"labels": labels}})
    assert found.labels == {"projectcalico.org/namespace": "shop", "projectcalico.org/orchestrator": "k8s"}


def test_the_name_of_a_service_account_that_is_too_long_for_a_label_is_none() -> None:
    found = endpoint({"spec": {"serviceAccountName": "a" * 63}})
    assert "projectcalico.org/serviceaccount" not in found.labels
    assert found.profiles == ("kns.shop", f"ksa.shop.{'a' * 63}")


def test_prefixes_that_a_pod_may_send_from() -> None:
    found = endpoint(annotated(allowedSourcePrefixes='["10.1.2.3/8", "fd00::/8"]'))
    assert [str(each) for each in found.allowed_source_prefixes] == ["10.0.0.0/8", "fd00::/8"]
    assert endpoint(annotated(allowedSourcePrefixes="10.0.0.0/8")).allowed_source_prefixes == ()


def test_floating_addresses_lead_to_the_address_of_their_family() -> None:
    asked = annotated(floatingIPs='["203.0.113.9", "2001:db8::9", "203.0.113.10"]')
    both = endpoint(merged(asked, {"status": {"podIPs": [{"ip": "10.48.0.1"}, {"ip": "fd48::1"}]}}))
    four, six = Net.parse("10.48.0.1"), Net.parse("fd48::1")
    external = [Net.parse(text) for text in ("203.0.113.9", "2001:db8::9", "203.0.113.10")]
    assert both.ip_nats == (IPNat(external[0], four), IPNat(external[1], six), IPNat(external[2], four))
    one = endpoint(merged(asked, {"status": {"podIP": "10.48.0.1"}}))
    assert one.ip_nats == (IPNat(external[0], four), IPNat(external[2], four)), "the pod has no IPv6 address"
    assert (one.problems, endpoint(asked).ip_nats, endpoint(annotated(floatingIPs="[]")).ip_nats) == ((), (), ())


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("203.0.113.9", "is not a list of texts"),
        ('["203.0.113.0/24"]', "203.0.113.0/24"),
        ('["127.0.0.1"]', "loopback"),
    ],
)
def test_a_mistaken_annotation_of_floating_addresses_costs_the_pod_nothing_else(written: str, words: str) -> None:
    found = endpoint(merged(annotated(floatingIPs=written), {"status": {"podIP": "10.48.0.1"}}))
    assert found.addresses == (Net.parse("10.48.0.1"),) and found.ip_nats == ()
    (problem,) = found.problems
    assert words in problem


def test_what_is_no_pod_is_said() -> None:
    facts = decode_pod(msgspec.Raw(b'{"metadata": {"name": 5}}'), "cali")
    assert facts.endpoint is None
    assert facts.error.startswith("not a pod")


# --- nodes -----------------------------------------------------------------------------------------------------------

NODE: JSON = {
    "metadata": {"name": "n1", "labels": {"zone": "a"}},
    "spec": {"podCIDR": "10.48.0.0/24", "podCIDRs": ["10.48.0.0/24", "fd48::/64"]},
    "status": {"addresses": [{"type": "Hostname", "address": "n1"}, {"type": "ExternalIP", "address": "203.0.113.1"},
                             {"type": "InternalIP", "address": "172.30.0.11"}]},
}  # fmt: skip


def node(change: JSON) -> NodeFacts:
    return decode_node(msgspec.Raw(msgspec.json.encode(merged(NODE, change))))


def calico(**annotations: str) -> JSON:
    return {"metadata": {"annotations": {f"projectcalico.org/{name}": text for name, text in annotations.items()}}}


@pytest.mark.parametrize(
    ("what", "change", "ipv4", "ipv6"),
    [
        ("InternalIP", {}, "172.30.0.11/32", None),
        ("annotations", calico(IPv4Address="172.30.0.12/24", IPv6Address="fd30::12/64"),
         "172.30.0.12/24", "fd30::12/64"),
        ("an annotation that is no address", calico(IPv4Address="none", IPv6Address="172.30.0.1/24"),
         "172.30.0.11/32", None),
        ("ExternalIP alone", {"status": {"addresses": [{"type": "ExternalIP", "address": "203.0.113.1"}]}},
         "203.0.113.1/32", None),
        ("IPv6 only", {"status": {"addresses": [{"type": "InternalIP", "address": "fd30::11"}]}},
         None, "fd30::11/128"),
        ("none", {"status": None}, None, None),
    ],
)  # fmt: skip
def test_addresses_of_a_node(what: str, change: JSON, ipv4: str | None, ipv6: str | None) -> None:
    found = node(change).node
    assert found is not None
    assert found.labels == {"zone": "a"}
    told = [None if each is None else str(each) for each in (found.ipv4, found.ipv6)]
    assert told == [ipv4, ipv6], what


def test_tunnels_of_a_node_as_calico_annotates_them() -> None:
    found = node(
        calico(
            IPv4VXLANTunnelAddr="10.48.0.1", IPv6VXLANTunnelAddr="fd48::1", IPv4IPIPTunnelAddr="10.48.0.2",
            VXLANTunnelMACAddr="66:00:00:00:00:01", VXLANTunnelMACAddrV6="none",
        )
    ).node  # fmt: skip
    assert found is not None
    assert (found.vxlan_ipv4, found.vxlan_ipv6) == (Net.parse("10.48.0.1").packed, Net.parse("fd48::1").packed)
    assert (found.ipip_ipv4, found.vxlan_mac) == (Net.parse("10.48.0.2").packed, bytes.fromhex("660000000001"))
    assert found.vxlan_mac_ipv6 is None


def test_pod_cidrs_are_blocks_of_the_node() -> None:
    found = pod_cidr_blocks(node({}))
    assert [(block.key, str(block.cidr), block.host) for block in found] == [
        ((Kind.IPAM_BLOCK, "10-48-0-0-24", ""), "10.48.0.0/24", "n1"),
        ((Kind.IPAM_BLOCK, "fd48---64", ""), "fd48::/64", "n1"),
    ]
    assert [str(each) for each in node({"spec": {"podCIDRs": None}}).pod_cidrs] == ["10.48.0.0/24"]
    assert node({"spec": None}).pod_cidrs == ()


# --- objects of Calico and of policy ---------------------------------------------------------------------------------


def read(plural: str, group: str, obj: JSON) -> Any:
    entry = next(each for each in KINDS if each.plural == plural and group in each.groups)
    return reader(entry, group)(msgspec.Raw(msgspec.json.encode(obj)))


@pytest.mark.parametrize("group", [CALICO_STORE, CALICO_V3])
def test_a_pool_without_a_kind_as_in_a_list(group: str) -> None:
    found = read("ippools", group, {"metadata": {"name": "p"}, "spec": {"cidr": "10.48.0.0/16", "natOutgoing": True}})
    assert isinstance(found.resource, IPPool)
    assert found.key == (Kind.IP_POOL, "p", "")
    assert (found.resource.cidr, found.resource.block_size) == (Net.parse("10.48.0.0/16"), 26)


def test_zeros_of_the_store_are_defaults() -> None:
    spec = {"cidr": "fd48::/48", "blockSize": 0, "ipipMode": "", "vxlanMode": "", "nodeSelector": ""}
    found = read("ippools", CALICO_STORE, {"metadata": {"name": "p"}, "spec": spec})
    assert found.error == ""
    assert found.resource.block_size == 122


def test_a_deleted_block_is_gone() -> None:
    obj = {"metadata": {"name": "10-48-0-0-26"}, "spec": {"cidr": "10.48.0.0/26", "affinity": "host:n1"}}
    found = read("ipamblocks", CALICO_STORE, obj)
    assert isinstance(found.resource, IPAMBlock)
    gone = read("ipamblocks", CALICO_STORE, merged(obj, {"spec": {"deleted": True}}))
    assert (gone.key, gone.resource, gone.error) == (found.key, None, "")


def test_a_bad_object_has_a_key_and_a_reason() -> None:
    found = read("ippools", CALICO_V3, {"metadata": {"name": "p"}, "spec": {"cidr": "10.48.0.0/99"}})
    assert found.key == (Kind.IP_POOL, "p", "")
    assert found.resource is None
    assert "spec.cidr" in found.error


def test_settings_of_the_cluster() -> None:
    found = read(
        "felixconfigurations", CALICO_V3, {"metadata": {"name": "default"}, "spec": {"logSeverityScreen": "Debug"}}
    )
    assert isinstance(found.resource, FelixConfiguration)


@pytest.mark.parametrize(
    ("plural", "group", "obj", "key"),
    [
        ("networkpolicies", "networking.k8s.io/v1", {"metadata": {"name": "p", "namespace": "shop"},
         "spec": {"podSelector": {}}}, (Kind.KUBERNETES_NETWORK_POLICY, "p", "shop")),
        ("networkpolicies", CALICO_V3, {"metadata": {"name": "p", "namespace": "shop"}, "spec": {}},
         (Kind.NETWORK_POLICY, "p", "shop")),
        ("namespaces", "v1", {"metadata": {"name": "shop", "labels": {"a": "b"}}}, (Kind.NAMESPACE, "shop", "")),
        ("serviceaccounts", "v1", {"metadata": {"name": "s", "namespace": "shop"}},
         (Kind.SERVICE_ACCOUNT, "s", "shop")),
    ],
)  # fmt: skip
def test_kinds_of_policy(plural: str, group: str, obj: JSON, key: tuple[Kind, str, str]) -> None:
    found = read(plural, group, obj)
    assert (found.error, found.key) == ("", key)
    assert found.resource is not None


def test_a_rule_that_names_a_service_is_noticed() -> None:
    spec: JSON = {"egress": [{"action": "Allow", "destination": {"services": {"name": "db", "namespace": "shop"}}}]}
    obj = {"metadata": {"name": "p", "namespace": "shop"}, "spec": spec | {"types": ["Egress"]}}
    assert read("networkpolicies", CALICO_V3, obj).names_services
    assert not read("networkpolicies", CALICO_V3, obj | {"spec": {}}).names_services
