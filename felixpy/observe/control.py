"""The control socket: commands ask the running agent over a unix socket, one line of JSON each way.

    {"do": "status"}                     →  {"ok": true, "result": {…}}  or  {"ok": false, "error": "one sentence"}
    {"do": "plan", "bytes": 5} + 5 bytes →  the same; the agent does not look into them

Invariant: only root may connect (mode 0600 from the first moment), it only looks, and nothing that a client does
reaches the agent's loop as an error. Whether the socket can be had never decides whether the agent runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import structlog

from felixpy.observe.connections import Listener
from felixpy.plain_error import PlainError

log = structlog.get_logger("felixpy")

Answers = Mapping[str, Callable[[], Any]]
"""What can be asked, by name; each answer must be made of JSON values, or be awaited for them."""

Questions = Mapping[str, Callable[[bytes], Awaitable[bytes]]]
"""What takes data and time: the answer is JSON already; what it raises as ``PlainError`` is told."""

MAX_REQUEST_BYTES = 4096
MAX_DATA_BYTES = 16 << 20
PATIENCE_SECONDS = 5.0
LONGEST_SECONDS = 360.0
"""How long a question with data may take, and how often meanwhile the connection counts as heard."""
HEARD_SECONDS = 5.0
MAX_ANSWER_BYTES = 1 << 24


class ControlError(PlainError):
    """The agent cannot be asked: one sentence for people."""


_NONE: Questions = MappingProxyType({})


@contextlib.asynccontextmanager
async def serve_control(path: Path | None, answers: Answers, questions: Questions = _NONE) -> AsyncIterator[None]:
    """Answer for the duration of the context; without a path, or where it cannot be made, the log says so."""
    server = None

    def heard(transport: asyncio.BaseTransport) -> None:
        if server is not None:
            server.heard(transport)

    try:
        listener = _listen(path) if path else None
        if listener is not None:
            server = Listener(listener, lambda: _protocol(answers, questions, heard), f"control socket {path}")
            server.start()
    except OSError as error:
        log.warning("no control socket: `felixpy status` cannot ask this agent", path=str(path), reason=str(error))
    try:
        yield
    finally:
        if server is not None and path is not None:
            server.close()
            with contextlib.suppress(OSError):
                path.unlink()


async def serve_control_forever(path: Path | None, answers: Answers, questions: Questions = _NONE) -> None:
    """Answer until cancelled."""
    async with serve_control(path, answers, questions):
        await asyncio.Event().wait()


def _listen(path: Path) -> socket.socket:
    """A listening socket that nobody but its owner can connect to at any moment; a dead one is replaced.

    Raises:
        OSError: the directory cannot be made or written, or another agent answers there.
    """
    with contextlib.suppress(FileExistsError, FileNotFoundError):
        path.parent.mkdir(mode=0o755)  # under /run it is gone after each boot
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the directory {path.parent} does not exist; create it, or set ControlSocket")
    if _answers(path):
        raise OSError(f"another agent answers at {path}; stop it, or set ControlSocket")
    own = path.with_name(f".{path.name}.{os.getpid()}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with contextlib.suppress(FileNotFoundError):
            own.unlink()
        os.fchmod(listener.fileno(), 0o600)  # bind(2) gives the file the mode of the socket's inode
        listener.bind(str(own))
        own.chmod(0o600)
        listener.listen(8)
        own.replace(path)  # over a stale one, at once
    except OSError:
        listener.close()
        with contextlib.suppress(OSError):
            own.unlink()
        raise
    return listener


def _answers(path: Path) -> bool:
    """Whether somebody listens at a socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


Heard = Callable[[asyncio.BaseTransport], None]


def _protocol(answers: Answers, questions: Questions, heard: Heard) -> asyncio.StreamReaderProtocol:
    reader = asyncio.StreamReader(limit=MAX_REQUEST_BYTES)
    return asyncio.StreamReaderProtocol(
        reader, lambda reader, writer: _converse(reader, writer, answers, questions, heard)
    )


async def _converse(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: Answers, questions: Questions, heard: Heard
) -> None:
    try:
        while line := await asyncio.wait_for(reader.readline(), PATIENCE_SECONDS):
            question, size = _question(line, questions)
            if question is None:
                answer = json.dumps(await _answer(line, answers, questions)).encode()
            else:
                data = await asyncio.wait_for(reader.readexactly(size), PATIENCE_SECONDS)
                answer = await _ask_for_long(question, data, lambda: heard(writer.transport))
            writer.write(answer + b"\n")
            await asyncio.wait_for(writer.drain(), PATIENCE_SECONDS)
    except (OSError, ValueError, TimeoutError, EOFError):  # ValueError: a line that is too long
        pass
    finally:
        writer.close()


def _question(line: bytes, questions: Questions) -> tuple[Callable[[bytes], Awaitable[bytes]] | None, int]:
    """The question that a line asks, if it is one with data, and how many bytes follow.

    Raises:
        ValueError: there are too many, or it is not said how many.
    """
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        return None, 0
    if not isinstance(request, dict) or not isinstance(request.get("do"), str) or request["do"] not in questions:
        return None, 0
    size = request.get("bytes")
    if not isinstance(size, int) or not 0 <= size <= MAX_DATA_BYTES:
        raise ValueError(size)
    return questions[request["do"]], size


async def _ask_for_long(question: Callable[[bytes], Awaitable[bytes]], data: bytes, heard: Callable[[], None]) -> bytes:
    task = asyncio.ensure_future(question(data))
    try:
        while not (await asyncio.wait((task,), timeout=HEARD_SECONDS))[0]:
            heard()
        return b'{"ok": true, "result": ' + task.result() + b"}"
    except PlainError as error:
        return json.dumps({"ok": False, "error": str(error)}).encode()
    finally:
        task.cancel()


async def _answer(line: bytes, answers: Answers, questions: Questions) -> dict[str, Any]:
    try:
        request = json.loads(line)
        verb = request["do"] if isinstance(request, dict) else None
    except (ValueError, KeyError, RecursionError):
        return {"ok": False, "error": 'not a request like {"do": "status"}'}
    if not isinstance(verb, str) or verb not in answers:
        known = ", ".join(sorted({*answers, *questions}))
        return {"ok": False, "error": f"this agent does not know that request; it knows {known}"}
    found = answers[verb]()
    return {"ok": True, "result": await found if inspect.isawaitable(found) else found}


async def ask(path: Path | None, verb: str, data: bytes | None = None) -> Any:
    """Ask the agent once; with data it may take its time.

    Raises:
        ControlError: no agent answers, or it does not know what is asked.
    """
    if path is None:
        raise ControlError("ControlSocket is empty, so a running agent cannot be asked; set it, also for the agent")
    if data is not None and len(data) > MAX_DATA_BYTES:
        raise ControlError(f"{len(data)} bytes are more than the {MAX_DATA_BYTES} that an agent takes; ask in parts")
    request = {"do": verb} if data is None else {"do": verb, "bytes": len(data)}
    try:
        async with asyncio.timeout(PATIENCE_SECONDS if data is None else LONGEST_SECONDS):
            reader, writer = await asyncio.open_unix_connection(str(path), limit=MAX_ANSWER_BYTES)
            try:
                writer.write(json.dumps(request).encode() + b"\n" + (data or b""))
                line = await reader.readline()
            finally:
                writer.close()
    except (FileNotFoundError, ConnectionRefusedError):
        raise ControlError(f"no agent answers at {path}; is `felixpy run` running, with this ControlSocket?") from None
    except PermissionError:
        raise ControlError(f"{path} is for root only; run it with sudo") from None
    except (OSError, TimeoutError, ValueError) as error:
        reason = str(error) or "no answer in time"
        raise ControlError(f"the agent at {path} cannot be asked: {reason}; its log may say why") from None
    if not line:
        raise ControlError(f"the agent at {path} closed the connection; its log may say why")
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        raise not_an_agent(path) from None
    if not isinstance(answer, dict) or "result" not in answer:
        refusal = answer.get("error") if isinstance(answer, dict) else None
        if not isinstance(refusal, str):
            raise not_an_agent(path)
        raise ControlError(f"the agent at {path} answers: {refusal}")
    return answer["result"]


def not_an_agent(path: Path | None) -> ControlError:
    """What answers at the socket does not speak as an agent of this version does."""
    return ControlError(
        f"what answers at {path} is no felixpy agent, or one of another version; check ControlSocket, or restart the "
        "agent"
    )
