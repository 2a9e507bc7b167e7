"""Standard streams as they are given to us: closed, full, a pipe without a reader, or of an encoding without arrows.

Must never show a traceback for any of that, and never take another error for one of output.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator


class _Output(io.TextIOWrapper):
    """Standard output that remembers what it failed with."""

    error: OSError | None = None

    def write(self, text: str, /) -> int:
        with self._remembered():
            return super().write(text)

    def flush(self) -> None:
        with self._remembered():
            super().flush()

    @contextlib.contextmanager
    def _remembered(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = error
            raise


def mend() -> None:
    """Replace closed streams, and write what the encoding of one lacks as an escape."""
    # In the order of descriptors, so that each gets its own: else the first socket would be standard error.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115 - stays open until the end
    output, errors = sys.stdout, sys.stderr
    if isinstance(errors, io.TextIOWrapper):
        errors.reconfigure(errors="backslashreplace")
    if isinstance(output, io.TextIOWrapper):
        encoding, by_line, at_once = output.encoding, output.line_buffering, output.write_through
        sys.stdout = _Output(output.detach(), encoding, "backslashreplace", None, by_line, at_once)


def give_output_up() -> OSError | None:
    """Why standard output does not take what was written, and drop the rest; None if it takes it."""
    output = sys.stdout
    with contextlib.suppress(OSError):
        output.flush()
    error = output.error if isinstance(output, _Output) else None
    if error is not None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, output.fileno())  # Python writes it again at its end, and would complain
        os.close(nowhere)
    return error
