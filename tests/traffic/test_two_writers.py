"""Others who write the same kernel state: a Felix is not fought at all, anybody else not for ever."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import IO, NamedTuple

import pytest

from felixpy.demo.agent import FELIXPY, environment
from felixpy.demo.host import Host
from felixpy.demo.lab import Lab
from felixpy.demo.topology import P1A, P1B, Mode
from felixpy.model.net import Family
from tests.behaviour.world import becomes, ours

from .conftest import COMBINATIONS
from .flows import TrafficWorld, lines

TRACES = {
    "ip6tables-legacy": "chain cali-FORWARD",
    "iptables-nft": "chain cali-FORWARD",
    "ip calico": "nftables table ip calico",
}


@contextlib.asynccontextmanager
async def felix_at_work(node: Host, trace: str) -> AsyncIterator[None]:
    """What a Felix has on a node: its hook into the filter table, or its nftables table."""
    if trace.endswith("calico"):
        await node.run("nft", "-f", "-", stdin=f"table {trace} {{ chain filter-FORWARD {{ }}; }}\n")
        yield
        await node.run("nft", "delete", "table", *trace.split())
        return
    for arguments in ("-N cali-FORWARD", "-A FORWARD -j cali-FORWARD"):
        await node.run(trace, *arguments.split())
    yield
    for arguments in ("-F FORWARD", "-X cali-FORWARD"):
        await node.run(trace, *arguments.split())


async def test_no_start_beside_a_felix() -> None:
    """One sentence, exit code 1, and nothing of ours written; ``plan`` says the same."""
    async with Lab(Mode.DUAL, ()) as lab:
        node = lab.node("node1")
        settings = environment({"NODENAME": "node1", "FELIX_RESOURCEDIRECTORY": str(lab.folder)})
        for trace, words in TRACES.items():
            async with felix_at_work(node, trace):
                for command in ("run", "plan") if trace == "ip calico" else ("run",):
                    with (lab.folder / "said").open("w+b") as output:
                        process = await node.spawn(*FELIXPY, command, env=settings, output=output)
                        assert await process.wait() == 1
                        output.seek(0)
                        said = output.read().decode().splitlines()
                    assert said[-1].startswith("felixpy: a Calico Felix runs or ran on this node"), said
                    assert words in said[-1] and "Traceback" not in "".join(said)
            for family in Family:
                assert await ours(node, family) == []


# --- a program that undoes what the agent does ---------------------------------------------------------------------

ATTEMPTS = 150
TOLERATED = 20
"""Ten repairs at once are no fight yet; then each pause is twice the one before."""


class Fight(NamedTuple):
    """What the other program does again and again, and how one repair by the agent is announced."""

    command: str
    monitor: str
    repair: str
    words: tuple[str, ...]
    """What the agent's status says of it."""


V4_OF_P1B, V6_OF_P1B = P1B.addresses[Family.V4], P1B.addresses[Family.V6]
ROUTE = Fight(
    f"ip route del {V4_OF_P1B}/32",
    "ip -4 monitor route",
    rf"(?m)^{V4_OF_P1B} dev",
    ("another program keeps changing this", f"{V4_OF_P1B}/32", "last removed", "find that program"),
)
REPLACED = Fight(
    f"ip -6 route replace {V6_OF_P1B}/128 dev {P1A.interface} proto 99 metric 1024",
    "ip -6 monitor route",
    rf"(?m)^{V6_OF_P1B} dev {P1B.interface} proto 222",
    (
        "another program keeps changing this",
        f"{V6_OF_P1B}/128",
        f"a route of protocol 99 through {P1A.interface} ",
        " by ",  # and who, or that he has ended
        "find that program",
    ),
)
MEMBER = Fight(
    f"nft delete element ip felixpy to-workload '{{ {V4_OF_P1B} . \"{P1B.interface}\" }}'",
    "nft monitor",
    rf"add element ip felixpy to-workload {{ {V4_OF_P1B} ",
    ("another program keeps changing this", V4_OF_P1B, "last removed by nft (process "),
)
CHAIN = Fight(
    "iptables-nft -F fpy-forward-to",
    "nft monitor",
    r"add rule ip filter fpy-forward-to .*ct state invalid",
    (
        "another program keeps changing this",
        "filter forward-to",
        "made it a chain of 0 rules by iptables-nft (process ",
    ),
)


@pytest.mark.parametrize(
    ("world", "fight"),
    [
        pytest.param(COMBINATIONS[0], ROUTE, id=f"{COMBINATIONS[0]}-route"),
        pytest.param(COMBINATIONS[0], REPLACED, id=f"{COMBINATIONS[0]}-replaced route"),
        pytest.param(COMBINATIONS[0], MEMBER, id=f"{COMBINATIONS[0]}-member"),
        pytest.param(COMBINATIONS[2], CHAIN, id=f"{COMBINATIONS[2]}-chain"),
    ],
    indirect=["world"],
)
async def test_a_program_that_undoes_everything_is_named_and_not_fought_for_ever(
    world: TrafficWorld, fight: Fight
) -> None:
    others = [line for line in lines(world.families) if line.target != "p1b"]
    loop = f"while :; do {fight.command} >/dev/null 2>&1; echo; sleep 0.01; done"
    since = world.log_size()
    async with world.traffic(others) as traffic:
        with (world.lab.folder / "monitor").open("w+b") as seen, (world.lab.folder / "other").open("w+b") as done:
            monitor = await world.node1.spawn(*fight.monitor.split(), output=seen)
            await asyncio.sleep(0.2)
            other = await world.node1.spawn("sh", "-c", loop, output=done)
            try:
                await becomes(True, says, world, fight.words)
                print(world.lab.status["node1"]["problems"])
                await becomes(True, has_lines, done, ATTEMPTS)
            finally:
                for process in (other, monitor):
                    process.terminate()
                    await process.wait()
            seen.seek(0)
            repairs = re.findall(fight.repair, seen.read().decode())
            attempts = done.tell()
        print(f"{world.backend}: {fight.command}: {attempts} times, repaired {len(repairs)} times")
        assert 5 < len(repairs) <= TOLERATED
        await becomes(0, plan_code, world)
        await becomes(False, says, world, fight.words[:1])
        await traffic.lost_nothing()
        assert world.log(since).count("another program keeps") < 2 * TOLERATED


async def has_lines(output: IO[bytes], number: int) -> bool:
    await asyncio.sleep(0)
    return output.seek(0, 2) >= number


async def plan_code(world: TrafficWorld) -> int:
    return (await world.plan())[0]


async def says(world: TrafficWorld, words: tuple[str, ...]) -> bool:
    """Whether one problem of the agent's status, or its reason, has all words."""
    await asyncio.sleep(0)
    status = world.lab.status["node1"]
    return any(all(word in problem for word in words) for problem in [status["reason"], *status["problems"]])
