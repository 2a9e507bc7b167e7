"""The commands that write and read the stream at its broker: ``apply``, ``delete``, ``get``, ``diff``.

Input is checked as a whole before any connection is made. They never touch the kernel.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from felixpy.commands import listing
from felixpy.commands.common import existing, finish, local_settings
from felixpy.commands.errors import CommandError, UsageError, plain_errors
from felixpy.commands.options import PathOf, settings_file
from felixpy.commands.plan import plan_everywhere
from felixpy.config import Settings
from felixpy.model.resources import Kind

if TYPE_CHECKING:
    from felixpy.mqtt.batch import Batch
    from felixpy.mqtt.publisher import Outcome


_files = click.option(
    "--filename",
    "-f",
    metavar="FILE|DIR",
    type=PathOf(dash_is_stdin=True),
    multiple=True,
    required=True,
    help="YAML or JSON, - for stdin; several times.",
)
_ignore_unknown = click.option(
    "--ignore-unknown", is_flag=True, help="Pass over kinds, fields and settings that felixpy does not know."
)
_asks_for_plan = click.option(
    "--plan", is_flag=True, help="Only ask all agents what this would do to their nodes: `felixpy plan`, everywhere."
)
_plan_output = click.option(
    "--output", "-o", type=click.Choice(["text", "json"]), default="text", help="Of --plan: text or json."
)
_plan_timeout = click.option(
    "--timeout", metavar="SECONDS", type=float, default=30.0, help="Of --plan: without news for so long, it is over."
)
_recount = click.option("--recount", is_flag=True, help="Count manifests anew, after writes by others.")


@click.command()
@_files
@settings_file
@click.option("--skip-bad", is_flag=True, help="Publish the good documents of a bad batch.")
@_recount
@click.option("--dry-run", is_flag=True, help="Only say what would be published.")
@_ignore_unknown
@_asks_for_plan
@_plan_output
@_plan_timeout
def apply(
    filename: tuple[Path, ...],
    config: Path | None,
    skip_bad: bool,
    recount: bool,
    dry_run: bool,
    ignore_unknown: bool,
    plan: bool,
    output: str,
    timeout: float,
) -> None:
    """Publish resources to the MQTT broker FELIX_MQTTHOST, after checking all of them.

    Exit code: 0 all was taken, 1 not; with --plan as of `felixpy plan`.

    Examples:

        felixpy apply -f pools.yaml -f endpoints/

        felixpy apply -f policy.yaml --plan

        kubectl get ippool -o json | felixpy apply -f -
    """
    with plain_errors():
        local = local_settings(config)
        _require_broker(local.settings)
    if plan:
        finish(plan_everywhere(local.settings, filename, (), output == "json", timeout))
    finish(_apply(local.settings, filename, skip_bad, recount, dry_run, ignore_unknown))


@click.command()
@_files
@settings_file
@_recount
@click.option("--ignore-not-found", is_flag=True, help="Objects that are not there are no error.")
@_ignore_unknown
@_asks_for_plan
@_plan_output
@_plan_timeout
def delete(
    filename: tuple[Path, ...],
    config: Path | None,
    recount: bool,
    ignore_not_found: bool,
    ignore_unknown: bool,
    plan: bool,
    output: str,
    timeout: float,
) -> None:
    """Delete the resources that files name from the MQTT broker. Kind and name (and namespace) are enough.

    Exit code: 0 all are gone, 1 that could not be done, or one was not there; with --plan as of `felixpy plan`.

    Examples:

        felixpy delete -f endpoint.yaml

        felixpy delete -f policy.yaml --plan

        felixpy get IPPool old | felixpy delete -f - --ignore-not-found
    """
    with plain_errors():
        local = local_settings(config)
        _require_broker(local.settings)
    if plan:
        finish(plan_everywhere(local.settings, (), filename, output == "json", timeout))
    finish(_delete(local.settings, filename, recount, ignore_not_found, ignore_unknown))


async def _apply(
    settings: Settings, paths: Sequence[Path], skip_bad: bool, recount: bool, dry_run: bool, ignore_unknown: bool
) -> None:
    from felixpy.calc.unenforced import unenforced
    from felixpy.model.documents import Document, load
    from felixpy.mqtt.batch import prepare
    from felixpy.mqtt.publisher import open_publisher

    documents = load(existing(paths))
    batch = prepare(documents, skip_bad=skip_bad, ignore_unknown=ignore_unknown)
    for problem in batch.problems:
        click.echo(f"skipped {problem}", err=True)
    for what in batch.unknown:
        click.echo(f"ignored {what}", err=True)
    notes = [*batch.notes]
    for document in documents:
        if isinstance(document, Document) and document.resource is not None:
            notes += (f"{document.place}: {text}" for text in unenforced(document.resource, document.object))
    for note in notes:
        click.echo(f"note: {note}", err=True)
    with _progress("apply") as progress:
        async with open_publisher(settings, progress) as publisher:
            if dry_run:
                changes = await publisher.changes(batch)
            else:
                outcome = await publisher.apply(batch, recount=recount)
    if dry_run:
        deleted = sum(not after for _, after in changes.values())
        for name, (_, after) in zip(listing.names(changes), changes.values(), strict=True):
            click.echo(f"{name} would be {'published' if after else 'deleted'}")
        click.echo(f"{len(changes) - deleted} would be published, {deleted} deleted; nothing was written")
        return
    _tell(outcome, batch)


@click.command()
@_files
@settings_file
def diff(filename: tuple[Path, ...], config: Path | None) -> None:
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


async def _diff(settings: Settings, paths: Sequence[Path]) -> int:
    from felixpy.model.documents import load
    from felixpy.mqtt.batch import prepare
    from felixpy.mqtt.publisher import open_publisher

    batch = prepare(load(existing(paths)))
    async with open_publisher(settings) as publisher:
        changes = await publisher.changes(batch)
    for line in listing.differences(changes):
        click.echo(line)
    return 1 if changes else 0


async def _delete(
    settings: Settings, paths: Sequence[Path], recount: bool, ignore_not_found: bool, ignore_unknown: bool
) -> None:
    from felixpy.model.documents import load
    from felixpy.mqtt.batch import prepare_deletion
    from felixpy.mqtt.publisher import open_publisher

    batch = prepare_deletion(load(existing(paths)), ignore_unknown=ignore_unknown)
    with _progress("delete") as progress:
        async with open_publisher(settings, progress) as publisher:
            outcome = await publisher.delete(batch, recount=recount)
    click.echo(f"{outcome.deleted} deleted")
    if outcome.missing and not ignore_not_found:
        raise CommandError(f"not found: {', '.join(outcome.missing)}")


def _tell(outcome: Outcome, batch: Batch) -> None:
    click.echo(f"{outcome.written} published, {outcome.unchanged} unchanged, {outcome.deleted} deleted")
    if batch.ignored:
        click.echo(f"{batch.ignored} of a kind that felixpy does not know, ignored", err=True)


@click.command()
@click.argument("kind", required=False, help="Kind, e.g. IPPool or WorkloadEndpoint; all without one.")
@click.argument("name", required=False, help="Name of one object.")
@click.option("--namespace", "-n", help="Namespace of endpoints.")
@click.option(
    "--filename",
    "-f",
    metavar="FILE|DIR",
    type=PathOf(dash_is_stdin=True),
    multiple=True,
    help="Objects that files name.",
)
@settings_file
@click.option("--output", "-o", default="yaml", help="yaml, json, wide or name.")
def get(
    kind: str | None,
    name: str | None,
    namespace: str | None,
    filename: tuple[Path, ...],
    config: Path | None,
    output: str,
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
    finish(_get(local.settings, wanted, name, namespace, filename, output))


async def _get(
    settings: Settings, kind: Kind | None, name: str | None, namespace: str | None, paths: Sequence[Path], output: str
) -> int:
    import yaml

    from felixpy.model.documents import load
    from felixpy.mqtt.batch import prepare
    from felixpy.mqtt.publisher import open_publisher

    async with open_publisher(settings) as publisher:
        found = await publisher.get(kind, name, namespace)
    objects = dict(found.objects)
    if paths:
        topics = {entry.topic for entry in prepare(load(existing(paths)), ignore_unknown=True).entries}
        objects = {topic: value for topic, value in objects.items() if topic in topics}
    if output == "json":
        click.echo(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects.values())}, indent=2))
    elif output in ("wide", "name"):
        for line in (listing.wide if output == "wide" else listing.names)(objects):
            click.echo(line)
    else:
        click.echo(yaml.safe_dump_all(objects.values(), sort_keys=False), nl=False)
    if found.incomplete:
        raise CommandError(f"the list may be incomplete: {found.incomplete}")
    if (name is not None or paths) and not objects:
        raise CommandError("not found")
    return 0


def _require_broker(settings: Settings) -> None:
    if not settings.mqtt_enabled:
        raise CommandError("no MQTT broker is named; set FELIX_MQTTHOST (and FELIX_MQTTPORT)")


@contextlib.contextmanager
def _progress(verb: str) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    with click.progressbar(length=0, label=verb, file=sys.stderr) as bar:

        def show(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        yield show
