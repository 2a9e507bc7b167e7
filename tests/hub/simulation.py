"""One hub with a large cluster, measured: ``python -m tests.hub.simulation --pods 150000 --nodes 5000 --readers 4``.

The hub is the product's, fed with pods as the API server writes them; the broker is a real Mosquitto; readers are the
MQTT sources of so many nodes, in a process of their own. What 5,000 readers would take is what one takes, 5,000 times.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import resource
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec

from felixpy.config import MqttPeers, Settings
from felixpy.hub.content import ClusterContent
from felixpy.hub.objects import pod_reader, read_node
from felixpy.hub.peers import PeerTable
from felixpy.hub.writing import Writing
from felixpy.kubernetes.access import Access, Identity
from felixpy.kubernetes.client import Api
from felixpy.sources import SyncState, SyncStatus
from felixpy.sources.mqtt import MqttSource
from tests.broker import Broker

CONFIG = ("allow_anonymous true", "max_queued_messages 1000000", "max_inflight_messages 0", "max_queued_bytes 0")
NAMESPACES, DEPLOYMENTS = 100, 3000


class Reader:
    """A node's sink that counts."""

    def __init__(self) -> None:
        self.updates = 0
        self.in_sync = asyncio.Event()
        self.heard = asyncio.Event()

    def update(self, update: Any) -> None:
        self.updates += 1
        self.heard.set()

    def sync_status(self, status: SyncStatus) -> None:
        if status.state is SyncState.IN_SYNC:
            self.in_sync.set()

    def ignored(self, what: str) -> None:
        raise AssertionError(what)


def pod(number: int, nodes: int, version: int = 0) -> msgspec.Raw:
    """A pod of some 4 KiB, as a real one; another ``version`` has another address."""
    app = number % DEPLOYMENTS
    labels = {"app": f"app-{app}", "pod-template-hash": f"{app * 7919:x}", "tier": "backend" if app % 3 else "frontend"}
    address = f"10.{128 + 32 * version + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
    both = [{"ip": address}, {"ip": f"fd00:48::1:{number >> 16:x}:{number & 65535:x}"}]
    return msgspec.Raw(
        msgspec.json.encode(
            {
                "metadata": {
                    "name": f"app-{app}-{number:06d}",
                    "namespace": f"ns-{app % NAMESPACES}",
                    "uid": f"u{number}",
                    "labels": labels,
                    "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:x": "y" * 2500}}],
                },
                "spec": {
                    "nodeName": f"node-{number % nodes}",
                    "serviceAccountName": f"account-{app % 7}",
                    "containers": [
                        {"name": "c", "image": "i" * 200, "ports": [{"name": "http", "containerPort": 8080}]}
                    ],
                },
                "status": {"phase": "Running", "podIP": address, "podIPs": both},
            }
        )
    )


def node(number: int) -> msgspec.Raw:
    addresses = [{"type": "InternalIP", "address": f"172.{16 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"}]
    ranges = [f"10.{number >> 8 & 127}.{number & 255}.0/24"]
    return msgspec.Raw(
        msgspec.json.encode(
            {"metadata": {"name": f"node-{number}"}, "spec": {"podCIDRs": ranges}, "status": {"addresses": addresses}}
        )
    )


def settings_for(broker: int, name: str) -> Settings:
    return Settings(nodename=name, mqtt_host="127.0.0.1", mqtt_port=broker, mqtt_peers=MqttPeers.HUB,
                    snapshot_timeout=60.0, max_objects=1_000_000)  # fmt: skip


def read(port: int, readers: int, pipe: Connection) -> None:
    """Nodes: says how long each took to be in sync, then what arrives."""

    async def run() -> None:
        for number in range(readers):
            began, used = time.monotonic(), time.process_time()
            sink, source = Reader(), MqttSource(settings_for(port, f"node-{number}"), f"node-{number}")
            task = asyncio.create_task(source.run(sink))
            await sink.in_sync.wait()
            pipe.send(
                (time.monotonic() - began, time.process_time() - used, source.bytes, source.messages, sink.updates)
            )
            if number < readers - 1:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        pipe.send(memory())
        while True:
            if await asyncio.to_thread(pipe.poll, 0.1):
                pipe.recv()
                pipe.send((source.bytes, source.messages, sink.updates, time.process_time()))

    asyncio.run(run())


def ask(pipe: Connection) -> Any:
    pipe.send(None)
    return pipe.recv()


def filled(broker: int, pods: int, nodes: int) -> ClusterContent:
    """A cluster of so many pods and nodes, as a hub has read it."""
    cluster = ClusterContent(settings_for(broker, "hub"), Api(Access(Identity("http://nowhere"))), PeerTable("e"))
    for _, follower in cluster._kinds:
        follower.listed()
    for number in range(nodes):
        cluster._nodes.changed(("", f"node-{number}"), read_node(node(number)))
    for number in range(pods):
        pod_changed(cluster, number, nodes, version=0)
    cluster._pods.listed()
    cluster._nodes.listed()
    return cluster


def pod_changed(cluster: ClusterContent, number: int, nodes: int, version: int = 1) -> None:
    """The API server tells of a pod."""
    found = _take(pod(number, nodes, version))
    assert found.endpoint is not None
    cluster._pods.changed((found.endpoint.key.namespace, found.endpoint.key.name), found)


_take = pod_reader("cali")


async def simulate(broker: Broker, pods: int, nodes: int, readers: int, seconds: int, rate: int) -> None:
    """Fill, read, change."""
    began, used = time.monotonic(), time.process_time()
    cluster = filled(broker.port, pods, nodes)
    print(f"taken from the API: {time.monotonic() - began:.1f} s, {time.process_time() - used:.1f} s of processor, "
          f"{len(cluster.content)} topics, {cluster.peers.identities} identities, "
          f"hub {mebibytes(memory())}", flush=True)  # fmt: skip
    writing = Writing(cluster._settings, cluster)
    began, used = time.monotonic(), time.process_time()
    task = asyncio.create_task(writing.run())
    while not writing.in_sync:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    print(f"to an empty broker: {time.monotonic() - began:.1f} s, {time.process_time() - used:.1f} s of processor, "
          f"{writing.counts.topics} messages; hub {mebibytes(memory())}, "
          f"at most {mebibytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)}", flush=True)  # fmt: skip
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    began, used = time.monotonic(), time.process_time()
    again = Writing(cluster._settings, cluster)
    task = asyncio.create_task(again.run())
    while not again.in_sync:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    print(f"another hub goes on: {time.monotonic() - began:.1f} s, {time.process_time() - used:.1f} s of processor, "
          f"{again.counts.topics} messages", flush=True)  # fmt: skip
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=read, args=(broker.port, readers, theirs))
    process.start()
    try:
        for number in range(readers):
            took, spent, size, messages, updates = await asyncio.to_thread(ours.recv)
            print(f"node {number} in sync: {took:.1f} s, {spent:.1f} s of processor, {size / 1e6:.1f} MB, "
                  f"{messages} messages, {updates} updates", flush=True)  # fmt: skip
        print(
            f"memory of a node's source (no calculation): {mebibytes(await asyncio.to_thread(ours.recv))}", flush=True
        )
        first = await asyncio.to_thread(ask, ours)
        topics, used, began = again.counts.topics, time.process_time(), time.monotonic()
        for second in range(seconds):
            for number in range(rate):
                pod_changed(cluster, (second * rate + number) * 7 % pods, nodes)
            await asyncio.sleep(max(0.0, began + second + 1 - time.monotonic()))
        last = first
        while last[2] < first[2] + seconds * rate:
            await asyncio.sleep(0.1)
            last = await asyncio.to_thread(ask, ours)
        print(f"{rate} changes a second for {seconds} s, all known to a node after {time.monotonic() - began:.1f} s: "
              f"hub {time.process_time() - used:.1f} s of processor, "
              f"{again.counts.topics - topics} messages; a node {(last[0] - first[0]) / 1e3:.0f} kB, "
              f"{last[1] - first[1]} messages, {last[2] - first[2]} updates, {last[3] - first[3]:.2f} s of processor; "
              f"{nodes} nodes: {(last[0] - first[0]) * nodes / seconds / 1e6:.1f} MB and "
              f"{(last[1] - first[1]) * nodes / seconds:.0f} messages a second", flush=True)  # fmt: skip
    finally:
        process.kill()
        process.join()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def memory() -> int:
    """What this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def mebibytes(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("pods", 150_000), ("nodes", 5_000), ("readers", 4), ("seconds", 20), ("rate", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        broker = Broker(Path(folder), CONFIG)
        broker.start()
        stack.callback(broker.stop)
        asyncio.run(simulate(broker, **vars(options)))


if __name__ == "__main__":
    main()
