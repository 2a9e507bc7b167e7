"""What the agent says and does from start to stop, as a process of its own and in this one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from felixpy.agent import leftovers
from felixpy.agent.agent import Agent
from felixpy.agent.inbox import BURST_UPDATES
from felixpy.config import Settings
from felixpy.demo.agent import FELIXPY, environment
from felixpy.demo.patience import limit
from felixpy.demo.resources import Object, ip_pool
from felixpy.model.documents import load_text
from felixpy.model.net import Net
from felixpy.model.resources import IPAMBlock, IPPool, Kind, Node, Resource, ResourceKey, Update
from felixpy.mqtt.batch import prepare
from felixpy.mqtt.publisher import open_publisher
from felixpy.sources import SyncState, SyncStatus
from tests.agent.bench import (
    GOOD,
    LEGACY,
    NFT,
    NFTABLES,
    NODE,
    POOLS,
    ROOT,
    Stream,
    dump,
    endpoint,
    routes,
    running,
    stream_to,
    topic_of,
)
from tests.broker import Broker
from tests.kernel import ip, run

BACKENDS = {"nftables": NFTABLES, "legacy": LEGACY, "nft": NFT}
backends = pytest.mark.parametrize("environ", BACKENDS.values(), ids=BACKENDS.keys())


async def apply(broker: Broker, *documents: Object) -> None:
    """Publish with true manifests, as ``felixpy apply`` does."""
    settings = Settings(mqtt_host="127.0.0.1", mqtt_port=broker.port, mqtt_topic_root=ROOT)
    async with open_publisher(settings) as publisher:
        await publisher.apply(prepare(load_text(msgspec.json.encode(documents), "test")))


class Process:
    """``felixpy run`` as systemd starts it."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self._log = log

    def log(self) -> list[dict[str, str]]:
        """Its structured events; whatever else it printed fails the test."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    async def state(self, stream: Stream, state: str) -> None:
        async with limit(60):
            while stream.status.get(NODE, {}).get("state") != state:
                assert self.process.returncode is None, self._log.read_text()
                await asyncio.sleep(0.01)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        async with limit(60):
            return await self.process.wait()


@asynccontextmanager
async def agent_process(broker: Broker, log: Path, environ: Mapping[str, str], *command: str) -> AsyncIterator[Process]:
    variables = {
        "NODENAME": NODE, "FELIX_MQTTHOST": "127.0.0.1", "FELIX_MQTTPORT": str(broker.port),
        "FELIX_SNAPSHOTQUIETTIME": "0.1", **environ,
    }  # fmt: skip
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(command or (*FELIXPY, "run")), env=environment(variables), stdout=output, stderr=output
        )
    try:
        yield Process(process, log)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@backends
def test_sigterm_ends_with_code_0_and_leaves_the_kernel(
    broker: Broker, tmp_path: Path, environ: Mapping[str, str]
) -> None:
    async def scenario() -> None:
        async with stream_to(broker) as stream, agent_process(broker, tmp_path / "log", environ) as agent:
            await stream.put(*POOLS, GOOD)
            await agent.state(stream, "in-sync")
            before = dump()
            assert await agent.end() == 0
            await agent_is_offline(stream, "stopped")
            assert dump() == before
            assert routes() == {"10.48.0.1", "fd00:48::1"}
            assert [event for event in agent.log() if event["level"] in ("error", "critical")] == []

    asyncio.run(scenario())


async def agent_is_offline(stream: Stream, *reasons: str) -> None:
    async with limit(60):
        while stream.status.get(NODE) not in [{"state": "offline", "reason": one} for one in reasons]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_status_from_start_to_stop(broker: Broker) -> None:
    async def scenario() -> None:
        async with stream_to(broker) as watcher:
            async with running(broker) as agent:
                await agent.until(lambda: agent.stream.status.get(NODE, {}).get("state") == "resync", "resync")
                assert agent.stream.status[NODE]["families"]["6"] == {"ready": False}
                await apply(broker, *POOLS, GOOD)
                await agent.in_sync()
                status = agent.stream.status[NODE]
                assert {k: v for k, v in status.items() if k not in ("ts", "mtu", "policies")} == {
                    "state": "in-sync", "reason": "", "got": status["want"], "want": status["got"],
                    "families": {"4": {"ready": True}, "6": {"ready": True}},
                    "backend": "nftables", "endpoints": 1, "problems": [], "problem_count": 0,
                    "version": status["version"], "hostname": NODE,
                }  # fmt: skip
                good = await agent.endpoint_is("good", "up")
                assert good["agent_ms"] > 0
            await agent_is_offline(watcher, "stopped")
            states = [payload["state"] for key, payload in watcher.history if key == NODE]
            assert states[-2:] == ["in-sync", "offline"]

    asyncio.run(scenario())


def test_nothing_waits_for_the_look_for_leftovers(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts the tools of other back-ends, which may take seconds: the status is told and updates are written."""
    asked, told = asyncio.Event(), asyncio.Event()

    async def look_until_told(*_: object) -> list[str]:
        asked.set()
        await told.wait()
        return []

    monkeypatch.setattr(leftovers, "remove_leftovers", look_until_told)

    async def scenario() -> None:
        async with running(broker, NFTABLES) as one:
            try:
                await one.stream.put(*POOLS, GOOD)
                await one.until(asked.is_set, "the look for leftovers")
                await one.in_sync()
                assert all(family["ready"] for family in one.stream.status[NODE]["families"].values())
                await one.stream.put(endpoint("meanwhile", 2))
                await one.endpoint_is("meanwhile", "up")
                assert one.agent.leftovers.due
            finally:
                told.set()

    asyncio.run(scenario())


def test_an_incomplete_snapshot_is_degraded_and_removes_nothing(broker: Broker) -> None:
    async def scenario() -> None:
        await apply(broker, *POOLS, GOOD, endpoint("other", 2))
        async with running(broker) as agent:
            await agent.in_sync()
            await agent.endpoint_is("other", "up")
        before = dump()
        async with stream_to(broker) as stream:
            await stream.raw(topic_of(GOOD), b"")  # a broker that lost a message: the manifest still counts it
        async with running(broker) as agent:
            await agent.until(lambda: agent.stream.status.get(NODE, {}).get("state") == "degraded", "degraded")
            status = agent.stream.status[NODE]
            assert (status["got"], status["want"]) == (3, 4)
            assert "snapshot incomplete: wep 1/2" in status["reason"]
            assert agent.agent.is_ready()[0] is False
            assert agent.events("stream", state="degraded")[0]["log_level"] == "warning"
            assert dump() == before
            await agent.stream.raw(topic_of(GOOD), msgspec.json.encode(GOOD))  # as it was published
            await agent.in_sync()
            assert dump() == before

    asyncio.run(scenario())


def test_broker_away_at_start_adopts_and_deletes_nothing(broker: Broker) -> None:
    async def scenario() -> None:
        async with running(broker) as agent:
            await agent.stream.put(*POOLS, GOOD)
            await agent.in_sync()
        before = dump()
        async with running(broker, {**NFTABLES, "FELIX_MQTTPORT": "1"}) as agent:  # nobody listens there
            await agent.until(lambda: agent.events("stream lost"), "the refusal")
            await agent.quiet()
            (adopted,) = agent.events("adopted")
            assert (adopted["routes"], adopted["ipv4-sets"], adopted["ipv6-sets"]) == (2, 4, 4)
            status = agent.agent.status()
            assert status["state"] == "starting"
            assert "127.0.0.1:1 refuses connections" in status["reason"]
            assert "entries that the kernel had at the start stay until the stream is complete" in status["reason"]
            ready, why = agent.agent.is_ready()
            assert not ready
            assert "127.0.0.1:1 refuses connections" in why
            assert dump() == before
            assert agent.metric("felixpy_kernel_writes_total") == 0

    asyncio.run(scenario())


OF_A_YOUNG_LINK = re.compile("fe80::|proto kernel|valid_lft|^$")
"""The kernel gives a link its IPv6 address some time after it came up."""


@backends
def test_a_restart_writes_nothing(broker: Broker, environ: Mapping[str, str]) -> None:
    async def scenario() -> None:
        async with running(broker, environ) as agent:
            await agent.stream.put(*POOLS, GOOD)
            await agent.in_sync()
            await agent.endpoint_is("good", "up")
            assert agent.metric("felixpy_kernel_writes_total") > 10
        before = dump()
        monitors = [
            await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
            for command in (("ip", "monitor", "route", "neigh", "address", "link"), ("nft", "monitor"))
        ]
        await asyncio.sleep(0.2)
        async with running(broker, environ) as agent:
            await agent.in_sync()
            await agent.quiet()
            assert agent.metric("felixpy_kernel_writes_total") == 0
            assert agent.events("settings changed") == []
        for monitor in monitors:
            monitor.terminate()
            output, _ = await monitor.communicate()
            assert [line for line in output.decode().splitlines() if not OF_A_YOUNG_LINK.search(line)] == []
        assert dump() == before

    asyncio.run(scenario())


BUG = """
from felixpy.{module} import {thing}
def bug(*arguments, **named):
    raise ZeroDivisionError("a bug in {thing}")
{thing}.{method} = bug
from felixpy.commands.main import main
main()
"""


@pytest.mark.parametrize(
    ("module", "thing", "method", "reason"),
    [
        ("agent.agent", "Agent", "_take", "stopped"),  # in the loop
        ("netlink.monitor", "Monitor", "read", "stopped"),  # in a notification
        ("sources.mqtt", "MqttSource", "_receive", "will"),  # in a message: the client is lost
        ("mqtt.snapshot", "Snapshot", "on_tick", "failed; its log says why"),  # in a part of the source
    ],
)
def test_a_bug_ends_the_process(
    broker: Broker, tmp_path: Path, module: str, thing: str, method: str, reason: str
) -> None:
    program = BUG.format(module=module, thing=thing, method=method)

    async def scenario() -> None:
        command = (sys.executable, "-c", program, "run")
        async with (
            stream_to(broker) as stream,
            agent_process(broker, tmp_path / "log", NFTABLES, *command) as agent,
        ):
            await stream.put(*POOLS)
            async with limit(60):
                while agent.process.returncode is None:
                    if NODE in stream.status:
                        ip("addr add 192.0.2.7/24 dev eth0", "addr del 192.0.2.7/24 dev eth0")
                    await asyncio.sleep(0.1)
            assert agent.process.returncode == 1
            text = (tmp_path / "log").read_text()
            assert f"ZeroDivisionError: a bug in {thing}" in text
            # An agent that could not write its last status in time leaves that to its will, and says so. One that
            # the kernel told something before it was connected was never online.
            unwritten = ["will"] if "could not write the last status" in text else []
            if '"stream connected"' in text:
                await agent_is_offline(stream, reason, *unwritten)

    asyncio.run(scenario())


def test_a_directory_is_followed_into_the_kernel(broker: Broker, tmp_path: Path) -> None:
    folder = tmp_path / "resources"

    async def scenario() -> None:
        async with running(broker, directory=folder) as agent:
            await agent.until(lambda: agent.agent.stream.state == "degraded", "the missing directory")
            assert f"{folder} does not exist" in agent.agent.status()["reason"]
            folder.mkdir()
            good = folder / "good.json"
            (folder / "pools.json").write_text(json.dumps(POOLS))
            good.write_text(json.dumps(GOOD))
            await agent.until(lambda: routes() == {"10.48.0.1", "fd00:48::1"}, "the endpoint")
            await agent.until(lambda: agent.agent.status()["state"] == "in-sync", "in-sync")
            before = dump()
            good.write_text(json.dumps(GOOD)[:100])  # half-written
            await agent.until(lambda: agent.agent.stream.state == "degraded", "the half file")
            await agent.quiet()
            assert f"{good}, document 1: is not YAML" in agent.events("bad document")[-1]["reason"]
            assert dump() == before
            good.write_text(json.dumps(endpoint("good", 2, interface="cali1")))
            await agent.until(lambda: routes() == {"10.48.0.2", "fd00:48::2"}, "the changed endpoint")
            good.unlink()
            await agent.until(lambda: routes() == set(), "the end of the endpoint")

    asyncio.run(scenario())


def test_a_directory_that_vanishes_takes_nothing_along(broker: Broker, tmp_path: Path) -> None:
    folder = tmp_path / "resources"
    folder.mkdir()
    (folder / "all.json").write_text(json.dumps([*POOLS, GOOD, ip_pool("ipip", "10.77.0.0/16", ipipMode="Always")]))

    async def scenario() -> None:
        async with running(broker, directory=folder) as agent:
            await agent.until(lambda: agent.agent.status()["state"] == "in-sync", "in-sync")
            assert "Node n1" in agent.problems  # no tunnel without an address of the node
            before = dump()
            folder.rename(tmp_path / "elsewhere")
            await agent.until(lambda: agent.agent.stream.state == "degraded", "the missing directory")
            await agent.quiet()
            assert dump() == before
            assert "kept as they were" in agent.agent.status()["reason"]
            run("ip", "link", "set", "cali1", "down")
            run("ip", "link", "set", "cali1", "up")
            await agent.until(lambda: routes() == {"10.48.0.1", "fd00:48::1"}, "the routes of a link that flapped")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("kind", "at_once", "taken"),
    [
        (Kind.WORKLOAD_ENDPOINT, 1, 1),
        (Kind.WORKLOAD_ENDPOINT, BURST_UPDATES, 10 * BURST_UPDATES),
    ],
    ids=["one", "burst"],
)
def test_a_burst_is_collected_and_one_update_is_not_held_back(kind: Kind, at_once: int, taken: int) -> None:
    agent = Agent(Settings(nodename="n1"))

    async def scenario() -> None:
        source = asyncio.create_task(deliver())
        await asyncio.sleep(0)
        await agent.inbox.collect()
        assert len(agent.inbox) == taken
        source.cancel()

    async def deliver() -> None:
        for number in range(10 * at_once):
            agent.update(Update(ResourceKey(kind, f"w{number}", "default"), None))
            if (number + 1) % at_once == 0:
                await asyncio.sleep(0)

    asyncio.run(scenario())


def test_a_block_without_its_node_waits_for_it_and_not_for_long(network: None) -> None:
    """Nothing becomes of it yet; so the node and its blocks are one apply, however far apart their messages are."""
    agent = Agent(Settings(nodename="n1"))

    def block(number: int, node: str) -> IPAMBlock:
        return IPAMBlock(ResourceKey(Kind.IPAM_BLOCK, f"b{number}"), Net.parse(f"10.48.{number}.0/26"), node)

    pool = IPPool(ResourceKey(Kind.IP_POOL, "four"), Net.parse("10.48.0.0/16"), 26)
    node = Node(ResourceKey(Kind.NODE, "n2"), Net.parse_interface("192.0.2.2/24"))

    async def takes(*resources: Resource) -> bool:
        """Whether they are taken although nothing else comes, in two turns of the event loop for each."""
        await agent._calm.wait()
        for resource in resources:
            agent.update(Update(resource.key, resource))
        for _ in resources:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return not agent.inbox

    async def taken() -> None:
        while agent.inbox:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.001)

    async def scenario() -> None:
        agent.sync_status(SyncStatus(SyncState.IN_SYNC))
        task = asyncio.create_task(agent.run())
        await agent.known.wait()
        try:
            assert await takes(pool)
            assert not await takes(block(1, "n2"), block(2, "n2"))
            assert await takes(node)
            assert len([*agent.calculation.keys_of(node.key)]) > 0
            assert {block(1, "n2").key, block(2, "n2").key} <= agent.store.blocks.keys()
            assert await takes(block(3, "n2")), "its node is known"
            assert await takes(block(4, "n1")), "it is this node's own"
            assert not await takes(block(5, "n3"))
            async with asyncio.timeout(30):
                await taken()
            assert await takes(block(5, "n4")), "there was another word of it"
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    asyncio.run(scenario())
