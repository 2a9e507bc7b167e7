"""ip-masq-agent's file, by the source address that the outside host sees. Its workload's pool has no natOutgoing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from felixpy.agent.masq_agent import UNUSABLE
from felixpy.demo.topology import INTERNET, NODE1, PODS
from felixpy.model.net import Family

from .world import ELSEWHERE, P1C, World, becomes

P2A = next(pod for pod in PODS if pod.node == "node2")


@pytest.mark.modes("dual")
async def test_the_file_decides_and_is_followed(world: World, tmp_path: Path) -> None:
    """Both families, real packets, no restart between its words."""
    file = tmp_path / "config" / "ip-masq-agent"
    file.parent.mkdir()
    p1c = world.lab.pod("p1c")

    async def sources(address: dict[Family, str]) -> list[set[str]]:
        return [await world.sources_outside(p1c, address[family]) for family in world.families]

    own = [{P1C.addresses[family]} for family in world.families]
    node = [{NODE1.addresses[family]} for family in world.families]
    await becomes(own, sources, INTERNET)
    await world.restart_agent(FELIX_IPMASQAGENTCONFIG=str(file))
    try:
        # Without a file: that program's defaults, and of IPv6, of which they say nothing, nothing at all.
        await becomes([node[0], own[1]], sources, INTERNET)
        await becomes(own, sources, ELSEWHERE)

        file.write_text("nonMasqueradeCIDRs: [198.51.100.0/24, 'fd00:60::/64']\n")
        await becomes([own[0], node[1]], sources, INTERNET)
        await becomes([node[0], own[1]], sources, ELSEWHERE)

        for bad in ("nonMasqueradeCIDRs: [198.51.100.1/24]", "masqLinkLocal: [", "resyncInterval: often"):
            file.write_text(bad)
            await becomes(True, _told, world)
            assert await sources(INTERNET) == [own[0], node[1]], f"{bad} changed something"
            file.write_text("nonMasqueradeCIDRs: [198.51.100.0/24, 'fd00:60::/64']\n")
            await becomes(False, _told, world)

        file.write_text('{"nonMasqueradeCIDRs": []}')
        await becomes(node, sources, ELSEWHERE)
        for family in world.families:  # and yet no pool is ever a destination to masquerade to
            assert await world.tcp_source(p1c, P2A.addresses[family]) == P1C.addresses[family]
        file.unlink()
        await becomes([node[0], own[1]], sources, INTERNET)
    finally:
        await world.restart_agent()
    await becomes(own, sources, INTERNET)


async def _told(world: World) -> bool:
    """Whether the agent says now that the file cannot be used."""
    lines = world.lab.agents["node1"].log.read_text().splitlines()
    events = [json.loads(line)["event"] for line in lines if UNUSABLE in line]
    return bool(events) and events[-1] == UNUSABLE
