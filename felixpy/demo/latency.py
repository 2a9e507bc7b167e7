"""How long the agent itself says an endpoint takes, from publish to programmed, with few and with many endpoints.

The figure comes from the agent's endpoint status; nothing is asserted here.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics

from felixpy.demo.lab import Lab
from felixpy.demo.patience import Patience
from felixpy.demo.resources import workload_endpoint
from felixpy.demo.topology import PodSpec
from felixpy.model.net import Family

SIZES = (10, 2000)
SAMPLES = 20
PATIENCE_S = 60.0


def _spare(number: int) -> PodSpec:
    """One of many workloads on node1, with addresses that no other has."""
    high, low = divmod(number, 250)
    addresses = {Family.V4: f"10.50.{high}.{low + 1}", Family.V6: f"fd00:50::{number + 1:x}"}
    return PodSpec(f"spare{number}", "node1", addresses)


async def measure_latency(lab: Lab) -> str:
    """One line for people; empty if the agent reports no latency.

    Adds endpoints to node1 (both ends of a veth pair each stand for one workload) and leaves them there.
    """
    spares = [_spare(number) for number in range(max(SIZES) + SAMPLES * len(SIZES))]
    crowd, samples = spares[: max(SIZES)], iter(spares[max(SIZES) :])
    await _add_interfaces(lab, spares)
    added, parts = 0, []
    for size in SIZES:
        if not await _programmed(lab, crowd[added:size]):
            return ""
        added = size
        latencies = []
        for spare in itertools.islice(samples, SAMPLES):
            if not await _programmed(lab, [spare]):
                return ""
            latencies.append(_latency_ms(lab, spare))
        parts.append(f"{statistics.median(latencies):.2f} ms at {size:,} endpoints")
    return f"publish → programmed, one endpoint, median of {SAMPLES}: {', '.join(parts)}"


async def _add_interfaces(lab: Lab, spares: list[PodSpec]) -> None:
    commands = []
    for one, two in zip(spares[::2], spares[1::2], strict=True):
        commands += [
            f"link add {one.interface} type veth peer name {two.interface}",
            f"link set {one.interface} up",
            f"link set {two.interface} up",
        ]
    await lab.node("node1").ip(commands)


async def _publish(lab: Lab, spares: list[PodSpec]) -> None:
    for spare in spares:
        payload = json.dumps(workload_endpoint(spare, lab.families)).encode()
        await lab.publish(f"wep/{spare.node}/default/{spare.endpoint}", payload)


def _latency_ms(lab: Lab, spare: PodSpec) -> float:
    return float(lab.status[_status_key(spare)].get("latency_ms", float("nan")))


def _status_key(spare: PodSpec) -> str:
    return f"{spare.node}/wep/default/{spare.endpoint}"


async def _programmed(lab: Lab, spares: list[PodSpec]) -> bool:
    """Publish endpoints; whether the agent reports every one in time, with a latency."""
    await _publish(lab, spares)
    patience = Patience(PATIENCE_S)
    waiting = [_status_key(spare) for spare in spares]
    while not patience.over():
        waiting = [key for key in waiting if "latency_ms" not in lab.status.get(key, {})]
        if not waiting:
            return True
        lab.status_changed.clear()
        try:
            await asyncio.wait_for(lab.status_changed.wait(), 0.5)
        except TimeoutError:
            continue
    return False
