"""Others who write the same kernel state: a Felix is not fought at all, anybody else not for ever."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from felixpy.demo.agent import FELIXPY, environment
from felixpy.demo.host import Host
from felixpy.demo.lab import Lab
from felixpy.demo.topology import Mode
from felixpy.model.net import Family
from tests.behaviour.world import ours

TRACES = {
    "ip6tables-legacy": "chain cali-FORWARD",
    "iptables-nft": "chain cali-FORWARD",
    "ip calico": "nftables table ip calico",
}


@contextlib.asynccontextmanager
async def felix_at_work(node: Host, trace: str) -> AsyncIterator[None]:
    """What a Felix has on a node: its hook into the filter table, or its nftables table."""
    if trace.endswith("calico"):
        await node.run("nft", "-f", "-", stdin=f"table {trace} {{ chain filter-FORWARD {{ }}; }}\n")
        yield
        await node.run("nft", "delete", "table", *trace.split())
        return
    for arguments in ("-N cali-FORWARD", "-A FORWARD -j cali-FORWARD"):
        await node.run(trace, *arguments.split())
    yield
    for arguments in ("-F FORWARD", "-X cali-FORWARD"):
        await node.run(trace, *arguments.split())


async def test_no_start_beside_a_felix() -> None:
    """One sentence, exit code 1, and nothing of ours written; ``plan`` says the same."""
    async with Lab(Mode.DUAL, ()) as lab:
        node = lab.node("node1")
        settings = environment({"NODENAME": "node1", "FELIX_RESOURCEDIRECTORY": str(lab.folder)})
        for trace, words in TRACES.items():
            async with felix_at_work(node, trace):
                for command in ("run", "plan"):
                    with (lab.folder / "said").open("w+b") as output:
                        process = await node.spawn(*FELIXPY, command, env=settings, output=output)
                        assert await asyncio.wait_for(process.wait(), 20) == 1
                        output.seek(0)
                        said = output.read().decode().splitlines()
                    assert said[-1].startswith("felixpy: a Calico Felix runs or ran on this node"), said
                    assert words in said[-1] and "Traceback" not in "".join(said)
            for family in Family:
                assert await ours(node, family) == []
