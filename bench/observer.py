"""The second observer: a process in a node's namespace that stamps what the kernel itself tells.

Each datagram of routes, neighbours and nf_tables goes to standard output behind a header (monotonic nanoseconds,
protocol, length). The kernel tells nothing of IP set members: for those named on standard input, as JSON lines
``{"members": [[set, address, interface], …], "present": true}``, it asks the kernel after each notification and every
millisecond, and writes a record of protocol ``IPSET`` when the answer is the one expected. It decodes nothing else, so
that it costs the machine little, and runs before other processes, so that its stamps do not wait for a processor that
they keep busy. Must never write to the kernel.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import sys
import time

from felixpy.model.net import Net
from felixpy.netlink import ipset
from felixpy.netlink.ipset import Member
from felixpy.netlink.message import Request
from felixpy.netlink.monitor import open_monitor
from felixpy.netlink.transport import NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkSocket

IPSET = 255
"""Protocol number of a record about IP set members; netlink's own are all below 32."""
LOST = 254
"""Protocol number of a record that says that notifications were lost."""
HEADER = struct.Struct("=QBI")
ROUTE_GROUPS = (3, 7, 11)  # linux/rtnetlink.h: neighbours, IPv4 and IPv6 routes
NFTABLES_GROUPS = (7,)  # linux/netfilter/nfnetlink.h
_TEST = 6 << 8 | 11  # linux/netfilter/ipset/ip_set.h: IPSET_CMD_TEST
_POLL_MS = 1


def _write(kind: int, data: bytes = b"") -> None:
    record = HEADER.pack(time.monotonic_ns(), kind, len(data)) + data
    while record:
        record = record[os.write(1, record) :]


class Members:
    """Set members that are waited for."""

    def __init__(self) -> None:
        self._socket = NetlinkSocket(NETLINK_NETFILTER)
        self._present = True
        self.waiting: list[tuple[str, Request]] = []
        """What to tell of each, and the question for it."""

    def wait_for(self, line: str) -> None:
        asked = json.loads(line)
        self._present = asked["present"]
        sign = "+" if self._present else "-"
        self.waiting = [
            (
                f"{sign}member {name} {address}",
                ipset.add(name, Member(Net.parse(address), interface))._replace(type=_TEST),
            )
            for name, address, interface in asked["members"]
        ]
        self.look()

    def look(self) -> None:
        """Ask for the first, and for all if that is as expected: hundreds of questions would hold up who writes."""
        while self.waiting and self._as_expected(self.waiting[:1]):
            found = self._as_expected(self.waiting)
            for number in found:
                _write(IPSET, self.waiting[number][0].encode())
            self.waiting = [one for number, one in enumerate(self.waiting) if number not in found]

    def _as_expected(self, asked: list[tuple[str, Request]]) -> set[int]:
        absent = self._socket.transact([question for _, question in asked]).keys()
        return {number for number in range(len(asked)) if (number not in absent) is self._present}


def main() -> None:
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    monitors = {
        NETLINK_ROUTE: open_monitor(NETLINK_ROUTE, ROUTE_GROUPS, ()),
        NETLINK_NETFILTER: open_monitor(NETLINK_NETFILTER, NFTABLES_GROUPS, ()),
    }
    members = Members()
    poll = select.poll()
    poll.register(0, select.POLLIN)
    kinds = {}
    for kind, monitor in monitors.items():
        poll.register(monitor, select.POLLIN)
        kinds[monitor.fileno()] = kind, monitor
    _write(IPSET, b"ready")
    buffer = bytearray(1 << 18)
    while True:
        for number, _ in poll.poll(_POLL_MS if members.waiting else None):
            if number == 0:
                line = sys.stdin.readline()
                if not line:
                    return
                members.wait_for(line)
            else:
                _drain(*kinds[number], buffer)
        if members.waiting:
            members.look()


def _drain(kind: int, monitor: socket.socket, buffer: bytearray) -> None:
    while True:
        try:
            length = monitor.recv_into(buffer)
        except BlockingIOError:
            return
        except OSError:  # ENOBUFS: the reader was too slow for a burst
            _write(LOST)
            continue
        _write(kind, bytes(buffer[:length]))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        main()
