"""An agent that starts on another layout of its own rules replaces it under traffic, at once."""

from __future__ import annotations

import asyncio
import re

import pytest

from tests.behaviour.world import becomes, iptables_save, writes

from .conftest import COMBINATIONS
from .flows import TrafficWorld


async def other_nftables_layout(world: TrafficWorld) -> None:
    """The same traffic passes, but a hook stands elsewhere, and there are a set and a chain more."""
    for family in ("ip", "ip6"):
        table = await world.node1.run("nft", "list", "table", family, "felixpy")
        other, count = re.subn(r"(hook forward priority) filter", r"\1 filter + 7", table)
        assert count == 1
        extra = "set older { type mark; }\n chain older { counter accept; }\n"
        other = other.replace("table " + family + " felixpy {", f"table {family} felixpy {{\n{extra}", 1)
        await world.node1.run("nft", "-f", "-", stdin=f"delete table {family} felixpy\n{other}")


@pytest.mark.parametrize("world", COMBINATIONS[:1], ids=str, indirect=True)
async def test_another_nftables_layout_is_replaced_in_one_transaction(world: TrafficWorld) -> None:
    async with world.traffic() as traffic:
        await world.agent.stop()
        await other_nftables_layout(world)
        await traffic.lost_nothing()
        seen = await writes(world.node1, world.start_agent)
        await traffic.lost_nothing()
    for family in ("ip", "ip6"):
        of_family = [line for line in seen if re.search(rf"\b(table|chain|set|element|rule) {family} ", line)]
        assert any(line.startswith("delete table") for line in of_family), seen
        assert of_family, seen
        generations = _generations(seen, family)
        assert len(generations) == 1, generations
        assert "older" not in await world.node1.run("nft", "list", "table", family, "felixpy")
    assert (await world.plan())[0] == 0


def _generations(lines: list[str], family: str) -> set[int]:
    """Numbers of the transactions in which a family was changed; each ends with a line of its own."""
    found, number = set(), 0
    for line in lines:
        if line.startswith("# new generation"):
            number += 1
        elif re.search(rf"\b(table|chain|set|element|rule) {family} ", line):
            found.add(number)
    return found


OLDER_CHAINS = (
    ("filter", "-N fpy-older", "-A fpy-older -j RETURN", "-I fpy-forward-from 1 -j fpy-older"),
    ("mangle", "-N fpy-FORWARD", "-I FORWARD -m comment --comment felixpy -j fpy-FORWARD"),
)


@pytest.mark.parametrize("changed", [True, False], ids=["rules changed", "only something more"])
@pytest.mark.parametrize("world", COMBINATIONS[1:], ids=str, indirect=True)
async def test_another_iptables_layout_is_replaced(world: TrafficWorld, changed: bool) -> None:
    """More chains, also in a table that is used no more, another rule body, and one more set."""
    async with world.traffic() as traffic:
        await world.agent.stop()
        await world.node1.run("ipset", "create", "fpy4-older", "hash:net")
        for six in ("", "6"):
            tool = f"ip{six}tables-{world.backend}"
            for table, *commands in OLDER_CHAINS[0 if changed else 1 :]:
                for command in commands:
                    await world.node1.run(tool, "-t", table, *command.split())
        await world.start_agent()
        await becomes([], older, world)
        await asyncio.sleep(0.1)
        await traffic.lost_nothing()
    assert (await world.plan())[0] == 0


async def older(world: TrafficWorld) -> list[str]:
    """What is left of the older layout."""
    lines = (await world.node1.run("ipset", "list", "-name")).splitlines()
    for six in ("", "6"):
        tool = f"ip{six}tables-{world.backend}-save"
        lines += (await iptables_save(world.node1, tool, "-t", "filter")).splitlines()
        lines += (await iptables_save(world.node1, tool, "-t", "mangle")).replace("fpy-", "older ").splitlines()
    return [line for line in lines if "older" in line]
