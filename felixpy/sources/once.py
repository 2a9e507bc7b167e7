"""Look at a source once: for ``plan`` and ``show``, which need the snapshot and not the stream.

It must never be used with the running agent's own MQTT client id (``MqttSource(…, observer=True)``).
"""

from __future__ import annotations

import asyncio

from felixpy.model.resources import ResourceKey, Update
from felixpy.sources import Source, SyncState, SyncStatus
from felixpy.sources.ending import end

LEAVE_SECONDS = 1.0


class Collected:
    """A sink that remembers the latest update of each key; ``status`` is the latest state of the stream."""

    def __init__(self) -> None:
        self.updates: dict[ResourceKey, Update] = {}
        self.unknown: list[str] = []
        self.status = SyncStatus(SyncState.CONNECTING)
        self.settled = asyncio.Event()

    def update(self, update: Update) -> None:
        self.updates[update.key] = update

    def sync_status(self, status: SyncStatus) -> None:
        self.status = status
        if status.state in (SyncState.IN_SYNC, SyncState.DEGRADED):
            self.settled.set()

    def ignored(self, what: str) -> None:
        self.unknown.append(what)


async def read_once(source: Source, timeout_seconds: float) -> Collected:
    """Run a source until its snapshot is complete, or known to be incomplete, or time is up (see ``status``)."""
    sink = Collected()
    task = asyncio.create_task(source.run(sink))
    settled = asyncio.create_task(sink.settled.wait())
    try:
        await asyncio.wait((task, settled), timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    finally:
        await end((task, settled), LEAVE_SECONDS)
    return sink
