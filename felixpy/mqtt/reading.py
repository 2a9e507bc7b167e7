"""How packets are read from the broker's socket: a burst in one go, and without what paho repeats for each of them.

The usual PUBLISH (received whole, QoS 0 or 1, no properties but user properties) is decoded here, in a seventh of
paho's time; everything else, and everything that is not as it should be, is paho's to judge.
Invariant: nothing that was received stays here unread when the event loop goes on, because no event would come for it;
and it does go on, however much arrives. Messages are acknowledged in their order, after what they have made due.
Uses paho's insides (``loop_read``, ``_packet_read``, ``_sock_recv``, ``_send_puback``, ``_out_packet``, the tables of
``Properties``);
changes no byte and no answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from paho.mqtt.client import Client
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

READ_SECONDS = 0.002
"""For so long packets are read in one turn of the event loop, if there are more: a burst is taken as a burst."""
ANSWER_SECONDS = 0.001
"""For so long a few messages wait for their acknowledgement: the agent sees to them first, and to what else comes. To
wake the broker up costs as much as to take a message."""
AT_ONCE = 8
"""So many are acknowledged behind what they have made due: a broker has but 20 under way by default."""
RECEIVE_BYTES = 8192
"""Some fifteen messages; what has been received is also taken when the time is over."""

_PUBLISH, _PUBACK, _USER_PROPERTY = 0x30, 0x40, 0x26
_QOS, _QOS_2 = 0x06, 0x04
_ONE_BYTE = 0x7F
"""Highest variable byte integer of one byte."""


class Message(NamedTuple):
    """What a PUBLISH brings. A request says where its answer is to go, and what to give back with it."""

    topic: str
    payload: bytes
    user_properties: list[tuple[str, str]]
    response_topic: str = ""
    correlation: bytes = b""


def read_bursts(client: Client, take: Callable[[Message], None]) -> None:
    """Let a client read what has arrived, not one packet, whenever its socket is readable.

    ``take`` gets the usual messages; others go the way of paho's callbacks.

    aiomqtt reads one packet per turn of the event loop, so that whatever else the loop does each turn would be done
    once per message: a large snapshot or a flood would outrun the agent, and not even a SUBACK would be seen in time.
    """
    _share_tables()
    _write_soon(client)
    loop = asyncio.get_running_loop()
    received = _Received(client._sock_recv)
    client._sock_recv = received.take  # type: ignore[method-assign]
    read_some, read_packet = client.loop_read, client._packet_read
    acknowledgements = bytearray()
    due: asyncio.TimerHandle | None = None

    def acknowledge(mid: int) -> MQTTErrorCode:
        acknowledgements.extend(_ACKNOWLEDGEMENT.pack(_PUBACK, _IDENTIFIER.size, mid))
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def read_one() -> MQTTErrorCode:
        try:
            usual = None if client._in_packet["command"] else received.usual()
        except BlockingIOError:
            return MQTTErrorCode.MQTT_ERR_AGAIN
        except OSError:
            usual = None  # paho meets it again, and says what it means
        if usual is None:
            return read_packet()
        message, identifier = usual
        client._last_bytes_received = time.monotonic()
        take(message)
        return acknowledge(identifier) if identifier else MQTTErrorCode.MQTT_ERR_SUCCESS

    def read(max_packets: int = 1) -> MQTTErrorCode:
        received.begin(client.socket())
        try:
            while True:
                code = read_some(max_packets)
                if code or not received.goes_on:
                    return code
        finally:
            nonlocal due
            if len(acknowledgements) >= AT_ONCE * _ACKNOWLEDGEMENT.size:
                loop.call_soon(answer)
            elif due is None:
                due = loop.call_later(ANSWER_SECONDS, answer)

    def answer() -> None:
        """Acknowledge what came; what is sent carries the acknowledgement of TCP, too."""
        nonlocal due
        if due is not None:
            due.cancel()
            due = None
        data = bytes(acknowledgements)  # a packet each, but one send
        acknowledgements.clear()
        if not data:
            _acknowledge(client.socket())
        elif (sent := _send_now(client, data)) < len(data):
            client._packet_queue(_PUBACK, data[sent:], 0, 1)

    client._send_puback = acknowledge  # type: ignore[method-assign]
    client._packet_read = read_one  # type: ignore[method-assign]
    client.loop_read = read  # type: ignore[method-assign]


def _send_now(client: Client, data: bytes) -> int:
    """Send, if nothing of the client's waits, as much as goes at once: how many bytes that was.

    Its own way, by its queue and the event loop, takes sixty calls of functions for each message.
    """
    sock = client.socket()
    if sock is None or client._out_packet:
        return 0
    try:
        sent: int = sock.send(data)
    except OSError:  # also of TLS that has to read first; paho's writer meets it again, and says what it means
        return 0
    client._last_msg_out = time.monotonic()
    return sent


def _write_soon(client: Client) -> None:
    """Have what a client queues written in the next turn of the event loop, behind what is due already.

    aiomqtt waits for the event that the socket is writable, which it nearly always is: six system calls and two turns
    of the loop for each message, the first of them before the message that came has been worked off.
    """
    loop, thread = asyncio.get_running_loop(), threading.get_ident()
    wait_until_writable = client.on_socket_register_write
    assert wait_until_writable is not None

    def write() -> None:
        with contextlib.suppress(OSError):  # aiomqtt's writer meets it again, and says what it means
            client.loop_write()
        sock = client.socket()
        if sock is not None and client.want_write():
            wait_until_writable(client, None, sock)

    def register(*arguments: Any) -> None:
        if threading.get_ident() == thread:
            loop.call_soon(write)
        else:  # while it connects
            wait_until_writable(*arguments)

    client.on_socket_register_write = register


class _Received:
    """Bytes received and not taken: paho asks for one or two at a time, three times a packet."""

    def __init__(self, receive: Callable[[int], bytes]) -> None:
        self._receive = receive
        self._data, self._at = b"", 0
        self._until, self._is_tls = 0.0, False
        self._is_first, self._is_drained = True, False

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    @property
    def goes_on(self) -> bool:
        """Whether the turn is not over: something is left, or more may have arrived and there is time."""
        return self._at < len(self._data) or self._may_receive()

    def _may_receive(self) -> bool:
        return not self._is_drained and time.monotonic() < self._until

    def begin(self, sock: Any) -> None:
        """A turn of the event loop begins: one receive, and more while there is more and time."""
        self._until, self._is_tls = time.monotonic() + READ_SECONDS, isinstance(sock, ssl.SSLSocket)
        self._is_first, self._is_drained = True, False

    def take(self, bufsize: int) -> bytes:
        """As ``_sock_recv``: up to so many bytes, none if the connection is closed.

        Raises:
            BlockingIOError: nothing has arrived, or the turn is over: paho goes on with its packet in the next one.
            OSError: the connection is broken.
        """
        if not self.left:
            self._fill(max(bufsize, RECEIVE_BYTES))
        part = self._data[self._at : self._at + bufsize]
        self._at += len(part)
        return part

    def _fill(self, size: int) -> None:
        if not (self._is_first or self._may_receive()):
            raise BlockingIOError
        self._is_first = False
        try:
            self._data, self._at = self._receive(size), 0
        except BlockingIOError:
            self._is_drained = True
            raise
        # A short answer of TCP was all that had arrived, but of TLS one record comes at a time. An empty one is the end
        # of the connection, which paho has to meet, too.
        self._is_drained = not self._is_tls and 0 < len(self._data) < size

    def usual(self) -> tuple[Message, int] | None:
        """Take a usual PUBLISH, if the next packet is one: the message, and its identifier if it has to be answered.

        Raises:
            OSError: as ``take``.
        """
        if not self.left:
            self._fill(RECEIVE_BYTES)
        data, at, identifier = self._data, self._at + 2, 0
        try:
            command, size = data[at - 2], data[at - 1]
            if size > _ONE_BYTE:
                if data[at] > _ONE_BYTE:
                    return None  # 16 KiB and more
                size, at = (size & _ONE_BYTE) + (data[at] << 7), at + 1
            end = at + size
            if command & (0xF0 | _QOS_2) != _PUBLISH or end > len(data):
                return None
            topic, at = _text(data, at)
            if command & _QOS:
                (identifier,), at = _IDENTIFIER.unpack_from(data, at), at + _IDENTIFIER.size
            properties, at = _user_properties(data, at)
        except (IndexError, ValueError, struct.error):
            return None
        if at > end or not topic:
            return None
        self._at = end
        return Message(topic, data[at:end], properties), identifier


_IDENTIFIER = struct.Struct("!H")
_ACKNOWLEDGEMENT = struct.Struct("!BBH")


def _text(data: bytes, at: int) -> tuple[str, int]:
    start = at + 2
    end = start + (data[at] << 8 | data[at + 1])
    return data[start:end].decode(), end


def _user_properties(data: bytes, at: int) -> tuple[list[tuple[str, str]], int]:
    """The properties of a packet, and where they end.

    Raises:
        ValueError: there are others, or not such as one can pass over.
    """
    start = at + 1
    end, at = start + data[at], start
    found = []
    while at < end:
        if data[at] != _USER_PROPERTY:
            raise ValueError
        name, at = _text(data, at + 1)
        value, at = _text(data, at)
        if not (name.isprintable() and value.isprintable()):
            raise ValueError
        found.append((name, value))
    if at != end or data[start - 1] > _ONE_BYTE:
        raise ValueError
    return found, end


class _Properties(Properties):
    """Properties of a packet, with the tables of all that MQTT knows made once and not per packet (45 µs each)."""

    def __init__(self, packetType: int) -> None:  # noqa: N803 - paho's name
        vars(self).update(_TABLES)
        vars(self)["packetType"] = packetType

    def clear(self) -> None:
        if len(vars(self)) > len(_TABLES):
            super().clear()  # type: ignore[no-untyped-call]


_TABLES = vars(Properties(PacketTypes.PUBLISH))  # type: ignore[no-untyped-call]


def _share_tables() -> None:
    """Where packets are decoded, and only there: a caller's ``Properties`` stay of paho's class, which it checks."""
    with contextlib.suppress(ImportError):  # paho before 2.2 decodes elsewhere, and goes on as it is
        from paho.mqtt import _packet

        _packet.Properties = _Properties  # type: ignore[attr-defined]


def _acknowledge(sock: Any) -> None:
    """Acknowledge by TCP now: a broker without ``set_tcp_nodelay`` holds its next message back until then.

    That is 40 ms if the kernel waits for something to carry the acknowledgement (one message in a hundred does).
    """
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
