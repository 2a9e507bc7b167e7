"""Keeps what a broker retains equal to a content that one program holds as a whole: for the hub.

Unlike a publisher, which changes what people name, a mirror owns the scopes: what is not in its content goes. It reads
once per connection, then writes what changes. Invariants: each scope's manifest is written behind all that is to be
written of it, and equals what is there: one that comes before is a proof that the rest is gone; a broker whose objects
are somebody else's is not touched. It must never delete anything before the content is complete.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence, Set
from uuid import uuid4

from msgspec import Struct
from msgspec.structs import replace
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from felixpy.mqtt import topics
from felixpy.mqtt.connection import Connection, StreamError
from felixpy.mqtt.ledger import Ledger
from felixpy.mqtt.manifest import Manifest, content_hash
from felixpy.mqtt.publisher import IN_FLIGHT
from felixpy.mqtt.retained import Retained

EPOCH = "hub-"
"""How the epoch of scopes begins that a hub keeps."""

NODES_PER_READ = 100
TOPICS_PER_STEP = 500
"""So many topics, and the rest of the last scope, are written before the manifests that count them."""


class Counts(Struct):
    """What was written since the start: objects, of those deletions, and topics of every kind."""

    objects: int = 0
    deleted: int = 0
    topics: int = 0


class ForeignError(StreamError):
    """The broker's objects are kept by somebody else."""


class Mirror:
    """The scopes of one broker on one connection. ``content``: what they shall hold, by topic; it may change."""

    def __init__(
        self,
        connection: Connection,
        retained: Retained,
        prefix: str,
        content: Mapping[str, bytes],
        nodes: Iterable[str],
        counts: Counts,
    ) -> None:
        self._connection = connection
        self._retained = retained
        self._prefix = prefix
        self._content = content
        self._held: dict[str, int] = {}
        self._ledgers: dict[str, Ledger] = {}
        self._unwritten: set[str] = set()
        """Scopes whose manifest does not say what is there."""
        self._nodes = set(nodes)
        self._epoch = ""
        self._counts = counts

    # --- what is there -----------------------------------------------------------------------------------------

    async def compare(self, *, take_over: bool = False) -> list[str]:
        """Read all that the broker retains; topics that are not as they shall be.

        Raises:
            ForeignError: its objects are not a hub's; ``take_over`` makes them so.
            EchoLost, StreamError
        """
        await self._retained.read(self._connection, ("sync/#",))
        manifests = self._manifests()
        self._check_owner(manifests, take_over=take_over)
        shared = manifests.get(topics.SHARED)
        self._epoch = shared.epoch if shared and shared.epoch.startswith(EPOCH) else f"{EPOCH}{uuid4().hex}"
        for segment in topics.SHARED_SEGMENTS:
            await self._read((topics.kind_filter(segment),))
        names = sorted({topics.unescape(scope.removeprefix("node/")) for scope in manifests if scope != topics.SHARED})
        every = iter(sorted({*names, *self._nodes, *_nodes_of(self._content)}))
        while some := list(itertools.islice(every, NODES_PER_READ)):
            await self._read([topics.kind_filter(segment, node) for node in some for segment in topics.NODE_SEGMENTS])
        self._count(manifests)
        self._retained.foreign.clear()
        return [topic for topic in {**self._held, **self._content} if self._is_wrong(topic)]

    def _manifests(self) -> dict[str, Manifest]:
        scopes = [scope for topic in self._retained.content if (scope := topics.scope_of_manifest(topic)) is not None]
        return {scope: found for scope in scopes if (found := self._retained.manifest(scope)) is not None}

    def _check_owner(self, manifests: Mapping[str, Manifest], *, take_over: bool) -> None:
        shared = manifests.get(topics.SHARED)
        if shared is None or not shared.counts or shared.epoch.startswith(EPOCH) or take_over:
            return
        raise ForeignError(
            f"the objects under {self._prefix} are kept by 'felixpy apply', and a hub would remove what the API server "
            "does not have; give the hub a root of its own (FELIX_MQTTTOPICROOT), or start it once with --take-over"
        )

    async def _read(self, filters: Sequence[str]) -> None:
        await self._retained.read(self._connection, filters)
        for topic in [each for each in self._retained.content if topics.key_of(each) is not None]:
            self._held[topic] = content_hash(topic, self._retained.content.pop(topic))

    def _count(self, manifests: Mapping[str, Manifest]) -> None:
        """Ledgers of what is there; scopes whose manifest says something else are to be written."""
        empty = Manifest({})
        for scope in {
            topics.SHARED,
            *manifests,
            *map(topics.scope_of, self._held),
            *map(topics.node_scope, self._nodes),
        }:
            before = manifests.get(scope, empty)
            self._ledgers[scope] = Ledger(Manifest({}, epoch=self._epoch, rev=before.rev))
        for topic, digest in self._held.items():
            self._ledgers[topics.scope_of(topic)].change_hash(topic, None, digest)
        for scope, ledger in self._ledgers.items():
            there, said = ledger.manifest(), manifests.get(scope)
            if said is None or replace(there, rev=said.rev) != said:
                self._unwritten.add(scope)

    def _is_wrong(self, topic: str) -> bool:
        wanted = self._content.get(topic)
        return self._held.get(topic) != (content_hash(topic, wanted) if wanted else None)

    # --- what changes ------------------------------------------------------------------------------------------

    def node(self, name: str, *, exists: bool) -> None:
        """A node came or went: its scope has a manifest, also while it has no endpoint."""
        scope = topics.node_scope(name)
        if exists:
            self._nodes.add(name)
            if scope not in self._ledgers:
                self._ledger(scope)
        else:
            self._nodes.discard(name)
            self._unwritten.add(scope)

    async def write(self, changed: Iterable[str]) -> None:
        """Write topics as the content has them now, and the manifests that count them; then all others that are wrong.

        Raises:
            StreamError: the connection, or another client that writes into these scopes.
        """
        by_scope = itertools.groupby(sorted(changed, key=topics.scope_of), key=topics.scope_of)
        step: list[str] = []
        for _, of_scope in by_scope:
            step += of_scope
            if len(step) >= TOPICS_PER_STEP:
                await self._write_step(step)
                step = []
        await self._write_step(step)
        await self._put_manifests(self._unwritten)
        if self._retained.foreign:
            scopes = ", ".join(sorted(self._retained.foreign)[:3])
            raise StreamError(f"another client writes what this hub keeps ({scopes}); all is read again")

    async def _write_step(self, step: list[str]) -> None:
        await self._at_once(self._put_object(topic) for topic in step if self._is_wrong(topic))
        await self._put_manifests(self._unwritten & {topics.scope_of(topic) for topic in step})

    async def _put_manifests(self, scopes: Set[str]) -> None:
        self._unwritten = self._unwritten - scopes
        await self._at_once(self._put_manifest(scope) for scope in sorted(scopes))

    async def _put_object(self, topic: str) -> None:
        payload = self._content.get(topic, b"")
        await self.put(topic, payload)
        after = content_hash(topic, payload) if payload else None
        scope = topics.scope_of(topic)
        self._ledger(scope).change_hash(topic, self._held.pop(topic, None), after)
        self._unwritten.add(scope)
        if after is not None:
            self._held[topic] = after
        self._counts.objects += 1
        self._counts.deleted += not payload

    def _ledger(self, scope: str) -> Ledger:
        if scope not in self._ledgers:
            self._ledgers[scope] = Ledger(Manifest({}, epoch=self._epoch))
            self._unwritten.add(scope)
        return self._ledgers[scope]

    async def _put_manifest(self, scope: str) -> None:
        manifest = self._ledger(scope).manifest()
        over = scope != topics.SHARED and not manifest.counts
        if over and topics.unescape(scope.removeprefix("node/")) not in self._nodes:
            await self.put(topics.manifest_topic(scope), b"")
            self._ledgers.pop(scope, None)
        else:
            await self.put(topics.manifest_topic(scope), manifest.encode())
            self._ledgers[scope] = Ledger(manifest)

    async def put(self, topic: str, payload: bytes) -> None:
        """Write one retained topic; empty deletes it."""
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.UserProperty = [("ts", str(time.time_ns()))]
        await self._connection.publish(self._prefix + topic, payload, retain=True, properties=properties)
        self._counts.topics += 1

    async def put_all(self, content: Mapping[str, bytes]) -> None:
        """Write several topics, in any order."""
        await self._at_once(self.put(topic, payload) for topic, payload in content.items())

    @staticmethod
    async def _at_once(writes: Iterable[Awaitable[None]]) -> None:
        """Carry out writes, as many at a time as a broker takes. The first failure ends it."""
        remaining = iter(writes)

        async def work() -> None:
            for each in remaining:
                await each

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(IN_FLIGHT):
                    group.create_task(work())
        except ExceptionGroup as several:
            raise several.exceptions[0] from None


def _nodes_of(content: Iterable[str]) -> set[str]:
    """Nodes that have topics of their own."""
    scopes = {topics.scope_of(topic) for topic in content}
    return {topics.unescape(scope.removeprefix("node/")) for scope in scopes if scope != topics.SHARED}
