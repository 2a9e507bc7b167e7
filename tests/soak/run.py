"""The soak: random operations on the lab under live traffic, for as long as asked.

    python -m tests.soak.run SECONDS [--seed N] [--backend nftables|legacy|nft]

Ends with code 0 only if no packet of the untouched workloads was lost, the kernel converged at every check, and what
others own was unchanged. A seed repeats the same operations; their timing against the agents is the machine's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from felixpy.demo.agent import Agent
from felixpy.demo.host import Host, LabError
from felixpy.demo.lab import Lab
from felixpy.demo.networks import P3A
from felixpy.demo.patience import Patience
from felixpy.demo.topology import INTERNET, NODE1, P1A, P1B, P2A, Mode
from tests.soak.operations import AGENTS, Operations

TRAFFIC = Path(__file__).with_name("traffic.py")
CONVERGES_S = 20.0
CHECK_EVERY_S = 10.0
PAUSE_S = 0.25
KINDS = ("stream", "datagrams", "connections")


class Traffic:
    """One traffic process on one host; ``counts`` is what it said last."""

    def __init__(self, host: Host, flows: Sequence[str]) -> None:
        self.host = host
        self.flows = flows
        self.counts: list[dict[str, Any]] = []
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            "setpriv", "--pdeathsig", "KILL", "--",
            *self.host.enter(sys.executable, "-I", "-S", str(TRAFFIC), *self.flows),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 20,
        )  # fmt: skip
        self._reader = asyncio.create_task(self._read(self._process))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout
        while line := await process.stdout.readline():
            self.counts = json.loads(line)

    async def stop(self) -> None:
        """Let it count what is on its way, and end it."""
        if self._process is None or self._process.stdin is None or self._reader is None:
            return
        self._process.stdin.close()
        await self._process.wait()
        await self._reader


@dataclass
class Verdict:
    """What speaks against felixpy, in words."""

    problems: list[str] = field(default_factory=list)
    checks: int = 0
    slowest_check_s: float = 0.0


class Soak:
    """A lab with traffic, operations and checks."""

    def __init__(self, lab: Lab, operations: Operations) -> None:
        self.lab = lab
        self.operations = operations
        self.verdict = Verdict()
        pairs = {
            "p1a": (P1B.addresses, P2A.addresses, INTERNET, P3A.addresses),
            "p2a": (P1A.addresses, P3A.addresses),
            "node1": (P1A.addresses,),
            "p1b": (NODE1.addresses,),
        }
        self.traffic = [
            Traffic(
                lab.hosts[name],
                [f"{kind}={to[family]}" for to in targets for family in lab.families for kind in KINDS],
            )
            for name, targets in pairs.items()
        ]

        guarded, senders = (P1A, P2A), {"p1b": (P1A, P2A), "p2a": (P1A,), "p1a": (P2A,)}
        for pod in guarded:
            own = [f"silence={pod.addresses[family]}" for family in lab.families]
            self.traffic.append(Traffic(lab.hosts[pod.name], own))
        for name, to in senders.items():
            flows = [f"refused={pod.addresses[family]}" for pod in to for family in lab.families]
            self.traffic.append(Traffic(lab.hosts[name], flows))

    async def run(self, seconds: float) -> None:
        await self.operations.begin()
        await asyncio.gather(*(one.start() for one in self.traffic))
        started = last_check = time.monotonic()
        while time.monotonic() < started + seconds:
            await self.operations.one()
            await asyncio.sleep(self.operations.rng.random() * PAUSE_S)
            if time.monotonic() > last_check + CHECK_EVERY_S:
                await self._check()
                last_check = time.monotonic()
                print(f"{last_check - started:6.0f} s  {self._line()}", flush=True)
        await self._check()
        for ended in self.operations.ended:
            self._object(ended)
        await asyncio.gather(*(one.stop() for one in self.traffic))

    async def _check(self) -> None:
        """The kernel equals the stream, soon; nothing of others has changed meanwhile."""
        before = await self.operations.foreign_state()
        started = time.monotonic()
        for node in AGENTS:
            said = await self._converged(node)
            if said:
                self._object(f"{node} did not converge in {CONVERGES_S:.0f} s: {said}")
        self.verdict.checks += 1
        self.verdict.slowest_check_s = max(self.verdict.slowest_check_s, time.monotonic() - started)
        if await self.operations.foreign_state() != before:
            self._object("what others own was changed")

    async def _converged(self, node: str) -> str:
        """Empty, or what ``felixpy plan`` beside the running agent would still change."""
        lab, patience = self.lab, Patience(CONVERGES_S)
        try:
            await lab.agents[node].wait_ready(CONVERGES_S)
        except LabError as error:
            return str(error)
        settings = lab.agent_environment(node, self.operations.settings())
        while True:
            plan = (await Agent.command(lab.node(node), settings, "plan", check=False)).strip()
            if plan == "nothing to change":
                return ""
            if patience.over():
                return f"{plan}\n{lab.agents[node].tail()}"
            await asyncio.sleep(0.1)

    def _object(self, problem: str) -> None:
        self.verdict.problems.append(f"after {self.operations.done.total()} operations: {problem}")
        print(f"PROBLEM {self.verdict.problems[-1]}", flush=True)

    def _line(self) -> str:
        counts = [count for one in self.traffic for count in one.counts]
        sent, lost = sum(count["sent"] for count in counts), sum(count["lost"] for count in counts)
        operations = self.operations
        return (
            f"{operations.done.total()} operations, {operations.faults} of them faults; {sent} questions sent, {lost} "
            f"lost; {self.verdict.checks} checks, {len(self.verdict.problems)} problems"
        )

    def report(self) -> int:
        """Print everything; returns the exit code."""
        print("\noperations")
        for name, count in sorted(self.operations.done.items()):
            print(f"  {name:20} {count:6}")
        print("traffic (questions asked, lost, slowest answer)")
        lost = 0
        for one in self.traffic:
            for count in one.counts:
                lost += count["lost"]
                print(
                    f"  {one.host.name:6} {count['flow']:40} {count['sent']:7} {count['lost']:5} "
                    f"{count['slowest_ms']:8.1f} ms  {'; '.join(count['lost_at'])}"
                )
        silent = [
            f"{one.host.name} {count['flow']}" for one in self.traffic for count in one.counts if not count["sent"]
        ]
        print(f"slowest check {self.verdict.slowest_check_s:.1f} s\n{self._line()}")
        for problem in self.verdict.problems:
            print(f"PROBLEM {problem}")
        if silent or not self.traffic[0].counts:
            print(f"PROBLEM no traffic: {', '.join(silent) or 'nothing was counted'}")
            return 1
        return 1 if lost or self.verdict.problems else 0


async def soak(seconds: float, seed: int, backend: str) -> int:
    """Build a lab, soak it, and say how it went."""
    print(f"soak for {seconds:g} s, seed {seed}, {backend}; repeat with --seed {seed} --backend {backend}", flush=True)
    async with Lab(Mode.DUAL) as lab:
        one = Soak(lab, Operations(lab, backend, random.Random(seed)))
        await one.run(seconds)
        return one.report()


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("seconds", type=float)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--backend", choices=("nftables", "legacy", "nft"), default="nftables")
    asked = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(1 << 32) if asked.seed is None else asked.seed
    return asyncio.run(soak(asked.seconds, seed, asked.backend))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
