"""How soon what another program deletes is back: the scenario ``drift``.

nf_tables by a command, which ends, and by a program that lives on: when a command ends, the kernel closes its socket,
waits in that for an RCU grace period, and lets nobody write meanwhile (``nft_rcv_nl_event``, Linux 6.18).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

from bench.scenarios import PAUSE_S, Run, ms
from bench.workloads import SPARES, Workload
from felixpy.demo.agent import environment
from felixpy.model.net import Family

REPAIR_S = 10.0


async def drift(run: Run) -> None:
    """Somebody deletes what is ours; from the kernel's word of that to its word that it is back."""
    one = Workload(1)
    family = run.families[0]
    table = f"{'ip' if family is Family.V4 else 'ip6'} felixpy"
    async with _nft_console(run) as console:
        for number in range(run.effort.drifts):
            address = one.address(family)
            route = ("ip", f"-{family.version}", "route", "del", f"{address}/{family.bits}")
            await _repaired(run, "route is back", partial(run.world.node.run, *route), f"route {address}")
            if run.cell.backend == "nftables":
                member = f"from-workload {{ {address} . {one.interface} }}"
                for way, delete in ((", deleted by a command", _nft_command(run)), ("", console)):
                    gone = partial(delete, f"delete element {table} {member}")
                    await _repaired(run, f"element is back{way}", gone, f"elem from-workload {address}")
                    chain, handle = await _some_rule(run, table, number)
                    gone = partial(delete, f"delete rule {table} {chain} handle {handle}")
                    await _repaired(run, f"rule is back{way}", gone, f"rule felixpy {chain}")
            # More than ten repairs of one entry in a minute count as a fight, and then the agent takes its time.
            one = Workload((one.number + 1) % min(run.cell.size, SPARES))


def _nft_command(run: Run) -> Callable[[str], Awaitable[object]]:
    return lambda text: run.world.node.run("nft", *text.split())


@contextlib.asynccontextmanager
async def _nft_console(run: Run) -> AsyncIterator[Callable[[str], Awaitable[object]]]:
    """An interactive nft in the measured node, which carries out lines until the block ends."""
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", "--"),
        *run.world.node.enter("nft", "-i"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        env=environment({}),
    )
    assert process.stdin
    write = process.stdin

    async def carry_out(line: str) -> None:
        write.write(line.encode() + b"\n")
        await write.drain()

    try:
        yield carry_out
    finally:
        process.kill()
        await process.wait()


async def _repaired(run: Run, what: str, delete: Callable[[], Awaitable[object]], word: str) -> None:
    seen = run.world.node_seen
    seen.clear()
    await delete()
    try:
        back = await seen.wait({f"-{word}", f"+{word}"}, REPAIR_S)
    except TimeoutError as error:
        run.results.remark(f"{run.cell}: after {REPAIR_S:.0f} s not seen: {what}: {error}")
    else:
        run.add("drift", what, ms(back, seen.at(f"-{word}") or back))
    await asyncio.sleep(PAUSE_S)
    run.subject.marks.read()


async def _some_rule(run: Run, table: str, number: int) -> tuple[str, str]:
    """Chain and handle of the first rule of a chain of ours, another chain for each number."""
    rules: dict[str, str] = {}
    chain = ""
    for line in (await run.world.node.run("nft", "-a", "-s", "list", "table", *table.split())).splitlines():
        if found := re.match(r"\s*chain (\S+) {", line):
            chain = found[1]
        elif chain and (found := re.search(r"# handle (\d+)$", line)) and not line.strip().startswith("type "):
            rules.setdefault(chain, found[1])
    if not rules:
        raise RuntimeError(f"the table {table} holds no rule; is the agent programmed?")
    return sorted(rules.items())[number % len(rules)]
