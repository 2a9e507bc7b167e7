"""The benchmark's network: the demo's lab, thousands of interfaces on one node, a publisher with a clock.

``node1`` is measured: workloads whose interfaces are both ends of veth pairs inside it, and two that really are
elsewhere and send packets. ``node2`` has no agent: comparators run there, and two workloads with routes by hand and no
rules. Invariant: everything is gone when the block is left, also on failure or Ctrl-C.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType

import aiomqtt

from bench.notifications import Observer
from bench.publisher import WINDOW, Publisher
from bench.workloads import NODE, SPARE, SPARES, Workload, cluster, scopes
from felixpy.demo import topology
from felixpy.demo.host import Host
from felixpy.demo.lab import TOPIC_ROOT, Lab
from felixpy.demo.resources import workload_endpoint
from felixpy.demo.topology import Mode, PodSpec
from felixpy.model.net import Family
from felixpy.mqtt import topics
from felixpy.mqtt.ledger import counted

SERVER = PodSpec("server", NODE, {Family.V4: "10.64.250.1", Family.V6: "fd00:64::900:1"})
"""A workload that answers on TCP and UDP; always there."""
NEWCOMER = PodSpec("newcomer", NODE, {Family.V4: "10.64.250.2", Family.V6: "fd00:64::900:2"})
"""A workload that sends packets; comes and goes."""
PLAIN_SERVER = PodSpec("plainserver", "node2", {Family.V4: "10.64.251.1", Family.V6: "fd00:64::910:1"})
PLAIN_CLIENT = PodSpec("plainclient", "node2", {Family.V4: "10.64.251.2", Family.V6: "fd00:64::910:2"})
PODS = (SERVER, NEWCOMER, PLAIN_SERVER, PLAIN_CLIENT)


class QuietLab(Lab):
    """The lab, following no endpoint's status: ten thousand of them would cost the processor that is measured."""

    async def _follow(self, client: aiomqtt.Client, connected: asyncio.Future[None]) -> None:
        client.pending_calls_threshold = 100_000
        async with client:
            await client.subscribe(f"{TOPIC_ROOT}/status/+", qos=1)
            connected.set_result(None)
            async for message in client.messages:
                if isinstance(message.payload, (bytes, bytearray)) and message.payload:
                    self.status[message.topic.value.rpartition("/")[2]] = json.loads(message.payload)
                    self.status_changed.set()

    @property
    def broker_socket(self) -> Path:
        return self._broker_socket


class World:
    """One running network. ``size`` is the number of workloads preloaded."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self.lab = QuietLab(mode, PODS)
        self.size = 0
        self.retained: dict[str, bytes] = {}
        self._publisher: Publisher | None = None
        self.node_seen: Observer
        self.other_seen: Observer
        self._observers: list[Observer] = []
        self._interfaces = 0

    @property
    def families(self) -> tuple[Family, ...]:
        return self.mode.families

    @property
    def node(self) -> Host:
        """The node that is measured."""
        return self.lab.node("node1")

    @property
    def publisher(self) -> Publisher:
        assert self._publisher is not None
        return self._publisher

    @property
    def other(self) -> Host:
        """The node where comparators run."""
        return self.lab.node("node2")

    async def __aenter__(self) -> World:
        try:
            await self.lab.__aenter__()
            await self.lab.start_broker()
            self._publisher = await Publisher.connect(self.lab.broker_socket)
            await self._make_spares()
            await self._route_plainly()
            self.node_seen = await self._observe(self.node)
            self.other_seen = await self._observe(self.other)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        for observer in self._observers:
            await observer.close()
        if self._publisher is not None:
            self._publisher.close()
        await self.lab.close()

    async def _observe(self, host: Host) -> Observer:
        observer = await Observer.start(host)
        self._observers.append(observer)
        return observer

    @contextlib.asynccontextmanager
    async def unobserved(self) -> AsyncIterator[None]:
        """Nobody but its agent hears meanwhile of what changes on the measured node.

        On a virtual machine it takes 40 µs of whoever writes to wake a listener up on a processor that rests, and
        nothing on the same one: more than the kernel takes for a node.
        """
        self._observers.remove(self.node_seen)
        await self.node_seen.close()
        try:
            yield
        finally:
            self.node_seen = await self._observe(self.node)

    # --- interfaces ----------------------------------------------------------------------------------------------

    async def _make_spares(self) -> None:
        for host in (self.node, self.other):
            await host.sysctl("ipv6/conf/default/addr_gen_mode", 1)  # addresses of their own are not measured
            await self._add_interfaces(host, range(SPARE, SPARE + SPARES))

    async def _add_interfaces(self, host: Host, numbers: range) -> None:
        commands = []
        for one, two in zip(numbers[::2], numbers[1::2], strict=True):
            names = Workload(one).interface, Workload(two).interface
            commands.append(f"link add {names[0]} type veth peer name {names[1]}")
            commands += [f"link set {name} up" for name in names]
        if commands:
            await host.ip(commands)

    async def _route_plainly(self) -> None:
        """Workloads on the other node that reach each other without any agent or rule."""
        commands = []
        for pod in (PLAIN_SERVER, PLAIN_CLIENT):
            commands += [f"route add {pod.addresses[f]}/{f.bits} dev {pod.interface}" for f in self.families]
        await self.other.ip(commands)
        for family in self.families:
            await self.other.sysctl(f"ipv{family.version}/conf/all/forwarding", 1)
        for pod in PODS:
            # Answers that a proxy would have to give come with retries of seconds: not what is measured.
            permanent = [f"neigh replace {topology.GATEWAY_V4} dev eth0 lladdr {topology.HOST_MAC} nud permanent"]
            permanent.append(
                f"neigh replace {topology.HOST_LINK_LOCAL} dev eth0 lladdr {topology.HOST_MAC} nud permanent"
            )
            keep = [c for c, f in zip(permanent, (Family.V4, Family.V6), strict=True) if f in self.families]
            await self.lab.pod(pod.name).ip(keep)

    async def grow(self, size: int) -> None:
        """Make interfaces for ``size`` workloads and retain everything that an agent finds then, with manifests.

        Networks only grow: making and deleting ten thousand interfaces is what takes time.
        """
        wanted = size + size % 2
        if wanted > self._interfaces:
            await self._add_interfaces(self.node, range(self._interfaces, wanted))
            self._interfaces = wanted
        content = cluster(self.families, size)
        content[pod_topic(SERVER)] = pod_payload(SERVER, self.families)
        for scope, members in scopes(content).items():
            ledger = counted({topic: content[topic] for topic in members}, None, "bench")
            content[topics.manifest_topic(scope)] = ledger.manifest().encode()
        changes = {topic: payload for topic, payload in content.items() if self.retained.get(topic) != payload}
        changes |= {topic: b"" for topic in self.retained if topic not in content}
        await self.publish_all(changes)
        self.retained, self.size = content, size

    # --- stream --------------------------------------------------------------------------------------------------

    async def publish(self, topic: str, payload: bytes) -> int:
        """Publish one retained message; returns the monotonic nanosecond at which it went to the socket."""
        at = self.publisher.publish(f"{TOPIC_ROOT}/{topic}", payload)
        await self.publisher.settled()
        return at

    async def publish_all(self, content: dict[str, bytes], *, root: str = TOPIC_ROOT) -> tuple[int, int]:
        """Publish many; returns when the first and the last went to the socket."""
        times = []
        for topic, payload in content.items():
            await self.publisher.settled(WINDOW - 1)
            times.append(self.publisher.publish(f"{root}/{topic}", payload))
        await self.publisher.settled()
        return (times[0], times[-1]) if times else (0, 0)


def pod_topic(pod: PodSpec) -> str:
    """Topic of one of the workloads that send packets."""
    return f"wep/{pod.node}/default/{pod.endpoint}"


def pod_payload(pod: PodSpec, families: tuple[Family, ...]) -> bytes:
    return json.dumps(workload_endpoint(pod, families)).encode()
