"""Interfaces that get another name while they are up, with which their routes and neighbours stay in the kernel."""

from __future__ import annotations

import asyncio

import pytest

from felixpy.demo.patience import Patience
from tests.drift.world import build_links, endpoint, put, running, sh

OFF = {f"{name}RefreshInterval": "0" for name in ("Route", "Interface", "NFTables")}
"""No comparisons: what is repaired is repaired because the kernel told."""


@pytest.fixture(autouse=True)
def node(network: None) -> None:
    build_links(3)
    try:
        sh("ip link set cali3 name cali33 && ip link set cali33 name cali3")
    except Exception:  # noqa: BLE001
        pytest.skip("this kernel renames no interface that is up")


def entries() -> set[tuple[str, str, str]]:
    """Kind, address and interface of our routes to workloads and of our neighbours."""
    found = set()
    for kind, listed in (
        ("route", sh("ip route show proto 222; ip -6 route show proto 222")),
        ("neighbour", sh("ip neigh show nud permanent; ip -6 neigh show nud permanent")),
    ):
        for line in listed.splitlines():
            words = line.split()
            if "dev" in words and words[0] != "blackhole" and (kind == "route" or "222" in words):
                found.add((kind, words[0], words[words.index("dev") + 1]))
    return {one for one in found if one[2] != "eth0"}


def of(number: int, interface: str) -> set[tuple[str, str, str]]:
    addresses = (f"10.48.0.{number}", f"fd00:48::{number}")
    return {(kind, address, interface) for kind in ("route", "neighbour") for address in addresses}


async def until(expected: set[tuple[str, str, str]]) -> None:
    patience = Patience(30)
    while (found := await asyncio.to_thread(entries)) != expected:
        assert not patience.over(), (found - expected, expected - found)


async def renamed() -> None:
    async with running("nftables", 3, **OFF) as world:
        await until(of(1, "cali1") | of(2, "cali2") | of(3, "cali3"))
        sh("ip link set cali1 name cali9")
        await until(of(2, "cali2") | of(3, "cali3"))
        assert world.agent.dataplane.routing.routes.table.waiting
        world.agent.update(put(endpoint(1, interface="cali9")))
        await until(of(1, "cali9") | of(2, "cali2") | of(3, "cali3"))
        world.agent.update(put(endpoint(1, interface="cali9", mac=bytes.fromhex("0a0000000009"))))
        await world.quiet()
        sysctls = "net.ipv4.conf.cali9.proxy_arp net.ipv4.neigh.cali9.proxy_delay net.ipv6.conf.cali9.forwarding"
        assert sh(f"sysctl -n {sysctls}").split() == ["1", "0", "1"]
        sh("ip link set cali9 name cali1")
        world.agent.update(put(endpoint(1)))  # in one turn with the news of the name
        await until(of(1, "cali1") | of(2, "cali2") | of(3, "cali3"))
        await world.quiet()
        assert sh("ip neigh show 10.48.0.1").split()[4] == "0a:00:00:00:00:01"


def test_entries_of_a_name_that_is_gone_go_and_come_with_the_name_that_is_wanted() -> None:
    asyncio.run(renamed())


async def swapped() -> None:
    async with running("nftables", 3, **OFF) as world:
        everything = of(1, "cali1") | of(2, "cali2") | of(3, "cali3")
        await until(everything)
        sh("ip link set cali1 name tmp; ip link set cali2 name cali1; ip link set tmp name cali2")
        await until(everything)
        await world.quiet()
        sh("ip link set cali1 name cali4; ip link set cali4 down; ip link set cali2 name cali1")
        await until(of(1, "cali1") | of(3, "cali3"))
        await world.quiet()
        sh("ip link set cali4 name cali2; ip link set cali2 up")
        await until(everything)
        await world.quiet()


def test_two_interfaces_that_swap_their_names_swap_their_entries() -> None:
    asyncio.run(swapped())


async def renamed_while_nobody_looks() -> None:
    async with running("nftables", 3, **OFF):
        await until(of(1, "cali1") | of(2, "cali2") | of(3, "cali3"))
    sh("ip link set cali1 name cali9")
    async with running("nftables", 3, **OFF) as world:
        await until(of(2, "cali2") | of(3, "cali3"))
        await world.quiet()
        assert not world.agent.dataplane.routing.routes.table.dirty


def test_a_comparison_finds_the_entries_of_a_name_that_is_gone() -> None:
    asyncio.run(renamed_while_nobody_looks())


async def undone_again_and_again() -> None:
    async with running("nftables", 3, **OFF) as world:
        sh("ip link set cali1 name cali9")
        await until(of(2, "cali2") | of(3, "cali3"))
        table = world.agent.dataplane.routing.routes.table
        for _ in range(12):
            sh("ip route replace 10.48.0.1 dev cali9 proto 222 scope link")
            await asyncio.sleep(0.02)
        (refused,) = table.refused.values()
        assert "another program keeps changing this" in refused.reason


def test_who_puts_such_an_entry_back_all_the_time_is_named() -> None:
    asyncio.run(undone_again_and_again())
