"""What the agent says of itself: published (``summary``), to commands (``details``) and probes (``health``).

Invariant: looks only. What is counted here is counted when somebody asks; nothing of it is on the path of an update.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

from felixpy import __version__
from felixpy.agent.inbox import Inbox
from felixpy.agent.outcome import Outcome
from felixpy.calc.graph import Calculation
from felixpy.config import Settings
from felixpy.dataplane.apply import Dataplane
from felixpy.dataplane.backend import Backend
from felixpy.model.net import Family
from felixpy.model.resources import POLICY_KINDS, Policy
from felixpy.observe.metrics import Metrics
from felixpy.observe.samples import RecentFailures
from felixpy.sources import SyncState, SyncStatus
from felixpy.store.store import Store

MAX_PROBLEMS = 20
MAX_REFUSED = 20
STUCK_SECONDS = 90.0
"""Without progress of the loop for so long, the agent is not alive (Felix: DataplaneWatchdogTimeout)."""


class Subject(Protocol):
    """The agent, as far as it is looked at."""

    store: Store
    calculation: Calculation
    stream: SyncStatus
    dataplane: Dataplane
    outcome: Outcome
    metrics: Metrics
    complete: bool
    ready: dict[Family, bool]
    failures: dict[Family, str]
    recent: RecentFailures
    inbox: Inbox
    adopted: int
    left_over: int
    started: float
    last_progress: float
    mtu: int

    @property
    def settings(self) -> Settings: ...

    def doubt(self) -> str: ...

    @property
    def backend(self) -> Backend: ...

    def families(self) -> tuple[Family, ...]: ...


def live(agent: Subject) -> tuple[bool, str]:
    """Whether the loop makes progress, for ``/liveness``."""
    stuck = time.monotonic() - agent.last_progress
    return (False, f"no progress for {stuck:.0f} s") if stuck > STUCK_SECONDS else (True, "live")


def is_ready(agent: Subject) -> tuple[bool, str]:
    """Whether the first complete apply succeeded in every supported family, for ``/readiness``."""
    missing = [str(family) for family in agent.families() if not agent.ready.get(family)]
    return (
        (False, f"not ready: {', '.join(missing)}; {agent.doubt() or agent.stream.reason}")
        if missing
        else (True, "ready")
    )


def summary(agent: Subject) -> dict[str, Any]:
    """The agent's state as it is published on ``status/<node>``."""
    state, reason = _state(agent)
    problems = [f"{family}: {why}" for family, why in agent.failures.items()]
    problems += [f"{key}: {why}" for key, why in agent.outcome.problems.items()]
    return {
        "state": state,
        "reason": reason,
        "got": agent.stream.got,
        "want": agent.stream.want,
        "families": {str(one.version): {"ready": agent.ready.get(one, False)} for one in agent.families()},
        "backend": agent.backend.value,
        "mtu": agent.mtu,
        "endpoints": len(agent.outcome.reported),
        "problems": problems[:MAX_PROBLEMS],
        "problem_count": len(problems),
        "version": __version__,
        "hostname": agent.settings.nodename,
        "ts": time.time(),
    }


def _state(agent: Subject) -> tuple[str, str]:
    stream = agent.stream
    state, reason = stream.state.value, stream.reason
    if stream.state is SyncState.CONNECTING and not agent.complete:
        state = "starting"
    elif doubt := agent.doubt():
        return SyncState.DEGRADED.value, doubt
    elif stream.state is SyncState.IN_SYNC and not is_ready(agent)[0]:
        families = [f"{family} is not programmed: {why}" for family, why in agent.failures.items()]
        reason = "; ".join(families) or "the snapshot is complete; the kernel is being programmed"
        state = SyncState.RESYNC.value
    elif stream.state is SyncState.IN_SYNC and agent.inbox.limit.left_out:
        state, reason = SyncState.DEGRADED.value, agent.inbox.limit.reason()
    if agent.adopted and not agent.complete:
        reason += f"; {agent.adopted} entries that the kernel had at the start stay until the stream is complete"
    return state, reason


def doubt(agent: Subject) -> str:
    """What to say of a stream that has nothing beside a kernel that has something."""
    return (
        f"the resource directory {agent.settings.resource_directory} has no objects, but the kernel has "
        f"{agent.left_over} routes, neighbours and set members that an earlier run made: they stay; put the manifests "
        "back, or, if nothing is meant to be there, stop the agent and run `felixpy cleanup`"
    )


def details(agent: Subject, unserved: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """The same with tables, latencies, what is degraded and the last failures, for ``felixpy status``.

    ``unserved`` are pages that are switched on and cannot be served, with the reason.
    """
    tables = {}
    refused: list[str] = []
    for table in agent.dataplane.tables():
        tables[table.name] = {
            "wanted": len(table.desired),
            "kernel": len(table.committed),
            "dirty": len(table.dirty),
            "waiting": len(table.waiting),
            "failed": len(table.refused),
            "repaired": table.drifted,
        }
        for key, why in list(table.refused.items())[: MAX_REFUSED - len(refused)]:
            refused.append(f"{table.name} {key}: {why.reason}")
    said = summary(agent)
    families = {
        str(one.version): {"ready": agent.ready.get(one, False), "reason": agent.failures.get(one, "")}
        for one in agent.families()
    }
    return {
        **said,
        "families": families,
        "adopted": agent.adopted,
        "uptime_seconds": round(time.monotonic() - agent.started, 1),
        "last_progress_seconds": round(time.monotonic() - agent.last_progress, 3),
        "objects": {
            "endpoints": len(agent.store.endpoints),
            "pools": len(agent.store.pools),
            "nodes": len(agent.store.nodes),
            "blocks": len(agent.store.blocks),
            "left_out": len(agent.inbox.limit.left_out),
            "remote_endpoints": len(agent.store.remote),
            "policies": sum(len(agent.store.policy[kind]) for kind, holds in POLICY_KINDS.items() if holds is Policy),
            "active_policies": agent.calculation.policy.counts()["policies"],
            "active_selectors": agent.calculation.policy.counts()["selectors"],
            "open_endpoints": sum(1 for _ in agent.calculation.policy.open_endpoints()),
        },
        "tables": tables,
        "latency_ms": {
            "arrival to kernel": agent.outcome.programmed.summary_ms(),
            "publish to kernel": agent.outcome.published.summary_ms(),
        },
        "degraded": _degraded(agent, said, [*refused, *(f"{what}: {why}" for what, why in unserved.items())]),
        "failures": [failure._asdict() for failure in agent.recent.all()],
    }


def _degraded(agent: Subject, said: Mapping[str, Any], refused: list[str]) -> list[str]:
    """What does not work now, and why."""
    found = [f"{family} is not programmed: {why}" for family, why in agent.failures.items()]
    if said["state"] != SyncState.IN_SYNC.value:
        found.append(f"stream: {said['state']}: {said['reason']}" if said["reason"] else f"stream: {said['state']}")
    if agent.stream.peers and agent.calculation.policy.counts()["selectors"]:
        found.append(
            f"policy: the endpoints of other nodes are not known ({agent.stream.peers}): rules that select endpoints "
            "find those of this node alone"
        )
    return found + refused


def health(agent: Subject) -> dict[str, Any]:
    """Components for the probes' details: each with whether it is well, and a word."""
    alive, ready = live(agent), is_ready(agent)
    stream = agent.stream
    got = f"{stream.state.value} {stream.got}/{stream.want} {stream.reason}".strip()
    components = {
        "loop": {"ok": alive[0], "detail": f"last progress {time.monotonic() - agent.last_progress:.1f} s ago"},
        "stream": {"ok": stream.state is SyncState.IN_SYNC, "detail": got},
    }
    for family in agent.families():
        programmed = agent.ready.get(family, False)
        word = agent.failures.get(family, "programmed" if programmed else "no complete apply yet")
        components[str(family)] = {"ok": programmed and family not in agent.failures, "detail": word}
    return {"live": alive[0], "ready": ready[0], "components": components}
