"""What of VXLAN and IPIP passes, by packets: from nodes, from workloads, from strangers, and that of other networks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from felixpy.model.net import Family
from felixpy.model.vtep import vtep_mac
from tests.netns import enter_new_network, enter_private_namespaces
from tests.underlay.lab import N1, N2, Lab, Spec, becomes, inside, tries, v3
from tests.underlay.packets import FORGED, INNER_PORT, counting, forge_ipip, forge_vxlan

BACKENDS = {
    "nftables": {"FELIX_NFTABLESMODE": "Enabled"},
    "legacy": {"FELIX_NFTABLESMODE": "Disabled", "FELIX_IPTABLESBACKEND": "Legacy"},
    "nft": {"FELIX_NFTABLESMODE": "Disabled", "FELIX_IPTABLESBACKEND": "NFT"},
}
TABLES = {4: "ip", 6: "ip6"}
ROUTER = {4: "10.9.0.254", 6: "fd09::fe"}
FAMILIES = pytest.mark.parametrize("family", [4, 6])
OURS, OTHERS = "udp dport 4789 @th,96,24 4096", "udp dport 4789 @th,96,24 9"


def address(spec: Spec, family: int) -> str:
    return (spec.ipv4 if family == 4 else spec.ipv6).partition("/")[0]


def workload(spec: Spec, family: int) -> str:
    return spec.workload4 if family == 4 else spec.workload6


@pytest.fixture(scope="module", params=BACKENDS)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Two nodes whose pools always encapsulate; tests leave it as it is."""
    enter_private_namespaces()
    enter_new_network()
    found = Lab((N1, N2))
    try:
        found.put_cluster("Always", "Always", natOutgoing=True)
        found.start(settings=BACKENDS[request.param])
        found.all_reach()
        yield found
    finally:
        found.close()


@pytest.fixture
def permissive(lab: Lab) -> Iterator[None]:
    """Workloads may send tunnels' packets."""
    allowed = {"allowVXLANPacketsFromWorkloads": True, "allowIPIPPacketsFromWorkloads": True}
    lab.put(v3("FelixConfiguration", "default", allowed))
    yield
    lab.put(v3("FelixConfiguration", "default", {}))
    for family in (4, 6):
        becomes(lambda family=family: not workload_tunnels(family), "the agent's rules are back")


def workload_tunnels(family: int) -> int:
    """How many packets of tunnels come from a workload to the router, of some that it is sent now."""
    with counting(
        "fabric", "input", OURS, *(["ip protocol 4"] if family == 4 else []), "udp dport 4790", family=TABLES[family]
    ) as routed:
        to_workload("w2", family, ROUTER[family])
        if family == 4:
            forge_ipip("w2", ROUTER[4], N2.workload4, N1.workload4)
        forge_vxlan("w2", ROUTER[family], workload(N2, family), workload(N1, family), bytes(6), port=4790)
        becomes(lambda: routed()[-1] >= FORGED, "what may pass, and was sent last")
        return sum(routed()[:-1])


def to_workload(name: str, family: int, target: str, vni: int = 4096) -> None:
    """Forge what would be unpacked on n1 for its workload, as if it came from n2's."""
    mac = vtep_mac("n1", Family.V4 if family == 4 else Family.V6)
    forge_vxlan(name, target, workload(N2, family), workload(N1, family), mac, vni)


@FAMILIES
def test_vxlan_of_known_nodes_alone_is_unpacked(lab: Lab, family: int) -> None:
    with counting("w1", "prerouting", f"udp dport {INNER_PORT}", family=TABLES[family]) as arrived:
        to_workload("fabric", family, address(N1, family))
        assert arrived() == [0], "from nobody in the cluster"
        to_workload("n2", family, address(N1, family))
        becomes(lambda: arrived() == [FORGED], "from a node")


@FAMILIES
def test_vxlan_of_another_network_on_the_same_port_is_left_alone(lab: Lab, family: int) -> None:
    mine, theirs = address(N1, family), ROUTER[family]
    for name, local, remote, inner in (("n1", mine, theirs, 1), ("fabric", theirs, mine, 2)):
        lab.ip(
            name,
            f"link add other type vxlan id 9 dstport 4789 local {local} remote {remote}",
            f"addr add 172.20.{family}.{inner}/24 dev other",
            "link set other up",
        )
    seen = (f"{OTHERS} ct state untracked", OTHERS)
    with counting("n1", "input", *seen, family=TABLES[family]) as arrived:
        becomes(lambda: tries("n1", "ping", "-c", "2", "-i", "0.1", "-W", "1", f"172.20.{family}.2"), "their ping")
        untracked, all_of_them = arrived()
    assert untracked == 0 < all_of_them
    for name in ("n1", "fabric"):
        lab.ip(name, "link del other")


@FAMILIES
def test_vxlan_between_nodes_is_not_tracked(lab: Lab, family: int) -> None:
    seen = (f"{OURS} ct state untracked", f"{OURS} ct state != untracked")
    table = TABLES[family]
    with counting("n1", "input", *seen, family=table) as arrived, counting("n1", "output", *seen, family=table) as left:
        assert lab.reaches(N1, N2, family, count=3)
        for untracked, tracked in (arrived(), left()):
            assert tracked == 0 and untracked >= 3


@FAMILIES
def test_workloads_send_no_vxlan_to_anybody(lab: Lab, family: int) -> None:
    table = TABLES[family]
    at_router = counting("fabric", "input", OURS, "udp dport 4790", family=table)
    at_node = counting("n2", "input", f"iifname cali1 {OURS}", family=table)
    at_workload = counting("w1", "prerouting", f"udp dport {INNER_PORT}", family=table)
    with at_router as routed, at_node as own, at_workload as arrived:
        for target in (ROUTER[family], address(N1, family), address(N2, family)):
            to_workload("w2", family, target)
        mac = bytes(6)
        forge_vxlan("w2", ROUTER[family], workload(N2, family), workload(N1, family), mac, port=4790)
        becomes(lambda: routed() == [0, FORGED], "only what is no VXLAN")
        assert (own(), arrived()) == ([0], [0])


def test_workloads_send_no_ipip_to_anybody(lab: Lab) -> None:
    with counting("fabric", "input", "ip protocol 4", "udp dport 4790") as routed:
        for target in (ROUTER[4], address(N1, 4), address(N2, 4)):
            forge_ipip("w2", target, N2.workload4, N1.workload4)
        forge_vxlan("w2", ROUTER[4], N2.workload4, N1.workload4, bytes(6), port=4790)
        becomes(lambda: routed() == [0, FORGED], "only what is no IPIP")


def test_workloads_that_may_send_tunnels_packets_do(lab: Lab, permissive: None) -> None:
    with counting("fabric", "input", OURS, "ip protocol 4") as routed:

        def both_arrive() -> bool:
            to_workload("w2", 4, ROUTER[4])
            forge_ipip("w2", ROUTER[4], N2.workload4, N1.workload4)
            return min(routed()) >= FORGED

        becomes(both_arrive, "VXLAN and IPIP of a workload")


@FAMILIES
def test_a_process_bound_to_the_nodes_address_reaches_workloads_with_the_tunnels(lab: Lab, family: int) -> None:
    own = address(N1, family)
    tunnel = (N1.tunnel4 if family == 4 else N1.tunnel6).partition("/")[0]
    saddr = f"{TABLES[family]} saddr"
    echo = "icmp type echo-request" if family == 4 else "icmpv6 type echo-request"
    sent = f"udp dport {INNER_PORT}"
    seen = (
        f"{saddr} {tunnel} {echo}",
        f"{saddr} != {tunnel} {echo}",
        f"{saddr} {tunnel} {sent} udp sport >= 4790",
        sent,
    )
    with counting("w2", "prerouting", *seen, family=TABLES[family]) as arrived:
        ping = ("ping", f"-{family}", "-c", "1", "-W", "1")
        assert tries("n1", *ping, "-I", own, workload(N2, family)), "bound to the address"
        assert tries("n1", *ping, workload(N2, family)), "not bound"
        bound = "import socket,sys; s = socket.socket(socket.AddressFamily[sys.argv[1]], socket.SOCK_DGRAM)\n"
        bound += "s.bind((sys.argv[2], int(sys.argv[4]))); s.sendto(b'?', (sys.argv[3], 7123))"
        for port in ("4788", "1024", "50000"):
            inside(
                "n1", "python3", "-c", bound, "AF_INET" if family == 4 else "AF_INET6", own, workload(N2, family), port
            )
        becomes(lambda: arrived()[3] == 3, "datagrams")
        assert arrived() == [2, 0, 3, 3], "none with a source port at which answers would be taken for VXLAN"


def test_policy_of_a_host_endpoint_does_not_stop_tunnels_between_nodes(lab: Lab) -> None:
    closed = v3("HostEndpoint", "n1-eth0", {"node": "n1", "interfaceName": "eth0"})
    lab.put(closed)
    try:
        becomes(lambda: not tries("n1", "ping", "-c", "1", "-W", "1", ROUTER[4]), "the node is closed")
        assert lab.reaches(N1, N2, 4) and lab.reaches(N1, N2, 6)
        assert lab.reaches(N2, N1, 4) and lab.reaches(N2, N1, 6)
    finally:
        (lab.resources / "HostEndpoint-n1-eth0.yaml").unlink()
    becomes(lambda: tries("n1", "ping", "-c", "1", "-W", "1", ROUTER[4]), "open again")


def test_encapsulated_packets_of_external_nodes_are_accepted(lab: Lab) -> None:
    lab.put(v3("FelixConfiguration", "default", {"externalNodesList": ["10.9.0.254/32"]}))
    with counting("w1", "prerouting", f"udp dport {INNER_PORT}") as arrived:

        def arrives() -> bool:
            to_workload("fabric", 4, address(N1, 4))
            return arrived()[0] > 0

        becomes(arrives, "VXLAN from externalNodesList")
    lab.put(v3("FelixConfiguration", "default", {}))
    with counting("w1", "prerouting", f"udp dport {INNER_PORT}") as arrived:

        def stays_away() -> bool:
            before = arrived()
            to_workload("fabric", 4, address(N1, 4))
            return arrived() == before

        becomes(stays_away, "dropped again")
