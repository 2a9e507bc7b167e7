"""How packets are read from the broker's socket: a burst in one go, and without what paho repeats for each of them.

Invariant: nothing that was received stays here unread when the event loop goes on, because no event would come for it;
and it does go on, however much arrives.
Uses paho's insides (``loop_read``, ``_sock_recv``, the tables of ``Properties``); changes no byte and no answer.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

READ_SECONDS = 0.004
"""For so long packets are read in one turn of the event loop, if there are more: a burst is taken as a burst."""
RECEIVE_BYTES = 8192
"""Some fifteen messages; what has been received is also taken when the time is over."""


def read_bursts(client: Client) -> None:
    """Let a client read what has arrived, not one packet, whenever its socket is readable.

    aiomqtt reads one packet per turn of the event loop, so that whatever else the loop does each turn would be done
    once per message: a large snapshot or a flood would outrun the agent, and not even a SUBACK would be seen in time.
    """
    _share_tables()
    received = _Received(client._sock_recv)
    client._sock_recv = received.take  # type: ignore[method-assign]
    read_one = client.loop_read

    def read(max_packets: int = 1) -> MQTTErrorCode:
        received.begin()
        while True:
            code = read_one(max_packets)
            if code or not (received.left or (received.has_time and _readable(client.socket()))):
                _acknowledge(client.socket())
                return code

    client.loop_read = read  # type: ignore[method-assign]


class _Received:
    """Bytes received and not taken: paho asks for one or two at a time, three times a packet."""

    def __init__(self, receive: Callable[[int], bytes]) -> None:
        self._receive = receive
        self._data, self._at = b"", 0
        self._until, self._is_first = 0.0, True

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    @property
    def has_time(self) -> bool:
        return time.monotonic() < self._until

    def begin(self) -> None:
        """A turn of the event loop begins: one receive, and more while there is time."""
        self._until, self._is_first = time.monotonic() + READ_SECONDS, True

    def take(self, bufsize: int) -> bytes:
        """As ``_sock_recv``: up to so many bytes, none if the connection is closed.

        Raises:
            BlockingIOError: nothing has arrived, or the turn is over: paho goes on with its packet in the next one.
            OSError: the connection is broken.
        """
        if not self.left:
            if not (self._is_first or self.has_time):
                raise BlockingIOError
            self._is_first = False
            self._data, self._at = self._receive(max(bufsize, RECEIVE_BYTES)), 0
        part = self._data[self._at : self._at + bufsize]
        self._at += len(part)
        return part


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


def _readable(sock: Any) -> bool:
    if sock is None:
        return False
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
