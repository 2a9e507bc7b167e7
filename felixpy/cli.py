"""The commands. Each ends with an exit code and at most one sentence of error; bugs alone show a traceback.

Exit codes: 0 done (``plan``: nothing to do), 1 could not be done, 2 ``plan``: something would change, or bad usage.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import structlog
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from felixpy import __version__
from felixpy.config import (
    Settings,
    SettingsFileError,
    SettingsSource,
    load_environment,
    load_toml,
    resolve,
)
from felixpy.dataplane.packet_filter import FilterError
from felixpy.model.documents import BadDocument, Document, load_directory, load_file
from felixpy.model.resources import Kind
from felixpy.observe.log import configure_logging

LEAVE_SECONDS = 3.0
"""How long the parts of the agent may take to say goodbye before they are told again."""

DEFAULT_SETTINGS_FILE = Path("/etc/felixpy/felixpy.toml")

app = typer.Typer(
    name="felixpy",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Node dataplane agent: carries a node's workloads over IPv4, IPv6 or both.",
)
console = Console(soft_wrap=True, highlight=False)

SettingsFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help=f"Settings file (TOML); {DEFAULT_SETTINGS_FILE} if it exists."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Files = Annotated[
    list[Path], typer.Option("--filename", "-f", metavar="FILE|DIR", help="YAML or JSON; may be given several times.")
]
Timeout = Annotated[float, typer.Option(metavar="SECONDS", help="How long to wait for a complete snapshot.")]


class CommandError(Exception):
    """The command cannot be done: one sentence with what, where and what to do next."""


class Local(NamedTuple):
    """Settings of this machine: what environment and file say, and the sources themselves."""

    settings: Settings
    sources: tuple[SettingsSource, ...]


def _local_settings(path: Path | None, *, log: bool = False) -> Local:
    """Settings from environment and file.

    Raises:
        CommandError: a value is bad, or the file cannot be read.
    """
    sources = [load_environment(os.environ)]
    if path is not None and not path.exists():
        raise CommandError(f"{path}: no such settings file; check --config")
    if path is not None or DEFAULT_SETTINGS_FILE.exists():
        sources.append(load_toml(path or DEFAULT_SETTINGS_FILE))
    settings, problems = resolve(sources)
    if fatal := [str(problem) for problem in problems if problem.fatal]:
        raise CommandError("; ".join(fatal))
    settings = replace(settings, nodename=settings.nodename or socket.gethostname())
    configure_logging(settings.log_severity_screen if log else "ERROR")
    for problem in problems if log else ():
        structlog.get_logger("felixpy").warning("setting ignored", reason=str(problem))
    return Local(settings, tuple(sources))


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Turn what can be expected to go wrong into one sentence and exit code 1."""
    from felixpy.sources.batch import PublishError
    from felixpy.survey import SurveyError

    try:
        yield
    except (CommandError, SettingsFileError, PublishError, SurveyError, FilterError) as error:
        _fail(str(error))
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES):  # netlink's errors are no PermissionError
            _fail(f"{error.strerror or error}: felixpy needs root or CAP_NET_ADMIN; run it with sudo")
        _fail(f"{error}")
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _fail(sentence: str) -> None:
    typer.echo(f"felixpy: {sentence}", err=True)
    raise typer.Exit(1)


def _finish(work: Coroutine[Any, Any, int | None]) -> None:
    with _plain_errors():
        code = asyncio.run(work)
    raise typer.Exit(code or 0)


# --- run -------------------------------------------------------------------------------------------------------------


@app.command()
def run(config: SettingsFile = None) -> None:
    """Run the agent until SIGTERM or Ctrl-C; the kernel keeps its state when it ends.

    Settings come from FELIX_* in the environment, the settings file and FelixConfigurations of the stream.
    Resources come from the MQTT broker FELIX_MQTTHOST, or from FELIX_RESOURCEDIRECTORY without one.

    Examples:

        NODENAME=node1 FELIX_MQTTHOST=broker.example felixpy run

        NODENAME=node1 FELIX_RESOURCEDIRECTORY=/etc/felixpy/resources felixpy run
    """
    with _plain_errors():
        local = _local_settings(config, log=True)
    _finish(_run(local))


async def _run(local: Local) -> int:
    from felixpy.agent import Agent
    from felixpy.observe.server import serve_latest
    from felixpy.sources.directory import DirectorySource
    from felixpy.sources.ending import end
    from felixpy.sources.mqtt import MqttSource

    settings = local.settings
    mqtt = MqttSource(settings, settings.nodename) if settings.mqtt_enabled else None
    source = mqtt or DirectorySource(settings.resource_directory)
    changes: asyncio.Queue[Settings] = asyncio.Queue()

    def follow(newer: Settings) -> None:
        configure_logging(newer.log_severity_screen)
        changes.put_nowait(newer)

    agent = Agent(settings, local.sources, status=mqtt, on_settings=follow)
    parts = (
        serve_latest(settings, changes, agent.live, agent.is_ready, agent.metrics.text),
        agent.run(),
        source.run(agent),
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    tasks = [asyncio.create_task(part) for part in (stop.wait(), *parts)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end(tasks, LEAVE_SECONDS)
    for task in done:
        task.result()  # raises what a part failed with
    return 0


# --- plan, show, cleanup ---------------------------------------------------------------------------------------------


@app.command()
def plan(config: SettingsFile = None, as_json: AsJson = False, timeout: Timeout = 15.0) -> None:
    """Print what `run` would change in the kernel now, and change nothing.

    Exit code: 0 nothing would change, 2 something would, 1 could not be told.

    Examples:

        felixpy plan

        felixpy plan --json | jq -r '.[].entry'
    """
    with _plain_errors():
        local = _local_settings(config)
    _finish(_plan(local, as_json, timeout))


async def _plan(local: Local, as_json: bool, timeout: float) -> int:  # noqa: ASYNC109
    from felixpy import survey

    async with survey.survey(local.settings, local.sources, _observer(local.settings), timeout) as agent:
        operations = sorted(await survey.plan(agent), key=lambda operation: operation[1:])
        if as_json:
            typer.echo(json.dumps([dict(zip(("verb", "table", "entry"), op, strict=True)) for op in operations]))
        else:
            for verb, table, entry in operations:
                typer.echo(f"{ {'add': '+', 'change': '~', 'remove': '-'}[verb] } {table}: {entry}")
            typer.echo(f"{len(operations)} changes" if operations else "nothing to change")
    return 2 if operations else 0


def _observer(settings: Settings) -> Any:
    from felixpy.sources.directory import DirectorySource
    from felixpy.sources.mqtt import MqttSource

    if settings.mqtt_enabled:
        return MqttSource(settings, settings.nodename, observer=True)
    return DirectorySource(settings.resource_directory)


class What(StrEnum):
    """What ``show`` can show."""

    ENDPOINTS = "endpoints"
    POOLS = "pools"
    ROUTES = "routes"
    SETS = "sets"
    RULES = "rules"
    SETTINGS = "settings"
    NEIGHBOURS = "neighbours"


@app.command()
def show(
    what: Annotated[What, typer.Argument(help="What to show.")] = What.ENDPOINTS,
    config: SettingsFile = None,
    as_json: AsJson = False,
    timeout: Timeout = 15.0,
) -> None:
    """Show entries as felixpy wants them and as the kernel has them.

    Examples:

        felixpy show

        felixpy show routes --json
    """
    with _plain_errors():
        local = _local_settings(config)
    _finish(_show(local, what, as_json, timeout))


async def _show(local: Local, what: What, as_json: bool, timeout: float) -> None:  # noqa: ASYNC109
    from felixpy import survey

    async with survey.survey(local.settings, local.sources, _observer(local.settings), timeout) as agent:
        if what is What.ENDPOINTS:
            lines = survey.endpoints(agent)
        elif what is What.POOLS:
            lines = survey.pools(agent)
        else:
            lines = survey.compare(agent, (what.value,))
    if as_json:
        typer.echo(json.dumps([line._asdict() for line in lines]))
        return
    table = Table("table", "entry", "wanted", "kernel", "note")
    for line in lines:
        table.add_row(*line, style=None if line.kernel and line.wanted and not line.note else "yellow")
    console.print(table)


@app.command()
def cleanup(
    config: SettingsFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove everything of felixpy from this node's kernel, and nothing else. Stop the agent first.

    Routes with our protocol number, our neighbours, the nft tables `felixpy`, iptables chains `fpy-*`, IP sets
    `fpy4-*` and `fpy6-*` go; interface settings stay.

    Examples:

        felixpy cleanup --dry-run

        felixpy cleanup
    """
    with _plain_errors():
        local = _local_settings(config)
    _finish(_cleanup(local.settings, dry_run))


async def _cleanup(settings: Settings, dry_run: bool) -> None:
    from felixpy import survey

    found = await survey.cleanup(settings, dry_run=dry_run)
    for entry in sorted(found):
        typer.echo(f"{'would remove' if dry_run else 'removed'} {entry}")
    if not found:
        typer.echo("nothing of felixpy is in the kernel")


# --- apply, delete, get ----------------------------------------------------------------------------------------------


@app.command()
def apply(
    filename: Files,
    config: SettingsFile = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Publish the good documents of a bad batch.")] = False,
    recount: Annotated[bool, typer.Option("--recount", help="Count manifests anew, after writes by others.")] = False,
) -> None:
    """Publish resources to the MQTT broker FELIX_MQTTHOST, after checking all of them.

    Examples:

        felixpy apply -f pools.yaml -f endpoints/

        kubectl get ippool -o json | felixpy apply -f /dev/stdin
    """
    with _plain_errors():
        local = _local_settings(config)
        _require_broker(local.settings)
    _finish(_publish(local.settings, filename, "apply", skip_bad, recount))


@app.command()
def delete(
    filename: Files,
    config: SettingsFile = None,
    recount: Annotated[bool, typer.Option("--recount", help="Count manifests anew, after writes by others.")] = False,
) -> None:
    """Delete the resources that files name from the MQTT broker.

    Examples:

        felixpy delete -f endpoint.yaml
    """
    with _plain_errors():
        local = _local_settings(config)
        _require_broker(local.settings)
    _finish(_publish(local.settings, filename, "delete", False, recount))


async def _publish(settings: Settings, paths: list[Path], verb: str, skip_bad: bool, recount: bool) -> None:
    from felixpy.publish import open_publisher
    from felixpy.sources.batch import prepare

    batch = prepare(_documents(paths), skip_bad=skip_bad)
    for problem in batch.problems:
        typer.echo(f"skipped {problem}", err=True)
    with _progress(verb) as progress:
        async with open_publisher(settings, progress) as publisher:
            if verb == "apply":
                outcome = await publisher.apply(batch, recount=recount)
            else:
                outcome = await publisher.delete(batch, recount=recount)
    typer.echo(f"{outcome.written} published, {outcome.unchanged} unchanged, {outcome.deleted} deleted")
    for missing in outcome.missing:
        typer.echo(f"not found: {missing}", err=True)
    if batch.ignored:
        typer.echo(f"{batch.ignored} of a kind that felixpy does not know, ignored", err=True)


@app.command()
def get(
    kind: Annotated[str | None, typer.Argument(help="Kind, e.g. IPPool or WorkloadEndpoint; all without one.")] = None,
    name: Annotated[str | None, typer.Argument(help="Name of one object.")] = None,
    namespace: Annotated[str | None, typer.Option("--namespace", "-n", help="Namespace of endpoints.")] = None,
    filename: Annotated[list[Path] | None, typer.Option("--filename", "-f", help="Objects that files name.")] = None,
    config: SettingsFile = None,
    output: Annotated[str, typer.Option("--output", "-o", help="yaml or json.")] = "yaml",
) -> None:
    """Print resources as the MQTT broker holds them.

    Examples:

        felixpy get

        felixpy get IPPool default-ipv6-ippool -o json

        felixpy get -f pools.yaml
    """
    with _plain_errors():
        local = _local_settings(config)
        _require_broker(local.settings)
        if output not in ("yaml", "json"):
            raise CommandError(f"-o {output}: expected yaml or json")
        wanted = _kind(kind)
    _finish(_get(local.settings, wanted, name, namespace, filename or [], output))


def _kind(text: str | None) -> Kind | None:
    if text is None:
        return None
    for kind in Kind:
        if text.lower() in (kind.lower(), f"{kind.lower()}s"):
            return kind
    raise CommandError(f"kind {text} is not one that felixpy knows: {', '.join(Kind)}")


async def _get(
    settings: Settings, kind: Kind | None, name: str | None, namespace: str | None, paths: list[Path], output: str
) -> int:
    import yaml

    from felixpy.publish import open_publisher
    from felixpy.sources.batch import prepare

    async with open_publisher(settings) as publisher:
        listing = await publisher.get(kind, name, namespace)
    objects = dict(listing.objects)
    if paths:
        topics = {entry.topic for entry in prepare(_documents(paths)).entries}
        objects = {topic: value for topic, value in objects.items() if topic in topics}
    if output == "json":
        typer.echo(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects.values())}, indent=2))
    else:
        typer.echo(yaml.safe_dump_all(objects.values(), sort_keys=False), nl=False)
    if listing.incomplete:
        raise CommandError(f"the list may be incomplete: {listing.incomplete}")
    if (name is not None or paths) and not objects:
        raise CommandError("not found")
    return 0


def _documents(paths: list[Path]) -> list[Document | BadDocument]:
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise CommandError(f"{', '.join(missing)}: no such file or directory")
    return list(chain.from_iterable(load_directory(path) if path.is_dir() else load_file(path) for path in paths))


def _require_broker(settings: Settings) -> None:
    if not settings.mqtt_enabled:
        raise CommandError("no MQTT broker is named; set FELIX_MQTTHOST (and FELIX_MQTTPORT)")


@contextlib.contextmanager
def _progress(verb: str) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(verb, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


# --- demo, version ---------------------------------------------------------------------------------------------------


@app.command()
def demo(
    backend: Annotated[str | None, typer.Option(help="nftables, legacy, nft or auto.")] = None,
    ipv6_only: Annotated[bool, typer.Option("--ipv6-only", help="No IPv4 anywhere.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the lab up and say how to enter it.")] = False,
) -> None:
    """Show felixpy working: two nodes, workloads and an outside host in private network namespaces, real packets.

    Exit code 0 only if every check holds. Nothing is left behind.

    Examples:

        sudo felixpy demo

        sudo felixpy demo --backend legacy --ipv6-only
    """
    from felixpy.demo.run import demo as run_demo

    raise typer.Exit(run_demo(backend, ipv6_only, keep))


@app.command()
def version() -> None:
    """Print the version.

    Examples:

        felixpy version
    """
    typer.echo(f"felixpy {__version__}")


def main() -> None:
    """Entry point."""
    app()
