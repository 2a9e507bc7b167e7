"""What policies cost where there are many endpoints: at a start each is looked at once it can be written, and not in
each turn before; a policy for all of them touches none.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from bench.policy_objects import calico, endpoint, policies
from bench.policy_subject import Object, Subject
from felixpy.agent.agent import UPDATES_PER_APPLY
from felixpy.dataplane.iptables.filter import IptablesFilter
from felixpy.dataplane.nftables.filter import NftablesFilter
from felixpy.dataplane.packet_filter import FilterChange, FilterKey
from felixpy.demo.patience import until
from felixpy.model.resources import Kind, ResourceKey
from felixpy.sources import SyncState, SyncStatus

Write = Callable[[FilterChange], Awaitable[Mapping[FilterKey, str]]]

TURNS = 6


@pytest.mark.parametrize("backend", ["nftables", "legacy", "nft"])
def test_a_start_judges_each_endpoint_and_writes_each_member_once(
    network: None, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """What comes with the first turn may be told to be denied, before rules stand that ask for classes."""
    crowd = [endpoint(number) for number in range(1, TURNS * UPDATES_PER_APPLY)]
    changes: list[FilterChange] = []
    for back_end in (NftablesFilter, IptablesFilter):
        monkeypatch.setattr(back_end, "write", noting_of_all(back_end.write, changes))

    async def scenario() -> Counter[ResourceKey]:
        subject = Subject(backend, {})
        judged: Counter[ResourceKey] = Counter()
        state_of = subject.agent.outcome.state_of

        def noted(thing: ResourceKey, **facts: Any) -> tuple[str, str]:
            judged[thing] += 1
            return state_of(thing, **facts)

        subject.agent.outcome.state_of = noted  # type: ignore[method-assign]
        try:
            await subject.start([*policies(10), *crowd])
        finally:
            subject.task.cancel()
            await asyncio.gather(subject.task, return_exceptions=True)
        assert len(subject.agent.outcome.reported) == len(crowd)
        return judged

    judged = asyncio.run(scenario())
    several = [thing for thing, times in judged.items() if thing.kind is Kind.WORKLOAD_ENDPOINT and times > 1]
    assert len(several) <= UPDATES_PER_APPLY
    members = Counter(key for change in changes for key in change.add)
    assert len(members) > 2 * len(crowd)
    assert sum(times - 1 for times in members.values()) <= 2 * UPDATES_PER_APPLY
    assert sum(len(change.remove) for change in changes) <= 2 * UPDATES_PER_APPLY


def test_endpoints_are_judged_also_where_the_snapshot_does_not_become_complete(network: None) -> None:
    crowd = [endpoint(number) for number in range(1, 2 * UPDATES_PER_APPLY)]

    async def scenario() -> None:
        subject = Subject("nftables", {})
        agent = subject.agent
        try:
            subject.tell([*policies(10), *crowd])
            agent.sync_status(SyncStatus(SyncState.RESYNC))
            await until(lambda: agent._unjudged_until_complete and not agent.inbox)
            assert len(agent.outcome.reported) <= UPDATES_PER_APPLY
            agent.sync_status(SyncStatus(SyncState.DEGRADED, "snapshot incomplete"))
            await until(lambda: len(agent.outcome.reported) == len(crowd))
        finally:
            subject.task.cancel()
            await asyncio.gather(subject.task, return_exceptions=True)

    asyncio.run(scenario())


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
        return next(subject.agent.metrics.writes.samples()).value

    assert asyncio.run(written([asked, *some], others)) > 0
    assert asyncio.run(written([*others, *some, asked], [])) == 0


def noting_of_all(write: Any, changes: list[FilterChange]) -> Any:
    async def noted(self: Any, change: FilterChange) -> Mapping[FilterKey, str]:
        changes.append(change)
        found: Mapping[FilterKey, str] = await write(self, change)
        return found

    return noted


def noting(write: Write, changes: list[FilterChange]) -> Write:
    async def noted(change: FilterChange) -> Mapping[FilterKey, str]:
        changes.append(change)
        return await write(change)

    return noted
