"""The MQTT source: keeps a connection to the broker, and the sink equal to what the broker retains.

The decisions are ``Snapshot``'s; here is only I/O. Invariant: a lost connection, a refused one or an empty broker never
removes a key; a connection that is made anew for new certificates is one of them. It must never raise for what a broker
or publisher does; it reports and goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import uuid4

import aiomqtt
import msgspec
import structlog
from msgspec.structs import replace
from paho.mqtt.subscribeoptions import SubscribeOptions

from felixpy.config import MqttPeers, Settings
from felixpy.model.invalid import InvalidResource
from felixpy.model.net import peer_address, quote
from felixpy.model.parse import parse_payload
from felixpy.model.resources import (
    Absent,
    BlockAffinity,
    HostEndpoint,
    Kind,
    Resource,
    ResourceKey,
    Update,
    WorkloadEndpoint,
)
from felixpy.mqtt import topics
from felixpy.mqtt.connection import (
    Connection,
    Refused,
    StreamError,
    SubscriptionRefused,
    broker_name,
    broker_port,
    open_connection,
)
from felixpy.mqtt.credentials import Credentials, CredentialsChanged
from felixpy.mqtt.manifest import parse_manifest
from felixpy.mqtt.outbox import Outbox
from felixpy.mqtt.own_state import OwnState
from felixpy.mqtt.peers import is_peers
from felixpy.mqtt.reading import Message
from felixpy.mqtt.snapshot import Action, Deliver, Read, Remove, Renew, Report, Snapshot, Stop
from felixpy.sources import Sink, SyncState, SyncStatus
from felixpy.sources.ending import end
from felixpy.sources.hub_peers import HubPeers
from felixpy.sources.questions import Questions
from felixpy.standing import Standing

log = structlog.get_logger(__name__)

BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_LAST_SECONDS = 30.0
TAKEN_OVER_SECONDS = (15.0, 45.0)
STABLE_SECONDS = 10.0
SHORT_CONNECTIONS = 3
"""After so many in a row another client has our id, most likely: Mosquitto 2.0.11 just closes the older connection."""

TICK_SECONDS = 0.05
IDLE_TICK_SECONDS = 1.0
FLUSH_SECONDS = 2.0
PART_SECONDS = 0.2
LOOK_UP_SECONDS = 2.0
PAST_STATUS_SECONDS = 5.0
"""For so long the retained status of endpoints is listened to, once the resources are known."""

ECHO_SECONDS = 5.0
"""For so long may nothing arrive before what nodes say of themselves counts as read."""

TS_DIGITS = 19
"""Nanoseconds until the year 2286. A longer number is no time, and Python refuses to read a very long one."""

LOST = "stream lost"

PEERS_FOLLOWED = {MqttPeers.DISABLED: 0, MqttPeers.AUTO: 10_000, MqttPeers.ENABLED: 1 << 30, MqttPeers.HUB: 0}
"""Up to how many endpoints of other nodes a node follows one by one."""

SHARED_NODE = "another agent publishes the status of this node"

_OF_A_TOPIC = (Deliver, Remove)
_ENDPOINTS = (WorkloadEndpoint, HostEndpoint)
_OPTIONS = SubscribeOptions(qos=1)
_FROM_OTHERS = SubscribeOptions(qos=1, noLocal=True, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)


def _is_offline(status: bytes) -> bool:
    try:
        told = msgspec.json.decode(status)
    except msgspec.DecodeError:
        return False
    return isinstance(told, dict) and told.get("state") == "offline"


def _another(client_id: str) -> str:
    """For a client beside the one with this id."""
    return f"{client_id}-{uuid4().hex[:8]}"


def backoff_seconds(attempt: int) -> float:
    """Exponential with full jitter, so that a thousand agents do not return to a broker at once."""
    return random.uniform(0, min(BACKOFF_LAST_SECONDS, BACKOFF_FIRST_SECONDS * 2 ** min(attempt, 20)))


class MqttSource:
    """Source of one node's resources. ``observer``: only look, beside a running agent (own client id, no status)."""

    def __init__(self, settings: Settings, node: str, *, observer: bool = False) -> None:
        self._settings = settings
        self._node = node
        self._observer = observer
        # Whoever connects with our id throws us out, so nobody may know it; no session is ever taken up again.
        base = settings.mqtt_client_id or f"felixpy-{node}-{secrets.token_hex(8)}"
        self._client_id = _another(base) if observer else base
        self._credentials = Credentials(settings, self._try_to_connect)
        self._prefix = f"{settings.mqtt_topic_root}/"
        self._snapshot = Snapshot(
            node,
            timeout=settings.snapshot_timeout,
            quiet_time=settings.snapshot_quiet_time,
            peers=PEERS_FOLLOWED[settings.mqtt_peers],
        )
        self._hub = HubPeers() if settings.mqtt_peers is MqttPeers.HUB else None
        self._status = self._told = SyncStatus(SyncState.CONNECTING)
        self._outbox = Outbox()
        self.questions = Questions(settings.mqtt_topic_root, node)
        self._own_state_topic = topics.node_state_topic(node)
        self._own_state = OwnState(self._prefix + self._own_state_topic)
        self._states_read, self._arrived = asyncio.Event(), asyncio.Event()
        self._is_echoed = False
        self._commands: asyncio.Queue[Read | Stop | Renew] = asyncio.Queue()
        self._in_sync = asyncio.Event()
        self._connected_at: float | None = None
        self._has_left = False
        self._short_connections = 0
        self._standing = Standing(level="warning")
        self.messages = self.bytes = 0
        """Taken from the broker since the start."""
        self.until_taken: Callable[[], Awaitable[object]] = lambda: asyncio.sleep(0)
        """Is waited for before the broker is asked for what it holds, so that this does not pile up: of a cluster of
        110,000 endpoints 85,000 messages came in the seconds in which a restarted agent read its node's kernel."""
        self.on_connected: Callable[[bytes], None] = lambda peer: None
        """Is told the broker's address before anything that it delivers."""
        self.on_connecting: Callable[[bytes], None] = lambda peer: None
        """Is told where the broker is looked for after a connection failed: its name may mean another address now."""

    @property
    def port(self) -> int:
        """The broker's."""
        return broker_port(self._settings)

    async def run(self, sink: Sink) -> None:
        """Deliver for ever. On cancellation flush the status and disconnect cleanly."""
        attempt = 0
        while True:
            self._connected_at = None
            try:
                await self._session(sink)
            except CredentialsChanged as change:
                log.info("stream is connected anew", reason=str(change))
                self._perform(self._snapshot.on_disconnected(str(change)), sink)
            except StreamError as error:
                delay, reason = self._judge(error, attempt)
                attempt = 0 if self._was_stable() else attempt + 1
                self._standing.fails(LOST, reason, retry_seconds=round(delay, 1))
                self._perform(self._snapshot.on_disconnected(reason), sink)
                await asyncio.sleep(delay)
                await self._look_up()

    async def _look_up(self) -> None:
        """Tell where the broker is; that it cannot be found is told by the connection."""
        loop, host = asyncio.get_running_loop(), self._settings.mqtt_host
        with contextlib.suppress(OSError, UnicodeError, TimeoutError):
            async with asyncio.timeout(LOOK_UP_SECONDS):
                found = await loop.getaddrinfo(host, self.port, type=socket.SOCK_STREAM)
                for *_, name in found:
                    if peer := peer_address(name):
                        self.on_connecting(peer)

    async def _try_to_connect(self) -> None:
        async with open_connection(self._settings, _another(self._client_id), lambda message: None):
            pass

    def reload(self) -> None:
        """Look now whether files of certificates and password are others; returns at once."""
        self._credentials.look()

    def _was_stable(self) -> bool:
        return self._connected_at is not None and time.monotonic() - self._connected_at >= STABLE_SECONDS

    def _judge(self, error: StreamError, attempt: int) -> tuple[float, str]:
        """How long to wait, and why the connection ended."""
        is_short = self._connected_at is not None and not self._was_stable()
        self._short_connections = self._short_connections + 1 if is_short else 0
        if error.taken_over:
            return random.uniform(*TAKEN_OVER_SECONDS), str(error)
        if self._short_connections >= SHORT_CONNECTIONS:
            reason = f"{error} soon after it was made; is there another client with the client id {self._client_id}?"
            return random.uniform(*TAKEN_OVER_SECONDS), reason
        return backoff_seconds(0 if self._was_stable() else attempt), str(error)

    def publish_status(self, payload: Mapping[str, Any]) -> None:
        """Set the agent's retained status; returns at once. Kept and written again after a reconnect.

        The last one says that the agent is gone, so what comes after it is not written.
        """
        if not self._has_left:
            self._put(topics.status_topic(self._node), msgspec.json.encode(dict(payload)), first=True)

    def publish_node_state(self, payload: Mapping[str, Any]) -> None:
        """Say of this node what others are to know; returns at once. Retained, and stays when the agent ends."""
        if not self._observer:
            self._own_state.put(msgspec.json.encode(dict(payload)))

    def publish_endpoint_status(self, namespace: str, name: str, payload: Mapping[str, Any] | None) -> None:
        """Set or (None) delete one endpoint's retained status; returns at once."""
        topic = topics.endpoint_status_topic(self._node, namespace, name)
        self._put(topic, b"" if payload is None else msgspec.json.encode(dict(payload)))

    def _put(self, topic: str, payload: bytes, *, first: bool = False) -> None:
        if not self._observer:
            self._outbox.put(self._prefix + topic, payload, first=first)

    async def _session(self, sink: Sink) -> None:
        def receive(message: Message) -> None:
            self._receive(message, sink)

        self._commands, self._in_sync = asyncio.Queue(), asyncio.Event()
        self._states_read, self._is_echoed = asyncio.Event(), False
        await self._credentials.note()
        async with open_connection(self._settings, self._client_id, receive, self._will()) as connection:
            log.info("stream connected", broker=broker_name(self._settings), client_id=self._client_id)
            self._connected_at = time.monotonic()
            if peer := connection.peer:
                self.on_connected(peer)
            if self._hub is not None:
                self._hub.on_connected()
            await self.until_taken()
            self._perform(self._snapshot.on_connected(time.monotonic()), sink)
            self._outbox.resend()
            try:
                await self._serve(connection, sink)
            except (StreamError, aiomqtt.MqttError):
                raise
            except asyncio.CancelledError:
                await self._leave(connection, "stopped")
                raise
            except Exception:
                await self._leave(connection, "failed; its log says why")
                raise

    def _will(self) -> aiomqtt.Will | None:
        if self._observer:
            return None
        payload = b'{"state":"offline","reason":"will"}'
        return aiomqtt.Will(self._prefix + topics.status_topic(self._node), payload, qos=1, retain=True)

    async def _serve(self, connection: Connection, sink: Sink) -> None:
        """Run all parts until one of them fails, which is the end of the connection."""
        parts = (
            connection.until_lost(),
            self._subscribe(connection, sink),
            self._tick(sink),
            self._outbox.run(connection.publish_retained),
            self._read_past_status(connection),
            self._watch_status(connection),
            self.questions.serve(connection),
            self._credentials.until_changed(),
            self._say_state(connection),
            *((self._hub.follow(connection, self._prefix),) if self._hub is not None else ()),
        )
        tasks = [asyncio.create_task(part) for part in parts]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end(tasks, PART_SECONDS)
        errors = [error for task in tasks if not task.cancelled() and (error := task.exception())]
        # A lost connection makes several parts fail; the watch of the connection (first) knows why.
        raise errors[0] if errors else StreamError("the stream ended")

    async def _subscribe(self, connection: Connection, sink: Sink) -> None:
        """Subscribe, then carry out what the snapshot asks for, one at a time and in order."""
        await self._read_states(connection)
        await self._subscribe_for_good(connection, lambda: self._snapshot.manifest_filters, sink)
        # The answer comes behind the manifests: how many endpoints there are is known before they are asked for.
        await self._check_rights(connection)
        await self._subscribe_for_good(connection, lambda: self._snapshot.filters, sink)
        while True:
            command = await self._commands.get()
            if isinstance(command, Renew):
                raise StreamError(
                    f"the MQTT broker {broker_name(self._settings)} sends nothing of what it retains; its queue for a "
                    "client is too short (max_queued_messages, see config/mosquitto.conf)"
                )
            if isinstance(command, Stop):
                await connection.unsubscribe(self._prefix + command.filter)
            else:
                if not set(self._snapshot.manifest_filters).isdisjoint(command.filters):
                    await self._check_rights(connection)
                await connection.subscribe(tuple(self._prefix + name for name in command.filters), options=_OPTIONS)
                self._snapshot.on_subscribed(time.monotonic())

    async def _subscribe_for_good(
        self, connection: Connection, filters: Callable[[], Sequence[str]], sink: Sink
    ) -> None:
        """Subscribe to what lasts; where the broker refuses other nodes' endpoints, to the own ones alone."""
        try:
            await connection.subscribe(tuple(self._prefix + name for name in filters()), options=_OPTIONS)
        except SubscriptionRefused as refused:
            if not self._snapshot.follows_peers:
                raise
            self._perform(self._snapshot.without_peers(str(refused)), sink)
            await connection.subscribe(tuple(self._prefix + name for name in filters()), options=_OPTIONS)
        self._snapshot.on_subscribed(time.monotonic())

    async def _read_states(self, connection: Connection) -> None:
        """Read what nodes say of themselves, to its end: no manifest counts it, and routes need it."""
        probe = self._prefix + topics.probe_topic(self._client_id)
        await connection.subscribe((probe, self._prefix + self._snapshot.state_filter), options=_OPTIONS)
        try:
            await connection.publish(probe, b"nodestate")
        except Refused:
            await asyncio.sleep(self._settings.snapshot_quiet_time)
        else:
            await self._echo()
        self._snapshot.on_states_read(time.monotonic())
        self._states_read.set()

    async def _echo(self) -> None:
        """Wait for a message of ours to ourselves: what the broker had queued before it has arrived."""
        while not self._is_echoed:
            self._arrived.clear()
            try:
                async with asyncio.timeout(ECHO_SECONDS):
                    await self._arrived.wait()
            except TimeoutError:
                log.warning(
                    "what nodes say of themselves may be incomplete", reason="the broker drops messages when it sends "
                    "many; raise max_queued_messages in its configuration (see config/mosquitto.conf)",
                )  # fmt: skip
                return

    async def _say_state(self, connection: Connection) -> None:
        """Nothing before it was read: the broker that still has what we said has lost nothing of what others said."""
        await self._states_read.wait()
        await self._own_state.run(connection)

    async def _check_rights(self, connection: Connection) -> None:
        """Learn whether the broker takes us for this node.

        A subscription does not tell: a broker grants one to what its access rules forbid, and sends nothing.
        """
        refusal = await connection.refusal(self._prefix + topics.rights_topic(self._node))
        name = self._settings.mqtt_username
        user = f"user {name!r}" if name else "the user of this client"
        reason = (
            f"the broker shows no endpoints of node {self._node}, and refuses {user} to write its status ({refusal}); "
            "user and node must have one name: check NODENAME, FELIX_MQTTUSERNAME or the client certificate, and the "
            "broker's access rules (config/mosquitto.acl)"
        )
        self._snapshot.on_rights(reason if refusal else "", time.monotonic())

    async def _read_past_status(self, connection: Connection) -> None:
        """Once in sync, see what earlier agents said of endpoints; ``_judge_past_status`` deletes what is untrue."""
        await self._in_sync.wait()
        if not self._observer:
            name = self._prefix + topics.endpoint_status_filter(self._node)
            try:
                await connection.subscribe((name,), options=_OPTIONS)
            except StreamError as error:
                log.warning("the status of endpoints that are gone stays on the broker", reason=str(error))
            else:
                await asyncio.sleep(PAST_STATUS_SECONDS)
                await connection.unsubscribe(name)
        await asyncio.Event().wait()

    def _judge_past_status(self, topic: str, about: str, payload: bytes) -> None:
        """Delete the status of an endpoint that was deleted while no agent of this node was there to say so."""
        if payload and not self._snapshot.knows(about) and not self._outbox.holds(self._prefix + topic):
            self._put(topic, b"")

    async def _watch_status(self, connection: Connection) -> None:
        """Hear what others say in our name: a will of ours that fires late, or another agent with our node's name.

        The broker notices a connection that died without a word only after the keepalive, when we are long back.
        """
        if not self._observer:
            try:
                await connection.subscribe((self._prefix + topics.status_topic(self._node),), options=_FROM_OTHERS)
            except StreamError as error:
                log.warning("the status may say offline although the agent runs", reason=str(error))
        await asyncio.Event().wait()

    def _judge_status(self, topic: str, payload: bytes) -> None:
        if not payload or _is_offline(payload):
            self._outbox.repeat(self._prefix + topic)
        else:
            self._standing.fails(
                SHARED_NODE, f"two agents call themselves {self._node}; give each its own node name (NODENAME)"
            )

    async def _tick(self, sink: Sink) -> None:
        while True:
            in_sync = self._snapshot.state is SyncState.IN_SYNC
            await asyncio.sleep(IDLE_TICK_SECONDS if in_sync else TICK_SECONDS)
            if self._was_stable():  # a connection that breaks soon again is the same failure
                self._standing.works(LOST, since=self._connected_at)
            self._perform(self._snapshot.on_tick(time.monotonic()), sink)

    async def _leave(self, connection: Connection, reason: str) -> None:
        """Say that this is no accident, and write it out: a connection that just breaks makes the will fire."""
        self.publish_status({"state": "offline", "reason": reason})
        self._has_left = True
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                await self._outbox.write_all(connection.publish_retained)
        except (TimeoutError, aiomqtt.MqttError) as error:
            log.warning("could not write the last status", reason=str(error))

    def _receive(self, message: Message, sink: Sink) -> None:
        now_ns = time.monotonic_ns()
        now = now_ns / 1e9
        topic, payload = message.topic.removeprefix(self._prefix), message.payload
        self.messages += 1
        self.bytes += len(payload)
        key = topics.key_on(topic, self._node)
        self._arrived.set()
        if topic == self._own_state_topic:
            self._own_state.heard(payload)
        if key is not None:
            actions = self._snapshot.on_message(topic, payload, now)
            self._perform(actions, sink, _Arrival(key, now_ns, _published_ns(message)))
        elif scope := topics.scope_of_manifest(topic):
            self._perform(self._manifest(scope, payload, now), sink)
        elif self._hub is not None and is_peers(topic):
            for update in self._hub.on_message(topic, payload):
                sink.update(update)
            self._tell(self._status, sink)
        elif about := topics.topic_of_status(topic):
            self._judge_past_status(topic, about, payload)
        elif topic == topics.status_topic(self._node):
            self._judge_status(topic, payload)
        elif topic == topics.probe_topic(self._client_id):
            self._is_echoed = True
        elif (verb := topics.verb_of(topic, self._node)) is None or not self.questions.take(verb, message):
            sink.ignored(_shown(topic))

    def _manifest(self, scope: str, payload: bytes, now: float) -> Sequence[Action]:
        if not payload:
            return self._snapshot.on_manifest(scope, None, now)
        try:
            manifest = parse_manifest(payload)
        except ValueError as error:
            return self._snapshot.on_manifest(scope, None, now, str(error))
        return self._snapshot.on_manifest(scope, manifest, now)

    def _perform(self, actions: Sequence[Action], sink: Sink, came: _Arrival | None = None) -> None:
        for action in actions:
            if isinstance(action, _OF_A_TOPIC) and self._knows_better(action.topic):
                continue
            if isinstance(action, Deliver):
                assert came is not None, action
                if topics.is_too_long(action.topic):  # a manifest may count it, but it is no object
                    sink.ignored(_shown(action.topic))
                else:
                    self._note_own(came.key, sink, exists=True)
                    sink.update(_parse(action, came, sink))
            elif isinstance(action, Remove):
                key = topics.key_on(action.topic, self._node)
                assert key is not None, action
                received_ns, published_ns = came[1:] if came else (time.monotonic_ns(), 0)
                sink.update(Update(key, None, "", received_ns, published_ns))
                self._note_own(key, sink, exists=False)
            elif isinstance(action, Report):
                if action.status.state is SyncState.IN_SYNC:
                    self._in_sync.set()
                self._tell(action.status, sink)
            else:
                self._commands.put_nowait(action)

    def _knows_better(self, topic: str) -> bool:
        """Whether this is what this process says itself."""
        return topic == self._own_state_topic and self._own_state.is_said

    def _note_own(self, key: ResourceKey, sink: Sink, *, exists: bool) -> None:
        """An endpoint of this node came or went: the hub tells of it as well."""
        if self._hub is not None and key.kind is Kind.WORKLOAD_ENDPOINT:
            for update in self._hub.own(key, exists=exists):
                sink.update(update)

    def _tell(self, status: SyncStatus, sink: Sink) -> None:
        """Tell the state of the stream: with a hub it is not in sync before the other nodes' endpoints are known."""
        self._status = status
        if self._hub is not None:
            pending = self._hub.pending
            waits = pending and status.state is SyncState.IN_SYNC
            status = replace(status, state=SyncState.RESYNC, reason=pending) if waits else status
            status = replace(status, peers=pending)
        if status != self._told:
            self._told = status
            sink.sync_status(status)


class _Arrival(NamedTuple):
    """A message about a resource: whose, and when it was received (monotonic) and published (0: unknown)."""

    key: ResourceKey
    received_ns: int
    published_ns: int


def _shown(topic: str) -> str:
    """A topic for a log line and a metric's label: escaped and cut."""
    return f"topic {quote(topic)[1:-1]}"


def _parse(action: Deliver, came: _Arrival, sink: Sink) -> Update:
    """What a topic holds now. Of an invalid endpoint of another node that node tells; here it is nobody's peer."""
    key, error = came.key if came.key.kind not in topics.OF_A_NODE else topics.key_of(action.topic), ""
    assert key is not None, action
    resource: Resource | None = None
    try:
        if key.kind is Kind.BLOCK_AFFINITY:
            resource = _parse_affinity(action, key, sink)
        elif not isinstance(found := parse_payload(action.payload, key, sink.ignored), Absent):
            resource = found
            if isinstance(found, _ENDPOINTS):
                _check_node(action.topic.split("/", 2)[1], found.node, key)
                resource = found if came.key == key else replace(found, key=came.key)
    except InvalidResource as invalid:
        resource, error = None, str(invalid) if came.key == key else ""
    return Update(came.key, resource, error, came.received_ns, came.published_ns)


def _parse_affinity(action: Deliver, key: ResourceKey, sink: Sink) -> BlockAffinity | None:
    """The payload must be the affinity of the topic's node and CIDR; its name does not matter."""
    _, node, cidr = (topics.unescape(level) for level in action.topic.split("/"))
    try:
        affinity = parse_payload(action.payload, ResourceKey(key.kind, cidr), sink.ignored)
    except InvalidResource as error:
        error.key = key
        raise
    if not isinstance(affinity, BlockAffinity):
        return None
    _check_node(node, affinity.host, key)
    return replace(affinity, key=key)


def _check_node(topic_level: str, node: str, key: ResourceKey) -> None:
    """An object that moved but stayed at the topic of its old node would vanish without a word."""
    if topics.unescape(topic_level) != node:
        reason = f"the topic is for node {topics.unescape(topic_level)}, the object for {node}"
        raise InvalidResource(reason, field="spec.node", key=key)


def _published_ns(message: Message) -> int:
    """The publisher's clock from the user property ``ts`` (nanoseconds), 0 if there is none that can be one."""
    for name, value in message.user_properties:
        if name == "ts" and len(value) <= TS_DIGITS and value.isascii() and value.isdigit():
            return int(value)
    return 0
