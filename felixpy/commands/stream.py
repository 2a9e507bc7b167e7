"""The commands that write and read the stream at its broker: ``apply``, ``delete``, ``get``, ``diff``.

Input is checked as a whole before any connection is made. They never touch the kernel.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from felixpy.commands import listing
from felixpy.commands.common import CommandError, SettingsFile, UsageError, a_path, finish, local_settings, plain_errors
from felixpy.config import Settings
from felixpy.model.resources import Kind

if TYPE_CHECKING:
    from felixpy.mqtt.batch import Batch
    from felixpy.mqtt.publisher import Outcome


def _a_file(text: str) -> Path:
    """A path to read; ``-`` is standard input, as for kubectl."""
    return Path("/dev/stdin") if text == "-" else a_path(text)


IgnoreUnknown = Annotated[
    bool, typer.Option("--ignore-unknown", help="Pass over kinds, fields and settings that felixpy does not know.")
]

Files = Annotated[
    list[Path],
    typer.Option(
        "--filename", "-f", metavar="FILE|DIR", parser=_a_file, help="YAML or JSON, - for stdin; several times."
    ),
]


def apply(
    filename: Files,
    config: SettingsFile = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Publish the good documents of a bad batch.")] = False,
    recount: Annotated[bool, typer.Option("--recount", help="Count manifests anew, after writes by others.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be published.")] = False,
    ignore_unknown: IgnoreUnknown = False,
) -> None:
    """Publish resources to the MQTT broker FELIX_MQTTHOST, after checking all of them.

    Examples:

        felixpy apply -f pools.yaml -f endpoints/

        kubectl get ippool -o json | felixpy apply -f -
    """
    with plain_errors():
        local = local_settings(config)
        _require_broker(local.settings)
    finish(_apply(local.settings, filename, skip_bad, recount, dry_run, ignore_unknown))


def delete(
    filename: Files,
    config: SettingsFile = None,
    recount: Annotated[bool, typer.Option("--recount", help="Count manifests anew, after writes by others.")] = False,
    ignore_not_found: Annotated[
        bool, typer.Option("--ignore-not-found", help="Objects that are not there are no error.")
    ] = False,
    ignore_unknown: IgnoreUnknown = False,
) -> None:
    """Delete the resources that files name from the MQTT broker. Kind and name (and namespace) are enough.

    Exit code: 0 all are gone, 1 that could not be done, or one was not there.

    Examples:

        felixpy delete -f endpoint.yaml

        felixpy get IPPool old | felixpy delete -f - --ignore-not-found
    """
    with plain_errors():
        local = local_settings(config)
        _require_broker(local.settings)
    finish(_delete(local.settings, filename, recount, ignore_not_found, ignore_unknown))


async def _apply(
    settings: Settings, paths: list[Path], skip_bad: bool, recount: bool, dry_run: bool, ignore_unknown: bool
) -> None:
    from felixpy.calc.unenforced import unenforced
    from felixpy.model.documents import Document, load
    from felixpy.mqtt.batch import prepare
    from felixpy.mqtt.publisher import open_publisher

    documents = load(_existing(paths))
    batch = prepare(documents, skip_bad=skip_bad, ignore_unknown=ignore_unknown)
    for problem in batch.problems:
        typer.echo(f"skipped {problem}", err=True)
    for what in batch.unknown:
        typer.echo(f"ignored {what}", err=True)
    notes = [*batch.notes]
    for document in documents:
        if isinstance(document, Document) and document.resource is not None:
            notes += (f"{document.place}: {text}" for text in unenforced(document.resource, document.object))
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    with _progress("apply") as progress:
        async with open_publisher(settings, progress) as publisher:
            if dry_run:
                changes = await publisher.changes(batch)
            else:
                outcome = await publisher.apply(batch, recount=recount)
    if dry_run:
        deleted = sum(not after for _, after in changes.values())
        for name, (_, after) in zip(listing.names(changes), changes.values(), strict=True):
            typer.echo(f"{name} would be {'published' if after else 'deleted'}")
        typer.echo(f"{len(changes) - deleted} would be published, {deleted} deleted; nothing was written")
        return
    _tell(outcome, batch)


def diff(filename: Files, config: SettingsFile = None) -> None:
    """Show how what files say differs from what the MQTT broker holds; changes nothing.

    Exit code: 0 no difference, 1 differences, 2 could not be told.

    Examples:

        felixpy diff -f pools.yaml

        felixpy get -o yaml | felixpy diff -f -
    """
    with plain_errors(2):
        local = local_settings(config)
        _require_broker(local.settings)
    finish(_diff(local.settings, filename), 2)


async def _diff(settings: Settings, paths: list[Path]) -> int:
    from felixpy.model.documents import load
    from felixpy.mqtt.batch import prepare
    from felixpy.mqtt.publisher import open_publisher

    batch = prepare(load(_existing(paths)))
    async with open_publisher(settings) as publisher:
        changes = await publisher.changes(batch)
    for line in listing.differences(changes):
        typer.echo(line)
    return 1 if changes else 0


async def _delete(
    settings: Settings, paths: list[Path], recount: bool, ignore_not_found: bool, ignore_unknown: bool
) -> None:
    from felixpy.model.documents import load
    from felixpy.mqtt.batch import prepare_deletion
    from felixpy.mqtt.publisher import open_publisher

    batch = prepare_deletion(load(_existing(paths)), ignore_unknown=ignore_unknown)
    with _progress("delete") as progress:
        async with open_publisher(settings, progress) as publisher:
            outcome = await publisher.delete(batch, recount=recount)
    typer.echo(f"{outcome.deleted} deleted")
    if outcome.missing and not ignore_not_found:
        raise CommandError(f"not found: {', '.join(outcome.missing)}")


def _tell(outcome: Outcome, batch: Batch) -> None:
    typer.echo(f"{outcome.written} published, {outcome.unchanged} unchanged, {outcome.deleted} deleted")
    if batch.ignored:
        typer.echo(f"{batch.ignored} of a kind that felixpy does not know, ignored", err=True)


def get(
    kind: Annotated[str | None, typer.Argument(help="Kind, e.g. IPPool or WorkloadEndpoint; all without one.")] = None,
    name: Annotated[str | None, typer.Argument(help="Name of one object.")] = None,
    namespace: Annotated[str | None, typer.Option("--namespace", "-n", help="Namespace of endpoints.")] = None,
    filename: Annotated[
        list[Path] | None,
        typer.Option("--filename", "-f", metavar="FILE|DIR", parser=_a_file, help="Objects that files name."),
    ] = None,
    config: SettingsFile = None,
    output: Annotated[str, typer.Option("--output", "-o", help="yaml, json, wide or name.")] = "yaml",
) -> None:
    """Print resources as the MQTT broker holds them.

    Examples:

        felixpy get

        felixpy get IPPool default-ipv6-ippool -o json

        felixpy get wep -o wide

        felixpy get -f pools.yaml
    """
    with plain_errors():
        if output not in ("yaml", "json", "wide", "name"):
            raise UsageError(f"-o {output}: expected yaml, json, wide or name")
        wanted = None if kind is None else listing.kind_named(kind)
        local = local_settings(config)
        _require_broker(local.settings)
    finish(_get(local.settings, wanted, name, namespace, filename or [], output))


async def _get(
    settings: Settings, kind: Kind | None, name: str | None, namespace: str | None, paths: list[Path], output: str
) -> int:
    import yaml

    from felixpy.model.documents import load
    from felixpy.mqtt.batch import prepare
    from felixpy.mqtt.publisher import open_publisher

    async with open_publisher(settings) as publisher:
        found = await publisher.get(kind, name, namespace)
    objects = dict(found.objects)
    if paths:
        topics = {entry.topic for entry in prepare(load(_existing(paths)), ignore_unknown=True).entries}
        objects = {topic: value for topic, value in objects.items() if topic in topics}
    if output == "json":
        typer.echo(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects.values())}, indent=2))
    elif output in ("wide", "name"):
        for line in (listing.wide if output == "wide" else listing.names)(objects):
            typer.echo(line)
    else:
        typer.echo(yaml.safe_dump_all(objects.values(), sort_keys=False), nl=False)
    if found.incomplete:
        raise CommandError(f"the list may be incomplete: {found.incomplete}")
    if (name is not None or paths) and not objects:
        raise CommandError("not found")
    return 0


def _existing(paths: list[Path]) -> list[Path]:
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise CommandError(f"{', '.join(missing)}: no such file or directory")
    return paths


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
