"""Keeps flows going from one namespace and counts exactly what each of them loses.

Reads the flows as one JSON line, says ``started`` when each has had its first answer, then answers every further line
with one JSON report of what happened since the report before. Ends with its standard input. Runs as a plain file
(``python -I -S sender.py``) against the responders of the lab.

Loss is never told from a clock, so that a slow machine loses nothing: a stream and a connection lose what the kernel
says it has sent again (TCP_INFO), but for what the other side says it had already (RFC 2883): that was late only. A
datagram flow loses what stays unanswered.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

DATAGRAM_S, STREAM_S, CONNECTION_S = 0.02, 0.03, 0.12
CONNECTION_TIMEOUT_S = 10.0
SETTLE_S = 1.0
"""How long a report waits for answers that are on their way, on a machine that has nothing else to do."""

TOTAL_RETRANSMITS, DUPLICATES, INFO_BYTES = 100, 216, 224
"""Offsets of ``tcpi_total_retrans`` and ``tcpi_dsack_dups`` in ``struct tcp_info`` (linux/tcp.h); bytes to ask for."""


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def retransmits(connection: socket.socket) -> int:
    """Segments that were sent again and had not arrived."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, INFO_BYTES)
    (again,), (duplicates,) = (struct.unpack_from("=I", info, offset) for offset in (TOTAL_RETRANSMITS, DUPLICATES))
    return max(0, int(again) - int(duplicates))


def stretched(seconds: float) -> float:
    """More beside busy processes, by as much as they share the processors (as ``felixpy.demo.patience.stretched``)."""
    load, _, _, running, _ = Path("/proc/loadavg").read_text().split()
    return seconds * max(1.0, max(float(load), int(running.partition("/")[0])) / len(os.sched_getaffinity(0)))


class Flow(threading.Thread):
    """One flow in a thread of its own; ``tick`` goes one step on, ``settle`` waits for what is under way."""

    def __init__(self, name: str, address: str, port: int) -> None:
        super().__init__(daemon=True)
        self.flow, self.peer = name, (address, port)
        self.family = family_of(address)
        self.started, self.wanted = threading.Event(), threading.Event()
        self.reports: queue.Queue[dict[str, Any]] = queue.Queue()
        self.peers: set[str] = set()
        self.last_answer = time.monotonic()
        self.clear()

    def clear(self) -> None:
        self.sent = self.answered = self.lost = 0
        self.silence = 0.0
        self.error = ""

    def run(self) -> None:
        while True:
            if self.wanted.is_set():
                self.wanted.clear()
                self.settle()
                self.reports.put(self.report())
                self.clear()
            self.tick()

    def report(self) -> dict[str, Any]:
        return {
            "sent": self.sent,
            "answered": self.answered,
            "lost": self.lost,
            "silence_ms": round(1000 * max(self.silence, time.monotonic() - self.last_answer if self.lost else 0.0), 1),
            "peers": sorted(self.peers),
            "error": self.error,
        }

    def tick(self) -> None:
        raise NotImplementedError

    def settle(self) -> None:
        raise NotImplementedError

    def take(self, data: bytes, *, flow: bool = True) -> None:
        """An answer: the peer address that the responder saw."""
        now = time.monotonic()
        seen = json.loads(data)
        self.peers.add(f"{seen['address']} {seen['port']}" if flow else seen["address"])
        self.silence = max(self.silence, now - self.last_answer)
        self.last_answer = now
        self.answered += 1
        self.started.set()


class Datagrams(Flow):
    """One UDP socket; every datagram is answered or lost."""

    def __init__(self, name: str, address: str, port: int) -> None:
        super().__init__(name, address, port)
        self.socket = socket.socket(self.family, socket.SOCK_DGRAM)
        self.socket.connect(self.peer)

    def tick(self) -> None:
        until = time.monotonic() + DATAGRAM_S
        self.sent += 1
        try:
            self.socket.send(b"?")
        except OSError as error:
            self.error = str(error)
        self.receive(until)

    def settle(self) -> None:
        """Nothing is sent meanwhile, so this time is no silence of the flow's."""
        began, seconds = time.monotonic(), stretched(SETTLE_S)
        while self.answered < self.sent and time.monotonic() < began + seconds:
            self.receive(time.monotonic() + 0.01)
        self.lost = self.sent - self.answered
        if self.lost:
            self.last_answer += time.monotonic() - began

    def receive(self, until: float) -> None:
        while (left := until - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                self.take(self.socket.recv(256))
            except TimeoutError:
                return
            except OSError as error:  # an ICMP error for an earlier datagram
                self.error = str(error)


class Stream(Flow):
    """One TCP connection: asks, and asks again when answered. What the kernel sends again was lost."""

    def __init__(self, name: str, address: str, port: int) -> None:
        super().__init__(name, address, port)
        self.socket: socket.socket | None = None
        self.waits = False
        self.known = 0

    def tick(self) -> None:
        if self.error:
            time.sleep(STREAM_S)
            return
        try:
            self.step()
        except OSError as error:
            self.error = str(error) or type(error).__name__

    def step(self) -> None:
        if self.socket is None:
            self.socket = socket.create_connection(self.peer, timeout=stretched(CONNECTION_TIMEOUT_S))
        if not self.waits:
            self.socket.sendall(b"?")
            self.sent += 1
            self.waits = True
        self.socket.settimeout(STREAM_S)
        try:
            data = self.socket.recv(256)
        except TimeoutError:
            return
        if not data:
            raise ConnectionResetError("closed by the other side")
        self.take(data)
        self.waits = False
        time.sleep(STREAM_S)

    def settle(self) -> None:
        until = time.monotonic() + stretched(SETTLE_S)
        while self.waits and not self.error and time.monotonic() < until:
            self.tick()
        resent = retransmits(self.socket) if self.socket else 0
        self.lost = max(0, resent - self.known) + self.waits + bool(self.error)
        self.known = max(resent, self.known)

    def clear(self) -> None:
        error = getattr(self, "error", "")
        super().clear()
        self.error = error  # a broken stream stays broken


class Connections(Flow):
    """New TCP connections, one after the other; one whose SYN or question had to be sent again counts as lost."""

    def tick(self) -> None:
        self.sent += 1
        with socket.socket(self.family, socket.SOCK_STREAM) as connection:
            connection.settimeout(stretched(CONNECTION_TIMEOUT_S))
            self.doing = "connecting"
            try:
                self.ask(connection)
            except OSError as error:
                self.lost += 1
                sent_again, port = retransmits(connection), connection.getsockname()[1]
                self.error = f"{self.doing} from port {port}: {error}; {sent_again} segments sent again"
        time.sleep(CONNECTION_S)

    def ask(self, connection: socket.socket) -> None:
        connection.connect(self.peer)
        self.doing = "asking"
        connection.sendall(b"?")
        data = connection.recv(256)
        self.lost += bool(retransmits(connection)) or not data
        if data:
            self.take(data, flow=False)

    def settle(self) -> None:
        """Each one is over before the next begins."""


KINDS: dict[str, type[Flow]] = {"stream": Stream, "datagrams": Datagrams, "connections": Connections}


def main() -> None:
    flows = [
        KINDS[spec["kind"]](spec["name"], spec["address"], spec["port"]) for spec in json.loads(sys.stdin.readline())
    ]
    for flow in flows:
        flow.start()
    silent = {flow.flow: flow.error or f"{flow.sent} asked" for flow in flows if not flow.started.wait(60)}
    print(json.dumps({"silent": silent}), flush=True)
    for _ in sys.stdin:
        for flow in flows:
            flow.wanted.set()
        print(json.dumps({flow.flow: flow.reports.get() for flow in flows}), flush=True)


if __name__ == "__main__":
    main()
