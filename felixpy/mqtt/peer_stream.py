"""The endpoints of a cluster as a node follows them from a hub: what is known, and whether that is all. Pure.

Identities and deltas are followed, shards are read once per connection and whenever a delta was missed. Invariants: an
endpoint is told as soon as its identity is known and as often as it changed; a shard removes what it no longer holds,
and nothing else does; a hub or broker that is away, or that lost everything, removes nothing.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from felixpy.model.net import quote
from felixpy.mqtt.peers import (
    SHARDS,
    Entry,
    IdentityContent,
    Peers,
    Record,
    decode_identity,
    decode_peers,
    identity_of_topic,
    shard_of,
    shard_of_topic,
)

_MOST_DELTAS = 10_000
"""So many are kept for shards that were not read yet."""


class Changed(NamedTuple):
    """An endpoint of the cluster: what it is now, None if it is gone."""

    endpoint: bytes
    record: Record | None
    identity: IdentityContent | None


class PeerStream:
    """One node's view of a hub's peers."""

    def __init__(self) -> None:
        self._identities: dict[str, IdentityContent] = {}
        self._known: list[dict[bytes, Record]] = [{} for _ in range(SHARDS)]
        self._lacking: dict[str, dict[bytes, None]] = {}
        """Endpoints that could not be told yet, by the identity that is missing."""
        self._epoch = ""
        self._number = 0
        self._heard = False
        self._read: dict[int, int] = {}
        """Shards that were read on this connection, and as of which number."""
        self._deltas: deque[Peers] = deque()
        self._error = ""
        self.is_reading = False
        """Whether shards are to be read: subscribe to them, until this is false."""

    def __len__(self) -> int:
        return sum(map(len, self._known))

    @property
    def is_complete(self) -> bool:
        return not self.incomplete

    @property
    def incomplete(self) -> str:
        """Why not everything is known; empty if it is."""
        if self._error:
            return self._error
        if not self._heard:
            return "no hub has told of the endpoints of other nodes yet; does felixpy hub run?"
        if len(self._read) < SHARDS:
            return f"{len(self._read)} of {SHARDS} parts of the cluster's endpoints are read"
        if self._lacking:
            return f"{sum(map(len, self._lacking.values()))} endpoints have labels that are not known yet"
        return ""

    def on_connected(self) -> None:
        """A new connection: what is known stays, and is read anew."""
        self._heard = False
        self._read_anew()

    def _read_anew(self) -> None:
        self._read.clear()
        self._deltas.clear()
        self._error = ""
        self.is_reading = True

    def on_message(self, topic: str, payload: bytes) -> list[Changed]:
        """A topic of peers has this content. What cannot be read is an error until it is overwritten."""
        try:
            if (identity := identity_of_topic(topic)) is not None:
                return self._on_identity(identity, payload)
            if not payload:
                return []  # a hub never deletes these: a broker was emptied, and that removes nothing
            if (shard := shard_of_topic(topic)) is not None:
                return self._on_shard(shard, decode_peers(payload))
            return self._on_delta(decode_peers(payload))
        except ValueError as error:
            self._error = f"{quote(topic)[1:-1]} cannot be read: {error}"
            return []

    def _on_identity(self, identity: str, payload: bytes) -> list[Changed]:
        if not payload:
            self._identities.pop(identity, None)  # no endpoint has it any more
            return []
        if identity not in self._identities:
            self._identities[identity] = decode_identity(payload)
        waiting = self._lacking.pop(identity, {})
        return [self._changed(endpoint, self._known[shard_of(endpoint)].get(endpoint)) for endpoint in waiting]

    def _on_delta(self, delta: Peers) -> list[Changed]:
        if self._heard and (delta.epoch, delta.number) == (self._epoch, self._number):
            return []
        follows = self._heard and delta.epoch == self._epoch and delta.number == self._number + 1
        if not follows and (self._heard or self._read):  # what was read before the first delta may miss one
            self._read_anew()
        self._heard, self._epoch, self._number = True, delta.epoch, delta.number
        if len(self._read) < SHARDS:
            self._deltas.append(delta)
            if len(self._deltas) > _MOST_DELTAS:
                self._read_anew()
        found: list[Changed] = []
        for entry in delta.entries:
            number = self._read.get(shard_of(entry.endpoint))
            if number is not None and number < delta.number:
                found += self._take(entry, delta)
        return found

    def _on_shard(self, shard: int, peers: Peers) -> list[Changed]:
        if self._heard and peers.epoch != self._epoch:
            return []  # of a hub before, or after: its delta tells which
        self._epoch = peers.epoch
        found: list[Changed] = []
        there = set()
        for entry in peers.entries:
            if shard_of(entry.endpoint) == shard and entry.identity >= 0:
                there.add(entry.endpoint)
                found += self._take(entry, peers)
        for endpoint in self._known[shard].keys() - there:
            found += self._forget(endpoint)
        self._read[shard] = peers.number
        for delta in self._deltas:
            if delta.number > peers.number:
                for entry in delta.entries:
                    if shard_of(entry.endpoint) == shard:
                        found += self._take(entry, delta)
        if len(self._read) == SHARDS:
            self.is_reading = False
            self._deltas.clear()
        return found

    def _take(self, entry: Entry, peers: Peers) -> list[Changed]:
        if entry.identity < 0:
            return self._forget(entry.endpoint)
        record = Record(peers.identities[entry.identity], entry.v4, entry.v6)
        known = self._known[shard_of(entry.endpoint)]
        before = known.get(entry.endpoint)
        if before == record:
            return []
        if before is not None:
            self._lacks_no_more(entry.endpoint, before)
        known[entry.endpoint] = record
        if record.identity not in self._identities:
            self._lacking.setdefault(record.identity, {})[entry.endpoint] = None
            return []
        return [self._changed(entry.endpoint, record)]

    def _forget(self, endpoint: bytes) -> list[Changed]:
        before = self._known[shard_of(endpoint)].pop(endpoint, None)
        if before is None:
            return []
        self._lacks_no_more(endpoint, before)
        return [Changed(endpoint, None, None)]

    def _lacks_no_more(self, endpoint: bytes, record: Record) -> None:
        waiting = self._lacking.get(record.identity)
        if waiting is not None:
            waiting.pop(endpoint, None)
            if not waiting:
                del self._lacking[record.identity]

    def _changed(self, endpoint: bytes, record: Record | None) -> Changed:
        return Changed(endpoint, record, self._identities[record.identity] if record else None)

    def of(self, endpoint: bytes) -> Changed | None:
        """An endpoint as it is known, if it can be told."""
        record = self._known[shard_of(endpoint)].get(endpoint)
        if record is None or record.identity not in self._identities:
            return None
        return self._changed(endpoint, record)
