"""The lock that legacy iptables programs take before they read and replace a table.

libiptc does not take it, so we do, on the same file: two writers would otherwise lose each other's rules. Invariant:
held for one write only. Must never be waited for in the event loop's thread, nor for long in an apply: updates that
need no rule would wait behind it, and other programs (kube-proxy on a full node) hold it for seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

from felixpy.dataplane.packet_filter import FilterError

DEFAULT_PATH = "/run/xtables.lock"
APPLY_SECONDS = 0.02
"""How long an apply waits: longer than a program that changes a few rules; then its chains wait and are tried again."""
COMMAND_SECONDS = 10.0
"""How long a command waits that ends with its work."""

_PROBE_SECONDS = 0.002


@contextlib.contextmanager
def xtables_lock(seconds: float) -> Iterator[None]:
    """Hold the xtables lock. The file is ``XTABLES_LOCKFILE`` (iptables' own variable) or ``/run/xtables.lock``.

    Raises:
        FilterError: the file cannot be opened, or another program held the lock for so many seconds.
    """
    path = os.environ.get("XTABLES_LOCKFILE") or DEFAULT_PATH
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FilterError(f"the iptables lock {path} cannot be opened ({error.strerror}); {advice(path)}") from None
    try:
        _acquire(descriptor, path, seconds)
        yield
    finally:
        os.close(descriptor)


def advice(path: str) -> str:
    """What to do about a lock that cannot be opened."""
    if os.path.isdir(path):  # noqa: PTH112
        return (
            "it is a directory, which container runtimes make of a mounted file that is not there: remove it, and"
            " mount it with type FileOrCreate, or mount /run"
        )
    if os.path.islink(path):  # noqa: PTH114
        return "it is a symbolic link that leads nowhere: remove it"
    return "make its folder writable (mount the host's)"


def _acquire(descriptor: int, path: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise FilterError(
                    f"another program holds the iptables lock {path}; if that lasts, find it with 'fuser {path}'"
                ) from None
        time.sleep(_PROBE_SECONDS)
