"""A flood of new connections of which a policy denies some and allows some, while policy changes without pause.

Every packet has a source port of its own, so each is a new connection, and an id that tells what was sent. Nothing of
it depends on a clock: what was allowed and has not arrived when the senders are done and all is quiet was lost.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from felixpy.demo.patience import Patience
from felixpy.model.net import Family
from tests.policy import packets
from tests.policy.cases import Case
from tests.policy.lab import Lab

BATCH = 64


@dataclass
class Counts:
    """Packets by id: sent ones, and those that arrived."""

    allowed: set[int] = field(default_factory=set)
    denied: set[int] = field(default_factory=set)
    arrived: set[int] = field(default_factory=set)

    @property
    def lost(self) -> int:
        return len(self.allowed - self.arrived)

    @property
    def leaked(self) -> int:
        return len(self.denied & self.arrived)


def flood(lab: Lab, case: Case, change: Callable[[int], None], *, changes: int, batches: int) -> Counts:
    """Send until as many changes are made and at least so many batches are sent.

    From x/a to x/b: tcp/80 is what all policies in force allow, tcp/81 what all deny.
    """
    counts, done = Counts(), threading.Event()
    errors: list[BaseException] = []

    def changing() -> None:
        try:
            for number in range(changes):
                change(number)
        except BaseException as error:  # noqa: BLE001 - shown by the other thread
            errors.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=changing)
    thread.start()
    numbers = itertools.count(0x50000000)
    ports = random.Random(7)
    sent = 0
    while not (done.is_set() and sent >= batches):
        for number in itertools.islice(numbers, BATCH):
            family = Family.V4 if number & 1 else Family.V6
            allowed = number & 2 == 0
            source, destination = case.address("x/a", family), case.address("x/b", family)
            pair = ports.randint(1024, 65535), 80 if allowed else 81
            lab.put("x/a", packets.packet(source, destination, packets.TCP, pair, number), family)
            (counts.allowed if allowed else counts.denied).add(number)
        sent += 1
        counts.arrived |= {number for number, place in lab.arrived(0) if place == "x/b"}
        if not sent % 50:
            lab.forget_connections()
    thread.join()
    if errors:
        raise errors[0]
    patience = Patience(60)
    while counts.lost and not patience.over():
        found = {number for number, place in lab.arrived(1.0) if place == "x/b"}
        if not found:
            break
        counts.arrived |= found
    return counts
