"""The agent is killed, stopped, started and given another back-end under traffic: nothing is lost."""

from __future__ import annotations

import asyncio

import pytest

from felixpy.demo.resources import workload_endpoint
from felixpy.demo.run import BACKENDS
from felixpy.demo.topology import PodSpec
from felixpy.model.net import Family
from tests.behaviour.world import becomes, iptables_save, writes

from .conftest import COMBINATIONS
from .flows import TrafficWorld

MOMENTS = (("back-end", 0.0), ("adopted", 0.0), ("in-sync", 0.0), ("in-sync", 0.01))
"""When an agent that starts is killed: as soon as its log has these words, or so many seconds later."""


def crowd(number: int) -> list[PodSpec]:
    """Workloads whose interfaces never come: set members, but no routes."""
    return [
        PodSpec(f"crowd{n}", "node1", {Family.V4: f"10.49.0.{n + 10}", Family.V6: f"fd00:49::{n + 10:x}"})
        for n in range(number)
    ]


async def killed_at(world: TrafficWorld, words: str, seconds: float, **settings: str) -> None:
    """Start the agent and kill it at a moment."""
    since = world.log_size()
    agent = await world.start_without_waiting(**settings)
    await world.said(words, since)
    await asyncio.sleep(seconds)
    await agent.kill()


async def test_killed_at_any_moment_of_a_start_nothing_is_lost(world: TrafficWorld) -> None:
    async with world.traffic() as traffic:
        await world.agent.kill()
        for words, seconds in MOMENTS:
            await killed_at(world, words, seconds)
            await traffic.lost_nothing()
        assert (await world.plan())[0] == 0
        silent = await writes(world.node1, world.start_agent)
        assert [line for line in silent if line.strip()] == []
        await traffic.lost_nothing()


async def test_killed_while_it_writes_many_endpoints_nothing_is_lost(world: TrafficWorld) -> None:
    pods = crowd(200)
    async with world.traffic() as traffic:
        async with world.changed(*(workload_endpoint(pod, world.families) for pod in pods)):
            await world.agent.kill()
            for seconds in (0.0, 0.02):
                await killed_at(world, "in-sync", seconds)
            await world.start_agent()
            assert world.lab.status["node1"]["endpoints"] >= len(pods)
            await world.agent.kill()
        await killed_at(world, "in-sync", 0.01)
        await world.start_agent()
        assert (await world.plan())[0] == 0
        await traffic.lost_nothing()


async def test_killed_during_the_first_apply_of_all(world: TrafficWorld) -> None:
    """Nothing of ours is in the kernel at first; each successor goes on where the last one was killed."""
    settings = world.lab.agent_environment("node1", world.settings())
    await world.agent.stop()
    await world.agent.command(world.node1, settings, "cleanup")
    for seconds in (0.01, 0.04):
        await killed_at(world, "in-sync", seconds)
    await world.start_agent()
    assert (await world.plan())[0] == 0
    async with world.traffic() as traffic:
        await asyncio.sleep(0.3)
        await traffic.lost_nothing()


async def test_a_clean_stop_and_start_is_not_noticed_by_anyone(world: TrafficWorld) -> None:
    async def restart() -> None:
        assert await world.agent.stop() == 0
        assert (await world.plan())[0] == 0
        await world.start_agent()

    async with world.traffic() as traffic:
        assert [line for line in await writes(world.node1, restart) if line.strip()] == []
        await traffic.lost_nothing()


# --- another back-end --------------------------------------------------------------------------------------------


async def holders(world: TrafficWorld) -> set[str]:
    """Back-ends that hold rules of ours on node1."""
    found = set()
    tables = await world.node1.run("nft", "list", "tables")
    if "felixpy" in tables:
        found.add("nftables")
    for variant in ("legacy", "nft"):
        for six in ("", "6"):
            if "fpy-" in await iptables_save(world.node1, f"ip{six}tables-{variant}-save"):
                found.add(variant)
    return found


async def sets(world: TrafficWorld) -> bool:
    return "fpy" in await world.node1.run("ipset", "list", "-name")


@pytest.mark.parametrize("backends", [("legacy", "nft", "nftables"), ("nft", "legacy", "nftables")], ids="-".join)
@pytest.mark.parametrize("world", COMBINATIONS[:1], ids=str, indirect=True)
async def test_another_back_end_takes_over_without_loss(world: TrafficWorld, backends: tuple[str, ...]) -> None:
    """From nftables round to nftables; one agent is killed in the middle of its change, and the next one ends it."""
    async with world.traffic() as traffic:
        for number, backend in enumerate(backends):
            await world.agent.stop()
            await killed_at(world, "in-sync", 0.015 * number, **BACKENDS[backend])
            await world.start_agent(**BACKENDS[backend])
            assert world.lab.status["node1"]["backend"] in (backend, f"iptables-{backend}")
            await becomes({backend}, holders, world)
            await becomes(backend != "nftables", sets, world)
            await traffic.lost_nothing()
        assert (await world.plan())[0] == 0
