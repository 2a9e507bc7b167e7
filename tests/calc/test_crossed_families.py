"""IPv6 over IPv4 and the reverse, for nodes without an address of a family: what is calculated, and what is not."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from felixpy.calc.overlay import workload_mtu
from felixpy.config import Settings
from felixpy.model.net import FAMILIES, Family, format_address
from felixpy.model.resources import Encapsulation, Node
from felixpy.model.vtep import link_local, vtep_mac
from tests.calc.samples import HOST_FACTS, SETTINGS, block, calculated, node, pool, problems, routes, said

CROSSING = replace(SETTINGS, ipv6_over_ipv4=True, ipv4_over_ipv6=True)
OWN = ("192.0.2.1/24", "2001:db8::1/64")
OWN_ENDS = ("10.65.1.63", "fd00:65::3f")
ENDS = ("10.65.2.63", "fd00:65::7f")
BLOCKS = (block("10.65.2.0/26", "n2"), block("fd00:65::40/122", "n2"))
TO = {Family.V4: "10.65.2.0/26", Family.V6: "fd00:65::40/122"}
GATEWAY = "169.254.1.1/32"
PEERS = {
    "dual stack": node("n2", "192.0.2.2/24", "2001:db8::2/64", vxlan=ENDS),
    "IPv4": node("n2", "192.0.2.2/24", vxlan=ENDS),
    "IPv6": node("n2", "2001:db8::2/64", vxlan=ENDS),
}
POOLS = (
    pool("four", "10.65.0.0/16", encapsulation=Encapsulation.VXLAN),
    pool("six", "fd00:65::/64", encapsulation=Encapsulation.VXLAN),
)


def mac_gateway(family: Family) -> str:
    return format_address(link_local(vtep_mac("n2", family)))


def ways(peer: Node, own: Node, settings: Settings = CROSSING) -> tuple[dict[str, str], dict[str, str]]:
    found = calculated(own, peer, *POOLS, *BLOCKS, settings=settings)
    return routes(found), problems(found)


@pytest.mark.parametrize("peer", PEERS)
def test_what_carries_each_family_to_a_node(peer: str) -> None:
    found, wrong = ways(PEERS[peer], node("n1", *OWN, vxlan=OWN_ENDS))
    four = "vxlan-v6.calico" if peer == "IPv6" else "vxlan.calico"
    six = "vxlan.calico" if peer == "IPv4" else "vxlan-v6.calico"
    outer = Family.V4 if peer == "IPv4" else Family.V6
    assert (found[TO[Family.V4]], found[TO[Family.V6]]) == (
        f"via 10.65.2.63 dev {four} onlink",
        f"via {mac_gateway(outer)} dev {six} onlink",
    )
    assert wrong == {}


@pytest.mark.parametrize(("own", "device"), [(OWN[:1], "vxlan.calico"), (OWN[1:], "vxlan-v6.calico")])
def test_a_node_that_lacks_a_family_has_one_device_for_both(own: tuple[str, ...], device: str) -> None:
    found, wrong = ways(PEERS["dual stack"], node("n1", *own, vxlan=OWN_ENDS))
    assert f"dev {device}" in found[TO[Family.V4]] and f"dev {device}" in found[TO[Family.V6]]
    assert wrong == {}
    kernel = said(calculated(node("n1", *own, vxlan=OWN_ENDS), PEERS["dual stack"], *POOLS, *BLOCKS, settings=CROSSING))
    other = ({"vxlan.calico", "vxlan-v6.calico"} - {device}).pop()
    assert {"10.65.1.63 dev " + device, "fd00:65::3f dev " + device, device} <= kernel.keys()
    assert not [one for one in kernel if other in one.split()]
    assert (found.get(GATEWAY) == f"dev {device}") == (device == "vxlan-v6.calico"), "workloads have a gateway"


@pytest.mark.parametrize("peer", ["IPv4", "IPv6"])
@pytest.mark.parametrize("crossing", [SETTINGS, replace(CROSSING, vxlan_enabled=False)], ids=["off", "no VXLAN"])
def test_it_is_off_unless_asked_for(peer: str, crossing: Settings) -> None:
    found, wrong = ways(PEERS[peer], node("n1", *OWN, vxlan=OWN_ENDS), crossing)
    lacking = Family.V6 if peer == "IPv4" else Family.V4
    assert TO[lacking] not in found
    assert crossing is not SETTINGS or wrong["n2"] == f"node n2 has no {lacking} address"


@pytest.mark.parametrize("encapsulation", [Encapsulation.NONE, Encapsulation.IPIP])
def test_nothing_but_vxlan_crosses(encapsulation: Encapsulation) -> None:
    found = calculated(
        node("n1", *OWN, vxlan=OWN_ENDS), PEERS["IPv6"], pool("four", "10.65.0.0/16", encapsulation=encapsulation),
        *BLOCKS, settings=CROSSING,
    )  # fmt: skip
    assert TO[Family.V4] not in routes(found)


def test_two_nodes_without_a_family_in_common_have_no_way() -> None:
    found, wrong = ways(PEERS["IPv6"], node("n1", OWN[0], vxlan=OWN_ENDS))
    assert not found.keys() & set(TO.values())
    assert wrong["n2"] == "node n2 has no IPv4 address; this node has no IPv6 address of its own yet"


def test_a_device_that_carries_ipv6_is_never_too_small_for_it() -> None:
    small = replace(HOST_FACTS, addresses=tuple(one._replace(mtu=1300) for one in HOST_FACTS.addresses))
    own = node("n1", OWN[0], vxlan=OWN_ENDS)
    for settings, mtu, told in ((SETTINGS, 1250, False), (CROSSING, 1280, True)):
        found = calculated(own, *POOLS, settings=settings, host=small)
        assert said(found)["vxlan.calico"].endswith(f" mtu {mtu}")
        said_so = "underlay MTU 1300 is too small for IPv6 in VXLAN (needs 1330)" in problems(found).get("n1", "")
        assert said_so == told


def test_workloads_fit_into_the_larger_of_the_headers_in_use() -> None:
    for own, mtu in ((OWN[:1], 1450), (OWN[1:], 1430), (OWN, 1430)):
        found = calculated(node("n1", *own, vxlan=OWN_ENDS), *POOLS, settings=CROSSING)
        chosen = workload_mtu(found.store, found.settings, HOST_FACTS)
        assert chosen is not None and chosen.mtu == mtu


@pytest.mark.parametrize("family", FAMILIES)
def test_an_address_that_comes_ends_the_detour(family: Family) -> None:
    lacking = PEERS["IPv6" if family is Family.V4 else "IPv4"]
    settled = calculated(
        node("n1", *OWN, vxlan=OWN_ENDS), lacking, *POOLS, *BLOCKS, PEERS["dual stack"], settings=CROSSING
    )
    direct = calculated(node("n1", *OWN, vxlan=OWN_ENDS), PEERS["dual stack"], *POOLS, *BLOCKS, settings=CROSSING)
    assert said(settled) == said(direct)
