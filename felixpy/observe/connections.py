"""The connections of one listening socket: so many at most, none that stands still, and accepted one by one.

    a new one beyond the limit  →  the one that was silent longest ends
    no request for a while      →  ends
    no descriptor to accept it  →  the one that was silent longest ends; said once; tried again in a second

Invariant: whoever connects can always be answered, whatever others hold open, and descriptors remain for the kernel's
work. asyncio's own servers accept without a limit, and log a traceback for each one that cannot be. Must never raise
into the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import Callable

from felixpy.standing import Standing

SILENCE_SECONDS = 15.0
"""For so long a connection stays without a request: longer than a scraper takes to send one, or to read an answer."""
RETRY_SECONDS = 1.0
BACKLOG = 128
SHARE = 16
"""One listener has this part of the descriptors at most; a node has five listeners at most."""
FEWEST, MOST = 4, 64
MOST_DESCRIPTORS = 1 << 16
"""More is never needed, and there are programs that close each possible one when they start."""


def raise_descriptor_limit() -> None:
    """Take as many descriptors as an administrator allows: the soft limit, 1,024, is there for select(2) alone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def most_connections() -> int:
    """How many connections one listener may hold."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else max(FEWEST, min(MOST, soft // SHARE))


class Listener:
    """Accepts for a socket that is bound; ``protocol`` makes what speaks with one peer. Closes the socket."""

    def __init__(self, listening: socket.socket, protocol: Callable[[], asyncio.BaseProtocol], name: str) -> None:
        self._socket = listening
        self._protocol = protocol
        self._what = f"connections are not accepted: {name}"
        self._standing = Standing(level="warning")
        self._loop = asyncio.get_running_loop()
        self._most = most_connections()
        self._heard: dict[asyncio.BaseTransport, float] = {}
        """When each was heard last, on the loop's clock; the one that was silent longest is first."""
        self._joining: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Listen, and accept from now on.

        Raises:
            OSError: another program listens there.
        """
        self._socket.listen(BACKLOG)
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def close(self) -> None:
        """Accept no more, and end all connections."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
        for timer in filter(None, (self._timer, self._retry)):
            timer.cancel()
        for task in self._joining:
            task.cancel()
        for transport in list(self._heard):
            self._end(transport)

    def heard(self, transport: asyncio.BaseTransport | None) -> None:
        """A whole request came."""
        if transport is not None and self._heard.pop(transport, None) is not None:
            self._heard[transport] = self._loop.time()

    def _accept(self) -> None:
        try:
            accepted, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:  # no descriptor or no memory is left
            self._loop.remove_reader(self._socket.fileno())
            self._retry = self._loop.call_later(RETRY_SECONDS, self._again)
            self._end_most_silent()
            self._standing.fails(self._what, f"{error.strerror or error}; the one that was silent longest is closed")
            return
        self._standing.works(self._what)
        accepted.setblocking(False)
        self._make_room()
        task = self._loop.create_task(self._join(accepted))
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)

    def _make_room(self) -> None:
        if len(self._heard) + len(self._joining) >= self._most:
            for transport in [one for one in self._heard if one.is_closing()]:
                del self._heard[transport]
        while self._heard and len(self._heard) + len(self._joining) >= self._most:
            self._end_most_silent()

    def _again(self) -> None:
        self._retry = None
        self._loop.add_reader(self._socket.fileno(), self._accept)

    async def _join(self, accepted: socket.socket) -> None:
        try:
            transport, _ = await self._loop.connect_accepted_socket(self._protocol, accepted)
        except BaseException as error:
            accepted.close()
            if not isinstance(error, OSError):
                raise
            return
        self._heard[transport] = self._loop.time()
        self._watch()

    def _watch(self) -> None:
        if self._timer is None and self._heard:
            due = next(iter(self._heard.values())) + SILENCE_SECONDS
            self._timer = self._loop.call_at(due, self._end_silent)

    def _end_silent(self) -> None:
        self._timer = None
        until = self._loop.time() - SILENCE_SECONDS
        for transport, heard in list(self._heard.items()):
            if heard > until:
                break
            self._end(transport)
        self._watch()

    def _end_most_silent(self) -> None:
        if self._heard:
            self._end(next(iter(self._heard)))

    def _end(self, transport: asyncio.BaseTransport) -> None:
        self._heard.pop(transport, None)
        abort = getattr(transport, "abort", transport.close)  # close would wait for who does not read
        abort()
