"""Flows that run through a whole test, and what is told of them.

p1a ══ p1b, p2a, outside (NAT)     p2a ══ p1a        each: a TCP stream, a UDP flow, new TCP connections
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from felixpy.demo.agent import FELIXPY, Agent, environment
from felixpy.demo.host import PORT, Host
from felixpy.demo.lab import Lab
from felixpy.demo.patience import Patience
from felixpy.demo.topology import EXT, P1A, P1B, P2A, PODS, PodSpec
from felixpy.model.net import Family
from tests.behaviour.world import P1C, Combination, World

P1D = PodSpec("p1d", "node1", {Family.V4: "10.49.0.2", Family.V6: "fd00:49::2"})
"""The workload that takes addresses of p1c over."""

SENDER = Path(__file__).with_name("sender.py")
KINDS = ("stream", "datagrams", "connections")
NO_REFRESH = {
    f"FELIX_{table}REFRESHINTERVAL": "0" for table in ("INTERFACE", "ROUTE", "IPTABLES", "IPSETS", "NFTABLES")
}
"""No full comparison ever: what is repaired is repaired because the kernel told."""

PATIENCE_S = 30.0


class Line(NamedTuple):
    """A flow to keep: from a host to an address, by family, under a name for people."""

    source: str
    kind: str
    target: str
    family: Family
    address: str

    @property
    def name(self) -> str:
        return f"{self.family} {self.kind} {self.source} → {self.target}"


def lines(families: Sequence[Family]) -> list[Line]:
    """Through one node, between two, out with NAT, and in."""
    found = []
    for family in families:
        for kind in KINDS:
            found += [
                Line("p1a", kind, "p1b", family, P1B.addresses[family]),
                Line("p1a", kind, "p2a", family, P2A.addresses[family]),
                Line("p1a", kind, "ext", family, EXT[family]),
                Line("p2a", kind, "p1a", family, P1A.addresses[family]),
            ]
    return found


class Counted(NamedTuple):
    """What a flow did since the last look."""

    sent: int
    answered: int
    lost: int
    silence_ms: float
    peers: tuple[str, ...]
    error: str


class Traffic:
    """Running flows, one process per source host."""

    def __init__(self, hosts: Callable[[str], Host], wanted: Sequence[Line]) -> None:
        self.wanted = {line.name: line for line in wanted}
        self._hosts = hosts
        self._senders: list[asyncio.subprocess.Process] = []

    async def __aenter__(self) -> Traffic:
        try:
            for source in sorted({line.source for line in self.wanted.values()}):
                await self._start(source)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def _start(self, source: str) -> None:
        command = self._hosts(source).enter(sys.executable, "-I", "-S", str(SENDER))
        sender = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", "--"),
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self._senders.append(sender)
        specs = [
            {"name": line.name, "kind": line.kind, "address": line.address, "port": PORT}
            for line in self.wanted.values()
            if line.source == source
        ]
        answer = await self._ask(sender, json.dumps(specs))
        assert not answer["silent"], f"without any answer: {answer}"

    @staticmethod
    async def _ask(sender: asyncio.subprocess.Process, text: str) -> dict[str, Any]:
        assert sender.stdin and sender.stdout
        sender.stdin.write(text.encode() + b"\n")
        answer: dict[str, Any] = json.loads(await sender.stdout.readline())
        return answer

    async def _stop(self) -> None:
        for sender in self._senders:
            sender.kill()
        await asyncio.gather(*(sender.wait() for sender in self._senders))

    async def look(self) -> dict[str, Counted]:
        """What each flow did since the last look, or since the start."""
        reports = await asyncio.gather(*(self._ask(sender, "look") for sender in self._senders))
        return {
            name: Counted(**{**counted, "peers": tuple(counted["peers"])})
            for report in reports
            for name, counted in report.items()
        }

    async def lost_nothing(self) -> dict[str, Counted]:
        """Assert that since the last look every flow went on and lost nothing, under the address and port it had."""
        seen = await self.look()
        wrong = {name: one for name, one in seen.items() if not one.answered or one.lost or len(one.peers) != 1}
        assert not wrong, wrong
        return seen

    async def recovers(self, *, without: str | None = None) -> Recovery:
        """Wait until every flow goes on without loss; assert that each does, and tell what was lost on the way.

        Flows with ``without`` in their names may be broken for good.
        """
        total: dict[str, Counted] = {}
        patience = Patience(PATIENCE_S)
        while True:
            await asyncio.sleep(0.25)
            seen = await self.look()
            for name, one in seen.items():
                total[name] = _sum(total.get(name), one)
            wrong = {name: one for name, one in seen.items() if one.lost or not one.answered}
            if not [name for name in wrong if without is None or without not in name]:
                return Recovery(total)
            assert not patience.over(), wrong


class Recovery(NamedTuple):
    """What was lost until every flow went on."""

    flows: dict[str, Counted]

    def __str__(self) -> str:
        datagrams = [one for name, one in self.flows.items() if "datagrams" in name]
        silence = max((one.silence_ms for one in datagrams if one.lost), default=0.0)
        lost = {kind: sum(one.lost for name, one in self.flows.items() if kind in name) for kind in KINDS}
        return f"longest silence of a UDP flow {silence} ms; lost {lost}"


def _sum(old: Counted | None, new: Counted) -> Counted:
    if old is None:
        return new
    return Counted(
        old.sent + new.sent,
        old.answered + new.answered,
        old.lost + new.lost,
        max(old.silence_ms, new.silence_ms),
        new.peers,
        new.error or old.error,
    )


class TrafficWorld(World):
    """A world without full comparisons, and ways to start, watch and kill the agent of node1 at a chosen moment."""

    @classmethod
    async def start(cls, combination: Combination) -> TrafficWorld:
        world = cls(Lab(combination.mode, (*PODS, P1C, P1D)), combination)
        await world.lab.__aenter__()
        try:
            await world._start()
        except BaseException:
            await world.lab.close()
            raise
        return world

    def settings(self, **extra: str) -> dict[str, str]:
        return super().settings(**{**NO_REFRESH, **extra})

    def traffic(self, wanted: Sequence[Line] | None = None) -> Traffic:
        """Flows between the baseline's workloads, or those asked for; use ``async with``."""
        return Traffic(lambda name: self.lab.hosts[name], wanted or lines(self.families))

    @property
    def agent(self) -> Agent:
        return self.lab.agents["node1"]

    async def plan(self, **extra: str) -> tuple[int, str]:
        """Exit code and words of ``felixpy plan`` on node1: 0 nothing to change."""
        settings = self.lab.agent_environment("node1", self.settings(**extra))
        with (self.lab.folder / "plan").open("w+b") as output:
            process = await self.node1.spawn(*FELIXPY, "plan", env=environment(settings), output=output)
            code = await process.wait()
            output.seek(0)
            return code, output.read().decode()

    async def start_without_waiting(self, **extra: str) -> Agent:
        return await self.lab.start_agent("node1", self.settings(**extra))

    async def start_agent(self, **extra: str) -> None:
        agent = await self.start_without_waiting(**extra)
        await agent.wait_ready()

    async def said(self, words: str, since: int) -> None:
        """Wait until the agent of node1 logs words, after ``since`` bytes of its log."""
        patience = Patience(PATIENCE_S)
        while words not in self.log(since):
            assert self.agent.running, self.log(since)
            assert not patience.over(), f"{words!r} is not in: {self.log(since)}"
            await asyncio.sleep(0.002)

    def log(self, since: int = 0) -> str:
        return self.agent.log.read_bytes()[since:].decode(errors="replace")

    def log_size(self) -> int:
        return self.agent.log.stat().st_size

    @contextlib.asynccontextmanager
    async def without_agent(self) -> AsyncIterator[None]:
        """The agent of node1 is killed while the block runs and started at its end."""
        await self.agent.kill()
        yield
        await self.restart_agent()
