"""An unchanged state makes zero writes: a restarted agent, and a comparison of everything, only ask."""

from __future__ import annotations

import asyncio
import select
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from msgspec.structs import replace

from felixpy.config import SettingsSource
from felixpy.dataplane.backend import Backend
from felixpy.demo.patience import wait_until
from felixpy.model.resources import Resource, Update, WorkloadEndpoint
from felixpy.netlink.message import Message
from felixpy.netlink.monitor import Monitor, monitor_nftables, monitor_routing
from felixpy.netlink.rtnetlink import RTM_DELNEIGH, RTM_NEWNEIGH
from felixpy.sources import SyncState, SyncStatus
from tests.calc.samples import block, endpoint, node, pool
from tests.dataplane.observed import InProcess, Observed, make_agent, observe, running, source_for
from tests.kernel import ip, ip_json, pairs, run, sysctl

NUMBER = 12
ASKING = {"iptables --version", *(f"{ip}tables-{kind}-save" for ip in ("ip", "ip6") for kind in ("legacy", "nft"))}
MODES: dict[str, dict[str, str]] = {"dual": {}, "v4": {"Ipv6Support": "false"}, "v6": {"IPv4Support": "false"}}


def workload(number: int) -> WorkloadEndpoint:
    return endpoint(
        f"w{number}",
        f"10.65.0.{number + 2}",
        f"fd00:65::{number + 2:x}",
        interface=f"cali{number}",
        mac=f"ee:ee:ee:ee:ee:{number:02x}",
        sources=["172.16.0.0/12", "fd00:9::/64"],
    )


STREAM: tuple[Resource, ...] = (
    pool("p4", "10.65.0.0/16", nat=True),
    pool("p6", "fd00:65::/64", nat=True),
    pool("all", "0.0.0.0/0"),
    node("n1", "192.0.2.1/24", "2001:db8::1/64"),
    node("n2", "192.0.2.2/24", "2001:db8::2/64"),
    block("10.65.0.0/26", "n1", ("10.65.0.60/32", "n2")),
    block("fd00:65::/122", "n1"),
    block("10.65.1.0/26", "n2"),
    block("fd00:65::40/122", "n2"),
    *(workload(number) for number in range(NUMBER)),
    endpoint("absent", "10.65.0.50", "fd00:65::50"),
)
RTN_MULTICAST = 5  # linux/rtnetlink.h


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> dict[str, str]:
    return MODES[request.param]


def _is_settled() -> bool:
    """Whether all links have the addresses and routes that the kernel gives them, each end of each pair. It tells of an
    address once more when it makes the address' own route, also of one without duplicate detection.
    """
    shown = ip_json("-6", "route", "show", "table", "local")
    of_links = sum(one["dst"] == "ff00::/8" for one in shown)
    own = Counter((one["dev"], one["dst"]) for one in shown if one["type"] == "local")
    addresses = [(link["ifname"], one) for link in ip_json("-6", "address") for one in link["addr_info"]]
    return of_links == 2 * (NUMBER + 1) == len(addresses) - 2 and not any(
        one.get("tentative") or not own[name, one["local"]] for name, one in addresses
    )


@pytest.fixture
def cluster_node(network: None) -> None:
    sysctl("ipv6/conf/default/accept_dad", 0)
    pairs("eth0", *(f"cali{number}" for number in range(NUMBER)))
    ip("addr add 192.0.2.1/24 dev eth0", "addr add 2001:db8::1/64 dev eth0 nodad")
    wait_until(_is_settled, lambda: "the kernel's last word of new links")


async def programmed(node: InProcess) -> None:
    node.put(*STREAM)
    node.in_sync()
    await node.up(*(f"w{number}" for number in range(NUMBER)))
    await node.idle()


@contextmanager
def eavesdropping() -> Iterator[list[Monitor]]:
    """What the kernel tells everybody of changes: of routes, links and settings, and of nf_tables."""
    monitors = [monitor_routing(()), monitor_nftables(())]
    try:
        yield monitors
    finally:
        for monitor in monitors:
            monitor.close()


def heard(monitors: list[Monitor]) -> list[str]:
    """What was told, but for neighbours of multicast groups: the kernel makes them, and lets them go when it likes."""
    ready, _, _ = select.select([monitor.fileno() for monitor in monitors], [], [], 0)
    told: list[Message] = []
    for monitor in monitors:
        if monitor.fileno() in ready:
            messages = monitor.read()
            assert messages is not None, "what was told is lost"
            told += messages
    return [str(message) for message in told if not _is_of_multicast_group(message)]


def _is_of_multicast_group(message: Message) -> bool:
    """A neighbour whose ``ndm_type`` is RTN_MULTICAST (linux/neighbour.h: the last byte of ``ndmsg``)."""
    return message.type in (RTM_NEWNEIGH, RTM_DELNEIGH) and message.payload[11] == RTN_MULTICAST


def assert_nothing_written(observed: Observed, monitors: list[Monitor]) -> None:
    assert observed.dumps > 0
    assert (dict(observed.writes), observed.sysctls) == ({}, [])
    commands = {command.rpartition("/")[2] for command in observed.processes}
    assert commands <= ASKING, commands
    assert heard(monitors) == []


def rules() -> str:
    legacy = [run(f"{tool}-legacy-save") for tool in ("iptables", "ip6tables")]
    return "\n".join(line for line in "".join(legacy).splitlines() if not line.startswith(("#", ":")))


@pytest.mark.parametrize("backend", Backend)
def test_a_restart_and_a_resync_write_nothing(cluster_node: None, backend: Backend, mode: dict[str, str]) -> None:
    source = source_for(backend, WorkloadSourceSpoofing="Any", **mode)
    asyncio.run(_restart(source, backend))


async def _restart(source: SettingsSource, backend: Backend) -> None:
    async with running(source) as first:
        await programmed(first)
    before = (run("nft", "-s", "list", "ruleset"), run("ipset", "save"), rules())
    assert ("felixpy" if backend is Backend.NFTABLES else "fpy-") in before[2 if backend is Backend.LEGACY else 0]
    with observe() as observed, eavesdropping() as monitors:
        async with running(source) as second:
            await programmed(second)
            assert_nothing_written(observed, monitors)
            assert second.agent.dataplane.plan() == []

            observed.clear()
            await second.agent.configuration.read_kernel()
            await second.agent._apply()
            await second.idle()
            assert_nothing_written(observed, monitors)
    assert (run("nft", "-s", "list", "ruleset"), run("ipset", "save"), rules()) == before


@pytest.mark.parametrize("backend", Backend)
def test_a_plan_on_a_correct_and_on_an_empty_kernel_writes_nothing(cluster_node: None, backend: Backend) -> None:
    asyncio.run(_plan(source_for(backend)))


async def _plan(source: SettingsSource) -> None:
    async def planned() -> int:
        agent = make_agent(source)
        await agent.open()
        for resource in STREAM:
            agent.update(Update(resource.key, resource))
        agent.sync_status(SyncStatus(SyncState.IN_SYNC))
        await agent.absorb()
        number = len(agent.dataplane.plan())
        agent.close()
        return number

    with observe() as observed, eavesdropping() as monitors:
        assert await planned() > NUMBER
        assert_nothing_written(observed, monitors)
    async with running(source) as node:
        await programmed(node)
    with observe() as observed, eavesdropping() as monitors:
        assert await planned() == 0
        assert_nothing_written(observed, monitors)


@pytest.mark.parametrize("backend", Backend)
def test_what_is_said_again_writes_nothing(cluster_node: None, backend: Backend) -> None:
    asyncio.run(_again(source_for(backend)))


async def _again(source: SettingsSource) -> None:
    async with running(source) as node:
        await programmed(node)
        with observe() as observed, eavesdropping() as monitors:
            node.put(*STREAM)
            await node.idle()
            assert (dict(observed.writes), observed.processes, observed.sysctls) == ({}, [], [])
            assert heard(monitors) == []


@pytest.mark.parametrize("backend", Backend)
def test_a_difference_costs_what_it_is(cluster_node: None, backend: Backend) -> None:
    """The control: a restart that finds one workload changed writes that one."""
    asyncio.run(_difference(source_for(backend), backend))


async def _difference(source: SettingsSource, backend: Backend) -> None:
    async with running(source) as first:
        await programmed(first)
    moved = replace(workload(3), addresses=workload(3).addresses[:1])
    with observe() as observed:
        async with running(source) as second:
            second.put(*STREAM, moved)
            second.in_sync()
            await second.up(*(f"w{number}" for number in range(NUMBER)))
            await second.idle()
            removals = {"batch": 2, "nft DELSETELEM": 2} if backend is Backend.NFTABLES else {"ipset DEL": 2}
            assert dict(observed.writes) == {"RTM_DELROUTE": 1, "RTM_DELNEIGH": 1, **removals}
            assert observed.sysctls == []
