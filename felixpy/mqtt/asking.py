"""Asks every agent at once, over the stream, and collects what they answer; who does not answer is named.

    status/+ (retained)  who is there        cmd/<node>/<verb>  ──►  reply/<client id>/<node>

Invariant: an answer counts if it bears the correlation data of this very question, and each node answers once. There is
no limit to the whole: it is over when all have answered, or when nobody has for a while.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Any
from uuid import uuid4

import msgspec
from msgspec import Struct, field
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from felixpy.config import Settings
from felixpy.mqtt import topics
from felixpy.mqtt.batch import PublishError
from felixpy.mqtt.connection import StreamError, broker_name, open_connection
from felixpy.mqtt.reading import Message
from felixpy.mqtt.retained import EchoLost, Retained

IN_FLIGHT = 20
_OPTIONS = SubscribeOptions(qos=1)


class Answers(Struct):
    """By node: what was answered, why it was refused; nodes without an answer, and those without a running agent."""

    said: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    silent: tuple[str, ...] = ()
    offline: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        return not (self.refused or self.silent or self.offline)


async def ask_nodes(settings: Settings, verb: str, data: bytes, quiet_seconds: float) -> Answers:
    """Ask every agent that the broker knows; those that have not answered when nobody did for ``quiet_seconds`` are
    silent.

    Raises:
        PublishError: the broker cannot be used, or knows no agent.
    """
    asking = _Asking(settings.mqtt_topic_root, f"felixpy-ask-{uuid4().hex[:12]}")
    try:
        async with open_connection(settings, asking.client_id, asking.receive) as connection:
            lost = asyncio.ensure_future(connection.until_lost())
            work = asyncio.ensure_future(asking.ask(connection, verb, data, quiet_seconds))
            try:
                await asyncio.wait((lost, work), return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    lost.result()
                return work.result()
            finally:
                lost.cancel()
                work.cancel()
    except StreamError as error:
        raise PublishError(str(error)) from error
    except EchoLost:
        raise PublishError(
            f"the MQTT broker {broker_name(settings)} dropped messages while the status of the agents was read; raise "
            "max_queued_messages in its configuration (see config/mosquitto.conf)"
        ) from None


class _Asking:
    """One question and its answers."""

    def __init__(self, root: str, client_id: str) -> None:
        self.client_id = client_id
        self._prefix = f"{root}/"
        self._retained = Retained(root, client_id)
        self._mark = secrets.token_bytes(16)
        self._waiting: set[str] = set()
        self._answers = Answers()
        self._news = asyncio.Event()

    def receive(self, message: Message) -> None:
        node = topics.replying_node(message.topic.removeprefix(self._prefix))
        if node is None:
            self._retained.receive(message)
        elif message.correlation == self._mark and node in self._waiting:
            self._waiting.discard(node)
            self._take(node, message.payload)
            self._news.set()

    def _take(self, node: str, payload: bytes) -> None:
        try:
            found = msgspec.json.decode(payload)
            if found["ok"]:
                self._answers.said[node] = found["result"]
            else:
                self._answers.refused[node] = str(found["error"])
        except (msgspec.DecodeError, KeyError, TypeError, RecursionError):
            self._answers.refused[node] = "what it answered is no answer of a felixpy agent of this version"

    async def ask(self, connection: Any, verb: str, data: bytes, quiet_seconds: float) -> Answers:
        await self._retained.start(connection)
        await self._retained.read(connection, ("status/+",))
        running, offline = self._agents()
        if not (running or offline):
            raise PublishError("the broker knows no agent; is one running, and is FELIX_MQTTTOPICROOT the agents'?")
        await connection.subscribe((self._prefix + topics.reply_filter(self.client_id),), options=_OPTIONS)
        self._waiting.update(running)
        remaining = iter(sorted(running))

        async def send() -> None:
            for node in remaining:
                properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
                properties.ResponseTopic = self._prefix + topics.reply_topic(self.client_id, node)
                properties.CorrelationData = self._mark
                await connection.publish(self._prefix + topics.command_topic(node, verb), data, properties=properties)

        await asyncio.gather(*(send() for _ in range(IN_FLIGHT)))
        while self._waiting:
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), quiet_seconds)
            except TimeoutError:
                break
        self._answers.silent, self._answers.offline = tuple(sorted(self._waiting)), tuple(sorted(offline))
        return self._answers

    def _agents(self) -> tuple[set[str], set[str]]:
        """Nodes with a running agent, and nodes whose agent is gone."""
        running: set[str] = set()
        offline: set[str] = set()
        for topic, payload in self._retained.content.items():
            node = topics.status_node(topic)
            if node is None:
                continue
            try:
                state = msgspec.json.decode(payload).get("state")
            except (msgspec.DecodeError, AttributeError, RecursionError):
                state = None
            (offline if state == "offline" else running).add(node)
        return running, offline
