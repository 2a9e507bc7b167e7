"""MQTT v5 by hand, as little as publishing takes: the clock of a publish starts when its bytes go to the socket.

A client library would spend half a millisecond on each message, on the processors that carry what is measured, and
that says nothing of the network. Invariant: what is published is acknowledged by the broker before ``settled`` returns.
Speaks to a Mosquitto of the benchmark's own and to nothing else.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from pathlib import Path

WINDOW = 100
"""Messages without acknowledgement that a caller should not exceed."""
ANSWER_S = 30.0

_CONNECT, _CONNACK, _PUBLISH_QOS1_RETAIN, _PUBACK = 0x10, 0x20, 0x33, 0x40
_USER_PROPERTY = 0x26
_CLEAN_START, _NO_KEEPALIVE = 2, 0


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
        name = b"felixpy-bench"
        body = b"\0\4MQTT\5" + struct.pack("!BHBH", _CLEAN_START, _NO_KEEPALIVE, 0, len(name)) + name
        connection.sendall(bytes((_CONNECT,)) + _length(len(body)) + body)
        publisher = cls(connection)
        publisher._sent = 1  # the CONNECT: its answer counts like any other
        await publisher.settled()
        return publisher

    def publish(self, topic: str, payload: bytes) -> int:
        """Write one message; returns the monotonic nanosecond just before. ``settled`` waits for the broker."""
        name, stamp = topic.encode(), str(time.time_ns()).encode()
        properties = b"".join((bytes((_USER_PROPERTY,)), _text(b"ts"), _text(stamp)))
        identifier = self._sent % 65535 + 1
        body = b"".join((_text(name), struct.pack("!HB", identifier, len(properties)), properties, payload))
        packet = bytes((_PUBLISH_QOS1_RETAIN,)) + _length(len(body)) + body
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
        self._rest += data
        while len(self._rest) >= 2 and len(self._rest) >= 2 + self._rest[1]:  # no answer has 128 bytes
            if self._rest[0] & 0xF0 in (_CONNACK, _PUBACK):
                self._acknowledged += 1
            self._rest = self._rest[2 + self._rest[1] :]
        self._news.set()


def _text(data: bytes) -> bytes:
    return struct.pack("!H", len(data)) + data


def _length(number: int) -> bytes:
    """A variable byte integer (MQTT v5, 1.5.5)."""
    found = bytearray()
    while True:
        number, low = number >> 7, number & 127
        found.append(low | (128 if number else 0))
        if not number:
            return bytes(found)
