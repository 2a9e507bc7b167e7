"""Notifications from the kernel: links and host addresses.

A full socket buffer loses notifications (ENOBUFS); the reader must then read everything again (``read`` says so by
None) and the socket is replaced.
"""

from __future__ import annotations

import errno
import socket

from felixpy.netlink.rtnetlink import RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR, RTMGRP_LINK
from felixpy.netlink.transport import NETLINK_ROUTE, Message, open_socket, parse_messages


class Monitor:
    """A non-blocking notification socket; ``fileno`` changes only when ``read`` returned None."""

    def __init__(self) -> None:
        self._socket = self._open()

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> list[Message] | None:
        """All notifications that wait, or None if some were lost and the socket was replaced."""
        messages: list[Message] = []
        while True:
            try:
                messages += parse_messages(self._socket.recv(1 << 20))
            except BlockingIOError:
                return messages
            except InterruptedError:
                continue
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._socket.close()
                self._socket = self._open()
                return None

    def close(self) -> None:
        self._socket.close()

    @staticmethod
    def _open() -> socket.socket:
        sock = open_socket(NETLINK_ROUTE, RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR)
        sock.setblocking(False)
        return sock
