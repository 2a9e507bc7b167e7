"""The act across networks: a third node behind a router, native ways beside VXLAN, and a live switch under ping.

    ext ── router ── node3 ── p3a     172.31.7.3, fd00:31:7::3
                                      the outside host is the router: it knows no workload, so only a tunnel gets there

It comes into a lab that runs (``Lab``) and stays until that ends. Nothing else is changed but the pools' mode.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from felixpy.demo import topology
from felixpy.demo.checks import NO_ANSWER, Check, Result, reach
from felixpy.demo.host import Echoes, Host
from felixpy.demo.lab import Lab
from felixpy.demo.patience import Patience
from felixpy.demo.resources import Object, block, default_pool, node, pool_name, workload_endpoint, write_manifests
from felixpy.demo.topology import NODE1, NODE2, NODES, P1A, P2A, Addresses, NodeSpec, PodSpec
from felixpy.model.net import Family

NODE3 = NodeSpec(
    "node3",
    {Family.V4: "172.31.7.3", Family.V6: "fd00:31:7::3"},
    {Family.V4: "10.48.2.0/26", Family.V6: "fd00:48:0:2::/122"},
)
P3A = PodSpec("p3a", "node3", {Family.V4: "10.48.2.1", Family.V6: "fd00:48:0:2::1"})
ROUTER: Addresses = {Family.V4: "172.31.7.254", Family.V6: "fd00:31:7::fe"}
SUBNET: Addresses = {Family.V4: "172.31.7.0/24", Family.V6: "fd00:31:7::/64"}
TUNNEL_ENDS: Mapping[str, Addresses] = {
    "node1": {Family.V4: "10.48.0.63", Family.V6: "fd00:48::3f"},
    "node2": {Family.V4: "10.48.1.63", Family.V6: "fd00:48:0:1::3f"},
    "node3": {Family.V4: "10.48.2.63", Family.V6: "fd00:48:0:2::3f"},
}
DEVICES = {Family.V4: "vxlan.calico", Family.V6: "vxlan-v6.calico"}
VXLAN_PORT = 4789
UDP = 17

NATIVE, VXLAN = "natively", "in VXLAN"
SWITCHES = ("Always", "CrossSubnet") * 3
PING_EVERY_S = 0.005
MODE_S = 0.15
"""How long each mode stands."""

SWITCH_S = 20.0


class Narrator(Protocol):
    """Who prints what happens."""

    def step(self, what: str, detail: str = "") -> None: ...

    async def run_all(self, wanted: Sequence[Check]) -> list[Result]: ...


async def across_networks(lab: Lab, env: Mapping[str, str], show: Narrator) -> list[Result]:
    """The whole act; ``env`` are the settings of the third node's agent."""
    await add_third_node(lab)
    show.step("node3 behind a router", "the outside host, which knows no workload; the pools have no encapsulation")
    manifests = write_manifests(of_third_node(lab), lab.folder / "node3")
    _, agent = await asyncio.gather(lab.felixpy("apply", "-f", str(manifests)), lab.start_agent(NODE3.name, dict(env)))
    await agent.wait_ready()
    results = await show.run_all([_answer(lab, family, None) for family in lab.families])
    show.step("$ felixpy apply -f crossing/", "vxlanMode: CrossSubnet, and the nodes' tunnel addresses")
    await lab.felixpy("apply", "-f", str(write_manifests(crossing(lab), lab.folder / "crossing")))
    for family in lab.families:
        for name, other in ((NODE1.name, P3A), (NODE2.name, P3A), (NODE3.name, P1A)):
            await _until(lambda name=name, other=other, family=family: _leads(lab, name, other, family, VXLAN))  # type: ignore[misc]
    results += await show.run_all([check for family in lab.families for check in _claims(lab, family)])
    return results + await _switch(lab, show)


# --- the third node --------------------------------------------------------------------------------------------------


async def add_third_node(lab: Lab) -> None:
    """Cable node3 with its workload behind the outside host; resources and agent are the caller's."""
    made = await asyncio.gather(Host.start(NODE3.name, NODE3.addresses), Host.start(P3A.name, P3A.addresses))
    lab.hosts |= {host.name: host for host in made}
    third, pod = made
    cable = f"link add to-node3 type veth peer name eth0 netns {third.pid}"
    router, fabric = [cable, "link set to-node3 up"], []
    for family in lab.families:
        router.append(topology.address_command(family, ROUTER, "to-node3"))
        fabric.append(f"route add {SUBNET[family]} via {topology.EXT[family]}")
        forwarding = "ipv4/ip_forward" if family is Family.V4 else "ipv6/conf/all/forwarding"
        await lab.ext.sysctl(forwarding, 1)
    await asyncio.gather(lab.ext.ip(router), lab.fabric.ip(fabric))
    await third.ip(topology.node_commands(lab.mode, NODE3, {P3A: pod.pid}, ROUTER))
    await pod.ip(topology.pod_commands(lab.mode, P3A))
    await asyncio.gather(*(host.listen(host.address(family)) for host in made for family in lab.families))


def of_third_node(lab: Lab) -> list[Object]:
    """What the stream has to say of node3."""
    return [
        node(NODE3, lab.families),
        *(block(NODE3.blocks[family], NODE3.name) for family in lab.families),
        workload_endpoint(P3A, lab.families),
    ]


def crossing(lab: Lab) -> list[Object]:
    """Pools that cross subnets in VXLAN, and the ends of all nodes' tunnels."""
    nodes = [node(spec, lab.families) for spec in (*NODES, NODE3)]
    for one in nodes:
        for family in lab.families:
            ends = TUNNEL_ENDS[one["metadata"]["name"]]
            one["spec"][f"ipv{family.version}VXLANTunnelAddr"] = ends[family]
    return [*(pool(family, "CrossSubnet") for family in lab.families), *nodes]


def pool(family: Family, mode: str) -> Object:
    """A pool of the lab with a ``vxlanMode``."""
    return default_pool(family, vxlanMode=mode)


# --- claims ----------------------------------------------------------------------------------------------------------


def _answer(lab: Lab, family: Family, seen_as: str | None) -> Check:
    """TCP from p1a to p3a."""
    return reach(family, lab.pod(P1A.name), "p3a, behind the router", P3A.addresses[family], seen_as)[1]


def _claims(lab: Lab, family: Family) -> list[Check]:
    p3a, ends = P3A.addresses[family], TUNNEL_ENDS[NODE1.name]
    back = reach(family, lab.pod(P3A.name), "p2a, other network", P2A.addresses[family], p3a)[1]
    of_node = reach(family, lab.node(NODE1.name), "p3a, behind the router", p3a, ends[family])[1]
    return [
        _answer(lab, family, P1A.addresses[family]),
        back,
        of_node,
        _travels(lab, family, NODE2, P2A, NATIVE),
        _travels(lab, family, NODE3, P3A, VXLAN),
    ]


def _travels(lab: Lab, family: Family, to: NodeSpec, pod: PodSpec, expected: str) -> Check:
    """How a workload's packets come to another node, seen on its uplink."""
    own, target = NODE1.addresses[family], pod.addresses[family]

    async def look(timeout: float) -> str:  # noqa: ASYNC109
        async with lab.node(to.name).capture() as packets:
            answered = await lab.pod(P1A.name).ping(target, timeout=timeout)
        outer = [one for one in packets if (one.protocol, one.port, one.source) == (UDP, VXLAN_PORT, own)]
        if not answered:
            return NO_ANSWER
        return VXLAN if outer else NATIVE

    return Check(family, "ping", "p1a", f"{pod.name}, how it comes to {to.name}", expected, look)


# --- the live switch -------------------------------------------------------------------------------------------------


async def _switch(lab: Lab, show: Narrator) -> list[Result]:
    """Switch the pools between native and VXLAN while workloads ping each other, and count what is lost."""
    targets = [(family, pod) for family in lab.families for pod in (P2A, P3A)]
    async with contextlib.AsyncExitStack() as pinging:
        source = lab.pod(P1A.name)
        counts = [
            await pinging.enter_async_context(source.pinging(pod.addresses[family], PING_EVERY_S))
            for family, pod in targets
        ]
        for mode in SWITCHES:
            for family in lab.families:
                payload = json.dumps(pool(family, mode)).encode()
                await lab.publish(f"ippool/{pool_name(family)}", payload)
            await _until(lambda mode=mode: _all_lead(lab, VXLAN if mode == "Always" else NATIVE))  # type: ignore[misc]
            await asyncio.sleep(MODE_S)
    sent, lost = sum(count.sent for count in counts), sum(count.lost for count in counts)
    show.step(
        f"vxlanMode switched {len(SWITCHES)} times under a ping every {PING_EVERY_S * 1000:.0f} ms",
        f"{sent} pings, {lost} lost",
    )
    return await show.run_all([_kept(family, pod, count) for (family, pod), count in zip(targets, counts, strict=True)])


def _kept(family: Family, pod: PodSpec, count: Echoes) -> Check:
    async def look(_: float) -> str:
        return f"{count.lost} lost" if count.sent else NO_ANSWER

    return Check(family, "ping", "p1a", f"{pod.name}, while the mode changes", "0 lost", look)


async def _all_lead(lab: Lab, way: str) -> bool:
    for family in lab.families:
        for name, pod in ((NODE1.name, P2A), (NODE2.name, P1A)):
            if not await _leads(lab, name, pod, family, way):
                return False
    return True


async def _leads(lab: Lab, node_name: str, pod: PodSpec, family: Family, way: str) -> bool:
    """Whether a node's kernel sends what is for a workload elsewhere that way now."""
    said = await lab.node(node_name).run("ip", "route", "get", pod.addresses[family], check=False)
    return f"dev {DEVICES[family] if way == VXLAN else 'eth0'} " in said


async def _until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait for it; the checks that follow say so if it never comes."""
    patience = Patience(SWITCH_S)
    while not await holds() and not patience.over():  # noqa: ASYNC110 - the kernel tells nobody here
        await asyncio.sleep(0.02)
