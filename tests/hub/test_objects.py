"""What a hub publishes of an object is, for a node that reads it, what the node would make of the object itself."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from felixpy.hub.objects import object_reader, pod_reader, read_node
from felixpy.kubernetes.kinds import CALICO_STORE, CALICO_V3, KINDS, KindOfObject, reader
from felixpy.kubernetes.nodes import decode_node, pod_cidr_blocks
from felixpy.kubernetes.pods import decode_pod
from felixpy.model.parse import parse_payload
from felixpy.mqtt import topics
from tests.kubernetes.test_conversion import POD, annotated, merged

JSON = dict[str, Any]

NODE: JSON = {
    "metadata": {"name": "n1", "labels": {"zone": "a"}, "resourceVersion": "7"},
    "spec": {"podCIDRs": ["10.48.1.0/24", "fd00:48:1::/64"]},
    "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": "n1"}]},
}


def raw(obj: JSON) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(obj))


def kind(name: str) -> KindOfObject:
    return next(entry for entry in KINDS if entry.plural == name)


@pytest.mark.parametrize(
    "change",
    [
        {"status": {"podIPs": [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}]}},
        {"spec": {"serviceAccountName": "seller"}, "metadata": {"labels": {"app": "web", "b": ""}}},
        {"spec": {"containers": [{"ports": [{"name": "http", "containerPort": 80}, {"containerPort": 81}]}]}},
        {"spec": {"containers": [{"ports": [{"name": "dns", "containerPort": 53, "protocol": "UDP"}]}]}},
        {"spec": {"containers": [{"ports": [{"name": "s", "containerPort": 9, "protocol": "SCTP"}]}]}},
        annotated(podIPs="10.0.0.8/32", allowedSourcePrefixes='["10.9.0.0/16"]'),
        annotated(podIPs="10.0.0.8/32,fd00::8/128", floatingIPs='["192.0.2.9", "2001:db8::9"]'),
        {"metadata": {"deletionTimestamp": "2026-01-02T03:04:06Z"}, "status": {"podIP": "10.0.0.7"}},
    ],
)
def test_pods(change: JSON) -> None:
    pod = raw(merged(POD, change))
    published, expected = pod_reader("cali")(pod), decode_pod(pod, "cali").endpoint
    assert expected is not None
    assert published.topic == f"wep/n1/shop/{expected.key.name}"
    assert parse_payload(published.payload, expected.key, _refuse) == expected
    assert published.endpoint == expected


@pytest.mark.parametrize(
    "change",
    [{"spec": {"hostNetwork": True}}, {"spec": {"nodeName": None}}, {"status": {"phase": "Succeeded"}}],
)
def test_pods_that_are_no_endpoints(change: JSON) -> None:
    assert not pod_reader("cali")(raw(merged(POD, change))).topic


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"spec": None},
        {"metadata": {"annotations": {"projectcalico.org/IPv4Address": "198.51.100.1/24"}}},
        {"metadata": {"annotations": {"projectcalico.org/IPv4VXLANTunnelAddr": "10.48.1.0"}}},
        {"metadata": {"annotations": {"projectcalico.org/VXLANTunnelMACAddr": "66:00:00:00:00:01"}}},
        {"metadata": {"annotations": {"projectcalico.org/IPv4IPIPTunnelAddr": "10.48.1.1"}}},
        {"status": {"addresses": None}},
    ],
)
def test_nodes(change: JSON) -> None:
    node = raw(merged(NODE, change))
    published, expected = read_node(node), decode_node(node)
    assert expected.node is not None
    assert published.topic == "node/n1"
    assert parse_payload(published.payload, expected.node.key, _refuse) == expected.node
    found = [
        parse_payload(payload, key, _refuse)
        for topic, payload in published.blocks
        if (key := topics.key_of(topic)) is not None
    ]
    assert found == pod_cidr_blocks(expected)


@pytest.mark.parametrize(
    ("plural", "group", "obj"),
    [
        ("ippools", CALICO_STORE, {"spec": {"cidr": "10.48.0.0/16", "blockSize": 0, "natOutgoing": True}}),
        ("ippools", CALICO_V3, {"spec": {"cidr": "fd00:48::/64", "vxlanMode": "Always"}}),
        ("tiers", CALICO_V3, {"spec": {"order": 7}}),
        ("globalnetworkpolicies", CALICO_V3, {"spec": {"selector": "app == 'web'", "ingress": [{"action": "Deny"}]}}),
        ("globalnetworksets", CALICO_V3, {"spec": {"nets": ["192.0.2.0/24"]}, "metadata": {"labels": {"x": "y"}}}),
        ("hostendpoints", CALICO_V3, {"spec": {"node": "n1", "interfaceName": "eth0"}}),
        ("ipamblocks", CALICO_V3, {"spec": {"cidr": "10.48.0.0/26", "affinity": "host:n1", "allocations": [None]}}),
        ("blockaffinities", CALICO_V3, {"spec": {"cidr": "10.48.0.0/26", "node": "n1", "state": "confirmed"}}),
        ("namespaces", "v1", {"metadata": {"labels": {"team": "a"}}, "spec": {"finalizers": ["kubernetes"]}}),
        ("services", "v1", {"metadata": {"namespace": "shop"}, "spec": {"selector": {"app": "web"}}}),
        (
            "endpointslices",
            "discovery.k8s.io/v1",
            {
                "metadata": {"namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
                "addressType": "IPv4",
                "endpoints": [{"addresses": ["10.0.0.7"]}],
                "ports": [{"port": 80, "protocol": "TCP"}],
            },
        ),
    ],
)
def test_objects(plural: str, group: str, obj: JSON) -> None:
    noise = {"resourceVersion": "9", "uid": "u", "managedFields": [{"manager": "m"}], "generation": 3}
    name = "n1-10-48-0-0-26" if plural == "blockaffinities" else "10-48-0-0-26" if plural == "ipamblocks" else "a"
    read = object_reader(kind(plural), group)
    published = read(raw(merged({"metadata": {"name": name} | noise, "status": {"x": 1}}, obj)))
    quiet = read(raw(merged({"metadata": {"name": name}}, obj)))
    expected = reader(kind(plural), group)(raw(merged({"metadata": {"name": name}}, obj)))
    assert expected.resource is not None, expected
    assert parse_payload(published.payload, expected.resource.key) == expected.resource
    assert published == quiet
    assert topics.key_of(published.topic) == expected.key


@pytest.mark.parametrize(
    "ending",
    [
        {"metadata": {"name": "a", "deletionTimestamp": "2026-12-01T05:00:00Z"}},
        {"status": {"conditions": [{"type": "Allocatable", "status": "False"}]}},
    ],
)
def test_a_pool_that_gives_no_more_is_published_as_disabled(ending: JSON) -> None:
    """Why it gives no more is in what is left out."""
    obj: JSON = {"metadata": {"name": "a"}, "spec": {"cidr": "10.48.0.0/16"}}
    read = object_reader(kind("ippools"), CALICO_V3)
    assert read(raw({**obj, **ending})) == read(raw(merged(obj, {"spec": {"disabled": True}})))
    assert read(raw({**obj, **ending})) != read(raw(obj))


def test_an_object_that_cannot_be_used_is_published_for_nodes_to_say_so() -> None:
    published = object_reader(kind("ippools"), CALICO_V3)(raw({"metadata": {"name": "a"}, "spec": {"cidr": "x"}}))
    assert published.topic == "ippool/a"
    assert "cidr" in published.error
    published = object_reader(kind("hostendpoints"), CALICO_V3)(raw({"metadata": {"name": "a"}, "spec": {"node": 7}}))
    assert not published.topic
    assert published.error


def _refuse(what: str) -> None:
    raise AssertionError(what)
