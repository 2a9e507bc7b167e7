"""Live traffic from one host of the lab until standard input ends; every second one JSON line with what became of it.

Flows are given as arguments, ``kind=address``: ``stream`` (one TCP connection that stays), ``datagrams`` (one UDP
socket that stays), ``connections`` (a new TCP connection each time); ``refused`` (datagrams that no policy allows, each
of a socket of its own) and ``silence`` (who listens for those: each that arrives counts as lost). A question is asked
again only after its answer, so ``lost`` counts questions; a TCP segment that the kernel had to send again is lost too,
unless it was answered twice. Imports the standard library only: it runs as a plain file inside a namespace.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading
import time
from dataclasses import asdict, dataclass, field

PORT = 7000
REFUSED_PORT = 7001
PATIENCE_S = 30.0
PAUSE_S = 0.02
CONNECTION_PAUSE_S = 0.05
SYN_AGAIN_S = 0.9
"""A connection that takes longer lost its first SYN: Linux repeats that after one second."""


@dataclass
class Count:
    """What became of one flow. ``lost_at``: when, on the wall clock, and how."""

    flow: str
    sent: int = 0
    lost: int = 0
    slowest_ms: float = 0.0
    lost_at: list[str] = field(default_factory=list)

    def answered(self, seconds: float) -> None:
        self.slowest_ms = max(self.slowest_ms, round(seconds * 1000, 1))

    def missed(self, why: str) -> None:
        self.lost += 1
        self.lost_at.append(f"{time.strftime('%H:%M:%S')} {why}")
        del self.lost_at[:-20]


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def retransmitted(connection: socket.socket) -> int:
    """``tcpi_total_retrans`` less the spurious ones the peer told of (``tcpi_dsack_dups``), linux/tcp.h."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 240)
    total = int(struct.unpack_from("=I", info, 100)[0])
    spurious = int(struct.unpack_from("=I", info, 216)[0]) if len(info) >= 220 else 0
    return max(total - spurious, 0)


def stream(address: str, count: Count) -> None:
    """Ask over one connection for ever; a connection that breaks is a loss, and another one is opened."""
    while True:
        try:
            with socket.create_connection((address, PORT), PATIENCE_S) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                _ask_for_ever(connection, count)
        except OSError as error:
            count.missed(f"the stream broke: {error}")
            time.sleep(PAUSE_S)


def _ask_for_ever(connection: socket.socket, count: Count) -> None:
    known = 0
    while True:
        started = time.monotonic()
        connection.sendall(b"?")
        count.sent += 1
        if not connection.recv(256):
            raise ConnectionResetError("closed by the peer")
        count.answered(time.monotonic() - started)
        again = retransmitted(connection)
        if again > known:
            count.missed(f"{again - known} segments sent again")
            known = again
        time.sleep(PAUSE_S)


def datagrams(address: str, count: Count) -> None:
    """Ask over one UDP socket for ever, each question once."""
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as flow:
        flow.settimeout(PATIENCE_S)
        flow.connect((address, PORT))
        while True:
            started = time.monotonic()
            try:
                flow.send(b"soak")
                count.sent += 1
                flow.recv(256)
                count.answered(time.monotonic() - started)
            except OSError as error:
                count.missed(f"datagram: {error}")
            time.sleep(PAUSE_S)


def connections(address: str, count: Count) -> None:
    """A new connection each time, with one question."""
    while True:
        started = time.monotonic()
        count.sent += 1
        try:
            with socket.create_connection((address, PORT), PATIENCE_S) as connection:
                opened = time.monotonic() - started
                connection.settimeout(PATIENCE_S)
                connection.sendall(b"?")
                if not connection.recv(256):
                    raise ConnectionResetError("closed by the peer")
                if opened > SYN_AGAIN_S and retransmitted(connection):
                    count.missed(f"first SYN, connected after {opened:.1f} s")
                count.answered(time.monotonic() - started)
        except OSError as error:
            count.missed(f"connection: {error}")
        time.sleep(CONNECTION_PAUSE_S)


def refused(address: str, count: Count) -> None:
    """Send what must not arrive; that nobody answers is no loss."""
    while True:
        with socket.socket(family_of(address), socket.SOCK_DGRAM) as flow:
            try:
                flow.sendto(b"refused", (address, REFUSED_PORT))
                count.sent += 1
            except OSError:
                pass  # refused by the kernel of this very host: as good as not arrived
        time.sleep(CONNECTION_PAUSE_S)


def silence(address: str, count: Count) -> None:
    """Hear what must not arrive; ``sent`` counts how often nothing did."""
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as flow:
        flow.bind((address, REFUSED_PORT))
        flow.settimeout(1.0)
        while True:
            try:
                _, sender = flow.recvfrom(256)
                count.missed(f"arrived from {sender[0]} although every policy denies it")
            except TimeoutError:
                count.sent += 1


KINDS = {
    "stream": stream,
    "datagrams": datagrams,
    "connections": connections,
    "refused": refused,
    "silence": silence,
}


def main() -> None:
    counts = []
    for flow in sys.argv[1:]:
        kind, _, address = flow.partition("=")
        counts.append(Count(flow))
        threading.Thread(target=KINDS[kind], args=(address, counts[-1]), daemon=True).start()
    threading.Thread(target=_report_for_ever, args=(counts,), daemon=True).start()
    sys.stdin.read()
    _report(counts)
    os._exit(0)


def _report_for_ever(counts: list[Count]) -> None:
    while True:
        time.sleep(1)
        _report(counts)


def _report(counts: list[Count]) -> None:
    print(json.dumps([asdict(count) for count in counts]), flush=True)


if __name__ == "__main__":
    main()
