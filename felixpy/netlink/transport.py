"""A netlink socket: many messages per send, one acknowledgement asked for, every error matched to its message.

The kernel handles a message inside ``send``, so answers are there when it returns; calls are synchronous and short.
Invariant: after any ``OSError`` from the socket it is replaced by a new one, because a socket that reported ENOBUFS
has lost messages. Must never be shared between threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, TypeVar

from felixpy.slices import in_slices, pause

T = TypeVar("T")

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

# linux/netlink.h
NLM_F_REQUEST, NLM_F_MULTI, NLM_F_ACK, NLM_F_DUMP_INTR = 0x1, 0x2, 0x4, 0x10
NLM_F_ROOT, NLM_F_MATCH = 0x100, 0x200
NLM_F_DUMP = NLM_F_ROOT | NLM_F_MATCH
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x200
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLA_F_NESTED, NLA_F_NET_BYTEORDER = 0x8000, 0x4000
NLA_TYPE_MASK = 0x3FFF
NLMSGERR_ATTR_MSG, NLMSGERR_ATTR_OFFS = 1, 2

SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP, NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 1, 10, 11, 12
SO_SNDBUFFORCE, SO_RCVBUFFORCE, SO_ATTACH_FILTER = 32, 33, 26

SEND_BUFFER_BYTES = 16 << 20
RECEIVE_BUFFER_BYTES = 16 << 20
DATAGRAM_BYTES = 1 << 16
"""No answer or notification is longer: the kernel fills a dump's datagrams to 32 KiB, and acknowledgements are capped.

Not much more than that: Python takes memory for all of it at each call, 12 µs for 64 KiB and 70 µs for 1 MiB.
"""
TIMEOUT_SECONDS = 20
MAX_DUMP_ATTEMPTS = 5
TOGETHER = 128
"""Messages of a dump that are decoded at once: routes in a third of a slice."""
MAX_FORMS = 256
"""A node has a few kinds of interfaces, and names of a few lengths."""

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_PAD = (b"", b"\0\0\0", b"\0\0", b"\0")


class NetlinkError(OSError):
    """The kernel refused a message. ``errno`` is set; ``str()`` holds the kernel's own words if it gave any."""


class Refusal(NamedTuple):
    """Why one message failed: errno and the kernel's words (extended acknowledgement, if any)."""

    errno: int
    message: str = ""

    def __str__(self) -> str:
        text = os.strerror(self.errno)
        return f"{text}: {self.message}" if self.message else text


class Message(NamedTuple):
    """A message received: header fields and payload after the 16-byte header. ``port``: of the socket that asked."""

    type: int
    flags: int
    sequence: int
    payload: bytes
    port: int = 0


def attribute(kind: int, data: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    length = 4 + len(data)
    return _ATTRIBUTE.pack(length, kind) + data + _PAD[length & 3]


def nested(kind: int, *attributes: bytes) -> bytes:
    """A nested attribute."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def attributes(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """(type, value) pairs of an attribute stream; flag bits are masked off the type."""
    end = len(data)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            return
        yield kind & NLA_TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


Path = tuple[int, ...]
"""Types from the outermost attribute to a nested one."""


class _Form(NamedTuple):
    """Of messages with the same attributes: how to take all headers out, what they are, where wanted values stand."""

    headers: struct.Struct
    expected: tuple[int, ...]
    places: list[tuple[Path, slice]]


class SomeAttributes:
    """Some attributes, nested ones too, of messages with many others.

    Most messages have the form of an earlier one. So one is taken apart attribute by attribute, and those that follow
    are compared with it, all headers at once: half of the time for a link, which has forty.
    """

    def __init__(self, offset: int, *wanted: Path) -> None:
        self._offset, self._wanted = offset, wanted
        self._nests = {path[:depth] for path in wanted for depth in range(1, len(path))}
        self._forms: dict[tuple[int, bytes], _Form] = {}

    def of(self, data: bytes) -> dict[Path, bytes]:
        """The wanted attributes that ``data`` has."""
        key = len(data), data[self._offset : self._offset + 4]  # the first of a link is its name: its length varies
        form = self._forms.get(key)
        if form is None or form.headers.unpack_from(data, self._offset) != form.expected:
            if len(self._forms) >= MAX_FORMS:
                self._forms.clear()
            form = self._forms[key] = self._form(data)
        return {path: data[place] for path, place in form.places}

    def _form(self, data: bytes) -> _Form:
        places: list[tuple[Path, slice]] = []
        headers = struct.Struct("=" + self._layout(data, self._offset, len(data), (), places))
        return _Form(headers, headers.unpack_from(data, self._offset), places)

    def _layout(self, data: bytes, offset: int, end: int, path: Path, places: list[tuple[Path, slice]]) -> str:
        layout = ""
        while offset + 4 <= end:
            length, kind = _ATTRIBUTE.unpack_from(data, offset)
            if length < 4:
                break
            inside, start, following = (*path, kind & NLA_TYPE_MASK), offset + 4, min(offset + ((length + 3) & ~3), end)
            if inside in self._wanted:
                places.append((inside, slice(start, min(offset + length, end))))
            values = self._layout(data, start, following, inside, places) if inside in self._nests else ""
            layout += f"I{values}{following - start - struct.calcsize('=' + values)}x"
            offset = following
        return layout


class Request(NamedTuple):
    """A message to send: type, flags (NLM_F_REQUEST is added) and payload."""

    type: int
    flags: int
    payload: bytes


class NetlinkSocket:
    """One netlink socket of one protocol, replaced when it breaks.

    ``messages_sent``, ``sends`` and ``bytes_sent`` count requests, ``dumps_sent`` counts dumps: tests assert on them.
    """

    def __init__(self, protocol: int) -> None:
        self._protocol = protocol
        self._sequence = 0
        self._socket: socket.socket | None = None
        self._readers: list[NetlinkSocket] = []
        self._dumping = False
        self.messages_sent = 0
        self.sends = 0
        self.bytes_sent = 0
        self.dumps_sent = 0

    @property
    def port(self) -> int:
        """The port number by which the kernel marks what came of our requests in its notifications."""
        return int(self._open().getsockname()[0])

    def close(self) -> None:
        """Close the socket, and those of dumps that have ended; the next use opens new ones."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        for reader in self._readers:
            reader.close()
        self._readers = []

    def transact(self, requests: Sequence[Request], *, batch: bool = False) -> dict[int, Refusal]:
        """Send all requests at once; the last one asks for the acknowledgement.

        Args:
            requests: what to send.
            batch: an nfnetlink batch with its begin and end messages: the acknowledgement is asked for on the message
                before the end (kernels before 6.10 do not acknowledge the end itself), and an error on the begin
                message is the answer to the whole batch.

        Returns:
            Refusals by index into ``requests``; what is not in it was done. A batch is done as a whole or not at all.

        Raises:
            OSError: the socket broke (it will be replaced by the next call), or no answer came in time.
        """
        if not requests:
            return {}
        ack_at = len(requests) - (2 if batch else 1)
        self._send(requests, ack_at)
        first = self._sequence - len(requests) + 1
        return self._collect(first, first + ack_at, batch)

    def ask(self, request: Request) -> Message:
        """Send one request that the kernel answers with one message, such as a route lookup.

        Raises:
            NetlinkError: the kernel refused.
        """
        self._send([request], -1)
        sequence = self._sequence
        while True:
            for message in self._receive():
                if message.sequence != sequence:
                    continue
                if message.type == NLMSG_ERROR:
                    raise _error(Refusal(-struct.unpack_from("=i", message.payload)[0], _extended_ack(message)))
                return message

    def dump(self, request: Request) -> Iterator[list[Message]]:
        """Send a dump request and yield its messages, one list per datagram.

        A dump has a socket of its own, so that requests may go out while a long dump is read in slices. It is kept for
        later dumps: to close one of NETLINK_NETFILTER makes the kernel wait for an RCU grace period with the lock of
        all nf_tables writers held, if somebody has just deleted anything (``nft_rcv_nl_event``; 10 to 20 ms on 6.18).

        Raises:
            NetlinkError: the kernel refused the dump.
            DumpInterrupted: objects changed meanwhile and the answer may be inconsistent.
        """
        reader = self._readers.pop() if self._readers else NetlinkSocket(self._protocol)
        try:
            yield from reader._dump(request)
        finally:
            self.dumps_sent += 1
            if reader._dumping or self._readers:
                reader.close()  # the rest of the answer would come, or one that waits is enough
            else:
                self._readers.append(reader)

    def _dump(self, request: Request) -> Iterator[list[Message]]:
        self._dumping = True
        self._send([request._replace(flags=request.flags | NLM_F_DUMP)], -1)
        sequence = self._sequence
        interrupted = False
        while True:
            batch = [message for message in self._receive() if message.sequence == sequence]
            interrupted = interrupted or any(message.flags & NLM_F_DUMP_INTR for message in batch)
            if not batch or batch[-1].type not in (NLMSG_ERROR, NLMSG_DONE):  # nothing comes after those
                yield batch
                continue
            end = batch.pop()
            self._dumping = False
            code = struct.unpack_from("=i", end.payload)[0] if len(end.payload) >= 4 else 0
            if code:
                raise _error(Refusal(-code, _extended_ack(end)))
            yield batch
            if interrupted:
                raise DumpInterrupted
            return

    def dump_all(self, request: Request) -> list[Message]:
        """A whole dump in one list, repeated while the kernel marks it interrupted.

        Raises:
            NetlinkError: refused, or interrupted more than ``MAX_DUMP_ATTEMPTS`` times in a row.
        """
        for _ in range(MAX_DUMP_ATTEMPTS):
            with contextlib.suppress(DumpInterrupted):
                return [message for batch in self.dump(request) for message in batch]
        raise NetlinkError(errno.EINTR, "the kernel's table kept changing while it was read; will be tried again")

    async def dump_sliced(self, request: Request) -> list[Message]:
        """Like ``dump_all``, letting other tasks run after every datagram.

        Raises:
            NetlinkError: refused, or interrupted more than ``MAX_DUMP_ATTEMPTS`` times in a row.
        """
        return await self.decode_sliced(request, lambda message: message)

    async def decode_sliced(self, request: Request, decode: Callable[[Message], T]) -> list[T]:
        """What the messages of a dump mean, decoded as they come: the whole of a long dump is never in memory.

        Raises:
            NetlinkError: refused, or interrupted more than ``MAX_DUMP_ATTEMPTS`` times in a row.
        """
        return list(chain.from_iterable(await self.decode_together(request, lambda some: list(map(decode, some)), 16)))

    async def decode_together(
        self, request: Request, decode: Callable[[list[Message]], T], at_once: int = TOGETHER
    ) -> list[T]:
        """Like ``decode_sliced``, with some messages at once for a decoder that makes use of what they have in common.

        Raises:
            NetlinkError: refused, or interrupted more than ``MAX_DUMP_ATTEMPTS`` times in a row.
        """
        for _ in range(MAX_DUMP_ATTEMPTS):
            found: list[T] = []
            with contextlib.suppress(DumpInterrupted):
                for batch in self.dump(request):
                    async for some in in_slices(batch, at_once):
                        found.append(decode(some))
                    await pause()
                return found
        raise NetlinkError(errno.EINTR, "the kernel's table kept changing while it was read; will be tried again")

    def _send(self, requests: Sequence[Request], ack_at: int) -> None:
        if self._sequence + len(requests) > 0xFFFFFFFF:
            self._sequence = 0
        first = self._sequence + 1
        parts: list[bytes] = []
        for index, (kind, flags, payload) in enumerate(requests):
            size = len(payload)
            flags |= NLM_F_REQUEST | (NLM_F_ACK if index == ack_at else 0)
            parts += _HEADER.pack(16 + size, kind, flags, first + index, 0), payload, _PAD[size & 3]
        self._sequence += len(requests)
        data = b"".join(parts)
        self.messages_sent += len(requests)
        self.sends += 1
        self.bytes_sent += len(data)
        try:
            self._open().send(data)
        except OSError:
            self.close()
            raise

    def _collect(self, first: int, last: int, batch: bool) -> dict[int, Refusal]:
        refusals: dict[int, Refusal] = {}
        while True:
            for message in self._receive():
                if message.type != NLMSG_ERROR or not first <= message.sequence <= last:
                    continue
                code = struct.unpack_from("=i", message.payload)[0]
                if code:
                    refusals[message.sequence - first] = Refusal(-code, _extended_ack(message))
                if message.sequence == last or (batch and code and message.sequence == first):
                    return refusals

    def _receive(self) -> list[Message]:
        try:
            data = self._open().recv(DATAGRAM_BYTES)
        except BlockingIOError:
            self.close()
            raise TimeoutError(errno.ETIMEDOUT, f"the kernel did not answer in {TIMEOUT_SECONDS} s") from None
        except OSError:
            self.close()
            raise
        return parse_messages(data)

    def _open(self) -> socket.socket:
        if self._socket is None:
            self._socket = open_socket(self._protocol)
        return self._socket


def parse_messages(data: bytes) -> list[Message]:
    """Messages of one datagram."""
    messages: list[tuple[int, int, int, bytes, int]] = []
    offset, end = 0, len(data)
    while offset + 16 <= end:
        length, kind, flags, sequence, port = _HEADER.unpack_from(data, offset)
        if length < 16:
            break
        messages.append((kind, flags, sequence, data[offset + 16 : offset + length], port))
        offset += (length + 3) & ~3
    return list(map(partial(tuple.__new__, Message), messages))


def by_length(messages: Iterable[Message]) -> dict[int, list[Message]]:
    """Messages of a dump by the length of their payload: those with the same are nearly always of one form."""
    alike: defaultdict[int, list[Message]] = defaultdict(list)
    for message in messages:
        alike[len(message.payload)].append(message)
    return alike


def columns(layout: struct.Struct, alike: Iterable[Message]) -> list[tuple[Any, ...]]:
    """Payloads of ``layout``'s length, taken apart all at once: one tuple per field, with its value in each message."""
    return list(zip(*layout.iter_unpack(b"".join([message.payload for message in alike])), strict=True))


def same(column: tuple[T, ...], value: T) -> bool:
    """Whether a field has the same value in all messages."""
    return column.count(value) == len(column)


def tuples(kind: type[T], *fields: Iterable[Any]) -> Iterator[T]:
    """Named tuples of one kind from their fields, made without a Python call for each."""
    return map(partial(tuple.__new__, kind), zip(*fields, strict=False))  # type: ignore[type-var]


class DumpInterrupted(Exception):
    """A dump carried NLM_F_DUMP_INTR: what it said may be inconsistent and must be read again."""


def open_monitor(protocol: int, groups: Iterable[int], ignored_ports: Iterable[int]) -> socket.socket:
    """A non-blocking socket that gets the notifications of multicast groups, but not those of our own requests.

    The kernel drops what came of ``ignored_ports`` (a classic BPF filter on ``nlmsg_pid``), so that our own bulk writes
    cannot overflow the buffer.

    Raises:
        OSError: no permission, or the kernel has no such protocol or group.
    """
    sock = open_socket(protocol)
    program = _port_filter(list(ignored_ports))
    buffer = ctypes.create_string_buffer(program)
    fprog = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, fprog)
    for group in groups:
        with contextlib.suppress(OSError):  # a family that this kernel does not have
            sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
    sock.setblocking(False)
    return sock


def _port_filter(ports: list[int]) -> bytes:
    """Classic BPF (linux/filter.h): drop messages whose ``nlmsg_pid``, at offset 12, is one of the ports."""
    load, jump_if_equal, give = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    code = [struct.pack("=HBBI", load, 0, 0, 12)]
    for index, port in enumerate(ports):
        # BPF loads words in network order, while nlmsg_pid is in the host's.
        code.append(struct.pack("=HBBI", jump_if_equal, len(ports) - index, 0, socket.htonl(port)))
    return b"".join((*code, struct.pack("=HBBI", give, 0, 0, 0xFFFFFFFF), struct.pack("=HBBI", give, 0, 0, 0)))


def open_socket(protocol: int) -> socket.socket:
    """A bound netlink socket with large buffers, extended acknowledgements and capped echoes.

    Raises:
        OSError: no permission, or the kernel has no such protocol.
    """
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    for option, size in ((SO_SNDBUFFORCE, SEND_BUFFER_BYTES), (SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)):
        with contextlib.suppress(PermissionError):  # plain SO_*BUF is capped by net.core.*mem_max and of no use
            sock.setsockopt(socket.SOL_SOCKET, option, size)
    for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
        with contextlib.suppress(OSError):  # strict checking is unknown to some protocols
            sock.setsockopt(SOL_NETLINK, option, 1)
    for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):  # Python's own time-out is a poll before each call
        sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", TIMEOUT_SECONDS, 0))  # struct timeval
    sock.bind((0, 0))
    return sock


def _error(refusal: Refusal) -> NetlinkError:
    return NetlinkError(refusal.errno, refusal.message or os.strerror(refusal.errno))


def _extended_ack(message: Message) -> str:
    """The kernel's words in an error message: NLMSGERR_ATTR_MSG after the echoed header (NLM_F_ACK_TLVS)."""
    if not message.flags & NLM_F_ACK_TLVS:
        return ""
    offset = 4
    if message.type == NLMSG_ERROR:
        offset = 20
        if not message.flags & NLM_F_CAPPED and len(message.payload) >= 8:
            echoed = struct.unpack_from("=I", message.payload, 4)[0]
            offset = 4 + ((echoed + 3) & ~3)
    for kind, value in attributes(message.payload, offset):
        if kind == NLMSGERR_ATTR_MSG:
            return value.rstrip(b"\0").decode(errors="replace")
    return ""
