"""Reading packets in bursts: however a broker's bytes are cut, every message is taken, and none waits for another."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import trustme
from msgspec.structs import replace
from paho.mqtt.client import Client
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from bench.mqtt_wire import publish_packet
from felixpy.config import Settings
from felixpy.demo.patience import limit
from felixpy.mqtt import reading
from felixpy.mqtt.connection import open_connection
from felixpy.mqtt.reading import RECEIVE_BYTES, Message, _Properties, _Received

CONNACK = b"\x20\x03\0\0\0"
COUNT = 500
CONTENT_TYPE = b"\3\0\4text"
OTHERS = 7
"""Each so many messages one has a property that only paho reads."""


def packet(number: int) -> bytes:
    payload = f"{number} {'x' * (number * 7 % 900)}".encode()
    if number % OTHERS:
        return publish_packet("t", payload, number, (b"ts", b"%d" % number))
    rest = b"\0\1t" + number.to_bytes(2, "big") + bytes((len(CONTENT_TYPE),)) + CONTENT_TYPE + payload
    size = len(rest)
    return b"\x33" + (bytes((size,)) if size < 128 else bytes((size & 127 | 128, size >> 7))) + rest


PACKETS = [packet(number) for number in range(1, COUNT + 1)]
HUGE = publish_packet("t", f"0 {'y' * 5 * RECEIVE_BYTES}".encode(), COUNT + 1)


def whole(data: bytes) -> Iterator[bytes]:
    yield data


def cut(data: bytes) -> Iterator[bytes]:
    """Pieces of 1 to 3,000 bytes: every place of a packet is at the end of some piece."""
    at, size = 0, 1
    while at < len(data):
        yield data[at : at + size]
        at, size = at + size, size * 5 % 3001


@contextlib.asynccontextmanager
async def broker(pieces: list[bytes], context: ssl.SSLContext | None) -> AsyncIterator[tuple[int, asyncio.Event]]:
    """Says CONNACK and these bytes, and nothing more. The event: as many PUBACKs have come as there are messages."""
    acknowledged = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(CONNACK)
        await writer.drain()
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        answers = await reader.readexactly(4 * (COUNT + 1))
        # MQTT v5, 4.6: in the order of the messages.
        assert answers == b"".join(
            b"\x40\2" + number.to_bytes(2, "big") for number in (COUNT + 1, *range(1, COUNT + 1))
        )
        acknowledged.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1], acknowledged


transports = pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])


def secured(tls: bool, folder: Path) -> tuple[ssl.SSLContext | None, Settings]:
    """A server's context, and the settings of a client that trusts it."""
    settings = Settings(mqtt_host="127.0.0.1")
    if not tls:
        return None, settings
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context, replace(settings, mqtt_tls=True, mqtt_ca_file=folder / "ca.pem")


@pytest.mark.parametrize("pieces", [whole, cut])
@transports
def test_every_message_is_taken_at_once(
    tls: bool, pieces: Callable[[bytes], Iterator[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what was received with the last packet for which there was time: no event of the socket would tell of it."""
    monkeypatch.setattr(reading, "READ_SECONDS", 0.0)
    context, settings = secured(tls, tmp_path)
    found: list[tuple[int, object]] = []
    turn, taken = 0, Counter[int]()

    async def count_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    def receive(message: Message) -> None:
        found.append((int(message.payload.split()[0]), message.user_properties))
        taken[turn] += 1

    async def scenario() -> None:
        data = b"".join((HUGE, *PACKETS))
        counting = asyncio.create_task(count_turns())  # messages come as soon as there is a connection
        async with (
            broker(list(pieces(data)), context) as (port, acknowledged),
            open_connection(replace(settings, mqtt_port=port), "c", receive),
            limit(60),
        ):
            await acknowledged.wait()
        counting.cancel()

    asyncio.run(scenario())
    # However much has arrived, others have their turn: here after each piece that was received.
    assert max(taken.values()) <= RECEIVE_BYTES // min(map(len, PACKETS)) + 2 < COUNT
    assert found == [(0, []), *((n, [("ts", str(n))] if n % OTHERS else []) for n in range(1, COUNT + 1))]


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often each turn of the event loop that reads asks the socket for bytes."""
    found: list[int] = []
    receive, begin = Client._sock_recv, _Received.begin

    def count(client: Client, size: int) -> bytes:
        found[-1] += 1
        return receive(client, size)

    def turn(received: _Received, sock: socket.socket) -> None:
        found.append(0)
        begin(received, sock)

    monkeypatch.setattr(Client, "_sock_recv", count)
    monkeypatch.setattr(_Received, "begin", turn)
    return found


@transports
def test_a_turn_ends_with_what_has_arrived(
    tls: bool, turns: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message: one receive, and with TLS one that finds nothing more. A burst: one turn, with TLS a record each."""
    monkeypatch.setattr(reading, "READ_SECONDS", 0.5)  # far more than the burst takes
    context, settings = secured(tls, tmp_path)
    burst = [publish_packet("t", b"1", number) for number in range(1, 101)]
    taken: asyncio.Queue[Message] = asyncio.Queue()
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(CONNACK)
        writers.append(writer)
        await reader.read()
        writer.close()

    async def receives(packets: list[bytes]) -> list[int]:
        """By turn, until all packets are taken; each is written by itself."""
        await asyncio.sleep(0.1)  # what goes before: tickets of TLS for later sessions are records without content
        turns.clear()
        for packet in packets:
            writers[0].write(packet)
        for _ in packets:
            await taken.get()
        return list(turns)

    async def scenario() -> tuple[list[int], list[int]]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        here = replace(settings, mqtt_port=server.sockets[0].getsockname()[1])
        async with server, open_connection(here, "c", taken.put_nowait), limit(60):
            return await receives(burst[:1]), await receives(burst)

    one, many = asyncio.run(scenario())
    assert one == ([2] if tls else [1])
    assert len(many) <= 2
    assert sum(many) <= (len(burst) + 2 if tls else 2)


def test_a_short_answer_is_not_asked_for_more_in_the_same_turn() -> None:
    """However often paho tries; an empty one is the end of the connection, which paho has to meet."""
    answers = [b"abc", b"def", b"", b""]
    received = _Received(lambda size: answers.pop(0))
    for text in (b"abc", b"def"):
        received.begin(None)
        assert received.take(10) == text
        with pytest.raises(BlockingIOError):
            received.take(10)
        assert not received.goes_on
    received.begin(None)
    assert received.take(10) == received.take(10) == b""


def test_a_packet_does_not_wait_until_the_one_before_is_acknowledged() -> None:
    async def scenario() -> int:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1000)
            writer.write(CONNACK)
            await reader.read()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        settings = Settings(mqtt_host="127.0.0.1", mqtt_port=server.sockets[0].getsockname()[1])
        async with server, open_connection(settings, "c", lambda message: None) as connection, limit(60):
            opened = connection.client._client.socket()
            assert isinstance(opened, socket.socket)
            return opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    assert asyncio.run(scenario())


def test_what_the_socket_does_not_take_at_once_is_written_when_it_does() -> None:
    """A broker that reads nothing for a while, and more to say to it than the kernel holds for a connection."""
    payload, count = b"z" * (1 << 20), 12

    async def scenario() -> tuple[int, int]:
        heard = asyncio.get_running_loop().create_future()
        go = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1000)
            writer.write(CONNACK)
            await go.wait()
            amount = 0
            while amount < count * len(payload):
                amount += len(await reader.read(1 << 16))
            heard.set_result(amount)
            writer.write(b"".join(b"\x40\2" + number.to_bytes(2, "big") for number in range(1, count + 1)))
            await reader.read()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        settings = Settings(mqtt_host="127.0.0.1", mqtt_port=server.sockets[0].getsockname()[1])
        async with server, open_connection(settings, "c", lambda message: None) as connection, limit(60):
            sent = [asyncio.create_task(connection.publish_retained("t", payload)) for _ in range(count)]
            await asyncio.sleep(0.1)
            waiting = len(connection.client._client._out_packet)
            go.set()
            await asyncio.gather(*sent)
            return waiting, await heard

    waiting, amount = asyncio.run(scenario())
    assert waiting > 0
    assert amount > count * len(payload)


@pytest.mark.parametrize(
    "properties",
    [
        b"\x03\0\4text",
        b"\x26\0\2ts\0\1",
        b"\x26\0\2ts\0\x091",
        b"\x26\0\2ts\0\1\0",
        b"\x26\0\2ts\0\2\xc3\x28",
        b"\x26" + b"\0\x50" + b"n" * 80 + b"\0\x50" + b"v" * 80,
        b"\x23\0\1",
    ],
    ids=["another", "cut", "too long", "control character", "not UTF-8", "many bytes", "topic alias"],
)
def test_what_is_not_usual_is_left_to_paho(properties: bytes) -> None:
    size = bytes((len(properties),)) if len(properties) < 128 else bytes((len(properties) & 127 | 128, 1))
    body = b"\0\1t\0\1" + size + properties + b"payload"
    data = b"\x33" + (bytes((len(body),)) if len(body) < 128 else bytes((len(body) & 127 | 128, 1))) + body
    received = _Received(lambda size: data)
    assert received.take(1) == data[:1]
    received._at = 0
    assert received.usual() is None
    assert received.left == len(data)


def test_only_a_whole_message_is_usual() -> None:
    whole = PACKETS[500 - 1 - 1]
    for size in range(1, len(whole)):
        received = _Received(lambda _, size=size: whole[:size])  # type: ignore[misc]
        received.take(1)
        received._at = 0
        assert received.usual() is None, size


def test_properties_with_shared_tables_are_those_of_paho() -> None:
    """Values are each packet's own, and what is written is the same to the byte."""
    plain, lean, other = (kind(PacketTypes.PUBLISH) for kind in (Properties, _Properties, _Properties))  # type: ignore[no-untyped-call]
    for one in (plain, lean):
        one.UserProperty = ("a", "b")
        one.MessageExpiryInterval = 7
    assert lean.pack() == plain.pack()  # type: ignore[no-untyped-call]
    assert lean.json() == plain.json()  # type: ignore[no-untyped-call]
    assert other.isEmpty()  # type: ignore[no-untyped-call]
    lean.clear()
    assert lean.isEmpty()  # type: ignore[no-untyped-call]
    assert vars(lean) == vars(other)
    with pytest.raises(Exception, match="TopicAlias"):
        _Properties(PacketTypes.CONNECT).TopicAlias = 1
