"""How far a stream's snapshot has come: what protocols find out and sources tell."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class SyncState(StrEnum):
    """How far a source's snapshot has come."""

    CONNECTING = "connecting"
    RESYNC = "resync"
    IN_SYNC = "in-sync"
    DEGRADED = "degraded"


class SyncStatus(Struct, frozen=True):
    """State of the stream: ``got`` of ``want`` objects (0 of 0 if unknown), and why it is not in sync.

    ``bare``: the source holds nothing and never did, and nothing proves that this is meant: a folder that is not
    mounted looks the same. ``peers``: why the endpoints of other nodes are not known; empty if they are.
    """

    state: SyncState
    reason: str = ""
    got: int = 0
    want: int = 0
    bare: bool = False
    peers: str = ""
