"""One agent per network namespace, by a lock that dies with it: a name among the abstract unix sockets (unix(7)).

Those names belong to a network namespace as routes and rules do, and the kernel frees one when the process ends,
however it ends. Two agents would take each other's routes for drift, and each would remove what only the other one's
stream has. Invariant: nobody who calls the name is answered, so that it costs nothing. A program of another user may
take it, as anybody may who shares the node's network; that is no agent, and must not keep one from running.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

import structlog

from felixpy.plain_error import PlainError

NAME = "\0felixpy"
BACKLOG = 16
_CREDENTIALS = struct.Struct("=iII")  # struct ucred: process, user, group
UNSEEN = 0
"""The process id of one in another PID namespace, or that cannot be told."""

log = structlog.get_logger("felixpy")


class AgentLives(PlainError):
    """Another agent programs this network namespace."""


class Holder(NamedTuple):
    """Who has the name."""

    process: int
    user: int

    def __str__(self) -> str:
        return f"process {self.process}" if self.process != UNSEEN else "in another PID namespace"


@contextlib.contextmanager
def agent_lock() -> Iterator[None]:
    """Be the only agent of this network namespace while inside.

    Raises:
        AgentLives: another one is.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as lock:
        try:
            lock.bind(NAME)
            lock.listen(BACKLOG)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            if (agent := living_agent()) is not None:
                raise AgentLives(
                    f"another agent ({agent}) programs this network namespace already; stop it first, or run this one "
                    "in a network namespace of its own"
                ) from None
            log.error(
                "the name by which agents exclude each other is taken by a program that is no agent; find and end it",
                name=NAME[1:],
            )
        yield


def living_agent() -> Holder | None:
    """The agent of this network namespace, if one lives."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as caller:
        try:
            caller.connect(NAME)
        except BlockingIOError:
            return Holder(UNSEEN, os.geteuid())  # it has been asked very often
        except OSError:
            return None
        size = _CREDENTIALS.size
        process, user, _ = _CREDENTIALS.unpack(caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return Holder(process, user) if user in (0, os.geteuid()) else None
