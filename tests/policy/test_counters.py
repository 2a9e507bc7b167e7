"""What rules count is what was sent, by who decided; it survives a restart, and disturbs no comparison."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from felixpy.model.net import FAMILIES
from felixpy.observe.metrics import Metrics
from felixpy.observe.policy_packets import Decider, PolicyPackets
from tests.policy.counters_process import SENT

ROOT = Path(__file__).parents[2]
KEEP = ("allowed", "ingress", "default", "NetworkPolicy x/keep")
GUARD = ("denied", "ingress", "security", "GlobalNetworkPolicy guard")
END = ("denied", "ingress", "default", "end of tier")
LEAVING = ("allowed", "egress", "", "Profile kns.x")


def counted(found: list[list[Any]]) -> dict[tuple[str, ...], int]:
    return {tuple(labels): packets for *labels, packets in found}


@pytest.mark.parametrize("backend", ["nftables", "legacy", "nft"])
def test_packets_are_counted_by_who_decided(backend: str) -> None:
    command = [sys.executable, "-m", "tests.policy.counters_process", backend]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    sent = {port: times * len(FAMILIES) for port, times in SENT.items()}
    assert found["arrived"] == sent[80]
    before = counted(found["before"])
    assert {before[KEEP], before[GUARD], before[END], before[LEAVING]} == {0}, "each has a series from the beginning"
    first = {decider: packets for decider, packets in counted(found["first"]).items() if packets}
    assert first == {KEEP: sent[80], GUARD: sent[81], END: sent[82], LEAVING: sum(sent.values())}
    assert (found["restart"]["sends"], found["restart"]["drifted"]) == (0, 0), "what was counted is no difference"
    second = {decider: packets for decider, packets in counted(found["second"]).items() if packets}
    assert second == {decider: 2 * packets for decider, packets in first.items()}, "the kernel has gone on counting"
    assert not any(decider[3] == GUARD[3] for decider in counted(found["without"]))
    assert found["off"] == []


def test_a_counter_that_begins_anew_goes_on() -> None:
    packets, decider = PolicyPackets(), Decider("denied", "ingress", "default", "end of tier")
    total = []
    for counters in ({"a": 5, "b": 1}, {"a": 7, "b": 1}, {"a": 2, "b": 1}, {"a": 2}, {}):
        asyncio.run(packets.take({name: (decider, value) for name, value in counters.items()}))
        total.append(list(packets.totals.values()))
    assert total == [[6], [8], [10], [10], []]


def test_the_text_is_what_prometheus_reads() -> None:
    metrics, strange = Metrics("n1"), Decider("denied", "ingress", 'a "tier"', "back\\slash\nand line")
    plain = Decider("allowed", "egress", "", "Profile kns.x")
    asyncio.run(metrics.policy_packets.take({"a": (strange, 3), "b": (plain, 1 << 53)}))
    families = {one.name: one for one in text_string_to_metric_families(metrics.text().decode())}
    family = families[PolicyPackets.name]
    assert family.type == "counter"
    assert {tuple(one.labels.values()): one.value for one in family.samples} == {strange: 3, plain: 1 << 53}
