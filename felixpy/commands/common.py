"""What every command shares: this machine's settings, and errors as one sentence.

Exit codes: 0 done, 1 could not be done, 64 wrong usage (``USAGE``); what 2 and 3 mean is the command's own.
Must never show a traceback for what can be expected to go wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer

from felixpy.commands.standard_streams import give_output_up
from felixpy.config import DatastoreType, Settings
from felixpy.config.local import DEFAULT_SETTINGS_FILE, Local, local_sources
from felixpy.config.values import NODE_NAME
from felixpy.observe.log import configure_logging
from felixpy.observe.log_limit import LogLimit
from felixpy.plain_error import PlainError

USAGE = 64
"""EX_USAGE of sysexits.h: no command says anything else with it."""


def a_path(text: str) -> Path:
    """A path of the command line. Of an empty one, a shell variable that is not set, pathlib makes this folder.

    Raises:
        BadParameter: wrong usage.
    """
    if not text:
        raise typer.BadParameter("the path is empty; is a variable of the shell not set?")
    return Path(text)


SettingsFile = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", parser=a_path, help=f"Settings file (TOML); {DEFAULT_SETTINGS_FILE} if it exists."
    ),
]


class CommandError(PlainError):
    """The command cannot be done: one sentence with what, where and what to do next."""


class UsageError(CommandError):
    """The command was not meant so, whatever the state of node and broker; ends with ``USAGE``."""


def local_settings(
    path: Path | None, *, of_node: bool = False, named: bool = False, log: LogLimit | None = None
) -> Local:
    """Settings from environment and file; raises what ``local_sources`` raises.

    ``of_node``: the command is about this node, and not only about the stream. ``named``: it needs this node's name, so
    that a host name that cannot be one is an error.
    ``log``: more than errors is.
    """
    sources, settings, problems = local_sources(path, of_node=of_node or named)
    settings = replace(settings, nodename=settings.nodename or _host_name(named))
    configure_logging(settings.log_severity_screen if log else "ERROR", log, in_thread=log is not None)
    for problem in problems if log else ():
        structlog.get_logger("felixpy").warning("setting ignored", reason=str(problem))
    return Local(settings, sources)


def _host_name(named: bool) -> str:
    """The host's name as this node's, in the form of every other node's name; empty if it cannot be one."""
    name = socket.gethostname()
    try:
        return NODE_NAME.parse(name)
    except ValueError as error:
        if named:
            raise CommandError(
                f"the host name cannot be this node's name: {error}; set NODENAME, or FelixHostname"
            ) from None
        return ""


def observer(settings: Settings) -> Any:
    """The source that the settings name, for looking only: it takes nothing from a running agent."""
    from felixpy.sources.chosen import cluster_identity, datastore
    from felixpy.sources.directory import DirectorySource
    from felixpy.sources.mqtt import MqttSource

    store = datastore(settings)
    if store is DatastoreType.MQTT:
        return MqttSource(settings, settings.nodename, observer=True)
    if store is DatastoreType.KUBERNETES:
        from felixpy.kubernetes.access import Access
        from felixpy.kubernetes.client import Api
        from felixpy.sources.kubernetes import KubernetesSource

        return KubernetesSource(settings, Api(Access(cluster_identity(settings))))
    return DirectorySource(settings.resource_directory)


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
                raise typer.Exit(128 + signal.SIGPIPE) from None
            fail(f"cannot write to standard output: {refused.strerror}", exit_code)
        if error.errno in (errno.EPERM, errno.EACCES):  # netlink's errors are no PermissionError
            place = f"{error.filename}: " if error.filename else ""
            fail(f"{place}{error.strerror or error}: felixpy needs root or CAP_NET_ADMIN; run it with sudo", exit_code)
        fail(f"{error}", exit_code)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def fail(sentence: str, exit_code: int = 1) -> None:
    typer.echo(f"felixpy: {sentence}", err=True)
    raise typer.Exit(exit_code)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table without a box: nothing is cut, and the last column is as wide as it needs."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return ["  ".join([*map(str.ljust, row, widths), row[-1]]).rstrip() for row in rows]


def finish(work: Coroutine[Any, Any, int | None], error_code: int = 1) -> None:
    """Run a command to its end; ends with the code that it returns, or with ``error_code``."""
    with plain_errors(error_code):
        code = asyncio.run(work)
    raise typer.Exit(code or 0)
