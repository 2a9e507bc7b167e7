"""Errors of commands as one sentence and an exit code.

Exit codes: 0 done, 1 could not be done, 64 wrong usage (``USAGE``); what 2 and 3 mean is the command's own.
Must never show a traceback for what can be expected to go wrong.
"""

from __future__ import annotations

import contextlib
import errno
import signal
from collections.abc import Iterator
from typing import NoReturn

import click
from click.exceptions import Exit

from felixpy.commands.standard_streams import give_output_up
from felixpy.plain_error import PlainError

USAGE = 64
"""EX_USAGE of sysexits.h: no command says anything else with it."""


class CommandError(PlainError):
    """The command cannot be done: one sentence with what, where and what to do next."""


class UsageError(CommandError):
    """The command was not meant so, whatever the state of node and broker; ends with ``USAGE``."""


@contextlib.contextmanager
def plain_errors(exit_code: int = 1) -> Iterator[None]:
    """Turn what can be expected to go wrong into one sentence and an exit code."""
    try:
        yield
    except UsageError as error:
        fail(str(error), USAGE)
    except PlainError as error:
        fail(str(error), exit_code)
    except OSError as error:
        if (refused := give_output_up()) is not None:
            if refused.errno == errno.EPIPE:  # `felixpy get | head`: nobody wants the rest
                raise Exit(128 + signal.SIGPIPE) from None
            fail(f"cannot write to standard output: {refused.strerror}", exit_code)
        if error.errno in (errno.EPERM, errno.EACCES):  # netlink's errors are no PermissionError
            place = f"{error.filename}: " if error.filename else ""
            fail(f"{place}{error.strerror or error}: felixpy needs root or CAP_NET_ADMIN; run it with sudo", exit_code)
        fail(f"{error}", exit_code)
    except KeyboardInterrupt:
        raise Exit(130) from None


def fail(sentence: str, exit_code: int = 1) -> NoReturn:
    """Say why on standard error and end.

    Raises:
        Exit: always.
    """
    click.echo(f"felixpy: {sentence}", err=True)
    raise Exit(exit_code)
