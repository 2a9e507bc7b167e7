"""Commands to this node over MQTT: each is answered where it says, with what it gave for telling answers apart.

    cmd/<node>/<verb>, response topic reply/<client id>/<node>
                                                ──►  {"ok": true, "result": …}  or  {"ok": false, "error": …}

Invariant: an answer goes to ``reply/…/<node>`` below our own root and nowhere else, whatever a command asks, so that
nobody makes a node write what only the node may write. Never retained. Must never hold the stream up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import aiomqtt
import msgspec
import structlog
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from felixpy.mqtt import topics
from felixpy.mqtt.connection import Connection, StreamError
from felixpy.mqtt.reading import Message
from felixpy.plain_error import PlainError

log = structlog.get_logger(__name__)

Answering = Mapping[str, Callable[[bytes], Awaitable[bytes]]]
"""Who answers, by verb: JSON for bytes; what it raises as ``PlainError`` is told."""

MOST_AT_ONCE = 16
MAX_BYTES = 16 << 20

_OPTIONS = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)


class Questions:
    """The commands to one node, of one connection after another."""

    def __init__(self, root: str, node: str) -> None:
        self.answering: Answering = {}
        self._prefix = f"{root}/"
        self._node = node
        self._connection: Connection | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, connection: Connection) -> None:
        """Take commands while this connection lasts; never returns."""
        filters = tuple(self._prefix + topics.command_topic(self._node, verb) for verb in self.answering)
        self._connection = connection
        try:
            await connection.subscribe(filters, options=_OPTIONS)
        except StreamError as error:
            log.warning("this node answers no plans over MQTT", reason=str(error))
        try:
            await asyncio.Event().wait()
        finally:
            self._connection = None
            for task in self._tasks:
                task.cancel()

    def take(self, verb: str, message: Message) -> bool:
        """Take a command; whether it is one that is answered."""
        answer, goal = self.answering.get(verb), message.response_topic.removeprefix(self._prefix)
        if answer is None or self._connection is None or not message.response_topic.startswith(self._prefix):
            return False
        if not topics.is_reply_of(goal, self._node) or len(self._tasks) >= MOST_AT_ONCE:
            return False
        task = asyncio.get_running_loop().create_task(self._answer(self._connection, answer, message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _answer(
        self, connection: Connection, answer: Callable[[bytes], Awaitable[bytes]], message: Message
    ) -> None:
        try:
            if len(message.payload) > MAX_BYTES:
                raise PlainError(f"{len(message.payload)} bytes are more than the {MAX_BYTES} that an agent takes")
            payload = b'{"ok": true, "result": ' + await answer(message.payload) + b"}"
        except PlainError as error:
            payload = msgspec.json.encode({"ok": False, "error": str(error)})
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if message.correlation:
            properties.CorrelationData = message.correlation
        try:
            await connection.publish(message.response_topic, payload, properties=properties)
        except (StreamError, aiomqtt.MqttError) as error:
            log.warning("an answer could not be sent", reason=str(error))
