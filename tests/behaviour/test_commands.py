"""What the commands say of a node, beside the agent that programs it."""

from __future__ import annotations

import asyncio
import json

import pytest

from felixpy.demo.agent import FELIXPY, Agent
from felixpy.demo.agent import environment as settings_only
from felixpy.demo.resources import felix_configuration
from felixpy.demo.topology import P1A, P1B
from felixpy.model.net import Family

from .world import P1C, World, becomes


async def felixpy(world: World, *arguments: str) -> str:
    environment = world.lab.agent_environment("node1", world.settings())
    return await Agent.command(world.node1, environment, *arguments, check=False)


@pytest.mark.modes("dual")
async def test_show_says_up_of_endpoints_that_the_kernel_carries(world: World) -> None:
    lines = json.loads(await felixpy(world, "show", "endpoints", "--json"))
    assert {line["entry"]: line["kernel"] for line in lines} == {
        f"default/{pod.endpoint}": "up" for pod in (P1A, P1B, P1C)
    }


@pytest.mark.modes("dual", "v4")
async def test_plan_names_what_is_missing_and_show_says_pending(world: World) -> None:
    family = world.families[-1]  # IPv6 in dual stack, IPv4 alone
    await world.lab.agents["node1"].stop()
    assert await felixpy(world, "plan") == "nothing to change\n"
    await world.node1.run("ip", f"-{family.version}", "route", "del", P1A.addresses[family], "dev", P1A.interface)
    said = await felixpy(world, "plan")
    assert f"+ routes: {P1A.addresses[family]}/{family.bits} " in said
    assert said.endswith("\n1 change\n")
    lines = json.loads(await felixpy(world, "show", "endpoints", "--json"))
    assert {line["entry"]: line["kernel"] for line in lines} == {
        f"default/{P1A.endpoint}": "pending",
        f"default/{P1B.endpoint}": "up",
        f"default/{P1C.endpoint}": "up",
    }
    await world.restart_agent()
    assert await felixpy(world, "plan") == "nothing to change\n"


@pytest.mark.modes("dual")
async def test_chain_insert_mode_of_the_stream_takes_effect_at_once(world: World) -> None:
    ours, foreign = ("ours", "foreign") if world.backend != "nftables" else ("no", "no")  # iptables only

    async def last_rule() -> str:
        if world.backend == "nftables":
            return "ours" if "fpy-" in await world.node1.run("iptables-nft-save") else "no"
        rules = await world.node1.run(f"iptables-{world.backend}", "-S", "FORWARD")
        return "ours" if rules.splitlines()[-1].endswith("-j fpy-FORWARD") else "foreign"

    assert await last_rule() == foreign
    await world.put(felix_configuration(defaultEndpointToHostAction="Accept", chainInsertMode="append"))
    await becomes(ours, last_rule)
    await world.put(felix_configuration(defaultEndpointToHostAction="Accept"))
    await becomes(foreign, last_rule)


@pytest.mark.modes("dual")
async def test_without_rights_a_command_says_what_it_needs(world: World) -> None:
    environment = world.lab.agent_environment("node1", world.settings())
    process = await world.node1.spawn(
        "setpriv", "--bounding-set=-all", "--inh-caps=-all", *FELIXPY, "plan",
        env=settings_only(environment), output=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode == 1
    assert said.decode() == "felixpy: Operation not permitted: felixpy needs root or CAP_NET_ADMIN; run it with sudo\n"


async def test_check_finds_nothing_wrong_with_a_node_that_works(world: World) -> None:
    findings = json.loads(await felixpy(world, "check", "--json"))
    wrong = {finding["id"]: finding["found"] for finding in findings if finding["level"] in ("warn", "fail")}
    no_nat = "no-nat-6 fd00:49::/64 has natOutgoing false"  # which is meant, in this lab
    assert wrong == ({"pool.nat6": no_nat} if Family.V6 in world.families else {})
    known = {finding["id"] for finding in findings}
    assert {"peer.reach", "stream", "filter.forward", "owners.felix", "kmod", "mtu"} <= known


async def test_status_of_the_running_agent(world: World) -> None:
    said = json.loads(await felixpy(world, "status", "--json"))
    assert (said["state"], said["degraded"], said["endpoints"]) == ("in-sync", [], 3)
    assert all(family["ready"] for family in said["families"].values())
    assert all(table["wanted"] == table["kernel"] for table in said["tables"].values())
