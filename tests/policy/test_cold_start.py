"""What a start costs with policies: endpoints are looked at once they can be written, and not in each turn before."""

from __future__ import annotations

import asyncio

import pytest

from bench.policy_objects import endpoint, policies
from bench.policy_subject import Subject
from felixpy.agent.agent import UPDATES_PER_APPLY
from felixpy.model.resources import ResourceKey

TURNS = 6
TIMES = 3
"""Each endpoint when it comes, when its class is known, and what is written for it."""


@pytest.mark.parametrize("backend", ["nftables", "legacy"])  # nft is as legacy in this
def test_endpoints_are_not_judged_in_each_turn_of_the_snapshot(network: None, backend: str) -> None:
    crowd = [endpoint(number) for number in range(1, TURNS * UPDATES_PER_APPLY)]

    async def scenario() -> int:
        subject = Subject(backend, {})
        judged: list[ResourceKey] = []
        state_of = subject.agent.outcome.state_of

        def noted(thing: ResourceKey) -> tuple[str, str]:
            judged.append(thing)
            return state_of(thing)

        subject.agent.outcome.state_of = noted  # type: ignore[method-assign]
        try:
            await subject.start([*policies(10), *crowd])
        finally:
            subject.task.cancel()
            await asyncio.gather(subject.task, return_exceptions=True)
        assert subject.agent.outcome.reported
        return len(judged)

    assert asyncio.run(scenario()) <= TIMES * len(crowd) + 100
