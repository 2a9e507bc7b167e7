"""What a cluster's nodes shall find on the broker, kept equal to the API server.

    reflectors ──objects──► content (topic → payload), peers, what of both changed

Invariant: ``content`` is what the API tells and no more. A kind that cannot be read, or an API server that is away,
changes nothing. It must never talk to the broker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection as AnyCollection
from functools import partial

import structlog

from felixpy.config import Settings
from felixpy.config.values import IPAMType
from felixpy.hub.objects import Published, object_reader, pod_reader, read_node
from felixpy.hub.peers import PeerTable
from felixpy.kubernetes.client import Api, ApiError
from felixpy.kubernetes.following import Following
from felixpy.kubernetes.kinds import KINDS
from felixpy.kubernetes.reflector import Collection, ObjectKey, Reflector
from felixpy.mqtt import topics
from felixpy.standing import Standing

log = structlog.get_logger(__name__)

PODS, NODES = "/api/v1/pods", "/api/v1/nodes"
SCHEDULED = "spec.nodeName!="
_BLOCK_KINDS = frozenset({"ipamblocks", "blockaffinities"})


class ClusterContent:
    """The objects of one cluster. ``run`` for ever; ``complete`` is set when all were read once."""

    def __init__(self, settings: Settings, api: Api, peers: PeerTable) -> None:
        self.content: dict[str, bytes] = {}
        self.changed: set[str] = set()
        self.nodes: set[str] = set()
        self.changed_nodes: set[str] = set()
        self.peers = peers
        self.news = asyncio.Event()
        self.complete = asyncio.Event()
        self.refused: dict[str, str] = {}
        """Objects that cannot be used, and why."""
        self._settings = settings
        self._api = api
        self._following = Following(api, object_reader)
        self._standing = Standing(level="warning")
        self._unlisted: set[str] = set()
        self._ranges: dict[str, tuple[tuple[str, bytes], ...]] = {}
        self._ranges_count = False
        self._pods = _Pods(self, "pods")
        self._nodes = _Nodes(self, "nodes")
        self._kinds = [(entry, _Objects(self, str(entry))) for entry in KINDS if not entry.lazily]

    async def run(self) -> None:
        """Follow for ever."""
        prefix = self._settings.interface_prefix[0]
        pods = Reflector(self._api, Collection(PODS, pod_reader(prefix), SCHEDULED), self._pods)
        nodes = Reflector(self._api, Collection(NODES, read_node), self._nodes)
        parts = [self._following.collection(pods), self._following.collection(nodes)]
        parts += [self._following.kind(entry, follower) for entry, follower in self._kinds]
        parts += [self._following.lazily(entry, partial(_Objects, self, str(entry))) for entry in KINDS if entry.lazily]
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(part)

    # --- what followers tell -----------------------------------------------------------------------------------

    def put(self, topic: str, payload: bytes) -> None:
        """A topic's content; empty is absent."""
        if self.content.get(topic, b"") == payload:
            return
        if payload:
            self.content[topic] = payload
        else:
            del self.content[topic]
        self.changed.add(topic)
        self.news.set()

    def services_named(self) -> None:
        self._following.services_named()

    def told(self, what: str, key: ObjectKey, error: str) -> None:
        """Why an object cannot be used, or nothing: said when it changes."""
        name = f"{what} {'/'.join(filter(None, key))}"
        if error and self.refused.get(name) != error:
            log.warning("an object cannot be used", object=name, reason=error)
        if error:
            self.refused[name] = error
        else:
            self.refused.pop(name, None)

    def node_ranges(self, name: str, blocks: tuple[tuple[str, bytes], ...], *, exists: bool) -> None:
        """A node, and what its pod CIDRs are as blocks."""
        before = self._ranges.pop(name, ())
        if blocks:
            self._ranges[name] = blocks
        if exists != (name in self.nodes):
            (self.nodes.add if exists else self.nodes.discard)(name)
            self.changed_nodes.add(name)
            self.news.set()
        if self._ranges_count:
            self._tell_ranges(before, blocks)

    def ranges_changed(self) -> None:
        """Pod CIDRs are a node's blocks where Calico's IPAM claims none, as for an agent that reads the API itself."""
        blocks = [follower for entry, follower in self._kinds if entry.plural in _BLOCK_KINDS]
        listed = not any(follower.what in self._unlisted for follower in blocks)
        claimed = any(follower.topics for follower in blocks)
        count = self._settings.ipam_type is not IPAMType.CALICO and listed and not claimed
        if count != self._ranges_count:
            self._ranges_count = count
            for ranges in self._ranges.values():
                self._tell_ranges(() if count else ranges, ranges if count else ())

    def _tell_ranges(self, before: AnyCollection[tuple[str, bytes]], after: AnyCollection[tuple[str, bytes]]) -> None:
        for topic, _ in before:
            if topic not in dict(after):
                self.put(topic, b"")
        for topic, payload in after:
            self.put(topic, payload)

    def expect(self, what: str) -> None:
        self._unlisted.add(what)

    def listed(self, what: str) -> None:
        self._unlisted.discard(what)
        self.recovered(what)
        self.ranges_changed()
        if not self._unlisted:
            self.complete.set()

    def failed(self, what: str, error: ApiError) -> None:
        self._standing.fails(f"{what} cannot be read", str(error))

    def recovered(self, what: str) -> None:
        self._standing.works(f"{what} cannot be read")

    def missing(self) -> list[str]:
        """Collections that were not read yet."""
        return sorted(self._unlisted)


class _Follower:
    """A collection: the topic that each of its objects has."""

    def __init__(self, content: ClusterContent, what: str) -> None:
        self.what = what
        self.topics: dict[ObjectKey, str] = {}
        self._content = content
        content.expect(what)

    def changed(self, key: ObjectKey, content: Published | None) -> None:
        found = content or Published()
        before = self.topics.pop(key, "")
        if before and before != found.topic:
            self._content.put(before, b"")
        if found.topic:
            self.topics[key] = found.topic
            self._content.put(found.topic, found.payload)
        self._content.told(self.what, key, found.error)

    def listed(self) -> None:
        self._content.listed(self.what)

    def failed(self, error: ApiError) -> None:
        self._content.failed(self.what, error)

    def recovered(self) -> None:
        self._content.recovered(self.what)


class _Objects(_Follower):
    """Objects that are resources already."""

    def changed(self, key: ObjectKey, content: Published | None) -> None:
        was_any = bool(self.topics)
        super().changed(key, content)
        if content is not None and content.names_services:
            self._content.services_named()
        if bool(self.topics) != was_any:
            self._content.ranges_changed()


class _Pods(_Follower):
    """Pods, which are endpoints of their node and peers of all."""

    def changed(self, key: ObjectKey, content: Published | None) -> None:
        before = self.topics.get(key, "")
        super().changed(key, content)
        if before and (content is None or content.topic != before):
            self._peer(before, None)
        if content is not None and content.topic:
            self._peer(content.topic, content)

    def _peer(self, topic: str, content: Published | None) -> None:
        key = topics.key_of(topic)
        assert key is not None, topic
        self._content.peers.put(key, content.endpoint if content else None)
        if self._content.peers.has_news:
            self._content.news.set()


class _Nodes(_Follower):
    """Nodes, and what of their pod CIDRs counts as blocks."""

    def changed(self, key: ObjectKey, content: Published | None) -> None:
        super().changed(key, content)
        exists = content is not None and bool(content.topic)
        self._content.node_ranges(key[1], content.blocks if content else (), exists=exists)
