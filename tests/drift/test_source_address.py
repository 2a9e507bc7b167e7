"""``DeviceRouteSourceAddress``: on every route of ours, and there again when the address went and came."""

from __future__ import annotations

import pytest

from tests.drift.world import World, build_links, running, sh
from tests.netns import enter_new_network, enter_private_namespaces

SOURCES = {"DeviceRouteSourceAddress": "192.0.2.77", "DeviceRouteSourceAddressIPv6": "2001:db8::77"}
REFRESH_OFF = {f"{name}RefreshInterval": "0" for name in ("Route", "Interface", "NFTables")}
HAVE = "ip addr add 192.0.2.77/32 dev lo; ip addr add 2001:db8::77/128 dev lo nodad"
LOSE = "ip addr del 192.0.2.77/32 dev lo; ip addr del 2001:db8::77/128 dev lo"


@pytest.fixture(autouse=True)
def network() -> None:
    enter_private_namespaces()
    enter_new_network()
    build_links(2)


def ours() -> list[str]:
    return sh("ip route show proto 222; ip -6 route show proto 222").splitlines()


def all_have_it() -> bool:
    """Workloads, a blackhole and a block of another node, of each family."""
    routes = ours()
    return len(routes) == 8 and all("src 192.0.2.77" in one or "src 2001:db8::77" in one for one in routes)


def reasons(world: World) -> list[str]:
    return [why for _, why in world.agent.outcome.problems.items()]


async def test_every_route_has_it_and_has_it_again() -> None:
    sh(HAVE)
    async with running("nftables", 2, **SOURCES, **REFRESH_OFF) as world:
        assert all_have_it(), ours()
        for between in ("true", "sleep 0.3"):
            sh(f"{LOSE}; {between}; {HAVE}")
            await world.until(all_have_it)
            await world.quiet()
        sh(LOSE)
        await world.until(lambda: bool(reasons(world)))
        sh(HAVE)
        await world.until(all_have_it)
        await world.until(lambda: not reasons(world))


async def test_an_address_that_comes_late_is_used_at_once() -> None:
    async with running("nftables", 2, **REFRESH_OFF) as world:
        assert not all_have_it()
    async with running("nftables", 2, **SOURCES, **REFRESH_OFF) as world:
        await world.until(lambda: bool(reasons(world)))
        sh(HAVE)
        await world.until(all_have_it)
        await world.until(lambda: not reasons(world))
