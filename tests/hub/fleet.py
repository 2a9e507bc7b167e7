"""Many nodes on one broker, measured: ``python -m tests.hub.fleet --nodes 300 --pods-per-node 30``.

The hub is the product's, fed with pods as the API server writes them; the broker is a real Mosquitto; each node is the
product's MQTT source with a connection of its own, in a few processes. What is not there is the nodes' calculation.

    all nodes start at once ─► pods change ─► another hub takes over ─► the broker loses everything
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from felixpy.hub.writing import Writing
from felixpy.sources import SyncState, SyncStatus
from felixpy.sources.mqtt import MqttSource
from tests.broker import Broker
from tests.hub.simulation import CONFIG, Reader, filled, mebibytes, memory, pod_changed, settings_for


class Counts(NamedTuple):
    """What the nodes of a process have heard: sums, and the least that one of them has."""

    in_sync: int
    messages: int
    bytes: int
    updates: int
    least: int
    processor: float
    memory: int


class Node(Reader):
    """A sink that knows whether its source is in sync now."""

    def sync_status(self, status: SyncStatus) -> None:
        if status.state is SyncState.IN_SYNC:
            self.in_sync.set()
        else:
            self.in_sync.clear()


def run_nodes(port: int, names: Sequence[str], pipe: Connection) -> None:
    """Nodes of one process: says what they have heard whenever it is asked."""

    async def run() -> None:
        sinks = [Node() for _ in names]
        sources = [MqttSource(settings_for(port, name), name) for name in names]
        tasks = [asyncio.create_task(source.run(sink)) for source, sink in zip(sources, sinks, strict=True)]
        while True:
            if not await asyncio.to_thread(pipe.poll, 0.2):
                for task in tasks:
                    if task.done():
                        task.result()
                continue
            pipe.recv()
            updates = [sink.updates for sink in sinks]
            pipe.send(
                Counts(
                    sum(sink.in_sync.is_set() for sink in sinks),
                    sum(source.messages for source in sources),
                    sum(source.bytes for source in sources),
                    sum(updates), min(updates), time.process_time(), memory(),
                )
            )  # fmt: skip

    asyncio.run(run())


class Fleet:
    """All nodes, in a few processes."""

    def __init__(self, port: int, nodes: int, processes: int) -> None:
        names = [f"node-{number}" for number in range(nodes)]
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for part in range(processes):
            ours, theirs = multiprocessing.Pipe()
            process = context.Process(target=run_nodes, args=(port, names[part::processes], theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    async def counts(self) -> Counts:
        for pipe in self._pipes:
            pipe.send(None)
        some = [await asyncio.to_thread(pipe.recv) for pipe in self._pipes]
        sums = [sum(column) for column in zip(*some, strict=True)]
        sums[4] = min(one.least for one in some)
        return Counts(*sums)

    async def until(self, condition: Any) -> Counts:
        while not condition(found := await self.counts()):  # noqa: ASYNC110  # a question each time
            await asyncio.sleep(0.1)
        return found

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


class Usage(NamedTuple):
    """Of a process, as the kernel counts it."""

    processor: float
    memory: int

    @classmethod
    def of(cls, pid: int) -> Usage:
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return cls((int(ticks[11]) + int(ticks[12])) / 100, pages * resource.getpagesize())


class Measuring:
    """One phase after another, each told as it ends: differences of counts, and what hub and broker used for it."""

    def __init__(self, broker: Broker, fleet: Fleet, nodes: int) -> None:
        self._broker, self._fleet, self._nodes = broker, fleet, nodes
        self._began = time.monotonic()
        self._before = Counts(0, 0, 0, 0, 0, 0.0, 0)
        self._hub, self._of_broker = time.process_time(), Usage.of(broker.pid)

    async def begin(self) -> Counts:
        self._before = await self._fleet.counts()
        self._began, self._hub, self._of_broker = time.monotonic(), time.process_time(), Usage.of(self._broker.pid)
        return self._before

    async def end(self, what: str, condition: Any, *, same_broker: bool = True) -> None:
        after = await self._fleet.until(condition)
        broker, before = Usage.of(self._broker.pid), self._before
        used = broker.processor - (self._of_broker.processor if same_broker else 0.0)
        print(
            f"{what}: {time.monotonic() - self._began:.1f} s",
            f"  to the nodes {after.messages - before.messages} messages, {(after.bytes - before.bytes) / 1e6:.1f} MB, "
            f"{after.updates - before.updates} updates",
            f"  processor: broker {used:.1f} s, hub {time.process_time() - self._hub:.1f} s, "
            f"all nodes {after.processor - before.processor:.1f} s",
            f"  memory: broker {mebibytes(broker.memory)}, hub {mebibytes(memory())}, "
            f"a node {after.memory / self._nodes / 2**20:.1f} MiB",
            sep="\n",
            flush=True,
        )

    def are_in_sync(self, counts: Counts) -> bool:
        return counts.in_sync == self._nodes


async def measure(broker: Broker, nodes: int, pods_per_node: int, processes: int, seconds: int, rate: int) -> None:
    pods = nodes * pods_per_node
    cluster = filled(broker.port, pods, nodes)
    async with contextlib.AsyncExitStack() as stack:
        writing = Writing(cluster._settings, cluster)
        task = asyncio.create_task(writing.run())
        while not writing.in_sync:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        print(f"{pods} pods on {nodes} nodes: {len(cluster.content)} topics, {cluster.peers.identities} identities")
        fleet = Fleet(broker.port, nodes, processes)
        stack.callback(fleet.end)
        phase = Measuring(broker, fleet, nodes)
        await phase.end("all nodes start at once", phase.are_in_sync)

        before = await phase.begin()
        for second in range(seconds):
            for number in range(rate):
                pod_changed(cluster, (second * rate + number) * 7 % pods, nodes)
            await asyncio.sleep(1)
        wanted = before.least + seconds * rate
        await phase.end(f"{rate} pods a second change, {seconds} s", lambda counts: counts.least >= wanted)

        await phase.begin()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        writing = Writing(cluster._settings, cluster)
        task = asyncio.create_task(writing.run())
        while not writing.in_sync:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        await phase.end("another hub takes over", phase.are_in_sync)

        await phase.begin()
        broker.kill()
        broker.start()
        await fleet.until(lambda counts: counts.in_sync < nodes)
        await phase.end("the broker loses everything", phase.are_in_sync, same_broker=False)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__)
    numbers = (("nodes", 300), ("pods-per-node", 30), ("processes", 4), ("seconds", 20), ("rate", 20))
    for name, default in numbers:
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # for those that are started, too
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        broker = Broker(Path(folder), CONFIG)
        broker.start()
        stack.callback(broker.stop)
        asyncio.run(measure(broker, **vars(options)))


if __name__ == "__main__":
    main()
