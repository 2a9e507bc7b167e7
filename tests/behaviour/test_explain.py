"""What ``felixpy explain`` says against what packets do: random pairs, rules of other programs at the same hooks.

Each try has a destination port of its own, by which its packets are known wherever they arrive.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from felixpy.demo.agent import environment
from felixpy.demo.host import PORT, Packet
from felixpy.demo.patience import stretched
from felixpy.demo.topology import EXT, INTERNET, NODE1, NODE2, NODES, P1A, P1B, P2A, POOLS, UNALLOCATED, PodSpec
from felixpy.model.net import Family

from .world import ELSEWHERE, P1C, World, variant

TRIES = 40
UNALLOCATED_FAR = {Family.V4: "10.48.1.9", Family.V6: "fd00:48:0:1::9"}
SPOOFED = {Family.V4: ("10.48.0.2", "10.48.1.1", "8.8.8.8"), Family.V6: ("fd00:48::2", "fd00:48:0:1::1", "2600::1")}
ALLOWED, DROPPED, TRANSLATED = range(20000, 21000), range(21000, 22000), range(22000, 23000)
PROTOCOL = {("icmp", 4): 1, ("icmp", 6): 58, ("tcp", 4): 6, ("tcp", 6): 6, ("udp", 4): 17, ("udp", 6): 17}


class Try(NamedTuple):
    """One packet: who sends it, with which source, and where to."""

    sender: str
    source: str
    destination: str
    protocol: str
    port: int
    spoofed: bool


def tries(rng: random.Random, family: Family) -> list[Try]:
    senders = {P1A.name: P1A.addresses, P1B.name: P1B.addresses, P1C.name: P1C.addresses, "node1": NODE1.addresses,
               "ext": EXT}  # fmt: skip
    targets = [P1A.addresses, P1B.addresses, P1C.addresses, P2A.addresses, EXT, INTERNET, ELSEWHERE, UNALLOCATED,
               UNALLOCATED_FAR, NODE1.addresses, NODE2.addresses]  # fmt: skip
    to_node = NODE1.addresses[family]
    found = [Try(P1A.name, P1A.addresses[family], to_node, "tcp", PORT, False)]
    for number in range(TRIES):
        protocol = rng.choice(("udp", "udp", "tcp", "icmp"))
        sender = P1A.name if protocol == "icmp" else rng.choice(list(senders))
        reached = (
            targets if sender != "ext" else [P1A.addresses, P1B.addresses, P2A.addresses, UNALLOCATED, UNALLOCATED_FAR]
        )
        target = rng.choice([one for one in reached if one[family] != senders[sender][family]])[family]
        spoofed = protocol == "udp" and sender in (P1A.name, "ext") and rng.random() < 0.4
        source = rng.choice(SPOOFED[family]) if spoofed else senders[sender][family]
        port = rng.choice((ALLOWED, ALLOWED, DROPPED, TRANSLATED)).start + number
        if target == to_node:
            if spoofed:
                continue
            port = PORT  # where it answers, which is how delivery is seen
        found.append(Try(sender, source, target, protocol, port, spoofed))
    hairpin = P1B.name, ELSEWHERE[family]  # comes back to its sender, where nobody watches
    return [one for one in found if one.source != one.destination and (one.sender, one.destination) != hairpin]


async def redirects(world: World, value: int) -> None:
    """Whether the outside host obeys a node that tells it of a shorter way, round the node."""
    for name in ("ipv4/conf/all", "ipv4/conf/eth0", "ipv6/conf/eth0"):
        await world.lab.ext.sysctl(f"{name}/accept_redirects", value)


@contextlib.asynccontextmanager
async def others(world: World) -> AsyncIterator[None]:
    """Another program's drops and DNAT at the same hooks, and a way from outside to the workloads."""
    kinds = {Family.V4: "ip", Family.V6: "ip6"}
    nft = [
        f"{kinds[f]} daddr {ELSEWHERE[f]} udp dport 22000-22999 dnat {kinds[f]} to {P1B.addresses[f]}"
        for f in world.families
    ]
    iptables = variant(world.backend)
    rules = [("mangle", "FORWARD", *rule.split()) for rule in (
        "-p tcp --dport 21000:21999 -j DROP", "-p udp -m multiport --dports 1,21000:21500 -j DROP"
    )]  # fmt: skip
    try:
        table = (
            "table inet otherprogram {\nchain forwarded {\ntype filter hook forward priority 10;\n"
            "udp dport { 9, 21501-21999 } counter drop\n}\n"
            f"chain before {{\ntype nat hook prerouting priority -100;\n{chr(10).join(nft)}\n}}\n}}\n"
        )
        await world.node1.run("nft", "-f", "-", stdin=table)
        for table_name, chain, *rule in rules:
            for six in ("", "6"):
                await world.node1.run(f"ip{six}tables-{iptables}", "-t", table_name, "-I", chain, *rule)
        await redirects(world, 0)
        await world.lab.ext.ip([f"route add {POOLS[f]} via {NODE1.addresses[f]}" for f in world.families])
        yield
    finally:
        await redirects(world, 1)
        for family in world.families:
            await world.lab.ext.run("ip", "route", "del", POOLS[family], check=False)
        await world.node1.run("nft", "delete", "table", "inet", "otherprogram", check=False)
        for table_name, chain, *rule in rules:
            for six in ("", "6"):
                await world.node1.run(f"ip{six}tables-{iptables}", "-t", table_name, "-D", chain, *rule, check=False)


async def explained(world: World, asked: list[Try]) -> list[dict[str, Any]]:
    """The verdicts for many tries, from one process in the node's namespaces."""
    interfaces = {pod.name: pod.interface for pod in (P1A, P1B, P1C)} | {"ext": "eth0", "node1": ""}
    lines = []
    for number, one in enumerate(asked):
        packet = one.source, one.destination, one.protocol, None if one.protocol == "icmp" else one.port
        lines.append(json.dumps({"id": number, "in": interfaces[one.sender], "packet": packet}))
    said = await world.node1.run(
        sys.executable, "-m", "tests.explain.many", stdin="\n".join(lines) + "\n", env=environment({})
    )
    found = sorted((json.loads(line) for line in said.splitlines()), key=lambda one: one["id"])
    assert len(found) == len(asked), said
    return found


async def send(world: World, one: Try) -> bool:
    """Send a try; whether it was answered (only of interest for this node's own addresses)."""
    host = world.lab.hosts[one.sender]
    if one.spoofed:
        await host.send_datagram(one.source, one.destination, source_port=4000, port=one.port)
        return False
    if one.protocol == "icmp":
        return await host.ping(one.destination, timeout=stretched(0.4))
    ask = host.tcp if one.protocol == "tcp" else host.udp
    return await ask(one.destination, one.port, timeout=stretched(0.4)) is not None


def arrived(one: Try, said: dict[str, Any], family: Family, packets: dict[str, list[Packet]]) -> set[tuple[str, str]]:
    """Sources and destinations with which the try's packets came to any host but its sender and the node."""
    number = PROTOCOL[one.protocol, family.version]
    seen = {packet for host, found in packets.items() if host != one.sender for packet in found}
    if one.protocol == "icmp":  # no port tells the tries apart: only what this one should look like counts
        pairs = {(p.source, p.destination) for p in seen if p.protocol == number}
        wanted = {(said["seen_source"], said["seen_destination"])}
        return pairs & wanted
    return {(p.source, p.destination) for p in seen if p.protocol == number and p.port == one.port}


def disagreement(one: Try, said: dict[str, Any], got: set[tuple[str, str]], answered: bool) -> str:
    """Where the verdict and the packets differ; empty if they agree."""
    if not said["certain"]:
        return f"{one} is not certain: {said['doubts']}"
    if one.port == PORT or said["outcome"] == "delivered to this node":
        delivered = said["outcome"] == "delivered to this node"
        return "" if delivered == answered else f"{one}: answered {answered}, said {said['outcome']} {said['by']}"
    wanted = {(said["seen_source"], said["seen_destination"])} if said["outcome"] == "passes" else set()
    return "" if got == wanted else f"{one}: arrived {got}, said {said['outcome']} {said['by']} {wanted}"


async def test_explain_agrees_with_packets(world: World) -> None:
    rng = random.Random(str(world.mode) + world.backend)
    watched: list[PodSpec | str] = [P1A, P1B, P1C, P2A]
    names = [pod.name for pod in watched if isinstance(pod, PodSpec)] + ["ext", "node2"]
    failures, outcomes = [], set()
    async with others(world):
        for family in world.families:
            asked = tries(rng, family)
            verdicts = await explained(world, asked)
            async with contextlib.AsyncExitStack() as stack:
                packets = {name: await stack.enter_async_context(world.lab.hosts[name].capture()) for name in names}
                answers = await asyncio.gather(*(send(world, one) for one in asked))
            for one, said, answered in zip(asked, verdicts, answers, strict=True):
                outcomes.add(said["outcome"])
                failures.append(disagreement(one, said, arrived(one, said, family, packets), answered))
    assert [failure for failure in failures if failure] == []
    assert outcomes == {"passes", "dropped", "delivered to this node"}
    assert len(NODES) == 2


async def test_the_culprit_is_named(world: World) -> None:
    family = world.families[0]
    async with others(world):
        one = Try(P1A.name, P1A.addresses[family], P2A.addresses[family], "udp", 21600, False)
        (said,) = await explained(world, [one])
        assert said["outcome"] == "dropped"
        assert "nftables table inet otherprogram chain forwarded" in said["by"]
        (said,) = await explained(world, [one._replace(protocol="tcp")])
        assert f"tables-{variant(world.backend)} table mangle chain FORWARD" in said["by"]
        (said,) = await explained(world, [one._replace(port=20600, source=SPOOFED[family][0])])
        assert "of felixpy" in said["by"]
