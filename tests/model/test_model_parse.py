"""Untrusted objects → resources: what is accepted, with which defaults, and what is refused with which field."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from felixpy.model import parse as parsing
from felixpy.model.invalid import InvalidResource
from felixpy.model.net import Net
from felixpy.model.node import merged_node
from felixpy.model.parse import MAX_PAYLOAD_BYTES, Ignored, object_key, parse_json, parse_payload, parse_resource
from felixpy.model.resources import (
    Absent,
    BlockAffinity,
    Borrowed,
    Encapsulation,
    FelixConfiguration,
    IPAMBlock,
    IPNat,
    IPPool,
    Kind,
    Node,
    ResourceKey,
    WorkloadEndpoint,
)

MISSING = object()


def v3(kind: str, spec: dict[str, Any], name: str = "x", **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": name, **metadata}, "spec": spec}


def workload(**changes: Any) -> dict[str, Any]:
    spec = {"node": "node1", "interfaceName": "cali1", "ipNetworks": ["10.48.0.1/32", "fd00:48::1/128"], **changes}
    return v3(
        "WorkloadEndpoint", {k: v for k, v in spec.items() if v is not MISSING}, "node1-k8s-p-eth0", namespace="ns"
    )


def pool(**spec: Any) -> dict[str, Any]:
    return v3("IPPool", {"cidr": "10.48.0.0/21", **spec})


def block(**spec: Any) -> dict[str, Any]:
    return v3("IPAMBlock", {"cidr": "10.48.0.0/30", "affinity": "host:node1", **spec}, "10-48-0-0-30")


def affinity(**spec: Any) -> dict[str, Any]:
    return v3(
        "BlockAffinity", {"cidr": "10.48.0.0/26", "node": "node1", "state": "confirmed", **spec}, "node1-10-48-0-0-26"
    )


def parse(obj: object) -> Any:
    return parse_resource(obj)


def refused(obj: object) -> InvalidResource:
    with pytest.raises(InvalidResource) as caught:
        parse_resource(obj)
    assert "\n" not in str(caught.value)
    return caught.value


def hosts(*texts: str) -> tuple[Net, ...]:
    return tuple(Net.parse(text) for text in texts)


def test_a_workload_endpoint() -> None:
    obj = workload(mac="EE:ee:ee:ee:ee:01", allowSpoofedSourcePrefixes=["10.9.9.9/16", "::/0"])
    obj["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    assert parse(obj) == WorkloadEndpoint(
        key=ResourceKey(Kind.WORKLOAD_ENDPOINT, "node1-k8s-p-eth0", "ns"),
        node="node1",
        interface="cali1",
        addresses=hosts("10.48.0.1", "fd00:48::1"),
        mac=b"\xee\xee\xee\xee\xee\x01",
        allowed_source_prefixes=hosts("10.9.0.0/16", "::/0"),
        created="2026-01-01T00:00:00Z",
        labels={"projectcalico.org/namespace": "ns"},
    )


def nats_of(*pairs: tuple[object, object]) -> WorkloadEndpoint:
    found = parse(workload(ipNATs=[{"externalIP": external, "internalIP": internal} for external, internal in pairs]))
    assert isinstance(found, WorkloadEndpoint)
    return found


def test_floating_addresses_of_a_workload() -> None:
    found = nats_of(("203.0.113.9", "10.48.0.1"), ("2001:db8::9", "fd00:48::1"), ("203.0.113.9", "10.48.0.1"))
    external, internal = hosts("203.0.113.9", "2001:db8::9"), hosts("10.48.0.1", "fd00:48::1")
    assert found.ip_nats == tuple(map(IPNat, external, internal)) and found.problems == ()
    assert parse(workload(ipNATs=None)).ip_nats == ()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("external", "internal", "words"),
    [
        ("203.0.113.9", "10.48.0.2", "10.48.0.2/32 is not in spec.ipNetworks"),
        ("203.0.113.9", "fd00:48::1", "two families"),
        ("10.48.0.1", "10.48.0.1", "is the workload's own already"),
        ("127.0.0.1", "10.48.0.1", "lies in the loopback range"),
        ("fe80::1", "fd00:48::1", "lies in the link-local range"),
        ("203.0.113.0/24", "10.48.0.1", "203.0.113.0/24"),
        (None, "10.48.0.1", "''"),
        ("203.0.113.9", None, "''"),
    ],
)
def test_a_floating_address_that_leads_nowhere_is_left_out_and_told(external: str, internal: str, words: str) -> None:
    """The workload keeps its network, and its other floating addresses."""
    found = nats_of((external, internal), ("203.0.113.10", "10.48.0.1"))
    assert found.addresses == hosts("10.48.0.1", "fd00:48::1")
    assert found.ip_nats == (IPNat(*hosts("203.0.113.10", "10.48.0.1")),)
    (problem,) = found.problems
    assert problem.startswith("spec.ipNATs[0] is left out: ") and words in problem


def test_a_floating_address_leads_to_one_address() -> None:
    networks = ["10.48.0.1", "10.48.0.2"]
    pairs = [{"externalIP": "203.0.113.9", "internalIP": one} for one in networks]
    found = parse(workload(ipNetworks=networks, ipNATs=pairs))
    assert isinstance(found, WorkloadEndpoint)
    assert found.ip_nats == (IPNat(*hosts("203.0.113.9", "10.48.0.1")),)
    assert found.problems == ("spec.ipNATs[1] is left out: 203.0.113.9/32 leads to 10.48.0.1/32 already",)


@pytest.mark.parametrize(
    ("networks", "addresses"),
    [
        (MISSING, ()),
        (None, ()),
        ([], ()),
        (["10.48.0.1"], hosts("10.48.0.1")),
        (["fd00::0001", "fd00::1/128", "10.48.0.1"], hosts("fd00::1", "10.48.0.1")),
        (["240.0.0.1"], hosts("240.0.0.1")),
    ],
)
def test_addresses_of_a_workload(networks: object, addresses: tuple[Net, ...]) -> None:
    assert parse(workload(ipNetworks=networks)).addresses == addresses


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"node": MISSING}, "spec.node", "is missing"),
        ({"node": ""}, "spec.node", "is missing"),
        ({"node": "a/b"}, "spec.node", "not a valid name"),
        ({"interfaceName": MISSING}, "spec.interfaceName", "is missing"),
        ({"interfaceName": "cali0123456789ab"}, "spec.interfaceName", "at most 15"),
        ({"interfaceName": "cali/1"}, "spec.interfaceName", "not a valid interface name"),
        ({"interfaceName": "all"}, "spec.interfaceName", "cannot be a workload's"),
        ({"interfaceName": 7}, "spec.interfaceName", "must be text, not a whole number"),
        ({"ipNetworks": "10.48.0.1"}, "spec.ipNetworks", "must be a list, not a quoted text"),
        ({"ipNetworks": ["10.48.0.1", None]}, "spec.ipNetworks[1]", "must be text, not nothing"),
        ({"ipNetworks": ["10.48.0.1", "10.48.0.0/26"]}, "spec.ipNetworks[1]", "must be a single address: write /32"),
        ({"ipNetworks": ["fd00::1/64"]}, "spec.ipNetworks[0]", "write /128"),
        ({"ipNetworks": ["10.48.0.300"]}, "spec.ipNetworks[0]", "is not an IPv4 or IPv6 address"),
        ({"ipNetworks": ["169.254.1.1"]}, "spec.ipNetworks[0]", "cannot be a workload's address"),
        ({"ipNetworks": ["127.0.0.1"]}, "spec.ipNetworks[0]", "cannot be a workload's address"),
        ({"ipNetworks": ["0.0.0.0"]}, "spec.ipNetworks[0]", "cannot be a workload's address"),
        ({"ipNetworks": ["ff02::1"]}, "spec.ipNetworks[0]", "cannot be a workload's address"),
        ({"ipNetworks": ["fe80::1"]}, "spec.ipNetworks[0]", "cannot be a workload's address"),
        ({"ipNetworks": ["::ffff:10.0.0.1"]}, "spec.ipNetworks[0]", "cannot be a workload's address"),
        ({"ipNetworks": [f"10.0.{i // 250}.{i % 250}" for i in range(257)]}, "spec.ipNetworks", "at most 256"),
        ({"ipv6Gateway": "10.48.0.1"}, "spec.ipv6Gateway", "is not an IPv6 address"),
        ({"ipv4Gateway": "fe80::1"}, "spec.ipv4Gateway", "is not an IPv4 address"),
        ({"ipv4Gateway": "169.254.1.1/32"}, "spec.ipv4Gateway", "is not an IPv4 or IPv6 address"),
        ({"mac": "ee:ee:ee:ee:ee"}, "spec.mac", "is not a MAC address"),
        ({"mac": "ff:ff:ff:ff:ff:ff"}, "spec.mac", "of one interface"),
        ({"mac": "00:00:00:00:00:00"}, "spec.mac", "of one interface"),
        ({"allowSpoofedSourcePrefixes": ["10.0.0.0/33"]}, "spec.allowSpoofedSourcePrefixes[0]", "prefix length"),
        ({"allowSpoofedSourcePrefixes": ["10.0.0.0/8"] * 257}, "spec.allowSpoofedSourcePrefixes", "at most 256"),
        ({"ipNATs": [{}] * 257}, "spec.ipNATs", "at most 256"),
        ({"ipNATs": {"internalIP": "10.48.0.1"}}, "spec.ipNATs", "list"),
    ],
)
def test_a_bad_workload_endpoint_is_refused_by_field(changes: dict[str, Any], field: str, reason: str) -> None:
    error = refused(workload(**changes))
    assert error.field == field
    assert reason in error.reason
    assert error.key == ResourceKey(Kind.WORKLOAD_ENDPOINT, "node1-k8s-p-eth0", "ns")


@pytest.mark.parametrize("gateway", ["", None, "169.254.1.1"])
def test_a_gateway_may_be_absent(gateway: str | None) -> None:
    assert parse(workload(ipv4Gateway=gateway))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, {}),
        ({"blockSize": 0, "ipipMode": "", "vxlanMode": "", "nodeSelector": "", "allowedUses": []}, {}),
        ({"natOutgoing": True, "disabled": True}, {"nat_outgoing": True, "disabled": True}),
        ({"ipipMode": "Always"}, {"encapsulation": Encapsulation.IPIP}),
        ({"ipipMode": "CrossSubnet", "vxlanMode": "Never"}, {"encapsulation": Encapsulation.IPIP_CROSS_SUBNET}),
        ({"vxlanMode": "Always"}, {"encapsulation": Encapsulation.VXLAN}),
        ({"vxlanMode": "CrossSubnet"}, {"encapsulation": Encapsulation.VXLAN_CROSS_SUBNET}),
        ({"allowedUses": ["LoadBalancer"], "nodeSelector": " all() "}, {"allowed_uses": frozenset({"LoadBalancer"})}),
        ({"cidr": "10.48.0.0/30", "disabled": True}, {"cidr": Net.parse("10.48.0.0/30"), "disabled": True}),
        ({"cidr": "10.48.0.0/26"}, {"cidr": Net.parse("10.48.0.0/26")}),
        ({"cidr": "2001::00/64"}, {"cidr": Net.parse("2001::/64"), "block_size": 122}),
        ({"cidr": "fc00::/24", "blockSize": 116}, {"cidr": Net.parse("fc00::/24"), "block_size": 116}),
        ({"cidr": "fd20::0/112", "vxlanMode": "Always"},
         {"cidr": Net.parse("fd20::/112"), "block_size": 122, "encapsulation": Encapsulation.VXLAN}),
    ],
)  # fmt: skip
def test_an_ip_pool_and_its_defaults(spec: dict[str, Any], expected: dict[str, Any]) -> None:
    values = {"cidr": Net.parse("10.48.0.0/21"), "block_size": 26, **expected}
    assert parse(pool(**spec)) == IPPool(ResourceKey(Kind.IP_POOL, "x"), **values)


@pytest.mark.parametrize(
    ("change", "disabled"),
    [
        ({"metadata": {"name": "x", "deletionTimestamp": "2026-12-01T05:00:00Z", "finalizers": ["a/b"]}}, True),
        ({"status": {"conditions": [{"type": "Other"}, {"type": "Allocatable", "status": "False"}]}}, True),
        ({"status": {"conditions": [{"type": "Allocatable", "status": "True"}]}}, False),
        ({"status": {"conditions": [None, {"type": "Other", "status": "False"}]}}, False),
        ({"status": {"conditions": {}}}, False),
        ({"status": []}, False),
        ({"status": None}, False),
    ],
)
def test_an_ip_pool_that_the_cluster_is_done_with_gives_nothing(change: dict[str, Any], disabled: bool) -> None:
    read = parse({**pool(), **change})
    assert isinstance(read, IPPool)
    assert read.disabled is disabled


@pytest.mark.parametrize(
    ("spec", "field", "reason"),
    [
        ({"cidr": None}, "spec.cidr", "is missing"),
        ({"cidr": "10.48.0.1/21"}, "spec.cidr", "has host bits set; the network is 10.48.0.0/21"),
        ({"cidr": "10.48.0.0"}, "spec.cidr", "write a CIDR"),
        ({"cidr": "169.254.0.0/24"}, "spec.cidr", "overlaps the link-local range"),
        ({"cidr": "0.0.0.0/0"}, "spec.cidr", "overlaps the link-local range"),
        ({"cidr": "fe00::/8"}, "spec.cidr", "overlaps the link-local range"),
        ({"cidr": "224.0.0.0/16"}, "spec.cidr", "overlaps the multicast range"),
        ({"cidr": "192.0.0.0/2"}, "spec.cidr", "overlaps the multicast range"),
        ({"cidr": "127.0.0.0/16"}, "spec.cidr", "overlaps the loopback range"),
        ({"cidr": "0.0.0.0/8"}, "spec.cidr", "overlaps the unspecified address"),
        ({"cidr": "255.255.255.0/24"}, "spec.cidr", "overlaps the broadcast address"),
        ({"cidr": "ff02::/64"}, "spec.cidr", "overlaps the multicast range"),
        ({"cidr": "::/64"}, "spec.cidr", "overlaps the range of ::"),
        ({"cidr": "10.48.0.0/27"}, "spec.cidr", "smaller than one block of /26"),
        ({"blockSize": 19}, "spec.blockSize", "from 20 to 32"),
        ({"blockSize": "26"}, "spec.blockSize", "must be a whole number, not a quoted text"),
        ({"cidr": "fd00::/64", "blockSize": 26}, "spec.blockSize", "from 116 to 128"),
        ({"natOutgoing": "Enabled"}, "spec.natOutgoing", "must be true or false, not a quoted text"),
        ({"ipipMode": "always"}, "spec.ipipMode", "must be Never, Always or CrossSubnet"),
        ({"cidr": "fd00::/64", "ipipMode": "Always"}, "spec.ipipMode", "IPv4 only"),
        ({"vxlanMode": "Always", "ipipMode": "Always"}, "spec.ipipMode", "together"),
        ({"nodeSelector": "a = 'b'"}, "spec.nodeSelector", "position 3"),
        ({"nodeSelector": "global()"}, "spec.nodeSelector", "global()"),
        ({"nodeSelector": "has(a)" + " " * 1024}, "spec.nodeSelector", "longer than 1024"),
        ({"namespaceSelector": "all()"}, "spec.namespaceSelector", "Tunnel"),
        ({"allowedUses": ["Workload", "Pods"]}, "spec.allowedUses[1]", "must be Workload, Tunnel or LoadBalancer"),
        ({"allowedUses": ["LoadBalancer", "Workload"]}, "spec.allowedUses", "excludes"),
        ({"allowedUses": ["LoadBalancer"], "vxlanMode": "Always"}, "spec.vxlanMode", "must be Never"),
        ({"allowedUses": ["LoadBalancer"], "nodeSelector": "has(a)"}, "spec.nodeSelector", "must be all()"),
        ({"allowedUses": ["LoadBalancer"], "disableBGPExport": True}, "spec.disableBGPExport", "must be false"),
        ({"assignmentMode": "Auto"}, "spec.assignmentMode", "Automatic or Manual"),
    ],
)
def test_a_bad_ip_pool_is_refused_by_field(spec: dict[str, Any], field: str, reason: str) -> None:
    error = refused(pool(**spec))
    assert (error.field, reason in error.reason) == (field, True), error


INTERNAL = {"type": "InternalIP", "address": "192.168.0.1"}
EXTERNAL = {"type": "ExternalIP", "address": "203.0.113.1"}
CALICO = {"type": "CalicoNodeIP", "address": "10.0.0.1/24"}
NAME = {"type": "InternalDNS", "address": "node1.example.org"}


@pytest.mark.parametrize(
    ("spec", "ipv4", "ipv6"),
    [
        ({"bgp": {"ipv4Address": "10.0.0.1/24", "ipv6Address": "fd00::1/64"}}, "10.0.0.1/24", "fd00::1/64"),
        ({"bgp": {"ipv6Address": "fd00::1/64"}, "addresses": [INTERNAL]}, "192.168.0.1/32", "fd00::1/64"),
        ({"bgp": {"ipv4Address": "10.0.0.1"}, "addresses": [EXTERNAL, INTERNAL, NAME]}, "192.168.0.1/32", None),
        ({"bgp": {"ipv4Address": "10.0.0.1"}}, "10.0.0.1/32", None),
        ({"addresses": [CALICO, EXTERNAL]}, "203.0.113.1/32", None),
        ({"addresses": [CALICO]}, "10.0.0.1/24", None),
        ({"bgp": {}, "addresses": [INTERNAL]}, None, None),
        ({"bgp": None, "addresses": [INTERNAL]}, "192.168.0.1/32", None),
        ({}, None, None),
        (None, None, None),
    ],
)
def test_addresses_of_a_node(spec: Any, ipv4: str | None, ipv6: str | None) -> None:
    node = parse(v3("Node", spec, labels={"zone": "a"}))
    v4, v6 = (Net.parse_interface(text) if text else None for text in (ipv4, ipv6))
    takes_no_part = isinstance(spec, dict) and spec.get("bgp") == {}
    assert node == Node(ResourceKey(Kind.NODE, "x"), v4, v6, {"zone": "a"}, routed=not takes_no_part)


@pytest.mark.parametrize("address", ["224.0.0.18", "127.0.0.1", "169.254.1.1", "255.255.255.255", "0.0.0.0"])
def test_an_address_that_is_no_single_machines_is_no_tunnels(address: str) -> None:
    told: list[str] = []
    spec = {"bgp": {"ipv4Address": "10.0.0.1/24", "ipv4IPIPTunnelAddr": address}, "ipv4VXLANTunnelAddr": address}
    node = parse_resource(v3("Node", spec), told.append)
    assert isinstance(node, Node)
    assert (node.vxlan_ipv4, node.ipip_ipv4, str(node.ipv4)) == (None, None, "10.0.0.1/24")
    assert all(f"{address}/32 lies in the " in one for one in told) and len(told) == 2


def test_what_was_applied_of_a_node_wins_field_by_field_over_what_it_says() -> None:
    name = ResourceKey(Kind.NODE, "x")
    applied = parse(v3("Node", {"bgp": {"ipv4Address": "10.0.0.1/24"}}, labels={"zone": "a"}))
    said = parse(
        {
            "apiVersion": "felixpy/v1",
            "kind": "NodeState",
            "metadata": {"name": "x", "creationTimestamp": "2026-01-01T00:00:00.000001Z"},
            "spec": {
                "bgp": {"ipv4Address": "10.9.9.9/24", "ipv6Address": "fd00::9/64"},
                "ipv4VXLANTunnelAddr": "10.48.0.1",
            },
        }
    )
    assert isinstance(applied, Node) and isinstance(said, Node)
    both = merged_node("x", applied, said)
    assert both is not None
    assert (str(both.ipv4), str(both.ipv6), both.labels) == ("10.0.0.1/24", "fd00::9/64", {"zone": "a"})
    assert both.vxlan_ipv4 == bytes((10, 48, 0, 1)) and both.key == name
    alone = merged_node("x", None, said)
    assert alone is not None and (alone.key, str(alone.ipv4)) == (name, "10.9.9.9/24")
    assert alone.since == "2026-01-01T00:00:00.000001Z"
    out = parse(v3("Node", {"bgp": {}}))
    assert isinstance(out, Node)
    assert merged_node("x", out, said) == out, "a node that is to take no part in routing was routed to"
    assert merged_node("x", applied, None) is applied and merged_node("x", None, None) is None


@pytest.mark.parametrize(
    ("bgp", "field"),
    [
        ({"ipv4Address": "fd00::1/64"}, "spec.bgp.ipv4Address"),
        ({"ipv6Address": "10.0.0.1/24"}, "spec.bgp.ipv6Address"),
        ({"ipv4Address": "10.0.0.1/33"}, "spec.bgp.ipv4Address"),
        ({"ipv4Address": 10}, "spec.bgp.ipv4Address"),
    ],
)
def test_a_bad_address_of_a_node_is_refused(bgp: dict[str, Any], field: str) -> None:
    assert refused(v3("Node", {"bgp": bgp})).field == field


def test_a_node_of_kubernetes_is_not_a_node_of_calico() -> None:
    told: list[str] = []
    assert parse_resource({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "x"}}, told.append) is None
    assert told == ["kind Node of v1"]


def test_addresses_of_a_block_that_other_nodes_use() -> None:
    attributes = [
        {"handle_id": "a", "secondary": {"node": "node1", "pod": "p"}},
        {"handle_id": "b", "secondary": {"node": "node2"}},
        {"handle_id": "windows-reserved-ipam-handle"},
    ]
    parsed = parse(block(allocations=[0, 1, None, 2], attributes=attributes))
    borrowed = (Borrowed(Net.parse("10.48.0.1"), "node2"),)
    assert parsed == IPAMBlock(
        ResourceKey(Kind.IPAM_BLOCK, "10-48-0-0-30"), Net.parse("10.48.0.0/30"), "node1", borrowed
    )
    assert [
        entry.node for entry in parse(block(affinity=None, allocations=[0, 1], attributes=attributes)).borrowed
    ] == [
        "node1",
        "node2",
    ]


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"cidr": "0.0.0.0/0"}, "spec.cidr"),
        ({"affinity": "node1"}, "spec.affinity"),
        ({"affinity": "host:"}, "spec.affinity"),
        ({"allocations": [0]}, "spec.allocations[0]"),
        ({"allocations": [-1]}, "spec.allocations[0]"),
        ({"allocations": [None] * 5}, "spec.allocations"),
        ({"cidr": "fd00::/64", "allocations": [None] * 4097}, "spec.allocations"),
        ({"attributes": [{"secondary": {"node": "a b"}}]}, "spec.attributes[0].secondary.node"),
        ({"deleted": "perhaps"}, "spec.deleted"),
    ],
)
def test_a_bad_block_is_refused_by_field(spec: dict[str, Any], field: str) -> None:
    assert refused(block(**spec)).field == field


@pytest.mark.parametrize("state", [None, "", "confirmed", "pendingDeletion"])
def test_an_affinity_counts(state: str | None) -> None:
    key = ResourceKey(Kind.BLOCK_AFFINITY, "node1-10-48-0-0-26")
    assert parse(affinity(state=state, deleted="false")) == BlockAffinity(key, Net.parse("10.48.0.0/26"), "node1")


@pytest.mark.parametrize("spec", [{"deleted": True}, {"deleted": "true"}, {"state": "pending"}, {"type": "virtual"}])
def test_an_affinity_counts_as_absent(spec: dict[str, Any]) -> None:
    assert parse(affinity(**spec)) == Absent(ResourceKey(Kind.BLOCK_AFFINITY, "node1-10-48-0-0-26"))


def test_a_deleted_block_is_absent_also_under_the_name_of_its_cidr() -> None:
    obj = block(deleted=True)
    obj["metadata"]["name"] = "some-name"
    key = ResourceKey(Kind.IPAM_BLOCK, "10-48-0-0-30")
    assert parse_payload(json.dumps(obj).encode(), key) == Absent(key)


@pytest.mark.parametrize("opens", [b"[", b'{"a":'], ids=["lists", "objects"])
def test_settings_that_nest_too_deeply_are_refused(opens: bytes) -> None:
    """They are kept as they were read: to compare or print what Python just could read may be too much further down."""
    closes = {b"[": b"]", b'{"a":': b"}"}[opens]
    key = ResourceKey(Kind.FELIX_CONFIGURATION, "default")
    document = json.dumps(v3("FelixConfiguration", {"logSeverityScreen": "X"}, "default")).encode()
    for depth in (15, 16, 200, 980):
        payload = document.replace(b'"X"', opens * depth + b"1" + closes * depth)
        if depth < 16:
            assert isinstance(parse_payload(payload, key), FelixConfiguration)
        else:
            with pytest.raises(InvalidResource, match=r"spec: is nested too deeply|JSON is nested too deeply"):
                parse_payload(payload, key)


def test_felix_configuration_stays_as_written() -> None:
    spec = {"ipv6Support": False, "routeRefreshInterval": "90s", "somethingNew": [1]}
    parsed = parse(v3("FelixConfiguration", spec, "default"))
    assert parsed == FelixConfiguration(ResourceKey(Kind.FELIX_CONFIGURATION, "default"), spec)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"kind": None}, "kind"),
        ({"kind": 5}, "kind"),
        ({"apiVersion": ""}, "apiVersion"),
        ({"metadata": None}, "metadata.name"),
        ({"metadata": []}, "metadata"),
        ({"metadata": {"name": "UPPER"}}, "metadata.name"),
        ({"metadata": {"name": "a" * 254}}, "metadata.name"),
        ({"metadata": {"name": 2026}}, "metadata.name"),
        ({"metadata": {"name": "x", "namespace": "ns"}}, "metadata.namespace"),
        ({"metadata": {"name": "x", "labels": {"a": 1}}}, "metadata.labels"),
        ({"spec": 1}, "spec"),
        ({"spec": None}, "spec.cidr"),
    ],
)
def test_a_bad_frame_is_refused_by_field(changes: dict[str, Any], field: str) -> None:
    assert refused({**pool(), **changes}).field == field


@pytest.mark.parametrize("obj", [None, 1, "x", [], [{}]])
def test_what_is_no_object_is_refused(obj: object) -> None:
    assert "not an object" in refused(obj).reason


def test_unknown_kinds_and_fields_are_told_and_passed_over() -> None:
    told: list[str] = []
    obj = pool(foo=1, ipipMode="Never")
    obj["extra"] = {}
    obj["metadata"].update(uid="1", annotations={}, ownerReference=[])
    assert parse_resource(obj, told.append)
    assert told == ["IPPool field extra", "IPPool field metadata.ownerReference", "IPPool field spec.foo"]
    assert parse_resource({"apiVersion": "projectcalico.org/v3", "kind": "BGPFilter"}, told.append) is None
    assert told[-1] == "kind BGPFilter"
    assert parse_resource({"apiVersion": "projectcalico.org/v3", "kind": "Namespace"}, told.append) is None
    assert told[-1] == "kind Namespace of projectcalico.org/v3"


def test_both_api_versions_are_one() -> None:
    assert parse({**pool(), "apiVersion": "crd.projectcalico.org/v1"}) == parse(pool())


def test_a_payload_must_be_what_its_topic_says() -> None:
    payload = json.dumps(workload()).encode()
    key = ResourceKey(Kind.WORKLOAD_ENDPOINT, "node1-k8s-p-eth0", "ns")
    assert parse_payload(payload, key).key == key
    for other in (key._replace(name="y"), key._replace(namespace="other"), ResourceKey(Kind.IP_POOL, key.name)):
        with pytest.raises(InvalidResource) as caught:
            parse_payload(payload, other)
        assert caught.value.key == other
        assert "the topic is for" in str(caught.value)


def test_a_block_may_be_keyed_by_its_own_name_or_by_its_cidr() -> None:
    payload = json.dumps(affinity()).encode()
    for name in ("10-48-0-0-26", "node1-10-48-0-0-26"):
        assert parse_payload(payload, ResourceKey(Kind.BLOCK_AFFINITY, name)).key.name == name
    with pytest.raises(InvalidResource):
        parse_payload(payload, ResourceKey(Kind.BLOCK_AFFINITY, "10-48-0-64-26"))


@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b"\xff", b'"\xff"', b"[" * 100_000, b'{"a":' * 100_000, b'"\\ud800"', b"9" * 5000, b"1e999", b"{} {}"],
)
def test_broken_json_is_refused_in_one_sentence(payload: bytes) -> None:
    with pytest.raises(InvalidResource) as caught:
        parse_json(payload)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("payload", "at"), [(b'"\xff"', 1), (b'{"a": "\xc3\xa9\xed\xa0\x80"}', 9), (b'{"a\x80": 1}', 3)]
)
def test_a_payload_that_is_not_utf8_is_told_by_its_byte(payload: bytes, at: int) -> None:
    """Whatever class of error this release of msgspec has for it."""
    with pytest.raises(InvalidResource) as caught:
        parse_json(payload)
    assert str(caught.value) == f"not JSON: byte {at} is not UTF-8"
    with pytest.raises(InvalidResource, match="not UTF-8"):
        parse_payload(payload, ResourceKey(Kind.WORKLOAD_ENDPOINT, "w", "default"))


def test_the_size_of_a_payload_is_limited() -> None:
    assert parse_json(b" " * (MAX_PAYLOAD_BYTES - 2) + b"{}") == {}
    with pytest.raises(InvalidResource, match="more than the 1048576"):
        parse_json(b" " * (MAX_PAYLOAD_BYTES - 1) + b"{}")


def test_the_key_of_a_bad_object_can_still_be_told() -> None:
    assert object_key(pool(cidr="nonsense")) == ResourceKey(Kind.IP_POOL, "x")
    assert object_key({"kind": "IPPool"}) is None


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=12), children, max_size=4),
    max_leaves=10,
)
GOOD = [workload(mac="ee:ee:ee:ee:ee:ee"), pool(), block(allocations=[0], attributes=[{"secondary": {"node": "n"}}]),
        affinity(), v3("Node", {"bgp": {"ipv4Address": "10.0.0.1/24"}, "addresses": [INTERNAL]}),
        v3("FelixConfiguration", {"ipv6Support": True})]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += places(item, (*path, key))
    return found


@given(st.data())
@settings(max_examples=300)
def test_one_wrong_value_anywhere_gives_a_resource_or_one_sentence(data: st.DataObject) -> None:
    obj: Any = copy.deepcopy(data.draw(st.sampled_from(GOOD)))
    path = data.draw(st.sampled_from(places(obj)))
    inner = obj
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = data.draw(values)
    try:
        parse_resource(obj)
    except InvalidResource as error:
        assert error.reason
        assert "\n" not in str(error)


@given(st.data())
@settings(max_examples=300)
def test_a_payload_is_what_its_object_is(data: st.DataObject) -> None:
    """An endpoint of a payload may go a shorter way than an object of a file: same resource, same words told of it."""
    obj: Any = workload(mac="ee:ee:ee:ee:ee:ee", ipv4Gateway="169.254.1.1", profiles=["kns.default"])
    obj["metadata"] |= {"labels": {"a": "b"}, "annotations": {"c": "d"}, "creationTimestamp": "2026-01-01T00:00:00Z"}
    key = object_key(obj)
    assert key is not None
    path = data.draw(st.sampled_from(places(obj)))
    inner = obj
    for step in path[:-1]:
        inner = inner[step]
    wrong = data.draw(values | st.just(inner[path[-1]]))
    if isinstance(inner, dict) and data.draw(st.booleans()):
        inner["more"] = wrong
    else:
        inner[path[-1]] = wrong
    payload = json.dumps(obj).replace("Infinity", "0").replace("NaN", "0").encode()

    def outcome(parse: Callable[[Ignored], object]) -> tuple[object, list[str]]:
        told: list[str] = []
        try:
            return parse(told.append), told
        except InvalidResource as error:
            return error.reason, told

    whole = outcome(lambda ignored: parse_payload(payload, key, ignored))
    if object_key(parse_json(payload)) == key:
        assert whole == outcome(lambda ignored: parse_resource(parse_json(payload), ignored))
    else:
        assert isinstance(whole[0], str)


@given(st.binary(max_size=200) | values.map(lambda value: json.dumps(value).encode()))
def test_any_payload_gives_a_resource_or_invalid_resource(payload: bytes) -> None:
    for kind in Kind:
        with pytest.raises(InvalidResource):
            parse_payload(payload, ResourceKey(kind, "x"))


def _document(kind: str, spec: object, **others: object) -> dict[str, object]:
    version = "felixpy/v1" if kind == "NodeState" else "projectcalico.org/v3"
    return {"apiVersion": version, "kind": kind, "metadata": {"name": "one"}, "spec": spec} | others


_BLOCK = {"cidr": "10.48.0.0/26", "affinity": "host:n1", "allocations": [0, None], "unallocated": []}
_ATTRIBUTE = {"handle_id": "h", "secondary": {"node": "n2"}}
_BGP = {"ipv4Address": "10.0.0.1/24", "ipv6Address": "fd00::1/64", "asNumber": [64512]}
_KEY = "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA="
USUAL = {
    "block": (_document("IPAMBlock", _BLOCK | {"attributes": [_ATTRIBUTE]}), True),
    "block, deleted": (_document("IPAMBlock", _BLOCK | {"attributes": [{}], "deleted": True}), False),
    "block, unknown field": (_document("IPAMBlock", _BLOCK | {"attributes": [{"colour": "red"}]}), False),
    "node": (_document("Node", {"bgp": _BGP, "ipv4VXLANTunnelAddr": "10.48.0.1"}), True),
    "node, its key": (_document("Node", {"bgp": _BGP}, status={"wireguardPublicKey": _KEY}), True),
    "node without routing": (_document("Node", {"bgp": {}}), True),
    "node of CRDs, its labels": (
        _document(
            "Node",
            {"bgp": _BGP},
            apiVersion="crd.projectcalico.org/v1",
            metadata={"name": "one", "annotations": {"projectcalico.org/metadata": '{"labels":{"rack":"r1"}}'}},
        ),
        False,
    ),
    "node, unknown field": (_document("Node", {"bgp": _BGP | {"colour": "red"}}), False),
    "node, bad tunnel": (_document("Node", {"bgp": _BGP, "ipv4VXLANTunnelAddr": "10.48.0.999"}), False),
    "node, address without prefix": (_document("Node", {"bgp": {"ipv4Address": "10.0.0.1"}}), False),
    "node, no object": (_document("Node", None), False),
    "node's own word": (
        _document("NodeState", {"bgp": _BGP}, metadata={"name": "one", "creationTimestamp": "2026-11-01T00:00:00Z"}),
        True,
    ),
    "endpoint of CRDs, its labels": (
        _document(
            "WorkloadEndpoint",
            {"node": "n1", "interfaceName": "cali1", "ipNetworks": ["10.48.0.2/32"]},
            apiVersion="crd.projectcalico.org/v1",
            metadata={"name": "one", "annotations": {"projectcalico.org/metadata": '{"labels":{"app":"web"}}'}},
        ),
        False,
    ),
}


@pytest.mark.parametrize("case", USUAL)
def test_what_is_read_at_one_go_is_what_a_closer_look_finds(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    document, at_one_go = USUAL[case]
    kind = Kind(str(document["kind"]))
    key = ResourceKey(kind, "one", "default" if kind is Kind.WORKLOAD_ENDPOINT else "")
    payload = json.dumps(document).encode()

    def read() -> tuple[object, list[str]]:
        told: list[str] = []
        return parse_payload(payload, key, told.append), told

    found = read()
    assert (parsing._usual(payload, key) is not None) == at_one_go
    monkeypatch.setattr(parsing, "_USUAL", {})
    assert read() == found
    assert not (at_one_go and found[1])
