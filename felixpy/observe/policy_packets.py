"""Packets that policies decided about, as metrics: their text is made ahead, in slices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from felixpy.slices import in_slices


class Decider(NamedTuple):
    """Who decided about packets, and how. ``policy`` is a policy, a profile, or what nothing decided comes to."""

    action: str
    direction: str
    tier: str
    policy: str


class PolicyPackets:
    """Packets by who decided about them, from counters that begin anew with each change of their rules.

    Series are of those that decide now: a policy that is gone has none. There may be thousands, so that the text is
    made ahead, in slices, and not by the registry, which would hold the loop for 20 ms.
    """

    name, labels = "felixpy_policy_packets", Decider._fields
    meaning = "Packets that policies, profiles and ends of tiers have allowed and denied."

    def __init__(self) -> None:
        self._latest: dict[str, int] = {}
        self.totals: dict[Decider, int] = {}
        self.text = self._head = f"# HELP {self.name}_total {self.meaning}\n# TYPE {self.name}_total counter\n".encode()

    async def take(self, counters: Mapping[str, tuple[Decider, int]]) -> None:
        """Take what all counters say now, by a name for each. One at a time."""
        totals: dict[Decider, int] = {}
        async for some in in_slices(counters.items(), 64):
            for name, (decider, value) in some:
                before = self._latest.get(name, 0)
                counted = value - before if value >= before else value
                totals[decider] = totals.get(decider, self.totals.get(decider, 0)) + counted
        lines = [self._head]
        async for sorted_some in in_slices(sorted(totals.items()), 32):
            lines += [self._line(decider, total) for decider, total in sorted_some]
        self.text = b"".join(lines)
        self._latest = {name: value for name, (_, value) in counters.items()}
        self.totals = totals

    def _line(self, decider: Decider, total: int) -> bytes:
        labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(self.labels, decider, strict=True))
        return f"{self.name}_total{{{labels}}} {float(total)}\n".encode()


def _escaped(value: str) -> str:
    """A label's value in the text format."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
