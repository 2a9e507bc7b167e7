"""The work that is measured, one function each. All times are of the monotonic clock, results in milliseconds.

Every change is measured from the moment at which the publisher's client got it to the moment at which the second
observer had seen all that it must bring about. Invariant: a scenario leaves stream and kernel as it found them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass

from bench import expect
from bench.marks import STAGES, Mark, kernel_time, own_share, stages, written
from bench.plan import Effort
from bench.results import Cell, Results
from bench.rivals import Rivals
from bench.subject import Subject
from bench.workloads import NODE3, POOL_CIDR, SPARE, SPARES, Workload, pool, remote_block, remote_cidr
from bench.world import NEWCOMER, PLAIN_CLIENT, PLAIN_SERVER, SERVER, World, pod_payload, pod_topic
from felixpy.demo.agent import environment
from felixpy.demo.topology import NODES, PodSpec
from felixpy.model.net import Family

PAUSE_S = 0.06
"""After each sample, so that the next one meets an idle agent and kernel: after a deletion the agent goes through
conntrack, and nf_tables lets the next transaction wait for its own clean-up, for some 30 ms."""
BURST = 100
CHURN_PER_S = 50
PREPARE = "prepare"
"""Changes that are not measured."""
PATIENCE_S = 30.0
FIRST_PACKET_S = 5.0


@dataclass
class Run:
    """One cell while it is measured."""

    cell: Cell
    effort: Effort
    world: World
    subject: Subject
    rivals: Rivals
    results: Results
    comparators: tuple[str, ...] = ()

    @property
    def families(self) -> tuple[Family, ...]:
        return self.world.families

    def add(self, scenario: str, metric: str, *samples: float, subject: str = "felixpy", unit: str = "ms") -> None:
        if scenario != PREPARE:
            self.results.add(self.cell, scenario, metric, *samples, subject=subject, unit=unit)

    async def watch_members(self, one: Workload, *, present: bool) -> None:
        """IP sets tell nothing: have the observer ask."""
        if self.cell.backend != "nftables":
            await self.world.node_seen.expect_members(expect.members(one, self.families), present=present)


@contextlib.asynccontextmanager
async def costed(run: Run, scenario: str) -> AsyncIterator[None]:
    """Processor seconds and peak memory of the agent while the block runs."""
    run.subject.forget_peak()
    before, begin = run.subject.usage(), time.monotonic()
    yield
    after = run.subject.usage()
    run.add(scenario, "cpu", after.cpu_s - before.cpu_s, unit="s")
    run.add(scenario, "elapsed", time.monotonic() - begin, unit="s")
    run.add(scenario, "peak memory", after.peak_mib, unit="MiB")


def ms(later: int, earlier: int) -> float:
    return (later - earlier) / 1e6


# --- one workload ------------------------------------------------------------------------------------------------


async def change(run: Run, scenario: str, topic: str, payload: bytes, expected: Iterable[str]) -> int:
    """Publish one object and record its stages; returns when it was visible."""
    seen = run.world.node_seen
    published = await run.world.publish(topic, payload)
    visible = await seen.wait(expected, PATIENCE_S)
    marks = await run.subject.marks.until_applied(topic)
    run.add(scenario, "on the wire", ms(run.world.publisher.written_at, published))
    _add_stages(run, scenario, published, marks, topic)
    run.add(scenario, "visible", ms(visible, published))
    costs = written(marks)
    run.add(scenario, "messages", costs.messages, unit="count")
    run.add(scenario, "sends", costs.sends, unit="count")
    run.add(scenario, "bytes", costs.bytes, unit="count")
    run.add(scenario, "processes", costs.processes, unit="count")
    await asyncio.sleep(PAUSE_S)
    run.subject.marks.read()
    return visible


def _add_stages(run: Run, scenario: str, published: int, marks: Sequence[Mark], topic: str) -> None:
    reached = stages(marks, topic)
    for stage in STAGES:
        if stage in reached:
            run.add(scenario, stage, ms(reached[stage], published))
    if "acknowledged" in reached:
        begin, end = reached["received"], reached["acknowledged"]
        run.add(scenario, "agent's own share", own_share(marks, begin, end) / 1e6)
        run.add(scenario, "inside the kernel", kernel_time(marks, begin, end) / 1e6)


async def put(run: Run, scenario: str, one: Workload, *, present: bool, gone: Workload | None = None) -> None:
    """Add, delete or change (``gone`` is its earlier state) one workload."""
    run.world.node_seen.clear()
    await run.watch_members(one, present=present)
    expected = expect.workload(one, run.families, run.cell.backend, present=present)
    if gone is not None:
        expected |= {f"-route {gone.address(family)}" for family in run.families}
    payload = one.payload(run.families) if present else b""
    await change(run, scenario, one.topic, payload, expected)


async def add_and_delete(run: Run) -> None:
    """Add one, delete one; a comparator's turn comes after each, so that all meet the same machine."""
    every = max(1, run.effort.changes // max(1, run.effort.comparator_changes))
    async with costed(run, "add one"):
        for number in range(run.effort.changes):
            one = Workload(SPARE + number % (SPARES - 2))
            await put(run, "add one", one, present=True)
            await put(run, "delete one", one, present=False)
            if number % every == 0:
                for name in run.comparators:
                    await rival(run, "add", "add one", name, one)
                    await rival(run, "delete", "delete one", name, one)


async def add_in_a_row(run: Run) -> None:
    """Add one as soon as the one before is visible, so that neither processors nor caches rest; then delete them."""
    crowd = [Workload(SPARE + number) for number in range(run.effort.changes)]
    seen, scenario = run.world.node_seen, "add one after another"
    run.subject.marks.read()
    published: list[tuple[int, Workload, bool]] = []
    for one in crowd:
        seen.clear()
        await run.watch_members(one, present=True)
        at = await run.world.publish(one.topic, one.payload(run.families))
        visible = await seen.wait(expect.workload(one, run.families, run.cell.backend), PATIENCE_S)
        run.add(scenario, "visible", ms(visible, at))
        published.append((at, one, True))
    _add_all_stages(run, scenario, published, await run.subject.marks.until_applied(crowd[-1].topic))
    await _burst(run, PREPARE, crowd, present=False)


async def rival(run: Run, operation: str, scenario: str, name: str, one: Workload) -> None:
    """The same change by a comparator, from its begin to the last that the observer of its node saw."""
    seen = run.world.other_seen
    await seen.quiet()
    seen.clear()
    done = await run.rivals.change(operation, name, one.number)
    rules_only = name == "libnftables"
    present = operation == "add"
    expected = {"gen"} if rules_only else expect.routing(one, run.families, present=present)
    visible = await seen.wait(expected, PATIENCE_S)
    run.add(scenario, "visible", ms(visible, done.begin), subject=name)
    run.add(scenario, "returned", ms(done.end, done.begin), subject=name)
    run.add(scenario, "processes", done.processes, subject=name, unit="count")


async def change_address(run: Run) -> None:
    """A workload gets another address."""
    one = Workload(SPARE)
    await put(run, PREPARE, one, present=True)
    async with costed(run, "change address"):
        for number in range(run.effort.small):
            now, then = one._replace(shift=(number + 1) % 2), one._replace(shift=number % 2)
            await put(run, "change address", now, present=True, gone=then)
    await put(run, PREPARE, one._replace(shift=run.effort.small % 2), present=False)


# --- many workloads ----------------------------------------------------------------------------------------------


async def burst(run: Run) -> None:
    """A hundred at once, added and deleted."""
    crowd = [Workload(SPARE + number) for number in range(BURST)]
    for _ in range(run.effort.bursts):
        async with costed(run, "burst of 100"):
            for present in (True, False):
                scenario = "burst of 100" if present else "burst of 100 deleted"
                await _burst(run, scenario, crowd, present=present)


async def _burst(run: Run, scenario: str, crowd: list[Workload], *, present: bool) -> None:
    seen = run.world.node_seen
    seen.clear()
    if run.cell.backend != "nftables":
        every = [member for one in crowd for member in expect.members(one, run.families)]
        await seen.expect_members(every, present=present)
    content = {one.topic: one.payload(run.families) if present else b"" for one in crowd}
    expected = {word for one in crowd for word in expect.workload(one, run.families, run.cell.backend, present=present)}
    first, last = await run.world.publish_all(content)
    visible = await seen.wait(expected, PATIENCE_S)
    run.add(scenario, "last visible after the last publish", ms(visible, last))
    run.add(scenario, "last visible after the first publish", ms(visible, first))
    await asyncio.sleep(0.3)
    costs = written(run.subject.marks.read())
    run.add(scenario, "messages", costs.messages, unit="count")
    run.add(scenario, "sends", costs.sends, unit="count")
    run.add(scenario, "bytes", costs.bytes, unit="count")
    run.add(scenario, "processes", costs.processes, unit="count")


async def churn(run: Run) -> None:
    """Fifty changes a second, additions and deletions in turn; each has its own latency. nftables only."""
    if run.cell.backend != "nftables" or not run.effort.churn_s:
        return
    seen, lag = run.world.node_seen, 10
    seen.clear()
    published: list[tuple[int, Workload, bool]] = []
    pending: list[Workload] = []
    adds = int(run.effort.churn_s * CHURN_PER_S / 2)
    async with costed(run, "churn 50/s"):
        begin = time.monotonic()
        for number in range(adds + lag):
            turns: list[tuple[Workload, bool]] = []
            if number < adds:
                one = Workload(SPARE + number % (SPARES - 2), number // (SPARES - 2) % 4)
                pending.append(one)
                turns.append((one, True))
            if number >= lag:
                turns.append((pending.pop(0), False))
            for turn, (one, present) in enumerate(turns):
                due = begin + (2 * number + turn) / CHURN_PER_S
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                at = await run.world.publish(one.topic, one.payload(run.families) if present else b"")
                published.append((at, one, present))
        for at, one, present in published:
            expected = expect.workload(one, run.families, run.cell.backend, present=present)
            visible = await seen.wait(expected, PATIENCE_S)
            run.add("churn 50/s", "visible" if present else "gone", ms(visible, at))
    _add_all_stages(run, "churn 50/s", published, run.subject.marks.read())


def _add_all_stages(
    run: Run, scenario: str, published: Sequence[tuple[int, Workload, bool]], marks: Sequence[Mark]
) -> None:
    """Stages of the additions. Each is over before the next one is published, so its next apply is its own."""
    times: dict[str, list[tuple[int, bool]]] = {}
    for at, one, present in published:
        times.setdefault(one.topic, []).append((at, present))
    for index, mark in enumerate(marks):
        if mark.stage == "received":
            topic = mark.words[0].partition("/v1/")[2]
            before = [each for each in times.get(topic, ()) if each[0] < mark.at]
            if before and before[-1][1]:
                _add_stages(run, scenario, before[-1][0], marks[index : index + 100], topic)


# --- cluster -----------------------------------------------------------------------------------------------------


async def toggle_nat(run: Run) -> None:
    """A pool's natOutgoing goes off and on."""
    family = run.families[0]
    cidr = POOL_CIDR[family]
    seen = run.world.node_seen
    async with costed(run, "natOutgoing toggled"):
        for number in range(2 * run.effort.small):
            nat = number % 2 == 1
            sign = "+" if nat else "-"
            seen.clear()
            if run.cell.backend == "nftables":
                expected = {f"{sign}elem masq-pools {cidr.partition('/')[0]}"}
            else:
                name = f"fpy{family.version}-masq-pools"
                expected = {f"{sign}member {name} {cidr}"}
                await seen.expect_members([(name, cidr, "")], present=nat)
            topic, payload = pool(family, nat=nat)
            await change(run, "natOutgoing toggled", topic, payload, expected)


async def move_block(run: Run) -> None:
    """A remote block goes to another node and back."""
    family = run.families[0]
    owners = {spec.name: spec.addresses[family] for spec in (NODES[1], NODE3)}
    async with costed(run, "remote block moved"):
        for number in range(2 * run.effort.small):
            owner = "node3" if number % 2 == 0 else "node2"
            run.world.node_seen.clear()
            topic, payload = remote_block(family, 0, owner)
            expected = {f"+route {remote_cidr(family, 0)} via {owners[owner]}"}
            await change(run, "remote block moved", topic, payload, expected)


# --- whole kernel ------------------------------------------------------------------------------------------------


async def resync(run: Run) -> None:
    """Compare the whole kernel without a difference, and an update that comes meanwhile."""
    async with costed(run, "resync"):
        for number in range(run.effort.resyncs):
            found, mark = await _compare(run, "resync")
            run.add("resync", "duration", ms(mark.at, int(mark.words[0])))
            run.add("resync", "messages written", written(found).messages, unit="count")
            _, mark = await _compare(run, "held")
            run.add("resync", "longest hold", int(mark.words[0]) / 1e6)
            run.subject.marks.read()
            run.world.node_seen.clear()
            run.subject.resync()
            await asyncio.sleep(0.005)
            await put(run, "update during a resync", Workload(SPARE), present=number % 2 == 0)
            await asyncio.sleep(0.3)
    if run.effort.resyncs % 2:
        await put(run, PREPARE, Workload(SPARE), present=False)


async def _compare(run: Run, stage: str) -> tuple[list[Mark], Mark]:
    """One comparison, up to the mark of this stage."""
    run.subject.marks.read()
    run.subject.resync(watch=stage == "held")
    deadline = time.monotonic() + PATIENCE_S
    found: list[Mark] = []
    while not (ends := [mark for mark in found if mark.stage == stage]):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the agent did not finish a resync in {PATIENCE_S:.0f} s")
        await asyncio.sleep(0.01)
        found += run.subject.marks.read()
    await asyncio.sleep(0.1)
    return found, ends[0]


async def idle(run: Run) -> None:
    """What the agent costs when nothing happens."""
    if not run.effort.idle_s:
        return
    await asyncio.sleep(1.0)
    before = run.subject.running_s()
    await asyncio.sleep(run.effort.idle_s)
    run.add("idle", "cpu share", (run.subject.running_s() - before) / run.effort.idle_s * 100, unit="%")
    run.add("idle", "resident memory", run.subject.usage().resident_mib, unit="MiB")


# --- packets -----------------------------------------------------------------------------------------------------


async def spawn_traffic(run: Run, pod: PodSpec, *arguments: str) -> asyncio.subprocess.Process:
    """Start a traffic program in a workload; it has said that it is ready if it says so at all."""
    return await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", "--"),
        *run.world.lab.pod(pod.name).enter(sys.executable, "-m", "bench.traffic", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        env=environment({}),
    )


async def _line(process: asyncio.subprocess.Process) -> dict[str, object]:
    assert process.stdout
    line = await asyncio.wait_for(process.stdout.readline(), 30)
    if not line:
        raise RuntimeError("a traffic program of the benchmark ended without a word; run it alone to see why")
    return dict(json.loads(line))


@contextlib.asynccontextmanager
async def serving(run: Run, pod: PodSpec) -> AsyncIterator[list[str]]:
    """Answer in a workload; gives its addresses."""
    addresses = [pod.addresses[family] for family in run.families]
    server = await spawn_traffic(run, pod, "serve", *addresses)
    try:
        await _line(server)
        yield addresses
    finally:
        if server.returncode is None:
            server.kill()
        await server.wait()


async def first_packet(run: Run) -> None:
    """From publish to the first answer over TCP and UDP, both families, for a workload that keeps trying."""
    seen = run.world.node_seen
    appear = {f"+route {NEWCOMER.addresses[family]}" for family in run.families}
    vanish = {f"-route {NEWCOMER.addresses[family]}" for family in run.families}
    async with serving(run, SERVER) as addresses:
        for _ in range(run.effort.first_packets):
            client = await spawn_traffic(run, NEWCOMER, "first", *addresses, str(FIRST_PACKET_S))
            await _line(client)
            await asyncio.sleep(0.05)
            seen.clear()
            published = await run.world.publish(pod_topic(NEWCOMER), pod_payload(NEWCOMER, run.families))
            routed = await seen.wait(appear, PATIENCE_S)
            answered = await _line(client)
            await client.wait()
            run.add("first packet", "routes visible", ms(routed, published))
            for family, address in zip(run.families, addresses, strict=True):
                times = answered[address]
                assert isinstance(times, dict)
                for protocol in ("tcp", "udp"):
                    if protocol in times:
                        run.add("first packet", f"{protocol} IPv{family.version}", ms(times[protocol], published))
                    else:
                        run.results.remark(
                            f"{run.cell}: a new workload got no answer over {protocol} IPv{family.version}"
                        )
            seen.clear()
            await run.world.publish(pod_topic(NEWCOMER), b"")
            await seen.wait(vanish, PATIENCE_S)
            await asyncio.sleep(PAUSE_S)
    run.subject.marks.read()


async def forwarding(run: Run) -> None:
    """Connections and packets a second between two workloads: through the rules, and without any on another node."""
    if not run.effort.forwarding_s:
        return
    seen = run.world.node_seen
    seen.clear()
    await run.world.publish(pod_topic(NEWCOMER), pod_payload(NEWCOMER, run.families))
    await seen.wait({f"+route {NEWCOMER.addresses[family]}" for family in run.families}, PATIENCE_S)
    await asyncio.sleep(0.2)
    async with serving(run, SERVER) as ruled, serving(run, PLAIN_SERVER) as plain:
        for _ in range(run.effort.forwarding_rounds):
            for number, family in enumerate(run.families):
                paths = (
                    ("felixpy", NEWCOMER, SERVER, ruled[number]),
                    ("none", PLAIN_CLIENT, PLAIN_SERVER, plain[number]),
                )
                for subject, client, server, address in paths:
                    await _forward(run, subject, client, server, address, f"IPv{family.version}")
    await run.world.publish(pod_topic(NEWCOMER), b"")
    await asyncio.sleep(0.5)
    run.subject.marks.read()


async def _forward(run: Run, subject: str, client: PodSpec, server: PodSpec, address: str, family: str) -> None:
    seconds = str(run.effort.forwarding_s)
    process = await spawn_traffic(run, client, "connect", address, seconds)
    rate = (await _line(process))["per_second"]
    await process.wait()
    run.add("forwarding", f"new connections {family}", float(str(rate)), subject=subject, unit="1/s")
    before = await _received(run, server)
    process = await spawn_traffic(run, client, "flood", address, seconds)
    await _line(process)
    await process.wait()
    packets = (await _received(run, server)) - before
    run.add("forwarding", f"packets {family}", packets / run.effort.forwarding_s, subject=subject, unit="1/s")


async def _received(run: Run, pod: PodSpec) -> int:
    """Packets that a workload's interface has received so far."""
    text = await run.world.lab.pod(pod.name).run("cat", "/proc/net/dev")
    line = next(line for line in text.splitlines() if line.strip().startswith("eth0:"))
    return int(line.partition(":")[2].split()[1])
