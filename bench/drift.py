"""How soon what another program deletes is back: the scenario ``drift``.

nf_tables by a command, which ends, and by a program that lives on: when a command ends, the kernel closes its socket,
waits in that for an RCU grace period, and lets nobody write meanwhile (``nft_rcv_nl_event``, Linux 6.18). For the same
period it makes everybody wait who adds a rule with a match of xtables (``nft_compat_wait_for_destructors``).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import NamedTuple

from bench.scenarios import PAUSE_S, Run, ms
from bench.workloads import SPARES, Workload
from felixpy.demo.agent import environment
from felixpy.model.net import Family

REPAIR_S = 10.0
TABLES = {"nftables": ("felixpy",), "nft": ("raw", "filter", "nat")}


class Rule(NamedTuple):
    """The first rule of a chain: table and chain as words of nft(8), its handle, whether rules there use xtables."""

    table: str
    chain: str
    handle: str
    xtables: bool


async def drift(run: Run) -> None:
    """Somebody deletes what is ours; from the kernel's word of that to its word that it is back."""
    one = Workload(1)
    family = run.families[0]
    async with _nft_console(run) as console:
        ways = ((", deleted by a command", _nft_command(run)), ("", console))
        for number in range(run.effort.drifts):
            address = one.address(family)
            route = ("ip", f"-{family.version}", "route", "del", f"{address}/{family.bits}")
            await _repaired(run, "route is back", partial(run.world.node.run, *route), f"route {address}")
            if run.cell.backend == "nftables":
                member = f"{_word(family)} felixpy from-workload {{ {address} . {one.interface} }}"
                for way, delete in ways:
                    gone = partial(delete, f"delete element {member}")
                    await _repaired(run, f"element is back{way}", gone, f"elem from-workload {address}")
            for xtables in (False, True):
                for way, delete in ways:
                    if (rule := await _some_rule(run, number, xtables=xtables)) is not None:
                        gone = partial(
                            delete, f"delete rule {_word(family)} {rule.table} {rule.chain} handle {rule.handle}"
                        )
                        what = "rule of a chain with xtables matches" if xtables else "rule"
                        await _repaired(run, f"{what} is back{way}", gone, f"rule {rule.table} {rule.chain}")
            # More than ten repairs of one entry in a minute count as a fight, and then the agent takes its time.
            one = Workload((one.number + 1) % min(run.cell.size, SPARES))


def _word(family: Family) -> str:
    return "ip" if family is Family.V4 else "ip6"


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


async def _some_rule(run: Run, number: int, *, xtables: bool) -> Rule | None:
    """The first rule of a chain of ours or of one with our jump, another chain for each number.

    None where there is none, or where the kernel tells nothing of rules (iptables-legacy).
    """
    if run.cell.backend == "legacy":
        return None
    rules = [one for table in TABLES[run.cell.backend] for one in await _rules(run, table)]
    if not rules:
        raise RuntimeError(f"no table of {TABLES[run.cell.backend]} holds a rule; is the agent programmed?")
    found = [one for one in sorted(rules) if one.xtables is xtables]
    return found[number % len(found)] if found else None


async def _rules(run: Run, table: str) -> list[Rule]:
    text = await run.world.node.run("nft", "-a", "-s", "list", "table", _word(run.families[0]), table)
    found = []
    for name, body in re.findall(r"\n\tchain (\S+) {[^\n]*\n(.*?)\n\t}", text, re.DOTALL):
        handles = re.findall(r"^(?!\s*type ).* # handle (\d+)$", body, re.MULTILINE)
        if handles and (table == "felixpy" or "fpy-" in name + body):
            # nft(8) prints the xtables match conntrack in its own words.
            xtables = table != "felixpy" and ("xt match" in body or "ct state" in body)
            found.append(Rule(table, name, handles[0], xtables))
    return found
