"""Routes that are not felixpy's under the very key of one that it wants: they stay, it says whose they are, and both
come back when the other goes.
"""

from __future__ import annotations

import asyncio

import pytest

from felixpy.config import SettingsSource
from felixpy.model.resources import Update
from tests.drift.world import World, build_links, endpoint, put, running, sh, surroundings
from tests.netns import enter_new_network, enter_private_namespaces

OTHERS = {
    "an administrator's": "ip route add 10.48.1.0/26 via 172.31.0.254 proto static",
    "BIRD's": "ip route add 10.48.1.0/26 via 172.31.0.2 proto bird",
    "the kernel's": "ip route add 10.48.1.0/26 dev eth0 proto kernel scope link",
    "a blackhole for an own block": "ip route add blackhole 10.48.0.0/26 proto static",
    "an administrator's, v6": "ip -6 route add fd00:48:0:1::/122 via fd00:31::fe proto static",
    "BIRD's, v6": "ip -6 route add fd00:48:0:1::/122 via fd00:31::2 dev eth0 proto bird metric 1024",
    "several ways at once, v6": "ip -6 route add fd00:48:0:1::/122 nexthop via fd00:31::fe nexthop via fd00:31::fd",
    "several ways at once": "ip route add 10.48.1.0/26 nexthop via 172.31.0.254 nexthop via 172.31.0.253",
    "one to a workload's address": "ip route add 10.48.0.1/32 via 172.31.0.254 proto static",
    "one to a workload's address, v6": "ip -6 route add fd00:48::1/128 via fd00:31::fe proto static",
}
MISSING = {"10.48.1.0/26": "10-48-1-0-26", "10.48.0.0/26": "10-48-0-0-26", "fd00:48:0:1::/122": "fd00-48-0-1---122"}


@pytest.fixture(autouse=True)
def network() -> None:
    enter_private_namespaces()
    enter_new_network()
    build_links(3)


def main_table() -> list[str]:
    return sh("ip route show; ip -6 route show | grep -v fe80").splitlines()


def destination(command: str) -> str:
    return next(word for word in command.split() if "/" in word)


def protocols(net: str) -> list[str]:
    family = "-6" if ":" in net else "-4"
    return [line.split("proto ")[1].split()[0] for line in sh(f"ip {family} route show exact {net}").splitlines() if
            "proto" in line]  # fmt: skip


def reasons(world: World) -> list[str]:
    return [why for _, why in world.agent.outcome.problems.items()]


@pytest.mark.parametrize("whose", OTHERS)
async def test_it_stays_and_is_named_and_ours_comes_when_it_goes(whose: str) -> None:
    command = OTHERS[whose]
    net = destination(command)
    sh(command)
    before = sh("ip route show; ip -6 route show")
    async with running("nftables") as world:
        await world.until(lambda: any(f"{net} is taken by" in why for why in reasons(world)))
        assert set(before.splitlines()) <= set(sh("ip route show; ip -6 route show").splitlines())
        assert "222" not in protocols(net)
        assert world.agent.dataplane.socket.dumps_sent < 30, "it waits for the kernel's word, and asks for nothing"
        sh(command.replace(" add ", " del "))
        await world.until(lambda: protocols(net) == ["222"])
        await world.until(lambda: not reasons(world))


async def test_it_is_there_as_before_when_the_object_goes_and_when_it_came_later() -> None:
    async with running("nftables") as world:
        for update in surroundings():
            if update.key.name in MISSING.values():
                world.agent.update(Update(update.key, None))
        await world.until(lambda: "222" not in protocols("10.48.1.0/26"))
        await world.quiet()
        commands = [OTHERS[whose] for whose in ("an administrator's", "BIRD's, v6", "a blackhole for an own block")]
        sh("; ".join(commands))
        before = main_table()
        for update in surroundings():
            world.agent.update(update)
        await world.until(lambda: len(reasons(world)) == len(commands))
        assert set(before) <= set(main_table())
        for update in surroundings():
            if update.key.name in MISSING.values():
                world.agent.update(Update(update.key, None))
        await world.until(lambda: not reasons(world))
        assert main_table() == before


async def test_one_before_ours_and_one_behind_it() -> None:
    """IPv4 uses the first of several with one key, IPv6 what was there."""
    async with running("nftables") as world:
        sh("ip route append 10.48.1.0/26 via 172.31.0.254 proto static")
        sh("ip -6 route append fd00:48:0:1::/122 dev eth0 proto static")
        sh("ip route prepend 10.48.0.0/26 via 172.31.0.254 proto static")
        await world.until(lambda: any("10.48.0.0/26 is taken by" in why for why in reasons(world)))
        assert len(reasons(world)) == 1
        assert protocols("10.48.1.0/26") == ["222", "static"]
        assert protocols("10.48.0.0/26") == ["static", "222"]
        sh("ip route del 10.48.0.0/26 via 172.31.0.254 proto static")
        await world.until(lambda: not reasons(world))
        assert protocols("10.48.0.0/26") == ["222"]


async def test_what_somebody_puts_in_the_place_of_ours_is_no_route_of_his() -> None:
    async with running("nftables") as world:
        sh("ip route replace 10.48.1.0/26 via 172.31.0.254 proto static")
        sh("ip -6 route replace fd00:48:0:1::/122 via fd00:31::fe dev eth0 proto static metric 1024")
        for net in ("10.48.1.0/26", "fd00:48:0:1::/122"):
            await world.until(lambda net=net: protocols(net) == ["222"])


async def test_routes_of_an_earlier_number_of_ours_are_taken_over() -> None:
    """``DeviceRouteProtocol`` changes live, and between two runs."""
    async with running("nftables") as world:
        world.agent.reload([SettingsSource("test", {"DeviceRouteProtocol": "223"}, local=True)])
        await world.until(lambda: protocols("10.48.1.0/26") == ["223"])
        await world.until(lambda: protocols("fd00:48::/122") == ["223"])
        world.agent.update(put(endpoint(2)))
        await world.quiet()
        assert not reasons(world)
    sh("ip route replace 10.48.1.0/26 via 172.31.0.2 dev eth0 onlink proto 222")
    async with running("nftables", DeviceRouteProtocol="223") as world:
        assert protocols("10.48.1.0/26") == ["223"]


async def test_many_of_others_cost_one_reading() -> None:
    lines = [f"route add 10.48.2.{n}/32 via 172.31.0.254 proto static" for n in range(200)]
    await asyncio.to_thread(sh, f"ip -batch - <<< '{chr(10).join(lines)}'")
    async with running("nftables") as world:
        dumps = world.agent.dataplane.socket.dumps_sent
        for number in range(200):
            one = endpoint(2)
            net = one.addresses[0]._replace(packed=bytes((10, 48, 2, number)))
            changed = endpoint(number + 10, addresses=(net,), interface="cali2" if number == 0 else f"cali{number}x")
            world.agent.update(put(changed))
        await world.until(lambda: any("10.48.2.0/32 is taken" in why for why in reasons(world)))
        assert world.agent.dataplane.socket.dumps_sent - dumps < 20
