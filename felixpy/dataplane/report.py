"""What an apply would do (``Operation``) and what one did (``ApplyReport``), for people and for the agent."""

from __future__ import annotations

from msgspec import Struct, field

from felixpy.calc.entries import Key
from felixpy.model.net import Family


class Operation(tuple[str, str, str]):
    """For people: verb (``add``, ``change``, ``remove``), table, and the entry's text."""

    __slots__ = ()


class Spent(Struct):
    """How often something was done, and the seconds of all times together."""

    times: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.times += 1
        self.seconds += seconds


class ApplyReport(Struct):
    """What one apply did: entries written, keys looked at, and why a family as a whole does not work.

    ``unknown``: the answer to a write of routes or neighbours was lost, so the kernel must be read again. A packet
    filter reads its own part again before it writes.
    """

    written: int = 0
    unknown: bool = False
    looked_at: set[Key] = field(default_factory=set)
    failures: dict[Family, str] = field(default_factory=dict)
