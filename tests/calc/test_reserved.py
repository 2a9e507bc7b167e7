"""Addresses that the node itself has or needs: no object gets them, and what is a workload on purpose keeps its own."""

from __future__ import annotations

import sys

import pytest
from msgspec.structs import replace

from felixpy.calc.entries import AddressKey
from felixpy.calc.graph import HOST, Calculation
from felixpy.calc.host import Host, HostAddress
from felixpy.calc.reserved import Reserved, Way
from felixpy.model.net import Net, parse_address
from felixpy.model.resources import Encapsulation, Resource
from tests.calc.samples import (
    ENCRYPTED,
    HOST_FACTS,
    SETTINGS,
    block,
    calculated,
    endpoint,
    node,
    pool,
    problems,
    routes,
)

CLUSTER = (pool("p4", "10.0.0.0/8"), pool("p6", "fd00:65::/64"), node("n1", "192.0.2.1/24"), node("n2", "192.0.2.2/24"))


def way(address: str, interface: str, *, by_cluster: bool = False) -> Way:
    return Way(parse_address(address), interface, by_cluster)


def facts(**changes: object) -> Host:
    known = replace(HOST_FACTS, gateways=(way("192.0.2.254", "eth0"), way("2001:db8::fe", "eth0")), uplinks=("eth0",))
    return replace(known, **changes)


def refused(host: Host, *resources: Resource) -> bool:
    """Whether nothing of an object is routed, and it says so."""
    calculation = calculated(*CLUSTER, *resources, host=host)
    assert bool(routes(calculation)) != bool(problems(calculation)), (routes(calculation), problems(calculation))
    return bool(problems(calculation))


BROKER = "203.0.113.9"
FAR = (way(BROKER, "eth0"),)
TUNNEL = (*HOST_FACTS.addresses, HostAddress("vxlan.calico", Net.parse_interface("10.65.2.0/32")))
SINGLE = (HostAddress("eth0", Net.parse_interface("192.0.2.1/32")),)

CASES: dict[str, tuple[Host, Resource, bool]] = {
    "endpoint: gateway": (facts(), endpoint("a", "192.0.2.254"), True),
    "endpoint: gateway, v6": (facts(), endpoint("a", "2001:db8::fe"), True),
    "endpoint: own": (facts(), endpoint("a", "198.51.100.1"), True),
    "endpoint: own, of a tunnel": (facts(addresses=TUNNEL), endpoint("a", "10.65.2.0"), True),
    "endpoint: own, of the loopback": (facts(loopback=(Net.parse("10.65.2.1"),)), endpoint("a", "10.65.2.1"), True),
    "endpoint: broker": (facts(peers=FAR), endpoint("a", BROKER), True),
    "endpoint: broadcast of a subnet": (facts(), endpoint("a", "192.0.2.255"), True),
    "endpoint: first address of a subnet": (facts(), endpoint("a", "192.0.2.0"), False),
    "endpoint: first address of a subnet, v6": (facts(), endpoint("a", "2001:db8::"), True),
    "endpoint: last address of a subnet, v6": (facts(), endpoint("a", "2001:db8::ffff:ffff:ffff:ffff"), False),
    "endpoint: the other one of a pair": (
        facts(addresses=(HostAddress("eth0", Net.parse_interface("192.0.2.2/31")),)),
        endpoint("a", "192.0.2.3"),
        False,
    ),
    "endpoint: a neighbour": (facts(), endpoint("a", "192.0.2.99"), False),
    "endpoint: the broker itself": (
        facts(peers=(way(BROKER, "cali-a", by_cluster=True),)),
        endpoint("a", BROKER),
        False,
    ),
    "endpoint: the broker, another workload": (
        facts(peers=(way(BROKER, "cali-b", by_cluster=True),)),
        endpoint("a", BROKER),
        True,
    ),
    "endpoint: the router itself": (
        facts(gateways=(way("10.65.0.9", "cali-a", by_cluster=True),)),
        endpoint("a", "10.65.0.9"),
        False,
    ),
    "own block: network": (facts(), block("192.0.2.0/24", "n1"), True),
    "own block: wider": (facts(), block("192.0.0.0/16", "n1"), True),
    "own block: part with the gateway": (facts(), block("192.0.2.192/26", "n1"), True),
    "own block: part with nothing of ours": (facts(), block("192.0.2.128/26", "n1"), False),
    "own block: broker": (facts(peers=FAR), block("203.0.113.0/26", "n1"), True),
    "block of another: broker": (facts(peers=FAR), block("203.0.113.0/26", "n2"), True),
    "own block: broker is a workload": (
        facts(peers=(way("10.65.2.7", "cali-b", by_cluster=True),)),
        block("10.65.2.0/26", "n1"),
        False,
    ),
    "block of another: broker is one of its workloads": (
        facts(peers=(way("10.65.1.7", "eth0", by_cluster=True),)),
        block("10.65.1.0/26", "n2"),
        False,
    ),
    "own block: of a tunnel's address": (facts(addresses=TUNNEL), block("10.65.2.0/26", "n1"), False),
    "own block: over a single address that leads out": (facts(addresses=SINGLE), block("192.0.2.0/26", "n1"), True),
    "own block, v6": (facts(), block("2001:db8::/122", "n1"), True),
}


TUNNELLED = (
    pool("p4", "0.0.0.0/1", encapsulation=Encapsulation.VXLAN),
    pool("p4-far", "128.0.0.0/1", encapsulation=Encapsulation.VXLAN),
    pool("p6", "2000::/3", encapsulation=Encapsulation.VXLAN),
)
IN_IPIP = (pool("p4", "0.0.0.0/1", encapsulation=Encapsulation.IPIP), pool("p4-far", "128.0.0.0/1"))
NEEDED = {"the gateway": "192.0.2.254", "the broker": BROKER, "the node": "192.0.2.1"}
"""Addresses of the node's network that a Node, this one's or another's, says of a tunnel's device."""


def device_addresses(calculation: Calculation) -> list[str]:
    return [str(key) for key in calculation.entries() if isinstance(key, AddressKey)]


@pytest.mark.parametrize("address", NEEDED.values(), ids=NEEDED)
def test_no_tunnel_of_this_node_gets_an_address_of_its_network(address: str) -> None:
    host = facts(peers=FAR)
    for pools, own, settings in (
        (TUNNELLED, node("n1", "192.0.2.1/24", vxlan=[address]), SETTINGS),
        (IN_IPIP, node("n1", "192.0.2.1/24", ipip=address), SETTINGS),
        ((), node("n1", "192.0.2.1/24", wireguard=[address]), ENCRYPTED),
    ):
        calculation = calculated(*pools, own, settings=settings, host=host)
        if settings is not ENCRYPTED or address != NEEDED["the node"]:  # host encryption gives it that one
            assert device_addresses(calculation) == []
            assert f"does not get {address}" in problems(calculation)["n1"]
        # When the device has it already, for example by an agent that knew no better.
        has = (*host.addresses, HostAddress("vxlan.calico", Net.parse_interface(f"{address}/32")))
        if address != NEEDED["the node"]:
            calculation.reconfigure(settings, replace(host, addresses=has))
            assert device_addresses(calculation) == []


def test_no_tunnel_of_this_node_gets_an_ipv6_address_of_its_network() -> None:
    for address in ("2001:db8::fe", "2001:db8::1"):
        own = node("n1", "192.0.2.1/24", "2001:db8::1/64", vxlan=[address])
        calculation = calculated(*TUNNELLED, own, host=facts())
        assert device_addresses(calculation) == []
        assert f"vxlan-v6.calico does not get {address}" in problems(calculation)["n1"]


def test_a_tunnel_keeps_the_address_that_it_has() -> None:
    own = node("n1", "192.0.2.1/24", "2001:db8::1/64", vxlan=["10.65.2.0"])
    calculation = calculated(*TUNNELLED, own, host=facts(addresses=TUNNEL))
    assert device_addresses(calculation) == ["10.65.2.0 dev vxlan.calico"]
    assert problems(calculation) == {}


@pytest.mark.parametrize("address", NEEDED.values(), ids=NEEDED)
def test_no_route_leads_to_the_tunnel_of_another_node_at_an_address_of_this_ones_network(address: str) -> None:
    own = node("n1", "192.0.2.1/24", vxlan=["10.65.2.0"], ipip="10.65.2.1")
    for pools, other in (
        (TUNNELLED, node("n2", "192.0.2.2/24", vxlan=[address])),
        (IN_IPIP, node("n2", "192.0.2.2/24", ipip=address)),
    ):
        calculation = calculated(*pools, own, other, host=facts(peers=FAR))
        assert routes(calculation) == {}
        assert f"its tunnel address {address}, " in problems(calculation)["n2"]


@pytest.mark.parametrize("name", CASES)
def test_who_gets_an_address(name: str) -> None:
    host, thing, expected = CASES[name]
    assert refused(host, thing) == expected


@pytest.mark.parametrize("name", CASES)
def test_facts_that_come_and_go_give_what_they_would_from_scratch(name: str) -> None:
    host, thing, _ = CASES[name]
    bare = replace(host, gateways=(), peers=(), uplinks=(), loopback=(), addresses=HOST_FACTS.addresses)
    calculation = calculated(*CLUSTER, thing, host=bare)
    for now in (host, bare, host):
        calculation.reconfigure(SETTINGS, now)
        scratch = calculated(*CLUSTER, thing, host=now)
        scratch.calculate({HOST})
        assert (routes(calculation), calculation.problems) == (routes(scratch), scratch.problems)
        assert calculation.entries() == scratch.entries()


def test_only_endpoints_with_an_address_that_changed_are_calculated_again(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [endpoint(f"w{n}", f"10.65.0.{n}") for n in range(1, 200)]
    calculation = calculated(*CLUSTER, *many, host=facts())
    looked_at: list[object] = []
    calculate = calculation._calculate
    monkeypatch.setattr(calculation, "_calculate", lambda thing: (looked_at.append(thing), calculate(thing))[1])
    calculation.reconfigure(SETTINGS, facts(loopback=(Net.parse("10.65.0.7"),)))
    assert [thing for thing in looked_at if thing in {one.key for one in many}] == [many[6].key]


def test_a_look_costs_the_same_beside_many_addresses() -> None:
    """As ``kube-proxy`` in its IPVS mode has, one for each Service."""

    def operations(count: int) -> int:
        own = [("ipvs0", Net(bytes((10, 1 + n // 65536, n // 256 % 256, n % 256)), 24)) for n in range(count)]
        reserved, calls = Reserved(own), 0

        def count_calls(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        sys.setprofile(count_calls)
        reserved.covered_by(Net.parse("10.65.1.0/26"))
        reserved.kept_from(parse_address("10.65.1.7"), "cali1")
        sys.setprofile(None)
        return calls

    assert operations(100) == operations(20_000)
