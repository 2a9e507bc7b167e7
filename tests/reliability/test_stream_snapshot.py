"""Half a snapshot, a wrong one, one in the wrong order: the kernel follows the stream once it is complete."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from tests.reliability.stream_world import (
    NODE,
    World,
    encode,
    endpoint,
    endpoint_topic,
    endpoints,
    kernel,
    kernel_pairs,
    manifests,
    pairs,
    pool,
    scenario,
)

pytestmark = pytest.mark.usefixtures("network")

POOL = {"ippool/pool": pool()}
OWN_MANIFEST = f"sync/node/{NODE}"


@scenario
async def test_5000_retained_endpoints_of_a_default_broker_are_in_sync_only_when_all_are_in(tmp_path: Path) -> None:
    async with World.made(tmp_path) as world:
        await world.put_all({**POOL, **endpoints(range(1, 5001))})
        world.start_agent(FELIX_SNAPSHOTTIMEOUT="5")
        status = await world.says("in-sync")
        assert kernel_pairs() == kernel_pairs("to-workload") == pairs(range(1, 5001))
        assert (status["got"], status["want"], status["endpoints"]) == (5001, 5001, 5000)
        assert "degraded" not in world.states()
        assert world.events("stream lost") == []
        streams = [event for event in world.events("stream") if event["state"] == "in-sync"]
        assert [(event["got"], event["want"]) for event in streams] == [(5001, 5001)]


@scenario
async def test_manifest_that_claims_more_is_degraded_with_counts_adds_and_deletes_nothing(tmp_path: Path) -> None:
    async with World.made(tmp_path) as world:
        await world.put_all({**POOL, **endpoints(range(1, 21))})
        world.start_agent()
        await world.says("in-sync")
        world.kill_agent()
        world.forget()
        # 1-10 are gone, 21 is new, and 5 objects that the manifest speaks of are not there.
        missing = endpoints(range(22, 27))
        await world.put({**dict.fromkeys(endpoints(range(1, 11))), **endpoints([21])})
        await world.put(manifests({**POOL, **endpoints(range(11, 22)), **missing}, rev=2))
        monitor = await world.monitor()
        world.start_agent()
        status = await world.says("degraded", "snapshot incomplete: wep 11/16")
        assert (status["got"], status["want"]) == (12, 17)
        assert kernel_pairs() == pairs(range(1, 22))
        assert await monitor.pairs("delete") == []
        assert "in-sync" not in world.states()
        await world.put(missing)
        await world.says("in-sync")
        await world.kernel_becomes(range(11, 27))
        assert set(await monitor.pairs("delete")) == pairs(range(1, 11))


@scenario
async def test_manifest_behind_the_data_is_degraded_until_it_is_true(tmp_path: Path) -> None:
    objects = {**POOL, **endpoints(range(1, 6))}
    before = {**POOL, **endpoints([2, 3]), endpoint_topic(1): endpoint(1, at=99)}
    async with World.made(tmp_path) as world:
        await world.put({**objects, **manifests(before)})
        world.start_agent()
        await world.says("degraded", "snapshot incomplete: wep 5/3")
        await world.kernel_becomes(range(1, 6))  # what has arrived is used
        await world.put(manifests(objects, rev=2))
        await world.says("in-sync")
        await world.kernel_becomes(range(1, 6))


@scenario
async def test_manifest_ahead_of_the_data_in_sync_is_waited_for_and_deletes_nothing(tmp_path: Path) -> None:
    async with World.made(tmp_path) as world:
        await world.put_all({**POOL, **endpoints(range(1, 6))})
        world.start_agent()
        await world.says("in-sync")
        monitor = await world.monitor()
        await world.put(manifests({**POOL, **endpoints(range(1, 8))}, rev=2))
        await world.says("degraded", "wep 5/7")
        await world.put(endpoints([6, 7]))
        await world.says("in-sync")
        await world.kernel_becomes(range(1, 8))
        assert await monitor.pairs("delete") == []


@scenario
async def test_epoch_change_is_a_fresh_start_once_it_is_complete(tmp_path: Path) -> None:
    async with World.made(tmp_path) as world:
        await world.put_all({**POOL, **endpoints(range(1, 11))}, rev=50)
        world.start_agent()
        await world.says("in-sync")
        await asyncio.to_thread(world.broker.stop)
        monitor = await world.monitor()
        await asyncio.to_thread(world.broker.start)
        after = {**POOL, **endpoints(range(6, 12))}
        await world.put({**endpoints(range(6, 9)), **manifests(after, epoch="two", rev=1)})
        await world.says("degraded", "wep 3/6")
        assert await monitor.pairs("delete") == []
        await world.put(after)
        await world.says("in-sync")
        await world.kernel_becomes(range(6, 12))
        assert set(await monitor.pairs("delete")) == pairs(range(1, 6))


@scenario
async def test_duplicates_and_any_order_lead_to_the_same_kernel_and_write_nothing_twice(tmp_path: Path) -> None:
    chance = random.Random(7)
    objects = {**POOL, **endpoints(range(1, 21))}
    messages = [(topic, value) for topic, value in {**objects, **manifests(objects)}.items() for _ in range(3)]
    async with World.made(tmp_path) as world:
        world.start_agent()
        await world.says("degraded", "no objects and no manifest")
        monitor = await world.monitor()
        chance.shuffle(messages)
        for topic, value in messages:
            await world.put({topic: value})
        await world.says("in-sync")
        await world.kernel_becomes(range(1, 21))
        added = await monitor.pairs("add")
        assert len(added) == len(set(added)) == 40
        assert await monitor.pairs("delete") == []


@scenario
async def test_swapped_addresses_end_the_same_in_both_orders_and_repeated_messages_write_nothing(
    tmp_path: Path,
) -> None:
    swapped = {endpoint_topic(1): endpoint(1, at=2), endpoint_topic(2): endpoint(2, at=1)}
    start = {**POOL, **endpoints([1, 2])}
    async with World.made(tmp_path) as world:
        await world.put_all(start)
        world.start_agent()
        await world.says("in-sync")
        before, ends = kernel(), []
        for order in (swapped, dict(reversed(swapped.items()))):
            await world.put(order)
            await world.put_all({**POOL, **swapped}, rev=2)
            # The address that the other one claims for a moment must come back to its owner.
            wanted = {
                (str(ip).partition("/")[0], value["spec"]["interfaceName"])
                for value in swapped.values()
                for ip in value["spec"]["ipNetworks"]
            }
            await world.kernel_members_become(wanted)
            ends.append(kernel())
            await world.put_all(start, rev=3)
            await world.kernel_becomes([1, 2])
        assert ends[0] == ends[1] != before
        monitor = await world.monitor()
        await world.put({topic: encode(value) for _ in range(3) for topic, value in start.items()})
        await world.put(endpoints([3]))
        await world.kernel_becomes([1, 2, 3])
        assert set(await monitor.pairs("add")) == pairs([3])
        assert await monitor.pairs("delete") == []
