"""Writes a cluster's content to the broker, on one connection after another.

    connect → read what the broker retains → write what differs → write what changes, in batches, for ever

Invariant: readers that stayed connected are never left with what is not true: if shards had to be mended without a
delta, a number is left out, so that everybody reads them anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections.abc import Mapping

import aiomqtt
import structlog

from felixpy.config import Settings
from felixpy.hub.content import ClusterContent
from felixpy.mqtt.connection import Connection, StreamError, broker_name, open_connection
from felixpy.mqtt.mirror import Counts, Mirror
from felixpy.mqtt.peers import (
    DELTA,
    IDENTITY_FILTER,
    SHARD_FILTER,
    Record,
    decode_peers,
    identity_of_topic,
    is_peers,
    shard_of_topic,
)
from felixpy.mqtt.retained import EchoLost, Retained
from felixpy.standing import Standing

log = structlog.get_logger(__name__)

BATCH_SECONDS, LARGE_BATCH_SECONDS = 0.1, 1.0
LARGE_NODES = 1000
"""From so many nodes on a batch is collected longer: each costs a message to every node."""

HEARTBEAT_SECONDS = 10.0
"""So often a delta is written at least: by it a node sees that it missed the one before, and that the hub lives."""

BACKOFF_FIRST_SECONDS, BACKOFF_LAST_SECONDS = 0.5, 30.0
LOST = "the hub cannot write to the broker"


class Writing:
    """The broker's copy of the content. ``in_sync``: it was equal when it was last looked at."""

    def __init__(self, settings: Settings, cluster: ClusterContent, *, take_over: bool = False) -> None:
        self._settings = settings
        self._cluster = cluster
        self._peers = cluster.peers
        self._take_over = take_over
        self._prefix = f"{settings.mqtt_topic_root}/"
        self._standing = Standing(level="warning")
        self.in_sync = False
        self.refusal = ""
        """Why nothing is written; empty if it is."""
        self.counts = Counts()

    async def run(self) -> None:
        """Write for ever."""
        attempt = 0
        while True:
            try:
                await self._session()
            except EchoLost:
                reason = f"the MQTT broker {broker_name(self._settings)} dropped messages while it was read"
            except (StreamError, aiomqtt.MqttError) as error:
                reason = str(error)
            attempt = 0 if self.in_sync else attempt + 1
            self.in_sync, self.refusal = False, reason
            delay = random.uniform(0, min(BACKOFF_LAST_SECONDS, BACKOFF_FIRST_SECONDS * 2 ** min(attempt, 16)))
            self._standing.fails(LOST, reason, retry_seconds=round(delay, 1))
            await asyncio.sleep(delay)

    async def _session(self) -> None:
        client_id = f"felixpy-hub-{secrets.token_hex(8)}"
        retained = Retained(self._settings.mqtt_topic_root, client_id)
        async with open_connection(self._settings, client_id, retained.receive) as connection:
            parts = [
                asyncio.create_task(connection.until_lost()),
                asyncio.create_task(self._write(connection, retained)),
            ]
            try:
                await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for part in parts:
                    part.cancel()
                ended = await asyncio.gather(*parts, return_exceptions=True)
        # A lost connection makes the writing fail, too; the watch of the connection (first) knows why.
        raise next(error for error in ended if isinstance(error, Exception))

    async def _write(self, connection: Connection, retained: Retained) -> None:
        await retained.start(connection)
        cluster = self._cluster
        mirror = Mirror(connection, retained, self._prefix, cluster.content, cluster.nodes, self.counts)
        cluster.changed.clear()
        cluster.changed_nodes.clear()
        wrong = await mirror.compare(take_over=self._take_over)
        self._take_over = False
        await self._mend_peers(connection, retained, mirror)
        await mirror.write(wrong)
        await self._batch(mirror)
        self.in_sync, self.refusal = True, ""
        self._standing.works(LOST)
        log.info("the broker holds what the cluster is", objects=len(cluster.content), endpoints=len(self._peers))
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await cluster.news.wait()
                    await asyncio.sleep(LARGE_BATCH_SECONDS if len(cluster.nodes) > LARGE_NODES else BATCH_SECONDS)
            await self._batch(mirror)

    async def _batch(self, mirror: Mirror) -> None:
        """Write all that changed since the last batch. Identities come before what names them, and go after it."""
        cluster = self._cluster
        cluster.news.clear()
        changed, cluster.changed = cluster.changed, set()
        nodes, cluster.changed_nodes = cluster.changed_nodes, set()
        told = self._peers.changes()
        for name in nodes:
            mirror.node(name, exists=name in cluster.nodes)
        await mirror.put_all(told.first)
        await mirror.write(changed)
        await mirror.put_all(told.shards)
        await mirror.put_all(told.delta)
        await mirror.put_all(told.last)

    async def _mend_peers(self, connection: Connection, retained: Retained, mirror: Mirror) -> None:
        """Make identities and shards what they shall be, whoever wrote them last."""
        await retained.read(connection, (DELTA, IDENTITY_FILTER, SHARD_FILTER))
        there = {topic: retained.content.pop(topic) for topic in list(retained.content) if is_peers(topic)}
        with contextlib.suppress(ValueError, KeyError):
            last = decode_peers(there[DELTA])
            self._peers.continue_from(last.epoch, max(last.number, self._peers.number))
        self._peers.forget_news()
        wanted = self._peers.everything()
        wrong = {topic: payload for topic, payload in wanted.items() if not _same(topic, there.get(topic), payload)}
        first = {topic: payload for topic, payload in wrong.items() if shard_of_topic(topic) is None}
        shards = {topic: payload for topic, payload in wrong.items() if topic not in first}
        await mirror.put_all(first)
        await mirror.put_all(shards)
        await mirror.put_all(dict.fromkeys((each for each in there if each not in wanted and each != DELTA), b""))
        if shards:
            self._peers.skip()


def _same(topic: str, there: bytes | None, wanted: bytes) -> bool:
    """Whether a topic holds what it shall, apart from the number that it was written with."""
    if there is None or identity_of_topic(topic) is not None:
        return there == wanted
    try:
        return _records(there) == _records(wanted)
    except ValueError:
        return False


def _records(payload: bytes) -> tuple[str, Mapping[bytes, Record]]:
    peers = decode_peers(payload)
    records = {each.endpoint: Record(peers.identities[each.identity], each.v4, each.v6) for each in peers.entries}
    return peers.epoch, records
