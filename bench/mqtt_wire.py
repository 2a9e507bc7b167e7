"""Bytes of MQTT v5, as little as publishing takes: CONNECT, PUBLISH, and which answers have arrived."""

from __future__ import annotations

import struct

CONNACK, PUBACK = 0x20, 0x40
_CONNECT, _PUBLISH_QOS1_RETAIN = 0x10, 0x33
_USER_PROPERTY = 0x26
_CLEAN_START, _NO_KEEPALIVE = 2, 0


def connect_packet(client_id: bytes) -> bytes:
    body = b"\0\4MQTT\5" + struct.pack("!BHB", _CLEAN_START, _NO_KEEPALIVE, 0) + _text(client_id)
    return bytes((_CONNECT,)) + _length(len(body)) + body


def publish_packet(
    topic: str, payload: bytes, identifier: int, user_property: tuple[bytes, bytes] | None = None
) -> bytes:
    """A retained message at QoS 1."""
    properties = bytes((_USER_PROPERTY,)) + b"".join(map(_text, user_property)) if user_property else b""
    head = _text(topic.encode()) + struct.pack("!HB", identifier, len(properties)) + properties
    return bytes((_PUBLISH_QOS1_RETAIN,)) + _length(len(head) + len(payload)) + head + payload


def answers(data: bytes) -> tuple[list[int], bytes]:
    """Types of the whole packets, and the rest. No answer to what is sent here has 128 bytes."""
    found = []
    while len(data) >= 2 and len(data) >= 2 + data[1]:
        found.append(data[0] & 0xF0)
        data = data[2 + data[1] :]
    return found, data


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
