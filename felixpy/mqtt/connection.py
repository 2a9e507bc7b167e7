"""One connection to the broker: MQTT v5, TLS, credentials, and every failure turned into one sentence for people.

Invariant: a connection object is never used twice (a client that lost its connection keeps state of it). Each message
is given to ``receive`` as it is read from the socket, without a queue. It must never show a password.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, ClassVar, TypeVar

import aiomqtt
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from felixpy.config import Settings
from felixpy.model.net import peer_address, quote
from felixpy.mqtt.reading import Message, read_bursts

RECEIVE_MAXIMUM = 65535
"""Mosquitto drops what exceeds this plus its queue; with MQTT's older default it drops all but 1,020 messages."""

TEXT_BYTES = 65535
"""The most that a text of MQTT has."""
ROOT_BYTES = 32767
"""Leaves room for the rest of a topic."""

SESSION_TAKEN_OVER = 142
_BAD_CREDENTIALS = frozenset({4, 134})
_NOT_AUTHORISED = frozenset({5, 135})
_ANSWER_SECONDS = 10.0
_LONGEST_ANSWER_SECONDS = 86400.0

# paho prints failures that reach people as a StreamError anyway.
_QUIET = logging.getLogger("felixpy.sources.paho")
_QUIET.setLevel(logging.CRITICAL)

Receive = Callable[[Message], None]
T = TypeVar("T")


class StreamError(Exception):
    """The broker cannot be used; the text is one sentence for people.

    ``taken_over``: another client connected with the same client id.
    """

    def __init__(self, message: str, *, taken_over: bool = False) -> None:
        super().__init__(message)
        self.taken_over = taken_over


class SubscriptionRefused(StreamError):
    """The broker does not let this client subscribe to a filter."""


class Refused(StreamError):
    """The broker does not take a message; ``topic`` is the whole one, ``reason`` the broker's."""

    def __init__(self, topic: str, reason: str) -> None:
        super().__init__(
            f"the broker refuses to take {topic} ({reason}); check FELIX_MQTTUSERNAME and the broker's access rules "
            "(config/mosquitto.acl)"
        )
        self.topic = topic
        self.reason = reason


class _ClosedEarly(aiomqtt.MqttError):
    """The other side closed the connection before it answered the first packet."""


def broker_name(settings: Settings) -> str:
    """``host:port`` as it is shown to people."""
    return f"{settings.mqtt_host}:{broker_port(settings)}"


def broker_port(settings: Settings) -> int:
    return settings.mqtt_port or (8883 if settings.mqtt_tls else 1883)


def _password(settings: Settings) -> str | None:
    if settings.mqtt_password_file is None:
        return settings.mqtt_password or None
    try:
        return settings.mqtt_password_file.read_text().rstrip("\r\n")
    except OSError as error:
        raise StreamError(
            f"cannot read the MQTT password file {settings.mqtt_password_file}: {error.strerror}; "
            "check FELIX_MQTTPASSWORDFILE"
        ) from None
    except UnicodeDecodeError:
        raise StreamError(
            f"the MQTT password file {settings.mqtt_password_file} is not UTF-8 text; check FELIX_MQTTPASSWORDFILE"
        ) from None


def _check_texts(settings: Settings, client_id: str, password: str | None) -> None:
    """Refuse what no resolver and no packet can hold: Python's and paho's errors about it name no setting.

    Raises:
        StreamError
    """
    try:
        settings.mqtt_host.encode("idna")
    except UnicodeError:
        raise StreamError(f"{quote(settings.mqtt_host)} cannot be the name of a host; check FELIX_MQTTHOST") from None
    texts = (
        ("user name", settings.mqtt_username, TEXT_BYTES, "FELIX_MQTTUSERNAME"),
        ("password", password or "", TEXT_BYTES, "FELIX_MQTTPASSWORD or FELIX_MQTTPASSWORDFILE"),
        ("client id", client_id, TEXT_BYTES, "FELIX_MQTTCLIENTID"),
        ("topic root", settings.mqtt_topic_root, ROOT_BYTES, "FELIX_MQTTTOPICROOT"),
    )
    for what, text, most, setting in texts:
        try:
            fits = len(text.encode()) <= most
        except UnicodeEncodeError:  # bytes of the environment that are no text
            fits = False
        if not fits:
            raise StreamError(f"the MQTT {what} is not UTF-8 text of at most {most} bytes; check {setting}")


def _tls_context(settings: Settings) -> ssl.SSLContext | None:
    if not settings.mqtt_tls:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.mqtt_ca_file)
    except (OSError, ssl.SSLError) as error:
        raise StreamError(
            f"cannot use the CA file {settings.mqtt_ca_file}: {error.strerror or error}; check FELIX_MQTTCAFILE"
        ) from None
    if settings.mqtt_cert_file is not None:
        try:
            # Without a callback OpenSSL would ask on the terminal for the key's passphrase.
            context.load_cert_chain(settings.mqtt_cert_file, settings.mqtt_key_file, password=lambda: b"")
        except (OSError, ssl.SSLError) as error:
            raise StreamError(
                f"cannot use the client certificate {settings.mqtt_cert_file}: {error.strerror or error}; "
                "check FELIX_MQTTCERTFILE and FELIX_MQTTKEYFILE (a key without passphrase)"
            ) from None
    return context


class _Inbox(asyncio.Queue[Any]):
    """In place of aiomqtt's queue: takes each message at once, so that nothing waits behind an event loop turn.

    aiomqtt's own iterator starts a task per message, which costs more than the message itself.
    """

    receive: ClassVar[Receive]
    failed: ClassVar[asyncio.Future[None]]
    heard_at: ClassVar[float] = 0.0

    def put_nowait(self, item: Any) -> None:
        properties = item.properties
        self.take(
            Message(
                item.topic.value,
                bytes(item.payload),
                getattr(properties, "UserProperty", []),
                getattr(properties, "ResponseTopic", ""),
                getattr(properties, "CorrelationData", b""),
            )
        )

    @classmethod
    def take(cls, message: Message) -> None:
        cls.heard_at = time.monotonic()
        try:
            cls.receive(message)
        except Exception as error:
            # paho and aiomqtt would take a bug of ours for a lost connection.
            if not cls.failed.done():
                cls.failed.set_exception(error)
            raise


class Connection:
    """An open connection. Ends with ``StreamError`` in ``until_lost``."""

    def __init__(self, client: aiomqtt.Client, inbox: type[_Inbox], broker: str) -> None:
        self.client = client
        self._verdicts = _watch_verdicts(client)
        self._inbox = inbox
        self._failed = inbox.failed
        self._broker = broker
        self._asked: dict[object, float] = {}
        """Requests without an answer, the oldest first, and when each was made."""
        self._silent: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def until_lost(self) -> None:
        """Return never; raise when the connection is lost, or the error of ``receive`` if it failed.

        Raises:
            StreamError: silence. Mosquitto drops answers, too, when its queue for a client is full (eclipse-mosquitto
                issue 3542), and then only a new connection helps.
        """
        lost = asyncio.ensure_future(anext(self.client.messages))
        try:
            await asyncio.wait((lost, self._silent), return_when=asyncio.FIRST_COMPLETED)
            if self._silent.done():
                self._silent.result()
            await lost
        except aiomqtt.MqttError:
            if self._failed.done():
                self._failed.result()
            raise
        finally:
            lost.cancel()
            self._silent.cancel()

    async def subscribe(self, filters: tuple[str, ...], *, options: Any) -> None:
        """Subscribe to all filters in one packet.

        Raises:
            SubscriptionRefused: the broker refuses one.
        """
        if not filters:
            return
        wanted = [(name, options) for name in filters]
        codes = await self._answered(self.client.subscribe(wanted, timeout=_LONGEST_ANSWER_SECONDS))
        for name, code in zip(filters, codes, strict=False):
            if isinstance(code, ReasonCode) and code.is_failure:
                reason = f"the broker refuses the subscription to {name}: {code}; check its access rules"
                raise SubscriptionRefused(reason)

    async def unsubscribe(self, name: str) -> None:
        """Take one subscription back."""
        await self._answered(self.client.unsubscribe(name, timeout=_LONGEST_ANSWER_SECONDS))

    @property
    def peer(self) -> bytes | None:
        """The broker's address, if it is one that routes lead to."""
        stream = self.client._client.socket()
        try:
            return peer_address(stream.getpeername())  # type: ignore[union-attr]
        except (AttributeError, OSError):
            return None  # the connection is over already

    async def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, properties: Properties | None = None
    ) -> None:
        """Publish and wait until the broker has taken the message.

        Raises:
            Refused: it has not. Brokers confirm the receipt all the same.
        """
        code = await self._publish(topic, payload, retain=retain, properties=properties)
        if code.is_failure:
            raise Refused(topic, str(code))

    async def publish_retained(self, topic: str, payload: bytes) -> None:
        """Publish a retained message and wait until the broker has it."""
        await self._publish(topic, payload, retain=True)

    async def refusal(self, topic: str) -> str:
        """Why this client may not write to a topic, tried by an empty message that is not retained; empty if it may.

        A broker that drops what it does not allow without a word allows everything, as far as this can tell.
        """
        code = await self._publish(topic, b"", retain=False)
        return str(code) if code.is_failure else ""

    async def _publish(
        self, topic: str, payload: bytes, *, retain: bool, properties: Properties | None = None
    ) -> ReasonCode:
        """Publish by paho itself: aiomqtt makes three tasks and a timer for each message, and hides the verdict."""
        verdict: asyncio.Future[ReasonCode] = asyncio.get_running_loop().create_future()
        sent = self.client._client.publish(topic, payload, qos=1, retain=retain, properties=properties)
        if sent.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            gone = self.client._disconnected
            why = gone.exception() if gone.done() and not gone.cancelled() else None
            raise aiomqtt.MqttCodeError(sent.rc, "could not publish") from why
        self._verdicts[sent.mid] = verdict
        return await self._answered(verdict)

    async def _answered(self, request: Awaitable[T]) -> T:
        """The broker's answer, which comes behind all that it has queued for us: wait as long as messages come."""
        if not self._asked:
            asyncio.get_running_loop().call_later(_ANSWER_SECONDS, self._listen)
        mark = object()
        self._asked[mark] = time.monotonic()
        try:
            return await request
        finally:
            del self._asked[mark]

    def _listen(self) -> None:
        """Judge whether the broker is silent, now and for as long as a request waits."""
        if not self._asked or self._silent.done():
            return
        silence = time.monotonic() - max(next(iter(self._asked.values())), self._inbox.heard_at)
        if silence < _ANSWER_SECONDS:
            asyncio.get_running_loop().call_later(_ANSWER_SECONDS - silence, self._listen)
            return
        reason = (
            f"the MQTT broker {self._broker} does not answer a request; it is stuck, or its queue for a client is too "
            "short (max_queued_messages, see config/mosquitto.conf)"
        )
        self._silent.set_exception(StreamError(reason))


_AT_ONCE = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)
"""Two small packets in a row: the kernel would hold the second back until the broker has acknowledged the first, for
which that takes up to 40 ms when it has nothing to answer."""


@contextlib.asynccontextmanager
async def open_connection(
    settings: Settings, client_id: str, receive: Receive, will: aiomqtt.Will | None = None
) -> AsyncIterator[Connection]:
    """Connect, with what the files of certificates and password hold now; disconnect cleanly (so that no will fires)
    when the block is left.

    Raises:
        StreamError: no connection, or the connection was lost inside the block.
    """
    failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    inbox: type[_Inbox] = type("_BoundInbox", (_Inbox,), {"receive": staticmethod(receive), "failed": failed})
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.ReceiveMaximum = RECEIVE_MAXIMUM
    password = _password(settings)
    _check_texts(settings, client_id, password)
    client = aiomqtt.Client(
        settings.mqtt_host,
        broker_port(settings),
        username=settings.mqtt_username or None,
        password=password,
        identifier=client_id,
        logger=_QUIET,
        queue_type=inbox,
        protocol=aiomqtt.ProtocolVersion.V5,
        clean_start=True,
        will=will,
        properties=properties,
        keepalive=max(1, int(settings.mqtt_keepalive)),
        tls_context=await asyncio.to_thread(_tls_context, settings),  # a system's CAs take tens of milliseconds
        timeout=_ANSWER_SECONDS,
        socket_options=_AT_ONCE,
    )
    client.pending_calls_threshold = RECEIVE_MAXIMUM
    read_bursts(client._client, inbox.take)
    connected = _end_with_socket(client)
    try:
        async with client:
            yield Connection(client, inbox, broker_name(settings))
    except aiomqtt.MqttError as error:
        raise explain(error, settings) from error
    finally:
        if not failed.done():
            failed.cancel()
        if not connected.cancel() and not connected.cancelled():
            connected.exception()  # nobody may have looked at it: connecting failed otherwise


def _end_with_socket(client: aiomqtt.Client) -> asyncio.Future[None]:
    """End the wait for CONNACK when the socket is closed: aiomqtt takes no note of it before it is connected.

    Returns:
        What is waited for.
    """
    loop, connected, closed = asyncio.get_running_loop(), client._connected, client._on_disconnect

    def end() -> None:
        if not connected.done():
            connected.set_exception(_ClosedEarly("closed before CONNACK"))

    def on_disconnect(*arguments: Any) -> None:
        loop.call_soon_threadsafe(end)  # paho connects in another thread
        closed(*arguments)

    client._client.on_disconnect = on_disconnect
    return connected


def _watch_verdicts(client: aiomqtt.Client) -> dict[int, asyncio.Future[ReasonCode]]:
    """Futures by message id that get the broker's verdict on a publication, which aiomqtt does not tell."""
    waiting: dict[int, asyncio.Future[ReasonCode]] = {}
    paho = client._client
    acknowledged = client._on_publish

    def on_publish(sender: Any, data: Any, mid: int, code: ReasonCode, properties: Properties) -> None:
        verdict = waiting.pop(mid, None)
        if verdict is not None and not verdict.done():
            verdict.set_result(code)
        acknowledged(sender, data, mid, code, properties)

    paho.on_publish = on_publish
    return waiting


def explain(error: aiomqtt.MqttError, settings: Settings) -> StreamError:
    """What went wrong, where, and what to do next."""
    broker = f"the MQTT broker {broker_name(settings)}"
    code = _reason_code(error)
    if code == SESSION_TAKEN_OVER:
        text = f"{broker} gave the session to another client with the same client id; give each agent its own node name"
        return StreamError(text, taken_over=True)
    if code in _BAD_CREDENTIALS or code in _NOT_AUTHORISED:
        user = f"user {settings.mqtt_username!r}" if settings.mqtt_username else "a client without user name"
        return StreamError(
            f"{broker} refuses {user} (not authorised); check FELIX_MQTTUSERNAME and FELIX_MQTTPASSWORD or "
            "FELIX_MQTTPASSWORDFILE, and the broker's access rules"
        )
    if isinstance(error, aiomqtt.exceptions.MqttConnectError):
        return StreamError(f"{broker} refuses the connection: {error.rc}")
    return StreamError(f"{broker} {_network_reason(error, settings)}")


def _closed_early_reason(settings: Settings) -> str:
    """With TLS 1.3 a refused certificate looks like this: the broker checks it after our side of the handshake."""
    hint = _certificate_hint(settings) or "; or it wants TLS (FELIX_MQTTTLS)"
    return f"closed the connection before it answered; check FELIX_MQTTPORT, and that a broker is behind it{hint}"


def _certificate_hint(settings: Settings) -> str:
    if not settings.mqtt_tls:
        return ""
    verb = "wants a" if settings.mqtt_cert_file is None else "does not trust the"
    return f"; or it {verb} client certificate (FELIX_MQTTCERTFILE)"


def _reason_code(error: BaseException | None) -> int | None:
    while error is not None:
        if isinstance(error, aiomqtt.exceptions.MqttCodeError) and isinstance(error.rc, ReasonCode):
            return int(error.rc.value)
        error = error.__cause__
    return None


def _network_reason(error: aiomqtt.MqttError, settings: Settings) -> str:
    if isinstance(error, _ClosedEarly):
        return _closed_early_reason(settings)
    # aiomqtt raises its own error "from None": the system's error is the context.
    origin = error.__context__
    if isinstance(origin, ssl.SSLCertVerificationError):
        return f"has a certificate that is not trusted ({origin.verify_message}); check FELIX_MQTTCAFILE"
    if isinstance(origin, ssl.SSLError) or (settings.mqtt_tls and isinstance(origin, ConnectionResetError)):
        reason = origin.reason if isinstance(origin, ssl.SSLError) else origin.strerror
        return f"fails the TLS handshake ({reason or origin}); check FELIX_MQTTTLS, the port and the certificates"
    if isinstance(origin, socket.gaierror):
        brackets = ", where an IPv6 address has no brackets" if settings.mqtt_host.startswith("[") else ""
        return f"has a host name that cannot be resolved; check FELIX_MQTTHOST{brackets}"
    if isinstance(origin, ConnectionRefusedError):
        return "refuses connections; is it running, and is FELIX_MQTTPORT right?"
    if isinstance(origin, TimeoutError) or "timed out" in str(error):
        return f"does not answer; check FELIX_MQTTHOST, FELIX_MQTTPORT and firewalls{_certificate_hint(settings)}"
    if isinstance(origin, OSError):
        return f"cannot be reached: {origin.strerror or origin}"
    code = _reason_code(error)
    # paho gives 128 to a connection that ended without an MQTT packet.
    return "closed the connection" if code in (None, 128) else f"closed the connection: {error.__cause__ or error}"
