"""The commands that look at this node: ``check``, ``explain``, ``status``, ``diag``. They change nothing."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import click

from felixpy.columns import columns
from felixpy.commands.common import finish, local_settings, observer
from felixpy.commands.errors import CommandError, UsageError, plain_errors
from felixpy.commands.options import PathOf, as_json, settings_file
from felixpy.config.local import Local
from felixpy.model.net import printable
from felixpy.observe.control import ControlError, ask, not_an_agent

if TYPE_CHECKING:
    from felixpy.check.finding import Finding

WATCH_SECONDS = 1.0
SHOWN_FAILURES = 5
OTHER_SCREEN, OWN_SCREEN, FROM_THE_TOP = "\033[?1049h", "\033[?1049l", "\033[H\033[J"  # xterm's control sequences


# --- check -----------------------------------------------------------------------------------------------------------


@click.command()
@settings_file
@as_json
@click.option("--family", default="", show_default=False, help="4, 6 or dual; else what the settings say.")
@click.option("--timeout", metavar="SECONDS", type=float, default=5.0, help="How long to wait for the stream.")
def check(config: Path | None, as_json: bool, family: str, timeout: float) -> None:
    """Check this node before felixpy runs on it, or when something does not work. Changes nothing, needs no agent.

    Exit code: 0 all is well, 1 warnings, 2 failures (or it could not be told).

    Examples:

        felixpy check

        felixpy check --family 6 --json | jq '.[] | select(.level == "fail")'
    """
    if family not in ("", "4", "6", "dual"):
        raise click.BadParameter(f"'{family}' is none of 4, 6, dual", param_hint="--family")
    with plain_errors(2):
        local = local_settings(config, named=True)
    finish(_check(local, as_json, family, timeout), error_code=2)


async def _check(local: Local, as_json: bool, family: str, timeout: float) -> int:  # noqa: ASYNC109
    from felixpy.check.facts import read_facts
    from felixpy.check.finding import exit_code
    from felixpy.check.judge import judge, wanted_families

    facts = await read_facts(local.settings, observer(local.settings), timeout, local.sources)
    findings = judge(facts.settings, facts, wanted_families(facts.settings, family))
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings]))
    else:
        _print_findings(findings)
    return exit_code(findings)


def _print_findings(findings: Sequence[Finding]) -> None:
    colours = {"ok": "green", "info": "cyan", "warn": "yellow", "fail": "red"}
    for id_, level, found, why, fix in findings:
        click.echo(f"{click.style(f'{level:<4}', colours[level])} {id_:<16} {found}")
        if level in ("warn", "fail"):
            click.echo(f"{'':<22}why: {why}")
        if fix and level != "ok":
            click.echo(f"{'':<22}fix: {fix}")
    levels = [finding.level.value for finding in findings]
    click.echo(f"{len(levels)} checks: {levels.count('fail')} failures, {levels.count('warn')} warnings")


# --- status ----------------------------------------------------------------------------------------------------------


@click.command()
@settings_file
@as_json
@click.option("--watch", "-w", is_flag=True, help="Show it anew every second until Ctrl-C.")
def status(config: Path | None, as_json: bool, watch: bool) -> None:
    """Ask the running agent: state of stream and families, counts, latencies, what is degraded and why.

    Exit code: 0 in sync and nothing degraded, 2 something is, 1 no agent answers.

    Examples:

        felixpy status --watch

        felixpy status --json | jq .degraded
    """
    with plain_errors():
        local = local_settings(config, of_node=True)
    finish(_status(local, as_json, watch))


async def _status(local: Local, as_json: bool, watch: bool) -> int:
    path = local.settings.control_socket
    said = await _ask_status(path)
    if as_json:
        while True:
            click.echo(json.dumps(said.json))
            if not watch:
                return said.exit_code
            await asyncio.sleep(WATCH_SECONDS)
            said = await _ask_status(path)
    if watch and sys.stdout.isatty():
        await _show_anew(path, said.text)
    while True:
        click.echo(said.text)
        if not watch:
            return said.exit_code
        await asyncio.sleep(WATCH_SECONDS)
        said = await _ask_status(path)


async def _show_anew(path: Path | None, text: str) -> NoReturn:
    """On the terminal's other screen, as pagers do; what was seen last stays on its own."""
    click.echo(OTHER_SCREEN, nl=False)
    try:
        while True:
            click.echo(f"{FROM_THE_TOP}{text}")
            await asyncio.sleep(WATCH_SECONDS)
            try:
                text = (await _ask_status(path)).text
            except ControlError as error:
                text = click.style(str(error), "red")
    finally:
        click.echo(f"{OWN_SCREEN}{text}")


class _Said(NamedTuple):
    """The agent's answer, as JSON and for people."""

    json: Any
    text: str
    exit_code: int


async def _ask_status(path: Path | None) -> _Said:
    """Ask the agent once.

    Raises:
        ControlError: none answers, or what answers is something else.
    """
    said = await ask(path, "status")
    try:
        return _Said(said, _status_text(_printable(said)), 2 if said["degraded"] else 0)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        raise not_an_agent(path) from None


def _printable(said: Any) -> Any:
    """Words come from outside, too: what would turn or break a line of the terminal is escaped."""
    if isinstance(said, str):
        return printable(said)
    if isinstance(said, list):
        return [_printable(one) for one in said]
    return {name: _printable(one) for name, one in said.items()} if isinstance(said, dict) else said


def _status_text(said: Mapping[str, Any]) -> str:
    """The agent's answer for people: all that the JSON says, but of the failures only the latest."""
    heads = ("table", "wanted", "kernel", "dirty", "waiting", "failed", "repaired")
    rows = [(name, *(str(counts[head]) for head in heads[1:])) for name, counts in said["tables"].items()]
    return "\n".join((*_status_lines(said), "", *columns([heads, *rows]), "", *_status_troubles(said)))


def _status_lines(said: Mapping[str, Any]) -> list[str]:
    state = f"{said['state']} {said['got']}/{said['want']}" + (f": {said['reason']}" if said["reason"] else "")
    lines = [
        f"node        {said['hostname']}, felixpy {said['version']}",
        f"back-end    {said['backend']}",
        f"up          {said['uptime_seconds']:.0f} s, last progress {said['last_progress_seconds']:.1f} s ago",
        f"stream      {state}",
    ]
    for version, family in said["families"].items():
        word = "ready" if family["ready"] else "not ready"
        lines.append(f"IPv{version}        {word}" + (f": {family['reason']}" if family["reason"] else ""))
    names = {
        "left_out": "left out, beyond MaxObjects",
        "remote_endpoints": "endpoints of other nodes",
        "active_policies": "policies in use here",
        "active_selectors": "selectors that their rules name",
        "open_endpoints": "endpoints open: without profile and policy",
    }
    found = said["objects"].items()
    objects = ", ".join(f"{number} {names.get(name, name)}" for name, number in found if number or name not in names)
    lines.append(f"objects     {objects}; {said['endpoints']} endpoints of this node")
    lines.append(f"adopted     {said['adopted']} entries that the kernel had at the start")
    for name, found in said["latency_ms"].items():
        if found:
            figures = ", ".join(f"{at} {found[at]} ms" for at in ("p50", "p99", "max"))
            lines.append(f"latency     {name}: {figures} (last {found['count']})")
    return lines


def _status_troubles(said: Mapping[str, Any]) -> Iterator[str]:
    for line in said["degraded"]:
        yield click.style(f"degraded    {line}", "red")
    for line in said["problems"]:
        yield click.style(f"problem     {line}", "yellow")
    if (more := said["problem_count"] - len(said["problems"])) > 0:
        yield click.style(f"problem     and {more} more: `felixpy show`, status topics", "yellow")
    for one in said["failures"][-SHOWN_FAILURES:]:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one["ts"]))
        over = f" (over since {time.strftime('%H:%M:%S', time.localtime(one['over_ts']))})" if one["over_ts"] else ""
        yield click.style(
            f"failure     {at} {one['what']}: {one['reason']}{over}", None if over else "red", dim=bool(over)
        )


# --- explain ---------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("source", metavar="SRC", help="Source address.")
@click.argument("destination", metavar="DST", help="Destination address.")
@click.argument("protocol", default="icmp", help="icmp, tcp, udp or a number; icmp without it.")
@click.argument("port", type=int, required=False, help="Destination port; 80 of tcp and 53 of udp without one.")
@click.option("--in", "interface", metavar="INTERFACE", help="Where it comes in; else where the route leads to.")
@click.option("--all-policies", is_flag=True, help="What each policy on the way says, also after one has decided.")
@as_json
def explain(
    source: str,
    destination: str,
    protocol: str,
    port: int | None,
    interface: str | None,
    all_policies: bool,
    as_json: bool,
) -> None:
    """Say what becomes of a packet on this node, by the rules, sets and routes that the kernel has now.

    Rules of every program count. Exit code: 0 it passes, 2 it is dropped, 3 that is not certain, 1
    cannot be told.

    Examples:

        felixpy explain 10.48.0.1 198.51.100.1 tcp 443

        felixpy explain fd00:48::99 fd00:48::2 udp 53 --in cali68caf03a5f4
    """
    finish(_explain(source, destination, protocol, port, interface, all_policies, as_json))


async def _explain(
    source: str,
    destination: str,
    protocol: str,
    port: int | None,
    interface: str | None,
    all_policies: bool,
    as_json: bool,
) -> int:
    from felixpy.explain import report

    try:
        packet = report.make_packet(source, destination, protocol, port)
    except report.ExplainError as error:
        raise UsageError(str(error)) from None
    try:
        verdict, iif, missing = await report.answer(packet, interface)
    except report.ExplainError as error:
        raise CommandError(str(error)) from None
    if as_json:
        click.echo(json.dumps(report.as_json(packet, verdict, iif, missing)))
    else:
        for line in report.as_text(packet, verdict, iif, missing, all_policies=all_policies):
            click.echo(line)
    return report.exit_code(verdict)


# --- diag ------------------------------------------------------------------------------------------------------------


@click.command()
@settings_file
@click.option("--output", "-o", metavar="FILE", type=PathOf(), help="Where to write it; must not exist.")
def diag(config: Path | None, output: Path | None) -> None:
    """Write one archive (tar.gz) with kernel state, settings without secrets, metrics, checks, log and versions.

    What cannot be had is named in its missing.txt. It has addresses and names of workloads: look before you share it.

    Examples:

        felixpy diag

        felixpy diag -o /tmp/node1.tar.gz
    """
    with plain_errors():
        local = local_settings(config, of_node=True)
    finish(_diag(local, output))


async def _diag(local: Local, output: Path | None) -> None:
    from felixpy.diag.collect import archive, check_place, collect

    stamp = time.strftime("%Y%m%d-%H%M%S")
    path = output or Path(f"felixpy-diag-{local.settings.nodename or 'node'}-{stamp}.tar.gz")
    check_place(path)
    parts = await collect(local.settings, observer(local.settings), local.sources)
    archive(parts, path)
    missing = [part.name for part in parts if part.missing]
    click.echo(f"{path}: {len(parts) - len(missing)} files")
    if missing:
        click.echo(f"not to be had (missing.txt says why): {', '.join(missing)}")
