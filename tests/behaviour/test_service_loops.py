"""A packet to a Service that nobody answers: its node's default route leads to a router, whose way leads back.

The router here is the outside host. A packet that goes round between the two ends as ``Time to live exceeded``.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from felixpy.demo.patience import stretched
from felixpy.demo.resources import Object, felix_configuration, v3
from felixpy.demo.topology import NODE1, P2A
from felixpy.model.net import Family

from .world import World, becomes

RANGE = {Family.V4: "10.96.0.0/16", Family.V6: "fd00:96::/112"}
SERVICE = {Family.V4: "10.96.0.10", Family.V6: "fd00:96::a"}
FORWARDING = {Family.V4: "ipv4/ip_forward", Family.V6: "ipv6/conf/all/forwarding"}
REDIRECTS = ("ipv4/conf/all/send_redirects", "ipv4/conf/eth0/send_redirects")
ROUND, REFUSED, NOTHING = "Time to live exceeded", "Port unreachable", "nothing"
WORDS = {"Time to live exceeded": ROUND, "Hop limit": ROUND, "Port unreachable": REFUSED}
TRANSLATE = """table {family} proxy {{
    chain prerouting {{
        type nat hook prerouting priority -100
        {family} daddr {service} dnat to {backend}
    }}
}}
"""


def settings(**spec: str) -> Object:
    return felix_configuration(defaultEndpointToHostAction="Accept", **spec)


def ranges(*families: Family, field: str = "serviceClusterIPs") -> Object:
    return v3("BGPConfiguration", "default", {field: [{"cidr": RANGE[family]} for family in families]})


@contextlib.asynccontextmanager
async def router(world: World, family: Family) -> AsyncIterator[None]:
    """The outside host routes the Services' range to node1, as one that was told so by BGP.

    Neither of the two sends IPv4 redirects: after nine of them Linux notes the time of each packet that would be worth
    one where it counts how often it may say that a packet's time is over, and from then on it never says so.
    """
    ext, route = world.lab.ext, f"{RANGE[family]} via {NODE1.addresses[family]}"
    wanted = [(ext, FORWARDING[family], 1), *((host, name, 0) for host in (ext, world.node1) for name in REDIRECTS)]
    before = [(host, name, await host.sysctl(name)) for host, name, _ in wanted]
    await ext.ip([f"route add {route}"])
    try:
        for host, name, value in wanted:
            await host.sysctl(name, value)
        yield
    finally:
        for host, name, value in before:
            await host.sysctl(name, value)
        await ext.ip([f"route del {route}"])


async def answer(world: World, family: Family) -> str:
    """What another node hears of a packet to a Service, which the router gives to node1."""
    wait = f"{min(stretched(0.5), 3.0):.1f}"
    command = ("ping", "-n", "-c1", "-t8", f"-W{wait}", SERVICE[family])
    said = await world.lab.node("node2").run(*command, check=False)
    return next((meaning for words, meaning in WORDS.items() if words.lower() in said.lower()), NOTHING)


async def test_what_comes_from_a_router_does_not_go_back_to_it(world: World) -> None:
    for family in world.families:
        async with router(world, family):
            await becomes(ROUND, answer, world, family)
            for field in ("serviceClusterIPs", "serviceExternalIPs", "serviceLoadBalancerIPs"):
                async with world.changed(ranges(family, field=field)):
                    await becomes(NOTHING, answer, world, family)
                await becomes(ROUND, answer, world, family)
            async with world.changed(ranges(family)):
                await becomes(NOTHING, answer, world, family)
                async with world.changed(settings(serviceLoopPrevention="Reject")):
                    await becomes(REFUSED, answer, world, family)
                async with world.changed(settings(serviceLoopPrevention="Disabled")):
                    await becomes(ROUND, answer, world, family)


async def test_a_workload_sends_nothing_out_to_a_service_but_what_a_proxy_translates(world: World) -> None:
    p1a = world.lab.pod("p1a")
    for family in world.families:
        own = {NODE1.addresses[family]}
        await becomes(own, world.sources_outside, p1a, SERVICE[family])
        async with world.changed(ranges(family)):
            await becomes(set(), world.sources_outside, p1a, SERVICE[family])
            table = "ip" if family is Family.V4 else "ip6"
            rules = TRANSLATE.format(family=table, service=SERVICE[family], backend=P2A.addresses[family])
            await world.node1.run("nft", "-f", "-", stdin=rules)
            try:
                await becomes((True, True, True), world.reaches, p1a, SERVICE[family])
            finally:
                await world.node1.run("nft", "delete", "table", table, "proxy")
        await becomes(own, world.sources_outside, p1a, SERVICE[family])
