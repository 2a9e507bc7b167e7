"""The endpoints of other nodes as a hub tells of them, for the MQTT source: messages in, updates out.

The decisions are ``PeerStream``'s. An endpoint of this node comes with all that belongs to it by its own topic; what
the hub says of it is left out. Invariant: no endpoint is told twice. It must never report the own endpoints.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator

from paho.mqtt.subscribeoptions import SubscribeOptions

from felixpy.model.policy import EndpointPort
from felixpy.model.resources import Kind, ResourceKey, Update, WorkloadEndpoint
from felixpy.mqtt.connection import Connection
from felixpy.mqtt.peer_stream import Changed, PeerStream
from felixpy.mqtt.peers import DELTA, IDENTITY_FILTER, SHARD_FILTER, IdentityContent, Record, endpoint_hash

READ_AGAIN_SECONDS = 5.0
"""After so long without completeness everything is asked for again: the broker dropped a part."""

_OPTIONS = SubscribeOptions(qos=1)


class HubPeers:
    """What one node takes of a hub's peers."""

    def __init__(self) -> None:
        self._stream = PeerStream()
        self._own: set[bytes] = set()
        self._was_complete = False
        self._moved = asyncio.Event()

    @property
    def pending(self) -> str:
        """Why the endpoints of other nodes were not read yet on this connection; empty once they were."""
        return "" if self._was_complete else self._stream.incomplete

    def on_connected(self) -> None:
        self._was_complete = False
        self._stream.on_connected()
        self._moved.set()

    def on_message(self, topic: str, payload: bytes) -> Iterator[Update]:
        """A topic of peers has this content."""
        reading = self._stream.is_reading
        changed = self._stream.on_message(topic, payload)
        self._was_complete = self._was_complete or self._stream.is_complete
        if self._stream.is_reading != reading:
            self._moved.set()
        now = time.monotonic_ns()
        return (_update(each, now) for each in changed if each.endpoint not in self._own)

    def own(self, key: ResourceKey, *, exists: bool) -> Iterable[Update]:
        """An endpoint of this node is known by its own topic from now on, or no more."""
        endpoint = endpoint_hash(key)
        if exists == (endpoint in self._own):
            return ()
        told = self._stream.of(endpoint)
        if exists:
            self._own.add(endpoint)
            told = told._replace(record=None, identity=None) if told else None
        else:
            self._own.discard(endpoint)
        return (_update(told, time.monotonic_ns()),) if told else ()

    async def follow(self, connection: Connection, prefix: str) -> None:
        """Subscribe for as long as the connection lasts: to changes always, to shards until they are read."""
        lasting = tuple(prefix + name for name in (DELTA, IDENTITY_FILTER))
        await connection.subscribe(lasting, options=_OPTIONS)
        while True:
            self._moved.clear()
            if not self._stream.is_reading and self._stream.is_complete:
                await self._moved.wait()
                continue
            if self._stream.is_reading:
                await connection.subscribe((prefix + SHARD_FILTER,), options=_OPTIONS)
            try:
                async with asyncio.timeout(READ_AGAIN_SECONDS):
                    await self._moved.wait()
            except TimeoutError:
                await connection.subscribe(lasting, options=_OPTIONS)
            if not self._stream.is_reading:
                await connection.unsubscribe(prefix + SHARD_FILTER)


def _update(changed: Changed, now: int) -> Update:
    key = ResourceKey(Kind.WORKLOAD_ENDPOINT, f"peer/{changed.endpoint.hex()}")
    if changed.record is None or changed.identity is None:
        return Update(key, None, received_ns=now)
    return Update(key, _endpoint(key, changed.record, changed.identity), received_ns=now)


def _endpoint(key: ResourceKey, record: Record, identity: IdentityContent) -> WorkloadEndpoint:
    return WorkloadEndpoint(
        key,
        node="",
        interface="",
        addresses=record.nets,
        labels=identity.labels,
        profiles=identity.profiles,
        ports=tuple(EndpointPort(*port) for port in identity.ports),
    )
