"""Flows of an address that leaves a workload end with it; nobody inherits them, and no other flow notices."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest

from felixpy.demo.patience import stretched
from felixpy.demo.resources import workload_endpoint
from felixpy.demo.topology import P2A
from tests.behaviour.world import P1C, becomes

from .flows import P1D, Counted, Line, TrafficWorld

ONLY_P1D_LISTENS = 7001


def both_ways(world: TrafficWorld) -> list[Line]:
    """Flows to p1c from a neighbour, and from p1c to another node."""
    return [
        line
        for family in world.families
        for kind in ("stream", "datagrams")
        for line in (
            Line("p1a", kind, "p1c", family, P1C.addresses[family]),
            Line("p1c", kind, "p2a", family, P2A.addresses[family]),
        )
    ]


async def tracked(world: TrafficWorld, addresses: Sequence[str]) -> list[str]:
    """Conntrack entries of node1 with one of the addresses."""
    found = []
    for family in world.families:
        said = await world.node1.run("conntrack", "-L", "-f", f"ipv{family.version}")
        found += [line for line in said.splitlines() if any(f"={address} " in line for address in addresses)]
    return found


async def test_flows_of_a_removed_endpoint_stop_both_ways(world: TrafficWorld) -> None:
    addresses = list(P1C.addresses.values())
    async with world.traffic() as others, world.traffic(both_ways(world)) as flows:
        await flows.lost_nothing()
        assert len(await tracked(world, addresses)) >= len(both_ways(world))
        async with world.removed(workload_endpoint(P1C, world.families)):
            await becomes([], tracked, world, addresses)
            await flows.look()
            await asyncio.sleep(0.3)
            after = await flows.look()
            assert {name: one for name, one in after.items() if one.answered or not one.lost} == {}
            assert await tracked(world, addresses) == [], "what is dropped leaves no entry"
        for family in world.families:
            await becomes(True, answers, world, P1C.addresses[family], 7000)
        await others.lost_nothing()


async def answers(world: TrafficWorld, address: str, port: int) -> bool:
    return await world.lab.pod("p1a").tcp(address, port, timeout=stretched(0.2)) is not None


# --- the address goes to another workload --------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def events(world: TrafficWorld) -> AsyncIterator[list[str]]:
    """New and destroyed conntrack entries of node1, in order; the list is filled at the end of the block.

    The kernel tells the end only of entries that were made while somebody listened.
    """
    with (world.lab.folder / "conntrack").open("w+b") as output:
        process = await world.node1.spawn("conntrack", "-E", "-e", "NEW,DESTROY", "-b", "8388608", output=output)
        await asyncio.sleep(0.2)
        lines: list[str] = []
        yield lines
        await asyncio.sleep(0.2)
        process.terminate()
        await process.wait()
        output.seek(0)
        lines += output.read().decode().splitlines()


def of_flow(seen: Sequence[str], verb: str, line: Line, flow: Counted) -> list[int]:
    """Positions of events of one kind of a flow, known by its ends: others use its port, too."""
    address, port = flow.peers[0].split()
    protocol = {"stream": "tcp", "datagrams": "udp"}[line.kind]
    ends = re.escape(f" src={address} dst={line.address} sport={port} dport=7000 ")
    event = re.compile(rf"\[{verb}\] {protocol} .*{ends}")
    return [at for at, text in enumerate(seen) if event.search(text)]


async def by_one_update(world: TrafficWorld) -> None:
    """The endpoint gets another interface."""
    await world.put(workload_endpoint(P1C, world.families, interfaceName=P1D.interface))


async def by_delete_and_add(world: TrafficWorld) -> None:
    """The endpoint goes; another one, on another interface, comes with its addresses."""
    networks = [f"{P1C.addresses[family]}/{family.bits}" for family in world.families]
    await world.remove(workload_endpoint(P1C, world.families))
    await world.put(workload_endpoint(P1D, world.families, ipNetworks=networks))


@contextlib.asynccontextmanager
async def second_home(world: TrafficWorld, port: int) -> AsyncIterator[None]:
    """While the block runs p1d has the addresses of p1c too, and listens on a port where p1c does not."""
    p1d = world.lab.pod("p1d")
    for family in world.families:
        await p1d.ip([f"addr add {P1C.addresses[family]}/{family.bits} dev eth0"])
        await p1d.listen(P1C.addresses[family], port)
    try:
        yield
    finally:
        await p1d.ip([f"addr del {P1C.addresses[family]}/{family.bits} dev eth0" for family in world.families])


@pytest.mark.parametrize(("move", "port"), [(by_one_update, 7001), (by_delete_and_add, 7002)])
async def test_an_address_that_moves_takes_no_flow_along(
    world: TrafficWorld, move: Callable[[TrafficWorld], Awaitable[None]], port: int
) -> None:
    """The entries of its flows are gone before the first packet for it reaches its new workload."""
    wanted = both_ways(world)
    endpoints = [workload_endpoint(pod, world.families) for pod in (P1C, P1D)]
    async with second_home(world, port), world.changed(*endpoints), world.traffic() as others:
        await world.remove(endpoints[1])
        async with events(world) as seen, world.traffic(wanted) as flows:
            before = await flows.lost_nothing()
            await move(world)
            for family in world.families:
                await becomes(True, answers, world, P1C.addresses[family], port)
            await flows.look()
            await asyncio.sleep(0.3)
            after = await flows.look()
        assert {name: one for name, one in after.items() if one.answered} == {}
        for family in world.families:
            known = [(line, before[line.name]) for line in wanted if line.family is family]
            ended = [of_flow(seen, "DESTROY", *flow)[0] for flow in known]
            again = [at for flow in known for at in of_flow(seen, "NEW", *flow)[1:]]
            assert again and max(ended) < min(again), "\n".join(seen)
        await others.lost_nothing()
    for family in world.families:
        await becomes(True, answers, world, P1C.addresses[family], 7000)
