"""One workload more on a full node and on a node with ten, in turn: the scenario ``in turn``.

Cells of different sizes are measured minutes apart, in which a machine that others share becomes faster or slower by
more than the sizes differ. So an agent on the second node, which has ten workloads, is measured beside the one on the
full node, a change each. Invariant: the second node is left without an agent and without its state.
"""

from __future__ import annotations

import asyncio
import json

from bench import expect
from bench.notifications import Observer
from bench.scenarios import PATIENCE_S, PAUSE_S, Run, ms
from bench.subject import BACKENDS, Subject
from bench.workloads import NODE, SPARE, SPARES, Workload

NODES = (NODE, "node2")
FEW = 10
SETTINGS = {"FELIX_REMOVEEXTERNALROUTES": "false"}
"""The second node's other workloads have routes by hand."""
SCENARIO = "in turn"
METRICS = ("visible on the full node", f"visible on a node with {FEW}")


async def in_turn(run: Run) -> None:
    """Add one workload after the other, on each node in turn."""
    if not run.effort.turns:
        return
    world = run.world
    few = [Workload(SPARE + SPARES - 3 - number) for number in range(FEW)]
    crowd = [Workload(SPARE + number) for number in range(run.effort.turns)]
    await world.publish_all(dict(_message(one, NODES[1], run) for one in few))
    subject = await Subject.start(world, run.cell.backend, SETTINGS, node=NODES[1])
    try:
        await subject.ready()
        await asyncio.sleep(1.0)  # each agent compares the kernel after its start
        for one in crowd:
            for node, seen, metric in zip(NODES, (world.node_seen, world.other_seen), METRICS, strict=True):
                run.add(SCENARIO, metric, await _add(run, one, node, seen))
    finally:
        gone = [(one, node) for node in NODES for one in crowd] + [(one, NODES[1]) for one in few]
        await world.publish_all({_message(one, node, run)[0]: b"" for one, node in gone})
        await asyncio.sleep(0.5)
        await subject.stop()
        environment = world.lab.agent_environment(NODES[1], {**BACKENDS[run.cell.backend], **SETTINGS})
        await subject.agent.command(world.other, environment, "cleanup")


async def _add(run: Run, one: Workload, node: str, seen: Observer) -> float:
    seen.clear()
    if run.cell.backend != "nftables":
        await seen.expect_members(expect.members(one, run.families), present=True)
    topic, payload = _message(one, node, run)
    published = await run.world.publish(topic, payload)
    visible = await seen.wait(expect.workload(one, run.families, run.cell.backend), PATIENCE_S)
    await asyncio.sleep(PAUSE_S)
    return ms(visible, published)


def _message(one: Workload, node: str, run: Run) -> tuple[str, bytes]:
    """Topic and payload of a workload on one of the two nodes."""
    document = one.document(run.families)
    document["spec"]["node"] = node
    return f"wep/{node}/default/{one.name}", json.dumps(document).encode()
