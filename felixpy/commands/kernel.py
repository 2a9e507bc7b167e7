"""The commands that compare felixpy's wishes with the kernel: ``show``, ``cleanup``."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path

import click

from felixpy.agent.lock import living_agent
from felixpy.cni.remains import Remains
from felixpy.columns import columns
from felixpy.commands import policy_lines, survey
from felixpy.commands.common import finish, local_settings, observer
from felixpy.commands.errors import CommandError, plain_errors
from felixpy.commands.options import as_json, settings_file, snapshot_timeout
from felixpy.config import Settings
from felixpy.config.local import Local

SHOWN_INTERFACES = 3


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


@click.command()
@click.argument(
    "what",
    metavar="[WHAT]",
    type=click.Choice([what.value for what in What]),
    default=What.ENDPOINTS.value,
    help=f"{', '.join(What)}; endpoints without it.",
)
@settings_file
@as_json
@snapshot_timeout
def show(what: str, config: Path | None, as_json: bool, timeout: float) -> None:
    """Show entries as felixpy wants them and as the kernel has them.

    Examples:

        felixpy show

        felixpy show routes --json
    """
    with plain_errors():
        local = local_settings(config, named=True)
    finish(_show(local, What(what), as_json, timeout))


async def _show(local: Local, what: What, as_json: bool, timeout: float) -> None:  # noqa: ASYNC109
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
        click.echo(json.dumps([line._asdict() for line in lines]))
        return
    rows = [("TABLE", "ENTRY", "WANTED", "KERNEL", "NOTE"), *lines]
    for row, text in zip(rows, columns(rows), strict=True):
        as_wanted = row is rows[0] or (row[2] and row[3] and not row[4])
        click.secho(text, fg=None if as_wanted else "yellow")  # without a terminal: no colour


@click.command()
@settings_file
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--force", is_flag=True, help="Also while an agent runs, which puts it all back.")
@click.option("--containers", is_flag=True, help="Also while containers are attached, which lose their network.")
def cleanup(config: Path | None, dry_run: bool, force: bool, containers: bool) -> None:
    """Remove everything of felixpy from this node's kernel and its files of endpoints and containers, and nothing else.

    Stop the agent first, and drain the node: while an agent runs or containers are attached this refuses. Routes with
    our protocol number, our neighbours, the nft tables `felixpy`, iptables chains `fpy-*`, IP sets `fpy4-*` and
    `fpy6-*` go, endpoint-status files, interfaces of containers, the network configuration that CNIConfigFile names,
    and the journal of attachments; interface settings stay.

    Examples:

        felixpy cleanup --dry-run

        felixpy cleanup
    """
    with plain_errors():
        local = local_settings(config, of_node=True)
    finish(_cleanup(local.settings, dry_run, force, containers))


async def _cleanup(settings: Settings, dry_run: bool, force: bool, containers: bool) -> None:
    if not (dry_run or force) and (agent := living_agent()) is not None:
        raise CommandError(
            f"an agent ({agent}) runs and would put all of it back; stop it first (systemctl stop felixpy), or add "
            "--force"
        )
    if not (dry_run or containers) and (attached := Remains.of(settings).attached):
        some = ", ".join(attached[:SHOWN_INTERFACES]) + (", …" if len(attached) > SHOWN_INTERFACES else "")
        raise CommandError(
            f"{len(attached)} interfaces of containers are attached ({some}) and would go; drain the node first, or "
            "add --containers"
        )
    found = await survey.cleanup(settings, dry_run=dry_run)
    for entry in sorted(found):
        click.echo(f"{'would remove' if dry_run else 'removed'} {entry}")
    if not found:
        click.echo("nothing of felixpy is on this node")
