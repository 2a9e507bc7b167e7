"""A lab with an agent on each node, and the ways in which tests change the stream and look at the kernel."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, NamedTuple

from felixpy.demo.checks import Check, Result
from felixpy.demo.host import Host, LabError
from felixpy.demo.lab import Lab
from felixpy.demo.patience import Patience, stretched
from felixpy.demo.resources import Object, block, ip_pool, lab_resources
from felixpy.demo.run import BACKENDS
from felixpy.demo.topology import PODS, Mode, PodSpec
from felixpy.model.net import Family
from tests.kernel import SET_WENT

P1C = PodSpec("p1c", "node1", {Family.V4: "10.49.0.1", Family.V6: "fd00:49::1"})
"""A workload of a second pool, without natOutgoing; the one that tests change and remove."""

P1C_POOL = {Family.V4: "10.49.0.0/24", Family.V6: "fd00:49::/64"}
P1C_BLOCK = {Family.V4: "10.49.0.0/26", Family.V6: "fd00:49::/122"}
ELSEWHERE_POOL = {Family.V4: "10.60.0.0/16", Family.V6: "fd00:60::/64"}
ELSEWHERE = {Family.V4: "10.60.0.1", Family.V6: "fd00:60::1"}
"""An address that only the default route leads to, so the outside host sees what is sent there."""

FOREIGN_ROUTE = {Family.V4: "198.18.1.0/24", Family.V6: "2001:db8:18::/48"}
ROUTE_PROTOCOL = "222"  # DeviceRouteProtocol
SETTLE_S = 30.0
SHORT = 0.25


def short() -> float:
    """For one look of many: beside others long enough for an answer, and never long where none comes."""
    return min(stretched(SHORT), 2.0)


class Combination(NamedTuple):
    """What every behaviour test runs for."""

    backend: str
    mode: Mode

    def __str__(self) -> str:
        return f"{self.backend}-{self.mode}"


COMBINATIONS = [Combination(backend, mode) for backend in ("nftables", "legacy", "nft") for mode in Mode]

TOPICS = {
    "IPPool": "ippool",
    "Node": "node",
    "IPAMBlock": "block",
    "FelixConfiguration": "felixconfig",
    "BGPConfiguration": "bgpconfig",
    "GlobalNetworkPolicy": "policy/global",
    "GlobalNetworkSet": "netset/global",
}


def topic(document: Object) -> str:
    metadata = document["metadata"]
    if document["kind"] == "WorkloadEndpoint":
        return f"wep/{document['spec']['node']}/{metadata['namespace']}/{metadata['name']}"
    if document["kind"] == "HostEndpoint":
        return f"hep/{document['spec']['node']}/{metadata['name']}"
    return f"{TOPICS[document['kind']]}/{metadata['name']}"


async def becomes(
    expected: object, look: Callable[..., Awaitable[object]], *arguments: Any, seconds: float = SETTLE_S
) -> None:
    """Assert that what ``look(*arguments)`` sees is, or soon becomes, what is expected."""
    patience = Patience(seconds)
    while (seen := await look(*arguments)) != expected and not patience.over():  # noqa: ASYNC110 - no event
        await asyncio.sleep(0.02)
    assert seen == expected, f"{arguments[1:]}: expected {expected}, saw {seen} for {patience}"


class World:
    """A lab whose agents are in sync with the baseline resources."""

    def __init__(self, lab: Lab, combination: Combination) -> None:
        self.lab = lab
        self.backend, self.mode = combination
        self.foreign_before: dict[str, str] = {}
        self._published: dict[str, Object] = {}

    @property
    def families(self) -> tuple[Family, ...]:
        return self.lab.families

    @classmethod
    async def start(cls, combination: Combination) -> World:
        """Build the lab, publish the baseline and wait for both agents."""
        world = cls(Lab(combination.mode, (*PODS, P1C)), combination)
        await world.lab.__aenter__()
        try:
            await world._start()
        except BaseException:
            await world.lab.close()
            raise
        return world

    async def _start(self) -> None:
        await self.lab.start_broker()
        for document in self.baseline():
            await self.put(document)
        await add_foreign_state(self.node1, self.backend, self.families)
        self.foreign_before = await foreign_state(self.node1, self.backend)
        for node in ("node1", "node2"):
            await self.lab.start_agent(node, self.settings())
        await asyncio.gather(*(agent.wait_ready() for agent in self.lab.agents.values()))

    def baseline(self) -> list[Object]:
        documents = lab_resources(self.mode, self.lab.pods)
        for family in self.families:
            documents.append(ip_pool(f"no-nat-{family.version}", P1C_POOL[family], natOutgoing=False))
            documents.append(block(P1C_BLOCK[family], "node1"))
        return documents

    def settings(self, **extra: str) -> dict[str, str]:
        return {**BACKENDS[self.backend], "FELIX_SNAPSHOTQUIETTIME": "0.3", **extra}

    @property
    def node1(self) -> Host:
        return self.lab.node("node1")

    async def restart_agent(self, **extra: str) -> None:
        """Start the agent of node1 anew, also if it was stopped or killed, and wait until it is in sync."""
        await self.lab.agents["node1"].stop()
        agent = await self.lab.start_agent("node1", self.settings(**extra))
        await agent.wait_ready()

    def assert_agents_run(self) -> None:
        """No agent ended by itself: an error of its own would look like a kernel that is not followed."""
        for agent in self.lab.agents.values():
            assert agent.running, f"the agent on {agent.node} ended: {agent.tail(30)}"

    # --- the stream ----------------------------------------------------------------------------------------------

    async def put(self, document: Object) -> None:
        self._published[topic(document)] = document
        await self.lab.publish(topic(document), json.dumps(document).encode())

    async def remove(self, document: Object) -> None:
        self._published.pop(topic(document), None)
        await self.lab.publish(topic(document), b"")

    @contextlib.asynccontextmanager
    async def changed(self, *documents: Object) -> AsyncIterator[None]:
        """Publish documents, and what was there before at the end of the block."""
        before = {topic(document): self._published.get(topic(document)) for document in documents}
        for document in documents:
            await self.put(document)
        try:
            yield
        finally:
            await self._restore(before, documents)

    @contextlib.asynccontextmanager
    async def removed(self, *documents: Object) -> AsyncIterator[None]:
        """Delete documents, and publish what was there before at the end of the block."""
        before = {topic(document): self._published.get(topic(document)) for document in documents}
        for document in documents:
            await self.remove(document)
        try:
            yield
        finally:
            await self._restore(before, documents)

    async def _restore(self, before: dict[str, Object | None], documents: Iterable[Object]) -> None:
        for document in documents:
            earlier = before[topic(document)]
            if earlier is None:
                await self.remove(document)
            else:
                await self.put(earlier)

    # --- packets -------------------------------------------------------------------------------------------------

    async def tcp_source(self, source: Host, address: str, timeout: float | None = None) -> str | None:  # noqa: ASYNC109
        """The source address that the other side sees of a TCP connection; None without an answer."""
        seen = await source.tcp(address, timeout=timeout or short())
        return seen.address if seen else None

    async def sources_outside(self, source: Host, address: str) -> set[str]:
        """The source addresses under which packets to ``address`` arrive at the outside host, answered or not."""
        async with self.lab.ext.capture() as packets:
            await source.udp(address, timeout=short())
        return {packet.source for packet in packets if packet.destination == address}

    async def reaches(self, source: Host, address: str, timeout: float | None = None) -> tuple[bool, bool, bool]:  # noqa: ASYNC109
        """Whether ping, TCP and UDP pass."""
        timeout = timeout or short()
        results = await asyncio.gather(
            source.ping(address, timeout=timeout),
            source.tcp(address, timeout=timeout),
            source.udp(address, timeout=timeout),
        )
        return bool(results[0]), bool(results[1]), bool(results[2])


REACHED, CUT_OFF = (True, True, True), (False, False, False)


async def hold(wanted: Iterable[Check]) -> None:
    """Assert that every check holds, now or soon; the failures are listed together."""

    async def settled(check: Check) -> Result:
        patience = Patience(SETTLE_S)
        while not (result := await check.run()).ok and not patience.over():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        return result

    results = await asyncio.gather(*map(settled, wanted))
    failed = [result for result in results if not result.ok]
    assert not failed, failed


# --- the kernel --------------------------------------------------------------------------------------------------


async def iptables_save(host: Host, command: str, *options: str) -> str:
    """All tables as text, beside an agent that works."""
    patience = Patience(SETTLE_S)
    while True:
        try:
            return await host.run(command, *options)
        except LabError as error:
            if SET_WENT not in str(error) or patience.over():
                raise


async def ours(host: Host, family: Family) -> list[str]:
    """Every kernel object that felixpy owns, as text lines, whatever the back-end."""
    version = family.version
    six = "6" if family is Family.V6 else ""
    lines = (await host.run("ip", f"-{version}", "route", "show", "table", "all", "proto", ROUTE_PROTOCOL)).splitlines()
    tables = (await host.run("nft", "list", "tables")).splitlines()
    lines += [line for line in tables if line == f"table ip{six} felixpy"]
    for variant in ("legacy", "nft"):
        saved = await iptables_save(host, f"ip{six}tables-{variant}-save")
        lines += [line for line in saved.splitlines() if "fpy-" in line]
    sets = (await host.run("ipset", "list", "-name")).splitlines()
    return lines + [line for line in sets if line.startswith(f"fpy{version}-")]


def variant(backend: str) -> str:
    """Which iptables another program on the same host would use."""
    return "legacy" if backend == "legacy" else "nft"


async def add_foreign_state(host: Host, backend: str, families: Iterable[Family]) -> None:
    """Objects of other programs: tables, chains, sets and routes, some of them beside ours."""
    table = "table inet foreign {\nchain c {\ntype filter hook input priority 5\naccept\n}\n}\n"
    await host.run("nft", "-f", "-", stdin=table)
    for iptables in (f"iptables-{variant(backend)}", f"ip6tables-{variant(backend)}"):
        await host.run(iptables, "-t", "filter", "-N", "FOREIGN")
        await host.run(iptables, "-t", "filter", "-A", "FORWARD", "-j", "FOREIGN")
        await host.run(iptables, "-t", "filter", "-A", "FOREIGN", "-j", "RETURN")
        await host.run(iptables, "-t", "nat", "-A", "POSTROUTING", "-m", "mark", "--mark", "0x4000", "-j", "MASQUERADE")
    await host.run("ipset", "create", "foreign", "hash:net")
    await host.run("ipset", "add", "foreign", "198.18.0.0/15")
    await host.ip([f"route add unreachable {FOREIGN_ROUTE[family]} proto 80" for family in families])


async def foreign_state(host: Host, backend: str) -> dict[str, str]:
    """What others have, as text; must be the same before, during and after an agent."""
    state = {
        "nft": await host.run("nft", "list", "table", "inet", "foreign"),
        "ipset": await host.run("ipset", "save", "foreign"),
        "ip route": await host.run("ip", "-4", "route", "show", "proto", "80"),
        "ip -6 route": await host.run("ip", "-6", "route", "show", "proto", "80"),
        "default": await host.run("ip", "route", "show", "default"),
    }
    for six in ("", "6"):
        saved = await iptables_save(host, f"ip{six}tables-{variant(backend)}-save")
        foreign = [line for line in saved.splitlines() if "FOREIGN" in line or "0x4000" in line]
        state[f"ip{six}tables"] = "\n".join(foreign)
    return state


async def writes(host: Host, during: Callable[[], Awaitable[Any]]) -> list[str]:
    """Routes, addresses and nf_tables changes that the kernel announces while ``during`` runs."""
    commands = (("ip", "monitor", "route", "address", "rule"), ("nft", "monitor"))
    monitors = [await host.spawn(*command, output=asyncio.subprocess.PIPE) for command in commands]
    await asyncio.sleep(0.2)
    await during()
    await asyncio.sleep(0.2)
    lines: list[str] = []
    for monitor in monitors:
        monitor.terminate()
        stdout, _ = await monitor.communicate()
        lines += stdout.decode().splitlines()
    return lines
