"""``felixpy demo``: the whole product on one machine, shown by packets, in private namespaces that vanish afterwards.

Exit code 0 only if every claim holds. Never needs a terminal, never touches the machine's own network.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import Coroutine, Sequence

import click

from felixpy.columns import columns
from felixpy.demo import checks
from felixpy.demo.checks import Check, Result
from felixpy.demo.host import LabError
from felixpy.demo.lab import Lab
from felixpy.demo.latency import measure_latency
from felixpy.demo.networks import across_networks
from felixpy.demo.patience import Patience
from felixpy.demo.policy import policy
from felixpy.demo.resources import lab_resources, workload_endpoint, write_manifests
from felixpy.demo.topology import P1B, Mode

BACKENDS: dict[str, dict[str, str]] = {
    "auto": {},
    "nftables": {"FELIX_NFTABLESMODE": "Enabled"},
    "legacy": {"FELIX_NFTABLESMODE": "Disabled", "FELIX_IPTABLESBACKEND": "Legacy"},
    "nft": {"FELIX_NFTABLESMODE": "Disabled", "FELIX_IPTABLESBACKEND": "NFT"},
}
"""Names of ``--backend`` and the settings that they stand for."""

PROGRAMS = {
    "ip": "iproute2",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "mosquitto": "mosquitto",
}
CONTROL_TIMEOUT_S = 0.5


def demo(backend: str | None = None, ipv6_only: bool = False, keep: bool = False, latency: bool = True) -> int:
    """Run the demo and return its exit code: 0 all claims hold, 1 one does not, 2 it could not be run."""
    if problem := _cannot_run(backend):
        click.secho(f"felixpy demo: {problem}", fg="red")
        return 2
    try:
        return asyncio.run(_until_stopped(run_demo(backend, ipv6_only, keep, latency)))
    except KeyboardInterrupt:
        return 130
    except LabError as error:
        click.secho(f"felixpy demo: {error}", fg="red")
        return 2


def _cannot_run(backend: str | None) -> str:
    if backend is not None and backend not in BACKENDS:
        return f"there is no back-end {backend!r}; choose one of {', '.join(BACKENDS)}"
    if os.geteuid() != 0:
        return "needs root to make network namespaces; run it with sudo"
    missing = sorted({package for program, package in PROGRAMS.items() if not _installed(program)})
    if missing:
        return f"needs the Debian packages {', '.join(missing)}; run `apt-get install {' '.join(missing)}`"
    return ""


def _installed(program: str) -> bool:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is not None


async def _until_stopped(work: Coroutine[None, None, int]) -> int:
    """SIGTERM ends the demo as Ctrl-C does, so that the lab is taken down in both cases."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        click.echo("stopped; the lab is gone")
        return 130


async def run_demo(backend: str | None, ipv6_only: bool, keep: bool, latency: bool) -> int:
    """Build the lab, run every check and print the table; see ``demo``.

    Raises:
        LabError: the lab could not be built, or an agent did not become ready.
    """
    mode = Mode.V6 if ipv6_only else Mode.DUAL
    show = Narrator()
    started = time.monotonic()
    async with Lab(mode) as lab:
        show.step(f"lab up in {time.monotonic() - started:.2f} s", _about(lab))
        holding = await _control(lab, show)
        await _start(lab, backend or "auto", show)
        results = await show.run_all(checks.connectivity(lab) + checks.protection(lab))
        results += await policy(lab, show)
        await _remove(lab, show)
        results += await show.run_all(checks.removed(lab))
        results += await across_networks(lab, BACKENDS[backend or "auto"], show)
        show.table(results)
        if latency and (took := await measure_latency(lab)):
            click.echo(took)
        ok = not holding and all(result.ok for result in results)
        show.verdict(results, ok)
        if keep:
            await _keep(lab)
        return 0 if ok else 1


class Narrator:
    """Prints what happens, as it happens."""

    def step(self, what: str, detail: str = "") -> None:
        click.echo(f"{click.style(f'• {what}', bold=True)}{'  ' if detail else ''}{detail}")

    async def run_all(self, wanted: Sequence[Check]) -> list[Result]:
        """Run checks one after another, a line for each."""
        results = []
        for check in wanted:
            result = await check.run()
            results.append(result)
            mark = click.style("ok", "green") if result.ok else click.style("FAILED", "red")
            text = f"{result.family} {result.protocol:<9} {result.source} → {result.destination}: {result.seen}"
            click.echo(f"    {text}  {mark}")
        return results

    def table(self, results: Sequence[Result]) -> None:
        heads = ("FAMILY", "PROTOCOL", "FROM", "TO", "EXPECTED THERE", "SEEN THERE", "OK")
        marks = [click.style("yes", "green") if result.ok else click.style("NO", "red") for result in results]
        rows = [(*result, mark) for result, mark in zip(results, marks, strict=True)]
        click.echo("\n".join(("", *columns([heads, *rows]), "")))

    def verdict(self, results: Sequence[Result], ok: bool) -> None:
        passed = sum(result.ok for result in results)
        click.secho(f"{passed} of {len(results)} claims hold", fg="green" if ok else "red", bold=True)


def _about(lab: Lab) -> str:
    pods = ", ".join(pod.name for pod in lab.pods)
    return f"node1, node2, workloads {pods}, an outside host without routes to them; {lab.mode} stack"


async def _control(lab: Lab, show: Narrator) -> list[Result]:
    """The negative control: without an agent nothing may work, or the checks prove nothing."""
    wanted = checks.connectivity(lab)
    results = await asyncio.gather(*(check.run(CONTROL_TIMEOUT_S) for check in wanted))
    holding = [result for result in results if result.ok]
    show.step(f"without an agent {len(holding)} of {len(wanted)} connections work", "(must be 0)")
    return holding


async def _start(lab: Lab, backend: str, show: Narrator) -> None:
    await lab.start_broker()
    manifests = write_manifests(lab_resources(lab.mode, lab.pods), lab.folder / "resources")
    show.step("$ felixpy apply -f resources/", "publishes the resources to Mosquitto")
    said = await lab.felixpy("apply", "-f", str(manifests))
    click.echo("\n".join(f"    {line}" for line in said.splitlines()))
    started = time.monotonic()
    agents = [await lab.start_agent(name, BACKENDS[backend]) for name in ("node1", "node2")]
    await asyncio.gather(*(agent.wait_ready() for agent in agents))
    used = lab.status["node1"].get("backend", backend)
    show.step(f"an agent on each node, in sync after {time.monotonic() - started:.2f} s", f"back-end {used}")


async def _remove(lab: Lab, show: Narrator) -> None:
    manifest = write_manifests([workload_endpoint(P1B, lab.families)], lab.folder / "removed")
    show.step("$ felixpy delete -f removed/", "takes p1b's endpoint away")
    await lab.felixpy("delete", "-f", str(manifest))
    await _until_cut_off(lab)


async def _until_cut_off(lab: Lab, seconds: float = 10.0) -> None:
    """Wait until p1b's routes are gone from node1; the checks that follow say so if they never go."""
    patience = Patience(seconds)
    while not patience.over():
        routes = [await lab.node("node1").run("ip", f"-{f.version}", "route") for f in lab.families]
        if not any(
            P1B.interface in text and P1B.addresses[f] in text for f, text in zip(lab.families, routes, strict=True)
        ):
            return
        await asyncio.sleep(0.05)


async def _keep(lab: Lab) -> None:
    click.echo("\nthe lab stays until Ctrl-C; enter a host with")
    for name, host in lab.hosts.items():
        click.echo(f"    nsenter -t {host.pid} -n -m bash    # {name}")
    address = f"[{lab.broker}]" if ":" in lab.broker else lab.broker
    click.echo(f"broker: {address}:1883; logs: {lab.folder}")
    sys.stdout.flush()
    await asyncio.Event().wait()
