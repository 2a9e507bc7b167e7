"""The control socket: for root only, one line each way, and nothing that a client does ends it."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from felixpy.observe.control import ControlError, ask, serve_control

ANSWERS = {"status": lambda: {"state": "in-sync"}}


def served(path: Path, check: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with serve_control(path, ANSWERS):
            await check()

    asyncio.run(main())


def test_an_answer_and_a_socket_for_root_only(tmp_path: Path) -> None:
    path = tmp_path / "run" / "felixpy.sock"  # the directory is made

    async def check() -> None:
        mode = path.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        assert await ask(path, "status") == {"state": "in-sync"}
        with pytest.raises(ControlError, match="does not know that request; it knows status"):
            await ask(path, "reboot")

    served(path, check)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    "line", [b"\n", b"{}\n", b"[1]\n", b'{"do": 1}\n', b"\xff\xfe\n", b"[" * 4000 + b"\n", b"x" * 100_000 + b"\n", b""]
)
def test_what_is_no_request_harms_nothing(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "felixpy.sock"

    async def check() -> None:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(line)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        assert answer or len(line) in (0, 100_001)
        if answer:
            assert json.loads(answer)["ok"] is False
        assert await ask(path, "status") == {"state": "in-sync"}

    served(path, check)


def test_a_stale_socket_is_replaced_and_a_living_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "felixpy.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    async def check() -> None:
        assert await ask(path, "status") == {"state": "in-sync"}
        with capture_logs() as logs:
            async with serve_control(path, {"status": lambda: "the second"}):
                assert await ask(path, "status") == {"state": "in-sync"}
        assert "another agent answers" in logs[0]["reason"]
        assert await ask(path, "status") == {"state": "in-sync"}, "the second took the first one's socket away"

    served(path, check)


def test_where_it_cannot_be_the_log_says_so_and_the_agent_goes_on(tmp_path: Path) -> None:
    async def check() -> None:
        with capture_logs() as logs:
            async with serve_control(tmp_path / "no" / "where" / "felixpy.sock", ANSWERS):
                pass
        assert [(one["event"][:17], one["log_level"]) for one in logs] == [("no control socket", "warning")]
        assert "create it, or set ControlSocket" in logs[0]["reason"]
        async with serve_control(None, ANSWERS):
            pass

    asyncio.run(check())


@pytest.mark.parametrize(("path", "words"), [(Path("/nowhere/x"), "no agent answers at"), (None, "is empty")])
def test_nobody_there_is_one_sentence(path: Path | None, words: str) -> None:
    with pytest.raises(ControlError, match=words):
        asyncio.run(ask(path, "status"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "is no felixpy agent"),
        (b"[1]\n", "is no felixpy agent"),
        (b"{}\n", "is no felixpy agent"),
        (b'{"ok": false}\n', "is no felixpy agent"),
        (b"\xff\n", "is no felixpy agent"),
        (b"[" * 100_000 + b"\n", "is no felixpy agent"),
        (b'{"ok": false, "error": "busy"}\n', "answers: busy"),
        (b"", "closed the connection"),
    ],
)
def test_another_program_at_the_socket_is_one_sentence(tmp_path: Path, line: bytes, words: str) -> None:
    async def main() -> None:
        async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            writer.write(line)
            writer.close()

        async with await asyncio.start_unix_server(speak, str(tmp_path / "socket")):
            with pytest.raises(ControlError, match=words):
                await ask(tmp_path / "socket", "status")

    asyncio.run(main())
