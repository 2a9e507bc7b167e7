"""A fast publisher, and a CONNECT with another client's id.

A publisher written on the product's MQTT library would spend the processor time that the agent under test needs.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Iterator, Sequence

from bench.mqtt_wire import CONNACK, PUBACK, answers, connect_packet, publish_packet

WINDOW = 20
"""Messages without acknowledgement: Mosquitto's default for a client that sends."""


def publish(port: int, messages: Iterable[tuple[str, bytes]]) -> int:
    """Publish retained messages at QoS 1, in order; returns their number once the broker has them all."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(connect_packet(b""))
        packets = _packets(connection)
        assert next(packets) == CONNACK
        sent = acknowledged = 0
        for topic, payload in messages:
            if sent - acknowledged == WINDOW:
                # Mosquitto delays an acknowledgement until the one before it is acknowledged by TCP: ask for that.
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
                assert next(packets) == PUBACK
                acknowledged += 1
            connection.sendall(publish_packet(topic, payload, sent % 65535 + 1))
            sent += 1
        while acknowledged < sent:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            assert next(packets) == PUBACK
            acknowledged += 1
        connection.sendall(b"\xe0\0")
        return sent


def kick(port: int, client_id: str) -> None:
    """Throw a client out by connecting with its id; then leave."""
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(connect_packet(client_id.encode()))
        assert next(_packets(connection)) == CONNACK


def _packets(connection: socket.socket) -> Iterator[int]:
    """Types of the packets that arrive."""
    rest = b""
    while True:
        received = connection.recv(65536)
        assert received, "the broker closed the connection"
        types, rest = answers(rest + received)
        yield from types


def flood(port: int, batches: Iterable[Sequence[tuple[str, bytes]]], per_second: int) -> int:
    """Publish batches one after another, on average so many messages a second; returns their number."""

    def paced() -> Iterator[tuple[str, bytes]]:
        started, sent = time.monotonic(), 0
        for batch in batches:
            time.sleep(max(0.0, started + sent / per_second - time.monotonic()))
            yield from batch
            sent += len(batch)

    return publish(port, paced())
