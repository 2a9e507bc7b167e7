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

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from felixpy.demo import checks
from felixpy.demo.checks import Check, Result
from felixpy.demo.host import LabError
from felixpy.demo.lab import Lab
from felixpy.demo.latency import measure_latency
from felixpy.demo.networks import across_networks
from felixpy.demo.patience import Patience
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
WIDTH_WITHOUT_TERMINAL = 120
CONTROL_TIMEOUT_S = 0.5


def demo(backend: str | None = None, ipv6_only: bool = False, keep: bool = False, latency: bool = True) -> int:
    """Run the demo and return its exit code: 0 all claims hold, 1 one does not, 2 it could not be run."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_WITHOUT_TERMINAL)
    if problem := _cannot_run(backend):
        console.print(f"felixpy demo: {problem}", style="red", markup=False)
        return 2
    try:
        return asyncio.run(_until_stopped(run_demo(backend, ipv6_only, keep, latency, console), console))
    except KeyboardInterrupt:
        return 130
    except LabError as error:
        console.print(f"felixpy demo: {error}", style="red", markup=False)
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


async def _until_stopped(work: Coroutine[None, None, int], console: Console) -> int:
    """SIGTERM ends the demo as Ctrl-C does, so that the lab is taken down in both cases."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        console.print("stopped; the lab is gone")
        return 130


async def run_demo(backend: str | None, ipv6_only: bool, keep: bool, latency: bool, console: Console) -> int:
    """Build the lab, run every check and print the table; see ``demo``.

    Raises:
        LabError: the lab could not be built, or an agent did not become ready.
    """
    mode = Mode.V6 if ipv6_only else Mode.DUAL
    show = Narrator(console)
    started = time.monotonic()
    async with Lab(mode) as lab:
        show.step(f"lab up in {time.monotonic() - started:.2f} s", _about(lab))
        holding = await _control(lab, show)
        await _start(lab, backend or "auto", show)
        results = await show.run_all(checks.connectivity(lab) + checks.protection(lab))
        await _remove(lab, show)
        results += await show.run_all(checks.removed(lab))
        results += await across_networks(lab, BACKENDS[backend or "auto"], show)
        show.table(results)
        if latency and (took := await measure_latency(lab)):
            console.print(took, markup=False)
        ok = not holding and all(result.ok for result in results)
        show.verdict(results, ok)
        if keep:
            await _keep(lab, console)
        return 0 if ok else 1


class Narrator:
    """Prints what happens, as it happens."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def step(self, what: str, detail: str = "") -> None:
        self.console.print(f"[bold]• {escape(what)}[/bold]{'  ' if detail else ''}{escape(detail)}", highlight=False)

    async def run_all(self, wanted: Sequence[Check]) -> list[Result]:
        """Run checks one after another, a line for each."""
        results = []
        for check in wanted:
            result = await check.run()
            results.append(result)
            mark = "[green]ok[/green]" if result.ok else "[red]FAILED[/red]"
            text = f"{result.family} {result.protocol:<9} {result.source} → {result.destination}: {result.seen}"
            self.console.print(f"    {escape(text)}  {mark}", highlight=False)
        return results

    def table(self, results: Sequence[Result]) -> None:
        table = Table(title="felixpy demo: what the packets say")
        for column in ("family", "protocol", "from", "to", "expected there", "seen there", "ok"):
            table.add_column(column)
        for result in results:
            mark = "[green]yes[/green]" if result.ok else "[red]NO[/red]"
            table.add_row(*map(escape, result), mark)
        self.console.print(table)

    def verdict(self, results: Sequence[Result], ok: bool) -> None:
        passed = sum(result.ok for result in results)
        style = "bold green" if ok else "bold red"
        self.console.print(f"{passed} of {len(results)} claims hold", style=style)


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
    show.console.print(*(f"    {line}" for line in said.splitlines()), sep="\n", markup=False, highlight=False)
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


async def _keep(lab: Lab, console: Console) -> None:
    console.print("\nthe lab stays until Ctrl-C; enter a host with", markup=False)
    for name, host in lab.hosts.items():
        console.print(f"    nsenter -t {host.pid} -n -m bash    # {name}", markup=False, highlight=False)
    address = f"[{lab.broker}]" if ":" in lab.broker else lab.broker
    console.print(f"broker: {address}:1883; logs: {lab.folder}", markup=False, highlight=False)
    sys.stdout.flush()
    await asyncio.Event().wait()
