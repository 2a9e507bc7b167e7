"""The control socket: commands ask the running agent over a unix socket, one line of JSON each way.

    {"do": "status"}  →  {"ok": true, "result": {…}}  or  {"ok": false, "error": "one sentence"}

Invariant: only root may connect (mode 0600 from the first moment), it only looks, and nothing that a client does
reaches the agent's loop as an error. Whether the socket can be had never decides whether the agent runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from felixpy.observe.connections import Listener
from felixpy.plain_error import PlainError

log = structlog.get_logger("felixpy")

Answers = Mapping[str, Callable[[], Any]]
"""What can be asked, by name; each answer must be made of JSON values."""

MAX_REQUEST_BYTES = 4096
PATIENCE_SECONDS = 5.0
MAX_ANSWER_BYTES = 1 << 24


class ControlError(PlainError):
    """The agent cannot be asked: one sentence for people."""


@contextlib.asynccontextmanager
async def serve_control(path: Path | None, answers: Answers) -> AsyncIterator[None]:
    """Answer for the duration of the context; without a path, or where it cannot be made, the log says so."""
    server = None
    try:
        listener = _listen(path) if path else None
        if listener is not None:
            server = Listener(listener, lambda: _protocol(answers), f"control socket {path}")
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


async def serve_control_forever(path: Path | None, answers: Answers) -> None:
    """Answer until cancelled."""
    async with serve_control(path, answers):
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


def _protocol(answers: Answers) -> asyncio.StreamReaderProtocol:
    reader = asyncio.StreamReader(limit=MAX_REQUEST_BYTES)
    return asyncio.StreamReaderProtocol(reader, lambda reader, writer: _converse(reader, writer, answers))


async def _converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: Answers) -> None:
    try:
        while line := await asyncio.wait_for(reader.readline(), PATIENCE_SECONDS):
            writer.write(json.dumps(_answer(line, answers)).encode() + b"\n")
            await asyncio.wait_for(writer.drain(), PATIENCE_SECONDS)
    except (OSError, ValueError, TimeoutError):  # ValueError: a line that is too long
        pass
    finally:
        writer.close()


def _answer(line: bytes, answers: Answers) -> dict[str, Any]:
    try:
        request = json.loads(line)
        verb = request["do"] if isinstance(request, dict) else None
    except (ValueError, KeyError, RecursionError):
        return {"ok": False, "error": 'not a request like {"do": "status"}'}
    if not isinstance(verb, str) or verb not in answers:
        return {"ok": False, "error": f"this agent does not know that request; it knows {', '.join(sorted(answers))}"}
    return {"ok": True, "result": answers[verb]()}


async def ask(path: Path | None, verb: str) -> Any:
    """Ask the agent once.

    Raises:
        ControlError: no agent answers, or it does not know what is asked.
    """
    if path is None:
        raise ControlError("ControlSocket is empty, so a running agent cannot be asked; set it, also for the agent")
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            reader, writer = await asyncio.open_unix_connection(str(path), limit=MAX_ANSWER_BYTES)
            try:
                writer.write(json.dumps({"do": verb}).encode() + b"\n")
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
