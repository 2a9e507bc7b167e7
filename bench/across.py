"""Across networks: what nodes, their addresses and the pools' mode cost, at few other nodes and at thousands.

On the network of ``bench.world``, with the agent of the measured node as a process of its own: other nodes are told of
by the stream (``bench.peers``), but for ``node2``, which is real and has an agent where packets travel. What is told of
a size is the number of other nodes, not of workloads. Invariant: a part that fails costs its own figures only.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench import bare_vxlan, peers
from bench.marks import CALLS, Mark, own_share, turns, written
from bench.peers import Content
from bench.results import Cell, Results
from bench.scenarios import ms
from bench.subject import BACKENDS, Subject
from bench.world import PLAIN_SERVER, SERVER, World
from felixpy.demo.agent import environment
from felixpy.demo.host import Host, LabError
from felixpy.demo.lab import TOPIC_ROOT
from felixpy.demo.topology import NODE2, Mode
from felixpy.model.net import Family

BACKEND = "nftables"
SIZES = (10, 1_000, 5_000)
QUICK_SIZES = (10, 1_000)
BLOCKS = 16
"""Blocks in each family of the node with many."""
SWITCHES = 10
SETTLES_S = 1.5
"""A device that was just made leads nobody through it for a second who has another way."""
PATIENCE_S = 60.0
OTHER_ROOT = f"{TOPIC_ROOT}-other"
SWITCHED_ALONE = "mode of a pool switched, IPv4, nexthop_compat_mode=0"
TWO_DEVICES, TOOLS = "Calico's two devices, plain routes", "ip -batch, bridge -batch"


class Way(NamedTuple):
    """Mode of the pools, where the node that comes is, and a family that it has no address of, which goes through the
    tunnel of the other one.
    """

    mode: str
    beyond: int = 0
    lacks: Family | None = None


WAYS = {
    "native": Way(peers.NATIVE),
    "VXLAN": Way(peers.TUNNEL),
    "CrossSubnet": Way(peers.CROSSING, peers.BEYOND),
    "IPv6 over IPv4": Way(peers.TUNNEL, lacks=Family.V6),
    "IPv4 over IPv6": Way(peers.TUNNEL, lacks=Family.V4),
}

Progress = Callable[[str], None]


@dataclass
class Network:
    """The world with so many other nodes, and the agent of the measured node."""

    world: World
    cell: Cell
    results: Results
    subject: Subject
    times: int

    def add(self, scenario: str, metric: str, *samples: float, subject: str = "felixpy", unit: str = "ms") -> None:
        self.results.add(self.cell, scenario, metric, *samples, subject=subject, unit=unit)

    async def change(self, scenario: str, content: Content) -> None:
        """Publish some objects at once, and note what that cost until the kernel had all of it."""
        content = {topic: payload for topic, payload in content.items() if self.world.retained.get(topic) != payload}
        if not content:
            return
        self.subject.marks.read()
        first = await _publish(self.world, content)
        *_, last = content
        marks = await self.subject.marks.until_applied(last, PATIENCE_S)
        if scenario:
            self._note(scenario, first, marks)

    async def settled(self) -> None:
        """Until the agent has led everybody through a device that was just made, and writes no more."""
        await asyncio.sleep(SETTLES_S)
        while any(mark.stage == "sent" for mark in self.subject.marks.read()):  # noqa: ASYNC110 - a file tells
            await asyncio.sleep(0.5)

    def _note(self, scenario: str, published: int, marks: Sequence[Mark]) -> None:
        begin = next(mark.at for mark in marks if mark.stage == "received")
        ends = [mark.at for mark in marks if mark.stage == "acknowledged"]
        costs = written(marks)
        self.add(scenario, "messages", costs.messages, unit="count")
        self.add(scenario, "sends", costs.sends, unit="count")
        if ends:
            self.add(scenario, "written", ms(ends[-1], published))
            self._note_time(scenario, marks, begin, ends[-1])

    def note_turn(self, scenario: str, marks: Sequence[Mark]) -> None:
        """Processor time of one turn of the apply loop that wrote, with what it had received."""
        ends = [mark.at for mark in marks if mark.stage == "acknowledged"]
        begin = next((mark.at for mark in marks if mark.stage == "received"), None)
        if ends and begin is not None:
            self._note_time(scenario, marks, begin, ends[-1])

    def _note_time(self, scenario: str, marks: Sequence[Mark], begin: int, end: int) -> None:
        self.add(scenario, "agent", own_share(marks, begin, end) / 1e6)
        calls = [mark for mark in marks if mark.stage in CALLS and begin <= mark.at < end]
        self.add(scenario, "kernel", sum(int(call.words[-1]) - call.spent for call in calls) / 1e6)


async def measure(results: Results, say: Progress, sizes: Sequence[int], *, quick: bool = False) -> None:
    """Measure everything, with so many other nodes.

    Raises:
        LabError: the network cannot be made.
    """
    async with World(Mode.DUAL) as world:
        await _cable(world)
        for size in sizes:
            cell = Cell(BACKEND, "dual", size)
            say(f"{size:,} other nodes: stream")
            await _retain(world, peers.cluster(world.families, size, peers.NATIVE))
            await _comparators(world, cell, results, 10 if quick else 30)
            await _cold_starts(world, cell, results, say)
            subject = await Subject.start(world, BACKEND)
            network = Network(world, cell, results, subject, 10 if quick else 25)
            parts: dict[str, Callable[[Network], Awaitable[None]]] = {
                "nodes that come and go": _nodes,
                "addresses of nodes": _addresses,
                "modes of pools": _modes,
            }
            try:
                await subject.ready()
                for name, part in parts.items():
                    say(f"{size:,} other nodes: {name}")
                    try:
                        await part(network)
                    except (TimeoutError, LabError) as error:
                        results.remark(f"{name}, {cell}: not measured to its end: {error}")
            finally:
                await subject.stop()
                await _clean(world, "node1")
        say("packets")
        await _retain(world, peers.cluster(world.families, 10, peers.CROSSING))
        await _packets(world, Cell(BACKEND, "dual", 10), results, 3 if quick else 10)


async def _cable(world: World) -> None:
    """Both real nodes get an address in the subnet of the others; no route by hand to the workload that answers."""
    for host in (world.node, world.other):
        for family in world.families:
            net = peers.SUBNET[family][host is world.other]
            await host.ip([f"addr add {net} dev eth0{' nodad' * (family is Family.V6)}"])
    routes = [f"route del {PLAIN_SERVER.addresses[family]} dev {PLAIN_SERVER.interface}" for family in world.families]
    await world.other.ip(routes)


async def _publish(world: World, content: Content) -> int:
    """Publish changes, of which no manifest tells; returns when the first went out."""
    first, _ = await world.publish_all(content)
    world.retained |= content
    return first


async def _retain(world: World, content: Content) -> None:
    """Have this retained and nothing else, with manifests, which an agent that starts needs."""
    changes = {topic: payload for topic, payload in content.items() if world.retained.get(topic) != payload}
    changes |= {topic: b"" for topic in world.retained if topic not in content}
    await world.publish_all(changes)
    world.retained = content


async def _clean(world: World, node: str) -> None:
    environment_of = world.lab.agent_environment(node, BACKENDS[BACKEND])
    await world.lab.agents[node].command(world.lab.node(node), environment_of, "cleanup")


async def _cold_starts(world: World, cell: Cell, results: Results, say: Progress) -> None:
    for kernel in ("empty", "correct"):
        say(f"{cell.size:,} other nodes: cold start, {kernel} kernel")
        subject = await Subject.start(world, BACKEND)
        try:
            at = await subject.ready()
            await asyncio.sleep(1.0)
            scenario = f"nodes: cold start, {kernel} kernel"
            results.add(cell, scenario, "in sync", ms(at, subject.started_at))
            costs = written(subject.start_marks + subject.marks.read())
            results.add(cell, scenario, "messages", costs.messages, unit="count")
            results.add(cell, scenario, "cpu", subject.usage().cpu_s, unit="s")
        finally:
            await subject.stop()
    await _clean(world, "node1")


async def _comparators(world: World, cell: Cell, results: Results, times: int) -> None:
    """The same node written by others, on the other node of the network, which has no agent then."""
    said = await world.other.run(
        sys.executable, "-m", "bench.two_devices", str(cell.size), str(times), env=environment({})
    )
    found = json.loads(said)
    results.add(cell, "nodes: one added", "kernel", *(us / 1000 for us in found["kernel"]), subject=TWO_DEVICES)
    results.add(cell, "nodes: one added", "written", *(us / 1000 for us in found["ip -batch"]), subject=TOOLS)


async def _nodes(network: Network) -> None:
    """One node with its blocks comes and goes, by each way that packets may take to it."""
    families = network.world.families
    for way, (mode, beyond, lacks) in WAYS.items():
        await network.change("", peers.pools(families, mode) | peers.settings(crossed=lacks is not None))
        await network.settled()
        async with network.world.unobserved():
            for number in range(network.times):
                one = peers.documents(families, beyond + network.cell.size + number, lacks=lacks)
                await network.change(f"nodes: one added, {way}", one)
                await network.change(f"nodes: one removed, {way}", dict.fromkeys(one, b""))
        await _nodes_in_a_row(network, f"nodes: one added after another, {way}", beyond, lacks)
    await network.change("", peers.settings())


async def _nodes_in_a_row(network: Network, scenario: str, beyond: int, lacks: Family | None) -> None:
    """Each is published as soon as the routes of the one before are there, so that neither processors nor caches rest;
    then all are removed.
    """
    world, everything = network.world, Content()
    network.subject.marks.read()
    for number in range(network.times):
        one = peers.documents(world.families, beyond + network.cell.size + number, lacks=lacks)
        cidrs = [cidr for f in world.families for cidr in peers.blocks(f, beyond + network.cell.size + number)]
        world.node_seen.clear()
        await _publish(world, one)
        await world.node_seen.wait({f"+route {cidr}" for cidr in cidrs}, PATIENCE_S)
        everything |= one
    *_, last = everything
    marks = await network.subject.marks.until_applied(last, PATIENCE_S)
    for turn in turns(marks):
        network.note_turn(scenario, turn)
    await network.change("", dict.fromkeys(everything, b""))


async def _addresses(network: Network) -> None:
    """A node gets another address, natively and in VXLAN; one with few blocks, and one with many."""
    families, number = network.world.families, network.cell.size
    for way in ("native", "VXLAN"):
        await network.change("", peers.pools(families, WAYS[way].mode))
        await network.settled()
        for count in (1, BLOCKS):
            await network.change("", peers.documents(families, number, count=count))
            for turn in range(network.times):
                *_, node = peers.documents(families, number, count=count, shift=(turn + 1) % 2).items()
                await network.change(f"nodes: another address, {way}, {count} blocks of a family", dict([node]))
            gone = peers.documents(families, number, count=count)
            await network.change("", dict.fromkeys(gone, b""))


async def _modes(network: Network) -> None:
    """A pool's mode changes for every node, while two workloads ping each other between real nodes.

    The agent of the other node knows only the two: both would write to one kernel, which does so under one lock.
    """
    world = network.world
    await _retain(world, peers.cluster(world.families, network.cell.size, peers.CROSSING))
    async with _other_agent(world):
        source, target = world.lab.pod(SERVER.name), PLAIN_SERVER
        for family in world.families:
            scenario = f"nodes: mode of a pool switched, {family}"
            async with source.pinging(target.addresses[family], 0.005) as echoes:
                for turn in range(SWITCHES):
                    mode = (peers.TUNNEL, peers.CROSSING)[turn % 2]
                    await network.change(scenario, peers.pools((family,), mode))
                    await world.publish_all(peers.pools((family,), mode), root=OTHER_ROOT)
                    await asyncio.sleep(0.5)  # what the kernel told of it has been read
            network.add(scenario, "pings", echoes.sent, unit="count")
            network.add(scenario, "pings lost", echoes.lost, unit="count")
        # Without what the kernel does for programs that know no nexthop objects.
        await world.node.sysctl("ipv4/nexthop_compat_mode", 0)
        for turn in range(SWITCHES):
            mode = (peers.TUNNEL, peers.CROSSING)[turn % 2]
            await network.change(f"nodes: {SWITCHED_ALONE}", peers.pools((Family.V4,), mode))
            await asyncio.sleep(0.5)
        await world.node.sysctl("ipv4/nexthop_compat_mode", 1)


@contextlib.asynccontextmanager
async def _other_agent(world: World) -> AsyncIterator[None]:
    """An agent on the other node for a while, by a stream of its own, in which there are only the two real nodes."""
    settings = {"FELIX_REMOVEEXTERNALROUTES": "false", "FELIX_MQTTTOPICROOT": OTHER_ROOT}
    await world.publish_all(peers.cluster(world.families, 0, peers.CROSSING), root=OTHER_ROOT)
    subject = await Subject.start(world, BACKEND, settings, node=NODE2.name)
    try:
        for address in PLAIN_SERVER.addresses.values():
            while not await world.lab.pod(SERVER.name).ping(address):  # noqa: ASYNC110 - its status is in that stream
                await asyncio.sleep(0.1)
        await asyncio.sleep(SETTLES_S)
        yield
    finally:
        await subject.stop()
        await _clean(world, NODE2.name)


@contextlib.asynccontextmanager
async def _answering(host: Host, addresses: Sequence[str]) -> AsyncIterator[None]:
    """Somebody takes the packets."""
    command = (sys.executable, "-m", "bench.traffic", "serve", *addresses)
    server = await host.spawn(*command, env=environment({}), output=asyncio.subprocess.PIPE)
    try:
        assert server.stdout
        await server.stdout.readline()
        yield
    finally:
        server.kill()
        await server.wait()


async def _packets(world: World, cell: Cell, results: Results, rounds: int) -> None:
    """Bursts from a workload to one on the other node, natively and in VXLAN in turn."""
    subject = await Subject.start(world, BACKEND)
    try:
        await subject.ready()
        addresses = list(PLAIN_SERVER.addresses.values())
        async with _other_agent(world), _answering(world.lab.pod(PLAIN_SERVER.name), addresses):
            for _ in range(rounds):
                for way, mode in (("native", peers.CROSSING), ("VXLAN", peers.TUNNEL)):
                    await _publish(world, peers.pools(world.families, mode))
                    await world.publish_all(peers.pools(world.families, mode), root=OTHER_ROOT)
                    await asyncio.sleep(0.5)
                    for family in world.families:
                        for kind in ("small", "large"):
                            times = await _burst(world.lab.pod(SERVER.name), PLAIN_SERVER.addresses[family], kind)
                            results.add(cell, f"nodes: {kind} packets, {family}", way, *times, unit="µs")
    finally:
        await subject.stop()
        await _clean(world, "node1")
    await _packets_without_felixpy(world, cell, results, rounds)


async def _packets_without_felixpy(world: World, cell: Cell, results: Results, rounds: int) -> None:
    """The same through a device by hand, on nodes without any rule."""
    await bare_vxlan.begin(world)
    async with _answering(world.lab.pod(PLAIN_SERVER.name), list(PLAIN_SERVER.addresses.values())):
        for _ in range(rounds):
            for way in ("native", "VXLAN"):
                await bare_vxlan.lead(world, way)
                for family in world.families:
                    before = await bare_vxlan.received(world, family)
                    for kind in ("small", "large"):
                        times = await _burst(world.lab.pod(SERVER.name), PLAIN_SERVER.addresses[family], kind)
                        scenario = f"nodes: {kind} packets, {family}"
                        results.add(cell, scenario, way, *times, subject=bare_vxlan.SUBJECT, unit="µs")
                    if (await bare_vxlan.received(world, family) > before) != (way == "VXLAN"):
                        raise LabError(f"{family} packets did not travel as they were to: {way}")


async def _burst(source: Host, address: str, kind: str) -> list[float]:
    """Microseconds of each packet in the quickest bursts: on a busy machine the others say what else ran."""
    said = await source.run(sys.executable, "-m", "bench.traffic", "burst", kind, address, env=environment({}))
    found: list[float] = json.loads(said)["us"]
    return found
