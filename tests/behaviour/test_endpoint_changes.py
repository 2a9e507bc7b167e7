"""Endpoints that come, go, change family or lose their interface, beside flows that must not notice."""

from __future__ import annotations

import pytest

from felixpy.demo import topology
from felixpy.demo.patience import stretched
from felixpy.demo.resources import felix_configuration, v3, workload_endpoint
from felixpy.demo.topology import EXT, NODE1, P1A, P1B, P2A
from felixpy.model.net import Family

from .world import CUT_OFF, P1C, REACHED, World, becomes


async def test_a_removed_endpoint_is_cut_off_and_its_neighbours_are_not(world: World) -> None:
    p1a, p1c = world.lab.pod("p1a"), world.lab.pod("p1c")
    for family in world.families:
        address = P1C.addresses[family]
        await becomes(REACHED, world.reaches, p1a, address)
        old = await p1a.open_flow("tcp", address)
        neighbour = await p1a.open_flow("tcp", P1B.addresses[family])
        async with world.removed(workload_endpoint(P1C, world.families)):
            await becomes(CUT_OFF, world.reaches, p1a, address)
            await becomes(CUT_OFF, world.reaches, p1c, P2A.addresses[family])
            assert await old.ask(timeout=0.3) is None, "a flow of the removed endpoint ends with it"
            assert await neighbour.ask() == neighbour.first
        await becomes(REACHED, world.reaches, p1a, address)
        await old.close()
        await neighbour.close()


@pytest.mark.modes("dual")
@pytest.mark.parametrize("kept", list(Family), ids=str)
async def test_losing_and_gaining_a_family_does_not_disturb_the_other(world: World, kept: Family) -> None:
    p1a = world.lab.pod("p1a")
    lost = Family.V6 if kept is Family.V4 else Family.V4
    await becomes(REACHED, world.reaches, p1a, P1C.addresses[kept])
    flows = [await p1a.open_flow(protocol, P1C.addresses[kept]) for protocol in ("tcp", "udp")]
    async with world.changed(workload_endpoint(P1C, [kept])):
        await becomes(CUT_OFF, world.reaches, p1a, P1C.addresses[lost])
        for flow in flows:
            assert await flow.ask() == flow.first
    await becomes(REACHED, world.reaches, p1a, P1C.addresses[lost])
    for flow in flows:
        assert await flow.ask() == flow.first
        await flow.close()


async def test_a_changed_address_moves_and_the_old_one_is_dead(world: World) -> None:
    p1a, p1c = world.lab.pod("p1a"), world.lab.pod("p1c")
    second = {Family.V4: "10.49.0.9", Family.V6: "fd00:49::9"}
    networks = [f"{second[family]}/{family.bits}" for family in world.families]
    for family in world.families:
        await p1c.ip([f"addr add {networks[world.families.index(family)]} dev eth0"])
        await p1c.listen(second[family])
    async with world.changed(workload_endpoint(P1C, world.families, ipNetworks=networks)):
        for family in world.families:
            await becomes(REACHED, world.reaches, p1a, second[family])
            await becomes(CUT_OFF, world.reaches, p1a, P1C.addresses[family])
    for family in world.families:
        await becomes(REACHED, world.reaches, p1a, P1C.addresses[family])
        await becomes(CUT_OFF, world.reaches, p1a, second[family])
        await p1c.ip([f"addr del {networks[world.families.index(family)]} dev eth0"])


async def test_an_interface_that_went_down_and_up_works_again(world: World) -> None:
    """The kernel drops the routes of a link that goes down and restores none (DESIGN trap 4)."""
    p1a, p1c = world.lab.pod("p1a"), world.lab.pod("p1c")
    await world.node1.ip([f"link set {P1C.interface} down", f"link set {P1C.interface} up"])
    for family in world.families:
        await becomes(REACHED, world.reaches, p1a, P1C.addresses[family])
        await becomes({P1C.addresses[family]}, world.sources_outside, p1c, EXT[family])


async def test_an_interface_that_comes_after_its_endpoint(world: World) -> None:
    """The endpoint is known first; the interface is made anew, with another index."""
    p1a, p1c = world.lab.pod("p1a"), world.lab.pod("p1c")
    await world.node1.ip([f"link del {P1C.interface}"])
    for family in world.families:
        await becomes(CUT_OFF, world.reaches, p1a, P1C.addresses[family])
    await world.node1.ip(
        [
            f"link add {P1C.interface} type veth peer name eth0 netns {p1c.pid}",
            f"link set {P1C.interface} address {topology.HOST_MAC} up",
        ]
    )
    await p1c.ip(topology.pod_commands(world.mode, P1C))
    for family in world.families:
        await becomes(REACHED, world.reaches, p1a, P1C.addresses[family])


async def test_the_fabric_interface_that_went_down_and_up_gets_its_block_routes_back(world: World) -> None:
    p1a = world.lab.pod("p1a")
    commands = ["link set eth0 down", "link set eth0 up"]
    for family in world.families:
        length = topology.NODE_PREFIX_LENGTH[family]
        nodad = " nodad" if family is Family.V6 else ""
        commands.append(f"addr replace {NODE1.addresses[family]}/{length} dev eth0{nodad}")
        commands.append(f"route replace default via {EXT[family]}")
    await world.node1.ip(commands)
    for family in world.families:
        await becomes(REACHED, world.reaches, p1a, P2A.addresses[family])
        await becomes(NODE1.addresses[family], world.tcp_source, p1a, EXT[family])


@pytest.mark.modes("dual")
async def test_a_deleted_route_comes_back_at_the_latest_with_the_next_refresh(world: World) -> None:
    p1a = world.lab.pod("p1a")
    await world.restart_agent(FELIX_ROUTEREFRESHINTERVAL="1")
    for family in world.families:
        address = P1C.addresses[family]
        await world.node1.ip([f"route del {address}/{family.bits} dev {P1C.interface}"])
        await becomes(REACHED, world.reaches, p1a, address)
    await world.restart_agent()


async def test_bad_input_leaves_its_neighbours_alone(world: World) -> None:
    """Broken JSON, host bits, an interface name of 16 characters, an address that another has."""
    p1a = world.lab.pod("p1a")
    flows = [await p1a.open_flow("tcp", P2A.addresses[family]) for family in world.families]
    twin = workload_endpoint(P1C, world.families, ipNetworks=[f"{P1A.addresses[f]}/{f.bits}" for f in world.families])
    long_name = workload_endpoint(P1C, world.families, interfaceName="cali567890123456")
    host_bits = v3("IPPool", "bad", {"cidr": "10.61.0.1/16", "natOutgoing": True})
    await world.lab.publish("wep/node1/default/broken", b'{"kind": "WorkloadEndpoint", ')
    await world.lab.publish("ippool/broken", b"\xff\x00" * 1000)
    async with world.changed(host_bits, felix_configuration("node.node1", natPortRange="many")):
        for bad in (twin, long_name):
            async with world.changed(bad):
                for family in world.families:
                    await becomes(CUT_OFF, world.reaches, p1a, P1C.addresses[family])
                    seen = await world.reaches(world.lab.pod("p2a"), P1A.addresses[family], timeout=stretched(1.0))
                    assert seen == REACHED
        for flow in flows:
            assert await flow.ask() == flow.first
            await flow.close()
        assert world.lab.agents["node1"].running
    await world.lab.publish("wep/node1/default/broken", b"")
    await world.lab.publish("ippool/broken", b"")
    for family in world.families:
        await becomes(REACHED, world.reaches, p1a, P1C.addresses[family])
