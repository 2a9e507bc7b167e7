"""A netlink socket: many messages per send, one acknowledgement asked for, every error matched to its message.

The kernel handles a message inside ``send``, so answers are there when it returns; calls are synchronous and short.
Invariant: after any ``OSError`` from the socket it is replaced by a new one, because a socket that reported ENOBUFS
has lost messages. Must never be shared between threads.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple, TypeVar

from felixpy.netlink.message import (
    NLM_F_ACK_TLVS,
    NLM_F_CAPPED,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    Message,
    Request,
    attributes,
    datagram,
    parse_messages,
    text_of,
)
from felixpy.slices import in_slices, pause

T = TypeVar("T")

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

# linux/netlink.h
NLMSGERR_ATTR_MSG, NLMSGERR_ATTR_OFFS = 1, 2

SOL_NETLINK = 270
NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 10, 11, 12
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33

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


class NetlinkError(OSError):
    """The kernel refused a message. ``errno`` is set; ``str()`` holds the kernel's own words if it gave any."""


class Refusal(NamedTuple):
    """Why one message failed: errno and the kernel's words (extended acknowledgement, if any)."""

    errno: int
    message: str = ""

    def __str__(self) -> str:
        text = os.strerror(self.errno)
        return f"{text}: {self.message}" if self.message else text


class NetlinkSocket:
    """One netlink socket of one protocol, replaced when it breaks.

    ``messages_sent``, ``sends`` and ``bytes_sent`` count requests, ``dumps_sent`` counts dumps: tests assert on them.
    ``echoes`` is what the kernel told of the last ``transact`` where that asked for it (NLM_F_ECHO), with the index of
    the request.
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
        self.echoes: list[tuple[int, Message]] = []

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
        data = datagram(requests, self._sequence + 1, ack_at)
        self._sequence += len(requests)
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
        self.echoes = []
        while True:
            for message in self._receive():
                if not first <= message.sequence <= last:
                    continue
                if message.type != NLMSG_ERROR:
                    self.echoes.append((message.sequence - first, message))
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


class DumpInterrupted(Exception):
    """A dump carried NLM_F_DUMP_INTR: what it said may be inconsistent and must be read again."""


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
            return text_of(value)
    return ""
