"""Where updates come from. A source delivers updates and says when it has delivered a whole snapshot.

A source owns mark and sweep: when a snapshot is complete it emits an absence for every key that it delivered
earlier (in this process) and that the snapshot no longer holds. It never touches the kernel or the store.
"""

from __future__ import annotations

from typing import Protocol

from felixpy.model.resources import Update
from felixpy.model.sync import SyncState, SyncStatus

__all__ = ["Sink", "Source", "SyncState", "SyncStatus"]


class Sink(Protocol):
    """Takes what a source delivers. Both calls return at once; the latest update of a key wins."""

    def update(self, update: Update) -> None: ...

    def sync_status(self, status: SyncStatus) -> None: ...

    def ignored(self, what: str) -> None:
        """Count an unknown kind, topic or field, e.g. ``"kind NetworkPolicy"``, ``"IPPool field spec.foo"``."""


class Source(Protocol):
    """A stream of updates that runs until it is cancelled and mends its own connection."""

    async def run(self, sink: Sink) -> None: ...
