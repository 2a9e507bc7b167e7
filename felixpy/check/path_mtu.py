"""Whether other nodes get full packets: each is sent one echo request as large as packets of workloads become on their
way there, whole or not at all, and a small one.

A path that drops what is too large and tells nobody is a black hole: connections begin, and stop at the first full
packet. Sends these packets and nothing else, and only to addresses of nodes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Iterable, Mapping

from msgspec import Struct

from felixpy.model.net import Family, format_address

MOST_ASKED = 32
ROUNDS, WAIT_S = 2, 0.7
"""How often nodes are asked, and how long they have to answer."""
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, IPV6_DONTFRAG, PMTUDISC_PROBE = 10, 23, 62, 3  # linux/in.h, linux/in6.h
HEADERS = {Family.V4: 20 + 8, Family.V6: 40 + 8}
REQUEST, REPLY, TOO_BIG = {Family.V4: 8, Family.V6: 128}, {Family.V4: 0, Family.V6: 129}, {Family.V4: 3, Family.V6: 2}
SMALL, FULL = 1, 2
"""Sequence numbers of the two requests."""


class Path(Struct):
    """The way to another node: which requests it answered, and the MTU that a router on the way told (0: none)."""

    node: str
    family: Family
    address: bytes
    size: int
    small: bool = False
    full: bool = False
    told: int = 0

    def __str__(self) -> str:
        return f"{self.node} at {format_address(self.address)}"


def ask_paths(nodes: Iterable[tuple[str, Family, bytes]], sizes: Mapping[Family, int]) -> list[Path]:
    """Ask nodes (name, family, address), at most ``MOST_ASKED``; ``sizes`` are of whole IP packets.

    Raises:
        OSError: no raw sockets (CAP_NET_RAW).
    """
    paths = [Path(name, family, address, sizes[family]) for name, family, address in nodes if sizes.get(family)]
    paths = paths[:MOST_ASKED]
    identifier = os.getpid() & 0xFFFF
    with contextlib.ExitStack() as stack:
        sockets = {family: stack.enter_context(_socket(family)) for family in {path.family for path in paths}}
        for _ in range(ROUNDS):  # the first packet to a neighbour may only make it known
            for path in paths:
                for sequence, size, answered in ((SMALL, 100, path.small), (FULL, path.size, path.full)):
                    if not answered:
                        _send(sockets[path.family], path, identifier, sequence, size)
            _listen(sockets, {path.address: path for path in paths}, identifier)
    return paths


def _socket(family: Family) -> socket.socket:
    if family is Family.V4:
        made = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        made.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE)
    else:
        made = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        made.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_PROBE)
        made.setsockopt(socket.IPPROTO_IPV6, IPV6_DONTFRAG, 1)
    return made


def _send(sending: socket.socket, path: Path, identifier: int, sequence: int, size: int) -> None:
    body = struct.pack("!HH", identifier, sequence) + bytes(size - HEADERS[path.family])
    kind = REQUEST[path.family]
    # The kernel fills in the checksum of ICMPv6 only.
    check = _checksum(struct.pack("!BBH", kind, 0, 0) + body) if path.family is Family.V4 else 0
    try:
        sending.sendto(struct.pack("!BBH", kind, 0, check) + body, (format_address(path.address), 0))
    except OSError as error:
        if error.errno not in (errno.EMSGSIZE, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EPERM):
            raise


def _listen(sockets: Mapping[Family, socket.socket], paths: Mapping[bytes, Path], identifier: int) -> None:
    """Until every path has answered or ``WAIT_S`` is over."""
    until = time.monotonic() + WAIT_S
    families = {found.fileno(): family for family, found in sockets.items()}
    while (left := until - time.monotonic()) > 0 and not all(path.small and path.full for path in paths.values()):
        ready, _, _ = select.select(list(families), [], [], left)
        for number in ready:
            family = families[number]
            data, peer = sockets[family].recvfrom(65536)
            icmp = data[(data[0] & 15) * 4 :] if family is Family.V4 else data
            source = socket.inet_pton(socket.AF_INET if family is Family.V4 else socket.AF_INET6, peer[0].split("%")[0])
            _take(icmp, family, source, paths, identifier)


def _take(icmp: bytes, family: Family, source: bytes, paths: Mapping[bytes, Path], identifier: int) -> None:
    if len(icmp) < 8:
        return
    if icmp[0] == REPLY[family] and source in paths:
        number, sequence = struct.unpack_from("!HH", icmp, 4)
        if number == identifier:
            paths[source].small |= sequence == SMALL
            paths[source].full |= sequence == FULL
    elif icmp[0] == TOO_BIG[family] and (family is Family.V6 or icmp[1] == 4):
        first, length = (8 + 16, 4) if family is Family.V4 else (8 + 24, 16)
        path = paths.get(icmp[first : first + length])  # the destination of the packet that it is about
        if path is not None:
            path.told = struct.unpack_from("!I" if family is Family.V6 else "!xxH", icmp, 4)[0]


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
