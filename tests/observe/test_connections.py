"""The connections of one listening socket: bounded, ended when silent, and what cannot be accepted is said once."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import subprocess
import sys
from typing import Any

import pytest
from structlog.testing import capture_logs

from felixpy.demo.patience import limit
from felixpy.observe import connections
from felixpy.observe.connections import Listener
from felixpy.observe.log_limit import BURST


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


class Poor(socket.socket):
    """Has no descriptor for what comes, so many times."""

    refusals = 0

    def accept(self) -> tuple[socket.socket, Any]:
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


def bound() -> Poor:
    one = Poor(socket.AF_INET, socket.SOCK_STREAM)
    one.bind(("127.0.0.1", 0))
    return one


async def talk(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that is accepted: it answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"x")
    async with limit(60):
        assert await reader.readexactly(1) == b"x"
    return reader, writer


async def ended(reader: asyncio.StreamReader) -> bool:
    async with limit(60):
        try:
            return await reader.read() == b""
        except ConnectionResetError:
            return True


def test_a_new_connection_ends_the_one_that_was_silent_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "most_connections", lambda: 2)

    async def check() -> None:
        listening = bound()
        listener = Listener(listening, Echo, "test")
        listener.start()
        port = listening.getsockname()[1]
        first, second, third = [await talk(port) for _ in range(3)]
        assert await ended(first[0])
        assert not second[0].at_eof() and not third[0].at_eof()
        second[1].close()
        third[1].write(b"y")
        assert await third[0].readexactly(1) == b"y"
        listener.close()
        assert await ended(third[0])

    asyncio.run(check())


def test_a_silent_connection_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SILENCE_SECONDS", 0.05)

    async def check() -> None:
        listening = bound()
        listener = Listener(listening, Echo, "test")
        listener.start()
        reader, _ = await asyncio.open_connection("127.0.0.1", listening.getsockname()[1])
        assert await ended(reader)
        listener.close()

    asyncio.run(check())


def test_without_descriptors_it_is_said_once_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "RETRY_SECONDS", 0.01)

    async def check() -> None:
        listening = bound()
        listener = Listener(listening, Echo, "test")
        listener.start()
        listening.refusals = 20
        with capture_logs() as logs:
            await talk(listening.getsockname()[1])
        assert [log["event"] for log in logs] == [
            "connections are not accepted: test", "connections are not accepted: test: over"
        ]  # fmt: skip
        assert "Too many open files" in logs[0]["reason"] and logs[1]["times"] == 20
        listener.close()

    asyncio.run(check())


def test_what_libraries_say_goes_through_the_limit_of_the_log() -> None:
    script = """
import logging
from felixpy.observe.log import configure_logging, take_libraries
from felixpy.observe.log_limit import LogLimit
limit = LogLimit()
configure_logging("Info", limit)
take_libraries()
for number in range(1000):
    try:
        raise OSError(24, "Too many open files")
    except OSError:
        logging.getLogger("asyncio").exception("socket.accept() out of system resource: %s", number)
limit.tell()
"""
    done = subprocess.run((sys.executable, "-c", script), capture_output=True, text=True, check=True)
    said = [json.loads(line) for line in done.stderr.splitlines()]
    assert BURST <= len(said) - 1 < 2 * BURST
    assert said[-1]["count"] + len(said) - 1 == 1000
    assert said[0]["event"] == "asyncio: socket.accept() out of system resource: %s"
    assert "Too many open files" in said[0]["trace"]
