"""What commands that look at a node or a stream share: this machine's settings, the source of resources, their end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import structlog
from click.exceptions import Exit
from msgspec.structs import replace

from felixpy.commands.errors import CommandError, plain_errors
from felixpy.config import DatastoreType, Settings
from felixpy.config.local import Local, local_sources
from felixpy.config.values import NODE_NAME
from felixpy.observe.log import configure_logging
from felixpy.observe.log_limit import LogLimit


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


def existing(paths: Sequence[Path]) -> Sequence[Path]:
    """These paths, all of which are there.

    Raises:
        CommandError: one is not.
    """
    if missing := [str(path) for path in paths if not path.exists()]:
        raise CommandError(f"{', '.join(missing)}: no such file or directory")
    return paths


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


def finish(work: Coroutine[Any, Any, int | None], error_code: int = 1) -> None:
    """Run a command to its end; ends with the code that it returns, or with ``error_code``."""
    with plain_errors(error_code):
        code = asyncio.run(work)
    raise Exit(code or 0)
