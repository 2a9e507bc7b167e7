"""Calico's kube-controllers collect what is left of the addresses that felixpy gave, and nothing that is in use.

CALICO names the folder with their program, kube-controllers. Without it this does not run.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
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
from tests.kubernetes.api.conftest import CLUSTER, Server

JSON = dict[str, Any]
BOTH = (Family.V4, Family.V6)
POOLS = [
    IPPool(ResourceKey(Kind.IP_POOL, "four"), Net.parse("10.48.0.0/24"), 28),
    IPPool(ResourceKey(Kind.IP_POOL, "six"), Net.parse("fd00:48::/120"), 124),
]
GRACE = "2s"
STORE = "crd.projectcalico.org/v1"
GIVE_UP_SECONDS = 120.0

pytestmark = pytest.mark.skipif("CALICO" not in os.environ, reason="CALICO names no folder of Calico's programs")


@pytest.fixture
def controllers(server: Server, tmp_path: Path) -> Iterator[None]:
    kinds = subprocess.run((CLUSTER / "calico-kinds.sh",), capture_output=True, text=True, check=True).stdout
    server.kubectl("apply", "-f", "-", given=kinds)
    server.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
    controllers = {"node": {"leakGracePeriod": GRACE, "reconcilerPeriod": "1m"}}
    pools = [_store("IPPool", pool.key.name, cidr=str(pool.cidr), blockSize=pool.block_size) for pool in POOLS]
    server.apply(
        _store("ClusterInformation", "default", datastoreReady=True, clusterType="k8s,kdd"),
        _store("KubeControllersConfiguration", "default", controllers=controllers),
        *pools,
    )
    environ = os.environ | {
        "KUBECONFIG": str(server.run / "kubeconfig"),
        "DATASTORE_TYPE": "kubernetes",
        "ENABLED_CONTROLLERS": "node,loadbalancer",
    }
    command = (f"{os.environ['CALICO']}/kube-controllers", "--status-file", tmp_path / "status")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait()
        print((tmp_path / "log").read_text())
        for one in kinds.split("name: ")[1:]:
            if (name := one.split("}")[0].split(",")[0]).endswith(".crd.projectcalico.org"):
                server.kubectl("delete", "crd", name)
        server.kubectl("delete", "pods", "--all", "--force", "--grace-period=0")
        server.kubectl("delete", "nodes", "--all")


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
        attributes = {"node": node, "namespace": "default", "pod": name}
        given = await self.agents[node].assign(Wanted(f"k8s-pod-network.{name}", BOTH, attributes=attributes))
        addresses = [format_address(one.packed) for one in given]
        spec = {"nodeName": node, "containers": [{"name": "c", "image": "x"}], "tolerations": [{"operator": "Exists"}]}
        self._server.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
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

    async def owners(self) -> set[str]:
        """Nodes that have a block or an affinity."""
        blocks = [read_block(one.spec) for one in await self._objects.items(BLOCKS)]
        return {one.spec["node"] for one in await self._objects.items(AFFINITIES)} | {
            block.affinity for block in blocks if block.affinity
        }


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
            kept = await cluster.pod("n1", "kept") | await cluster.tunnel("n1")
            left = await cluster.pod("n1", "left")
            of_second = await cluster.pod("n2", "second") | await cluster.tunnel("n2")
            for agent in cluster.agents.values():
                await agent.settled()
            assert await cluster.in_use() == kept | left | of_second

            # A pod that went without a DEL.
            server.kubectl("delete", "pod", "left", "--force", "--grace-period=0")

            async def left_is_free() -> bool:
                return not left & await cluster.in_use()

            await until(left_is_free)
            assert await cluster.in_use() == kept | of_second
            assert await cluster.handles() == {"k8s-pod-network.kept", "vxlan-tunnel-addr-n1"} | {
                "k8s-pod-network.second",
                "vxlan-tunnel-addr-n2",
            }

            # A node that went, with its pods.
            server.kubectl("delete", "pod", "second", "--force", "--grace-period=0")
            server.kubectl("delete", "node", "n2")

            async def second_is_gone() -> bool:
                return await cluster.owners() == {"n1"} and not of_second & await cluster.in_use()

            await until(second_is_gone)
            assert await cluster.in_use() == kept
            assert await cluster.handles() == {"k8s-pod-network.kept", "vxlan-tunnel-addr-n1"}

            # The same node again, whose agent still believes that the blocks are its own.
            server.apply(_node("n2"))
            again = await cluster.pod("n2", "again")
            assert await cluster.in_use() == kept | again
            assert await cluster.owners() == {"n1", "n2"}
            await cluster.agents["n1"].release(
                "k8s-pod-network.left", tuple(map(Net.parse, left))
            )  # a DEL that came late
            assert await cluster.in_use() == kept | again
            for agent in cluster.agents.values():
                await agent.settled()

    asyncio.run(scenario())
