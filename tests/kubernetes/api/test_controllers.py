"""Calico's kube-controllers collect what is left of the addresses that felixpy gave, and nothing that is in use.

CALICO names the folder with their program, kube-controllers. Without it conftest leaves this out, and says so.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from felixpy.ipam.assignment import Wanted
from felixpy.ipam.block import read_block
from felixpy.ipam.blocks import CalicoBlocks, Surroundings
from felixpy.ipam.objects import AFFINITIES, BLOCKS, HANDLES, KubernetesObjects
from felixpy.kubernetes.access import Access
from felixpy.kubernetes.client import Api
from felixpy.model.net import Family, Net, format_address
from felixpy.model.resources import IPPool, Kind, ResourceKey
from tests.kubernetes.api.conftest import CLUSTER, CONTROLLERS, NO_CONTROLLERS, Server

JSON = dict[str, Any]
BOTH = (Family.V4, Family.V6)
POOLS = [
    IPPool(ResourceKey(Kind.IP_POOL, "four"), Net.parse("10.48.0.0/24"), 28),
    IPPool(ResourceKey(Kind.IP_POOL, "six"), Net.parse("fd00:48::/120"), 124),
]
GRACE = "2s"
GROUP = "crd.projectcalico.org"
STORE = f"{GROUP}/v1"
GIVE_UP_SECONDS = 120.0

pytestmark = pytest.mark.skipif(not CONTROLLERS, reason=NO_CONTROLLERS)


@pytest.fixture
def store(server: Server) -> Iterator[None]:
    """The kinds as Calico stores them, which go before those of the manifests."""
    kinds = subprocess.run((CLUSTER / "calico-kinds.sh",), capture_output=True, text=True, check=True).stdout
    server.kubectl("apply", "-f", "-", given=kinds)
    try:
        server.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        _wait_for_lists(server)
        yield
    finally:
        server.kubectl("delete", "-f", "-", given=kinds)
        _wait_for_kinds_to_go(server)
        server.kubectl("delete", "pods", "--all", "--force", "--grace-period=0")
        server.kubectl("delete", "nodes", "--all")


@pytest.fixture
def controllers(server: Server, store: None, tmp_path: Path) -> Iterator[None]:
    # The migrator of policies' names waits for a DaemonSet calico-node, and until then nothing reaches the others.
    settings = {
        "node": {"leakGracePeriod": GRACE, "reconcilerPeriod": "1m"},
        "migration": {"policyNameMigrator": "Disabled"},
    }
    pools = [_store("IPPool", pool.key.name, cidr=str(pool.cidr), blockSize=pool.block_size) for pool in POOLS]
    server.apply(
        _store("ClusterInformation", "default", datastoreReady=True, clusterType="k8s,kdd"),
        _store("KubeControllersConfiguration", "default", controllers=settings),
        *pools,
    )
    environ = os.environ | {
        "KUBECONFIG": str(server.run / "kubeconfig"),
        "DATASTORE_TYPE": "kubernetes",
        "ENABLED_CONTROLLERS": "node,loadbalancer",
    }
    command = (str(CONTROLLERS), "--status-file", tmp_path / "status")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait()
        print((tmp_path / "log").read_text())


def _wait_for_lists(server: Server) -> None:
    """A kind that is established may be of no use yet: 429, storage is (re)initializing."""
    end = time.monotonic() + GIVE_UP_SECONDS
    for plural in ("ippools", "ipamblocks", "blockaffinities", "ipamhandles", "ipamconfigs", "ipreservations"):
        while server.try_kubectl("get", f"{plural}.{GROUP}").returncode:
            assert time.monotonic() < end, f"{plural} cannot be listed"


def _wait_for_kinds_to_go(server: Server) -> None:
    """The API server tells of a kind for a while after it is deleted, and kubectl remembers what it was told."""
    end = time.monotonic() + GIVE_UP_SECONDS
    while (told := server.try_kubectl("api-resources", f"--api-group={GROUP}", "-o", "name")).returncode or told.stdout:
        assert time.monotonic() < end, f"{told.stdout}{told.stderr} is still told of"


def _store(kind: str, name: str, **spec: Any) -> JSON:
    return {"apiVersion": STORE, "kind": kind, "metadata": {"name": name}, "spec": spec}


def _node(name: str) -> JSON:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}


class Cluster:
    """Nodes whose pods have addresses by felixpy's IPAM."""

    def __init__(self, server: Server, objects: KubernetesObjects) -> None:
        self._server = server
        self._objects = objects
        self.agents = {
            node: CalicoBlocks(objects, Surroundings(node, lambda: POOLS, lambda: [])) for node in ("n1", "n2")
        }

    async def pod(self, node: str, name: str) -> set[str]:
        spec = {"nodeName": node, "containers": [{"name": "c", "image": "x"}], "tolerations": [{"operator": "Exists"}]}
        self._server.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
        attributes = {"node": node, "namespace": "default", "pod": name}
        given = await self.agents[node].assign(Wanted(f"k8s-pod-network.{name}", BOTH, attributes=attributes))
        addresses = [format_address(one.packed) for one in given]
        status = {"phase": "Running", "podIP": addresses[0], "podIPs": [{"ip": one} for one in addresses]}
        patch = json.dumps({"status": status})
        self._server.kubectl("patch", "pod", name, "--subresource=status", "--type=merge", "-p", patch)
        return set(addresses)

    async def tunnel(self, node: str) -> set[str]:
        attributes = {"node": node, "type": "vxlanTunnelAddress"}
        wanted = Wanted(f"vxlan-tunnel-addr-{node}", (Family.V4,), attributes=attributes, use="Tunnel")
        return {format_address(one.packed) for one in await self.agents[node].assign(wanted)}

    async def in_use(self) -> set[str]:
        blocks = [read_block(one.spec) for one in await self._objects.items(BLOCKS)]
        return {format_address(one) for block in blocks for some in block.by_handle().values() for one in some}

    async def handles(self) -> set[str]:
        return {one.spec["handleID"] for one in await self._objects.items(HANDLES)}

    async def blocks_of(self, node: str) -> list[str]:
        return [one.spec["cidr"] for one in await self._objects.items(AFFINITIES) if one.spec["node"] == node]

    async def owners(self) -> set[str]:
        """Nodes that have a block or an affinity."""
        blocks = [read_block(one.spec) for one in await self._objects.items(BLOCKS)]
        return {one.spec["node"] for one in await self._objects.items(AFFINITIES)} | {
            block.affinity for block in blocks if block.affinity
        }


def nothing_is_wrong(server: Server) -> bool:
    """What 'felixpy ipam check' says; the test sees what else it says."""
    environ = os.environ | {"FELIX_DATASTORETYPE": "kubernetes", "FELIX_KUBECONFIG": str(server.run / "kubeconfig")}
    command = (sys.executable, "-m", "felixpy", "ipam", "check")
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == "nothing is wrong\n"
    return True


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    end = time.monotonic() + GIVE_UP_SECONDS
    while not await condition():
        assert time.monotonic() < end, "the controllers did not come to it"
        await asyncio.sleep(0.5)


def test_what_is_left_is_collected_and_what_is_in_use_stays(server: Server, controllers: None) -> None:
    identity = server.agent()
    server.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}, _node("n1"), _node("n2")
    )

    async def scenario() -> None:
        async with Api(Access(identity)) as api:
            cluster = Cluster(server, KubernetesObjects(api))
            first, second = cluster.agents["n1"], cluster.agents["n2"]
            kept = await cluster.pod("n1", "kept") | await cluster.tunnel("n1")
            left = await cluster.pod("n1", "left")
            of_second = await cluster.pod("n2", "second") | await cluster.tunnel("n2")
            for agent in (first, second):
                await agent.settled()
            assert await cluster.in_use() == kept | left | of_second
            nothing_is_wrong(server)

            # A pod that went without a DEL, which comes late.
            server.kubectl("delete", "pod", "left", "--force", "--grace-period=0")

            async def left_is_free() -> bool:
                return not left & await cluster.in_use() and "k8s-pod-network.left" not in await cluster.handles()

            await until(left_is_free)
            assert await cluster.in_use() == kept | of_second
            nothing_is_wrong(server)
            heir = Wanted("k8s-pod-network.heir", BOTH, requested=tuple(map(Net.parse, left)))
            await first.assign(heir)
            await first.release("k8s-pod-network.left", heir.requested)
            assert await cluster.in_use() == kept | of_second | left
            await first.release(heir.handle, heir.requested)

            # A node that went, with its pods.
            server.kubectl("delete", "pod", "second", "--force", "--grace-period=0")
            server.kubectl("delete", "node", "n2")

            async def second_is_gone() -> bool:
                gone = await cluster.owners() == {"n1"} and not of_second & await cluster.in_use()
                return gone and await cluster.handles() == {"k8s-pod-network.kept", "vxlan-tunnel-addr-n1"}

            await until(second_is_gone)
            assert await cluster.in_use() == kept
            nothing_is_wrong(server)

            # The same node again, whose agent still believes that the blocks are its own.
            server.apply(_node("n2"))
            again = await cluster.pod("n2", "again")
            await second.settled()
            assert await cluster.in_use() == kept | again
            assert await cluster.owners() == {"n1", "n2"}
            nothing_is_wrong(server)

            # Of its two blocks, both empty, one is taken away.
            await second.release("k8s-pod-network.again", tuple(map(Net.parse, again)))
            server.kubectl("delete", "pod", "again", "--force", "--grace-period=0")

            async def one_block_is_left() -> bool:
                return len(await cluster.blocks_of("n2")) == 1

            await until(one_block_is_left)
            nothing_is_wrong(server)
            last = await cluster.pod("n2", "last")
            await second.settled()
            assert await cluster.in_use() == kept | last
            assert len(await cluster.blocks_of("n2")) == 2
            nothing_is_wrong(server)

    asyncio.run(scenario())
