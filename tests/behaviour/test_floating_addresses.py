"""FloatingIPs: an address outside leads to a workload, that is to one of its own addresses (``spec.ipNATs``)."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest

from felixpy.demo.host import Host
from felixpy.demo.patience import stretched
from felixpy.demo.resources import Object, felix_configuration, workload_endpoint
from felixpy.demo.topology import NODE1, NODE2, P1A, P1B, Addresses, PodSpec
from felixpy.model.net import Family

from .world import World, becomes, writes

FLOATING: Addresses = {Family.V4: "203.0.113.9", Family.V6: "2001:db8:f::9"}
SECOND: Addresses = {Family.V4: "203.0.113.20", Family.V6: "2001:db8:f::20"}
CONFIGURED = felix_configuration(defaultEndpointToHostAction="Accept", floatingIPs="Enabled")
FLOW_PORT = 41000


def with_floating(world: World, pod: PodSpec, *external: Addresses) -> Object:
    nats = [
        {"internalIP": pod.addresses[family], "externalIP": addresses[family]}
        for family in world.families
        for addresses in external
    ]
    return workload_endpoint(pod, world.families, ipNATs=nats)


@contextlib.asynccontextmanager
async def routed(world: World) -> AsyncIterator[None]:
    """The outside host and the other node have a route to the floating addresses, as from a router or by BGP."""
    hosts = (world.lab.ext, world.lab.node("node2"))
    routes = [
        f"{address[family]}/{family.bits} via {NODE1.addresses[family]}"
        for family in world.families
        for address in (FLOATING, SECOND)
    ]
    for host in hosts:
        await host.ip([f"route add {route}" for route in routes])
    try:
        yield
    finally:
        for host in hosts:
            await host.ip([f"route del {route}" for route in routes])


@contextlib.asynccontextmanager
async def floating(world: World, *documents: Object) -> AsyncIterator[None]:
    async with routed(world), world.changed(CONFIGURED, *documents):
        yield


async def answered_by(world: World, host: Host, address: str, source_port: int = 0) -> set[str]:
    """The pods at which datagrams from a host to an address arrive."""
    pods = {name: world.lab.pod(name) for name in ("p1a", "p1b")}
    async with contextlib.AsyncExitStack() as captures:
        seen = {name: await captures.enter_async_context(pod.capture()) for name, pod in pods.items()}
        await host.udp(address, timeout=min(stretched(0.25), 2.0), source_port=source_port)
    source = host.addresses
    return {name for name, packets in seen.items() if any(packet.source in source.values() for packet in packets)}


async def test_it_leads_to_the_workload_from_everywhere_and_back(world: World) -> None:
    p1a, p1b, node2 = world.lab.pod("p1a"), world.lab.pod("p1b"), world.lab.node("node2")
    async with floating(world, with_floating(world, P1A, SECOND, FLOATING)):
        for family in world.families:
            first, own = FLOATING[family], P1A.addresses[family]
            for address in (first, SECOND[family]):
                await becomes((True, True, True), world.reaches, world.lab.ext, address)
                await becomes(world.lab.ext.addresses[family], world.tcp_source, world.lab.ext, address)
                await becomes(NODE2.addresses[family], world.tcp_source, node2, address)
                await becomes((True, True, True), world.reaches, world.node1, address)
                await becomes(P1B.addresses[family], world.tcp_source, p1b, address)
                # Calling itself, a workload would get packets from its own address, which it drops.
                await becomes(first, world.tcp_source, p1a, address)
            assert await world.tcp_source(p1b, own) == P1B.addresses[family]
            assert await world.tcp_source(p1a, P1B.addresses[family]) == own, "what it sends has its own address"


@pytest.mark.modes("dual")
async def test_nothing_leads_there_without_the_setting(world: World) -> None:
    async with routed(world), world.changed(with_floating(world, P1A, FLOATING)):
        for family in world.families:
            await becomes((False, False, False), world.reaches, world.lab.ext, FLOATING[family])
            assert await world.reaches(world.lab.ext, P1A.addresses[family], timeout=0.2) == (False, False, False)
            await becomes((True, True, True), world.reaches, world.lab.pod("p1b"), P1A.addresses[family])
        async with world.changed(CONFIGURED):
            for family in world.families:
                await becomes((True, True, True), world.reaches, world.lab.ext, FLOATING[family])
        for family in world.families:
            await becomes((False, False, False), world.reaches, world.lab.ext, FLOATING[family])


@pytest.mark.modes("dual")
async def test_it_is_no_source_that_a_workload_may_use(world: World) -> None:
    p1a, p1b = world.lab.pod("p1a"), world.lab.pod("p1b")
    async with floating(world, with_floating(world, P1A, FLOATING)):
        for family in world.families:
            await becomes((True, True, True), world.reaches, world.lab.ext, FLOATING[family])
            async with p1b.capture() as packets:
                await p1a.send_datagram(FLOATING[family], P1B.addresses[family], port=41001)
                await p1a.send_datagram(P1A.addresses[family], P1B.addresses[family], port=41002)
            assert {packet.port for packet in packets if packet.port in (41001, 41002)} == {41002}


@pytest.mark.modes("dual")
async def test_a_flow_goes_with_it_to_its_next_workload(world: World) -> None:
    """One flow by its addresses and ports, whose translation is decided once, at its first packet."""
    async with floating(world, with_floating(world, P1A, FLOATING)):
        for family in world.families:
            await becomes({"p1a"}, answered_by, world, world.lab.ext, FLOATING[family], FLOW_PORT)
        await world.put(with_floating(world, P1B, FLOATING))
        await world.put(workload_endpoint(P1A, world.families))
        for family in world.families:
            await becomes({"p1b"}, answered_by, world, world.lab.ext, FLOATING[family], FLOW_PORT)
        await world.put(workload_endpoint(P1B, world.families))
        for family in world.families:
            await becomes(set(), answered_by, world, world.lab.ext, FLOATING[family], FLOW_PORT)


@pytest.mark.modes("dual")
async def test_one_workload_with_two_addresses_moves_it_between_them(world: World) -> None:
    """The same key of the kernel's map gets something else, while an unrelated floating address stays."""
    async with floating(world, with_floating(world, P1A, FLOATING), with_floating(world, P1B, SECOND)):
        for family in world.families:
            await becomes({"p1b"}, answered_by, world, world.lab.ext, SECOND[family])
            await becomes({"p1a"}, answered_by, world, world.lab.ext, FLOATING[family], FLOW_PORT)
        flows = [await world.lab.ext.open_flow("tcp", SECOND[family]) for family in world.families]
        async with world.changed(with_floating(world, P1B, SECOND, FLOATING), with_floating(world, P1A)):
            for family in world.families:
                await becomes({"p1b"}, answered_by, world, world.lab.ext, FLOATING[family], FLOW_PORT)
        for family, flow in zip(world.families, flows, strict=True):
            await becomes({"p1a"}, answered_by, world, world.lab.ext, FLOATING[family], FLOW_PORT)
            assert await flow.ask() == flow.first
            await flow.close()


@pytest.mark.modes("dual")
async def test_what_another_program_removed_comes_back(world: World) -> None:
    async with floating(world, with_floating(world, P1A, FLOATING)):
        for family in world.families:
            six, word = ("6", "ip6") if family is Family.V6 else ("", "ip")
            await becomes({"p1a"}, answered_by, world, world.lab.ext, FLOATING[family])
            if world.backend == "nftables":
                element = f"{{ {FLOATING[family]} }}"
                commands = [("nft", "delete", "element", word, "felixpy", "floating", element)]
                commands += [("nft", "flush", "chain", word, "felixpy", "nat-PREROUTING")]
            else:
                tool = f"ip{six}tables-{world.backend}"
                commands = [(tool, "-t", "nat", "-F", "fpy-floating")]
            for command in commands:
                await world.node1.run(*command)
                await becomes({"p1a"}, answered_by, world, world.lab.ext, FLOATING[family])


@pytest.mark.modes("dual")
async def test_a_restart_and_a_plan_change_nothing(world: World) -> None:
    async with floating(world, with_floating(world, P1A, FLOATING, SECOND)):
        for family in world.families:
            await becomes({"p1a"}, answered_by, world, world.lab.ext, FLOATING[family])
        flows = [await world.lab.ext.open_flow("tcp", FLOATING[family]) for family in world.families]

        async def restart() -> None:
            await world.restart_agent()

        assert [line for line in await writes(world.node1, restart) if line.strip()] == []
        for flow in flows:
            assert await flow.ask() == flow.first
            await flow.close()
        settings = world.lab.agent_environment("node1", world.settings())
        said = await world.lab.agents["node1"].command(world.node1, settings, "plan")
        assert said.strip() == "nothing to change"
        await world.lab.agents["node1"].kill()
        await world.put(with_floating(world, P1A, FLOATING))
        said = await world.lab.agents["node1"].command(world.node1, settings, "plan", check=False)
        for family in world.families:
            assert f"floating {{ {SECOND[family]} }} : {P1A.addresses[family]}" in said
        await world.restart_agent()
        for family in world.families:
            await becomes(set(), answered_by, world, world.lab.ext, SECOND[family])


@pytest.mark.modes("dual")
async def test_explain_shows_the_way_to_it(world: World) -> None:
    async with floating(world, with_floating(world, P1A, FLOATING)):
        settings = world.lab.agent_environment("node1", world.settings())
        for family in world.families:
            await becomes({"p1a"}, answered_by, world, world.lab.ext, FLOATING[family])
            for source, seen in ((P1B, P1B.addresses[family]), (P1A, FLOATING[family])):
                said = await world.lab.agents["node1"].command(
                    world.node1, settings, "explain", source.addresses[family], FLOATING[family]
                )
                assert f"dnat to {P1A.addresses[family]}" in said and f"the far side sees {seen}" in said, said
