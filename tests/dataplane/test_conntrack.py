"""Released addresses lose their conntrack entries: real flows through a router."""

from __future__ import annotations

import asyncio

import pytest

from felixpy.demo.host import Flow, Host
from felixpy.demo.patience import limit
from felixpy.model.net import FAMILIES, Family
from tests.dataplane.conntrack_router import (
    ADDRESSES,
    HOSTS,
    PATIENCE_S,
    ROUTER_OUT,
    V4,
    V6,
    masquerade,
    nft,
    packed,
    router,
    run,
    watched,
)
from tests.netlink.conntrack_lab import CountingSocket, listed, without
from tests.netns import enter_new_network, enter_private_namespaces


@pytest.fixture(scope="module")
def private_namespaces() -> None:
    enter_private_namespaces()


@pytest.fixture
def network(private_namespaces: None) -> None:
    enter_new_network()


ANSWER_S = 10.0
"""How long an answer that must come may take; the first packet on a new link may be lost and sent again after 1 s."""
SILENCE_S = 0.4
SETTLE_S = 0.2
"""A repeated datagram that is still on its way would make an entry anew."""


async def answers(flow: Flow, source: str | None, *, timeout: float) -> None:  # noqa: ASYNC109
    """Ask until the other side sees this source, or nothing; late answers to repeated datagrams come first."""
    async with limit(PATIENCE_S):
        while ((seen := await flow.ask(timeout=timeout)) and seen.address) != source:
            pass


async def talk(hosts: dict[str, Host], family: Family) -> None:
    """TCP, UDP and ping: a and b to the outside (masqueraded) and to each other, and the outside to a by DNAT."""
    a, b, out = (hosts[name] for name in HOSTS)
    for one, other in ((a, out), (b, out), (a, b), (b, a)):
        address = other.address(family)
        for protocol in ("tcp", "udp"):
            await one.open_flow(protocol, address, timeout=ANSWER_S)
        assert await one.ping(address, timeout=ANSWER_S)
    await out.open_flow("tcp", ROUTER_OUT[family], 8080, timeout=ANSWER_S)
    await asyncio.sleep(SETTLE_S)


@pytest.mark.parametrize("name", ["a", "b"])
def test_only_the_released_workload_loses_its_flows(network: None, name: str) -> None:
    async def scenario() -> None:
        async with router() as hosts, watched() as one:
            for family in FAMILIES:
                await talk(hosts, family)
            before, addresses = listed(), (V4[name], V6[name])
            assert {entry.protocol for entry in before} == {"tcp", "udp", "icmp", "icmpv6"}
            one.release(*addresses)
            await one.freed(*addresses)
            assert listed() == without(before, *addresses)
            lost = len(before - listed())
            assert lost == 2 * (9 + (name == "a"))  # three protocols to out, to the other and from it, and the DNAT
            assert isinstance(one.socket, CountingSocket)
            assert (one.socket.table_reads(), sum(one.socket.deletes())) == (1, lost)
            assert (one.released, one.warnings) == ([packed(*addresses)], [])

    run(scenario())


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_one_family_may_go_alone(network: None, family: Family) -> None:
    async def scenario() -> None:
        async with router() as hosts, watched() as one:
            for version in FAMILIES:
                await talk(hosts, version)
            before = listed()
            one.release(ADDRESSES["a"][family])
            await one.freed(ADDRESSES["a"][family])
            assert listed() == without(before, ADDRESSES["a"][family]) != before

    run(scenario())


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_a_flow_of_a_removed_workload_stops(network: None, family: Family) -> None:
    async def scenario() -> None:
        async with router() as hosts, watched() as one:
            flows = [
                await hosts["a"].open_flow(kind, hosts["out"].address(family), timeout=ANSWER_S)
                for kind in ("tcp", "udp")
            ]
            other = await hosts["b"].open_flow("tcp", hosts["out"].address(family), timeout=ANSWER_S)
            address = ADDRESSES["a"][family]
            nft(f"add element inet t gone{family.version} {{ {address} }}")
            for flow in flows:  # rules alone do not stop what is established
                assert await flow.ask(timeout=ANSWER_S)
            one.release(address)
            await one.freed(address)
            for flow in flows:
                await answers(flow, None, timeout=SILENCE_S)
                assert await flow.ask(timeout=SILENCE_S) is None
            assert await other.ask(timeout=ANSWER_S) == other.first
            nft(f"delete element inet t gone{family.version} {{ {address} }}")
            assert await hosts["a"].tcp(hosts["out"].address(family), timeout=ANSWER_S)

    run(scenario())


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_nat_is_decided_anew(network: None, family: Family) -> None:
    async def scenario() -> None:
        async with router() as hosts, watched() as one:
            mine = await hosts["a"].open_flow("udp", hosts["out"].address(family), timeout=ANSWER_S)
            other = await hosts["b"].open_flow("udp", hosts["out"].address(family), timeout=ANSWER_S)
            masquerade(False)
            for flow in (mine, other):
                seen = await flow.ask(timeout=ANSWER_S)
                assert seen and seen.address == ROUTER_OUT[family]
            one.release(ADDRESSES["a"][family])
            await one.freed(ADDRESSES["a"][family])
            await answers(mine, ADDRESSES["a"][family], timeout=ANSWER_S)
            assert await other.ask(timeout=ANSWER_S) == other.first

    run(scenario())
