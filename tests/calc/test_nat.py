"""NAT outgoing: which pools, nodes and outside hosts stand in which set."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from felixpy.calc.entries import SetName
from felixpy.calc.graph import HOST
from felixpy.config import Settings
from felixpy.model.resources import IPPool
from tests.calc.samples import HOST_FACTS, SETTINGS, calculated, members, nets, node, pool, said

POOL_CASES: dict[str, tuple[list[IPPool], set[str], set[str]]] = {
    "plain": ([pool("a", "10.65.0.0/16")], {"10.65.0.0/16"}, set()),
    "nat": ([pool("a", "10.65.0.0/16", nat=True)], {"10.65.0.0/16"}, {"10.65.0.0/16"}),
    "nat, v6": ([pool("a", "fd00:65::/64", nat=True)], {"fd00:65::/64"}, {"fd00:65::/64"}),
    "a disabled pool still counts": (
        [pool("a", "10.65.0.0/16", nat=True, disabled=True)],
        {"10.65.0.0/16"},
        {"10.65.0.0/16"},
    ),
    "a LoadBalancer pool is no destination": (
        [pool("a", "10.65.0.0/16", nat=True, uses=["LoadBalancer"])],
        set(),
        {"10.65.0.0/16"},
    ),
    "a pool of more uses is one": (
        [pool("a", "10.65.0.0/16", uses=["LoadBalancer", "Workload"])],
        {"10.65.0.0/16"},
        set(),
    ),
    "covered": (
        [pool("a", "10.65.0.0/16", nat=True), pool("b", "10.65.7.0/24", nat=True)],
        {"10.65.0.0/16"},
        {"10.65.0.0/16"},
    ),
    "covered in one set only": (
        [pool("a", "10.65.0.0/16"), pool("b", "10.65.7.0/24", nat=True)],
        {"10.65.0.0/16"},
        {"10.65.7.0/24"},
    ),
    "covered by a LoadBalancer pool only": (
        [pool("a", "10.65.0.0/16", nat=True, uses=["LoadBalancer"]), pool("b", "10.65.7.0/24", nat=True)],
        {"10.65.7.0/24"},
        {"10.65.0.0/16"},
    ),
    "nested thrice": (
        [pool("a", "10.0.0.0/8"), pool("b", "10.65.0.0/16", nat=True), pool("c", "10.65.7.0/24", nat=True)],
        {"10.0.0.0/8"},
        {"10.65.0.0/16"},
    ),
    "the same range twice": (
        [pool("a", "10.65.0.0/16", nat=True), pool("b", "10.65.0.0/16")],
        {"10.65.0.0/16"},
        {"10.65.0.0/16"},
    ),
    "side by side": (
        [pool("a", "10.65.0.0/17"), pool("b", "10.65.128.0/17")],
        {"10.65.0.0/17", "10.65.128.0/17"},
        set(),
    ),
    "the whole of a family covers nothing of the other": (
        [pool("a", "0.0.0.0/0", nat=True), pool("b", "fd00:65::/64")],
        {"0.0.0.0/0", "fd00:65::/64"},
        {"0.0.0.0/0"},
    ),
}


def in_set(name: SetName, found: set[str]) -> set[str]:
    return {f"{name} {{ {one} }}" for one in found}


@pytest.mark.parametrize("name", POOL_CASES)
@pytest.mark.parametrize("backwards", [False, True], ids=["in order", "backwards"])
def test_which_pools_are_members(name: str, backwards: bool) -> None:
    pools, exempt, masqueraded = POOL_CASES[name]
    calculation = calculated(*(reversed(pools) if backwards else pools))
    assert members(calculation, SetName.POOLS) == in_set(SetName.POOLS, exempt)
    assert members(calculation, SetName.MASQ_POOLS) == in_set(SetName.MASQ_POOLS, masqueraded)
    assert calculation.problems == {}


def test_a_wider_pool_gives_way_when_it_changes() -> None:
    wide, narrow = pool("a", "10.65.0.0/16", nat=True), pool("b", "10.65.7.0/24", nat=True)
    calculation = calculated(wide, narrow, replace(wide, nat_outgoing=False))
    assert members(calculation, SetName.MASQ_POOLS) == {"masq-pools { 10.65.7.0/24 }"}
    assert members(calculation, SetName.POOLS) == {"pools { 10.65.0.0/16 }"}


@pytest.mark.parametrize(("off", "left"), [("ipv4_support", "fd00:65::/64"), ("ipv6_support", "10.65.0.0/16")])
def test_pools_of_a_family_that_is_off_are_left_out(off: str, left: str) -> None:
    pools = pool("a", "10.65.0.0/16", nat=True), pool("b", "fd00:65::/64", nat=True)
    calculation = calculated(*pools, settings=replace(SETTINGS, **{off: False}))
    assert members(calculation) == {f"pools {{ {left} }}", f"masq-pools {{ {left} }}"}


# --- hosts ------------------------------------------------------------------------------------------------------


def hosts(settings: Settings) -> tuple[set[str], set[str]]:
    """Members for nodes, and for ExternalNodesCIDRList."""
    nodes = node("n1", "192.0.2.1/24", "2001:db8::1/64"), node("n2", "192.0.2.2/24"), node("n3")
    calculation = calculated(*nodes, settings=settings)
    calculation.calculate({HOST})
    return members(calculation, SetName.HOSTS), members(calculation, SetName.EXTERNAL_HOSTS)


@pytest.mark.parametrize(
    ("external", "expected"),
    [
        ((), set()),
        (("203.0.113.7",), {"203.0.113.7"}),
        (("192.0.2.0/24", "192.0.2.128/25"), {"192.0.2.0/24"}),  # covers nodes and itself
        (("192.0.2.1",), {"192.0.2.1"}),
        (("0.0.0.0/0", "::/0"), {"0.0.0.0/0", "::/0"}),
        (("fd00::/8", "fd00::/8"), {"fd00::/8"}),
    ],
)
def test_nodes_and_external_nodes_are_hosts(external: tuple[str, ...], expected: set[str]) -> None:
    nodes, others = hosts(replace(SETTINGS, external_nodes_cidr_list=nets(*external)))
    assert nodes == in_set(SetName.HOSTS, {"192.0.2.1", "192.0.2.2", "2001:db8::1"})
    assert others == in_set(SetName.EXTERNAL_HOSTS, expected)


def test_hosts_of_a_family_that_is_off_are_left_out() -> None:
    settings = replace(SETTINGS, ipv6_support=False, external_nodes_cidr_list=nets("fd00::/8"))
    assert hosts(settings) == (in_set(SetName.HOSTS, {"192.0.2.1", "192.0.2.2"}), set())


# --- forwarding of the node -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "ipv6", "families"),
    [
        (SETTINGS, True, {4, 6}),
        (SETTINGS, False, {4}),
        (replace(SETTINGS, ipv4_support=False), True, {6}),
        (replace(SETTINGS, ipv6_support=False), True, {4}),
        (replace(SETTINGS, ip_forwarding=False), True, set()),
    ],
)
def test_the_node_forwards_the_families_that_are_on(settings: Settings, ipv6: bool, families: set[int]) -> None:
    calculation = calculated(settings=settings, host=replace(HOST_FACTS, ipv6=ipv6))
    calculation.calculate({HOST})
    assert said(calculation) == {f"net.ipv{version}.conf.all.forwarding": "1" for version in families}
