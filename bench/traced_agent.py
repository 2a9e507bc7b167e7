"""The agent with a clock at each of its stages: ``python -m bench.traced_agent MARKS run`` is ``felixpy run``.

Wraps functions of the agent from outside, so that the product holds no trace code, and writes one line per mark to the
file MARKS: monotonic nanoseconds, nanoseconds of processor time of the thread, stage, words. Marks wait in memory until
an apply is over, so that writing them is not part of what is measured; a stage costs about a microsecond more for its
clocks. SIGUSR1 makes the agent read the
whole kernel again, as its periodic resync does; so does SIGUSR2, with a timer that notices how long the event loop is
held, which takes time of its own. Invariant: nothing that the agent decides changes.

    received TOPIC        the message has been read from the broker's socket and parsed as MQTT
    decoded TOPIC         it is a typed resource and lies before the agent
    calculated            what is wanted of the kernel is known
    sent BYTES MESSAGES ENDED…   a netlink send that writes; ENDED… is both clocks when the kernel had worked it off
    asked BYTES MESSAGES ENDED…  one that only reads
    answered ENDED…       a netlink receive
    setting ENDED…        an interface setting is read or written under /proc/sys
    acknowledged          the answers of one send have been read
    beside …              one of the last four, in another thread: the conntrack pass after a deletion
    applied               one turn of the apply loop is over
    process PROGRAM       a process was started
    resync BEGIN          a reading of the whole kernel is over
    held LONGEST          the longest hold of the event loop during it, in nanoseconds
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from felixpy.agent.agent import Agent
from felixpy.agent.configuration import Configuration
from felixpy.commands import main as cli
from felixpy.dataplane import interface_settings
from felixpy.model.resources import Update
from felixpy.netlink.message import Request
from felixpy.netlink.transport import NetlinkSocket, Refusal
from felixpy.sources.mqtt import MqttSource

TICK_SECONDS = 0.0005


def clocks() -> tuple[int, int]:
    return time.monotonic_ns(), time.thread_time_ns()


class Marks:
    """Marks in memory, and the file that they go to. They become text when they are written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1 << 20)
        self._marks: list[tuple[tuple[int, int], bool, str, tuple[object, ...]]] = []
        self._thread = threading.get_ident()
        self.topic = ""

    def add(self, stage: str, *words: object, at: tuple[int, int] | None = None) -> None:
        self._marks.append((at or clocks(), threading.get_ident() != self._thread, stage, words))

    def flush(self) -> None:
        if self._marks:
            self._file.writelines(
                f"{at} {spent} {'beside ' * beside}{stage} {' '.join(map(str, words))}\n"
                for (at, spent), beside, stage, words in self._marks
            )
            self._file.flush()
            self._marks.clear()


class TracedSocket:
    """A netlink socket that stamps its calls; everything else is the socket's own."""

    def __init__(self, inner: Any, marks: Marks) -> None:
        self._inner = inner
        self._marks = marks
        self.messages = 0
        self.stage = "sent"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def send(self, data: bytes) -> int:
        begin = clocks()
        sent: int = self._inner.send(data)
        self._marks.add(self.stage, len(data), self.messages, *clocks(), at=begin)
        return sent

    def recv(self, size: int) -> bytes:
        begin = clocks()
        data: bytes = self._inner.recv(size)
        self._marks.add("answered", *clocks(), at=begin)
        return data


def trace(marks: Marks) -> None:
    """Wrap the stages of one update."""
    _trace_stream(marks)
    _trace_loop(marks)
    _trace_netlink(marks)
    _trace_settings(marks)
    _trace_processes(marks)


def _trace_stream(marks: Marks) -> None:
    receive, take = MqttSource._receive, Agent.update

    def traced_receive(self: MqttSource, message: Any, sink: Any) -> None:
        at = clocks()
        marks.topic = message.topic
        marks.add("received", marks.topic, at=at)
        receive(self, message, sink)

    def traced_update(self: Agent, update: Update) -> None:
        marks.add("decoded", marks.topic)
        take(self, update)

    MqttSource._receive = traced_receive  # type: ignore[method-assign]
    Agent.update = traced_update  # type: ignore[method-assign]


def _trace_loop(marks: Marks) -> None:
    run, read = Agent.run, Configuration.read_kernel

    watched = asyncio.Event()

    async def traced_run(self: Agent) -> None:
        def resync(*, watch: bool) -> None:
            if watch:
                watched.set()
            self.comparisons.ask()

        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, functools.partial(resync, watch=False))
        loop.add_signal_handler(signal.SIGUSR2, functools.partial(resync, watch=True))
        await run(self)

    async def traced_read(self: Configuration) -> bool:
        begin = time.monotonic_ns()
        if watched.is_set():
            watched.clear()
            async with _longest_hold() as longest:
                whole = await read(self)
            marks.add("held", max(longest, default=0))
        else:
            whole = await read(self)
            marks.add("resync", begin)
        marks.flush()
        return whole

    Agent.run = traced_run  # type: ignore[method-assign]
    Configuration.read_kernel = traced_read  # type: ignore[method-assign]
    Agent.absorb = _after(Agent.absorb, lambda: marks.add("calculated"))  # type: ignore[method-assign]

    def applied() -> None:
        marks.add("applied")
        marks.flush()

    Agent._apply = _after(Agent._apply, applied)  # type: ignore[method-assign]


def _after(function: Callable[..., Awaitable[Any]], then: Callable[[], None]) -> Any:
    @functools.wraps(function)
    async def wrapped(*arguments: Any, **named: Any) -> Any:
        result = await function(*arguments, **named)
        then()
        return result

    return wrapped


@contextlib.asynccontextmanager
async def _longest_hold() -> Any:
    """Collects by how many nanoseconds a timer of the event loop came late."""
    late: list[int] = []

    async def tick() -> None:
        while True:
            due = time.monotonic_ns() + int(TICK_SECONDS * 1e9)
            await asyncio.sleep(TICK_SECONDS)
            late.append(time.monotonic_ns() - due)

    ticking = asyncio.create_task(tick())
    try:
        yield late
    finally:
        ticking.cancel()


def _trace_netlink(marks: Marks) -> None:
    opened, send, transact = NetlinkSocket._open, NetlinkSocket._send, NetlinkSocket.transact

    def traced_open(self: NetlinkSocket) -> Any:
        inner = opened(self)
        if not isinstance(inner, TracedSocket):
            self._socket = TracedSocket(inner, marks)  # type: ignore[assignment]
        return self._socket

    def traced_send(self: NetlinkSocket, requests: Sequence[Request], ack_at: int) -> None:
        traced = traced_open(self)
        traced.messages, traced.stage = len(requests), "asked" if ack_at < 0 else "sent"
        send(self, requests, ack_at)

    def traced_transact(self: NetlinkSocket, requests: Sequence[Request], *, batch: bool = False) -> dict[int, Refusal]:
        refusals = transact(self, requests, batch=batch)
        marks.add("acknowledged")
        return refusals

    NetlinkSocket._open = traced_open  # type: ignore[method-assign]
    NetlinkSocket._send = traced_send  # type: ignore[method-assign]
    NetlinkSocket.transact = traced_transact  # type: ignore[method-assign]


def _trace_settings(marks: Marks) -> None:
    def traced(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            begin = clocks()
            result = function(*arguments)
            marks.add("setting", *clocks(), at=begin)
            return result

        return wrapped

    interface_settings.read_proc = traced(interface_settings.read_proc)
    interface_settings.write_proc = traced(interface_settings.write_proc)


def _trace_processes(marks: Marks) -> None:
    begin = subprocess.Popen.__init__

    def traced_begin(self: Any, command: Any, *arguments: Any, **named: Any) -> None:
        program = command if isinstance(command, str) else command[0]
        marks.add("process", program)
        begin(self, command, *arguments, **named)

    subprocess.Popen.__init__ = traced_begin  # type: ignore[method-assign, assignment]


def main() -> None:
    path = Path(sys.argv.pop(1))
    trace(Marks(path))
    cli.main()


if __name__ == "__main__":
    main()
