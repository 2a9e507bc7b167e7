"""More than should come: floods, large payloads, too many objects; and a directory that cannot be read."""

from __future__ import annotations

import asyncio
import os
import urllib.request
from pathlib import Path

import pytest

from tests.broker import free_port
from tests.reliability.mqtt_wire import flood
from tests.reliability.stream_world import (
    ROOT,
    Member,
    World,
    encode,
    endpoint,
    endpoint_topic,
    endpoints,
    kernel,
    kernel_pairs,
    pairs,
    pool,
    scenario,
    until,
)

pytestmark = pytest.mark.usefixtures("network")

POOL = {"ippool/pool": pool()}
FLOOD_PER_SECOND = 10_000
FLOOD_SECONDS = 10
BURST = 1_000
VERSIONS = 10
STEP = 5_000
NOBODY = 65534
PROCESSED = "felix_calc_graph_updates_processed_total"


class Probe:
    """Asks the agent over HTTP."""

    def __init__(self) -> None:
        self.health, self.metrics = free_port(), free_port()
        self.settings = {
            "FELIX_HEALTHENABLED": "true",
            "FELIX_HEALTHPORT": str(self.health),
            "FELIX_PROMETHEUSMETRICSENABLED": "true",
            "FELIX_PROMETHEUSMETRICSHOST": "127.0.0.1",
            "FELIX_PROMETHEUSMETRICSPORT": str(self.metrics),
        }

    async def live(self) -> str:
        return await self._get(self.health, "liveness")

    async def metric(self, name: str) -> float:
        lines = (await self._get(self.metrics, "metrics")).splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.partition("{")[0].split(" ")[0] == name)

    @staticmethod
    async def _get(port: int, path: str) -> str:
        def get() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as answer:
                text: str = answer.read().decode()
                return text

        return await asyncio.to_thread(get)


def version(keys: int, number: int) -> dict[str, object]:
    """All endpoints with the addresses of one version."""
    return {endpoint_topic(n): endpoint(n, at=n + STEP * number) for n in range(1, keys + 1)}


def members(objects: dict[str, object]) -> set[Member]:
    found = set()
    for value in objects.values():
        assert isinstance(value, dict)
        spec = value["spec"]
        found |= {(address.partition("/")[0], spec["interfaceName"]) for address in spec["ipNetworks"]}
    return found


FEW, MANY = 3, 2_000


@pytest.mark.parametrize(("keys", "seconds"), [(FEW, FLOOD_SECONDS // 3), (MANY, FLOOD_SECONDS)])
@scenario
async def test_flood_ends_at_the_latest_values_with_bounded_memory_and_a_live_loop(
    tmp_path: Path, keys: int, seconds: int
) -> None:
    probe = Probe()
    versions = [
        (f"{ROOT}/{topic}", encode(value))
        for number in range(1, VERSIONS + 1)
        for topic, value in version(keys, number).items()
    ]
    total = FLOOD_PER_SECOND * seconds
    messages = versions * -(-total // len(versions))
    batches = [messages[start : start + BURST] for start in range(0, len(messages), BURST)]
    async with World.made(tmp_path) as world:
        await world.put_all({**POOL, **version(keys, 0)})
        world.start_agent(**probe.settings, FELIX_REPORTINGINTERVALSECS="0.5")
        await world.says("in-sync")
        before, resident = await probe.metric(PROCESSED), world.resident_kib()
        world.forget()
        flooding = asyncio.create_task(
            asyncio.to_thread(flood, world.broker.port, batches, per_second=FLOOD_PER_SECOND)
        )
        answers, most = [], resident
        while not flooding.done():
            answers.append(await probe.live())
            most = max(most, world.resident_kib())
            await asyncio.sleep(0.1)
        assert await flooding == len(messages) >= total
        assert {answer.splitlines()[0] for answer in answers} == {"live"} and len(answers) >= 2
        last = version(keys, VERSIONS)
        assert world.events("stream lost") == []
        await world.put_all({**POOL, **last}, rev=2)
        await world.kernel_members_become(members(last))
        assert world.history, "the status must go on while the flood is worked off"
        await world.says("in-sync")
        assert kernel_pairs() == members(last)
        if keys == FEW:
            # How many of many keys are coalesced depends on the machine; a burst over few keys is in any case.
            assert await probe.metric(PROCESSED) - before < len(messages) / 4
        growth_kib = max(most, world.resident_kib()) - resident
        assert growth_kib < 32 * 1024, "memory must not grow with the number of messages"


@scenario
async def test_payload_above_1_mib_is_refused_by_name_and_harms_nothing_else(tmp_path: Path) -> None:
    large = endpoint(2)
    large["metadata"]["annotations"] = {"padding": "x" * (1 << 20)}
    objects = {**POOL, **endpoints([1, 3]), endpoint_topic(2): large}
    async with World.made(tmp_path) as world:
        await world.put_all(objects)
        world.start_agent()
        await world.says("in-sync")
        await world.kernel_becomes([1, 3])
        await until(lambda: "ns2/w2" in world.of_endpoints)
        told = world.of_endpoints["ns2/w2"]
        assert told["state"] == "error" and "1048576" in told["reason"]
        await world.put_all({**objects, **endpoints([2])}, rev=2)
        await world.kernel_becomes([1, 2, 3])
        # The same over one that was good before: it counts as absent.
        await world.put_all(objects, rev=3)
        await world.kernel_becomes([1, 3])


@scenario
async def test_objects_beyond_the_limit_are_left_out_counted_logged_once_and_told(tmp_path: Path) -> None:
    probe = Probe()
    async with World.made(tmp_path) as world:
        await world.put_all({**POOL, **endpoints(range(1, 10))})
        world.start_agent(**probe.settings, FELIX_MAXOBJECTS="11")  # with what the node says of itself
        await world.says("in-sync")
        await world.put(endpoints(range(10, 16)))
        await world.put_all({**POOL, **endpoints(range(1, 16))}, rev=2)
        await world.says("degraded", "6 objects beyond FELIX_MAXOBJECTS=11 are left out")
        assert kernel_pairs() == pairs(range(1, 10))
        assert await probe.metric("felixpy_objects_left_out") == 6
        assert len(world.events("object limit")) == 1
        # Changes and deletions of what was taken pass; so does what is left out, once there is room and it changes.
        changed = {**endpoints(range(2, 9)), endpoint_topic(9): endpoint(9, at=99)}
        await world.put({endpoint_topic(1): None, **changed})
        await world.kernel_members_become(members(changed))
        await world.put({endpoint_topic(10): endpoint(10, at=100)})
        changed[endpoint_topic(10)] = endpoint(10, at=100)
        await world.kernel_members_become(members(changed))
        left = {**POOL, **changed}
        await world.put({**dict.fromkeys(endpoints(range(11, 16))), **left})
        await world.put_all(left, rev=3)
        await world.says("in-sync")
        assert await probe.metric("felixpy_objects_left_out") == 0


def write_endpoints(folder: Path, numbers: range) -> None:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        (folder / f"{number}.json").write_bytes(encode(endpoint(number)))


@scenario
async def test_directory_that_cannot_be_read_has_its_own_reason_and_deletes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "resources"
    write_endpoints(folder, range(1, 6))
    # Root may read everything unless it gives that capability up.
    without_override = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--")
    async with World.made(tmp_path) as world:
        world.start_agent(before=without_override, FELIX_MQTTHOST="", FELIX_RESOURCEDIRECTORY=str(folder))
        await world.kernel_becomes(range(1, 6))
        before, monitor = kernel(), await world.monitor()
        os.chown(folder, NOBODY, NOBODY)
        for mode, words in (
            (0o700, "cannot be read: Permission denied"),
            (0o744, "the file cannot be read: Permission"),
        ):
            folder.chmod(mode)
            await until(lambda words=words: any(words in one["reason"] for one in world.events("stream")))
            folder.chmod(0o755)
            await until(lambda: world.events("stream")[-1]["state"] == "in-sync")
        assert kernel() == before
        assert await monitor.lines() == []
        folder.rename(tmp_path / "elsewhere")
        folder.write_text("a file")
        await until(lambda: "Not a directory" in world.events("stream")[-1]["reason"])
        assert kernel() == before
