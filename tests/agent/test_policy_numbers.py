"""Numbers of classes in a running agent: those that went are given again."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.agent.bench import GOOD, LEGACY, NFTABLES, POOLS, running
from tests.broker import Broker


@pytest.mark.parametrize("environ", [NFTABLES, LEGACY], ids=["nftables", "legacy"])
def test_policies_that_come_and_go_use_no_numbers_up(broker: Broker, environ: dict[str, str]) -> None:
    async def scenario() -> None:
        async with running(broker, environ) as one:
            await one.stream.put(*POOLS, GOOD)
            await one.in_sync()
            await one.endpoint_is("good", "up")
            policy, highest = one.agent.calculation.policy, set()
            for number in range(6):
                topic = f"policy/global/p{number}"
                spec = {
                    "selector": "all()",
                    "ingress": [{"action": "Allow", "source": {"nets": [f"192.0.2.{number}/32"]}}],
                }
                document = {"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy"}
                payload = json.dumps({**document, "metadata": {"name": f"p{number}"}, "spec": spec})
                await one.stream.raw(topic, payload.encode())
                await one.until(lambda: policy.counts()["policies"] == 1, "the policy")
                await one.quiet()
                await one.stream.raw(topic, b"")
                await one.until(lambda: policy.counts()["policies"] == 0, "its end")
                await one.quiet()
                highest.add(policy.assignment.highest_number())
            assert len(highest) <= 2, "after the first round no class needs a number that was never given"

    asyncio.run(scenario())
