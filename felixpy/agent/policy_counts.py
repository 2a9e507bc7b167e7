"""What policies have allowed and denied, read from the kernel's rules when somebody asks for metrics.

Invariant: looks only, and in the background: an update that comes meanwhile goes first. Nothing is read without
policies, with ``PolicyCounters=Disabled``, or more often than every ``LEAST_SECONDS``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping

from felixpy.agent.status import Subject
from felixpy.calc.policy.policy_rules import END_OF_TIER, NO_PROFILE, direction_of_chain
from felixpy.dataplane.filter_tables import FilterTables
from felixpy.dataplane.packet_filter import CountedPackets, FilterError
from felixpy.observe.policy_packets import Decider
from felixpy.slices import giving_way, in_slices
from felixpy.standing import Standing

LEAST_SECONDS = 5.0
"""Between two readings: more than one may ask for metrics."""

Deciders = Mapping[str, tuple[str, str]]
"""Tier and policy by the name of a chain."""


class PolicyCounts:
    """Reads counters of all families and tells whose they are."""

    def __init__(self, agent: Subject, standing: Standing, calm: asyncio.Event) -> None:
        self._agent = agent
        self._standing = standing
        self._calm = calm
        self._reading = asyncio.Lock()
        self._next = 0.0

    async def read(self) -> None:
        """Bring the metric up to date; what cannot be read stays as it was, and the log says why."""
        async with self._reading:
            if time.monotonic() < self._next:
                return
            await asyncio.create_task(self._read())
            self._next = time.monotonic() + LEAST_SECONDS

    async def _read(self) -> None:
        giving_way(self._calm)
        agent, what = self._agent, "packets that policies decided about cannot be counted"
        counters: dict[str, tuple[Decider, int]] = {}
        for tables in list(agent.dataplane.filters.values()) if agent.settings.policy_counters else ():
            if not tables.layout.decides:
                continue
            try:
                found = await tables.filter.decisions()
            except (OSError, FilterError) as error:
                self._standing.fails(what, str(error))
                return
            counters |= await _counters(tables, found, agent.calculation.policy.deciders())
        self._standing.works(what)
        await agent.metrics.policy_packets.take(counters)


async def _counters(
    tables: FilterTables, found: Iterable[CountedPackets], deciders: Deciders
) -> dict[str, tuple[Decider, int]]:
    """Counters by family, chain, verdict and tier: rules of one chain that say the same are one."""
    counters: dict[str, tuple[Decider, int]] = {}
    async for some in in_slices(found, 64):
        for one in some:
            decider = _decider(one, deciders)
            if decider is not None:
                name = f"{tables.family} {one.chain} {decider.action} {decider.tier}"
                _, before = counters.get(name, (decider, 0))
                counters[name] = decider, before + one.packets
    return counters


def _decider(one: CountedPackets, deciders: Deciders) -> Decider | None:
    """None for a rule that decides nothing of policy."""
    direction = direction_of_chain(one.chain)
    if direction is None:
        return None
    action = "denied" if one.denied else "allowed"
    if (found := deciders.get(one.chain)) is not None:
        return Decider(action, direction.value, *found)
    if one.denied and one.comment.startswith(END_OF_TIER):
        return Decider(action, direction.value, one.comment.removeprefix(END_OF_TIER), "end of tier")
    if one.denied and one.comment == NO_PROFILE:
        return Decider(action, direction.value, "", "no profile")
    return None
