"""Decides when the retained topics of a broker are completely known, and what the broker no longer holds.

MQTT has no end of a snapshot, and a broker may drop part of a retained burst without a word. The agent feeds every
message in; actions come out. Pure: no clock (``now`` is seconds on any steady clock), no I/O.

Besides what all nodes share and its own endpoints a node may follow those of others, its *peers*, up to a number of
them: each other node is a scope with a manifest, like its own. A broker sends what it retains in the order in which it
was asked, and the manifests are asked for first, so that every node is known before any endpoint of it.

Invariants: in sync with a scope that has a manifest only if counts and digests are equal to it; a key is removed only
by its own deletion or when the whole snapshot is in sync; a broker that lost its topics, or hides them from a user that
is not the node's, never removes anything. A message costs what its own scope costs, however many nodes there are.

What nodes say of themselves (``nodestate``) is in no manifest: each of these topics has its own writer. It is read to
its end before anything else is subscribed to, and so known when the rest is proved. Such a topic counts as deleted
while this node was away only if the broker still has this node's own: then it has lost none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from felixpy.model.sync import SyncState, SyncStatus
from felixpy.mqtt import topics
from felixpy.mqtt.manifest import Manifest
from felixpy.mqtt.other_nodes import FILTERS, MANIFESTS, OtherNodes, hidden
from felixpy.mqtt.scope import Group, Scope

DRAIN_SECONDS = 0.25
"""A part of a re-read is finished when nothing has arrived for this long."""

RETRY_FIRST_SECONDS = 5.0
RETRY_LAST_SECONDS = 60.0
MISMATCH_LIMIT = 12
"""In sync, a mismatch may last this many snapshot time-outs while messages still flow."""
MAX_REASONS = 5
"""So many scopes say why they are not complete."""


class Deliver(NamedTuple):
    """New content of a topic."""

    topic: str
    payload: bytes


class Remove(NamedTuple):
    """The topic holds nothing any more."""

    topic: str


class Read(NamedTuple):
    """Subscribe (again) to filters, so that the broker sends their retained topics; then call ``on_subscribed``."""

    filters: tuple[str, ...]


class Stop(NamedTuple):
    """Unsubscribe from a filter that was only there to be read."""

    filter: str


class Renew(NamedTuple):
    """Make a new connection: on this one the broker does not send what it holds."""


class Report(NamedTuple):
    """Tell the state of the stream."""

    status: SyncStatus


Action = Deliver | Remove | Read | Stop | Renew | Report
NOTHING: tuple[Action, ...] = ()


class Snapshot:
    """The state of one node's stream."""

    def __init__(self, node: str, *, timeout: float, quiet_time: float, peers: int = 0) -> None:
        """``peers``: up to so many endpoints of other nodes are followed, too."""
        self._node = node
        self._timeout = timeout
        self._quiet_time = quiet_time
        self._shared = Scope(topics.SHARED, topics.SHARED_SEGMENTS)
        self._own = Scope(topics.node_scope(node), topics.NODE_SEGMENTS)
        self._others = OtherNodes(peers)
        self._is_settled = False
        self._unmatched: set[Scope] = set()
        self._unwritten = {self._shared, self._own}
        self._touched: set[Scope] = set()
        self._states = Group(topics.STATE_SEGMENT)
        self._own_state = topics.node_state_topic(node)
        self._states_kept = False
        self._state = SyncState.CONNECTING
        self._last_message = 0.0
        self._last_match = 0.0
        self._plan: deque[tuple[str, ...]] = deque()
        self._reading: tuple[str, ...] = ()
        self._is_subscribed = False
        self._heard = False
        self._reread = False
        self._retry_at = 0.0
        self._retry_seconds = RETRY_FIRST_SECONDS
        self._reported = SyncStatus(SyncState.CONNECTING)

    @property
    def state(self) -> SyncState:
        return self._state

    @property
    def follows_peers(self) -> bool:
        return self._others.are_followed

    def knows(self, topic: str) -> bool:
        """Whether a resource's topic was delivered and not removed since."""
        return topic in self._own.groups[topics.segment_of(topic)].known

    def on_connected(self, now: float) -> Sequence[Action]:
        """A new connection is about to subscribe: everything known is stale until it is seen again."""
        for scope in self._scopes():
            scope.restart()
            self._touch(scope)
        self._states.restart()
        self._states_kept = False
        self._state = SyncState.RESYNC
        self._last_message = now
        self._plan.clear()
        self._reading, self._reread = (), False
        self._retry_seconds = RETRY_FIRST_SECONDS
        return self._report("reading the retained topics")

    def on_disconnected(self, reason: str) -> Sequence[Action]:
        """The connection is gone. Nothing is removed."""
        self._state = SyncState.CONNECTING
        self._plan.clear()
        self._reading = ()
        return self._report(reason)

    def on_subscribed(self, now: float) -> None:
        """The broker has confirmed the latest subscription."""
        self._is_subscribed = True
        self._last_message = max(self._last_message, now)

    def on_states_read(self, now: float) -> None:
        """Everything that the broker retains of ``state_filter`` has arrived, and nothing was written yet."""
        self._states_kept = self._states.has_seen(self._own_state)
        self._last_message = max(self._last_message, now)

    def on_rights(self, refusal: str, now: float) -> None:
        """The broker has said whether it takes us for the node: why it does not, in a sentence, or nothing."""
        self._own.refusal = refusal
        self._last_message = max(self._last_message, now)

    def on_message(self, topic: str, payload: bytes, now: float) -> Sequence[Action]:
        """A resource's topic (relative to the root) has this content; empty means deleted."""
        self._last_message, self._heard = now, True
        segment = topics.segment_of(topic)
        if segment == topics.STATE_SEGMENT:
            return self._take(self._states, topic, payload)
        scope = self._scope(topics.scope_of(topic)) if segment in topics.NODE_SEGMENTS else self._shared
        if scope is None:
            return NOTHING
        group = scope.groups[segment]
        actions = self._take(group, topic, payload)
        self._touched.add(scope)
        if scope.is_peers and (actions or not payload):
            actions = (*actions, *self._count_peers(scope))
        if self._state is SyncState.IN_SYNC or scope.lacks(group):
            return actions
        return (*actions, *self._settle(now))

    @staticmethod
    def _take(group: Group, topic: str, payload: bytes) -> tuple[Action, ...]:
        """Note a topic's content; what is news of it."""
        if payload:
            return (Deliver(topic, payload),) if group.put(topic, payload) else NOTHING
        return (Remove(topic),) if group.drop(topic) else NOTHING

    def on_manifest(self, scope_name: str, manifest: Manifest | None, now: float, error: str = "") -> Sequence[Action]:
        """A scope's manifest, new or read again: None if there is none any more, ``error`` if it cannot be used."""
        self._last_message, self._heard = now, True
        scope = self._scope(scope_name)
        if scope is None:
            return NOTHING
        is_new = (manifest, error) != (scope.manifest, scope.manifest_error)
        scope.take_manifest(manifest, error)
        self._touch(scope)
        actions = self._count_peers(scope) if scope.is_peers else NOTHING
        if self._state is SyncState.IN_SYNC:
            self._note_match(now)
            return actions
        if is_new:
            self._retry_seconds = RETRY_FIRST_SECONDS
        return (*actions, *self._settle(now))

    def on_tick(self, now: float) -> Sequence[Action]:
        """Time has passed. Call it a few times a second until in sync, about every second then."""
        if self._state is SyncState.CONNECTING:
            return NOTHING
        if self._state is SyncState.IN_SYNC:
            return self._watch(now)
        if done := self._settle(now):
            return done
        if self._reading:
            is_drained = self._is_subscribed and now - self._last_message >= DRAIN_SECONDS
            return self._next_part(now) if is_drained else NOTHING
        if self._state is SyncState.DEGRADED:
            return self._start_reread(now) if now >= self._retry_at else NOTHING
        if self._reread:
            return self._degrade(now) if now - self._last_message >= self._quiet_time else NOTHING
        if now - self._last_message >= self._timeout:
            return self._start_reread(now)
        return self._report("reading the retained topics")

    def _settle(self, now: float) -> Sequence[Action]:
        if self._reading and now - self._last_message < DRAIN_SECONDS:
            return NOTHING  # a topic that no manifest counts may come last: what matches so far would sweep it
        quiet = not self._reading and now - self._last_message >= self._quiet_time
        if not quiet and (self._unwritten or not self._all_match()):
            return NOTHING
        verdicts = [scope.judge(quiet=quiet) for scope in self._scopes()]
        if not all(verdicts) or self._empty_broker():
            return NOTHING
        groups = [group for scope in self._scopes() for group in scope.groups.values()]
        swept = [Remove(topic) for group in groups for topic in group.sweep()]
        if self._states_kept:
            swept += [Remove(topic) for topic in self._states.sweep()]
        stops = self._stop_reading()
        self._plan.clear()
        for scope in list(self._scopes()):
            scope.settled()
            if scope.is_peers:
                self._others.count(scope)
        self._state = SyncState.IN_SYNC
        self._is_settled = True
        self._last_match = now
        return (*swept, *stops, *self._report(""))

    def _empty_broker(self) -> bool:
        return not any(scope.manifest or scope.got for scope in self._scopes())

    def _note_match(self, now: float) -> None:
        if self._all_match():
            self._last_match = now

    # --- scopes --------------------------------------------------------------------------------------------------

    def _scopes(self) -> Iterator[Scope]:
        yield self._shared
        yield self._own
        yield from self._others.scopes.values()

    def _scope(self, name: str) -> Scope | None:
        """The scope of this name, if it is followed."""
        if name == topics.SHARED:
            return self._shared
        if name == self._own.name:
            return self._own
        found = self._others.scope(name)
        if found is not None and found.manifest is None:
            self._unwritten.add(found)
        return found

    def _touch(self, scope: Scope) -> None:
        self._touched.add(scope)
        (self._unwritten.add if scope.manifest is None else self._unwritten.discard)(scope)

    def _all_match(self) -> bool:
        """Whether no scope differs from its manifest; looks at those alone that have changed since the last time."""
        for scope in self._touched:
            is_well = scope.manifest_error == "" and scope.matches()
            (self._unmatched.discard if is_well else self._unmatched.add)(scope)
        self._touched.clear()
        return not self._unmatched

    def _count_peers(self, scope: Scope) -> Sequence[Action]:
        """Another node's endpoints are more or fewer: the first snapshot may have too many of them."""
        self._others.count(scope)
        if scope.name not in self._others.scopes:
            self._forget(scope)
        if not self._is_settled and self._others.are_too_many:
            return self.without_peers(self._others.too_many())
        return self._report("") if self._state is SyncState.IN_SYNC and self._reported.peers else NOTHING

    def without_peers(self, reason: str) -> Sequence[Action]:
        """Follow the own endpoints alone from now on."""
        gone = tuple(self._others.scopes.values())
        removed = tuple(Remove(topic) for topic in self._others.give_up(reason))
        for scope in gone:
            self._forget(scope)
        own = (*self.manifest_filters, *self.filters)
        reads = tuple(name for name in own if topics.segment_of(name) in (*topics.NODE_SEGMENTS, "sync"))
        return (*removed, Read(reads), *(Stop(name) for name in (MANIFESTS, *FILTERS)))

    def _forget(self, scope: Scope) -> None:
        for among in (self._touched, self._unmatched, self._unwritten):
            among.discard(scope)

    def _peers_unknown(self) -> str:
        if self._others.unknown or self._others.scopes or self._state is not SyncState.IN_SYNC:
            return self._others.unknown
        nodes = (topics.unescape(topic.split("/", 1)[1]) for topic in self._shared.groups["node"].known)
        return hidden(nodes, self._node)

    def _watch(self, now: float) -> Sequence[Action]:
        self._note_match(now)
        unmatched = now - self._last_match
        flowing = now - self._last_message < self._timeout
        if unmatched < self._timeout or (flowing and unmatched < MISMATCH_LIMIT * self._timeout):
            return NOTHING
        self._state = SyncState.RESYNC
        return self._start_reread(now)

    def _start_reread(self, now: float) -> Sequence[Action]:
        report = self._report(self._why()) if self._state is SyncState.RESYNC else NOTHING
        self._reread, self._heard, self._last_message = True, False, now
        self._plan.append(self.manifest_filters)
        for scope in self._scopes():
            self._plan.extend(self._parts(scope))
            for group in scope.doubtful():
                group.restart()
                self._touched.add(scope)
        return (*report, self._read_part())

    def _parts(self, scope: Scope) -> Iterator[tuple[str, ...]]:
        """Filters that together cover what is doubtful, each part with as few topics as can be.

        Kinds that seem to have none are looked for together: each part costs its quiet end.
        """
        nothing: list[str] = []
        for group in scope.doubtful():
            filters = self._filters_of(scope, group)
            if scope.size(group):
                yield from ((name,) for name in filters)
            else:
                nothing.extend(filters)
        if nothing:
            yield tuple(nothing)

    def _filters_of(self, scope: Scope, group: Group) -> Iterator[str]:
        node = topics.unescape(scope.name.removeprefix("node/"))
        if group.segment != "wep":
            yield topics.kind_filter(group.segment, node)
            return
        named = set(scope.manifest.namespaces) if scope.manifest else set()
        named.update(topics.unescape(topic.split("/")[2]) for topic in group.known)
        if named:
            yield from topics.namespace_filters(node, named)
        else:
            yield topics.kind_filter(group.segment, node)

    def _next_part(self, now: float) -> Sequence[Action]:
        stops = self._stop_reading()
        if self._plan:
            self._last_message = now
            return (*stops, self._read_part())
        if self._is_deaf():
            return (*stops, Renew())
        return (*stops, *self._degrade(now)) if self._state is SyncState.DEGRADED else stops

    def _read_part(self) -> Read:
        self._reading, self._is_subscribed = self._plan.popleft(), False
        return Read(self._reading)

    def _is_deaf(self) -> bool:
        """A manifest is there, as this connection knows, but not even that came when all was read again."""
        return not self._heard and any(scope.manifest for scope in self._scopes())

    def _stop_reading(self) -> Sequence[Action]:
        reading, self._reading = self._reading, ()
        permanent = {*self.filters, *self.manifest_filters}
        return tuple(Stop(name) for name in reading if name not in permanent)

    @property
    def manifest_filters(self) -> tuple[str, ...]:
        """Subscribed first, so that a burst that overflows the broker's queue cannot cost the manifests."""
        own = MANIFESTS if self._others.are_followed else topics.manifest_topic(self._own.name)
        return topics.manifest_topic(topics.SHARED), own

    @property
    def state_filter(self) -> str:
        """Subscribed before all others, and read to its end."""
        return topics.kind_filter(topics.STATE_SEGMENT)

    @property
    def filters(self) -> tuple[str, ...]:
        """The lasting subscriptions; they do not overlap."""
        shared = (topics.kind_filter(segment) for segment in self._shared.groups)
        if self._others.are_followed:
            return (*shared, *FILTERS)
        return (*shared, *(topics.kind_filter(segment, self._node) for segment in self._own.groups))

    def _degrade(self, now: float) -> Sequence[Action]:
        if self._state is SyncState.DEGRADED:
            self._retry_seconds = min(2 * self._retry_seconds, RETRY_LAST_SECONDS)
        self._state = SyncState.DEGRADED
        self._retry_at = now + self._retry_seconds
        return self._report(self._why())

    def _why(self) -> str:
        reasons = [reason for scope in self._scopes() if (reason := scope.why())]
        if not reasons and self._empty_broker():
            return "the broker shows no objects and no manifest; publish with 'felixpy apply' or check its access rules"
        more = f"; and {len(reasons) - MAX_REASONS} more" if len(reasons) > MAX_REASONS else ""
        return "; ".join(reasons[:MAX_REASONS]) + more or "waiting for the stream to become quiet"

    def _report(self, reason: str) -> Sequence[Action]:
        got = sum(scope.got for scope in self._scopes())
        want = sum(scope.want for scope in self._scopes())
        status = SyncStatus(self._state, reason, got, want, peers=self._peers_unknown())
        if status == self._reported:
            return NOTHING
        self._reported = status
        return (Report(status),)
