"""Generic netlink of WireGuard: what a device has of its own, and its peers. One message for each peer that changes.

Numbers are from linux/wireguard.h and linux/genetlink.h. pyroute2 is the oracle of these in the tests. A user-space
device takes the same by a socket of its own (``felixpy.netlink.wireguard_uapi``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from felixpy.model.net import Family, Net
from felixpy.netlink.message import (
    Message,
    Request,
    attribute,
    attributes,
    nested,
    text_attribute,
)

NETLINK_GENERIC = 16
GENL_ID_CTRL, CTRL_CMD_GETFAMILY = 0x10, 3
CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 1, 2

WG_CMD_GET_DEVICE, WG_CMD_SET_DEVICE, WG_GENL_VERSION = 0, 1, 1
WGDEVICE_A_IFNAME, WGDEVICE_A_PRIVATE_KEY, WGDEVICE_A_PUBLIC_KEY = 2, 3, 4
WGDEVICE_A_LISTEN_PORT, WGDEVICE_A_FWMARK, WGDEVICE_A_PEERS = 6, 7, 8
WGPEER_A_PUBLIC_KEY, WGPEER_A_FLAGS, WGPEER_A_ENDPOINT, WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL = 1, 3, 4, 5
WGPEER_A_LAST_HANDSHAKE_TIME, WGPEER_A_RX_BYTES, WGPEER_A_TX_BYTES, WGPEER_A_ALLOWEDIPS = 6, 7, 8, 9
WGPEER_F_REMOVE_ME, WGPEER_F_REPLACE_ALLOWEDIPS = 1, 2
WGALLOWEDIP_A_FAMILY, WGALLOWEDIP_A_IPADDR, WGALLOWEDIP_A_CIDR_MASK = 1, 2, 3

MOST_ALLOWED_IPS = 1000
"""In one message: the length of an attribute has 16 bits, and an IPv6 prefix takes 44 bytes of it."""

REJECT_AFTER_SECONDS = 180.0
"""For so long keys of a handshake are good (``REJECT_AFTER_TIME`` of the protocol)."""

_GENERIC = struct.Struct("=BBH")
_U16, _U32, _U64 = struct.Struct("=H"), struct.Struct("=I"), struct.Struct("=Q")
_FAMILY_NAME = b"wireguard\0"


class WireGuardPeer(NamedTuple):
    """A peer as a device has it. ``endpoint``: address and port, None if nothing is known of it; ``allowed``: sorted.

    ``keepalive`` is seconds, 0 for none.
    """

    endpoint: tuple[bytes, int] | None
    allowed: tuple[Net, ...]
    keepalive: int


class PeerTraffic(NamedTuple):
    """When a peer last shook hands (seconds since 1970, 0: never), and the bytes that came and went."""

    handshake: float
    received: int
    sent: int

    def is_recent(self, now: float) -> bool:
        """Whether a session may stand: after ``REJECT_AFTER_SECONDS`` both ends throw their keys away."""
        return now - self.handshake <= REJECT_AFTER_SECONDS

    def told(self, now: float) -> str:
        """In words, for people; ``now`` is seconds since 1970."""
        when = f"handshake {max(now - self.handshake, 0):.0f} s ago" if self.handshake else "no handshake"
        return f"{when}, {self.received} bytes received, {self.sent} sent"


class WireGuardDevice(NamedTuple):
    """What a device has besides being a link; the keys are 32 bytes, or empty if it has none."""

    private_key: bytes
    public_key: bytes
    port: int
    mark: int
    peers: dict[bytes, WireGuardPeer]
    traffic: dict[bytes, PeerTraffic]


class PeerChange(NamedTuple):
    """A peer to write, or to remove (``peer`` is None). ``known`` is what it had: no more than a change is sent."""

    key: bytes
    peer: WireGuardPeer | None
    known: WireGuardPeer | None = None

    @property
    def only_adds(self) -> bool:
        """Whether all allowed IPs of before stay: then others are added, and no packet finds none in between."""
        return self.peer is not None and self.known is not None and set(self.known.allowed) <= set(self.peer.allowed)

    @property
    def allowed(self) -> tuple[Net, ...]:
        """The allowed IPs to send."""
        if self.peer is None:
            return ()
        if self.only_adds and self.known is not None:
            had = set(self.known.allowed)
            return tuple(net for net in self.peer.allowed if net not in had)
        return self.peer.allowed


def family_query() -> Request:
    """Ask for the number that generic netlink gave to WireGuard; the kernel loads the module, or says ENOENT."""
    header = _GENERIC.pack(CTRL_CMD_GETFAMILY, 1, 0)
    return Request(GENL_ID_CTRL, 0, header + attribute(CTRL_ATTR_FAMILY_NAME, _FAMILY_NAME))


def decode_family(message: Message) -> int:
    found = dict(attributes(message.payload, _GENERIC.size))
    number: int = _U16.unpack(found[CTRL_ATTR_FAMILY_ID])[0]
    return number


def device_request(family: int, name: str, private_key: bytes, port: int, mark: int) -> Request:
    """Give a device its key, port and mark; peers stay."""
    return _set(
        family,
        name,
        attribute(WGDEVICE_A_PRIVATE_KEY, private_key),
        attribute(WGDEVICE_A_LISTEN_PORT, _U16.pack(port)),
        attribute(WGDEVICE_A_FWMARK, _U32.pack(mark)),
    )


def peer_requests(family: int, name: str, change: PeerChange) -> Iterator[Request]:
    """The messages of a change: one, unless a peer has more allowed IPs than fit."""
    key = attribute(WGPEER_A_PUBLIC_KEY, change.key)
    if change.peer is None:
        yield _set_peer(family, name, key, attribute(WGPEER_A_FLAGS, _U32.pack(WGPEER_F_REMOVE_ME)))
        return
    parts = [key]
    if change.peer.endpoint is not None:
        parts.append(attribute(WGPEER_A_ENDPOINT, _socket_address(*change.peer.endpoint)))
    parts.append(attribute(WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL, _U16.pack(change.peer.keepalive)))
    parts.append(attribute(WGPEER_A_FLAGS, _U32.pack(0 if change.only_adds else WGPEER_F_REPLACE_ALLOWEDIPS)))
    allowed = change.allowed
    parts.append(_allowed_ips(allowed[:MOST_ALLOWED_IPS]))
    yield _set_peer(family, name, *parts)
    for start in range(MOST_ALLOWED_IPS, len(allowed), MOST_ALLOWED_IPS):
        yield _set_peer(family, name, key, _allowed_ips(allowed[start : start + MOST_ALLOWED_IPS]))


def device_dump_request(family: int, name: str) -> Request:
    """Ask for a device with all its peers: as a dump, of one device all the same."""
    header = _GENERIC.pack(WG_CMD_GET_DEVICE, WG_GENL_VERSION, 0)
    return Request(family, 0, header + text_attribute(WGDEVICE_A_IFNAME, name))


def decode_device(messages: Iterable[Message]) -> WireGuardDevice:
    """A device of its dump. A peer with many allowed IPs goes on in the next message, under the same key."""
    own: dict[int, bytes] = {}
    peers: dict[bytes, WireGuardPeer] = {}
    traffic: dict[bytes, PeerTraffic] = {}
    for message in messages:
        found = dict(attributes(message.payload, _GENERIC.size))
        own = {**found, **own}
        for _, data in attributes(found.get(WGDEVICE_A_PEERS, b"")):
            fields = dict(attributes(data))
            key, allowed = fields[WGPEER_A_PUBLIC_KEY], tuple(_decode_allowed(fields.get(WGPEER_A_ALLOWEDIPS, b"")))
            if key in peers:
                peers[key] = peers[key]._replace(allowed=tuple(sorted((*peers[key].allowed, *allowed))))
                continue
            keepalive = _U16.unpack(fields.get(WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL, b"\0\0"))[0]
            endpoint = _decode_endpoint(fields.get(WGPEER_A_ENDPOINT, b""))
            peers[key] = WireGuardPeer(endpoint, tuple(sorted(allowed)), keepalive)
            traffic[key] = _decode_traffic(fields)
    private, public = own.get(WGDEVICE_A_PRIVATE_KEY, b""), own.get(WGDEVICE_A_PUBLIC_KEY, b"")
    port = _U16.unpack(own.get(WGDEVICE_A_LISTEN_PORT, b"\0\0"))[0]
    mark = _U32.unpack(own.get(WGDEVICE_A_FWMARK, bytes(4)))[0]
    return WireGuardDevice(private if any(private) else b"", public if any(public) else b"", port, mark, peers, traffic)


def _set(family: int, name: str, *parts: bytes) -> Request:
    header = _GENERIC.pack(WG_CMD_SET_DEVICE, WG_GENL_VERSION, 0)
    return Request(family, 0, b"".join((header, text_attribute(WGDEVICE_A_IFNAME, name), *parts)))


def _set_peer(family: int, name: str, *parts: bytes) -> Request:
    return _set(family, name, nested(WGDEVICE_A_PEERS, nested(1, *parts)))


def _allowed_ips(nets: Iterable[Net]) -> bytes:
    return nested(
        WGPEER_A_ALLOWEDIPS,
        *(
            nested(
                number,
                attribute(WGALLOWEDIP_A_FAMILY, _U16.pack(net.family)),
                attribute(WGALLOWEDIP_A_IPADDR, net.packed),
                attribute(WGALLOWEDIP_A_CIDR_MASK, bytes((net.length,))),
            )
            for number, net in enumerate(nets, 1)
        ),
    )


def _decode_allowed(data: bytes) -> Iterator[Net]:
    for _, one in attributes(data):
        fields = dict(attributes(one))
        yield Net(fields[WGALLOWEDIP_A_IPADDR], fields[WGALLOWEDIP_A_CIDR_MASK][0])


def _socket_address(address: bytes, port: int) -> bytes:
    """struct sockaddr_in, or sockaddr_in6."""
    packed = port.to_bytes(2, "big")
    if len(address) == 4:
        return _U16.pack(Family.V4) + packed + address + bytes(8)
    return _U16.pack(Family.V6) + packed + bytes(4) + address + bytes(4)


def _decode_endpoint(data: bytes) -> tuple[bytes, int] | None:
    if len(data) < 16:
        return None
    port = int.from_bytes(data[2:4], "big")
    return (data[4:8], port) if _U16.unpack_from(data)[0] == Family.V4 else (data[8:24], port)


def _decode_traffic(fields: dict[int, bytes]) -> PeerTraffic:
    seconds, nanoseconds = struct.unpack_from("=qq", fields.get(WGPEER_A_LAST_HANDSHAKE_TIME, bytes(16)))
    received, sent = (_U64.unpack(fields.get(kind, bytes(8)))[0] for kind in (WGPEER_A_RX_BYTES, WGPEER_A_TX_BYTES))
    return PeerTraffic(seconds + nanoseconds / 1e9, received, sent)
