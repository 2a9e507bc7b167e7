"""The socket on which the plugin asks; ``Calls`` does what it asks for. Only root may connect."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import structlog

from felixpy.cni import transfer
from felixpy.cni.calls import Calls
from felixpy.cni.errors import CniError, Code
from felixpy.cni.request import Call, parse_call, version_of
from felixpy.cni.result import error_result
from felixpy.standing import Standing

log = structlog.get_logger("felixpy")

ACCEPT_AGAIN_SECONDS = 0.1
LISTEN = 128
NO_CALLS = "calls of the CNI plugin cannot be taken"


class CniServer:
    """One conversation per call. ``observe`` is told of each: command, seconds, and the code of its error or 0."""

    def __init__(
        self, path: Path, calls: Calls, observe: Callable[[str, float, int], None] = lambda command, seconds, code: None
    ) -> None:
        self._path = path
        self._calls = calls
        self._observe = observe
        self._standing = Standing()

    async def serve(self) -> None:
        """Answer until cancelled; then what is under way is undone."""
        listener = _listen(self._path)
        own = self._path.stat().st_ino
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def begin(work: Coroutine[Any, Any, None]) -> None:
            task = asyncio.create_task(work)
            tasks.add(task)
            task.add_done_callback(ended)

        def ended(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            error = None if task.cancelled() else task.exception()
            if error is not None and not failed.done():
                failed.set_exception(error)  # a bug, which ends the agent

        tasks: set[asyncio.Task[None]] = set()
        begin(self._accept(listener, lambda connection: begin(self._converse(connection))))
        try:
            await failed
        finally:
            listener.close()
            with contextlib.suppress(OSError):
                if self._path.stat().st_ino == own:  # else the next agent listens there already
                    self._path.unlink()
            under_way = list(tasks)
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
            await self._calls.close()

    async def _accept(self, listener: socket.socket, take: Callable[[socket.socket], None]) -> None:
        while True:
            try:
                connection, _ = await asyncio.get_running_loop().sock_accept(listener)
                self._standing.works(NO_CALLS)
            except OSError as error:  # no descriptor is free: the plugin waits
                self._standing.fails(NO_CALLS, error.strerror or str(error))
                await asyncio.sleep(ACCEPT_AGAIN_SECONDS)
                continue
            connection.setblocking(False)
            take(connection)

    async def _converse(self, connection: socket.socket) -> None:
        """One call."""
        started = time.perf_counter()
        namespace, version, code = -1, "1.0.0", 0
        call: Call | None = None
        try:
            asked = await transfer.receive(connection)
            namespace, version = asked.namespace, version_of(asked.standard_input)
            call = parse_call(asked.environment, asked.standard_input)
            body = await self._while_connected(connection, self._calls.do(call, namespace))
            await transfer.answer(connection, 0, body)
        except CniError as error:
            code = int(error.code)
            if call is not None and call.command in ("ADD", "DEL", "GC"):
                log.warning(
                    "cni call failed", command=call.command, container=call.container_id, pod=call.pod_name,
                    code=code, reason=str(error),
                )  # fmt: skip
            await transfer.answer(connection, 1, error_result(version, error))
        except (ConnectionError, TimeoutError, _Gone):
            code = int(Code.IO_FAILURE)
        finally:
            connection.close()
            if namespace >= 0:
                os.close(namespace)
            if call is not None:
                self._observe(call.command, time.perf_counter() - started, code)

    async def _while_connected(self, connection: socket.socket, work: Awaitable[bytes]) -> bytes:
        """The result, unless the plugin goes away: what the runtime has given up is undone.

        Raises:
            CniError: of the work.
            _Gone: nobody waits for the answer.
        """
        task = asyncio.ensure_future(work)
        closed = asyncio.ensure_future(transfer.closed(connection))
        try:
            await asyncio.wait((task, closed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            closed.cancel()
            ended = task.done()
            if not ended:
                task.cancel()
            await asyncio.wait((task, closed))
        if not ended:
            raise _Gone
        if task.cancelled():
            raise CniError(Code.TRY_AGAIN, "another call for this container came meanwhile")
        return task.result()


class _Gone(Exception):
    """The plugin went away."""


def _listen(path: Path) -> socket.socket:
    """A listening socket that nobody but its owner can connect to at any moment; a dead one is replaced.

    Raises:
        OSError
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    own = path.with_name(f".{path.name}.{os.getpid()}")
    own.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(own))
        own.chmod(0o600)
        listener.listen(LISTEN)
        own.replace(path)
    except OSError:
        listener.close()
        own.unlink(missing_ok=True)
        raise
    return listener
