"""What is measured of policy: an agent, or rules alone, in a network of its own, asked by lines of JSON.

    {"start": [objects]}             the first snapshot              → milliseconds of processor time
    {"put": [objects], "gone": […]}  changes                         → the same
    {"rules": "text"}                instead of an agent: for nft    → 0
    {"wire": [[interface, address], [interface, address]]}           → 0
    {"new": port, "arrive": true}, {"established": port, …}          → seconds of a packet, for some batches

The parent lets its children take turns. What is measured of changes is processor time of the agent's process, in which
the kernel carries out what netlink asks for: other processes of the machine do not change it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.wire import BATCH, Wire
from felixpy.agent import collector
from felixpy.demo.host import LabError

NODE = "n1"
MODES = {"nftables": ("Enabled", "Auto"), "legacy": ("Disabled", "Legacy"), "nft": ("Disabled", "NFT")}
BATCHES = 8
"""Of packets, at each turn."""

Object = dict[str, Any]


class Subject:
    """An agent without a source."""

    def __init__(self, backend: str, others: Mapping[str, str]) -> None:
        from felixpy.agent.agent import Agent
        from felixpy.config import SettingsSource, resolve

        mode, variant = MODES[backend]
        values = {"FelixHostname": NODE, "NFTablesMode": mode, "IptablesBackend": variant, **others}
        source = SettingsSource("environment", values)
        settings, _ = resolve([source])
        self.agent = Agent(settings, [source])
        self.task = asyncio.create_task(self.agent.run())

    def tell(self, objects: Iterable[Object], *, gone: bool = False) -> None:
        from felixpy.model.parse import parse_resource
        from felixpy.model.resources import Absent, Update

        for one in objects:
            found = parse_resource(one)
            assert found is not None and not isinstance(found, Absent)
            self.agent.update(Update(found.key, None if gone else found))

    async def take(self, objects: Iterable[Object], gone: Iterable[Object]) -> float:
        """Process changes until the packet filter has them; returns milliseconds of processor time."""
        began = time.process_time()
        self.tell(objects)
        self.tell(gone, gone=True)
        await self._until_written()
        return (time.process_time() - began) * 1000

    async def start(self, objects: Iterable[Object]) -> float:
        """The first snapshot."""
        from felixpy.sources import SyncState, SyncStatus

        began = time.process_time()
        self.tell(objects)
        self.agent.sync_status(SyncStatus(SyncState.IN_SYNC))
        known = asyncio.create_task(self.agent.known.wait())
        await asyncio.wait((known, self.task), return_when=asyncio.FIRST_COMPLETED)
        known.cancel()
        await self._until_written()
        return (time.process_time() - began) * 1000

    async def _until_written(self) -> None:
        agent = self.agent
        while True:
            if self.task.done():
                self.task.result()  # why it ended
            if not agent.inbox and not agent._wake.is_set() and agent.dataplane.are_filters_written:
                return
            await asyncio.sleep(0)


class Server:
    """Answers one question after the other."""

    def __init__(self, backend: str, others: Mapping[str, str]) -> None:
        """Without a back-end there is no agent."""
        collector.take_over()
        self._subject = Subject(backend, others) if backend else None
        self._wire: Wire | None = None

    async def answer(self, asked: Mapping[str, Any]) -> float | list[float]:
        if "new" in asked or "established" in asked:
            return self._packets(asked)
        if self._subject is not None and "start" in asked:
            return await self._subject.start(asked["start"])
        if self._subject is not None and ("put" in asked or "gone" in asked):
            return await self._subject.take(asked.get("put", ()), asked.get("gone", ()))
        self._prepare(asked)
        return 0.0

    def _prepare(self, asked: Mapping[str, Any]) -> None:
        if "rules" in asked:
            subprocess.run(["nft", "-f", "-"], input=asked["rules"], text=True, check=True)
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1", encoding="ascii")
        if "wire" in asked:
            a, b = ((name, socket.inet_aton(address)) for name, address in asked["wire"])
            self._wire = Wire(a, b)

    def _packets(self, asked: Mapping[str, Any]) -> list[float]:
        """Seconds of a packet, in batches of which all or none have arrived, as ``arrive`` says.

        Raises:
            ValueError: others have: it would be another way that is measured.
        """
        wire = self._wire
        assert wire is not None
        wire.forget()
        before = wire.arrived()
        if (port := asked.get("new")) is not None:
            spent, sent = [wire.new(port) for _ in range(BATCHES)], BATCH * BATCHES
        else:
            wire.establish(port := asked["established"])
            spent, sent = [wire.established(port) for _ in range(BATCHES)], BATCH * BATCHES + 1
        arrived, expected = wire.arrived() - before, sent if asked["arrive"] else 0
        if not expected <= arrived < expected + BATCH:  # b's own neighbours speak, too
            raise ValueError(f"of {sent} packets {arrived} have arrived, and not {expected}")
        return spent

    async def serve(self, answers: int) -> None:
        """Answer on a descriptor."""
        while line := await asyncio.to_thread(sys.stdin.readline):
            os.write(answers, json.dumps(await self.answer(json.loads(line))).encode() + b"\n")
        if self._subject is not None:
            self._subject.task.cancel()


async def serve(backend: str, others: Mapping[str, str], answers: int) -> None:
    await Server(backend, others).serve(answers)


class Child:
    """A subject in a network of its own, as a process that ends with ``close``."""

    def __init__(self, process: asyncio.subprocess.Process, answers: asyncio.StreamReader) -> None:
        self._process = process
        self._answers = answers

    @classmethod
    async def start(cls, backend: str = "", others: Mapping[str, str] | None = None) -> Child:
        """``others`` are settings of the agent besides; without a back-end there is none."""
        ours, theirs = os.pipe()
        module = f"{sys.executable} -m bench.policy_subject --answers {theirs} --backend '{backend}'"
        script = f"mount -t tmpfs tmpfs /run; ip link set lo up; exec {module} '{json.dumps(others or {})}'"
        process = await asyncio.create_subprocess_exec(
            "unshare", "-n", "-m", "sh", "-c", script,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, pass_fds=(theirs,),
            cwd=Path(__file__).parents[1],
        )  # fmt: skip
        os.close(theirs)
        answers = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(answers), os.fdopen(ours, "rb")
        )
        return cls(process, answers)

    async def ask(self, **words: Any) -> Any:
        """What the child answers.

        Raises:
            LabError: it ended.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words).encode() + b"\n")
        line = await self._answers.readline()
        if not line:
            raise LabError("a measured agent ended; run it by hand: python -m bench.policy_subject")
        return json.loads(line)

    async def close(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


@asynccontextmanager
async def children(wanted: Mapping[str, tuple[str, Mapping[str, str]]]) -> AsyncIterator[dict[str, Child]]:
    """Children by name, each with its back-end and settings, for the duration of the context."""
    started: dict[str, Child] = {}
    try:
        for name, (backend, others) in wanted.items():
            started[name] = await Child.start(backend, others)
        yield started
    finally:
        for child in started.values():
            await child.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.policy_subject", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", choices=("", *MODES), default="")
    parser.add_argument("others", type=json.loads, help="settings of the agent besides, as JSON")
    parser.add_argument("--answers", type=int, default=1, help="the descriptor to answer on")
    options = parser.parse_args()
    asyncio.run(serve(options.backend, options.others, options.answers))


if __name__ == "__main__":
    main()
