"""Numbers of classes in a running agent: those that went are given again."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.agent.bench import GOOD, LEGACY, NFTABLES, POOLS, endpoint, running
from tests.broker import Broker
from tests.kernel import pairs


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


SMALL = {
    "nftables": (NFTABLES | {"FELIX_NFTABLESMARKMASK": "0xff800000"}, 62, "NftablesMarkMask"),
    "legacy": (LEGACY | {"FELIX_IPTABLESMARKMASK": "0xff800000"}, 5, "IptablesMarkMask"),
}


@pytest.mark.parametrize("backend", SMALL)
def test_an_endpoint_beyond_the_last_class_is_an_error_that_names_the_mask_until_one_is_free(
    broker: Broker, backend: str
) -> None:
    environ, capacity, mask = SMALL[backend]
    first, last = 101, 101 + capacity

    def labelled(number: int) -> dict[str, object]:
        found = endpoint(f"e{number}", number)
        found["metadata"]["labels"] = {"of": str(number)}
        return found

    async def scenario() -> None:
        async with running(broker, environ) as one:
            await one.stream.put(*POOLS)
            await one.in_sync()
            pairs(*(f"cali{number}" for number in range(first, last + 1)))
            for number in range(first, last + 1):
                spec = {"selector": f"of == '{number}'", "ingress": [{"action": "Allow"}]}
                document = {"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy"}
                payload = {**document, "metadata": {"name": f"p{number}"}, "spec": spec}
                await one.stream.raw(f"policy/global/p{number}", json.dumps(payload).encode())
            await one.stream.put(*map(labelled, range(first, last)))
            for number in range(first, last):
                await one.endpoint_is(f"e{number}", "up")
            assert one.problems == {}
            await one.stream.put(labelled(last))
            said = await one.endpoint_is(f"e{last}", "error", mask)
            assert f"all {capacity} classes" in said["reason"]
            assert any(mask in reason for reason in one.problems.values())
            await one.stream.raw(f"wep/n1/default/e{first}", b"")
            await one.stream.raw(f"policy/global/p{first}", b"")
            await one.quiet()
            await one.stream.raw(f"wep/n1/default/e{last}", b"")
            await one.quiet()
            assert one.problems == {}
            await one.stream.put(labelled(last))
            await one.endpoint_is(f"e{last}", "up")

    asyncio.run(scenario())


def test_of_endpoints_of_other_nodes_nothing_is_kept_but_what_policies_look_at(broker: Broker) -> None:
    async def scenario() -> None:
        async with running(broker, NFTABLES) as one:
            others = [endpoint(f"o{number}", number, node="n2") for number in range(3, 8)]
            await one.stream.put(*POOLS, GOOD, *others)
            await one.in_sync()
            await one.endpoint_is("good", "up")
            await one.until(lambda: len(one.agent.store.remote) == len(others), "the others")
            await one.quiet()
            assert one.agent.outcome._arrivals == {}
            assert one.agent.store.endpoints.keys() == one.agent.outcome.reported.keys()

    asyncio.run(scenario())
