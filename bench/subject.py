"""The agent that is measured: its process, its marks, and what it costs the machine.

Invariant: it always runs in a process of its own, in the measured node's namespaces, and ends with the world.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

from bench.marks import Mark, MarksFile
from bench.workloads import NODE
from bench.world import World
from felixpy.demo.agent import Agent, environment

BACKENDS = {
    "nftables": {"FELIX_NFTABLESMODE": "Enabled"},
    "legacy": {"FELIX_NFTABLESMODE": "Disabled", "FELIX_IPTABLESBACKEND": "Legacy"},
    "nft": {"FELIX_NFTABLESMODE": "Disabled", "FELIX_IPTABLESBACKEND": "NFT"},
}
START_S = 120.0
_TICKS = os.sysconf("SC_CLK_TCK")


class Usage(NamedTuple):
    """Processor seconds since the process began, children included; memory in MiB."""

    cpu_s: float
    resident_mib: float
    peak_mib: float


class Subject:
    """One running agent with its marks."""

    def __init__(self, agent: Agent, marks: MarksFile, started_at: int) -> None:
        self.agent = agent
        self.marks = marks
        self.started_at = started_at
        self.start_marks: list[Mark] = []

    @classmethod
    async def start(
        cls, world: World, backend: str, settings: dict[str, str] | None = None, *, node: str = NODE
    ) -> Subject:
        """Start it and return at once."""
        number = len(list(world.lab.folder.glob("marks-*")))
        path = world.lab.folder / f"marks-{number}"
        marks = MarksFile(path)
        log = world.lab.folder / f"{node}.log"
        variables = world.lab.agent_environment(node, {**BACKENDS[backend], **(settings or {})})
        command = (sys.executable, "-m", "bench.traced_agent", str(path), "run")
        started_at = time.monotonic_ns()
        with log.open("ab") as output:
            process = await world.lab.node(node).spawn(*command, env=environment(variables), output=output)
        agent = Agent(world.lab, node, process, log)
        world.lab.agents[node] = agent
        return cls(agent, marks, started_at)

    async def ready(self) -> int:
        """Wait for "in sync" and all families programmed; returns the monotonic nanosecond of the agent's word.

        Raises:
            LabError: it ended or took too long, with the end of its log.
        """
        await self.agent.wait_ready(START_S)
        at = time.monotonic_ns()
        self.start_marks = self.marks.read()
        return at

    async def stop(self) -> None:
        await self.agent.stop()
        self.marks.close()

    def resync(self, *, watch: bool = False) -> None:
        """Have it compare the whole kernel; ``watch`` for the longest hold of its loop, which takes time of its own."""
        os.kill(self.agent.pid, signal.SIGUSR2 if watch else signal.SIGUSR1)

    def usage(self) -> Usage:
        return process_usage(self.agent.pid)

    def running_s(self) -> float:
        """Seconds that its present threads have run: to the nanosecond, where ``usage`` counts in ticks of 10 ms."""
        tasks = Path(f"/proc/{self.agent.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def forget_peak(self) -> None:
        """Begin a new peak of memory."""
        Path(f"/proc/{self.agent.pid}/clear_refs").write_text("5")


def process_usage(pid: int) -> Usage:
    """What a process and the children that it waited for have used (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    cpu = sum(map(int, fields[11:15])) / _TICKS  # utime, stime, cutime, cstime
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Vm")
    )
    return Usage(cpu, int(status["VmRSS"].split()[0]) / 1024, int(status["VmHWM"].split()[0]) / 1024)
