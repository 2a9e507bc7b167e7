"""How a hub tells every node of every endpoint: identities, and the addresses that have them. Pure.

A node needs of another node's endpoint its labels, profiles, named ports and addresses, and no more. Pods of one
deployment are alike in all but their addresses, so the first three are an *identity* with a topic of its own, and an
endpoint is a few bytes in one of 256 *shards*::

    peers/identity/<id>   JSON: labels, profiles, ports; <id> is a hash of it, so that no content ever changes
    peers/shard/<00…ff>   MessagePack: everything of the shard, as of a number of the stream
    peers/delta           MessagePack: what changed from one number to the next, in all shards

All are retained. A reader follows identities and deltas, and reads the shards once. Invariant of the writer: identities
are written before what names them, a shard before the delta that tells of the same change, and the numbers of deltas
have no gap; so a reader that subscribed to deltas before it read the shards misses nothing, and sees that it did if the
broker dropped a message.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import TypeVar

import msgspec

from felixpy.model.invalid import UNREADABLE
from felixpy.model.net import Net
from felixpy.model.policy import EndpointPort
from felixpy.model.resources import ResourceKey

T = TypeVar("T")

SHARDS = 256
KEY_BYTES = 8
IDENTITY_DIGITS = 16

DELTA = "peers/delta"
_IDENTITY, _SHARD = "peers/identity/", "peers/shard/"
IDENTITY_FILTER, SHARD_FILTER = f"{_IDENTITY}+", f"{_SHARD}+"

_V4_BYTES, _V6_BYTES = 4, 16


def is_peers(topic: str) -> bool:
    """Whether a topic is one of a hub's peers."""
    return topic.startswith("peers/")


def identity_topic(identity: str) -> str:
    return _IDENTITY + identity


def shard_topic(shard: int) -> str:
    return f"{_SHARD}{shard:02x}"


def identity_of_topic(topic: str) -> str | None:
    """The identity of a topic; None for any other topic."""
    return topic.removeprefix(_IDENTITY) if topic.startswith(_IDENTITY) else None


def shard_of_topic(topic: str) -> int | None:
    """The shard of a topic; None for any other topic."""
    digits = topic.removeprefix(_SHARD)
    if digits == topic or len(digits) != 2:
        return None
    try:
        shard = int(digits, 16)
    except ValueError:
        return None
    return shard if shard_topic(shard) == topic else None


def endpoint_hash(key: ResourceKey) -> bytes:
    """Eight bytes that stand for an endpoint. The first one is its shard."""
    return blake2b(f"{key.namespace}/{key.name}".encode(), digest_size=KEY_BYTES).digest()


def shard_of(endpoint: bytes) -> int:
    return endpoint[0]


class IdentityContent(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the endpoints of an identity have in common."""

    labels: dict[str, str] = {}
    profiles: tuple[str, ...] = ()
    ports: tuple[tuple[str, int, int], ...] = ()
    """Name, protocol number and port."""


_IDENTITY_DECODER = msgspec.json.Decoder(IdentityContent)


def encode_identity(
    labels: Mapping[str, str], profiles: Iterable[str], ports: Iterable[EndpointPort]
) -> tuple[str, bytes]:
    """Id and payload. Equal content has equal bytes, whatever the order of the labels is."""
    content = IdentityContent(
        dict(sorted(labels.items())), tuple(profiles), tuple((port.name, port.protocol, port.port) for port in ports)
    )
    payload = msgspec.json.encode(content)
    return blake2b(payload, digest_size=IDENTITY_DIGITS // 2).hexdigest(), payload


def decode_identity(payload: bytes) -> IdentityContent:
    """Raises ValueError: not an identity."""
    return _decoded(_IDENTITY_DECODER, payload)


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """An endpoint: its hash, which of the message's identities it has, its addresses one behind the other.

    ``identity`` below zero: the endpoint is gone.
    """

    endpoint: bytes
    identity: int
    v4: bytes = b""
    v6: bytes = b""


GONE = -1


class Peers(msgspec.Struct, frozen=True, array_like=True):
    """A shard, or a delta: ``number`` of the stream that it is as of, of the stream ``epoch``."""

    epoch: str
    number: int
    identities: list[str]
    entries: list[Entry]


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Peers)


class Record(msgspec.Struct, frozen=True):
    """An endpoint as both sides keep it: its identity's id and its addresses, one behind the other."""

    identity: str
    v4: bytes = b""
    v6: bytes = b""

    @property
    def nets(self) -> tuple[Net, ...]:
        """The addresses as networks of one address each."""
        found = [Net.host(self.v4[at : at + _V4_BYTES]) for at in range(0, len(self.v4), _V4_BYTES)]
        found += [Net.host(self.v6[at : at + _V6_BYTES]) for at in range(0, len(self.v6), _V6_BYTES)]
        return tuple(found)


def record(identity: str, nets: Iterable[Net]) -> Record:
    packed = [net.packed for net in nets]
    return Record(
        identity,
        b"".join(each for each in packed if len(each) == _V4_BYTES),
        b"".join(each for each in packed if len(each) == _V6_BYTES),
    )


def encode_peers(epoch: str, number: int, records: Mapping[bytes, Record | None]) -> bytes:
    """A shard or a delta; None is an endpoint that is gone. Equal content has equal bytes."""
    places: dict[str, int] = {}
    entries = []
    for endpoint, found in sorted(records.items()):
        if found is None:
            entries.append(Entry(endpoint, GONE))
        else:
            place = places.setdefault(found.identity, len(places))
            entries.append(Entry(endpoint, place, found.v4, found.v6))
    return _ENCODER.encode(Peers(epoch, number, list(places), entries))


def decode_peers(payload: bytes) -> Peers:
    """Read a shard or a delta.

    Raises:
        ValueError: it is none; says what is wrong.
    """
    peers = _decoded(_DECODER, payload)
    for entry in peers.entries:
        if len(entry.endpoint) != KEY_BYTES or entry.identity >= len(peers.identities):
            raise ValueError("an entry names no endpoint, or an identity that is not listed")
        if len(entry.v4) % _V4_BYTES or len(entry.v6) % _V6_BYTES:
            raise ValueError("an entry's addresses are cut")
    return peers


def _decoded(decoder: msgspec.json.Decoder[T] | msgspec.msgpack.Decoder[T], payload: bytes) -> T:
    try:
        return decoder.decode(payload)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UNREADABLE as error:
        raise ValueError(str(error)) from None
