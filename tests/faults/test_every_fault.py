"""Every step of a node's day under every fault at every early call: afterwards the kernel is right.

Right means: an agent started from scratch finds nothing to change, and what others own is byte-identical. No timer
helps (refresh intervals are off), so the agent has to come back by itself.
"""

from __future__ import annotations

import asyncio
import errno

import pytest

from felixpy.dataplane import table
from tests.drift.world import build_links
from tests.faults.injection import Fault, Injector, injecting
from tests.faults.node import Node, add_foreign_state, foreign_state
from tests.faults.scenarios import CYCLE, ENDPOINTS

BACKENDS = ("nftables", "legacy", "nft")
EARLY_CALLS = (1, 2, 3, 5)
FAULTS = [
    *(Fault("send", number) for number in (errno.ENOBUFS, errno.EINTR, errno.ENOMEM)),
    Fault("send", errno.ENOMEM, times=3),
    Fault("answer", errno.ENOBUFS),
    *(Fault("message", number) for number in (errno.EBUSY, errno.ENOMEM)),
    Fault("message", errno.EAGAIN, times=4),
    Fault("dump", errno.EAGAIN),
    Fault("dump", errno.ENOBUFS, times=3),
    Fault("cut"),
    Fault("cut", times=5),
    Fault("sysctl", errno.EBUSY, times=2),
    Fault("monitor"),
    Fault("write"),
    Fault("filter", errno.ENOBUFS),
    Fault("conntrack", errno.EINTR),
]
IPTABLES_FAULTS = [Fault("tool"), Fault("tool", times=3), Fault("missing")]
LEGACY_FAULTS = [Fault("legacy", errno.EAGAIN, times=2)]


def combinations() -> list[tuple[str, Fault]]:
    found = [(backend, fault) for backend in BACKENDS for fault in FAULTS]
    found += [(backend, fault) for backend in ("legacy", "nft") for fault in IPTABLES_FAULTS]
    return found + [("legacy", fault) for fault in LEGACY_FAULTS]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch, network: None) -> None:
    """The back-off begins at 10 ms, so that a hundred faults take seconds."""
    monkeypatch.setattr(table, "FIRST_RETRY_SECONDS", 0.01)
    build_links(5)
    add_foreign_state()


async def day(node: Node, injector: Injector, fault: Fault) -> int:
    """The cycle once per early call, until no step has so many calls. Returns how often the fault was met."""
    hits = 0
    for number in range(1, ENDPOINTS + 1):
        node.put_endpoint(number)
    node.start()
    await node.settled()
    for call in EARLY_CALLS:
        met = 0
        for step in CYCLE:
            injector.arm(fault, call)
            await step(node)
            try:
                await node.settled()
            except AssertionError as error:
                raise AssertionError(f"{step.__name__}, {fault} at call {call} ({injector.met}): {error}") from error
            met += injector.disarm()
        hits += met
        if not met:
            break
    await node.stop()
    return hits


@pytest.mark.parametrize(("backend", "fault"), combinations(), ids=str)
def test_the_kernel_is_right_after_a_fault_at_any_early_call(backend: str, fault: Fault) -> None:
    before = foreign_state()
    with injecting() as injector:
        hits = asyncio.run(day(Node(backend), injector, fault))
    assert hits, "this fault was never met: the test shows nothing"
    assert foreign_state() == before
