"""The agent as the lab runs it: a child process in a node's namespaces, its log in a file, its state from the broker.

Readiness is what the agent itself publishes on its status topic, never a guess from a pause.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from felixpy.demo.host import Host, LabError, stop_process
from felixpy.demo.patience import Patience

IN_SYNC = "in-sync"
READY_S = 60.0
FELIXPY = (sys.executable, "-m", "felixpy")
PROJECT = Path(__file__).resolve().parents[2]


class Surroundings(Protocol):
    """What an agent needs of its lab."""

    status: dict[str, dict[str, Any]]
    status_changed: asyncio.Event

    def node(self, name: str) -> Host: ...


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """The environment of a felixpy process: the caller's without its own settings, plus ``settings``."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("FELIX_")}
    path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
    return {**kept, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **settings}


class Agent:
    """One running ``felixpy run``."""

    def __init__(self, lab: Surroundings, node: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.node = node
        self.pid = process.pid
        self.log = log
        self._lab = lab
        self._process = process
        self._started = time.time()

    @classmethod
    async def start(cls, lab: Surroundings, node: str, settings: Mapping[str, str], log: Path) -> Agent:
        with log.open("ab") as output:
            process = await lab.node(node).spawn(*FELIXPY, "run", env=environment(settings), output=output)
        return cls(lab, node, process, log)

    @staticmethod
    async def command(host: Host, settings: Mapping[str, str], *arguments: str, check: bool = True) -> str:
        """Run a ``felixpy`` command on a host to its end."""
        return await host.run(*FELIXPY, *arguments, env=environment(settings), check=check)

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    async def wait_ready(self, seconds: float = READY_S) -> None:
        """Wait until the agent reports that the kernel equals the stream.

        Raises:
            LabError: it ended, or did not get there in time; with the end of its log.
        """
        patience = Patience(seconds)
        while not self._ready():
            if not self.running:
                raise LabError(f"the agent on {self.node} ended with code {self._process.returncode}; {self.tail()}")
            if patience.over():
                said = self._lab.status.get(self.node, {})
                raise LabError(
                    f"the agent on {self.node} was not ready after {patience}; its status topic says "
                    f"{json.dumps(said) if said else 'nothing'}; {self.tail()}"
                )
            self._lab.status_changed.clear()
            try:
                await asyncio.wait_for(self._lab.status_changed.wait(), 0.2)
            except TimeoutError:
                continue

    def _ready(self) -> bool:
        """In sync, each family programmed; the word of an earlier agent, still on its way, does not count."""
        said = self._lab.status.get(self.node, {})
        families = said.get("families", {}).values()
        return (
            said.get("state") == IN_SYNC
            and said.get("ts", 0.0) >= self._started
            and bool(families)
            and all(family["ready"] for family in families)
        )

    def tail(self, lines: int = 15) -> str:
        """The end of the log, with a heading; what the process does if it has logged nothing."""
        last = self.log.read_text(errors="replace").splitlines()[-lines:]
        if last:
            return "\n".join((f"the end of {self.log}:", *last))
        return f"its log is empty after {self._processor_seconds():.2f} s of processor time"

    def _processor_seconds(self) -> float:
        try:
            stat = Path("/proc", str(self.pid), "stat").read_text()
        except OSError:  # it is over
            return 0.0
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    async def stop(self) -> int:
        """Ask it to end, as systemd would; returns the exit code."""
        return await stop_process(self._process)

    async def kill(self) -> None:
        """End it at once (SIGKILL)."""
        if self.running:
            self._process.kill()
        await self._process.wait()
