"""Notifications from the kernel, without those of our own requests.

A full socket buffer loses notifications (ENOBUFS): ``read`` says so by None, and then everything has to be read again.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import socket
import struct
from collections.abc import Iterable
from typing import Final

from felixpy.netlink.message import Message, parse_messages
from felixpy.netlink.transport import (
    DATAGRAM_BYTES,
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    SOL_NETLINK,
    open_socket,
)

# linux/rtnetlink.h: RTNLGRP_LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE,
# IPV4_NETCONF, IPV6_NETCONF, NEXTHOP
ROUTE_GROUPS: Final = (1, 3, 5, 7, 8, 9, 11, 19, 24, 25, 32)
NFTABLES_GROUPS: Final = (7,)  # linux/netfilter/nfnetlink.h: NFNLGRP_NFTABLES

NETLINK_ADD_MEMBERSHIP, SO_ATTACH_FILTER = 1, 26


class Monitor:
    """A notification socket of one protocol; after an overflow or an error it is a new one, with a new ``fileno``."""

    def __init__(self, protocol: int, groups: Iterable[int], ignored_ports: Iterable[int] = ()) -> None:
        self._protocol, self._groups, self._ignored = protocol, tuple(groups), tuple(ignored_ports)
        self._socket = open_monitor(self._protocol, self._groups, self._ignored)

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> list[Message] | None:
        """All notifications that wait, or None if some were lost and the socket was replaced."""
        messages: list[Message] = []
        while True:
            try:
                messages += parse_messages(self._socket.recv(DATAGRAM_BYTES))
            except BlockingIOError:
                return messages
            except InterruptedError:
                continue
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._socket.close()
                self._socket = open_monitor(self._protocol, self._groups, self._ignored)
                return None

    def close(self) -> None:
        self._socket.close()


def monitor_routing(ignored_ports: Iterable[int]) -> Monitor:
    """Links, addresses, routes, rules, neighbours and interface settings."""
    return Monitor(NETLINK_ROUTE, ROUTE_GROUPS, ignored_ports)


def monitor_nftables(ignored_ports: Iterable[int]) -> Monitor:
    """nf_tables: also the rules of iptables' NFT variant."""
    return Monitor(NETLINK_NETFILTER, NFTABLES_GROUPS, ignored_ports)


def open_monitor(protocol: int, groups: Iterable[int], ignored_ports: Iterable[int]) -> socket.socket:
    """A non-blocking socket that gets the notifications of multicast groups, but not those of our own requests.

    The kernel drops what came of ``ignored_ports`` (a classic BPF filter on ``nlmsg_pid``), so that our own bulk writes
    cannot overflow the buffer.

    Raises:
        OSError: no permission, or the kernel has no such protocol or group.
    """
    sock = open_socket(protocol)
    program = _port_filter(list(ignored_ports))
    buffer = ctypes.create_string_buffer(program)
    fprog = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, fprog)
    for group in groups:
        with contextlib.suppress(OSError):  # a family that this kernel does not have
            sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
    sock.setblocking(False)
    return sock


def _port_filter(ports: list[int]) -> bytes:
    """Classic BPF (linux/filter.h): drop messages whose ``nlmsg_pid``, at offset 12, is one of the ports."""
    load, jump_if_equal, give = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    code = [struct.pack("=HBBI", load, 0, 0, 12)]
    for index, port in enumerate(ports):
        # BPF loads words in network order, while nlmsg_pid is in the host's.
        code.append(struct.pack("=HBBI", jump_if_equal, len(ports) - index, 0, socket.htonl(port)))
    return b"".join((*code, struct.pack("=HBBI", give, 0, 0, 0xFFFFFFFF), struct.pack("=HBBI", give, 0, 0, 0)))
