"""Behind ``felixpy apply``, ``delete`` and ``get``: writes resources as retained messages and keeps the manifests true.

Steps of a write: read the topics that will change and their manifests; compare these with what is there; name the
writer in the manifests; write the topics; write the manifests. Invariant: when a write has ended well, each manifest
that it touched equals what the broker retains, as far as it was compared (``CHECKED_OBJECTS``). A scope is expected to
have one writer at a time; a second one is noticed, and the scope counted anew.
It must never publish anything of a batch that holds a bad document, unless told to; nor make a loss of objects true.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any
from uuid import uuid4

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from felixpy.config import Settings
from felixpy.model.invalid import UNREADABLE
from felixpy.model.parse import nests_deeper
from felixpy.model.resources import Kind, ResourceKey
from felixpy.mqtt import topics
from felixpy.mqtt.batch import Batch, Entry, PublishError
from felixpy.mqtt.connection import Connection, Refused, StreamError, broker_name, open_connection
from felixpy.mqtt.ledger import Ledger, counted
from felixpy.mqtt.manifest import Manifest
from felixpy.mqtt.retained import EchoLost, Retained

IN_FLIGHT = 20
"""Mosquitto takes this many unacknowledged messages from a client by default."""

WRITER_SECONDS = 3.0
"""A writer that is named in a manifest for longer than this is taken for dead; if it lives, it notices."""

ATTEMPTS = 6

CHECKED_OBJECTS = 500
"""So many objects, or twice those of the batch, are read to compare manifests with them: a write of one endpoint must
not read the ten thousand beside it."""

MAX_SHOWN_DEPTH = 100
"""What nests more deeply is listed as text: those who print it recurse several times for each step."""

Progress = Callable[[int, int], None]


class Outcome(Struct, frozen=True):
    """What a write did: topics written, left alone because they hold the same already, deleted; keys not found."""

    written: int = 0
    unchanged: int = 0
    deleted: int = 0
    missing: tuple[str, ...] = ()


class Listing(Struct, frozen=True):
    """Objects as stored, by topic. ``incomplete`` says why some may be missing; empty if none is."""

    objects: Mapping[str, Any]
    incomplete: str = ""


@contextlib.asynccontextmanager
async def open_publisher(settings: Settings, progress: Progress | None = None) -> AsyncIterator[Publisher]:
    """Connect to the broker.

    Raises:
        PublishError: no connection, or it was lost inside the block; one sentence for people.
    """
    client_id = f"felixpy-publish-{uuid4().hex[:12]}"
    retained = Retained(settings.mqtt_topic_root, client_id)
    try:
        async with (
            open_connection(settings, client_id, retained.receive) as connection,
            _ending_with(connection),
        ):
            await retained.start(connection)
            yield Publisher(connection, retained, settings, client_id, progress)
    except StreamError as error:
        raise PublishError(str(error)) from error
    except EchoLost:
        raise PublishError(
            f"the MQTT broker {broker_name(settings)} dropped messages while its retained topics were read; raise "
            "max_queued_messages in its configuration (see config/mosquitto.conf), or allow this user "
            f"{settings.mqtt_topic_root}/probe/%c there (see config/mosquitto.acl)"
        ) from None


@contextlib.asynccontextmanager
async def _ending_with(connection: Connection) -> AsyncIterator[None]:
    """Leave the block as soon as the connection is lost, not when the next acknowledgement is overdue."""
    lost = asyncio.create_task(connection.until_lost())
    block = asyncio.current_task()
    assert block is not None
    leaving = False

    def end(task: asyncio.Task[None]) -> None:
        if not (task.cancelled() or leaving):
            block.cancel()

    lost.add_done_callback(end)
    try:
        yield
    except asyncio.CancelledError:
        if lost.done() and not lost.cancelled() and block.uncancel() == 0:
            lost.result()
        raise
    finally:
        leaving = True  # what has failed in the block is its end, also if the loss is noticed a moment later
        lost.cancel()
        await asyncio.gather(lost, return_exceptions=True)


class Publisher:
    """Writes to one broker; use it through ``open_publisher``. Calls must not overlap."""

    def __init__(
        self, connection: Connection, retained: Retained, settings: Settings, client_id: str, progress: Progress | None
    ) -> None:
        self._connection = connection
        self._retained = retained
        self._prefix = f"{settings.mqtt_topic_root}/"
        self._client_id = client_id
        self._progress = progress
        self._new_epoch = uuid4().hex

    async def apply(self, batch: Batch, *, recount: bool = False) -> Outcome:
        """Publish what is not there yet, and remove endpoints from the node that they have left.

        ``recount``: do not trust the manifests; count the scopes anew, as after writes by other tools, and declare
        what is there now a fresh start (a new epoch).
        """
        return await self._write(await self._wanted(batch), recount=recount)

    async def changes(self, batch: Batch) -> dict[str, tuple[bytes, bytes]]:
        """What ``apply`` would write: content before and after by topic, where they differ; empty is none."""
        wanted = await self._wanted(batch)
        content = self._retained.content
        return {
            topic: (content.get(topic, b""), after)
            for topic, after in wanted.items()
            if content.get(topic, b"") != after
        }

    async def delete(self, batch: Batch, *, recount: bool = False) -> Outcome:
        """Delete what the documents name, on whatever node it is; ``recount`` as for ``apply``."""
        held = await self._read_held(batch)
        missing = tuple(str(entry.key) for entry, found in held.items() if not found)
        wanted = {topic: b"" for found in held.values() for topic in found}
        gone = {topics.scope_of(entry.topic) for entry, found in held.items() if entry.topic and not found}
        outcome = await self._write(wanted, recount=recount, also=gone if recount else ())
        return replace(outcome, missing=missing)

    async def forget(self, node: str) -> bool:
        """Delete what a node said of itself; false if it said nothing. One that lives says it again."""
        topic = topics.node_state_topic(node)
        await self._retained.read(self._connection, (topic,))
        if topic not in self._retained.content:
            return False
        await self._put(topic, b"")
        return True

    async def get(
        self, kind: Kind | None = None, name: str | None = None, namespace: str | None = None, node: str = "+"
    ) -> Listing:
        """Objects as stored: all, or of a kind, or of a kind and a name."""
        segments = topics.COUNTED_SEGMENTS if kind is None else (topics.SEGMENT[kind],)
        await self._retained.read(self._connection, ("sync/#", *(topics.kind_filter(part, node) for part in segments)))
        for scope, manifest in self._manifests():
            if "wep" in segments and scope != topics.SHARED and manifest.expects("wep") > len(self._in(scope, "wep")):
                await self._retained.read_namespaces(self._connection, topics.unescape(scope.removeprefix("node/")))
        objects = {
            topic: _decode(payload)
            for topic, payload in sorted(self._retained.content.items())
            if topics.segment_of(topic) in segments and _selected(topic, kind, name, namespace)
        }
        return Listing(objects, self._incomplete(segments, node))

    def _manifests(self) -> list[tuple[str, Manifest]]:
        scopes = [scope for topic in self._retained.content if (scope := topics.scope_of_manifest(topic)) is not None]
        return [(scope, manifest) for scope in sorted(scopes) if (manifest := self._retained.manifest(scope))]

    def _in(self, scope: str, segment: str) -> list[str]:
        return [topic for topic in self._retained.topics_of(scope) if topics.segment_of(topic) == segment]

    def _incomplete(self, segments: tuple[str, ...], node: str) -> str:
        gaps = []
        for scope, manifest in self._manifests():
            if scope != topics.SHARED and node not in ("+", topics.unescape(scope.removeprefix("node/"))):
                continue
            for segment in segments:
                got, want = len(self._in(scope, segment)), manifest.expects(segment)
                if got != want:
                    gaps.append(f"{segment} {got}/{want} in {topics.manifest_topic(scope)}")
        return f"the broker does not hold what its manifests say: {', '.join(gaps)}" if gaps else ""

    async def _wanted(self, batch: Batch) -> dict[str, bytes]:
        """Content by topic after an ``apply``: an endpoint leaves the node that it was on."""
        held = await self._read_held(batch)
        wanted = {entry.topic: entry.payload for entry in batch.entries}
        moved = {topic for found in held.values() for topic in found if topic not in wanted}
        return {**wanted, **dict.fromkeys(moved, b"")}

    async def _read_held(self, batch: Batch) -> dict[Entry, list[str]]:
        """Topics that hold each entry's resource now: an endpoint may be on several nodes."""
        await self._retained.read(self._connection, [entry.filter for entry in batch.entries])
        held: dict[ResourceKey, list[str]] = {}
        for topic in self._retained.content:
            if (key := topics.key_of(topic)) is not None:
                held.setdefault(key, []).append(topic)
        return {entry: held.get(entry.key, []) for entry in batch.entries}

    async def _write(self, wanted: Mapping[str, bytes], *, recount: bool, also: Iterable[str] = ()) -> Outcome:
        """Give topics their content; ``also`` are scopes to count though nothing in them changes."""
        scopes = sorted({*map(topics.scope_of, wanted), *also})
        every = {topics.SHARED, *scopes}
        await self._retained.read(self._connection, sorted(map(topics.manifest_topic, every)))
        if scopes and self._retained.manifest(topics.SHARED) is None:
            # Every agent reads the shared scope: without its manifest each start would wait for quiet time.
            scopes = sorted(every)
        await self._wait_for_writers(scopes)
        self._retained.foreign.clear()
        distrusted = [scope for scope in scopes if recount or self._untrusted(scope)]
        counts = {scope: await self._ledger(scope, anew=True, fresh=recount) for scope in distrusted}
        counts |= await self._disproved(wanted, [scope for scope in scopes if scope not in counts])
        content = self._retained.content
        before = {topic: content.get(topic, b"") for topic in wanted}
        changes = {topic: after for topic, after in wanted.items() if before[topic] != after}
        touched = {topics.scope_of(topic) for topic in changes} | counts.keys()
        ledgers = {scope: counts.get(scope) or await self._ledger(scope) for scope in sorted(touched)}
        begun: dict[str, Ledger] = {}
        try:
            for scope, ledger in ledgers.items():
                await self._put_manifest(scope, ledger.begun(self._client_id))
                begun[scope] = ledger
            await self._put_all(changes, before, ledgers)
        except Refused as refused:
            await self._finish(begun)  # what was written was written, and is counted
            done = sum(content.get(topic, b"") == after for topic, after in changes.items())
            raise PublishError(f"{refused}; {done} of {len(changes)} changes were made before") from refused
        await self._finish(ledgers)
        deleted = sum(not after for after in changes.values())
        return Outcome(len(changes) - deleted, len(wanted) - len(changes), deleted)

    async def _disproved(self, wanted: Mapping[str, bytes], scopes: list[str]) -> dict[str, Ledger]:
        """Ledgers, counted anew, of scopes whose manifest does not say what is there: others wrote without keeping it.

        Raises:
            PublishError: there is less than the manifest says. A manifest of what is left would make agents remove the
                rest, and whether it was lost or deleted cannot be told; only who writes back what was there is right.
        """
        manifests = {scope: found for scope in scopes if (found := self._retained.manifest(scope)) is not None}
        kinds = _worth_reading(wanted, manifests)
        filters = [topics.kind_filter(kind, _node_of(scope)) for scope, kind in kinds]
        await self._retained.follow(self._connection, filters)
        ledgers = {}
        for scope in self._disagreeing(kinds, manifests):
            ledgers[scope] = await self._ledger(scope, anew=True)
            manifest = self._retained.manifest(scope)
            if manifest is not None and not manifest.writer and scope not in self._retained.foreign:
                self._refuse_a_loss(scope, manifest, wanted)  # else another publisher is at it: see ``_finish``
        return ledgers

    def _refuse_a_loss(self, scope: str, manifest: Manifest, wanted: Mapping[str, bytes]) -> None:
        held = self._retained.topics_of(scope)
        there = counted(held, None, "").manifest()
        lost = [kind for kind in sorted(manifest.counts) if there.expects(kind) < manifest.expects(kind)]
        after = {**held, **{topic: payload for topic, payload in wanted.items() if topics.scope_of(topic) == scope}}
        restored = counted({topic: payload for topic, payload in after.items() if payload}, None, "").manifest()
        if lost and (restored.counts, restored.digests) != (manifest.counts, manifest.digests):
            gaps = ", ".join(f"{kind} {there.expects(kind)}/{manifest.expects(kind)}" for kind in lost)
            raise PublishError(
                f"nothing was written: the broker does not hold all that {topics.manifest_topic(scope)} counts "
                f"({gaps}), so objects were lost, or deleted without felixpy; apply those as they were, or declare "
                "that what is left is all, with --recount (felixpy apply --recount -f …)"
            )

    def _disagreeing(self, kinds: list[tuple[str, str]], manifests: Mapping[str, Manifest]) -> list[str]:
        """Scopes of kinds that are not as the manifest says."""
        there = {scope: counted(self._retained.topics_of(scope), None, "").manifest() for scope, _ in kinds}
        return sorted({scope for scope, kind in kinds if not _agree(there[scope], manifests[scope], kind)})

    def _untrusted(self, scope: str) -> bool:
        """No manifest, one that does not prove content, or one whose writer died half-way."""
        manifest = self._retained.manifest(scope)
        return manifest is None or bool(manifest.writer) or not manifest.exact(tuple(manifest.counts))

    async def _ledger(self, scope: str, *, anew: bool = False, fresh: bool = False) -> Ledger:
        manifest = self._retained.manifest(scope)
        if manifest is not None and not anew and not self._untrusted(scope):
            return Ledger(manifest)
        content = await self._retained.read_scope(self._connection, scope)
        return counted(content, None, self._new_epoch) if fresh else counted(content, manifest, self._epoch())

    def _epoch(self) -> str:
        shared = self._retained.manifest(topics.SHARED)
        return shared.epoch if shared and shared.epoch else self._new_epoch

    async def _wait_for_writers(self, scopes: Iterable[str]) -> None:
        """Let other publishers finish; one that shows no life for ``WRITER_SECONDS`` is not waited for."""
        seen: list[Manifest | None] = []
        deadline = 0.0
        while True:
            now = time.monotonic()
            busy = [found for scope in scopes if (found := self._retained.manifest(scope)) and found.writer]
            if busy != seen:
                seen, deadline = list(busy), now + WRITER_SECONDS
            if not busy or now >= deadline:
                return
            await asyncio.sleep(0.05)

    async def _finish(self, ledgers: Mapping[str, Ledger]) -> None:
        """Write the manifests; where another publisher interfered, count again until both agree."""
        for scope, ledger in ledgers.items():
            if ledger.consistent:
                await self._put_manifest(scope, ledger.manifest())
            else:
                self._retained.foreign.add(scope)
        for attempt in range(ATTEMPTS):
            await self._retained.echo(self._connection)
            conflicts = sorted(self._retained.foreign & ledgers.keys())
            if not conflicts:
                return
            await asyncio.sleep(random.uniform(0, 0.1 * 2**attempt))
            for scope in conflicts:
                await self._count_again(scope)
        raise PublishError("another publisher keeps writing the same objects; run one at a time, then apply again")

    async def _count_again(self, scope: str) -> None:
        self._retained.foreign.discard(scope)
        found = (await self._ledger(scope, anew=True)).manifest()
        present = self._retained.manifest(scope)
        if present is None or present.writer or (present.counts, present.digests) != (found.counts, found.digests):
            await self._put_manifest(scope, found)

    async def _put_manifest(self, scope: str, manifest: Manifest) -> None:
        await self._put(topics.manifest_topic(scope), manifest.encode())

    async def _put_all(
        self, changes: Mapping[str, bytes], before: Mapping[str, bytes], ledgers: Mapping[str, Ledger]
    ) -> None:
        """Write topics, several at a time, and note in the ledgers what the broker took.

        Raises:
            Refused: it did not take one; the others that were under way are written, and no more.
        """
        remaining = iter(changes.items())
        refused: list[Refused] = []
        done = 0

        async def work() -> None:
            nonlocal done
            for topic, payload in remaining:
                try:
                    await self._put(topic, payload)
                except Refused as error:
                    refused.append(error)
                    return
                ledgers[topics.scope_of(topic)].change(topic, before[topic], payload)
                if refused:
                    return
                done += 1
                if self._progress is not None:
                    self._progress(done, len(changes))

        await asyncio.gather(*(work() for _ in range(min(IN_FLIGHT, len(changes)))))
        if refused:
            raise refused[0]

    async def _put(self, topic: str, payload: bytes) -> None:
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.UserProperty = [("ts", str(time.time_ns()))]
        name = self._prefix + topic
        await self._connection.publish(name, payload, retain=True, properties=properties)
        self._retained.wrote(topic, payload)


def _worth_reading(wanted: Mapping[str, bytes], manifests: Mapping[str, Manifest]) -> list[tuple[str, str]]:
    """Scopes and kinds of the topics, the smallest first, as many as may be read for a write of this size."""
    kinds = {(topics.scope_of(topic), topics.segment_of(topic)) for topic in wanted}
    sized = sorted((manifests[scope].expects(kind), scope, kind) for scope, kind in kinds if scope in manifests)
    room = max(CHECKED_OBJECTS, 2 * len(wanted))
    sums = itertools.accumulate(size for size, *_ in sized)
    return [(scope, kind) for (_, scope, kind), total in zip(sized, sums, strict=True) if total <= room]


def _agree(one: Manifest, other: Manifest, kind: str) -> bool:
    """Whether two manifests say the same of a kind."""
    return (one.expects(kind), one.digests.get(kind, 0)) == (other.expects(kind), other.digests.get(kind, 0))


def _node_of(scope: str) -> str:
    """The node of a scope, as filters have it."""
    return "+" if scope == topics.SHARED else topics.unescape(scope.removeprefix("node/"))


def _decode(payload: bytes) -> Any:
    with contextlib.suppress(*UNREADABLE):
        value = msgspec.json.decode(payload)
        if not nests_deeper(value, MAX_SHOWN_DEPTH):
            return value
    return payload.decode(errors="replace")


def _selected(topic: str, kind: Kind | None, name: str | None, namespace: str | None) -> bool:
    key = topics.key_of(topic)
    return (
        key is not None and kind in (None, key.kind) and name in (None, key.name) and namespace in (None, key.namespace)
    )
