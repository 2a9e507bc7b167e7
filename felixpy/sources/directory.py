"""The directory source: a watched directory of manifests, read as a whole each time something in it changes.

Invariant: the sink holds what the directory says. A bad object counts as absent and is reported; so is a document that
is no object of ours, which leaves the others as they are. What cannot be read or parsed says nothing about the objects
of its file, so they stay as they were. A directory that is missing, from the start or
later, removes nothing. Where two files define one key, the first file by name wins. It must never block the event loop
for long: files are read in a thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import NamedTuple

import structlog
from msgspec import Struct, field
from watchfiles import awatch

from felixpy.model.documents import SUFFIXES, AnyDocument, BadDocument, Document, load_directory
from felixpy.model.resources import Absent, Resource, ResourceKey, Update
from felixpy.sources import Sink, SyncState, SyncStatus

log = structlog.get_logger(__name__)

SCAN_SECONDS = 3.0
"""The kernel's notifications are the fast way, looking at the files the sure one (network file systems notify none)."""

SETTLE_MILLISECONDS = STEP_MILLISECONDS = 100
"""watchfiles looks that often for what the kernel has told: at 10 ms the idle agent took 0.8 % of a processor."""


class Content(NamedTuple):
    """What a directory says of one key."""

    resource: Resource | None
    error: str
    file: str


class Reading(Struct):
    """One pass over a directory.

    ``unreadable`` files (name → why) say nothing about their objects; ``nameless`` are documents that no object can be
    told of.
    """

    content: dict[ResourceKey, Content] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    nameless: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


Signature = tuple[tuple[str, int, int, int, int], ...]


class DirectorySource:
    """Source of the resources in the manifests of one directory (not of its subdirectories)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: dict[ResourceKey, Content] = {}
        self._reported: set[str] = set()
        self._was_filled = False
        self._status = SyncStatus(SyncState.CONNECTING)

    async def run(self, sink: Sink) -> None:
        """Deliver for ever."""
        signature: Signature | None = None
        changed = asyncio.Event()
        watcher: asyncio.Task[None] | None = None
        try:
            while True:
                changed.clear()
                latest = await asyncio.to_thread(_signature, self._path)
                if isinstance(latest, OSError):
                    self._tell(sink, self._missing(latest))
                elif latest != signature:
                    if signature is None:
                        # A watch follows the directory it was made for, not a new one of the same name.
                        await _end(watcher)
                        watcher = asyncio.create_task(self._watch(changed))
                    self._take(await asyncio.to_thread(read, self._path), sink)
                signature = None if isinstance(latest, OSError) else latest
                try:
                    async with asyncio.timeout(SCAN_SECONDS if signature is not None else SCAN_SECONDS / 3):
                        await changed.wait()
                except TimeoutError:
                    pass
        finally:
            await _end(watcher)

    async def _watch(self, changed: asyncio.Event) -> None:
        while True:
            try:
                async for _ in _changes(self._path):
                    changed.set()
            except (OSError, RuntimeError) as error:
                log.debug("cannot watch the resource directory; scanning it", path=str(self._path), reason=str(error))
            await asyncio.sleep(SCAN_SECONDS)

    def _missing(self, error: OSError) -> SyncStatus:
        kept = f"its {len(self._held)} objects are kept as they were"
        if not isinstance(error, FileNotFoundError):
            reason = f"the resource directory {self._path} cannot be read: {error.strerror}; "
            reason += kept if self._held else "check FELIX_RESOURCEDIRECTORY and its permissions"
        elif self._held:
            reason = f"the resource directory {self._path} is gone; {kept}"
        else:
            reason = f"the resource directory {self._path} does not exist; create it and put manifests into it"
        return SyncStatus(SyncState.DEGRADED, reason)

    def _take(self, reading: Reading, sink: Sink) -> None:
        """Deliver the difference to what the sink holds."""
        for what in reading.ignored:
            sink.ignored(what)
        self._log_once(reading.problems)
        now = time.monotonic_ns()
        silent = set(reading.unreadable)
        if str(self._path) in silent:  # lost since its files were listed
            silent.update(held.file for held in self._held.values())
        for key, held in list(self._held.items()):
            if key not in reading.content and held.file not in silent:
                del self._held[key]
                sink.update(Update(key, None, received_ns=now))
        for key, content in reading.content.items():
            held_before = self._held.get(key)
            if held_before and held_before.file in silent and held_before.file < content.file:
                continue  # the first file defines it still, for all that is known
            self._held[key] = content
            if held_before is None or held_before[:2] != content[:2]:
                sink.update(Update(key, content.resource, content.error, now))
        self._tell(sink, self._judge(reading))

    def _judge(self, reading: Reading) -> SyncStatus:
        got = len(self._held)
        if not reading.unreadable:
            told = _summary(reading.nameless)
            self._was_filled = self._was_filled or got > 0
            return SyncStatus(SyncState.IN_SYNC, told, got, got, bare=not self._was_filled)
        reasons = "; ".join(reading.unreadable.values())
        return SyncStatus(SyncState.DEGRADED, f"objects of unreadable files are unknown: {reasons}", got, got)

    def _log_once(self, problems: Iterable[str]) -> None:
        current = set(problems)
        for problem in sorted(current - self._reported):
            log.warning("bad document", reason=problem)
        self._reported = current

    def _tell(self, sink: Sink, status: SyncStatus) -> None:
        if status != self._status:
            self._status = status
            sink.sync_status(status)


async def _end(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _changes(path: Path) -> AsyncIterator[None]:
    """Yield when something in the directory has changed and a short time has passed without more."""
    watch = awatch(path, recursive=False, debounce=SETTLE_MILLISECONDS, step=STEP_MILLISECONDS, watch_filter=None)
    async for _ in watch:
        yield


def _summary(nameless: list[str]) -> str:
    """What is left out of a directory that is complete all the same."""
    if not nameless:
        return ""
    more = f"; and {len(nameless) - 1} more" if len(nameless) > 1 else ""
    return f"left out: {nameless[0]}{more}"


def _signature(path: Path) -> Signature | OSError:
    """Names, sizes, inodes and times of the manifests, or why the directory cannot be read.

    Both times: chmod and chown change the second one only, and make a file readable.
    """
    try:
        files = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES)
    except OSError as error:
        return error
    found = []
    for file in files:
        try:
            stat = file.stat()
        except OSError:
            continue  # gone since it was listed: the next scan sees that
        found.append((file.name, stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns))
    return tuple(found)


def read(path: Path) -> Reading:
    """Read a directory once."""
    reading = Reading()
    for document in load_directory(path, reading.ignored.append):
        _add(reading, document)
    return reading


def _add(reading: Reading, document: AnyDocument) -> None:
    if isinstance(document, BadDocument):
        reading.problems.append(str(document))
        if document.key is None:
            if document.unread:
                reading.unreadable.setdefault(document.origin, str(document))
            else:
                reading.nameless.append(str(document))
            return
        _put(reading, document.key, Content(None, document.reason, document.origin), document)
    elif document.resource is not None:
        resource = None if isinstance(document.resource, Absent) else document.resource
        _put(reading, document.resource.key, Content(resource, "", document.origin), document)


def _put(reading: Reading, key: ResourceKey, content: Content, document: Document | BadDocument) -> None:
    first = reading.content.setdefault(key, content)
    if first is not content:
        problem = f"{document.origin}, document {document.index}: {key} is already defined in {first.file} and left out"
        reading.problems.append(problem)
        reading.ignored.append(f"second definition of {key}")
