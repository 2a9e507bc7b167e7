"""Reads what a broker retains: for publishers, which must know what they replace.

A read is finished when a message that we send to ourselves comes back: brokers hand a client its messages in order,
so that everything retained has arrived before it. Invariant: ``content`` is what the broker retained under the filters
read so far, kept current by the subscriptions. It must never hold its own client's writes back as news (``noLocal``).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable

from paho.mqtt.subscribeoptions import SubscribeOptions

from felixpy.mqtt import topics
from felixpy.mqtt.connection import Connection, Refused, StreamError
from felixpy.mqtt.manifest import Manifest, parse_manifest
from felixpy.mqtt.reading import Message

FILTERS_PER_READ = 100
ECHO_SECONDS = 5.0
"""How long a read may bring nothing before the broker is said to have dropped messages."""

NONCE_DIGITS = 19
"""More than any client counts."""

SPLIT_ABOVE = 500
"""A kind with more topics than this is read in parts: a default Mosquitto queues 1,000 messages per client."""

_READ = SubscribeOptions(qos=1, noLocal=True)
_READ_OWN = SubscribeOptions(qos=1)
_ECHO = SubscribeOptions(qos=1)


class EchoLost(Exception):
    """The broker dropped messages of ours."""


class Retained:
    """Retained topics (relative to the root) as this connection knows them."""

    def __init__(self, root: str, client_id: str) -> None:
        self.content: dict[str, bytes] = {}
        self.foreign: set[str] = set()
        """Scopes whose manifest another client has written since the latest ``read``."""
        self._followed: set[str] = set()
        self._prefix = f"{root}/"
        self._probe = topics.probe_topic(client_id)
        self._nonces = itertools.count(1)
        self._echoed = 0
        self._progress = asyncio.Event()

    def receive(self, message: Message) -> None:
        """Take a message of the connection."""
        topic, payload = message.topic.removeprefix(self._prefix), message.payload
        self._progress.set()
        if topic == self._probe:
            if payload.isdigit() and len(payload) < NONCE_DIGITS:  # others may write there, too
                self._echoed = int(payload)
            return
        scope = topics.scope_of_manifest(topic)
        if scope is not None:
            self.foreign.add(scope)
        self.wrote(topic, payload)

    def wrote(self, topic: str, payload: bytes) -> None:
        """Note the content of a topic."""
        if payload:
            self.content[topic] = payload
        else:
            self.content.pop(topic, None)

    async def start(self, connection: Connection) -> None:
        await connection.subscribe((self._prefix + self._probe,), options=_ECHO)

    async def read(self, connection: Connection, filters: Iterable[str], *, own: bool = False) -> None:
        """Read everything under the filters, a part at a time; with ``own`` also what this client wrote.

        Raises:
            EchoLost: the broker dropped messages.
        """
        filters = tuple(filters)
        remaining = iter(filters)
        while part := tuple(itertools.islice(remaining, FILTERS_PER_READ)):
            await connection.subscribe(tuple(self._prefix + name for name in part), options=_READ_OWN if own else _READ)
            await self.echo(connection)
        self._followed.update(filters)

    async def follow(self, connection: Connection, filters: Iterable[str]) -> None:
        """Read what was not read before: the rest is current by its subscription."""
        await self.read(connection, [name for name in filters if name not in self._followed])

    async def echo(self, connection: Connection) -> None:
        """Wait until everything that the broker had queued for us has arrived.

        Raises:
            EchoLost: nothing has arrived for ``ECHO_SECONDS``.
            StreamError: this client may not send itself a message.
        """
        nonce = next(self._nonces)
        try:
            await connection.publish(self._prefix + self._probe, str(nonce).encode())
        except Refused as refused:
            raise StreamError(
                f"the broker refuses to take {refused.topic} ({refused.reason}), by which felixpy learns that it has "
                f"read everything; allow each user {self._prefix}probe/%c in the broker's access "
                "rules, as config/mosquitto.acl does"
            ) from refused
        while self._echoed < nonce:
            self._progress.clear()
            try:
                async with asyncio.timeout(ECHO_SECONDS):
                    await self._progress.wait()
            except TimeoutError:
                raise EchoLost from None

    def manifest(self, scope: str) -> Manifest | None:
        """The scope's manifest; None if there is none, or none that can be used."""
        payload = self.content.get(topics.manifest_topic(scope))
        if payload is None:
            return None
        try:
            return parse_manifest(payload)
        except ValueError:
            return None

    def topics_of(self, scope: str) -> dict[str, bytes]:
        """The scope's resources as far as they were read; an agent counts no other topics either."""
        return {
            topic: payload
            for topic, payload in self.content.items()
            if topics.key_of(topic) is not None and topics.scope_of(topic) == scope
        }

    async def read_scope(self, connection: Connection, scope: str) -> dict[str, bytes]:
        """Read a whole scope anew; large ones in parts, so that the broker's queue holds each."""
        for topic in self.topics_of(scope):
            del self.content[topic]
        if scope == topics.SHARED:
            for segment in topics.SHARED_SEGMENTS:
                await self.read(connection, (topics.kind_filter(segment),), own=True)
            return self.topics_of(scope)
        node = topics.unescape(scope.removeprefix("node/"))
        for segment in topics.NODE_SEGMENTS:
            await self.read(connection, (topics.kind_filter(segment, node),), own=True)
        await self.read_namespaces(connection, node)
        return self.topics_of(scope)

    async def read_namespaces(self, connection: Connection, node: str) -> None:
        """Read a node's endpoints again, a namespace at a time, if there are many."""
        scope = topics.node_scope(node)
        manifest = self.manifest(scope)
        found = [topic for topic in self.topics_of(scope) if topics.segment_of(topic) == "wep"]
        namespaces = {topics.unescape(topic.split("/")[2]) for topic in found}
        if manifest is not None:
            namespaces.update(manifest.namespaces)
        if len(found) > SPLIT_ABOVE or (manifest is not None and len(found) < manifest.expects("wep")):
            for name in topics.namespace_filters(node, namespaces):
                await self.read(connection, (name,), own=True)
