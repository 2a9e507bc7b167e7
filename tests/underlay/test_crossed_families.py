"""IPv6 over an IPv4 underlay and the reverse, by packets and with every back-end: n1 has addresses of both families, n2
none of IPv4, n3, behind the router, none of IPv6."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from felixpy.model.net import Family, format_address
from felixpy.model.vtep import format_mac, link_local, vtep_mac
from tests.kernel import run
from tests.netns import enter_new_network, enter_private_namespaces
from tests.underlay.lab import N1, N2, N3, Lab, Spec, becomes, inside, node, tries, v3
from tests.underlay.packets import counting
from tests.underlay.test_tunnel_rules import BACKENDS

CROSSED = {"ipv6OverIPv4": True, "ipv4OverIPv6": True}
OTHER_END = {4: N2, 6: N3}
"""The node that has no address of a family."""
DEVICES = {4: "vxlan-v6.calico", 6: "vxlan.calico"}
"""Through which device a family goes to that node."""
OUTER = {4: "ip6", 6: "ip"}
FAMILIES = pytest.mark.parametrize("family", [4, 6])


def workload(spec: Spec, family: int) -> str:
    return spec.workload4 if family == 4 else spec.workload6


def routes(spec: Spec) -> dict[str, dict[str, Any]]:
    found = [one for family in ("-4", "-6") for one in json.loads(run("ip", "-n", spec.name, "-j", family, "route"))]
    return {one["dst"]: one for one in found}


def block(spec: Spec, family: int) -> str:
    return f"10.48.{spec.number}.0/26" if family == 4 else f"fd00:48:0:{spec.number}::/122"


def reaches_everywhere(lab: Lab) -> None:
    """Workloads of n1 and of the others reach each other in both families, as does n1 itself."""
    for other in (N2, N3):
        for family in (4, 6):
            for one, to in ((N1, other), (other, N1)):
                becomes(
                    lambda one=one, to=to, family=family: lab.reaches(one, to, family),  # type: ignore[misc]
                    f"{one.name} to {to.name}, IPv{family}\n{lab.log(one)[-3000:]}",
                )


@pytest.fixture(scope="module", params=BACKENDS)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Nodes whose other addresses are gone, and that cross families; tests leave it so."""
    enter_private_namespaces()
    enter_new_network()
    found = Lab(settings=BACKENDS[request.param])
    try:
        found.ip("n2", f"addr del {N2.ipv4} dev eth0")
        found.ip("n3", f"addr del {N3.ipv6} dev eth0")
        found.put_cluster("Always", "CrossSubnet", natOutgoing=True)
        found.put(node(N2, bgp={"ipv6Address": N2.ipv6}), node(N3, bgp={"ipv4Address": N3.ipv4}))
        found.put(v3("FelixConfiguration", "default", CROSSED))
        found.start()
        reaches_everywhere(found)
        yield found
    finally:
        found.close()


@FAMILIES
def test_what_stands_in_the_kernel(lab: Lab, family: int) -> None:
    other, device = OTHER_END[family], DEVICES[family]
    mac = vtep_mac(other.name, Family.V6 if family == 4 else Family.V4)
    gateway = other.tunnel4 if family == 4 else format_address(link_local(mac))
    way = routes(N1)[block(other, family)]
    assert (way["gateway"], way["dev"]) == (gateway, device)
    assert f"{gateway} lladdr {format_mac(mac)} PERMANENT" in run("ip", "-n", "n1", "neigh", "show", "dev", device)
    underlay = other.ipv6 if family == 4 else other.ipv4
    fdb = inside("n1", "bridge", "fdb", "show", "dev", device)
    assert f"{format_mac(mac)} dst {underlay.partition('/')[0]} self permanent" in fdb
    own = N1.tunnel4 if family == 4 else N1.tunnel6
    assert f" {own}/" in run("ip", "-n", "n1", "-o", "addr", "show", "dev", device)
    assert routes(N1)[block(N3 if family == 4 else N2, family)]["dev"] != device, "both have an address of the family"


@FAMILIES
def test_packets_are_in_vxlan_of_the_other_family_and_not_tracked(lab: Lab, family: int) -> None:
    other, outer = OTHER_END[family], OUTER[family]
    seen = ("udp dport 4789 ct state untracked", "udp dport 4789 ct state != untracked")
    with (
        counting(other.name, "input", *seen, family=outer) as arrived,
        counting("n1", "output", *seen, family=outer) as left,
    ):
        assert lab.reaches(N1, other, family, count=3)
        for untracked, tracked in (arrived(), left()):
            assert tracked == 0 and untracked >= 3


@FAMILIES
def test_the_node_itself_reaches_workloads_whatever_address_it_is_bound_to(lab: Lab, family: int) -> None:
    other = OTHER_END[family]
    own = (N1.ipv4 if family == 4 else N1.ipv6).partition("/")[0]
    ping = ("ping", f"-{family}", "-c", "1", "-W", "2")
    assert tries("n1", *ping, workload(other, family)), "not bound"
    assert tries("n1", *ping, "-I", own, workload(other, family)), (
        "bound to an address that the other end cannot answer"
    )
    assert tries(other.name, *ping, workload(N1, family)), "of the node without an address of the family"


@FAMILIES
def test_full_packets_fit(lab: Lab, family: int) -> None:
    """1430: what the larger headers of the two leave."""
    other, size = OTHER_END[family], 1430 - (28 if family == 4 else 48)
    assert tries("w1", "ping", f"-{family}", "-M", "do", "-s", str(size), "-c", "1", "-W", "2", workload(other, family))


@FAMILIES
def test_explain_and_plan_know_the_way(lab: Lab, family: int) -> None:
    other, device = OTHER_END[family], DEVICES[family]
    said = lab.felixpy(N1, "explain", workload(N1, family), workload(other, family), "icmp")
    ends = ("fd09::1", "fd09::2") if family == 4 else ("10.9.0.1", "10.9.7.3")
    mtu = 1430 if family == 4 else 1450
    assert f"tunnel       {device}: VXLAN id 4096, MTU {mtu}: {ends[0]} → {ends[1]} udp port 4789" in said
    assert "around it  passes, leaves by eth0" in said and f"the far side sees {ends[0]}" in said
    assert f"verdict      passes, leaves by {device}" in said


def test_check_misses_nothing_on_nodes_that_do_without(lab: Lab) -> None:
    for spec, lacking in ((N2, 4), (N3, 6)):
        found = {one["id"]: one for one in json.loads(lab.felixpy(spec, "check", "--json"))}
        assert (found[f"addr.v{lacking}"]["level"], found["peer.reach"]["level"]) == ("info", "ok")
        assert found["pool.overlap"]["level"] == found["route.gateway4"]["level"] == "ok"


def test_nothing_is_left_to_change(lab: Lab) -> None:
    for spec in (N1, N2, N3):
        assert "nothing to change" in lab.felixpy(spec, "plan")
    said = lab.felixpy(N1, "show", "underlay")
    assert "via 10.48.2.63 dev vxlan-v6.calico onlink" in said
    assert all("does not exist" not in lab.felixpy(one, "show", "underlay") for one in (N2, N3))


def is_solved(lab: Lab, one: Spec) -> bool:
    """Whether a tunnel that a node was said to lack is no problem any more."""
    told = [line for line in lab.log(one).splitlines() if "on this node" in line]
    return not told or '"problem solved"' in told[-1]


def test_what_no_family_leads_to_is_named(lab: Lab) -> None:
    for one, other, lacking in ((N2, N3, "IPv6"), (N3, N2, "IPv4")):
        assert block(other, 4) not in routes(one) and block(other, 6) not in routes(one)
        assert f"node {other.name} has no {lacking} address" in lab.log(one)
        becomes(
            lambda one=one: is_solved(lab, one),  # type: ignore[misc]
            f"a tunnel that it does without is no problem\n{lab.log(one)[-2000:]}",
        )


def test_it_is_off_unless_asked_for_and_follows_the_setting(lab: Lab) -> None:
    lab.put(v3("FelixConfiguration", "default", {}))
    for family, other in OTHER_END.items():
        gone = block(other, family)
        becomes(lambda gone=gone: gone not in routes(N1), f"no way\n{lab.log(N1)[-2000:]}")  # type: ignore[misc]
    assert "node n3 has no IPv6 address" in lab.log(N1)
    lab.put(v3("FelixConfiguration", "default", CROSSED))
    reaches_everywhere(lab)
