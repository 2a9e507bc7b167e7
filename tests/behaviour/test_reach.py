"""Who reaches whom, seen with which address, and what is dropped: the claims of the demo, for every combination."""

from __future__ import annotations

from felixpy.demo import checks
from felixpy.demo.checks import FOREIGN
from felixpy.demo.patience import stretched
from felixpy.demo.resources import felix_configuration, workload_endpoint
from felixpy.demo.topology import EXT, NODE1, P1A, P1B, P2A
from felixpy.model.net import Family

from .world import CUT_OFF, P1C, REACHED, World, becomes, hold


async def test_workloads_hosts_and_the_outside_reach_each_other(world: World) -> None:
    await hold(checks.connectivity(world.lab))


async def test_spoofed_and_unallocated_addresses_go_nowhere(world: World) -> None:
    await hold(checks.protection(world.lab))


async def test_endpoint_to_host_action_drop_and_accept_live(world: World) -> None:
    p1a = world.lab.pod("p1a")
    for family in world.families:
        node = NODE1.addresses[family]
        async with world.changed(felix_configuration(defaultEndpointToHostAction="Drop")):
            await becomes(CUT_OFF, world.reaches, p1a, node)
            assert await world.node1.ping(P1A.addresses[family]), "the host still reaches its workload"
        await becomes(REACHED, world.reaches, p1a, node)


async def test_neighbour_discovery_survives_drop_to_host(world: World) -> None:
    """Without ICMPv6 130-136 from workloads, a new neighbour is never found and IPv6 between workloads dies."""
    async with world.changed(felix_configuration(defaultEndpointToHostAction="Drop")):
        p1a, p1b = world.lab.pod("p1a"), world.lab.pod("p1b")
        for family in world.families:
            await becomes(CUT_OFF, world.reaches, p1a, NODE1.addresses[family])
            for pod in (p1a, p1b):
                await pod.run("ip", f"-{family.version}", "neighbour", "flush", "dev", "eth0")
            for spec in (P1A, P1B):
                await world.node1.run("ip", f"-{family.version}", "neighbour", "flush", "dev", spec.interface)
            assert await world.reaches(p1a, P1B.addresses[family], timeout=stretched(1.5)) == REACHED


async def test_reject_answers_the_workload(world: World) -> None:
    """Drop is silent; Reject tells the workload (at most about once a second: ``icmp_ratelimit``)."""
    p1a = world.lab.pod("p1a")

    async def told(family: Family) -> bool:
        async with p1a.capture() as packets:
            answered = await p1a.udp(NODE1.addresses[family], timeout=0.2)
        icmp = [packet for packet in packets if packet.protocol in (1, 58)]
        return answered is None and any(packet.source == NODE1.addresses[family] for packet in icmp)

    for action, expected in (("Reject", True), ("Drop", False)):
        async with world.changed(felix_configuration(defaultEndpointToHostAction=action)):
            for family in world.families:
                await becomes(CUT_OFF, world.reaches, p1a, NODE1.addresses[family])
                await becomes(expected, told, family)


async def test_allowed_spoofed_prefixes_pass_when_spoofing_is_any(world: World) -> None:
    p1a, target = world.lab.pod("p1a"), world.lab.node("node2")
    prefixes = {Family.V4: "203.0.113.0/24", Family.V6: "2001:db8:bad::/64"}
    allowed = [prefixes[family] for family in world.families]
    endpoint = workload_endpoint(P1A, world.families, allowSpoofedSourcePrefixes=allowed)
    setting = felix_configuration(defaultEndpointToHostAction="Accept", workloadSourceSpoofing="Any")

    async def arrived(family: Family) -> tuple[bool, bool]:
        sources = (FOREIGN[family], P1B.addresses[family])
        async with target.capture() as packets:
            for source in sources:
                await p1a.send_datagram(source, P2A.addresses[family])
        seen = {packet.source for packet in packets}
        return sources[0] in seen, sources[1] in seen

    for family in world.families:
        async with world.changed(setting):
            assert await arrived(family) == (False, False), "the setting alone allows nothing"
            async with world.changed(endpoint):
                await becomes((True, False), arrived, family)
            await becomes((False, False), arrived, family)


async def test_an_interface_without_an_endpoint_reaches_nothing(world: World) -> None:
    """Fail closed: p1c has addresses, routes and a cable, but no endpoint."""
    p1c = world.lab.pod("p1c")
    async with world.removed(workload_endpoint(P1C, world.families)):
        for family in world.families:
            for address in (P1A.addresses[family], P2A.addresses[family], NODE1.addresses[family]):
                await becomes(CUT_OFF, world.reaches, p1c, address)
            await becomes(set(), world.sources_outside, p1c, EXT[family])
    for family in world.families:
        await becomes(REACHED, world.reaches, p1c, P1A.addresses[family])
