"""IPAM: blocks, affinities and releases, asked of the allocator and of the store over objects that compare and swap."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

from felixpy.ipam.affinity import affinity_name
from felixpy.ipam.assignment import NoAddress, Wanted
from felixpy.ipam.block import Attribute, BadSequenceNumber, Release, assign_address, new_block, release
from felixpy.ipam.blocks import CalicoBlocks, Surroundings
from felixpy.ipam.objects import AFFINITIES, BLOCKS
from felixpy.model.net import Family, Net
from felixpy.model.resources import IPPool, Kind, ResourceKey
from tests.ipam.fake import FakeObjects
from tests.underlay.vectors import Answer, elsewhere, same

POOL = Net.parse("10.48.0.0/30")


def ask(case: dict[str, Any]) -> Iterator[Answer]:
    """Answers to a case of ``ipam.json``."""
    given, expected = case["given"], case["expect"]
    if "pool" in given:
        yield from _first_address(given, expected)
    elif "both_pending" in given:
        yield from _both_pending(given, expected)
    elif "ops" in given:
        yield from _late_release(expected)
    elif "v4" in given:
        yield from _half_an_answer(expected)
    else:
        yield elsewhere("claims over MQTT", "there are none: over MQTT an operator assigns blocks")


def _pool(cidr: str, size: int) -> IPPool:
    return IPPool(ResourceKey(Kind.IP_POOL, cidr_name(cidr)), Net.parse(cidr), size)


def cidr_name(cidr: str) -> str:
    return re.sub(r"[.:/]", "-", cidr)


def _agent(server: FakeObjects, node: str, pools: list[IPPool]) -> CalicoBlocks:
    return CalicoBlocks(server, Surroundings(node, lambda: pools, lambda: []))


def _first_address(given: dict[str, Any], expected: dict[str, Any]) -> Iterator[Answer]:
    server, node = FakeObjects(), given["node"]
    states: list[str] = []
    pools = [_pool(given["pool"]["cidr"], given["pool"]["blockSize"])]
    agent = _agent(server, node, pools)

    def watch(what: str) -> str:
        affinities = [spec["state"] for spec in server.specs(AFFINITIES).values()]
        states.append(f"{what} while {affinities}")
        return ""

    server.trouble = watch
    asyncio.run(agent.assign(Wanted("a", (Family.V4,))))
    ((block, spec),) = server.specs(BLOCKS).items()
    (affinity,) = server.specs(AFFINITIES).values()
    name = affinity_name(node, Net.parse(spec["cidr"]))
    wanted = [
        f"create BlockAffinity {name} while []",
        f"create IPAMBlock {block} while ['pending']",
        f"replace BlockAffinity {name} while ['pending']",
        f"replace IPAMBlock {block} while ['confirmed']",
    ]
    yield same(f"sequence: {', '.join(expected['sequence'])}", wanted, states)
    yield same("affinity of the block", f"host:{node}", spec["affinity"])
    yield same("state of the affinity", "confirmed", affinity["state"])
    yield elsewhere("route only after confirmed", "tests/model: a pending affinity is absent")


def _both_pending(given: dict[str, Any], expected: dict[str, Any]) -> Iterator[Answer]:
    server, cidr = FakeObjects(), Net.parse(given["both_pending"])
    pools = [IPPool(ResourceKey(Kind.IP_POOL, "pool"), cidr.widened(cidr.length - 1), cidr.length)]
    for node in given["nodes"]:
        spec = {"cidr": str(cidr), "node": node, "state": "pending", "type": "host", "deleted": False}
        server.put(AFFINITIES, affinity_name(node, cidr), spec)
    agents = [_agent(server, node, pools) for node in given["nodes"]]

    async def both() -> None:
        work = [agent._claim_block(cidr) for agent in agents]
        won = await asyncio.gather(*work)
        for agent, mine in zip(agents, won, strict=True):
            if not mine:
                await agent.assign(Wanted("loser", (Family.V4,)))

    asyncio.run(both())
    of_block = [spec for spec in server.specs(AFFINITIES).values() if spec["cidr"] == str(cidr)]
    yield same(f"exactly one {expected['exactly_one']}", ["confirmed"], [spec["state"] for spec in of_block])
    blocks = {spec["cidr"]: spec["affinity"] for spec in server.specs(BLOCKS).values()}
    yield same("owner of the block", f"host:{of_block[0]['node']}", blocks[str(cidr)])
    yield same("the loser has its next block", 2, len(blocks))


def _late_release(expected: dict[str, Any]) -> Iterator[Answer]:
    a, b = Attribute("a"), Attribute("b")
    block = assign_address(new_block(POOL, "n1", sequence=4), a, POOL.packed)
    sequence = block.sequences[0]
    yield same("sequence number of a", 5, sequence)
    block, _ = release(block, [Release(POOL.packed, None, sequence)])
    block = assign_address(block, b, POOL.packed)
    yield same("sequence number of b", 7, block.sequences[0])
    try:
        release(block, [Release(POOL.packed, None, sequence)])
        error = ""
    except BadSequenceNumber:
        error = "bad sequence number"
    yield same("error", expected["error"], error)
    owner = block.owner(POOL.packed)
    yield same(f"b {expected['b']}", "b", owner and owner.handle)


def _half_an_answer(expected: dict[str, Any]) -> Iterator[Answer]:
    server = FakeObjects()
    agent = _agent(server, "n1", [_pool("10.48.0.0/32", 32), _pool("fd00:48::/126", 126)])

    async def scenario() -> str:
        await agent.assign(Wanted("a", (Family.V4,)))
        try:
            await agent.assign(Wanted("b", (Family.V4, Family.V6)))
        except NoAddress:
            await agent.settled()
            return "error"
        return "success"

    yield same("result", expected["result"], asyncio.run(scenario()))
    six = [spec for spec in server.specs(BLOCKS).values() if ":" in spec["cidr"]]
    yield same("v6_released", expected["v6_released"], not any(spec["attributes"] for spec in six))
