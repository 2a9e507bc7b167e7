"""Routes that a CNI plugin made before the endpoint arrived: left alone for a while, then the stream decides."""

from __future__ import annotations

import asyncio

import pytest

from felixpy.demo.resources import workload_endpoint
from felixpy.demo.topology import PodSpec
from felixpy.model.net import Family
from tests.behaviour.world import becomes

from .conftest import COMBINATIONS
from .flows import TrafficWorld

EARLY = PodSpec("early", "node1", {Family.V4: "10.49.0.40", Family.V6: "fd00:49::40"})
STRAY = PodSpec("stray", "node1", {Family.V4: "10.49.0.41", Family.V6: "fd00:49::41"})


def plug(pod: PodSpec) -> list[str]:
    """What a CNI plugin does before anybody hears of the endpoint."""
    return [
        f"link add {pod.interface} type veth peer name peer-{pod.name}",
        f"link set peer-{pod.name} up",
        f"link set {pod.interface} up",
        f"route add {pod.addresses[Family.V4]}/32 dev {pod.interface} scope link",
        f"route add {pod.addresses[Family.V6]}/128 dev {pod.interface}",
    ]


async def has_routes(world: TrafficWorld, pod: PodSpec) -> list[bool]:
    return [
        pod.interface in await world.node1.run("ip", f"-{f.version}", "route", "show", pod.addresses[f]) for f in Family
    ]


@pytest.mark.parametrize("world", COMBINATIONS[:1], ids=str, indirect=True)
async def test_a_route_that_a_cni_plugin_made_has_time_until_its_endpoint_comes(world: TrafficWorld) -> None:
    """The timer alone removes what nobody wants: no full comparison, no other change."""
    with (world.lab.folder / "routes").open("w+b") as output:
        monitor = await world.node1.spawn("ip", "monitor", "route", output=output)
        async with world.traffic() as traffic:
            await world.node1.ip([*plug(EARLY), *plug(STRAY)])
            await world.put(workload_endpoint(EARLY, world.families))
            status = f"node1/wep/default/{EARLY.endpoint}"
            await becomes("up", state, world, status)
            assert await has_routes(world, STRAY) == [True, True]
            await becomes([False, False], has_routes, world, STRAY)
            assert await has_routes(world, EARLY) == [True, True]
            await traffic.lost_nothing()
        monitor.terminate()
        await monitor.wait()
        output.seek(0)
        deleted = [line for line in output.read().decode().splitlines() if line.startswith("Deleted")]
    assert [line for line in deleted if EARLY.interface in line] == []
    await world.remove(workload_endpoint(EARLY, world.families))
    await world.node1.ip([f"link del {EARLY.interface}", f"link del {STRAY.interface}"])


async def state(world: TrafficWorld, key: str) -> str:
    await asyncio.sleep(0)
    return str(world.lab.status.get(key, {}).get("state"))
