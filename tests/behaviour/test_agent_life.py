"""Start, stop, kill, a family switched off, and what others own: what an agent may and may not do to the kernel."""

from __future__ import annotations

import asyncio

import pytest

from felixpy.demo import checks
from felixpy.demo.patience import limit
from felixpy.demo.topology import EXT, P1A, P1B, P2A
from felixpy.model.net import Family

from .world import World, foreign_state, hold, ours, writes


def other(family: Family) -> Family:
    return Family.V6 if family is Family.V4 else Family.V4


@pytest.mark.modes("v4", "v6")
async def test_a_family_that_is_off_leaves_no_state_of_ours(world: World) -> None:
    absent = other(world.families[0])
    for node in ("node1", "node2"):
        host = world.lab.node(node)
        assert await ours(host, absent) == []
        assert await ours(host, world.families[0]) != []
        forwarding = "ipv4/ip_forward" if absent is Family.V4 else "ipv6/conf/all/forwarding"
        assert await host.sysctl(forwarding) == 0


@pytest.mark.modes("v6")
async def test_an_ipv6_only_node_is_ready_without_any_ipv4(world: World) -> None:
    for node in ("node1", "node2"):
        host = world.lab.node(node)
        assert await host.run("ip", "-4", "address") == ""
        assert await host.run("ip", "-4", "route", "show", "table", "all") == ""
        assert world.lab.status[node]["state"] == "in-sync"


async def test_workload_interfaces_never_accept_router_advertisements(world: World) -> None:
    for pod in (P1A, P1B):
        assert await world.node1.sysctl(f"ipv6/conf/{pod.interface}/accept_ra") == 0


@pytest.mark.modes("dual")
@pytest.mark.parametrize("off", list(Family), ids=str)
async def test_switching_a_family_off_removes_its_state_and_spares_the_other(world: World, off: Family) -> None:
    kept = other(off)
    flow = await world.lab.pod("p1a").open_flow("tcp", P2A.addresses[kept])
    outside = await world.lab.pod("p1a").open_flow("udp", EXT[kept])
    try:
        await world.restart_agent(**{f"FELIX_IPV{off.version}SUPPORT": "false"})
        async with limit(30):  # what is off is removed after the agent has said that the rest is ready
            while await ours(world.node1, off):  # noqa: ASYNC110  # the kernel is asked each time
                await asyncio.sleep(0.05)
        assert await world.lab.pod("p1a").tcp(P2A.addresses[off], timeout=0.3) is None
        for each in (flow, outside):
            assert await each.ask() == each.first
            await each.close()
    finally:
        await world.restart_agent()
    await hold(checks.connectivity(world.lab))


async def test_a_restart_on_an_unchanged_state_writes_nothing(world: World) -> None:
    async def restart() -> None:
        await world.restart_agent()

    assert [line for line in await writes(world.node1, restart) if line.strip()] == []


@pytest.mark.modes("dual", "v6")
async def test_plan_beside_a_running_agent_finds_nothing_to_change(world: World) -> None:
    """Also in a back-end whose writes the kernel does not announce."""
    agent = world.lab.agents["node1"]
    settings = world.lab.agent_environment("node1", world.settings())
    assert (await agent.command(world.node1, settings, "plan")).strip() == "nothing to change"
    family = world.families[0]  # IPv4 in dual stack, IPv6 alone
    await agent.kill()
    await world.node1.ip([f"route del {P1A.addresses[family]}/{family.bits} dev {P1A.interface}"])
    said = await agent.command(world.node1, settings, "plan", check=False)
    assert "1 change\n" in said and P1A.addresses[family] in said
    await world.restart_agent()
    await hold(checks.connectivity(world.lab))


@pytest.mark.modes("dual")
async def test_flows_survive_a_killed_agent_and_its_successor(world: World) -> None:
    p1a = world.lab.pod("p1a")
    flows = []
    for family in world.families:
        for address in (P2A.addresses[family], P1B.addresses[family], EXT[family]):
            flows += [await p1a.open_flow(protocol, address) for protocol in ("tcp", "udp")]
    await world.lab.agents["node1"].kill()
    assert all(await asyncio.gather(*(flow.ask() for flow in flows)))
    await hold(checks.connectivity(world.lab))
    await world.restart_agent()
    for flow in flows:
        assert await flow.ask() == flow.first
        await flow.close()


async def test_what_others_own_is_untouched(world: World) -> None:
    assert await foreign_state(world.node1, world.backend) == world.foreign_before
    await world.restart_agent()
    assert await foreign_state(world.node1, world.backend) == world.foreign_before


async def test_cleanup_removes_everything_ours_and_nothing_else(world: World) -> None:
    agent = world.lab.agents["node1"]
    await agent.stop()
    try:
        for family in world.families:
            assert await ours(world.node1, family) != []
        settings = world.lab.agent_environment("node1", world.settings())
        await agent.command(world.node1, settings, "cleanup")
        for family in Family:
            assert await ours(world.node1, family) == []
        assert await foreign_state(world.node1, world.backend) == world.foreign_before
        assert await world.lab.pod("p1a").ping(P2A.addresses[world.families[0]], timeout=0.3) is False
    finally:
        await world.restart_agent()
    await hold(checks.connectivity(world.lab))
