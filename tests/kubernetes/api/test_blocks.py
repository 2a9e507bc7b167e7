"""Blocks in a real API server, with the rights of the manifests: several nodes at once, schemas, deletion."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator

import pytest

from felixpy.ipam.assignment import Wanted
from felixpy.ipam.block import read_block
from felixpy.ipam.blocks import CalicoBlocks, Surroundings
from felixpy.ipam.freeing import free_node
from felixpy.ipam.objects import AFFINITIES, BLOCKS, HANDLES, Conflict, KubernetesObjects, hostname_hash
from felixpy.kubernetes.access import Access
from felixpy.kubernetes.client import Api
from felixpy.model.net import Family, Net
from felixpy.model.resources import IPPool, Kind, ResourceKey
from tests.kubernetes.api.conftest import Server

BOTH = (Family.V4, Family.V6)
POOLS = [
    IPPool(ResourceKey(Kind.IP_POOL, "four"), Net.parse("10.48.0.0/24"), 28),
    IPPool(ResourceKey(Kind.IP_POOL, "six"), Net.parse("fd00:48::/120"), 124),
]


@pytest.fixture
def configuration(server: Server) -> Iterator[None]:
    server.apply(
        {
            "apiVersion": "projectcalico.org/v3",
            "kind": "IPAMConfiguration",
            "metadata": {"name": "default"},
            "spec": {"strictAffinity": True, "maxBlocksPerHost": 2},
        }
    )
    yield
    for kind in ("ipamconfigurations", "ipamblocks", "blockaffinities", "ipamhandles"):
        server.kubectl("delete", kind, "--all")


def test_nodes_at_once(server: Server, configuration: None) -> None:
    """Five nodes with bursts of ten: nobody has an address twice, no block has two owners, and all of it goes again."""
    identity = server.agent()

    async def scenario() -> None:
        async with Api(Access(identity)) as api:
            objects = KubernetesObjects(api)
            told: list[tuple[Net, str | None]] = []
            agents = [
                CalicoBlocks(objects, Surroundings(f"n{number}", lambda: POOLS, lambda: told)) for number in range(5)
            ]
            work = {
                (index, number): agent.assign(Wanted(f"h{index}-{number}", BOTH, attributes={"node": f"n{index}"}))
                for index, agent in enumerate(agents)
                for number in range(10)
            }
            found = dict(zip(work, await asyncio.gather(*work.values()), strict=True))
            addresses = [address for some in found.values() for address in some]
            assert len(set(addresses)) == len(addresses) == 100
            blocks = [read_block(one.spec) for one in await objects.items(BLOCKS)]
            assert sorted(str(block.affinity) for block in blocks) == sorted(
                f"n{number}" for number in range(5) for _ in BOTH
            )
            given = {
                address: handle for block in blocks for handle, some in block.by_handle().items() for address in some
            }
            assert given == {
                address.packed: f"h{index}-{number}" for (index, number), some in found.items() for address in some
            }
            affinities = [one.spec for one in await objects.items(AFFINITIES)]
            assert {spec["state"] for spec in affinities} == {"confirmed"}
            assert len(affinities) == len({spec["cidr"] for spec in affinities}) == 10
            for agent in agents:
                await agent.settled()
            said = {one.spec["handleID"]: one.spec["block"] for one in await objects.items(HANDLES)}
            assert said == {
                handle: {str(block.cidr): 1 for block in blocks if handle in block.by_handle()}
                for handle in given.values()
            }
            selector = f"projectcalico.org/hostname-hash={hostname_hash('n3')},projectcalico.org/ip-version=6"
            (name,) = server.kubectl("get", "blockaffinities", "-l", selector, "-o", "name").split()
            assert "/n3-fd00-48--" in name
            await asyncio.gather(
                *(agents[index].release(f"h{index}-{number}", some) for (index, number), some in found.items())
            )
            assert not [one for block in await objects.items(BLOCKS) for one in block.spec.get("attributes") or []]
            assert await objects.items(HANDLES) == []
            assert await free_node(objects, "n3") == 2
            assert not [one for one in await objects.items(AFFINITIES) if one.spec["node"] == "n3"]
            assert len(await objects.items(BLOCKS)) == 8

    asyncio.run(scenario())
    assert "AFFINITY" in server.kubectl("get", "ipamblocks")


def test_an_object_that_has_changed_is_neither_written_nor_deleted(server: Server, configuration: None) -> None:
    identity, name = server.agent(), f"n1-{uuid.uuid4().hex[:6]}"

    async def scenario() -> None:
        async with Api(Access(identity)) as api:
            objects = KubernetesObjects(api)
            spec = {"cidr": "10.48.9.0/28", "node": "n1", "state": "pending", "type": "host", "deleted": False}
            first = await objects.create(AFFINITIES, name, spec)
            with pytest.raises(Conflict):
                await objects.create(AFFINITIES, name, spec)
            second = await objects.replace(AFFINITIES, first, {**spec, "state": "confirmed"})
            with pytest.raises(Conflict):
                await objects.replace(AFFINITIES, first, spec)
            with pytest.raises(Conflict):
                await objects.delete(AFFINITIES, first)
            await objects.delete(AFFINITIES, second)
            await objects.delete(AFFINITIES, second)
            assert await objects.get(AFFINITIES, name) is None

    asyncio.run(scenario())
