"""The promise: one workload more costs the same few messages on a full node as on an empty one.

No rule is written and no process started, in all three back-ends, with 5,000 workloads of both families.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import pytest

from felixpy.dataplane.backend import Backend
from felixpy.dataplane.iptables.filter import IptablesFilter
from felixpy.dataplane.iptables.legacy import LegacyFilter
from felixpy.model.resources import WorkloadEndpoint
from tests.calc.samples import block, endpoint, node, pool
from tests.dataplane.observed import InProcess, Observed, observe, running, source_for
from tests.kernel import ip, ip_json, sysctl
from tests.netns import current_network, enter_new_network, return_to_network

FEW, MANY = 10, 5000
CLUSTER = (
    pool("p4", "10.65.0.0/16", nat=True),
    pool("p6", "fd00:65::/64", nat=True),
    node("n1", "192.0.2.1/24", "2001:db8::1/64"),
    node("n2", "192.0.2.2/24", "2001:db8::2/64"),
    block("10.65.128.0/24", "n2"),
)


def workload(number: int) -> WorkloadEndpoint:
    """Names, addresses and interfaces have the same length for all, so that costs can be compared to the byte."""
    high, low = divmod(number, 100)
    return endpoint(
        f"w{number:04}",
        f"10.65.{10 + high}.{100 + low}",
        f"fd00:65::{1000 + high}:{1000 + low}",
        interface=f"cali{number:04}",
        mac=f"ee:ee:ee:ee:{high:02x}:{low:02x}",
    )


@pytest.fixture(scope="module")
def crowd(private_namespaces: None) -> Iterator[int]:
    """A network with two interfaces more than there are workloads, and the node's own."""
    enter_new_network()
    network = current_network()
    sysctl("ipv6/conf/default/addr_gen_mode", 1)  # no addresses of their own: not what is measured
    ip(*(f"link add cali{n:04} type veth peer name cali{n + 1:04}" for n in range(0, MANY + 2, 2)))
    ip(*(f"link set cali{n:04} up" for n in range(MANY + 2)))
    ip(
        "link add eth0 type veth peer name p-eth0",
        "link set eth0 up",
        "link set p-eth0 up",
        "addr add 192.0.2.1/24 dev eth0",
        "addr add 2001:db8::1/64 dev eth0 nodad",
    )
    yield network
    enter_new_network()
    os.close(network)


@pytest.fixture
def crowded(crowd: int) -> None:
    return_to_network(crowd)


async def cost_of_one(node: InProcess, observed: Observed, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What it costs to add a workload, and to remove it."""
    one = workload(number)
    observed.clear()
    node.put(one)
    await node.up(one.key.name)
    await node.idle()
    added = observed.cost()
    observed.clear()
    node.drop(one.key)
    await node.idle()
    return added, observed.cost()


def rules_written(node: InProcess) -> tuple[int, int]:
    """Processes started and tables committed by the iptables back-ends."""
    filters = [tables.filter for tables in node.agent.dataplane.filters.values()]
    starts = sum(one.tools.starts for one in filters if isinstance(one, IptablesFilter))
    return starts, sum(one.commits for one in filters if isinstance(one, LegacyFilter))


def counters(node: InProcess) -> list[tuple[int, int, int]]:
    """Messages, sends and bytes per socket of the agent."""
    filters = [tables.filter for tables in node.agent.dataplane.filters.values()]
    sockets = [node.agent.dataplane.socket]
    sockets += [one.sets.socket if isinstance(one, IptablesFilter) else one.socket for one in filters]  # type: ignore[attr-defined]
    return [(socket.messages_sent, socket.sends, socket.bytes_sent) for socket in sockets]


ROUTING = {"add": {"RTM_NEWROUTE": 2, "RTM_NEWNEIGH": 2}, "remove": {"RTM_DELROUTE": 2, "RTM_DELNEIGH": 2}}
MEMBERS = {
    Backend.NFTABLES: {"add": {"batch": 2, "nft NEWSETELEM": 4}, "remove": {"batch": 2, "nft DELSETELEM": 4}},
    Backend.LEGACY: {"add": {"ipset ADD": 4}, "remove": {"ipset DEL": 4}},
    Backend.NFT_VARIANT: {"add": {"ipset ADD": 4}, "remove": {"ipset DEL": 4}},
}
SYSCTLS = ["accept_ra", "forwarding", "proxy_arp", "proxy_delay", "route_localnet", "rp_filter"]


@pytest.mark.parametrize("backend", Backend, ids=lambda backend: f"crowd-{backend}")
def test_one_workload_more_costs_the_same_on_a_full_node(crowded: None, backend: Backend) -> None:
    asyncio.run(_promise(backend))


async def _promise(backend: Backend) -> None:
    with observe() as observed:
        async with running(source_for(backend)) as one:
            one.put(*CLUSTER, *(workload(number) for number in range(FEW)))
            one.in_sync()
            await one.up(*(f"w{number:04}" for number in range(FEW)))
            await one.idle()
            rules = rules_written(one)
            assert observed.writes["nft NEWRULE"] > 0 if backend is Backend.NFTABLES else sum(rules) > 0
            before = counters(one)
            few = await cost_of_one(one, observed, MANY)
            between = counters(one)

            observed.clear()
            one.put(*(workload(number) for number in range(FEW, MANY)))
            await one.up(*(f"w{number:04}" for number in range(MANY)))
            await one.idle()
            assert observed.processes == []
            assert not [name for name in observed.writes if "RULE" in name or "CHAIN" in name]
            full = counters(one)
            many = await cost_of_one(one, observed, MANY + 1)
            after = counters(one)
            assert rules_written(one) == rules
    _check(backend, few, many)
    assert _difference(before, between) == _difference(full, after)
    routes = ip_json("-4", "route", "show", "proto", "222")
    assert sum("dev" in route and route["dev"].startswith("cali") for route in routes) == MANY


def _difference(old: list[tuple[int, int, int]], new: list[tuple[int, int, int]]) -> list[list[int]]:
    return [[b - a for a, b in zip(one, two, strict=True)] for one, two in zip(old, new, strict=True)]


def _check(
    backend: Backend, few: tuple[dict[str, Any], dict[str, Any]], many: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    for verb, small, large in zip(("add", "remove"), few, many, strict=True):
        assert large == small
        assert large["messages"] == ROUTING[verb] | MEMBERS[backend][verb]
        assert large["sends"] == 2  # both families together: members; routes and neighbours
        assert large["processes"] == []
        assert set(large["sysctls"]) <= set(SYSCTLS if verb == "add" else [])
