"""Connection-tracking entries as connections: who speaks with whom, translated or not, and how far it has come.

Both families come in one dump, one list per datagram of the kernel. Reads only. Everything here blocks, as in
``felixpy.netlink.conntrack``: it belongs into a thread or a process of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from felixpy.netlink.conntrack import CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_ZONE, ConntrackTable, dump_request
from felixpy.netlink.message import Message, attributes

# linux/netfilter/nfnetlink_conntrack.h, nf_conntrack_common.h, nf_conntrack_tcp.h
_CTA_STATUS, _CTA_PROTOINFO = 3, 4
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_SOURCES, _DESTINATIONS = (1, 3), (2, 4)
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_ICMP_TYPES, _ICMP_CODES = (5, 8), (6, 9)
_PROTOINFO_TCP, _TCP_STATE = 1, 1
_SEEN_REPLY = 1 << 1
_TCP, _TCP_CLOSED = 6, frozenset({6, 7, 8})  # LAST_ACK, TIME_WAIT, CLOSE
_NFGENMSG_BYTES = 4
_U16, _U32 = struct.Struct(">H"), struct.Struct(">I")


class Stage(StrEnum):
    """How far a connection has come. ``LIVE``: both sides have spoken, so its packets count as established.
    ``UNANSWERED``: its next packet is still a first one. ``CLOSED``: it is over, and its entry is not yet."""

    LIVE = "live"
    UNANSWERED = "unanswered"
    CLOSED = "closed"


class Ends(NamedTuple):
    """One direction of a connection; ``icmp`` is type and code of what opened it."""

    source: bytes
    destination: bytes
    protocol: int
    source_port: int = 0
    port: int = 0
    icmp: tuple[int, int] | None = None


class Connection(NamedTuple):
    """``opening`` as its first packet was sent, ``answer`` as it is answered: translated, they are no mirror images."""

    opening: Ends
    answer: Ends
    stage: Stage
    zone: int = 0

    @property
    def receiver(self) -> tuple[bytes, int]:
        """Address and port that the first packet arrived at, after any translation."""
        return self.answer.source, self.answer.source_port


def read_connections(table: ConntrackTable) -> Iterator[list[Connection]]:
    """The connections of the network namespace, one list per datagram; one may come twice, or be missed, if the table
    changes meanwhile.

    Raises:
        CtnetlinkMissing
        OSError, DumpInterrupted: the kernel refused, or what it said is incomplete.
    """
    if not table.count():
        return
    for messages in table.netlink.dump(dump_request(())):
        yield [found for message in messages if (found := decode(message)) is not None]


def decode(message: Message) -> Connection | None:
    """An entry of a dump; None for one that is not of IPv4 or IPv6."""
    found = dict(attributes(message.payload, _NFGENMSG_BYTES))
    opening, answer = (_ends(found.get(kind, b"")) for kind in (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY))
    if opening is None or answer is None:
        return None
    status = _U32.unpack(found[_CTA_STATUS])[0] if _CTA_STATUS in found else 0
    stage = Stage.LIVE if status & _SEEN_REPLY else Stage.UNANSWERED
    if opening.protocol == _TCP and _tcp_state(found.get(_CTA_PROTOINFO, b"")) in _TCP_CLOSED:
        stage = Stage.CLOSED
    zone = _U16.unpack(found[CTA_ZONE])[0] if CTA_ZONE in found else 0
    return Connection(opening, answer, stage, zone)


def _ends(data: bytes) -> Ends | None:
    parts = dict(attributes(data))
    addresses = dict(attributes(parts.get(_TUPLE_IP, b"")))
    source = next((addresses[kind] for kind in _SOURCES if kind in addresses), b"")
    destination = next((addresses[kind] for kind in _DESTINATIONS if kind in addresses), b"")
    if len(source) not in (4, 16) or len(source) != len(destination):
        return None
    proto = dict(attributes(parts.get(_TUPLE_PROTO, b"")))
    kind, code = (next((proto[one][0] for one in of if one in proto), None) for of in (_ICMP_TYPES, _ICMP_CODES))
    return Ends(
        source,
        destination,
        proto[_NUMBER][0] if _NUMBER in proto else 0,
        _port(proto.get(_SOURCE_PORT)),
        _port(proto.get(_DESTINATION_PORT)),
        None if kind is None or code is None else (kind, code),
    )


def _port(data: bytes | None) -> int:
    return _U16.unpack(data)[0] if data else 0


def _tcp_state(data: bytes) -> int:
    tcp = dict(attributes(dict(attributes(data)).get(_PROTOINFO_TCP, b"")))
    return tcp[_TCP_STATE][0] if _TCP_STATE in tcp else 0
