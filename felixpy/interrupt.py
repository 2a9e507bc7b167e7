"""Ctrl-C while modules are imported: the process ends as others do, not in a traceback of the import system."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def plain_interrupt() -> Iterator[None]:
    """Leave SIGINT to the kernel inside the block, where Python would make an exception of it."""
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is not signal.default_int_handler:
        yield  # it is ignored, as in a shell's background job, or somebody else's
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, interrupt)
