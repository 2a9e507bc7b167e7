"""What policies cost where there are many endpoints: at a start each is looked at once it can be written, and not in
each turn before; a policy for all of them touches none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from bench.policy_objects import calico, endpoint, policies
from bench.policy_subject import Object, Subject
from felixpy.agent.agent import UPDATES_PER_APPLY
from felixpy.dataplane.packet_filter import FilterChange, FilterKey
from felixpy.model.resources import ResourceKey

Write = Callable[[FilterChange], Awaitable[Mapping[FilterKey, str]]]

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

        def noted(thing: ResourceKey, **facts: Any) -> tuple[str, str]:
            judged.append(thing)
            return state_of(thing, **facts)

        subject.agent.outcome.state_of = noted  # type: ignore[method-assign]
        try:
            await subject.start([*policies(10), *crowd])
        finally:
            subject.task.cancel()
            await asyncio.gather(subject.task, return_exceptions=True)
        assert subject.agent.outcome.reported
        return len(judged)

    assert asyncio.run(scenario()) < (TIMES + 1) * len(crowd)


@pytest.mark.parametrize("backend", ["nftables", "legacy", "nft"])
def test_a_policy_for_all_touches_no_member_of_workloads_that_nothing_was_asked(network: None, backend: str) -> None:
    everybody = calico("GlobalNetworkPolicy", "all", {"selector": "all()", "ingress": [{"action": "Allow"}]})

    async def scenario() -> list[FilterChange]:
        subject = Subject(backend, {})
        changes: list[FilterChange] = []
        try:
            await subject.start([endpoint(number) for number in range(1, 50)])
            for tables in subject.agent.dataplane.filters.values():
                tables.filter.write = noting(tables.filter.write, changes)  # type: ignore[method-assign]
            await subject.take([everybody], [])
            await subject.take([], [everybody])
        finally:
            subject.task.cancel()
            await asyncio.gather(subject.task, return_exceptions=True)
        return changes

    changes = asyncio.run(scenario())
    assert sum(len(one.chains) for one in changes) > 0
    assert [key for one in changes for key in (*one.add, *one.remove)] == []


@pytest.mark.parametrize("backend", ["nftables", "legacy", "nft"])
def test_a_start_finds_the_number_of_every_class_also_of_one_that_asks_nothing(network: None, backend: str) -> None:
    asked = calico("GlobalNetworkPolicy", "some", {"selector": "app == 'app0'", "ingress": [{"action": "Allow"}]})
    some, others = [endpoint(1), endpoint(2)], [endpoint(20), endpoint(21), endpoint(22)]

    async def written(first: list[Object], later: list[Object]) -> float:
        subject = Subject(backend, {})
        try:
            await subject.start(first)
            await subject.take(later, [])
        finally:
            subject.task.cancel()
            await asyncio.gather(subject.task, return_exceptions=True)
        return float(subject.agent.metrics.writes._value.get())

    assert asyncio.run(written([asked, *some], others)) > 0
    assert asyncio.run(written([*others, *some, asked], [])) == 0


def noting(write: Write, changes: list[FilterChange]) -> Write:
    async def noted(change: FilterChange) -> Mapping[FilterKey, str]:
        changes.append(change)
        return await write(change)

    return noted
