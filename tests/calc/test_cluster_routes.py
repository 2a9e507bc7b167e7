"""Blocks of addresses: which routes they become, and when none: nothing leaves unencapsulated by accident."""

from __future__ import annotations

import itertools

import pytest
from msgspec.structs import replace

from felixpy.calc.entries import DeviceKey, ElementKey, Key, Nexthop, NexthopKey, RouteKey, Value, Vxlan
from felixpy.calc.graph import Calculation, Changes
from felixpy.calc.host import Host, HostAddress
from felixpy.calc.pool_ways import PoolWays
from felixpy.config import ProgramClusterRoutes
from felixpy.model.net import Family, Net
from felixpy.model.resources import Encapsulation, Resource, ResourceKey, Update
from felixpy.store.store import Store
from tests.calc.samples import (
    HOST_FACTS,
    SETTINGS,
    affinity,
    block,
    calculated,
    endpoint,
    node,
    pool,
    problems,
    routes,
    said,
)

POOLS = (pool("p4", "10.65.0.0/16"), pool("p6", "fd00:65::/64"))
NODES = (
    node("n1", "192.0.2.1/24", "2001:db8::1/64"),
    node("n2", "192.0.2.2/24", "2001:db8::2/64"),
    node("n3", "203.0.113.3/24", "2001:db8:3::3/64"),  # in no subnet of ours
    node("v4only", "192.0.2.4/24"),
)
CLUSTER = (*POOLS, *NODES)
BEYOND = (
    "node n3 at {} is in no subnet of this node: its blocks get no route; "
    "give the pool vxlanMode CrossSubnet, unless routers know the blocks"
)

CASES: dict[str, tuple[tuple[Resource, ...], dict[str, str], dict[str, str]]] = {
    "remote block": (
        (*CLUSTER, block("10.65.1.0/26", "n2")),
        {"10.65.1.0/26": "via 192.0.2.2 dev eth0 onlink"},
        {},
    ),
    "remote block, v6": (
        (*CLUSTER, block("fd00:65::40/122", "n2")),
        {"fd00:65::40/122": "via 2001:db8::2 dev eth0 onlink"},
        {},
    ),
    "remote affinity": (
        (*CLUSTER, affinity("10.65.1.0/26", "n2")),
        {"10.65.1.0/26": "via 192.0.2.2 dev eth0 onlink"},
        {},
    ),
    "node beyond our subnets": (
        (*CLUSTER, block("10.65.1.0/26", "n3"), block("fd00:65::40/122", "n3")),
        {},
        {"n3": f"{BEYOND.format('203.0.113.3')}; {BEYOND.format('2001:db8:3::3')}"},
    ),
    "own block with an address that a node beyond has borrowed": (
        (*CLUSTER, block("10.65.2.0/26", "n1", ("10.65.2.5/32", "n3"))),
        {"10.65.2.0/26": "blackhole"},
        {"n3": BEYOND.format("203.0.113.3")},
    ),
    "node in the subnet of a second interface": (
        (*CLUSTER, node("n5", "198.51.100.5/24"), block("10.65.1.0/26", "n5")),
        {"10.65.1.0/26": "via 198.51.100.5 dev eth1 onlink"},
        {},
    ),
    "own block": ((*CLUSTER, block("10.65.2.0/26", "n1")), {"10.65.2.0/26": "blackhole"}, {}),
    "own block, v6": ((*CLUSTER, block("fd00:65::80/122", "n1")), {"fd00:65::80/122": "blackhole"}, {}),
    "own affinity": ((*CLUSTER, affinity("10.65.2.0/26", "n1")), {"10.65.2.0/26": "blackhole"}, {}),
    "own block needs no pool": ((block("10.65.2.0/26", "n1"),), {"10.65.2.0/26": "blackhole"}, {}),
    "own block of one address": ((*CLUSTER, block("10.65.2.7/32", "n1")), {}, {}),
    "own block of one address, v6": ((*CLUSTER, block("fd00:65::7/128", "n1")), {}, {}),
    "block without affinity": ((*CLUSTER, block("10.65.1.0/26", None)), {}, {}),
    "borrowed by another node": (
        (*CLUSTER, block("10.65.2.0/26", "n1", ("10.65.2.5/32", "n2"))),
        {"10.65.2.0/26": "blackhole", "10.65.2.5/32": "via 192.0.2.2 dev eth0 onlink"},
        {},
    ),
    "borrowed by us": (
        (*CLUSTER, block("10.65.1.0/26", "n2", ("10.65.1.5/32", "n1"))),
        {"10.65.1.0/26": "via 192.0.2.2 dev eth0 onlink"},
        {},
    ),
    "borrowed between others, without affinity": (
        (*CLUSTER, block("10.65.1.0/26", None, ("10.65.1.5/32", "n2"), ("10.65.1.6/32", "n1"))),
        {"10.65.1.5/32": "via 192.0.2.2 dev eth0 onlink"},
        {},
    ),
    "no pool yet": (
        (*NODES, block("10.65.1.0/26", "n2")),
        {},
        {"10-65-1-0-26": "no pool covers this block yet"},
    ),
    "only a LoadBalancer pool": (
        (*NODES, pool("lb", "10.65.0.0/16", uses=["LoadBalancer"]), block("10.65.1.0/26", "n2")),
        {},
        {"10-65-1-0-26": "no pool covers this block yet"},
    ),
    "disabled pool still counts": (
        (*NODES, pool("p4", "10.65.0.0/16", disabled=True), block("10.65.1.0/26", "n2")),
        {"10.65.1.0/26": "via 192.0.2.2 dev eth0 onlink"},
        {},
    ),
    "node not known yet": (
        (*POOLS, NODES[0], block("10.65.1.0/26", "n2")),
        {},
        {"n2": "node n2 has no IPv4 address"},
    ),
    "node without the family's address": (
        (*CLUSTER, block("fd00:65::40/122", "v4only"), block("10.65.1.0/26", "v4only")),
        {"10.65.1.0/26": "via 192.0.2.4 dev eth0 onlink"},
        {"v4only": "node v4only has no IPv6 address"},
    ),
    "several borrowed for one reason": (
        (*POOLS, NODES[0], block("10.65.2.0/26", "n1", ("10.65.2.5/32", "n9"), ("10.65.2.6/32", "n9"))),
        {"10.65.2.0/26": "blackhole"},
        {"n9": "node n9 has no IPv4 address"},
    ),
    "narrower pool decides": (
        (
            *CLUSTER,
            pool("tunnel", "10.65.1.0/24", encapsulation=Encapsulation.IPIP),
            block("10.65.1.0/26", "n2"),
            block("10.65.2.0/26", "n2"),
        ),
        {"10.65.1.0/26": "via 192.0.2.2 dev tunl0 onlink", "10.65.2.0/26": "via 192.0.2.2 dev eth0 onlink"},
        {},
    ),
    "wider pool does not decide": (
        (*CLUSTER, pool("wide", "10.0.0.0/8", encapsulation=Encapsulation.IPIP), block("10.65.1.0/26", "n2")),
        {"10.65.1.0/26": "via 192.0.2.2 dev eth0 onlink"},
        {},
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backwards", [False, True], ids=["in order", "backwards"])
def test_what_a_block_becomes(name: str, backwards: bool) -> None:
    resources, expected, wrong = CASES[name]
    calculation = calculated(*(reversed(resources) if backwards else resources))
    assert routes(calculation) == expected
    assert problems(calculation) == wrong


@pytest.mark.parametrize("encapsulation", [Encapsulation.IPIP, Encapsulation.VXLAN])
def test_blocks_of_pools_that_always_encapsulate_are_never_routed_natively(encapsulation: Encapsulation) -> None:
    encapsulated = pool("p4", "10.65.0.0/16", encapsulation=encapsulation)
    blocks = (
        block("10.65.1.0/26", "n2"),
        block("10.65.3.0/26", "n1", ("10.65.3.5/32", "n2")),
        affinity("10.65.4.0/26", "n2"),
    )
    for nodes in (NODES, NODES[1:]):  # without our own node there is no tunnel to begin at
        found = routes(calculated(*nodes, encapsulated, *blocks))
        assert found.pop("10.65.3.0/26") == "blackhole"  # what nobody here uses still must not leave
        assert not [route for route in found.values() if "eth" in route]
    device = "tunl0" if encapsulation is Encapsulation.IPIP else "vxlan.calico"
    reachable = node("n2", "192.0.2.2/24", vxlan=["10.65.1.1"])
    found = routes(calculated(*NODES, reachable, encapsulated, *blocks))
    assert len([route for route in found.values() if device in route]) == 3


def test_ipip_has_a_device_of_its_own_where_the_kernel_could_take_another_outer_source() -> None:
    tunnel = pool("p4", "10.65.0.0/16", encapsulation=Encapsulation.IPIP)
    own = node("n1", "192.0.2.1/24", "2001:db8::1/64", ipip="10.65.2.62")
    calculation = calculated(*NODES, own, tunnel, block("10.65.1.0/26", "n2"))
    assert routes(calculation) == {"10.65.1.0/26": "via 192.0.2.2 dev tunl0 onlink"}, "eth1 leads to no other node"
    second = HostAddress("eth0", Net.parse_interface("192.0.2.9/24"))
    for host in (
        replace(HOST_FACTS, addresses=(second, *HOST_FACTS.addresses)),
        replace(HOST_FACTS, uplinks=("eth1",)),
    ):
        calculation.reconfigure(SETTINGS, host)
        assert routes(calculation) == {"10.65.1.0/26": "via 192.0.2.2 dev tunl-felixpy onlink"}
        kernel = said(calculation)
        assert kernel["tunl-felixpy"] == "ipip local 192.0.2.1 mtu 1480 up"
        assert "10.65.2.62 dev tunl-felixpy" in kernel and "tunl0" not in kernel
        calculation.reconfigure(SETTINGS, HOST_FACTS)
        assert said(calculation)["tunl0"] == "ipip mtu 1480 up"
    virtual = HostAddress("eth0", Net.parse("192.0.2.99/32"))
    assert not calculation.reconfigure(SETTINGS, replace(HOST_FACTS, addresses=(*HOST_FACTS.addresses, virtual)))


def test_a_pool_that_loses_its_encapsulation_gets_its_routes() -> None:
    encapsulated = pool("p4", "10.65.0.0/16", encapsulation=Encapsulation.VXLAN)
    calculation = calculated(*NODES, encapsulated, block("10.65.1.0/26", "n2"), POOLS[0])
    assert routes(calculation) == {"10.65.1.0/26": "via 192.0.2.2 dev eth0 onlink"}
    assert calculation.problems == {}


def test_a_mode_of_a_pool_that_changes_changes_nexthops_alone() -> None:
    peer = node("n2", "192.0.2.2/24", "2001:db8::2/64", vxlan=["10.65.1.63", "fd00:65::7f"])
    blocks = [block(f"10.65.{number}.0/26", "n2") for number in range(1, 9)]
    calculation = calculated(*CLUSTER, peer, *blocks)
    for encapsulation in (Encapsulation.VXLAN, Encapsulation.NONE, Encapsulation.IPIP):
        switched = pool("p4", "10.65.0.0/16", encapsulation=encapsulation)
        changes = calculation.calculate(calculation.store.apply(Update(switched.key, switched)))
        assert not [key for key in changes if isinstance(key, RouteKey)]
        assert [key for key in changes if isinstance(key, NexthopKey)] == [NexthopKey(Family.V4, "n2", "p4")]


def test_an_address_of_a_node_that_changes_is_one_nexthop_for_each_family() -> None:
    blocks = [block(f"10.65.{number}.0/26", "n2") for number in range(1, 9)] + [block("fd00:65::40/122", "n2")]
    calculation = calculated(*CLUSTER, *blocks)
    moved = node("n2", "192.0.2.22/24", "2001:db8::22/64")
    changes = calculation.calculate(calculation.store.apply(Update(moved.key, moved)))
    assert {type(key) for key in changes} == {NexthopKey, ElementKey}
    assert len([key for key in changes if isinstance(key, NexthopKey)]) == 2


class Counting(Calculation):
    """Notes what is calculated."""

    def __init__(self) -> None:
        super().__init__(Store("n1"), SETTINGS, HOST_FACTS)
        self.done: list[tuple[str, str]] = []

    def _contribute(self, thing: ResourceKey, entries: dict[Key, Value], changes: Changes) -> None:
        self.done.append((thing.name, thing.namespace))
        super()._contribute(thing, entries, changes)

    def take(self, *resources: Resource) -> list[tuple[str, str]]:
        """Names and namespaces of what an update each has calculated."""
        self.done = []
        for resource in resources:
            self.calculate(self.store.apply(Update(resource.key, resource)))
        return sorted(self.done)


def test_each_way_is_calculated_by_itself_whatever_leads_along_it() -> None:
    """A node with many pools and many blocks: no update of one of them calculates the others."""
    calculation = Counting()
    pools = [pool(f"p{number}", f"10.{number}.0.0/16") for number in range(1, 9)]
    calculation.take(*NODES, *pools)
    blocks = {one.key.name: [block(f"10.{n}.{b}.0/26", "n2") for b in range(8)] for n, one in enumerate(pools, 1)}
    for name, some in blocks.items():
        assert calculation.take(some[0]) == [(some[0].key.name, ""), ("n2", name)]
        for other in some[1:]:
            assert calculation.take(other) == [(other.key.name, "")]
    assert len(routes(calculation)) == 64
    switched = replace(pools[0], encapsulation=Encapsulation.IPIP)
    assert calculation.take(switched) == [("n1", ""), ("n2", ""), ("n2", "p1"), ("n3", ""), ("p1", ""), ("v4only", "")]
    for encapsulation in (Encapsulation.IPIP_CROSS_SUBNET, Encapsulation.IPIP):  # the tunnel is there before and after
        crossing = replace(pools[0], encapsulation=encapsulation)
        assert calculation.take(crossing) == [("n1", ""), ("n2", "p1"), ("p1", "")]
    moved = calculation.take(node("n2", "192.0.2.22/24", "2001:db8::2/64"))
    assert moved == [("n2", ""), *(("n2", one.key.name) for one in pools)]


def test_how_a_node_is_reached_is_decided_once_for_each_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its blocks nor the addresses of its tunnels ask again."""
    decided: list[str] = []
    decide = PoolWays.nexthop

    def counted(self: PoolWays, name: str) -> tuple[Nexthop | None, str]:
        decided.append(name)
        return decide(self, name)

    monkeypatch.setattr(PoolWays, "nexthop", counted)
    pools = [replace(one, encapsulation=Encapsulation.VXLAN) for one in POOLS]
    peer = node("n2", "192.0.2.2/24", "2001:db8::2/64", vxlan=["10.65.1.63", "fd00:65::7f"])
    blocks = [block(f"10.65.{number}.0/26", "n2") for number in range(8)] + [block("fd00:65::40/122", "n2")]
    calculation = calculated(*pools, NODES[0])
    dirty = {key for one in (peer, *blocks) for key in calculation.store.apply(Update(one.key, one))}
    calculation.calculate(dirty)
    assert len(routes(calculation)) == len(blocks)
    assert decided == ["n2", "n2"], "one for each family's pool"


def test_what_all_nodes_of_a_pool_have_in_common_follows_pools_this_node_and_its_host() -> None:
    """It is kept from one calculation to the next."""
    calculation = calculated(*CLUSTER, block("10.65.1.0/26", "n2"))
    natively = {"10.65.1.0/26": "via 192.0.2.2 dev eth0 onlink"}
    assert routes(calculation) == natively
    moved = node("n1", "203.0.113.1/24")
    cut = Host(addresses=(HostAddress("eth1", Net.parse_interface("203.0.113.1/24")),))
    for change in (
        lambda: calculation.calculate(calculation.store.apply(Update(moved.key, moved))),
        lambda: calculation.reconfigure(SETTINGS, cut),
    ):
        change()
    assert routes(calculation) == {}
    calculation.reconfigure(SETTINGS, HOST_FACTS)
    assert routes(calculation) == natively
    calculation.host = cut
    calculation.calculate(calculation.store.node_keys())
    assert routes(calculation) == {}


def test_a_node_that_gets_another_address_gets_another_route() -> None:
    calculation = calculated(*CLUSTER, block("10.65.1.0/26", "n2"), node("n2", "192.0.2.22/24"))
    assert routes(calculation) == {"10.65.1.0/26": "via 192.0.2.22 dev eth0 onlink"}


def test_an_interface_in_the_subnet_that_comes_late_leads_to_the_node_beyond() -> None:
    calculation = calculated(*CLUSTER, block("10.65.1.0/26", "n3"))
    late = HostAddress("eth2", Net.parse_interface("203.0.113.1/24"))
    calculation.reconfigure(SETTINGS, replace(HOST_FACTS, addresses=(*HOST_FACTS.addresses, late)))
    assert routes(calculation) == {"10.65.1.0/26": "via 203.0.113.3 dev eth2 onlink"}
    assert calculation.problems == {}
    calculation.reconfigure(SETTINGS, HOST_FACTS)
    assert (routes(calculation), problems(calculation).keys()) == ({}, {"n3"})


def test_a_bgp_speaker_keeps_its_routes_to_itself() -> None:
    settings = replace(SETTINGS, program_cluster_routes=ProgramClusterRoutes.DISABLED)
    blocks = block("10.65.1.0/26", "n2"), block("10.65.2.0/26", "n1"), block("10.65.9.0/26", "nobody")
    calculation = calculated(*CLUSTER, *blocks, settings=settings)
    assert (routes(calculation), calculation.problems) == ({}, {})
    local = calculated(*CLUSTER, *blocks, endpoint("a", "10.65.2.3"), settings=settings)
    assert routes(local) == {"10.65.2.3/32": "dev cali-a"}


@pytest.mark.parametrize(
    ("off", "expected"), [("ipv4_support", {"fd00:65::40/122"}), ("ipv6_support", {"10.65.1.0/26"})]
)
def test_a_family_that_is_off_has_no_routes_and_no_problem(off: str, expected: set[str]) -> None:
    blocks = block("10.65.1.0/26", "n2"), block("fd00:65::40/122", "n2"), block("10.65.9.0/26", "v4only")
    calculation = calculated(*CLUSTER, *blocks[:2], settings=replace(SETTINGS, **{off: False}))
    assert routes(calculation).keys() == expected
    assert calculation.problems == {}


def test_a_local_workload_wins_over_a_route_to_another_node() -> None:
    """An address that moved here while the block still says that its old node borrowed it."""
    lent = block("10.65.2.0/26", "n1", ("10.65.2.5/32", "n2"))
    local = endpoint("a", "10.65.2.5")
    for resources in ((lent, local), (local, lent)):
        calculation = calculated(*CLUSTER, *resources)
        assert routes(calculation) == {"10.65.2.0/26": "blackhole", "10.65.2.5/32": "dev cali-a"}
    gone = calculated(*CLUSTER, lent, local, replace(local, node="n2"))
    assert routes(gone)["10.65.2.5/32"] == "via 192.0.2.2 dev eth0 onlink"


def unnumbered(calculation: Calculation) -> dict[str, str]:
    """Routes by destination alone."""
    return {name.split(" ")[0]: route for name, route in routes(calculation).items()}


@pytest.mark.parametrize(("v4", "v6"), [(0, 1024), (1024, 2048), (7, 7)])
def test_a_local_workload_wins_whatever_the_metrics_of_its_routes(v4: int, v6: int) -> None:
    """Another metric is another route for the kernel, which takes the lower one."""
    settings = replace(SETTINGS, ipv4_normal_route_priority=v4, ipv6_normal_route_priority=v6)
    lent = block("10.65.2.0/26", "n1", ("10.65.2.5/32", "n2"), ("10.65.2.6/32", "n2"))
    lent6 = block("fd00:65::80/122", "n1", ("fd00:65::85/128", "n2"))
    single, local = affinity("10.65.9.5/32", "n2"), endpoint("a", "10.65.2.5", "fd00:65::85", "10.65.9.5")
    here = {"10.65.2.5/32": "dev cali-a", "fd00:65::85/128": "dev cali-a", "10.65.9.5/32": "dev cali-a"}
    rest = {
        "10.65.2.0/26": "blackhole",
        "fd00:65::80/122": "blackhole",
        "10.65.2.6/32": "via 192.0.2.2 dev eth0 onlink",
    }
    there = {"10.65.2.5/32": "via 192.0.2.2 dev eth0 onlink", "10.65.9.5/32": "via 192.0.2.2 dev eth0 onlink"}
    there["fd00:65::85/128"] = "via 2001:db8::2 dev eth0 onlink"
    for resources in ((lent, lent6, single, local), (local, single, lent6, lent)):
        calculation = calculated(*CLUSTER, *resources, settings=settings)
        assert unnumbered(calculation) == rest | here
        assert len([key for key in calculation.entries() if isinstance(key, RouteKey)]) == len(rest | here)
        for gone in (None, replace(local, node="n2"), replace(local, addresses=())):
            calculation.calculate(calculation.store.apply(Update(local.key, gone)))
            assert unnumbered(calculation) == rest | there
            calculation.calculate(calculation.store.apply(Update(local.key, local)))
            assert unnumbered(calculation) == rest | here


@pytest.mark.parametrize("backwards", [False, True], ids=["in order", "backwards"])
def test_of_three_that_claim_one_route_the_first_by_rank_inherits(backwards: bool) -> None:
    local = endpoint("a", "10.65.2.5")
    claims = [affinity("10.65.2.5/32", "n5"), block("10.65.2.0/26", "n1", ("10.65.2.5/32", "n2")), local]
    claims.insert(0, affinity("10.65.2.5/32", "v4only"))
    cluster = (*CLUSTER, node("n5", "192.0.2.5/24"))
    calculation = calculated(*cluster, *(reversed(claims) if backwards else claims))
    expected = ["dev cali-a", "via 192.0.2.2 dev eth0 onlink", "via 192.0.2.5 dev eth0 onlink"]
    for gone, route in zip((None, local, claims[2]), expected, strict=True):
        if gone is not None:
            calculation.calculate(calculation.store.apply(Update(gone.key, None)))
        assert routes(calculation)["10.65.2.5/32"] == route


@pytest.mark.parametrize("host", ["n1", "n2"])
def test_block_and_affinity_say_the_same_route_once(host: str) -> None:
    calculation = calculated(*CLUSTER, block("10.65.1.0/26", host), affinity("10.65.1.0/26", host))
    assert len(routes(calculation)) == 1
    calculation = calculated(*CLUSTER, affinity("10.65.1.0/26", host), block("10.65.1.0/26", None))
    assert len(routes(calculation)) == 1


@pytest.mark.parametrize(
    ("addresses", "gateway", "expected"),
    [
        (["192.0.2.1/24"], "192.0.2.9", "a"),
        (["192.0.2.1/24", "192.0.2.129/25"], "192.0.2.200", "b"),  # the longest subnet
        (["192.0.2.129/25", "192.0.2.1/24"], "192.0.2.200", "a"),
        (["192.0.2.1/24"], "203.0.113.9", None),
        (["198.51.100.1/24", "192.0.2.77/32"], "203.0.113.9", None),  # not by our node address
        ([], "192.0.2.9", None),
    ],
)
def test_the_interface_that_leads_to_a_node(addresses: list[str], gateway: str, expected: str | None) -> None:
    host = Host(tuple(HostAddress(name, Net.parse_interface(one)) for name, one in zip("abc", addresses, strict=False)))
    own = Net.parse_interface("192.0.2.77/24")
    assert host.parent_interface(Net.parse(gateway).packed, own) == expected
    assert HOST_FACTS.parent_interface(Net.parse("203.0.113.9").packed, None) is None


def ways(*addresses: tuple[str, str, bool]) -> tuple[HostAddress, ...]:
    return tuple(HostAddress(name, Net.parse_interface(net), up) for name, net, up in addresses)


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        (ways(("a", "192.0.2.50/24", False), ("b", "192.0.2.60/24", True)), "b"),  # up
        (ways(("a", "192.0.2.77/24", False), ("b", "192.0.2.60/24", True)), "b"),  # up, before our node address
        (ways(("a", "192.0.2.50/24", True), ("b", "192.0.2.77/24", True)), "b"),  # our node address
        (ways(("a", "192.0.2.50/24", False), ("b", "192.0.2.77/24", False)), "b"),
        (ways(("b", "192.0.2.50/24", True), ("a", "192.0.2.60/24", True)), "a"),  # the first by name
        (ways(("a", "192.0.2.50/25", False), ("b", "192.0.2.60/24", True)), "a"),  # the longest subnet, even so
        (ways(("a", "198.51.100.77/24", False), ("c", "192.0.2.60/24", False), ("b", "192.0.2.61/24", False)), "b"),
    ],
)
def test_of_several_interfaces_that_lead_to_a_node_the_order_never_decides(
    addresses: tuple[HostAddress, ...], expected: str
) -> None:
    own, gateway = Net.parse_interface("192.0.2.77/24"), Net.parse("192.0.2.9").packed
    for order in itertools.permutations(addresses):
        assert Host(order).parent_interface(gateway, own) == expected


@pytest.mark.parametrize("name", ["n1", "n2"])
def test_a_tunnel_address_outside_of_every_pool_is_said_whatever_came_first(name: str) -> None:
    """Nobody has a route to it, so what the node itself sends to remote workloads gets no answer."""
    used = pool("p4", "10.65.0.0/16", encapsulation=Encapsulation.VXLAN)
    rest = pool("rest", "10.99.0.0/16", encapsulation=Encapsulation.VXLAN)
    peers = [
        node(one, f"192.0.2.{one[1]}/24", vxlan=["10.99.0.1" if one == name else f"10.65.{one[1]}.1"])
        for one in ("n1", "n2")
    ]
    for order in itertools.permutations((used, *peers)):
        calculation = calculated()
        for one in order:
            calculation.calculate(calculation.store.apply(Update(one.key, one)))
        assert set(problems(calculation)) == {name}
        assert "its tunnel address 10.99.0.1 is in no IP pool" in problems(calculation)[name]
        # One pool or one block that has it, and all is well; when that is gone it is said again.
        for cure, gone in ((rest, Update(rest.key, None)), (own := block("10.99.0.0/26", name), Update(own.key, None))):
            calculation.calculate(calculation.store.apply(Update(cure.key, cure)))
            assert name not in problems(calculation)
            calculation.calculate(calculation.store.apply(gone))
            assert name in problems(calculation)


def test_where_no_pool_uses_the_tunnel_its_address_may_be_anywhere() -> None:
    plain = pool("p4", "10.65.0.0/16")
    assert (
        problems(calculated(plain, *(node(f"n{i}", f"192.0.2.{i}/24", vxlan=[f"10.99.0.{i}"]) for i in (1, 2)))) == {}
    )


def test_an_address_on_lo_binds_no_tunnel_to_an_interface() -> None:
    """Whatever the routes say leads to others (BGP to the host); the uplinks tell the MTU."""
    loopback = (Net.parse("10.255.0.1/32"), Net.parse("fd00:255::1/128"))
    host = replace(HOST_FACTS, loopback=loopback, uplinks=("eth0", "eth1"), uplink_mtu=9000)
    own = node("n1", "10.255.0.1/32", "fd00:255::1/128", vxlan=["10.65.1.63", "fd00:65::3f"], ipip="10.65.1.62")
    for kind, four in ((Encapsulation.VXLAN, "vxlan.calico"), (Encapsulation.IPIP, "tunl-felixpy")):
        pools = (replace(POOLS[0], encapsulation=kind), replace(POOLS[1], encapsulation=Encapsulation.VXLAN))
        calculation = calculated(*pools, own, host=host)
        devices = {key.name: value for key, value in calculation.entries().items() if isinstance(key, DeviceKey)}
        assert devices.keys() == {four, "vxlan-v6.calico"}
        assert isinstance(devices["vxlan-v6.calico"], Vxlan)
        assert (devices["vxlan-v6.calico"].parent, devices["vxlan-v6.calico"].mtu) == ("", 8930)
        assert not problems(calculation)
