"""Packets for the benchmark, as a plain program in a workload's namespace: ``python -m bench.traffic MODE …``.

    serve ADDRESS…              answer TCP connections (by closing them) and UDP datagrams (by sending them back)
    first ADDRESS… SECONDS      try TCP and UDP to each address again and again; print when each was first answered
    connect ADDRESS SECONDS     open and close TCP connections; print how many a second
    flood ADDRESS SECONDS       send small UDP datagrams; print how many a second left
    burst small|large ADDRESS   send UDP in bursts, of 64 bytes, or of 59,000 that the kernel cuts to segments; print
                                microseconds of each packet in the quickest bursts

Prints one JSON line. Times are monotonic nanoseconds. A connection is closed by a reset, so that no port stays taken.
Must never run outside a namespace of the benchmark.
"""

from __future__ import annotations

import contextlib
import errno
import json
import select
import socket
import struct
import sys
import time

ECHO, SINK = 7100, 7101
"""Ports: TCP and UDP with answers; UDP without."""
TRY_SECONDS = 0.001
"""Between two tries of ``first``: its resolution."""
TRIES_OPEN = 40
PAYLOAD = b"x" * 18  # the smallest Ethernet frame

_RESET = struct.pack("ii", 1, 0)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _stream(address: str) -> socket.socket:
    made = socket.socket(_family(address), socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    return made


def serve(addresses: list[str]) -> None:
    """Answer until killed."""
    poll = select.poll()
    sockets: dict[int, socket.socket] = {}
    for address in addresses:
        for kind, port in ((socket.SOCK_STREAM, ECHO), (socket.SOCK_DGRAM, ECHO), (socket.SOCK_DGRAM, SINK)):
            made = socket.socket(_family(address), kind)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((address, port))
            made.setblocking(False)
            if kind == socket.SOCK_STREAM:
                made.listen(4096)
            if port != SINK:  # what nobody reads is dropped at the socket, behind all that is measured
                poll.register(made, select.POLLIN)
            sockets[made.fileno()] = made
    print(json.dumps({}), flush=True)
    while True:
        for number, _ in poll.poll():
            _serve_one(sockets[number])


def _serve_one(ready: socket.socket) -> None:
    with contextlib.suppress(OSError):
        for _ in range(64):
            if ready.type == socket.SOCK_STREAM:
                ready.accept()[0].close()
            else:
                data, peer = ready.recvfrom(2048)
                ready.sendto(data, peer)


class Try:
    """Tries to reach one address over TCP and UDP until each was answered."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.answered: dict[str, int] = {}
        self._streams: list[socket.socket] = []
        self._datagrams = socket.socket(_family(address), socket.SOCK_DGRAM)
        self._datagrams.connect((address, ECHO))
        self._datagrams.setblocking(False)

    def once(self) -> None:
        if "udp" not in self.answered:
            with contextlib.suppress(OSError):
                self._datagrams.send(PAYLOAD)
        if "tcp" not in self.answered:
            stream = _stream(self.address)
            stream.setblocking(False)
            if stream.connect_ex((self.address, ECHO)) in (0, errno.EINPROGRESS):
                self._streams.append(stream)
            else:
                stream.close()
            if len(self._streams) > TRIES_OPEN:
                self._streams.pop(0).close()

    def wait(self, seconds: float) -> None:
        poll = select.poll()
        if "udp" not in self.answered:
            poll.register(self._datagrams, select.POLLIN)
        if "tcp" not in self.answered:
            for stream in self._streams:
                poll.register(stream, select.POLLOUT)
        found = poll.poll(seconds * 1000)
        now = time.monotonic_ns()
        for number, event in found:
            if number == self._datagrams.fileno():
                with contextlib.suppress(OSError):
                    self._datagrams.recv(2048)
                    self.answered.setdefault("udp", now)
            elif not event & (select.POLLERR | select.POLLHUP):
                self.answered.setdefault("tcp", now)

    @property
    def done(self) -> bool:
        return len(self.answered) == 2


def first(addresses: list[str], seconds: float) -> dict[str, dict[str, int]]:
    """When each address first answered, by protocol; what never did is absent."""
    tries = [Try(address) for address in addresses]
    print(json.dumps({}), flush=True)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not all(one.done for one in tries):
        for one in tries:
            one.once()
        for one in tries:
            if not one.done:
                one.wait(TRY_SECONDS / len(tries))
    return {one.address: one.answered for one in tries}


def connect(address: str, seconds: float) -> dict[str, float]:
    """New connections a second."""
    count, begin = 0, time.monotonic()
    while time.monotonic() - begin < seconds:
        with _stream(address) as stream:
            stream.settimeout(1)
            stream.connect((address, ECHO))
        count += 1
    return {"per_second": count / (time.monotonic() - begin)}


def flood(address: str, seconds: float) -> dict[str, float]:
    """Datagrams sent a second."""
    count, begin = 0, time.monotonic()
    with socket.socket(_family(address), socket.SOCK_DGRAM) as datagrams:
        datagrams.connect((address, SINK))
        while time.monotonic() - begin < seconds:
            for _ in range(200):
                datagrams.send(PAYLOAD)
            count += 200
    return {"per_second": count / (time.monotonic() - begin)}


UDP_SEGMENT = 103  # linux/udp.h
BURSTS = {"small": (b"x" * 64, 50, 400), "large": (b"x" * 59_000, 5, 200)}
"""Payload, packets of a burst, bursts."""
QUICKEST = 0.1
"""So many of the bursts were not disturbed, as far as can be known."""


def burst(kind: str, address: str) -> dict[str, list[float]]:
    """Sending is done by the sender's own thread up to the receiver's socket: the kernel has no other here."""
    payload, packets, count = BURSTS[kind]
    times = []
    with socket.socket(_family(address), socket.SOCK_DGRAM) as datagrams:
        datagrams.connect((address, SINK))
        if kind == "large":
            datagrams.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1_300)
        for _ in range(count):
            begin = time.perf_counter_ns()
            for _ in range(packets):
                with contextlib.suppress(ConnectionRefusedError):  # of the one before: nobody listens
                    datagrams.send(payload)
            times.append((time.perf_counter_ns() - begin) / 1000 / packets)
            time.sleep(0.0005)
    times.sort()
    return {"us": times[: max(1, int(count * QUICKEST))]}


def main() -> None:
    mode, *arguments = sys.argv[1:]
    if mode == "serve":
        serve(arguments)
    elif mode == "first":
        print(json.dumps(first(arguments[:-1], float(arguments[-1]))), flush=True)
    elif mode == "burst":
        print(json.dumps(burst(*arguments)), flush=True)
    else:
        measure = {"connect": connect, "flood": flood}[mode]
        print(json.dumps(measure(arguments[0], float(arguments[1]))), flush=True)


if __name__ == "__main__":
    main()
