"""Addresses that move while no agent runs: the next one holds them back like any other, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from felixpy.agent.agent import Agent
from felixpy.calc.entries import ElementKey, SetName
from felixpy.config import SettingsSource, resolve
from felixpy.dataplane.release import AddressRelease
from felixpy.dataplane.table import KeyedTable, Waiting
from felixpy.model.net import Net, parse_address
from felixpy.sources import SyncState, SyncStatus
from tests.drift.world import BACKENDS, NODE, World, build_links, endpoint, put, running, sh, surroundings


@contextlib.asynccontextmanager
async def another_agent(backend: str) -> AsyncIterator[World]:
    """One that has read the kernel and the surroundings, and whose snapshot is not complete."""
    source = SettingsSource("test", {"NODENAME": NODE, **BACKENDS[backend]}, local=True)
    agent = Agent(resolve([source])[0], [source])
    task = asyncio.create_task(agent.run())
    try:
        for update in surroundings():
            agent.update(update)
        agent.sync_status(SyncStatus(SyncState.RESYNC, "reading"))
        yield World(agent)
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def flow(address: str, port: int) -> None:
    """A conntrack entry as an open TCP connection has one."""
    other = "fd00:31::fe" if ":" in address else "172.31.0.254"
    sh(
        f"conntrack -I -p tcp -s {address} -d {other} --sport {port} --dport 443"
        " --state ESTABLISHED -u ASSURED -t 500"
    )  # fmt: skip


def ports(address: str) -> list[str]:
    """Source ports of the flows of an address."""
    listed = sh(f"conntrack -L -f ipv{6 if ':' in address else 4} -s {address} 2>/dev/null")
    return sorted(line.partition("sport=")[2].split()[0] for line in listed.splitlines())


def interface(address: str) -> str:
    """Where the route of an address leads."""
    return sh(f"ip -o {'-6 ' if ':' in address else ''}route show {address}").partition("dev ")[2].partition(" ")[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_address_that_moved_while_no_agent_ran_takes_no_flow_along(network: None, backend: str) -> None:
    async def scenario() -> None:
        build_links(4)
        async with running(backend, 2):
            pass
        moved = "10.48.0.1", "fd00:48::1"
        for address in (*moved, "10.48.0.2"):
            flow(address, 1000)
        async with another_agent(backend) as world:
            for resource in endpoint(1, interface="cali4"), endpoint(2), endpoint(3):
                world.agent.update(put(resource))
            await world.until(lambda: interface("10.48.0.3") == "cali3")
            await asyncio.sleep(0.1)
            assert [interface(address) for address in moved] == ["cali1", "cali1"]
            assert [ports(address) for address in moved] == [["1000"], ["1000"]]
            assert "waits until what its last workload left of it is removed" in str(
                world.agent.dataplane.routing.routes.table.waiting
            )
            world.agent.sync_status(SyncStatus(SyncState.IN_SYNC))
            for address in moved:
                await world.until(lambda address=address: interface(address) == "cali4")  # type: ignore[misc]
                assert ports(address) == []
                flow(address, 2000)
            await world.quiet()
            await asyncio.sleep(0.3)
            assert [ports(address) for address in moved] == [["2000"], ["2000"]]
            assert ports("10.48.0.2") == ["1000"]  # of a workload that stayed

    asyncio.run(scenario())


@pytest.mark.parametrize("backend", ["nftables"])
def test_an_endpoint_that_comes_late_keeps_its_address_and_flows(network: None, backend: str) -> None:
    """For a moment another one seems to have it."""

    async def scenario() -> None:
        build_links(4)
        async with running(backend, 1):
            pass
        flow("10.48.0.1", 1000)
        async with another_agent(backend) as world:
            world.agent.update(put(endpoint(4, addresses=(Net.parse("10.48.0.1"), Net.parse("10.48.0.4")))))
            await world.until(lambda: interface("10.48.0.4") == "cali4")
            world.agent.update(put(endpoint(4, addresses=(Net.parse("10.48.0.4"),))))
            world.agent.update(put(endpoint(1)))
            world.agent.sync_status(SyncStatus(SyncState.IN_SYNC))
            await world.until(lambda: world.agent.is_ready()[0])
            await world.quiet()
            assert (interface("10.48.0.1"), ports("10.48.0.1")) == ("cali1", ["1000"])
            assert world.agent.dataplane.is_settled

    asyncio.run(scenario())


def is_held(release: AddressRelease, address: str) -> bool:
    table: KeyedTable[ElementKey, None, None] = KeyedTable("test", lambda key, value: None)
    try:
        release.hold(table, member(address, "any"), parse_address(address))
    except Waiting:
        return True
    return False


def member(address: str, name: str) -> ElementKey:
    return ElementKey(SetName.TO_WORKLOAD, Net.parse(address), name)


def test_what_was_found_says_nothing_until_its_address_is_wanted_elsewhere() -> None:
    release = AddressRelease()
    for number in (1, 2, 3):
        release.found(member(f"10.48.0.{number}", "cali1"))
    release.wanted_again(member("10.48.0.2", "cali1"))
    assert not is_held(release, "10.48.0.1")
    release.wanted_anew(member("10.48.0.1", "cali2"))
    release.wanted_anew(member("10.48.0.9", "cali2"))
    assert [number for number in (1, 2, 3, 9) if is_held(release, f"10.48.0.{number}")] == [1]
    release.wanted_again(member("10.48.0.1", "cali1"))
    assert not is_held(release, "10.48.0.1")
    release.settle(lambda key: True)
    release.wanted_anew(member("10.48.0.3", "cali2"))  # of which the kernel refuses to let the old member go
    assert is_held(release, "10.48.0.3")
