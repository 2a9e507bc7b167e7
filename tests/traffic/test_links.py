"""Interfaces flap, are renamed, made anew and moved under traffic: the agent follows by what the kernel tells."""

from __future__ import annotations

import asyncio

from felixpy.demo import topology
from felixpy.demo.host import Host
from felixpy.demo.resources import node
from felixpy.demo.topology import EXT, NODE1, NODE2, P1B, NodeSpec
from felixpy.model.net import Family
from tests.behaviour.world import CUT_OFF, P1C, REACHED, becomes

from .flows import Line, TrafficWorld

FLAPS = 3


async def routes(world: TrafficWorld, destination: str, family: Family) -> list[str]:
    """Our routes to a destination on node1, as text."""
    said = await world.node1.run("ip", f"-{family.version}", "route", "show", destination, "proto", "222")
    return said.split()


async def test_a_workload_interface_that_flaps(world: TrafficWorld) -> None:
    async with world.traffic() as traffic:
        for _ in range(FLAPS):
            await world.node1.ip([f"link set {P1B.interface} down", f"link set {P1B.interface} up"])
            recovery = await traffic.recovers()
            print(f"{world.backend}: a workload's interface flaps: {recovery}")
            others = {name: one for name, one in recovery.flows.items() if not name.endswith("p1b")}
            assert not any(one.lost for one in others.values()), others


async def test_the_parent_interface_that_flaps(world: TrafficWorld) -> None:
    """IPv6 addresses go with the link; an administrator adds them and the default routes again.

    Streams to the outside end: the kernel forgets what it masqueraded out of a device that goes down.
    """
    async with world.traffic() as traffic:
        await world.node1.ip(
            [
                "link set eth0 down",
                "link set eth0 up",
                f"addr add {NODE1.addresses[Family.V6]}/64 dev eth0 nodad",
                *(f"route replace default via {EXT[family]}" for family in world.families),
            ]
        )
        recovery = await traffic.recovers(without="stream p1a → ext")
        print(f"{world.backend}: eth0 flaps: {recovery}")
        local = {name: one for name, one in recovery.flows.items() if name.endswith("p1b")}
        assert not any(one.lost for one in local.values()), local
    assert (await world.plan())[0] == 0


async def test_the_address_of_another_node_changes(world: TrafficWorld) -> None:
    """Its address moves first, then its Node resource: the routes to its blocks follow."""
    moved = NodeSpec("node2", {Family.V4: "172.31.0.22", Family.V6: "fd00:31::22"}, NODE2.blocks)
    node2 = world.lab.node("node2")
    await node2.sysctl("ipv4/conf/eth0/promote_secondaries", 1)
    async with world.traffic() as traffic:
        for old, new in ((NODE2, moved), (moved, NODE2)):
            for family in world.families:
                length = topology.NODE_PREFIX_LENGTH[family]
                nodad = " nodad" if family is Family.V6 else ""
                await node2.ip([f"addr add {new.addresses[family]}/{length} dev eth0{nodad}"])
            await becomes("", tentative, node2)
            await world.put(node(new, world.families))
            for family in world.families:
                await becomes(True, leads_to, world, NODE2.blocks[family], family, new.addresses[family])
            for family in world.families:
                length = topology.NODE_PREFIX_LENGTH[family]
                await node2.ip([f"addr del {old.addresses[family]}/{length} dev eth0"])
            await asyncio.sleep(0.2)
        await traffic.lost_nothing()


async def tentative(host: Host) -> str:
    """Addresses that do not answer yet: a new IPv6 one, for a moment."""
    return await host.run("ip", "-6", "address", "show", "tentative")


async def leads_to(world: TrafficWorld, block: str, family: Family, gateway: str) -> bool:
    return gateway in await routes(world, block, family)


# --- a workload whose interface comes, goes, and is called something else ------------------------------------------


def to_p1c(world: TrafficWorld) -> list[Line]:
    return [Line("p1a", kind, "p1c", f, P1C.addresses[f]) for f in world.families for kind in ("datagrams", "stream")]


async def test_an_interface_renamed_away_and_back(world: TrafficWorld) -> None:
    """Under another name it is nobody's: cut off. Others notice nothing."""
    p1a = world.lab.pod("p1a")
    async with world.traffic() as others, world.traffic(to_p1c(world)) as flows:
        rename = "link set {} down", "link set {} name {}", "link set {} up"
        await world.node1.ip(
            [
                rename[0].format(P1C.interface),
                rename[1].format(P1C.interface, "calirenamed"),
                rename[2].format("calirenamed"),
            ]
        )
        for family in world.families:
            await becomes(CUT_OFF, world.reaches, p1a, P1C.addresses[family])
        await world.node1.ip(
            [
                rename[0].format("calirenamed"),
                rename[1].format("calirenamed", P1C.interface),
                rename[2].format(P1C.interface),
            ]
        )
        print(f"{world.backend}: renamed back: {await flows.recovers()}")
        await others.lost_nothing()


async def test_an_interface_made_anew_or_moved_away_and_back(world: TrafficWorld) -> None:
    """With another index, or in another namespace for a while; an interface that comes after its endpoint."""
    p1a, p1c = world.lab.pod("p1a"), world.lab.pod("p1c")
    interface = P1C.interface
    async with world.traffic() as others:
        await world.node1.ip([f"link del {interface}"])
        for family in world.families:
            await becomes([], routes, world, P1C.addresses[family], family)
        await world.node1.ip(
            [
                f"link add {interface} index 4711 type veth peer name eth0 netns {p1c.pid}",
                f"link set {interface} address {topology.HOST_MAC} up",
            ]
        )
        await p1c.ip(topology.pod_commands(world.mode, P1C))
        for family in world.families:
            await becomes(REACHED, world.reaches, p1a, P1C.addresses[family])
        await world.node1.ip([f"link set {interface} netns {world.lab.fabric.pid}"])
        for family in world.families:
            await becomes(CUT_OFF, world.reaches, p1a, P1C.addresses[family])
        await world.lab.fabric.ip([f"link set {interface} netns {world.node1.pid}"])
        await world.node1.ip([f"link set {interface} up"])
        for family in world.families:
            await becomes(REACHED, world.reaches, p1a, P1C.addresses[family])
        await others.lost_nothing()
    assert (await world.plan())[0] == 0
