"""What the demo claims, one check per claim: real packets, and what their receiver saw of them.

A check holds an expected and a seen text; it passes if they are the same. Nothing here changes the lab.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import NamedTuple

from msgspec import Struct

from felixpy.demo.host import PORT, Host, Packet, Seen
from felixpy.demo.lab import Lab
from felixpy.demo.patience import stretched
from felixpy.demo.topology import EXT, INTERNET, NODE1, P1A, P1B, P2A, UNALLOCATED
from felixpy.model.net import Family

ANSWER, NO_ANSWER = "an answer", "no answer"
ANSWER_S, SILENCE_S = 3.0, 0.4
"""How long an answer may take (a workload that asked in vain for its gateway asks again only every second), and how
long none must come."""

FOREIGN = {Family.V4: "203.0.113.9", Family.V6: "2001:db8:bad::9"}
"""Source addresses that nobody in the lab has."""

OWN_PORT = 7001
"""Source port of the datagrams that are counted; not one that the kernel chooses for others (they begin at 32768)."""


class Result(NamedTuple):
    """One row of the demo's table."""

    family: str
    protocol: str
    source: str
    destination: str
    expected: str
    seen: str

    @property
    def ok(self) -> bool:
        return self.seen == self.expected


class Check(Struct, frozen=True):
    """A claim and the packets that test it; ``look`` takes a timeout in seconds and returns what was seen."""

    family: Family
    protocol: str
    source: str
    destination: str
    expected: str
    look: Callable[[float], Awaitable[str]]

    async def run(self, timeout: float | None = None) -> Result:  # noqa: ASYNC109 - handed to the probe
        seen = await self.look(timeout or (SILENCE_S if self.expected == NO_ANSWER else stretched(ANSWER_S)))
        return Result(str(self.family), self.protocol, self.source, self.destination, self.expected, seen)


def _peer(seen: Seen | None) -> str:
    return f"from {seen.address}" if seen else NO_ANSWER


def reach(
    family: Family, source: Host, destination: str, address: str, seen_as: str | None, label: str = ""
) -> list[Check]:
    """Ping, TCP and UDP to an address; ``seen_as`` is the source that must be seen there, None if nothing may pass."""

    async def ping(timeout: float) -> str:  # noqa: ASYNC109
        return ANSWER if await source.ping(address, timeout=timeout) else NO_ANSWER

    async def tcp(timeout: float) -> str:  # noqa: ASYNC109
        return _peer(await source.tcp(address, timeout=timeout))

    async def udp(timeout: float) -> str:  # noqa: ASYNC109
        return _peer(await source.udp(address, timeout=timeout))

    name = label or source.name
    peer = f"from {seen_as}" if seen_as else NO_ANSWER
    return [
        Check(family, "ping", name, destination, ANSWER if seen_as else NO_ANSWER, ping),
        Check(family, "TCP", name, destination, peer, tcp),
        Check(family, "UDP", name, destination, peer, udp),
    ]


def connectivity(lab: Lab) -> list[Check]:
    """Workload to workload, to and from the host, and to the outside."""
    return [check for family in lab.families for check in _connectivity(lab, family)]


def _connectivity(lab: Lab, family: Family) -> Iterator[Check]:
    p1a, p1b, p2a = (lab.pod(pod.name) for pod in (P1A, P1B, P2A))
    a, b, c = (pod.addresses[family] for pod in (P1A, P1B, P2A))
    node = NODE1.addresses[family]
    yield from reach(family, p1a, "p1b, same node", b, a)
    yield from reach(family, p1a, "p2a, other node", c, a)
    yield from reach(family, p2a, "p1b, other node", b, c)
    yield from reach(family, lab.node("node1"), "p1a, its workload", a, node)
    yield from reach(family, p1a, "node1, its host", node, a)
    yield from reach(family, p1a, "outside host", EXT[family], node)
    yield from reach(family, p1b, "the Internet", INTERNET[family], node)


def protection(lab: Lab) -> list[Check]:
    """Spoofed packets are dropped; packets to an unallocated address do not leave the node."""
    return [check for family in lab.families for check in (_spoofing(lab, family), _blackhole(lab, family))]


def _spoofing(lab: Lab, family: Family) -> Check:
    own, target = P1A.addresses[family], P2A.addresses[family]
    spoofed = (P1B.addresses[family], FOREIGN[family])

    async def look(_: float) -> str:
        async with lab.node("node2").capture() as packets:
            for source in (*spoofed, own):
                await lab.pod("p1a").send_datagram(source, target, source_port=OWN_PORT)
        sources = [packet.source for packet in packets if _datagram_to(packet, target)]
        return f"{sum(map(sources.count, spoofed))} spoofed, {sources.count(own)} own"

    return Check(family, "UDP", "p1a, spoofing", "p2a, counted at node2", "0 spoofed, 1 own", look)


def _datagram_to(packet: Packet, address: str) -> bool:
    """Not one of another check, which may still be on its way although an earlier one was answered."""
    return packet.destination == address and (packet.source_port, packet.port) == (OWN_PORT, PORT)


def _blackhole(lab: Lab, family: Family) -> Check:
    address, p1a = UNALLOCATED[family], lab.pod("p1a")

    async def look(timeout: float) -> str:  # noqa: ASYNC109
        short = min(timeout, 0.5)
        async with lab.ext.capture() as packets:
            answers = await asyncio.gather(
                p1a.ping(address, timeout=short), p1a.tcp(address, timeout=short), p1a.udp(address, timeout=short)
            )
        leaked = sum(packet.destination == address for packet in packets)
        return f"{leaked} leaked, {sum(map(bool, answers))} answered"

    expected = "0 leaked, 0 answered"
    return Check(family, "all three", "p1a", "unallocated, seen outside", expected, look)


def removed(lab: Lab) -> list[Check]:
    """After p1b's endpoint is gone: p1b is cut off in both directions, its neighbours are not."""
    checks: list[Check] = []
    for family in lab.families:
        a, b, c = (pod.addresses[family] for pod in (P1A, P1B, P2A))
        checks += reach(family, lab.pod("p1a"), "p1b, removed", b, None)
        checks += reach(family, lab.pod("p1b"), "outside host", EXT[family], None, label="p1b, removed")
        checks += reach(family, lab.pod("p1a"), "p2a, still there", c, a)
    return checks
