"""A lab host: the client of one probe process, and the only way to run something in its namespaces.

Every process started here dies with its parent, whatever happens to it (``PR_SET_PDEATHSIG``), so that not even
``kill -9`` leaves a process or a namespace behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from felixpy.demo.patience import stretched
from felixpy.demo.topology import Addresses
from felixpy.model.net import Family

PORT = 7000
ANSWER_S = 1.0
"""Where every host's responder listens, TCP and UDP."""

_PROBE = Path(__file__).with_name("probe.py")
_DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")


class LabError(Exception):
    """The lab cannot do what was asked: one sentence for people."""


class Seen(NamedTuple):
    """The peer that a responder saw."""

    address: str
    port: int


class Packet(NamedTuple):
    """A packet that arrived at a host; ports are 0 unless TCP or UDP."""

    protocol: int
    source: str
    destination: str
    source_port: int
    port: int


class Echoes:
    """What became of a ping that ran for a while; known at its end."""

    sent = answered = 0

    @property
    def lost(self) -> int:
        return self.sent - self.answered


class Host:
    """One namespace of the lab. Create with ``Host.start``; ``close`` ends the namespace."""

    def __init__(self, name: str, addresses: Addresses, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.addresses = addresses
        self.pid = process.pid
        self._process = process
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._ids = itertools.count(1)
        self._reader: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, name: str, addresses: Addresses) -> Host:
        """Make the namespaces.

        Raises:
            LabError: the kernel refuses new namespaces.
        """
        process = await asyncio.create_subprocess_exec(
            *_DIE_WITH_PARENT,
            *(sys.executable, "-I", "-S", str(_PROBE)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 24,
        )
        assert process.stdout and process.stderr
        if not await process.stdout.readline():
            reason = (await process.stderr.read()).decode().strip()
            await process.wait()
            raise LabError(f"host {name} of the lab did not start: {reason}")
        host = cls(name, addresses, process)
        host._reader = asyncio.create_task(host._read())
        return host

    async def close(self) -> None:
        """End the probe, and with it the namespace."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        if self._reader:
            await self._reader

    async def _read(self) -> None:
        assert self._process.stdout
        while line := await self._process.stdout.readline():
            answer = json.loads(line)
            future = self._waiting.pop(answer["id"], None)
            if future and not future.done():
                future.set_result(answer)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(LabError(f"host {self.name} of the lab has ended"))

    async def _ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin
        number = next(self._ids)
        future = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        request = {"id": number, "op": operation, "arguments": arguments}
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        answer: dict[str, Any] = await future
        return answer

    async def _seen(self, operation: str, **arguments: Any) -> Seen | None:
        answer = await self._ask(operation, **arguments)
        return Seen(answer["address"], answer["port"]) if "address" in answer else None

    # --- packets -------------------------------------------------------------------------------------------------

    async def listen(self, address: str, port: int = PORT) -> None:
        """Answer on TCP and UDP with the peer address seen.

        Raises:
            LabError: the address is not this host's, or the port is taken.
        """
        answer = await self._ask("listen", address=address, port=port)
        if "failed" in answer:
            raise LabError(f"host {self.name} cannot listen on {address} port {port}: {answer['failed']}")

    async def ping(self, address: str, *, timeout: float | None = None, source: str | None = None) -> bool:  # noqa: ASYNC109
        """Whether an echo request is answered in time."""
        answer = await self._ask("ping", address=address, timeout=_seconds(timeout), source=source)
        return "rtt_ms" in answer

    @contextlib.asynccontextmanager
    async def pinging(self, address: str, every_s: float) -> AsyncIterator[Echoes]:
        """Ping at a steady pace while the block runs, and count at its end."""
        name, echoes = uuid.uuid4().hex, Echoes()
        await self._ask("echoes_start", echoes=name, address=address, every=every_s)
        try:
            yield echoes
        finally:
            answer = await self._ask("echoes_stop", echoes=name)
            echoes.sent, echoes.answered = answer["sent"], answer["answered"]

    async def tcp(
        self,
        address: str,
        port: int = PORT,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the probe's own socket timeout
        source: str | None = None,
        source_port: int = 0,
    ) -> Seen | None:
        """Connect and ask: who does the other side see? None without an answer in time."""
        return await self._seen(
            "tcp", address=address, port=port, timeout=_seconds(timeout), source=source, source_port=source_port
        )

    async def udp(
        self,
        address: str,
        port: int = PORT,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
        source: str | None = None,
        source_port: int = 0,
    ) -> Seen | None:
        """The same by datagrams, repeated until one is answered or time is up."""
        return await self._seen(
            "udp", address=address, port=port, timeout=_seconds(timeout), source=source, source_port=source_port
        )

    async def open_flow(self, protocol: str, address: str, port: int = PORT, *, timeout: float | None = None) -> Flow:  # noqa: ASYNC109
        """Open a TCP connection or a UDP socket that stays.

        Raises:
            LabError: no answer in time.
        """
        flow = Flow(self, uuid.uuid4().hex)
        flow.first = await self._seen(
            "flow_open", flow=flow.name, protocol=protocol, address=address, port=port, timeout=_seconds(timeout)
        )
        if flow.first is None:
            raise LabError(f"{self.name} cannot open a {protocol} flow to {address} port {port}: no answer")
        return flow

    async def send_datagram(self, source: str, address: str, *, source_port: int = 40000, port: int = PORT) -> None:
        """Send one UDP datagram from any source address, owned or not."""
        await self._ask("send_datagram", source=source, address=address, source_port=source_port, port=port)

    @contextlib.asynccontextmanager
    async def capture(self) -> AsyncIterator[list[Packet]]:
        """Record what arrives while the block runs; the list is filled at its end."""
        name = uuid.uuid4().hex
        await self._ask("capture_start", capture=name)
        packets: list[Packet] = []
        try:
            yield packets
            await asyncio.sleep(stretched(0.1))  # what was sent last is still on its way
        finally:
            answer = await self._ask("capture_stop", capture=name)
            packets += [Packet(**packet) for packet in answer["packets"]]

    # --- processes -----------------------------------------------------------------------------------------------

    def enter(self, *command: str) -> tuple[str, ...]:
        """The command line that runs ``command`` in this host's namespaces."""
        return ("nsenter", "--target", str(self.pid), "--net", "--mount", "--", *command)

    async def spawn(
        self, *command: str, env: Mapping[str, str] | None = None, output: IO[bytes] | int | None = None
    ) -> asyncio.subprocess.Process:
        """Start a long-lived process; standard output and error go to ``output``."""
        return await asyncio.create_subprocess_exec(
            *_DIE_WITH_PARENT,
            *self.enter(*command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT if output is not None else None,
            env=env,
            limit=1 << 24,
        )

    async def run(
        self, *command: str, stdin: str = "", env: Mapping[str, str] | None = None, check: bool = True
    ) -> str:
        """Run a command to its end and return its standard output.

        Raises:
            LabError: it failed, and ``check`` is set.
        """
        process = await asyncio.create_subprocess_exec(
            *_DIE_WITH_PARENT,
            *self.enter(*command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=env,
        )
        stdout, stderr = await process.communicate(stdin.encode())
        if check and process.returncode != 0:
            raise LabError(f"`{' '.join(command)}` failed on {self.name}: {(stderr or stdout).decode().strip()}")
        return stdout.decode()

    async def ip(self, commands: Sequence[str]) -> None:
        """Run ``ip`` commands in one process.

        Raises:
            LabError: one of them failed.
        """
        await self.run("ip", "-batch", "-", stdin="\n".join(commands) + "\n")

    async def sysctl(self, name: str, value: int | None = None) -> int:
        """Read, or write and read, ``net.<name>`` given as a path (``ipv6/conf/all/forwarding``)."""
        path = f"/proc/sys/net/{name}"
        if value is not None:
            await self.run("tee", path, stdin=f"{value}\n")
        return int(await self.run("cat", path))

    def address(self, family: Family) -> str:
        return self.addresses[family]


class Flow:
    """A long-lived flow from a host: asks again over the same socket."""

    def __init__(self, host: Host, name: str) -> None:
        self.host = host
        self.name = name
        self.first: Seen | None = None

    async def ask(self, *, timeout: float | None = None) -> Seen | None:  # noqa: ASYNC109
        return await self.host._seen("flow_ask", flow=self.name, timeout=_seconds(timeout))

    async def close(self) -> None:
        await self.host._ask("flow_close", flow=self.name)


def _seconds(timeout: float | None) -> float:
    """How long a probe waits for an answer that should come, if its caller does not say."""
    return stretched(ANSWER_S) if timeout is None else timeout


async def stop_process(process: asyncio.subprocess.Process, timeout: float = 5.0) -> int:  # noqa: ASYNC109
    """Ask a process to end, then make it; returns its exit code."""
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), stretched(timeout))
        except TimeoutError:
            process.kill()
    return await process.wait()
