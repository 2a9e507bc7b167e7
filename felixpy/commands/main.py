"""The commands. Each ends with an exit code and at most one sentence of error; bugs alone show a traceback.

Exit codes: README, "Commands".
"""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from typing import Annotated

import typer
from structlog.contextvars import bind_contextvars

from felixpy import __version__
from felixpy.commands import ipam
from felixpy.commands.common import (
    USAGE,
    CommandError,
    SettingsFile,
    columns,
    finish,
    local_settings,
    observer,
    plain_errors,
)
from felixpy.commands.connectivity import connectivity
from felixpy.commands.node import check, diag, explain, status
from felixpy.commands.standard_streams import give_output_up, mend
from felixpy.commands.stream import apply, delete, diff, get
from felixpy.commands.takeover import takeover
from felixpy.config import Settings
from felixpy.config.local import Local
from felixpy.observe.log_limit import LogLimit

app = typer.Typer(
    name="felixpy",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Node dataplane agent: carries a node's workloads over IPv4, IPv6 or both.",
)


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Timeout = Annotated[float, typer.Option(metavar="SECONDS", help="How long to wait for a complete snapshot.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        with plain_errors():
            typer.echo(f"felixpy {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


# --- run -------------------------------------------------------------------------------------------------------------


@app.command()
def run(config: SettingsFile = None) -> None:
    """Run the agent until SIGTERM or Ctrl-C; the kernel keeps its state when it ends.

    Settings come from FELIX_* in the environment, the settings file and FelixConfigurations of the stream.
    Resources come from the MQTT broker FELIX_MQTTHOST, or from FELIX_RESOURCEDIRECTORY without one.
    SIGHUP makes it read the settings file again, and the files of MQTT's certificates and password.

    Examples:

        NODENAME=node1 FELIX_MQTTHOST=broker.example felixpy run

        NODENAME=node1 FELIX_RESOURCEDIRECTORY=/etc/felixpy/resources felixpy run
    """
    limit = LogLimit()
    with plain_errors():
        local = local_settings(config, named=True, log=limit)
    bind_contextvars(node=local.settings.nodename)
    from felixpy.agent.daemon import run_daemon

    finish(run_daemon(local, config, limit))


# --- plan, show, cleanup ---------------------------------------------------------------------------------------------


@app.command()
def plan(config: SettingsFile = None, as_json: AsJson = False, timeout: Timeout = 15.0) -> None:
    """Print what `run` would change in the kernel now, and change nothing.

    Exit code: 0 nothing would change, 2 something would, 1 could not be told.

    Examples:

        felixpy plan

        felixpy plan --json | jq -r '.[].entry'
    """
    with plain_errors():
        local = local_settings(config, named=True)
    finish(_plan(local, as_json, timeout))


async def _plan(local: Local, as_json: bool, timeout: float) -> int:  # noqa: ASYNC109
    from felixpy.commands import survey

    async with survey.survey(local.settings, local.sources, observer(local.settings), timeout) as agent:
        operations = sorted(await survey.plan(agent), key=lambda operation: operation[1:])
        if as_json:
            typer.echo(json.dumps([dict(zip(("verb", "table", "entry"), op, strict=True)) for op in operations]))
        else:
            for verb, table, entry in operations:
                typer.echo(f"{ {'add': '+', 'change': '~', 'remove': '-'}[verb] } {table}: {entry}")
            count = f"{len(operations)} change{'s' if len(operations) > 1 else ''}"
            typer.echo(count if operations else "nothing to change")
    return 2 if operations else 0


class What(StrEnum):
    """What ``show`` can show."""

    ENDPOINTS = "endpoints"
    POOLS = "pools"
    POLICIES = "policies"
    CLASSES = "classes"
    SELECTORS = "selectors"
    ROUTES = "routes"
    SETS = "sets"
    RULES = "rules"
    SETTINGS = "settings"
    NEIGHBOURS = "neighbours"
    UNDERLAY = "underlay"


@app.command()
def node(
    config: SettingsFile = None,
    yaml: Annotated[bool, typer.Option("--yaml", help="Print the Node to publish.")] = False,
) -> None:
    """Say which addresses this node should tell others, by Calico's variables IP, IP6, IP_AUTODETECTION_METHOD.

    Examples:

        felixpy node

        felixpy node --yaml | felixpy apply -f -
    """
    from felixpy.commands.own_node import own_node_lines

    with plain_errors():
        local = local_settings(config, named=True)
        for line in own_node_lines(local.settings.nodename, as_yaml=yaml):
            typer.echo(line)


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
    with plain_errors():
        local = local_settings(config, named=True)
    finish(_show(local, what, as_json, timeout))


async def _show(local: Local, what: What, as_json: bool, timeout: float) -> None:  # noqa: ASYNC109
    from felixpy.commands import policy_lines, survey

    objects = {
        What.ENDPOINTS: survey.endpoints,
        What.POOLS: survey.pools,
        What.POLICIES: policy_lines.policies,
        What.CLASSES: policy_lines.classes,
        What.SELECTORS: policy_lines.selectors,
    }
    async with survey.survey(local.settings, local.sources, observer(local.settings), timeout) as agent:
        tables = survey.UNDERLAY if what is What.UNDERLAY else (what.value,)
        lines = objects[what](agent) if what in objects else survey.compare(agent, tables)
    if as_json:
        typer.echo(json.dumps([line._asdict() for line in lines]))
        return
    rows = [("TABLE", "ENTRY", "WANTED", "KERNEL", "NOTE"), *lines]
    for row, text in zip(rows, columns(rows), strict=True):
        as_wanted = row is rows[0] or (row[2] and row[3] and not row[4])
        typer.secho(text, fg=None if as_wanted else typer.colors.YELLOW)  # without a terminal: no colour


@app.command()
def cleanup(
    config: SettingsFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also while an agent runs, which puts it all back.")] = False,
) -> None:
    """Remove everything of felixpy from this node's kernel and its endpoint-status files, and nothing else.

    Stop the agent first: while one runs this refuses. Routes with our protocol number, our neighbours, the nft tables
    `felixpy`, iptables chains `fpy-*`, IP sets `fpy4-*` and `fpy6-*` go; interface settings stay.

    Examples:

        felixpy cleanup --dry-run

        felixpy cleanup
    """
    with plain_errors():
        local = local_settings(config, of_node=True)
    finish(_cleanup(local.settings, dry_run, force))


async def _cleanup(settings: Settings, dry_run: bool, force: bool) -> None:
    from felixpy.agent.lock import living_agent
    from felixpy.commands import survey

    if not (dry_run or force) and (agent := living_agent()) is not None:
        raise CommandError(
            f"an agent ({agent}) runs and would put all of it back; stop it first (systemctl stop felixpy), or add "
            "--force"
        )
    found = await survey.cleanup(settings, dry_run=dry_run)
    for entry in sorted(found):
        typer.echo(f"{'would remove' if dry_run else 'removed'} {entry}")
    if not found:
        typer.echo("nothing of felixpy is on this node")


for _command in (check, explain, status, diag, apply, delete, get, diff, takeover, connectivity):
    app.command()(_command)
app.add_typer(ipam.app, name="ipam")


# --- demo, version ---------------------------------------------------------------------------------------------------


@app.command()
def demo(
    backend: Annotated[str | None, typer.Option(help="nftables, legacy, nft or auto.")] = None,
    ipv6_only: Annotated[bool, typer.Option("--ipv6-only", help="No IPv4 anywhere.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the lab up and say how to enter it.")] = False,
    latency: Annotated[bool, typer.Option(help="Also time one endpoint beside 2,000 others.")] = True,
) -> None:
    """Show felixpy working: two nodes, workloads and an outside host in private network namespaces, real packets.

    Exit code 0 only if every check holds. Nothing is left behind.

    Examples:

        sudo felixpy demo

        sudo felixpy demo --backend legacy --ipv6-only
    """
    from felixpy.demo.run import demo as run_demo

    raise typer.Exit(run_demo(backend, ipv6_only, keep, latency))


@app.command()
def version() -> None:
    """Print the version.

    Examples:

        felixpy version
    """
    with plain_errors():
        typer.echo(f"felixpy {__version__}")


def main() -> None:
    """Run the command that the arguments name."""
    mend()
    for error in typer.BadParameter.__mro__:  # of the parser; 2 is what `plan`, `check` and others say something with
        if error.__name__ == "UsageError":
            error.exit_code = USAGE  # type: ignore[attr-defined]
    try:
        app()
    except OSError as error:  # not of a command: of its help
        if give_output_up() is None:
            raise
        sys.exit(f"felixpy: cannot write to standard output: {error.strerror}")
