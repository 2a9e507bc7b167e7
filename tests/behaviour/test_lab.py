"""The lab itself, without an agent: its checks fail on an untouched kernel and pass on state written by hand."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from felixpy.demo import checks
from felixpy.demo.agent import PROJECT
from felixpy.demo.checks import Result
from felixpy.demo.host import LabError
from felixpy.demo.lab import Lab
from felixpy.demo.topology import EXT, NODE1, NODE2, P1A, P2A, Mode
from felixpy.model.net import Family

from .handmade import program


@pytest.fixture(scope="module", params=list(Mode), ids=str)
def bare(request: pytest.FixtureRequest, runner: asyncio.Runner) -> Iterator[Lab]:
    """A lab whose kernel nobody has programmed."""
    lab = Lab(request.param)
    runner.run(lab.__aenter__())
    yield lab
    runner.run(lab.close())


@pytest.fixture(scope="module", params=list(Mode), ids=str)
def handmade(request: pytest.FixtureRequest, runner: asyncio.Runner) -> Iterator[Lab]:
    """A lab with the least state that makes it work."""
    lab = Lab(request.param)
    runner.run(lab.__aenter__())
    runner.run(program(lab))
    yield lab
    runner.run(lab.close())


def failures(results: list[Result]) -> list[Result]:
    return [result for result in results if not result.ok]


async def run_all(wanted: list[checks.Check], timeout: float) -> list[Result]:  # noqa: ASYNC109
    return list(await asyncio.gather(*(check.run(timeout) for check in wanted)))


async def test_every_claim_fails_without_an_agent(bare: Lab) -> None:
    results = await run_all(checks.connectivity(bare), 0.4)
    assert [result for result in results if result.ok] == []
    assert len(results) == 21 * len(bare.families)


async def test_the_nodes_and_the_outside_reach_each_other_before_any_agent(bare: Lab) -> None:
    for family in bare.families:
        for node in (NODE1, NODE2):
            seen = await bare.node(node.name).tcp(EXT[family])
            assert seen is not None and seen.address == node.addresses[family]
            assert await bare.ext.ping(node.addresses[family])


async def test_a_ping_that_runs_counts_what_is_lost(bare: Lab) -> None:
    family = bare.families[0]
    nobody = EXT[family].removesuffix("254").removesuffix("fe") + "99"
    node = bare.node("node1")
    async with node.pinging(EXT[family], 0.005) as answered, node.pinging(nobody, 0.005) as silent:
        await asyncio.sleep(0.1)
    assert answered.sent > 0 and answered.lost == 0
    assert silent.sent > 0 and silent.lost == silent.sent


async def test_a_single_family_lab_holds_nothing_of_the_other(bare: Lab) -> None:
    if Family.V4 not in bare.families:
        for node in ("node1", "node2"):
            assert await bare.node(node).run("ip", "-4", "address") == ""
            assert await bare.node(node).run("ip", "-4", "route", "show", "table", "all") == ""
            assert await bare.node(node).sysctl("ipv4/ip_forward") == 0
    if Family.V6 not in bare.families:
        for host in bare.hosts.values():
            assert await host.run("ip", "-6", "address", "show", "scope", "global") == ""


async def test_every_claim_holds_on_handmade_state(handmade: Lab) -> None:
    assert failures(await run_all(checks.connectivity(handmade), 2.0)) == []
    assert failures([await check.run() for check in checks.protection(handmade)]) == []


async def test_without_the_block_route_the_other_node_is_out_of_reach(handmade: Lab) -> None:
    for family in handmade.families:
        block = NODE2.blocks[family]
        await handmade.node("node1").ip([f"route del {block}"])
        assert await handmade.pod("p1a").tcp(P2A.addresses[family], timeout=0.4) is None
        route = f"{block} via {NODE2.addresses[family]} dev eth0 onlink"
        await handmade.node("node1").ip([f"route add {route}"])
        assert await handmade.pod("p1a").tcp(P2A.addresses[family]) is not None


async def test_without_the_blackhole_packets_leak(handmade: Lab) -> None:
    leaks = [check for check in checks.protection(handmade) if "unallocated" in check.destination]
    for check in leaks:
        block = NODE1.blocks[check.family]
        await handmade.node("node1").ip([f"route del blackhole {block}"])
        leaked = await check.run()
        await handmade.node("node1").ip([f"route add blackhole {block}"])
        assert not leaked.ok and not leaked.seen.startswith("0 leaked")
        assert (await check.run()).ok


async def test_without_the_spoof_check_spoofed_packets_arrive(handmade: Lab) -> None:
    for check in checks.protection(handmade):
        if "spoofing" not in check.source:
            continue
        table = "ip" if check.family is Family.V4 else "ip6"
        rules = await handmade.node("node1").run("nft", "list", "chain", table, "handmade", "raw")
        await handmade.node("node1").run("nft", "flush", "chain", table, "handmade", "raw")
        assert (await check.run()).seen == "2 spoofed, 1 own"
        await handmade.node("node1").run("nft", "-f", "-", stdin=rules)
        assert (await check.run()).ok


@pytest.mark.parametrize("handmade", [Mode.DUAL, Mode.V4], ids=str, indirect=True)
async def test_without_proxy_arp_an_ipv4_workload_loses_its_gateway(handmade: Lab) -> None:
    node, setting = handmade.node("node1"), f"ipv4/conf/{P1A.interface}/proxy_arp"
    await node.sysctl(setting, 0)
    await handmade.pod("p1a").run("ip", "neighbour", "flush", "dev", "eth0")
    assert not await handmade.pod("p1a").ping(NODE1.addresses[Family.V4], timeout=0.4)
    await node.sysctl(setting, 1)
    await handmade.pod("p1a").run("ip", "neighbour", "flush", "dev", "eth0")
    assert await handmade.pod("p1a").ping(NODE1.addresses[Family.V4])


async def test_a_flow_keeps_its_socket(handmade: Lab) -> None:
    for family in handmade.families:
        for protocol in ("tcp", "udp"):
            flow = await handmade.pod("p1a").open_flow(protocol, P2A.addresses[family])
            assert await flow.ask() == flow.first
            await flow.close()


def links() -> set[str]:
    return {path.name for path in Path("/sys/class/net").iterdir()}


async def test_a_lab_leaves_nothing_behind() -> None:
    before = links()
    async with Lab(Mode.DUAL) as lab:
        await lab.start_broker()
        folder, pids = lab.folder, [host.pid for host in lab.hosts.values()]
        assert links() == before
    assert not folder.exists()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


async def test_the_probes_die_with_their_parent(tmp_path: Path) -> None:
    script = (
        "import asyncio\n"
        "from felixpy.demo.lab import Lab\n"
        "async def main():\n"
        "    async with Lab() as lab:\n"
        "        await lab.start_broker()\n"
        "        print(*(h.pid for h in lab.hosts.values()), lab._mosquitto.pid, flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    env = {**os.environ, "PYTHONPATH": str(PROJECT), "TMPDIR": str(tmp_path)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE, env=env
    )
    assert process.stdout
    pids = (await process.stdout.readline()).decode().split()
    assert len(pids) == 8
    process.kill()
    await process.wait()
    for _ in range(100):
        alive = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        if not alive:
            return
        await asyncio.sleep(0.02)
    pytest.fail(f"still running after their parent was killed: {alive}")


async def test_a_command_that_fails_says_what_and_where(bare: Lab) -> None:
    with pytest.raises(LabError, match="failed on node1: Cannot find device"):
        await bare.node("node1").ip(["link set nowhere up"])
