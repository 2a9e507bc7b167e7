"""``felixpy takeover``: a node of a Calico Felix becomes felixpy's without a packet lost.

    Felix's routes become ours  →  our rules, sets and routes are written beside Felix's  →  Felix's rules and sets go

Invariant: Felix's rules go only after ours stand, in every family; before that, everything can be done again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from pathlib import Path

import click

from felixpy.agent.lock import agent_lock, living_agent
from felixpy.commands.common import finish, local_settings, observer
from felixpy.commands.errors import CommandError, plain_errors
from felixpy.commands.options import settings_file, snapshot_timeout
from felixpy.config.local import Local
from felixpy.config.settings import Settings

PROBE_SECONDS = 1.0


@click.command()
@settings_file
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@snapshot_timeout
def takeover(config: Path | None, dry_run: bool, timeout: float) -> None:
    """Take a node over from Calico's Felix: adopt its routes, write our rules, then remove its rules and sets.

    Stop Felix on this node first, and leave its rules where they are: workloads keep their network throughout. Start
    `felixpy run` afterwards.

    Exit code: 0 done, or nothing of Felix is here; 1 could not be done.

    Examples:

        felixpy takeover --dry-run

        felixpy takeover
    """
    with plain_errors():
        local = local_settings(config, named=True)
    finish(_takeover(local, dry_run, timeout) if dry_run else _alone(_takeover(local, dry_run, timeout)))


async def _alone(work: Coroutine[None, None, None]) -> None:
    """An agent beside it would take for drift what becomes ours."""
    with contextlib.closing(work), agent_lock():
        await work


async def _takeover(local: Local, dry_run: bool, timeout: float) -> None:  # noqa: ASYNC109
    from felixpy.commands import survey
    from felixpy.dataplane import felix
    from felixpy.dataplane.iptables.tools import Tools

    if command := felix.running():
        raise CommandError(f"a Felix runs on this node ({command}) and would write all of it anew; stop it first")
    ours = dry_run and living_agent() is not None
    if not ours and await _health_is_served(local.settings):
        where = f"{local.settings.health_host}:{local.settings.health_port}"
        raise CommandError(f"{where} is answered, as by a Felix that runs in another container; stop it first")
    tools, say = Tools(), _would if dry_run else _did
    stream = survey.survey(local.settings, local.sources, observer(local.settings), timeout, beside_felix=True)
    async with stream as agent:
        found = await felix.read(agent.links, agent.settings.interface_prefix, tools)
        if not found:
            click.echo("nothing of a Felix is on this node")
            return
        if not dry_run:
            _stop_if(felix.adopt(found.routes, agent.settings.device_route_protocol))
        for left in found.routes:
            say("adopt", f"route {left.key.destination} {f'dev {left.interface}' if left.interface else 'blackhole'}")
        if dry_run:
            for verb, table, entry in agent.dataplane.plan():
                say(verb, f"{table}: {entry}")
        else:
            await agent.dataplane.read()
            report = await agent.dataplane.apply(complete=True)
            _stop_if([f"{family}: {why}" for family, why in report.failures.items()])
            if not agent.dataplane.is_open:
                raise CommandError("our rules do not stand yet, so Felix's stay; see felixpy check, and try again")
            say("write", f"{report.written} entries of ours")
            _stop_if(await felix.remove_rules(found, tools))
        for line in (*found.removed, *(f"IP set {name}" for name in found.sets), *map(str, found.tables)):
            say("remove", line)
    click.echo("nothing was changed" if dry_run else "done; start felixpy run")


async def _health_is_served(settings: Settings) -> bool:
    """Whether somebody has the health port that is to be ours. The processes of other containers are not seen."""
    if not settings.health_enabled:
        return False
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            _, writer = await asyncio.open_connection(settings.health_host, settings.health_port)
    except OSError:
        return False
    writer.close()
    return True


def _would(verb: str, what: str) -> None:
    click.echo(f"would {verb} {what}")


def _did(verb: str, what: str) -> None:
    click.echo(f"{ {'adopt': 'adopted', 'write': 'wrote', 'remove': 'removed'}.get(verb, verb) } {what}")


def _stop_if(refused: list[str]) -> None:
    if refused:
        raise CommandError(f"the kernel refused: {'; '.join(refused)}; what was done stays, and it can be tried again")
