"""natOutgoing and its settings, by the source address that the outside host sees."""

from __future__ import annotations

import pytest

from felixpy.demo.patience import stretched
from felixpy.demo.resources import Object, default_pool, felix_configuration, ip_pool
from felixpy.demo.topology import EXT, INTERNET, NODE1, NODE2, P1A
from felixpy.model.net import Family

from .world import ELSEWHERE, ELSEWHERE_POOL, P1C, World, becomes


def elsewhere(family: Family, **spec: object) -> Object:
    """A pool that no node uses."""
    return ip_pool(f"elsewhere-{family.version}", ELSEWHERE_POOL[family], **spec)


async def test_a_destination_in_any_pool_is_not_translated(world: World) -> None:
    p1a = world.lab.pod("p1a")
    for family in world.families:
        own, node = P1A.addresses[family], NODE1.addresses[family]
        await becomes({node}, world.sources_outside, p1a, ELSEWHERE[family])
        for nat_outgoing in (False, True):
            async with world.changed(elsewhere(family, natOutgoing=nat_outgoing)):
                await becomes({own}, world.sources_outside, p1a, ELSEWHERE[family])
        async with world.changed(elsewhere(family, disabled=True)):
            await becomes({own}, world.sources_outside, p1a, ELSEWHERE[family])
        await becomes({node}, world.sources_outside, p1a, ELSEWHERE[family])


async def test_a_load_balancer_pool_is_no_pool(world: World) -> None:
    p1a = world.lab.pod("p1a")
    for family in world.families:
        async with world.changed(elsewhere(family)):
            await becomes({P1A.addresses[family]}, world.sources_outside, p1a, ELSEWHERE[family])
            async with world.changed(elsewhere(family, allowedUses=["LoadBalancer"])):
                await becomes({NODE1.addresses[family]}, world.sources_outside, p1a, ELSEWHERE[family])


async def test_only_pools_with_nat_outgoing_are_translated(world: World) -> None:
    p1a, p1c = world.lab.pod("p1a"), world.lab.pod("p1c")
    for family in world.families:
        own = P1C.addresses[family]
        await becomes({NODE1.addresses[family]}, world.sources_outside, p1a, EXT[family])
        await becomes({own}, world.sources_outside, p1c, EXT[family])
        assert await p1c.tcp(EXT[family], timeout=0.3) is None, "the outside host has no route back"
        route = f"{own}/{family.bits} via {NODE1.addresses[family]}"
        await world.lab.ext.ip([f"route add {route}"])
        try:
            assert await world.tcp_source(p1c, EXT[family], timeout=stretched(1.0)) == own
        finally:
            await world.lab.ext.ip([f"route del {route}"])


async def test_nat_outgoing_off_and_on_live(world: World) -> None:
    p1a = world.lab.pod("p1a")
    for family in world.families:
        async with world.changed(default_pool(family, natOutgoing=False)):
            await becomes({P1A.addresses[family]}, world.sources_outside, p1a, EXT[family])
            assert await p1a.tcp(EXT[family], timeout=0.3) is None
        await becomes(NODE1.addresses[family], world.tcp_source, p1a, EXT[family])


@pytest.mark.modes("dual")
async def test_the_other_family_keeps_its_translation(world: World) -> None:
    p1a = world.lab.pod("p1a")
    for family in world.families:
        async with world.changed(default_pool(family, natOutgoing=False)):
            await becomes({P1A.addresses[family]}, world.sources_outside, p1a, EXT[family])
            other = Family.V6 if family is Family.V4 else Family.V4
            assert await world.tcp_source(p1a, EXT[other]) == NODE1.addresses[other]


async def test_exclusions_with_host_addresses(world: World) -> None:
    p1a = world.lab.pod("p1a")
    setting = felix_configuration(defaultEndpointToHostAction="Accept", natOutgoingExclusions="IPPoolsAndHostIPs")
    for family in world.families:
        node2 = NODE2.addresses[family]
        await becomes(NODE1.addresses[family], world.tcp_source, p1a, node2)
        async with world.changed(setting):
            await becomes(P1A.addresses[family], world.tcp_source, p1a, node2)
            assert await world.tcp_source(p1a, EXT[family]) == NODE1.addresses[family]
        await becomes(NODE1.addresses[family], world.tcp_source, p1a, node2)


async def test_a_live_flow_keeps_its_translation_until_its_conntrack_entry_goes(world: World) -> None:
    p1a = world.lab.pod("p1a")
    for family in world.families:
        flow = await p1a.open_flow("udp", EXT[family])
        async with world.changed(default_pool(family, natOutgoing=False)):
            await becomes({P1A.addresses[family]}, world.sources_outside, p1a, INTERNET[family])
            assert await flow.ask() == flow.first
            conntrack = ("conntrack", "-D", "-f", f"ipv{family.version}", "-s", P1A.addresses[family])
            await world.node1.run(*conntrack, check=False)
            assert await flow.ask(timeout=0.3) is None
        await flow.close()


async def test_port_range(world: World) -> None:
    p1a = world.lab.pod("p1a")
    setting = felix_configuration(defaultEndpointToHostAction="Accept", natPortRange="40000:40009")

    async def ports(family: Family) -> bool:
        seen = [await p1a.tcp(EXT[family]), await p1a.udp(EXT[family])]
        return all(each is not None and 40000 <= each.port <= 40009 for each in seen)

    async with world.changed(setting):
        for family in world.families:
            await becomes(True, ports, family)
            assert all([await ports(family) for _ in range(3)])
            assert await p1a.ping(EXT[family])
            assert await world.tcp_source(p1a, EXT[family]) == NODE1.addresses[family]


async def test_outgoing_address_of_each_family_live(world: World) -> None:
    """natOutgoingAddress is IPv4 only and must not disturb IPv6, as it does in Felix (calico#3275)."""
    p1a = world.lab.pod("p1a")
    own = {Family.V4: "172.31.0.77", Family.V6: "fd00:31::77"}
    names = {Family.V4: "natOutgoingAddress", Family.V6: "natOutgoingAddressIPv6"}
    suffix = {Family.V4: "/24 dev eth0", Family.V6: "/64 dev eth0 nodad preferred_lft 0"}
    for family in world.families:
        await world.node1.ip([f"addr add {own[family]}{suffix[family]}"])
    for family in Family:
        setting = felix_configuration("node.node1", **{names[family]: own[family]})
        async with world.changed(setting):
            for each in world.families:
                expected = own[each] if each is family else NODE1.addresses[each]
                await becomes(expected, world.tcp_source, p1a, EXT[each])
                assert await p1a.ping(EXT[each])
    for family in world.families:
        await becomes(NODE1.addresses[family], world.tcp_source, p1a, EXT[family])
        await world.node1.ip([f"addr del {own[family]}{suffix[family]}"])
