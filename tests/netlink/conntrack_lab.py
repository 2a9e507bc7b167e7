"""Conntrack entries for tests: made by the kernel's own create message, listed by the conntrack tool."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Iterable
from typing import Any, NamedTuple

from felixpy.model.net import Family, family_of, parse_address
from felixpy.netlink import conntrack
from felixpy.netlink.message import NLM_F_CREATE, NLM_F_EXCL, Request, attribute, nested
from felixpy.netlink.transport import NETLINK_NETFILTER, NetlinkSocket

CTA_TIMEOUT, CTA_ZONE = 7, 18
UDP, UNKNOWN = 17, 99
ICMP = {Family.V4: 1, Family.V6: 58}
ECHO = {Family.V4: (8, 0), Family.V6: (128, 129)}
PROTOCOLS = (1, 6, UDP, 47, UNKNOWN, 132)
"""ICMP or ICMPv6, TCP, UDP, GRE, one that the kernel knows nothing of, SCTP."""
PER_SEND = 500


class Listed(NamedTuple):
    """An entry as the tool prints it: the addresses of its four places, ports or ICMP id, zone."""

    protocol: str
    addresses: tuple[str, ...]
    ports: tuple[str, ...]
    zone: str


def listed() -> set[Listed]:
    """What the tool sees in the network namespace, both families."""
    entries = set()
    for family in ("ipv4", "ipv6"):
        command = ["conntrack", "-L", "-f", family]
        for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines():
            zone = re.search(r" zone=(\d+)", line)
            entries.add(
                Listed(
                    line.split()[0],
                    tuple(re.findall(r" (?:src|dst)=(\S+)", line)),
                    tuple(re.findall(r" (?:sport|dport|id)=(\S+)", line)),
                    zone[1] if zone else "",
                )
            )
    return entries


def without(entries: Iterable[Listed], *addresses: str) -> set[Listed]:
    """The entries that have none of the addresses."""
    return {entry for entry in entries if not set(addresses) & set(entry.addresses)}


def protocol_part(family: Family, protocol: int, ports: tuple[int, int], *, reply: bool) -> bytes:
    """CTA_TUPLE_PROTO: ports, or type, code and id of an echo; none for protocols that the kernel does not know."""
    parts = [attribute(1, bytes((protocol,)))]
    if protocol == ICMP[family]:
        first = 4 if family is Family.V4 else 7
        kind = ECHO[family][reply]
        parts += [attribute(first, struct.pack(">H", 7)), attribute(first + 1, bytes((kind,)))]
        parts.append(attribute(first + 2, b"\0"))
    elif protocol != UNKNOWN:
        parts += [attribute(2 + place, struct.pack(">H", port)) for place, port in enumerate(ports)]
    return nested(2, *parts)


def ip_tuple(kind: int, source: bytes, destination: bytes, protocol: bytes) -> bytes:
    first = 1 if len(source) == 4 else 3
    return nested(kind, nested(1, attribute(first, source), attribute(first + 1, destination)), protocol)


def create(
    source: str,
    destination: str,
    *,
    reply_source: str = "",
    reply_destination: str = "",
    ports: tuple[int, int] = (40000, 53),
    zone: int = 0,
    protocol: int = UDP,
) -> Request:
    """Create an entry; the reply is the mirrored original unless NAT is meant."""
    original = parse_address(source), parse_address(destination)
    reply = parse_address(reply_source or destination), parse_address(reply_destination or source)
    family = family_of(original[0])
    protocol = ICMP[family] if protocol in ICMP.values() else protocol
    there = protocol_part(family, protocol, ports, reply=False)
    back = protocol_part(family, protocol, ports[::-1], reply=True)
    parts = [
        bytes((family, 0, 0, 0)),
        ip_tuple(conntrack.CTA_TUPLE_ORIG, *original, there),
        ip_tuple(conntrack.CTA_TUPLE_REPLY, *reply, back),
        attribute(CTA_TIMEOUT, struct.pack(">I", 600)),
    ]
    if zone:
        parts.append(attribute(CTA_ZONE, struct.pack(">H", zone)))
    return Request(1 << 8, NLM_F_CREATE | NLM_F_EXCL, b"".join(parts))


def create_all(requests: Iterable[Request]) -> None:
    """Create entries; every one must succeed."""
    netlink = NetlinkSocket(NETLINK_NETFILTER)
    pending = list(requests)
    for start in range(0, len(pending), PER_SEND):
        assert netlink.transact(pending[start : start + PER_SEND]) == {}
    netlink.close()


def numbered(family: Family, number: int) -> str:
    """A test address: 10.1.0.0/16 or fd00:1::/112 and a number."""
    return f"10.1.{number >> 8}.{number & 255}" if family is Family.V4 else f"fd00:1::{number:x}"


class CountingSocket(NetlinkSocket):
    """A netlink socket that remembers what was asked of the kernel: (message type, number of messages)."""

    def __init__(self, protocol: int = NETLINK_NETFILTER) -> None:
        super().__init__(protocol)
        self.asked: list[tuple[int, int]] = []

    def dump(self, request: Request) -> Any:
        self.asked.append((request.type & 0xFF, 1))
        return super().dump(request)

    def transact(self, requests: Any, *, batch: bool = False) -> Any:
        if requests:
            self.asked.append((requests[0].type & 0xFF, len(requests)))
        return super().transact(requests, batch=batch)

    def table_reads(self) -> int:
        """How often a table was read."""
        return sum(kind == 1 for kind, _ in self.asked)

    def deletes(self) -> list[int]:
        """Number of delete messages in each send."""
        return [number for kind, number in self.asked if kind == 2]


class RewritingSocket(CountingSocket):
    """A netlink socket that turns requests into others on their way to the kernel."""

    def rewrite(self, request: Request) -> Request:
        raise NotImplementedError

    def dump(self, request: Request) -> Any:
        return super().dump(self.rewrite(request))


class OtherSubsystem(RewritingSocket):
    """Sends to an nfnetlink subsystem that no kernel has: the answer of a kernel without ctnetlink."""

    def rewrite(self, request: Request) -> Request:
        return request._replace(type=(99 << 8) | (request.type & 0xFF))
