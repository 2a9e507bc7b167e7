"""One call of the plugin over its connection: the request with an open network namespace, the answer.

Request: ``FPYCNI1\\n``, two 32-bit lengths in the host's order, the ``CNI_`` variables each with a zero behind it,
standard input; beside the first byte the namespace (SCM_RIGHTS). Answer: ``<exit code> <length>\\n`` and as many bytes.
Invariant: at most one descriptor is kept of a request, and whoever takes the request closes it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import NamedTuple

from felixpy.cni.errors import CniError, Code

MAGIC = b"FPYCNI1\n"
HEADER = struct.Struct("=8sII")
MAX_ENVIRONMENT_BYTES = 64 << 10
MAX_INPUT_BYTES = 4 << 20
PATIENCE_SECONDS = 10.0
_PIECE_BYTES = 1 << 18


class Asked(NamedTuple):
    """What came in. ``namespace``: a descriptor, -1 if none was sent."""

    environment: bytes
    standard_input: bytes
    namespace: int


async def receive(connection: socket.socket) -> Asked:
    """A whole request.

    Raises:
        CniError: it is none of this version.
        OSError, TimeoutError: the plugin is gone, or silent.
    """
    data, descriptors = bytearray(), list[int]()
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                more, received = await _receive_some(connection)
                descriptors += received
                if not more:
                    raise ConnectionResetError("the plugin closed the connection")
                data += more
                if (lengths := _lengths(data)) and len(data) >= HEADER.size + sum(lengths):
                    break
    except BaseException:
        _close(descriptors)
        raise
    _close(descriptors[1:])
    at = HEADER.size + lengths[0]
    return Asked(
        bytes(data[HEADER.size : at]), bytes(data[at : at + lengths[1]]), descriptors[0] if descriptors else -1
    )


def _lengths(data: bytearray) -> tuple[int, int] | None:
    if len(data) < HEADER.size:
        return None
    magic, environment, standard_input = HEADER.unpack_from(data)
    if magic != MAGIC or environment > MAX_ENVIRONMENT_BYTES or standard_input > MAX_INPUT_BYTES:
        raise CniError(Code.UNDECODABLE, "the request is none of this version's plugin; install the one of this agent")
    return environment, standard_input


async def _receive_some(connection: socket.socket) -> tuple[bytes, list[int]]:
    while True:
        try:
            data, descriptors, _, _ = socket.recv_fds(connection, _PIECE_BYTES, 4)
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
            return data, descriptors
        except BlockingIOError:
            await _readable(connection)
        except OSError as error:  # EMFILE: the descriptor that was sent cannot be taken
            raise CniError(Code.TRY_AGAIN, f"the request cannot be read: {error.strerror or error}") from None


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(connection, _set, ready)
    try:
        await ready
    finally:
        loop.remove_reader(connection)


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def closed(connection: socket.socket) -> None:
    """Until the plugin goes away: it says nothing more after its request."""
    while True:
        await _readable(connection)
        try:
            if not connection.recv(4096):
                return
        except BlockingIOError:
            continue
        except OSError:
            return


async def answer(connection: socket.socket, exit_code: int, body: bytes) -> None:
    """Send the answer; a plugin that is gone does not hear it."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(connection, b"%d %d\n%s" % (exit_code, len(body), body))
    except (OSError, TimeoutError):
        pass


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
