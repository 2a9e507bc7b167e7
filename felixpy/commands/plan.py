"""``plan``: what would change on this node, by itself or by files; and what files would change on all of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from felixpy.commands.common import existing, finish, local_settings, observer
from felixpy.commands.errors import plain_errors
from felixpy.commands.options import PathOf, as_json, settings_file, snapshot_timeout
from felixpy.config import Settings
from felixpy.config.local import Local
from felixpy.plan.report import Line

COLOURS = {"head": {"bold": True}, "cut": {"fg": "red"}, "opened": {"fg": "green"}}
SIGNS = {"add": "+", "change": "~", "remove": "-"}


@click.command()
@click.option(
    "--filename", "-f", metavar="FILE|DIR", type=PathOf(dash_is_stdin=True), multiple=True,
    help="A change: YAML or JSON that would be applied, - for stdin; several times.",
)  # fmt: skip
@click.option(
    "--delete", metavar="FILE|DIR", type=PathOf(dash_is_stdin=True), multiple=True,
    help="A change: what these files name would be deleted; several times.",
)  # fmt: skip
@settings_file
@click.option("--output", "-o", type=click.Choice(["text", "json"]), default="text", help="text or json.")
@as_json
@snapshot_timeout
def plan(
    filename: tuple[Path, ...],
    delete: tuple[Path, ...],
    config: Path | None,
    output: str,
    as_json: bool,
    timeout: float,
) -> None:
    """Print what `run` would change in the kernel now, or what a change in files would do, and change nothing.

    With files the running agent is asked: writes to the kernel, endpoints that are asked something else, and which
    connections and pairs seen lately would be cut or let in, by which rule.

    Exit code: 0 nothing would change, 2 something would, 3 with files: pairs would be cut, 1 could not be told.

    Examples:

        felixpy plan

        felixpy plan -f policy.yaml

        felixpy plan -f new.yaml --delete old.yaml -o json
    """
    is_json = as_json or output == "json"
    with plain_errors():
        local = local_settings(config, named=True)
    if filename or delete:
        finish(_plan_change(local.settings, filename, delete, is_json))
    finish(_plan(local, is_json, timeout))


async def _plan(local: Local, as_json: bool, timeout: float) -> int:  # noqa: ASYNC109
    from felixpy.commands import survey

    async with survey.survey(local.settings, local.sources, observer(local.settings), timeout) as agent:
        operations = sorted(await survey.plan(agent), key=lambda operation: operation[1:])
        if as_json:
            click.echo(json.dumps([dict(zip(("verb", "table", "entry"), op, strict=True)) for op in operations]))
        else:
            for verb, table, entry in operations:
                click.echo(f"{SIGNS[verb]} {table}: {entry}")
            count = f"{len(operations)} change{'s' if len(operations) > 1 else ''}"
            click.echo(count if operations else "nothing to change")
    return 2 if operations else 0


async def _plan_change(settings: Settings, apply: Sequence[Path], delete: Sequence[Path], as_json: bool) -> int:
    from felixpy.model.documents import load
    from felixpy.observe.control import ask, not_an_agent
    from felixpy.plan import change, report

    written = change.write(load(existing(apply)), load(existing(delete)))
    said = await ask(settings.control_socket, "plan", written.data)
    try:
        lines, code = list(report.as_text(said)), report.exit_code(said)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise not_an_agent(settings.control_socket) from None
    _print(said if as_json else None, lines, written.notes)
    return code


async def plan_everywhere(
    settings: Settings, apply: Sequence[Path], delete: Sequence[Path], as_json: bool, quiet_seconds: float
) -> int:
    """Ask all agents over the stream what a change would do, for ``apply --plan`` and ``delete --plan``.

    Raises:
        PlainError: the files cannot be used, or the broker.
    """
    from felixpy.model.documents import load
    from felixpy.mqtt.asking import ask_nodes
    from felixpy.plan import change, cluster

    written = change.write(load(existing(apply)), load(existing(delete)), cluster.ROWS_OF_A_NODE)
    answers = await ask_nodes(settings, "plan", written.data, quiet_seconds)
    cluster.refuse_strange(answers)
    _print(cluster.as_json(answers) if as_json else None, cluster.as_text(answers), written.notes)
    return cluster.exit_code(answers)


def _print(said: Any, lines: Iterable[Line], notes: Sequence[str]) -> None:
    for note in notes:
        click.echo(f"note: {note}", err=True)
    if said is not None:
        click.echo(json.dumps(said))
        return
    for text, kind in lines:
        click.secho(text, **COLOURS.get(kind, {}))  # type: ignore[arg-type]
