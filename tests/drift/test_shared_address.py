"""Two endpoints with one address: the one whose interface is there and up has it, and the youngest of several."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest

from felixpy.model.net import Net
from felixpy.model.resources import ResourceKey, Update, WorkloadEndpoint
from tests.drift.world import World, build_links, endpoint, put, running, sh
from tests.netns import enter_new_network, enter_private_namespaces

REFRESH_OFF = {f"{name}RefreshInterval": "0" for name in ("Route", "Interface", "NFTables", "Iptables", "Ipsets")}
ADDRESSES = tuple(Net.parse(one) for one in ("10.48.0.50", "fd00:48::50"))


@pytest.fixture(autouse=True)
def network() -> Iterator[None]:
    enter_private_namespaces()
    enter_new_network()
    build_links(4)
    yield


def claims(number: int, interface: str, created: str) -> WorkloadEndpoint:
    return endpoint(number, interface=interface, addresses=ADDRESSES, created=created, mac=None)


def state(world: World, key: ResourceKey) -> str:
    return world.agent.outcome.reported.get(key, ("", ""))[0]


def members(backend: str) -> list[str]:
    """Interfaces that the address is a member of a set with, each set."""
    listed = "nft list ruleset" if backend == "nftables" else "ipset save"
    found = sh(f"{listed} | grep -o '\\(10.48.0.50\\|fd00:48::50\\)[ .,\"]*cali[0-9]*' || true").split()
    return sorted({word.strip('",').rpartition(",")[2] for word in found if "cali" in word})


def has_it(interface: str, backend: str) -> bool:
    routes = sh("ip route show 10.48.0.50; ip -6 route show fd00:48::50").split()
    ways = [name for before, name in pairwise(routes) if before == "dev"]
    return ways == [interface] * 2 and members(backend) == [interface]


@pytest.mark.parametrize("backend", ["nftables", "legacy", "nft"])
async def test_the_address_moves_to_the_interface_that_is_up_and_back(backend: str) -> None:
    old, young = claims(50, "cali3", "2026-01-01T00:00:00Z"), claims(51, "cali4", "2026-02-01T00:00:00Z")
    async with running(backend, 2, **REFRESH_OFF) as world:
        for one in (old, young):
            world.agent.update(put(one))
        await world.until(lambda: has_it("cali4", backend))
        for away, back in (
            ("ip link set cali4 down", "ip link set cali4 up"),
            (
                "ip link set cali4 down; ip link set cali4 name away4",
                "ip link set away4 name cali4; ip link set cali4 up",
            ),
            ("ip link del cali4", "ip link add cali4 type veth peer name p4; ip link set p4 up; ip link set cali4 up"),
        ):
            sh(away)
            await world.until(lambda: has_it("cali3", backend))
            await world.until(lambda: (state(world, old.key), state(world, young.key)) == ("up", "error"))
            sh(back)
            await world.until(lambda: has_it("cali4", backend))
            await world.until(lambda: (state(world, old.key), state(world, young.key)) == ("error", "up"))


async def test_an_endpoint_whose_interface_does_not_exist_takes_nothing_from_a_living_one() -> None:
    """Nor while it waits, nor at a restart; once its interface is there it has the address."""
    living, coming = claims(50, "cali3", ""), claims(51, "cali9", "2026-02-01T00:00:00Z")
    async with running("nftables", 2, **REFRESH_OFF) as world:
        world.agent.update(put(living))
        await world.until(lambda: has_it("cali3", "nftables"))
        written = world.agent.dataplane.socket.messages_sent
        world.agent.update(put(coming))
        await world.until(lambda: state(world, coming.key) == "error")
        assert has_it("cali3", "nftables")
        assert world.agent.dataplane.socket.messages_sent == written
        sh("ip link add cali9 type veth peer name p9; ip link set p9 up")
        await world.quiet()
        assert has_it("cali3", "nftables"), "it is down"
        sh("ip link set cali9 up")
        await world.until(lambda: has_it("cali9", "nftables"))
        world.agent.update(Update(coming.key, None))
        await world.until(lambda: has_it("cali3", "nftables"))


async def test_without_any_that_is_up_the_youngest_waits_for_its_own() -> None:
    old, young = claims(50, "cali8", "2026-01-01T00:00:00Z"), claims(51, "cali9", "2026-02-01T00:00:00Z")
    async with running("nftables", 2, **REFRESH_OFF) as world:
        for one in (old, young):
            world.agent.update(put(one))
        await world.until(lambda: (state(world, old.key), state(world, young.key)) == ("error", "waiting"))
        assert "cali9" in world.agent.outcome.reported[young.key][1]
