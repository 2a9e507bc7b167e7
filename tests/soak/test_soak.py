"""The soak itself: a few seconds of it show no loss, and it does see a loss where there is one."""

from __future__ import annotations

import asyncio

import pytest

from felixpy.demo.lab import Lab
from felixpy.demo.patience import limit
from felixpy.demo.topology import P1A, P1B, Mode
from felixpy.model.net import Family
from tests.soak.run import KINDS, Traffic, soak

BLOCK = "table inet block {\nchain c {\ntype filter hook forward priority -500\ndrop\n}\n}\n"


def test_some_seconds_lose_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert asyncio.run(soak(5, 1, "nftables")) == 0, capsys.readouterr().out
    said = capsys.readouterr().out
    assert "0 lost" in said and "repeat with --seed 1" in said


async def blocked() -> list[dict[str, object]]:
    async with Lab(Mode.V4) as lab:
        node, pod = lab.node("node1"), lab.pod(P1A.name)
        await node.sysctl("ipv4/ip_forward", 1)
        routes = [f"route add {one.addresses[Family.V4]} dev {one.interface}" for one in (P1A, P1B)]
        await node.ip(routes)
        for one in (P1A, P1B):
            await node.sysctl(f"ipv4/conf/{one.interface}/proxy_arp", 1)
            await node.sysctl(f"ipv4/neigh/{one.interface}/proxy_delay", 0)  # else the first SYN waits, or is lost
        traffic = Traffic(pod, [f"{kind}={P1B.addresses[Family.V4]}" for kind in KINDS])
        await traffic.start()
        while not traffic.counts or not all(count["sent"] > 5 for count in traffic.counts):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        before = [dict(count) for count in traffic.counts]
        await node.run("nft", "-f", "-", stdin=BLOCK)
        await asyncio.sleep(0.5)
        await node.run("nft", "delete", "table", "inet", "block")
        async with limit(60):
            while not all(count["lost"] for count in traffic.counts):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        await traffic.stop()
        return before


def test_half_a_second_without_packets_is_seen_by_every_flow() -> None:
    assert [count["lost"] for count in asyncio.run(blocked())] == [0, 0, 0]
