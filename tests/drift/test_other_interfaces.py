"""What else happens to interfaces: others come and go by hundreds, IPv6 is switched off and on, the uplink changes."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import select
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from felixpy.agent import configuration
from felixpy.agent.agent import Agent
from felixpy.calc.host import Host
from felixpy.dataplane.links import Links
from tests.drift.world import World, build_links, running, sh


@dataclasses.dataclass
class Readings:
    """What an agent has read of the kernel: dumps of routes and links, the node's addresses, everything."""

    world: World
    addresses: int = 0
    everything: int = 0

    @property
    def dumps(self) -> int:
        return self.world.agent.dataplane.socket.dumps_sent


def at_rest() -> bool:
    """The kernel has told all of what was made before: carriers, and the end of duplicate address detection."""
    links = json.loads(sh("ip -j address show"))
    words = {one.get("tentative", False) for link in links for one in link["addr_info"]}
    return words == {False} and all(link["operstate"] in ("UP", "UNKNOWN") for link in links)


def has_taken_all(agent: Agent) -> bool:
    """Whether nothing waits that the kernel told, neither in the socket nor to be read again."""
    kernel = agent.watch._kernel
    assert kernel is not None
    ready, _, _ = select.select([kernel.fileno()], [], [], 0)
    return not (ready or agent.watch._doubts or agent.configuration.host_due)


@asynccontextmanager
async def counted(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Readings]:
    names = ("Route", "Interface", "NFTables")
    async with running("nftables", 1, **{f"{name}RefreshInterval": "0" for name in names}) as world:
        readings = Readings(world)
        read_host, read_kernel = configuration.read_host, world.agent.configuration.read_kernel

        async def counted_host(links: Links, prefixes: tuple[str, ...], *others: Any) -> Host:
            readings.addresses += 1
            return await read_host(links, prefixes, *others)

        async def counted_kernel() -> bool:
            readings.everything += 1
            return await read_kernel()

        await world.until(lambda: not world.agent.comparisons.is_asked)
        await world.until(at_rest)
        sh("ip addr add 192.0.2.99/32 dev eth0")  # what was told before this, the agent has heard when it knows of it
        await world.until(
            lambda: "192.0.2.99" in {str(one.net).partition("/")[0] for one in world.agent.calculation.host.addresses}
        )
        await world.until(lambda: has_taken_all(world.agent))
        monkeypatch.setattr(configuration, "read_host", counted_host)
        monkeypatch.setattr(world.agent.configuration, "read_kernel", counted_kernel)
        yield readings


@pytest.fixture(autouse=True)
def node(network: None) -> None:
    build_links(1)


async def containers_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    async with counted(monkeypatch) as readings:
        dumps = readings.dumps
        for number in range(20):
            await asyncio.to_thread(
                sh,
                f"ip link add veth{number} type veth peer name ctr{number}; ip link set veth{number} up;"
                f" ip link set ctr{number} up; sleep 0.02; ip link del veth{number}",
            )
        await asyncio.to_thread(sh, "ip link add veth20 type veth peer name ctr20; ip link set veth20 up; sleep 2.5")
        await readings.world.quiet()
        assert "veth20" in readings.world.agent.links.by_name
        assert (readings.dumps - dumps, readings.addresses, readings.everything) == (0, 0, 0)


def test_a_container_of_another_runtime_costs_no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interface that had gone before its routes were read cost a comparison of everything."""
    asyncio.run(containers_come_and_go(monkeypatch))


async def addresses_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    def known() -> set[str]:
        return {address.interface for address in readings.world.agent.calculation.host.addresses}

    async with counted(monkeypatch) as readings:
        until = readings.world.until
        sh("ip link add wlan0 type veth peer name air; ip link set wlan0 up; ip addr add 192.0.2.7/24 dev wlan0")
        await until(lambda: known() == {"eth0", "wlan0"})
        sh("ip link set wlan0 name wlan9")
        await until(lambda: known() == {"eth0", "wlan9"})
        sh("ip link del wlan9")
        await until(lambda: known() == {"eth0"})
        assert readings.everything == 0


def test_an_interface_with_an_address_of_the_node_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(addresses_come_and_go(monkeypatch))


async def second_interface_in_the_subnet() -> None:
    """It is down with its address kept; then eth0 is made anew with the same configuration: another order."""
    sh("ip link add aaa0 type veth peer name aaa1; ip addr add 172.31.0.50/24 dev aaa0")
    async with running("nftables", 1, RouteRefreshInterval="0", InterfaceRefreshInterval="0") as world:

        def leads_by(interface: str) -> bool:
            return f"dev {interface} " in sh("ip route show 10.48.1.0/26")

        await world.until(lambda: leads_by("eth0"))
        sh(
            "ip link del eth0; ip link add eth0 type veth peer name fabric; ip link set fabric up; ip link set eth0 up;"
            " ip addr add 172.31.0.1/24 dev eth0"
        )
        await world.until(lambda: leads_by("eth0"))
        sh("ip link set aaa0 up; ip link set aaa1 up")
        await world.until(lambda: not world.agent.configuration.host_due)
        assert leads_by("eth0")
        sh("ip link set eth0 down")
        await world.until(lambda: leads_by("aaa0"))
        sh("ip link set eth0 up")
        await world.until(lambda: leads_by("eth0"))


def test_other_nodes_are_reached_through_an_interface_that_is_up() -> None:
    asyncio.run(second_interface_in_the_subnet())


async def ipv6_off_and_on() -> None:
    async with running("nftables", 1, RouteRefreshInterval="0", InterfaceRefreshInterval="0") as world:
        routes = world.agent.dataplane.routing.routes.table
        sh("sysctl -qw net.ipv6.conf.cali1.disable_ipv6=1")
        await world.until(lambda: bool(routes.refused))
        later = world.agent.dataplane.clock() + 30
        for table in (routes, world.agent.dataplane.routing.neighbours.table):  # as after half a minute
            table.refused = {key: one._replace(retry_at=later) for key, one in table.refused.items()}
        sh("sysctl -qw net.ipv6.conf.cali1.disable_ipv6=0")
        await world.until(lambda: bool(sh("ip -6 route show fd00:48::1")))
        await world.until(lambda: not routes.refused)
        await world.until(lambda: "222" in sh("ip -6 neigh show fd00:48::1 dev cali1 nud permanent"))


def test_what_was_refused_while_ipv6_was_off_comes_when_it_is_on_again() -> None:
    asyncio.run(ipv6_off_and_on())
