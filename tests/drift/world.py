"""One node in a network namespace of its own with an agent in this process: its kernel can be tampered with."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from collections.abc import AsyncIterator, Callable

from msgspec.structs import replace

from felixpy.agent.agent import Agent
from felixpy.config import SettingsSource, resolve
from felixpy.demo.patience import Patience
from felixpy.model.net import Net
from felixpy.model.resources import (
    IPAMBlock,
    IPPool,
    Kind,
    Node,
    ResourceKey,
    Update,
    WorkloadEndpoint,
)
from felixpy.sources import SyncState, SyncStatus

NODE = "node1"
BACKENDS = {
    "nftables": {"NFTablesMode": "Enabled"},
    "legacy": {"NFTablesMode": "Disabled", "IptablesBackend": "Legacy"},
    "nft": {"NFTablesMode": "Disabled", "IptablesBackend": "NFT"},
}
MAC = bytes.fromhex("0a0000000001")


def endpoint(number: int, **changes: object) -> WorkloadEndpoint:
    key = ResourceKey(Kind.WORKLOAD_ENDPOINT, f"{NODE}-k8s-pod{number}-eth0", "default")
    addresses = (Net.parse(f"10.48.0.{number}"), Net.parse(f"fd00:48::{number}"))
    return replace(WorkloadEndpoint(key, NODE, f"cali{number}", addresses, MAC), **changes)


def put(resource: object) -> Update:
    return Update(resource.key, resource, received_ns=time.monotonic_ns())  # type: ignore[attr-defined]


def surroundings() -> list[Update]:
    """Two nodes, two pools, a block of each node in each family."""
    pools = [
        IPPool(ResourceKey(Kind.IP_POOL, name), Net.parse(cidr), 26, nat_outgoing=True)
        for name, cidr in (("v4", "10.48.0.0/21"), ("v6", "fd00:48::/48"))
    ]
    nodes = [
        Node(
            ResourceKey(Kind.NODE, f"node{n}"),
            Net.parse_interface(f"172.31.0.{n}/24"),
            Net.parse_interface(f"fd00:31::{n}/64"),
        )
        for n in (1, 2)
    ]
    blocks = [
        IPAMBlock(
            ResourceKey(Kind.IPAM_BLOCK, cidr.replace("/", "-").replace(":", "-").replace(".", "-")),
            Net.parse(cidr),
            host,
        )
        for cidr, host in (
            ("10.48.0.0/26", NODE),
            ("10.48.1.0/26", "node2"),
            ("fd00:48::/122", NODE),
            ("fd00:48:0:1::/122", "node2"),
        )
    ]
    return [put(thing) for thing in (*pools, *nodes, *blocks)]


def sh(command: str) -> str:
    """Run a command in this namespace, as another program would."""
    return subprocess.run(
        command, shell=True, check=True, capture_output=True, text=True, executable="/bin/bash"
    ).stdout


class World:
    """The running agent and how to wait for it."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds. Other tasks run meanwhile."""
        patience = Patience(30)
        while not holds():
            assert not patience.over(), f"not within {patience}: {self.plan()}"
            await asyncio.sleep(0.0005)

    async def quiet(self) -> None:
        """Wait until nothing is left to write."""
        await self.until(lambda: not self.agent.dataplane.plan() and not self.agent.inbox)

    def plan(self) -> list[tuple[str, str, str]]:
        return [tuple(operation) for operation in self.agent.dataplane.plan()]


def build_links(count: int) -> None:
    """``eth0`` with the node's addresses and default routes, and interfaces ``cali1`` … of workloads."""
    lines = [
        "link set lo up",
        "link add eth0 type veth peer name fabric",
        "link set fabric up",
        "link set eth0 up",
        "addr add 172.31.0.1/24 dev eth0",
        "addr add fd00:31::1/64 dev eth0 nodad",
        "route add default via 172.31.0.254",
        "route add default via fd00:31::fe dev eth0",
    ]
    for number in range(1, count + 1):
        lines += [
            f"link add cali{number} type veth peer name peer{number}",
            f"link set cali{number} up",
            f"link set peer{number} up",
        ]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines).encode(), check=True, capture_output=True)


@contextlib.asynccontextmanager
async def running(backend: str, endpoints: int = 3, **changes: str) -> AsyncIterator[World]:
    """An agent in sync with the surroundings and some endpoints, in the namespace of the calling process."""
    source = SettingsSource("test", {"NODENAME": NODE, **BACKENDS[backend], **changes}, local=True)
    settings, problems = resolve([source])
    assert not problems
    agent = Agent(settings, [source])
    task = asyncio.create_task(agent.run())
    world = World(agent)
    try:
        for update in surroundings():
            agent.update(update)
        for number in range(1, endpoints + 1):
            agent.update(put(endpoint(number)))
        agent.sync_status(SyncStatus(SyncState.IN_SYNC))
        await world.until(lambda: agent.is_ready()[0] or task.done())
        await world.quiet()
        yield world
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
