"""The instrument itself: a flow that really loses something is told so, by every kind of flow."""

from __future__ import annotations

import asyncio

import pytest

from felixpy.demo.topology import P1B

from .conftest import COMBINATIONS
from .flows import KINDS, TrafficWorld


@pytest.mark.parametrize("world", COMBINATIONS[:1], ids=str, indirect=True)
async def test_every_kind_of_flow_tells_its_losses(world: TrafficWorld) -> None:
    """Without an agent nobody repairs; only flows to the workload whose routes are gone lose anything."""
    async with world.without_agent(), world.traffic() as traffic:
        for family in world.families:
            await world.node1.ip([f"route del {P1B.addresses[family]}/{family.bits} dev {P1B.interface}"])
        await asyncio.sleep(0.3)
        seen = await traffic.look()
        for family in world.families:
            for kind in KINDS:
                assert seen[f"{family} {kind} p1a → p1b"].lost > 0, kind
        assert {name for name, one in seen.items() if one.lost} == {name for name in seen if name.endswith("p1b")}
        with pytest.raises(AssertionError, match="p1a → p1b"):
            await traffic.lost_nothing()
