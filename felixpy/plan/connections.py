"""The connections that this node tracks, as packets that policy can be asked about, and how many there are of each.

Invariant: reads only, and never more than ``MOST`` different ones: what is beyond is counted and told.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable

from msgspec import Struct, field

from felixpy.calc.policy.walk import WITH_PORTS, Packet
from felixpy.netlink.connections import Connection, Stage, read_connections
from felixpy.netlink.conntrack import ConntrackTable, CtnetlinkMissing
from felixpy.netlink.lookup import look_up, open_lookup
from felixpy.netlink.transport import NETLINK_NETFILTER, DumpInterrupted, NetlinkError, NetlinkSocket

MOST = 100_000
SOURCE = "conntrack, with connections that ended lately and whose entries are still there"


class Seen(Struct):
    """``packets``: how many connections there are of each, by stage. ``missing`` says what could not be read."""

    packets: dict[Packet, Counter[Stage]] = field(default_factory=dict)
    entries: int = 0
    left_out: int = 0
    of_other_zones: int = 0
    missing: str = ""

    def take(self, connection: Connection) -> None:
        self.entries += 1
        if connection.zone:
            self.of_other_zones += 1  # of Open vSwitch and such: another network behind the same addresses, maybe
            return
        packet = packet_of(connection)
        counts = self.packets.get(packet)
        if counts is None:
            if len(self.packets) >= MOST:
                self.left_out += 1
                return
            counts = self.packets[packet] = Counter()
        counts[connection.stage] += 1


def packet_of(connection: Connection) -> Packet:
    """What policy was asked when the connection began."""
    opening = connection.opening
    destination, port = connection.receiver
    if opening.protocol not in WITH_PORTS:  # GRE has keys there
        return Packet(opening.source, destination, opening.protocol, icmp=opening.icmp)
    dialled = (
        None if (opening.destination, opening.port) == (destination, port) else (opening.destination, opening.port)
    )
    return Packet(opening.source, destination, opening.protocol, opening.source_port, port, None, dialled)


def read_seen() -> Seen:
    """Everything that is tracked now."""
    seen = Seen()
    with contextlib.closing(NetlinkSocket(NETLINK_NETFILTER)) as socket:
        try:
            for connections in read_connections(ConntrackTable(socket)):
                for connection in connections:
                    seen.take(connection)
        except CtnetlinkMissing:
            seen.missing = "this kernel has no ctnetlink, so connections are not known; load nf_conntrack_netlink"
        except DumpInterrupted:
            seen.missing = "the conntrack table kept changing while it was read: some connections are missing"
        except OSError as error:
            seen.missing = f"the conntrack table cannot be read ({error.strerror or error}): connections are missing"
    return seen


class Interfaces:
    """Behind which interface addresses are, by the kernel's routes; each is asked once."""

    def __init__(self, name_of: Callable[[int], str | None]) -> None:
        self._name_of = name_of
        self._known: dict[bytes, str] = {}
        self._socket = open_lookup()

    def to(self, address: bytes) -> str:
        found = self._known.get(address)
        if found is None:
            try:
                found = self._name_of(look_up(self._socket, address).interface) or ""
            except NetlinkError:
                found = ""
            self._known[address] = found
        return found

    def close(self) -> None:
        self._socket.close()
