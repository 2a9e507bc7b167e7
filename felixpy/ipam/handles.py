"""IPAMHandle objects: in which blocks a handle has addresses, and how many. Calico's tools find blocks by them.

    assign:  block ─► answer, and beside it the handle         (written in the background, tried again until it is)
    release: block ─► handle ─► the journal forgets            (so what a crash leaves is found at the next start)

Invariant: blocks decide who has an address, never a handle. A handle names no block less than it has addresses in for
longer than its write takes; it goes before whoever had the addresses is forgotten.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Mapping

from felixpy.ipam.block import is_deleted
from felixpy.ipam.objects import HANDLES, Conflict, Objects, Stored, Unavailable
from felixpy.model.names import is_name
from felixpy.model.net import Net
from felixpy.standing import Standing

Counts = Mapping[Net, int]
"""Addresses by block."""

MAX_CONFLICTS = 100
AT_ONCE = 4
RETRY_FIRST_SECONDS, RETRY_LAST_SECONDS = 1.0, 60.0
UNWRITTEN = "IPAMHandles cannot be written"


class Handles:
    """The handles of one node, each of which it alone writes."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._wanted: dict[str, tuple[Counts, bool]] = {}
        """What is not written yet, and whether the handle is a new one."""
        self._writing: dict[str, asyncio.Task[None]] = {}
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._retrying: asyncio.Task[None] | None = None
        self._standing = Standing(level="warning")

    def write(self, handle: str, counts: Counts, *, new: bool = False) -> None:
        """See to it that a handle says this. ``new``: there is none yet, as far as is known."""
        self._wanted[handle] = counts, new
        self._begin(handle)

    async def drop(self, handle: str) -> None:
        """A handle has no address any more.

        Raises:
            Unavailable: it may be there still.
        """
        self._wanted.pop(handle, None)
        if (writing := self._writing.get(handle)) is not None:
            await asyncio.wait((writing,))
        await _swap(self._objects, handle, {})

    async def settled(self) -> None:
        """Until everything is written that can be."""
        while some := [*self._writing.values(), *filter(None, (self._retrying,))]:
            await asyncio.wait(some)

    def _begin(self, handle: str) -> None:
        if handle not in self._writing:
            self._writing[handle] = asyncio.ensure_future(self._write(handle))

    async def _write(self, handle: str) -> None:
        try:
            async with self._at_once:
                while (wanted := self._wanted.get(handle)) is not None:
                    await _swap(self._objects, handle, *wanted)
                    if self._wanted.get(handle) is wanted:
                        del self._wanted[handle]
            self._standing.works(UNWRITTEN)
        except Unavailable as error:
            self._standing.fails(UNWRITTEN, str(error))
            if self._retrying is None:
                self._retrying = asyncio.ensure_future(self._retry())
        finally:
            del self._writing[handle]

    async def _retry(self) -> None:
        pause = RETRY_FIRST_SECONDS
        while self._wanted:
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY_LAST_SECONDS)
            for handle in self._wanted:
                self._begin(handle)
            if self._writing:
                await asyncio.wait(self._writing.values())
        self._retrying = None


async def lessen(objects: Objects, handle: str, counts: Counts) -> None:
    """Take addresses out of a handle, for whoever is not the node that has it; with its last one it goes.

    Raises:
        Unavailable
    """
    for _ in range(MAX_CONFLICTS):
        held = await objects.get(HANDLES, handle_name(handle))
        if held is None:
            return
        before = Counter({Net.parse(cidr): int(count) for cidr, count in (held.spec.get("block") or {}).items()})
        if await _write_over(objects, held, +(before - Counter(counts))):
            return
    raise Unavailable(f"the handle {handle} is written by others all the time")


async def _swap(objects: Objects, handle: str, counts: Counts, new: bool = False) -> None:
    """Make a handle say this, none if it has no address, whatever it says now.

    Raises:
        Unavailable
    """
    name = handle_name(handle)
    for _ in range(MAX_CONFLICTS):
        held = None if new else await objects.get(HANDLES, name)
        new = False
        if held is not None:
            if await _write_over(objects, held, counts) and (not counts or not is_deleted(held.spec)):
                return
            continue
        if not counts:
            return
        try:
            await objects.create(HANDLES, name, {"handleID": handle, "block": _told(counts), "deleted": False})
        except Conflict:
            continue
        return
    raise Unavailable(f"the handle {handle} is written by others all the time")


async def _write_over(objects: Objects, held: Stored, counts: Counts) -> bool:
    """Whether it was still the one that was read. One that somebody began to delete goes, whatever it should say."""
    try:
        if not counts or is_deleted(held.spec):
            await objects.delete(HANDLES, held)
        elif held.spec.get("block") != _told(counts):
            await objects.replace(HANDLES, held, {"block": _told(counts)})
    except Conflict:
        return False
    return True


def _told(counts: Counts) -> dict[str, int]:
    return {str(cidr): count for cidr, count in sorted(counts.items())}


def handle_name(handle: str) -> str:
    """The name of a handle's object, as Calico makes it; where that is no name, a hash of the handle."""
    name = handle.lower()
    return name if is_name(name) else f"handle-{hashlib.sha256(handle.encode()).hexdigest()[:32]}"
