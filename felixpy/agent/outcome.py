"""What became of each object, for people: one state and one reason, in log, metric and status topic, said once.

    invalid in the stream → error · wrong beside others → error · refused by the kernel → error · waits for an event →
    waiting · not written yet → pending (never told) · everything in the kernel → up

Invariant: an object's problem is told when it begins, when it changes and when it ends. It must never decide anything.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any, Protocol

from felixpy.calc.graph import HOST, Calculation
from felixpy.config import LiveSettings
from felixpy.dataplane.apply import Dataplane
from felixpy.model.resources import Kind, ResourceKey, Update, WorkloadEndpoint
from felixpy.observe.endpoint_files import EndpointFiles
from felixpy.observe.metrics import Metrics
from felixpy.observe.problems import Problems
from felixpy.observe.samples import RecentFailures, Samples
from felixpy.store.ways import whole

CLOCK_ERROR_SECONDS = 1.0
"""So far may the publisher's clock be ahead of ours, if both are set by NTP; a time beyond that says nothing."""


TELLING_SECONDS = 0.05
"""For so long is kept what is only told of objects without a status of their own: a node that is known by its blocks
first is no problem by the time that its own word has come."""

Follower = Callable[[str, str], None]
"""Is told state and reason; must return at once."""


class StatusPublisher(Protocol):
    """Where the agent reports to; both calls queue and return."""

    def publish_status(self, payload: Mapping[str, Any]) -> None: ...

    def publish_endpoint_status(self, namespace: str, name: str, payload: Mapping[str, Any] | None) -> None: ...


class Outcome:
    """State of every object, derived from the stream's word, the calculation and the kernel's answers."""

    def __init__(
        self,
        calculation: Calculation,
        dataplane: Dataplane,
        settings: LiveSettings,
        metrics: Metrics,
        status: StatusPublisher | None,
        recent: RecentFailures,
        files: EndpointFiles,
    ) -> None:
        self.problems = Problems(metrics, recent)
        self.programmed, self.published = Samples(), Samples()
        """Latencies of the latest endpoints: from arrival, and from publishing, to the kernel."""
        self.reported: dict[ResourceKey, tuple[str, str]] = {}
        """State and reason of this node's endpoints, as told last."""
        self.measures = False
        """Whether latencies count: what the first snapshot brings may have been published long ago."""
        self._calculation = calculation
        self._dataplane = dataplane
        self._settings = settings
        self._metrics = metrics
        self._status = status
        self._files = files
        files.told = lambda key: self.judge((key,))
        self._invalid: dict[ResourceKey, str] = {}
        self._arrivals: dict[ResourceKey, Update] = {}
        self._followers: dict[ResourceKey, Follower] = {}
        self._later: set[ResourceKey] = set()
        self._again: set[ResourceKey] = set()
        self._later_at = math.inf

    @contextmanager
    def following(self, key: ResourceKey, told: Follower) -> Iterator[None]:
        """``told`` hears of one endpoint whenever it is looked at, for the duration of the context."""
        self._followers[key] = told
        try:
            yield
        finally:
            if self._followers.get(key) is told:  # else a later one follows it
                del self._followers[key]

    def arrived(self, update: Update) -> None:
        """Take note of what the stream says of an object."""
        key = update.key
        if update.error:
            self._invalid[key] = update.error
        else:
            self._invalid.pop(key, None)
        resource = update.resource
        if isinstance(resource, WorkloadEndpoint) and self._calculation.store.local(resource):
            self._arrivals[key] = update
        else:
            self._arrivals.pop(key, None)

    def take(self, things: Set[ResourceKey]) -> None:
        """Tell what has changed of endpoints, and keep other objects for ``tell_others``; parts may be given."""
        endpoints = {thing for thing in things if thing.kind is Kind.WORKLOAD_ENDPOINT}
        others = things - endpoints
        endpoints |= self._again
        self._again = set()
        self.judge(endpoints)
        if others:
            self._later |= others
            self._later_at = min(self._later_at, time.monotonic() + TELLING_SECONDS)

    def next_at(self) -> float:
        """When ``tell_others`` has something to tell, on the monotonic clock; never, if it has not."""
        return self._later_at

    def tell_others(self, *, now: bool = False) -> None:
        """Tell what has changed of the objects that were kept, if it is time or has to be ``now``."""
        if self._later and (now or time.monotonic() >= self._later_at):
            things, self._later, self._later_at = self._later, set(), math.inf
            self.judge(things)

    def is_invalid(self, key: ResourceKey) -> bool:
        """Whether the stream's object of a key cannot be taken as it is."""
        return key in self._invalid

    def judge(self, things: Iterable[ResourceKey]) -> None:
        """Tell what has changed of objects, of which parts may be given."""
        is_settled = self._dataplane.is_settled
        for thing in set(map(whole, things)):
            state, reason = self.state_of(thing, is_settled=is_settled)
            if thing == HOST or state == "pending":
                continue
            self.problems.set(thing, self._problem(thing, state, reason))
            if thing in self._followers:
                self._followers[thing](state, reason)
            if thing.kind is Kind.WORKLOAD_ENDPOINT:
                self._tell(thing, state, reason)

    def _problem(self, thing: ResourceKey, state: str, reason: str) -> str:
        """What of it is to be told as a problem: not that a workload on its way out has lost its interface."""
        if state == "up":
            return reason or self._files.reason_of(thing)
        endpoint = self._calculation.store.endpoints.get(thing) if state == "waiting" else None
        return "" if endpoint is not None and endpoint.deleted else reason

    def judge_again(self, things: Iterable[ResourceKey]) -> None:
        """With the next ``take``, tell what has changed of the given objects and of all that have a problem.

        What was up needs no look: it changes with its entries, and those are looked at when they are applied.
        """
        self._again |= {*things, *self.problems, *self._settings.problems}

    def follows(self, key: ResourceKey) -> bool:
        """Whether somebody waits for news of an endpoint."""
        return key in self._followers

    def state_of(self, thing: ResourceKey, *, is_settled: bool | None = None) -> tuple[str, str]:
        """State and reason; the state is empty for what is absent, of another node, or well without being up.

        ``is_settled``: of the dataplane, if that is known.
        """
        if is_settled is None:
            is_settled = self._dataplane.is_settled
        for problems in (self._invalid, self._calculation.problems, self._settings.problems):
            if thing in problems:
                return "error", problems[thing]
        pending, waits_for = False, ""
        for key in () if is_settled else self._calculation.keys_of(thing):
            table = self._dataplane.table_of(key)
            if table is None or self._calculation.owner_of(key) != thing:
                continue
            if key in table.refused:
                return "error", f"{key}: {table.refused[key].reason}"
            waits_for = waits_for or table.waiting.get(key, "")
            pending = pending or table.is_due(key)
        if waits_for:
            return "waiting", waits_for
        endpoint = self._calculation.store.endpoints.get(thing)
        if endpoint is None or not self._calculation.store.local(endpoint):
            return "", ""
        if without_place := self._dataplane.without_place(endpoint.interface):
            return "error", without_place
        return ("pending" if pending else "up"), ""

    def _tell(self, thing: ResourceKey, state: str, reason: str) -> None:
        """Report an endpoint, if there is news; an endpoint that was up and was written anew is news."""
        is_written = state == "up" and thing in self._arrivals
        if (state, reason) == self.reported.get(thing, ("", "")) and not is_written:
            return
        if state == "waiting":
            self._arrivals.pop(thing, None)  # how long somebody else takes to make its interface is not our latency
        payload: dict[str, Any] | None = None
        self._files.set(thing, self._calculation.store.endpoints.get(thing) if state == "up" else None)
        if state:
            self.reported[thing] = state, reason
            payload = {"state": state, "reason": reason, "ts": time.time()}
            if is_written:
                payload |= self._latencies(self._arrivals.pop(thing))
        else:
            self.reported.pop(thing, None)
            self._arrivals.pop(thing, None)
        if self._status:
            self._status.publish_endpoint_status(thing.namespace, thing.name, payload)

    def _latencies(self, arrival: Update) -> dict[str, float]:
        agent_seconds = (time.monotonic_ns() - arrival.received_ns) / 1e9
        if self.measures:
            self._metrics.programmed_seconds.observe(agent_seconds)
            self.programmed.take(agent_seconds)
        found = {"agent_ms": round(agent_seconds * 1000, 3)}
        published = arrival.published_ns
        if published and (seconds := (time.time_ns() - published) / 1e9) >= -CLOCK_ERROR_SECONDS:
            if self.measures:
                self._metrics.published_seconds.observe(seconds)
                self.published.take(seconds)
            found["latency_ms"] = round(seconds * 1000, 3)
        return found
