"""``config/kubernetes/own-ports``: who may reach the ports of agents on a node, on packets."""

from __future__ import annotations

from pathlib import Path

import yaml

from felixpy.demo.host import PORT
from felixpy.demo.resources import Object, v3
from felixpy.demo.topology import NODE1, NODE2

from .world import World, becomes

FILE = Path(__file__).parents[2] / "config" / "kubernetes" / "own-ports" / "own-ports.yaml"
HOST_ENDPOINT = v3("HostEndpoint", "node1-all", {"node": "node1", "interfaceName": "*"})


def shipped(*scrapers: str) -> list[Object]:
    """The shipped documents, for the port that the lab listens on."""
    nets, policy = yaml.safe_load_all(FILE.read_text())
    nets["spec"]["nets"] = list(scrapers)
    (rule,) = (rule for rule in policy["spec"]["ingress"] if "destination" in rule)
    assert rule["destination"] == {"ports": [9091, 9092]}
    rule["destination"] = {"ports": [PORT]}
    return [nets, policy]


async def test_only_who_is_named_reaches_the_ports_and_nothing_else_is_shut(world: World) -> None:
    guarded = {**HOST_ENDPOINT, "metadata": {"name": "node1-all", "labels": {"felixpy-own-ports": "guarded"}}}
    ext, node2, pod = world.lab.ext, world.lab.node("node2"), world.lab.pod("p1a")
    named = [str(NODE2.addresses[family]) for family in world.families]
    async with world.changed(*shipped(*named), guarded):
        for family in world.families:
            address = NODE1.addresses[family]
            await becomes((True, False, True), world.reaches, ext, address)
            await becomes((True, True, True), world.reaches, node2, address)
            # Its own pods come by DefaultEndpointToHostAction, which is Accept here, and not by a host's endpoint.
            await becomes((True, True, True), world.reaches, pod, address)
            await becomes((True, True, True), world.reaches, world.node1, address)
            await becomes((True, True, True), world.reaches, world.node1, pod.addresses[family])
    for family in world.families:
        await becomes((True, True, True), world.reaches, ext, NODE1.addresses[family])
