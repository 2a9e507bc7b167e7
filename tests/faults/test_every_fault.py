"""Every step of a node's day under every fault at every early call: afterwards the kernel is right.

Right means: an agent started from scratch finds nothing to change, and what others own is byte-identical. No timer
helps (refresh intervals are off), so the agent has to come back by itself.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterable

import pytest

from tests.faults.injection import Fault, Injector, injecting
from tests.faults.node import Node, foreign_state
from tests.faults.scenarios import CYCLE, ENDPOINTS

EARLY_CALLS = {"nftables": (1, 3), "legacy": (1,), "nft": (1,)}
"""Numbers of the call that goes wrong; ``FELIXPY_EARLY_CALLS=8`` tries all up to 8 with every back-end."""
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
    """Set members of both iptables variants go the same way, so the NFT variant needs the faults of its tools only."""
    found = [(backend, fault) for backend in ("nftables", "legacy") for fault in FAULTS]
    found += [(backend, fault) for backend in ("legacy", "nft") for fault in IPTABLES_FAULTS]
    return [*found, ("nft", Fault("write")), ("nft", Fault("cut")), *(("legacy", fault) for fault in LEGACY_FAULTS)]


def early_calls(backend: str) -> Iterable[int]:
    asked = os.environ.get("FELIXPY_EARLY_CALLS")
    return range(1, int(asked) + 1) if asked else EARLY_CALLS[backend]


async def day(node: Node, injector: Injector, fault: Fault) -> int:
    """The cycle once per early call, until no step has so many calls. Returns how often the fault was met."""
    hits = 0
    for number in range(1, ENDPOINTS + 1):
        node.put_endpoint(number)
    node.start()
    await node.settled()
    for call in early_calls(node.backend):
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
