"""MQTT v5 by hand, as little as publishing takes: the clock of a publish starts when its bytes go to the socket.

A client library would spend half a millisecond on each message, on the processors that carry what is measured, and
that says nothing of the network. Invariant: what is published is acknowledged by the broker before ``settled`` returns.
Speaks to a Mosquitto of the benchmark's own and to nothing else.
"""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

from bench.mqtt_wire import CONNACK, PUBACK, answers, connect_packet, publish_packet

WINDOW = 100
"""Messages without acknowledgement that a caller should not exceed."""
ANSWER_S = 30.0


class Publisher:
    """A connection that publishes retained messages at QoS 1. ``written_at``: when the latest had been written."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sent = self._acknowledged = 0
        self._news = asyncio.Event()
        self._rest = b""
        self.written_at = 0
        asyncio.get_running_loop().add_reader(connection.fileno(), self._read)

    @classmethod
    async def connect(cls, path: Path) -> Publisher:
        """Connect to the broker's Unix socket.

        Raises:
            OSError: nobody listens.
            TimeoutError: no CONNACK.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(str(path))
        connection.sendall(connect_packet(b"felixpy-bench"))
        publisher = cls(connection)
        publisher._sent = 1  # the CONNECT: its answer counts like any other
        await publisher.settled()
        return publisher

    def publish(self, topic: str, payload: bytes) -> int:
        """Write one message; returns the monotonic nanosecond just before. ``settled`` waits for the broker."""
        stamp = (b"ts", str(time.time_ns()).encode())
        packet = publish_packet(topic, payload, self._sent % 65535 + 1, stamp)
        self._sent += 1
        at = time.monotonic_ns()
        self._connection.sendall(packet)
        self.written_at = time.monotonic_ns()
        return at

    async def settled(self, unacknowledged: int = 0) -> None:
        """Wait until the broker has all messages but so many.

        Raises:
            TimeoutError: it does not answer.
            ConnectionError: it closed the connection.
        """
        async with asyncio.timeout(ANSWER_S):
            while self._sent - self._acknowledged > unacknowledged:
                self._news.clear()
                await self._news.wait()
                if self._connection.fileno() < 0:
                    raise ConnectionError("the benchmark's broker closed the publisher's connection; see its log")

    def close(self) -> None:
        """Leave."""
        if self._connection.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._connection.fileno())
            self._connection.close()

    def _read(self) -> None:
        data = self._connection.recv(65536)
        if not data:
            self.close()
        types, self._rest = answers(self._rest + data)
        self._acknowledged += sum(one in (CONNACK, PUBACK) for one in types)
        self._news.set()
