"""Notifications from the kernel, without those of our own requests.

A full socket buffer loses notifications (ENOBUFS): ``read`` says so by None, and then everything has to be read again.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Final

from felixpy.netlink.transport import (
    DATAGRAM_BYTES,
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    Message,
    open_monitor,
    parse_messages,
)

# linux/rtnetlink.h: RTNLGRP_LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE, IPV4_NETCONF, IPV6_NETCONF
ROUTE_GROUPS: Final = (1, 3, 5, 7, 9, 11, 24, 25)
NFTABLES_GROUPS: Final = (7,)  # linux/netfilter/nfnetlink.h: NFNLGRP_NFTABLES


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
    """Links, addresses, routes, neighbours and interface settings."""
    return Monitor(NETLINK_ROUTE, ROUTE_GROUPS, ignored_ports)


def monitor_nftables(ignored_ports: Iterable[int]) -> Monitor:
    """nf_tables: also the rules of iptables' NFT variant."""
    return Monitor(NETLINK_NETFILTER, NFTABLES_GROUPS, ignored_ports)
