"""What an agent says of itself, from its interfaces to the broker and to its own kernel."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from felixpy.agent import agent
from felixpy.calc.overlay import workload_mtu
from felixpy.demo.resources import Object, ip_pool, v3
from felixpy.node import own_addresses
from tests.agent.bench import NODE, Running, routes, running
from tests.broker import Broker
from tests.kernel import ip

POOLS = [ip_pool("four", "10.48.0.0/16"), ip_pool("six", "fd00:48::/64")]
BLOCKS = [
    v3("BlockAffinity", "a4", {"node": "n2", "cidr": "10.48.2.0/26", "state": "confirmed"}),
    v3("BlockAffinity", "a6", {"node": "n2", "cidr": "fd00:48::200/122", "state": "confirmed"}),
]


def state(name: str, since: str = "2026-01-01T00:00:00Z", **bgp: str) -> bytes:
    metadata = {"name": name, "creationTimestamp": since}
    return json.dumps(
        {"apiVersion": "felixpy/v1", "kind": "NodeState", "metadata": metadata, "spec": {"bgp": bgp}}
    ).encode()


def said(found: Running, name: str = NODE) -> dict[str, Any]:
    """What a node says of itself at the broker."""
    return found.stream.states.get(name, {})


async def says(found: Running, **bgp: str | None) -> dict[str, Any]:
    """Wait until the node tells these addresses; None is none."""

    def agrees() -> bool:
        told = said(found).get("spec", {}).get("bgp", {})
        return bool(said(found)) and all(told.get(name) == wanted for name, wanted in bgp.items())

    await found.until(agrees, f"{bgp}, but {said(found)} {found.problems}")
    return said(found)


async def publish(found: Running, *objects: Object) -> None:
    for one in objects:
        spec = one["spec"]
        if one["kind"] == "BlockAffinity":
            place = spec["cidr"].replace(".", "-").replace(":", "-").replace("/", "-")
            await found.stream.raw(f"affinity/{spec['node']}/{place}", json.dumps(one).encode())
        else:
            await found.stream.put(one)


Scenario = Callable[[Running], Awaitable[None]]


def follow(broker: Broker, scenario: Scenario, **variables: str) -> None:
    async def run() -> None:
        async with running(broker, introduces=variables) as found:
            await scenario(found)

    asyncio.run(run())


def test_a_node_finds_itself_tells_it_and_routes_to_others_that_did(broker: Broker) -> None:
    """No Node was applied anywhere."""
    before: dict[str, Any] = {}

    async def scenario(found: Running) -> None:
        await found.stream.raw("nodestate/n2", state("n2", ipv4Address="192.0.2.2/24", ipv6Address="2001:db8::2/64"))
        await publish(found, *POOLS, *BLOCKS)
        await found.in_sync()
        await says(found, ipv4Address="192.0.2.1/24", ipv6Address="2001:db8::1/64")
        await found.until(lambda: {"10.48.2.0/26", "fd00:48::200/122"} <= routes(), "routes to n2")
        await found.until(lambda: found.agent.mtu == 1500, "the MTU of workloads")
        await found.quiet()
        assert said(found)["status"] == {"mtu": 1500}
        before.update(said(found))

    follow(broker, scenario)

    async def again(found: Running) -> None:
        """Nothing is written by a second start, and the node is as it was."""
        await found.in_sync()
        await found.quiet()
        assert found.metric("felixpy_kernel_writes_total") == 0
        assert said(found) == before

    follow(broker, again)


def test_a_second_address_moves_nobody_and_one_that_is_gone_does(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_addresses, "MOVE_SECONDS", 0.3)

    async def scenario(found: Running) -> None:
        await publish(found, *POOLS)
        before = await says(found, ipv4Address="192.0.2.1/24")
        ip(
            "addr add 198.51.100.9/24 dev eth0",
            "addr add 203.0.113.1/32 dev eth0",
            "addr add 2001:db8::9/64 dev eth0 nodad",
        )
        await found.quiet()
        assert said(found)["spec"] == before["spec"]
        ip("addr del 192.0.2.1/24 dev eth0")
        after = await says(found, ipv4Address="198.51.100.9/24", ipv6Address="2001:db8::1/64")
        assert after["metadata"]["creationTimestamp"] > before["metadata"]["creationTimestamp"]
        await found.until(lambda: str(found.agent.store.nodes[NODE].ipv4) == "198.51.100.9/24")

    follow(broker, scenario)


def test_without_following_the_address_of_the_start_stays(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_addresses, "MOVE_SECONDS", 0.0)

    async def scenario(found: Running) -> None:
        await publish(found, *POOLS)
        await says(found, ipv4Address="192.0.2.1/24")
        ip("addr add 198.51.100.9/24 dev eth0", "addr del 192.0.2.1/24 dev eth0")
        await found.until(lambda: all(str(one.net) != "192.0.2.1/24" for one in found.agent.calculation.host.addresses))
        await found.quiet()
        assert said(found)["spec"]["bgp"]["ipv4Address"] == "192.0.2.1/24"

    follow(broker, scenario, AUTODETECT_POLL_INTERVAL="none")


def test_an_applied_node_wins_field_by_field_and_its_end_moves_nobody(broker: Broker) -> None:
    async def scenario(found: Running) -> None:
        applied = v3("Node", NODE, {"bgp": {"ipv4Address": "192.0.2.1/25"}})
        await publish(found, *POOLS, applied)
        await says(found, ipv4Address="192.0.2.1/25", ipv6Address="2001:db8::1/64")
        await found.until(lambda: str(found.agent.store.nodes[NODE].ipv6) == "2001:db8::1/64")
        await found.stream.raw(f"node/{NODE}", b"")
        await says(found, ipv4Address="192.0.2.1/24", ipv6Address="2001:db8::1/64")

    follow(broker, scenario)


def test_a_node_does_not_tell_what_another_one_tells_until_that_is_gone(broker: Broker) -> None:
    async def scenario(found: Running) -> None:
        await found.stream.raw("nodestate/n2", state("n2", ipv4Address="192.0.2.1/24"))
        await publish(found, *POOLS)
        await says(found, ipv4Address=None, ipv6Address="2001:db8::1/64")
        what = f"NodeState {NODE}"
        await found.until(lambda: "IPv4 address conflict with n2" in found.problems.get(what, ""), "the conflict")
        await found.in_sync()  # the rest of the node works
        await found.stream.raw("nodestate/n2", b"")
        await says(found, ipv4Address="192.0.2.1/24")
        await found.until(lambda: what not in found.problems, "the end of the conflict")

    follow(broker, scenario)


def test_the_mtu_is_calculated_when_what_it_depends_on_has_changed(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    calculated: list[object] = []

    def counted(*arguments: Any) -> Any:
        calculated.append(arguments)
        return workload_mtu(*arguments)

    monkeypatch.setattr(agent, "workload_mtu", counted)

    async def scenario(found: Running) -> None:
        await publish(found, *POOLS)
        await found.in_sync()
        await found.until(lambda: found.agent.mtu == 1500, "the MTU of workloads")
        await found.quiet()
        before = len(calculated)
        for number in range(5):
            spec = {"node": NODE, "interfaceName": f"cali{number}", "ipNetworks": [f"10.48.0.{number + 1}/32"]}
            await publish(found, v3("WorkloadEndpoint", f"e{number}", spec, "default"))
            await found.until(lambda count=number + 1: len(found.agent.store.endpoints) == count, "an endpoint")
        await found.quiet()
        assert len(calculated) == before
        await publish(found, ip_pool("tunnel", "10.60.0.0/16", vxlanMode="Always"))
        await found.until(lambda: found.agent.mtu == 1450, "the MTU of VXLAN")

    follow(broker, scenario)
