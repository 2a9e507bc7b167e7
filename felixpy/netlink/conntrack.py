"""Connection-tracking entries by ctnetlink: find those of some addresses, and delete exactly these.

An entry is an address's when the address stands in any of its four places: source or destination of the original or of
the reply direction. So masqueraded flows of a workload are found, and flows that DNAT sends to it. A delete carries the
original tuple, the zone and the id as the kernel wrote them, so that a new flow with the same tuple is safe from it.

The kernel could filter a dump by address (CTA_FILTER, Linux 5.8), but must not be asked to: up to 6.18 at least it
inverts the comparison for IPv6 and leaves out just the entries that are wanted. It would pay little: one address in one
place for each walk, 4 × 15 ms for an IPv4 address in a table of 50,000 entries, against 160 ms for one dump that serves
any number of addresses of both families; below 10,000 entries the dump wins for a single address too.

Must never send a delete without an original tuple: the kernel deletes the whole table then. Everything here blocks, and
the kernel may walk its whole hash table inside one call (9 ms for 262,144 empty buckets): it belongs into a thread.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from felixpy.model.net import Family, family_of
from felixpy.netlink.message import NLA_F_NESTED, NLM_F_ACK, Message, Request, attribute, attributes
from felixpy.netlink.transport import NetlinkSocket, Refusal

# linux/netfilter/nfnetlink_conntrack.h
_SUBSYSTEM = 1 << 8
_GET, _DELETE, _GET_STATS = _SUBSYSTEM | 1, _SUBSYSTEM | 2, _SUBSYSTEM | 5
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_ID, CTA_ZONE = 1, 2, 12, 18
_TUPLE_IP, _STATS_ENTRIES = 1, 1
_FIRST_ADDRESS = {Family.V4: 1, Family.V6: 3}  # CTA_IP_V4_SRC, CTA_IP_V6_SRC; the destination is the next number
_NFGENMSG_BYTES = 4

_U16 = struct.Struct("=H")
_HEADERS = {
    # Of CTA_TUPLE_IP and of the source address in it; they stand first in either tuple.
    family: struct.pack("=HHHH", 12 + 2 * size, _TUPLE_IP | NLA_F_NESTED, 4 + size, _FIRST_ADDRESS[family])
    for family, size in ((Family.V4, 4), (Family.V6, 16))
}


class CtnetlinkMissing(Exception):
    """The kernel has no ctnetlink (nf_conntrack_netlink)."""


class Entry(NamedTuple):
    """An entry to delete: the addresses asked for that it has, and the payload that deletes it and no other."""

    addresses: tuple[bytes, ...]
    delete: bytes


class ConntrackTable:
    """The entries of the network namespace, over a netfilter socket that nobody else uses."""

    def __init__(self, netlink: NetlinkSocket) -> None:
        self.netlink = netlink

    def count(self) -> int:
        """Number of entries. Also the test for ctnetlink: the kernel answers EINVAL to a subsystem that it lacks.

        Raises:
            CtnetlinkMissing
            OSError: the kernel refused.
        """
        try:
            for message in self.netlink.dump_all(Request(_GET_STATS, NLM_F_ACK, bytes(_NFGENMSG_BYTES))):
                found = dict(attributes(message.payload, _NFGENMSG_BYTES))
                return int.from_bytes(found[_STATS_ENTRIES], "big")
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EPROTONOSUPPORT):
                raise CtnetlinkMissing(os.strerror(error.errno)) from error
            raise
        raise CtnetlinkMissing("no answer")

    def entries_of(self, addresses: frozenset[bytes]) -> Iterator[list[Entry]]:
        """Entries of these addresses, one list per datagram of the kernel; one entry may come more than once.

        What was yielded may be deleted before the next is read: the kernel then walks a few entries twice.

        Raises:
            CtnetlinkMissing
            OSError, DumpInterrupted: the kernel refused, or what it said is incomplete.
        """
        if not addresses or not self.count():
            return
        for messages in self.netlink.dump(dump_request(addresses)):
            yield list(matching(messages, addresses))

    def delete(self, entries: Sequence[Entry]) -> dict[int, Refusal]:
        """Delete entries with one send; one that is gone already is a success. Returns refusals by index.

        Raises:
            OSError: the socket broke.
        """
        refusals = self.netlink.transact([Request(_DELETE, 0, entry.delete) for entry in entries])
        return {index: refusal for index, refusal in refusals.items() if refusal.errno != errno.ENOENT}


def dump_request(addresses: Iterable[bytes]) -> Request:
    """Dump the entries of the family of these addresses, or of all families."""
    families = {family_of(address) for address in addresses}
    return Request(_GET, 0, bytes((families.pop() if len(families) == 1 else 0, 0, 0, 0)))


def matching(messages: Iterable[Message], addresses: frozenset[bytes]) -> Iterator[Entry]:
    """The entries among ``messages`` that have one of the addresses anywhere."""
    for message in messages:
        places = addresses_of(message.payload)
        if not addresses.isdisjoint(places):
            yield Entry(tuple(place for place in places if place in addresses), delete_payload(message.payload))


def addresses_of(payload: bytes) -> tuple[bytes, ...]:
    """Source and destination of the original direction, then of the reply."""
    size = 4 if payload[0] == Family.V4 else 16
    reply = _U16.unpack_from(payload, _NFGENMSG_BYTES)[0]  # length of the original tuple, multiple of four
    headers = _HEADERS.get(payload[0])  # type: ignore[call-overload]
    if payload[8:16] == headers == payload[reply + 8 : reply + 16]:
        second = 20 + size
        return (
            payload[16 : 16 + size],
            payload[second : second + size],
            payload[reply + 16 : reply + 16 + size],
            payload[reply + second : reply + second + size],
        )
    return tuple(_addresses_in_any_order(payload))


def _addresses_in_any_order(payload: bytes) -> Iterator[bytes]:
    """The same without a belief in the order in which every kernel so far has written its attributes."""
    for kind, value in attributes(payload, _NFGENMSG_BYTES):
        if kind in (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY):
            for part, content in attributes(value):
                if part == _TUPLE_IP:
                    yield from (address for _, address in attributes(content))


def delete_payload(payload: bytes) -> bytes:
    """What deletes the very entry that this message of a dump describes.

    Raises:
        ValueError: the message has no original tuple.
    """
    found = dict(attributes(payload, _NFGENMSG_BYTES))
    if CTA_TUPLE_ORIG not in found:
        raise ValueError("a conntrack entry without an original tuple must not be deleted: that deletes all entries")
    parts = [attribute(CTA_TUPLE_ORIG | NLA_F_NESTED, found[CTA_TUPLE_ORIG])]
    parts += [attribute(kind, found[kind]) for kind in (CTA_ZONE, CTA_ID) if kind in found]
    return payload[:1] + b"\0\0\0" + b"".join(parts)
