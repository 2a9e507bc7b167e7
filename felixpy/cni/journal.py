"""The attachments on disk: what survives a restart of the agent, kept as lines that are only ever appended.

    {"felixpy-cni": 1}
    {"add": {"container": …, "interface": …, "addresses": […], …}}
    {"del": ["<container>", "<interface in it>"]}

Invariant: what ``add`` and ``forget`` have returned for is on the disk as a whole (one ``fdatasync``, shared by all
that wait); half a line at the end, which a crash leaves, counts as never written. The file is written anew, by another
one and a rename, at the start and when most of its lines are dead. Whether an attachment still stands is not its
business: a link with its mark does, or not.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import structlog
from msgspec import Struct, field

from felixpy.cni.attachments import Attachment
from felixpy.model.net import Net
from felixpy.netlink.namespaces import in_thread
from felixpy.plain_error import PlainError

log = structlog.get_logger("felixpy")

VERSION = 1
DEAD_LINES = 1000
"""So many lines that say nothing any more may stand in the file before it is written anew."""

Identity = tuple[str, str]
"""Container and the interface's name in it."""


class JournalError(PlainError):
    """The journal cannot be used: one sentence."""


class Content(Struct):
    """What a journal holds. ``damaged``: numbers of lines that cannot be read."""

    attachments: dict[Identity, Attachment] = field(default_factory=dict)
    damaged: list[int] = field(default_factory=list)


def identity(attachment: Attachment) -> Identity:
    return attachment.container_id, attachment.container_interface


class Journal:
    """One file. ``load`` once, then ``add`` and ``forget``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._live: dict[Identity, bytes] = {}
        self._lines = 0
        self._file = -1
        self._size = 0
        self._torn = False
        self._queue: list[tuple[bytes, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    def load(self) -> Content:
        """Read what is there, and write it anew without what is dead. Blocking.

        Raises:
            JournalError: it cannot be read or written, or is of a later version.
        """
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            data = self.path.read_bytes() if self.path.exists() else b""
            content = parse(data)
            self._live = {key: encode_add(one) for key, one in content.attachments.items()}
            if content.damaged:
                aside = self.path.with_name(f"{self.path.name}.damaged")
                aside.write_bytes(data)
                log.error("lines of the journal of attachments cannot be read", path=str(aside), lines=content.damaged)
            self._rewrite()
        except OSError as error:
            raise JournalError(
                f"the journal of attachments {self.path} cannot be used: {error.strerror or error}; "
                "see that CNIStateDirectory can be written"
            ) from None
        return content

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    async def add(self, attachment: Attachment) -> None:
        """Keep an attachment.

        Raises:
            OSError: it is not on the disk.
        """
        line = encode_add(attachment)
        await self._append(line)
        self._live[identity(attachment)] = line

    async def forget(self, key: Identity) -> None:
        """Keep that an attachment is gone.

        Raises:
            OSError: it is not on the disk; after a restart it will be there again, without its interface.
        """
        self._live.pop(key, None)
        await self._append(msgspec.json.encode({"del": key}) + b"\n")

    async def _append(self, line: bytes) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((line, done))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._drain())
        await done

    async def _drain(self) -> None:
        """Write what waits, as long as something does: whatever came during one write shares the next."""
        while self._queue:
            some, self._queue = self._queue, []
            data = b"".join(line for line, _ in some)
            error: OSError | None = None
            try:
                await in_thread(lambda data=data: self._write(data))  # type: ignore[misc]
                self._lines += len(some)
            except OSError as failure:
                error = failure
            for _, done in some:
                if done.cancelled():
                    continue
                if error:
                    done.set_exception(OSError(error.errno, f"{self.path}: {error.strerror or error}"))
                else:
                    done.set_result(None)

    def _write(self, data: bytes) -> None:
        if self._lines > DEAD_LINES + 2 * len(self._live):
            self._rewrite()
        if self._torn:
            os.ftruncate(self._file, self._size)
        self._torn = True
        written = 0
        while written < len(data):
            written += os.pwrite(self._file, data[written:], self._size + written)
        os.fdatasync(self._file)
        self._size += len(data)
        self._torn = False

    def _rewrite(self) -> None:
        """The same content, by a new file."""
        new = self.path.with_name(f".{self.path.name}.new")
        data = b"".join((msgspec.json.encode({"felixpy-cni": VERSION}), b"\n", *self._live.values()))
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            written = 0
            while written < len(data):
                written += os.write(descriptor, data[written:])
            os.fsync(descriptor)
            new.replace(self.path)
            _sync_directory(self.path.parent)
        except OSError:
            os.close(descriptor)
            raise
        self.close()
        self._file, self._size, self._torn, self._lines = descriptor, len(data), False, len(self._live)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- lines --------------------------------------------------------------------------------------------------


def encode_add(attachment: Attachment) -> bytes:
    said = {
        "container": attachment.container_id,
        "ifname": attachment.container_interface,
        "interface": attachment.interface,
        "addresses": [str(address) for address in attachment.addresses],
        "mac": attachment.mac.hex(":") if attachment.mac else "",
        "netns": attachment.netns,
        "namespace": attachment.namespace,
        "pod": attachment.pod,
        "uid": attachment.uid,
        "network": attachment.network,
        "created": attachment.created,
    }
    return msgspec.json.encode({"add": said}) + b"\n"


def parse(data: bytes) -> Content:
    """The content of a journal's bytes.

    Raises:
        JournalError: written by a later version.
    """
    content = Content()
    whole, _, _ = data.rpartition(b"\n")
    for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
        try:
            _take(content, msgspec.json.decode(line))
        except (msgspec.DecodeError, ValueError, KeyError, TypeError, AttributeError):
            content.damaged.append(number)
    return content


def _take(content: Content, said: Mapping[str, Any]) -> None:
    if "felixpy-cni" in said:
        if said["felixpy-cni"] != VERSION:
            raise JournalError(
                f"the journal of attachments has version {said['felixpy-cni']}, this agent knows {VERSION}; "
                "run the version that wrote it"
            )
    elif "add" in said:
        attachment = _attachment(said["add"])
        content.attachments.pop(identity(attachment), None)  # the later one counts, also in the order
        content.attachments[identity(attachment)] = attachment
    else:
        container, interface = said["del"]
        content.attachments.pop((container, interface), None)


def _attachment(said: Mapping[str, Any]) -> Attachment:
    return Attachment(
        namespace=str(said["namespace"]),
        pod=str(said["pod"]),
        uid=str(said["uid"]),
        container_id=str(said["container"]),
        interface=str(said["interface"]),
        addresses=_nets(said["addresses"]),
        mac=bytes.fromhex(said["mac"].replace(":", "")) or None,
        netns=str(said["netns"]),
        container_interface=str(said["ifname"]),
        network=str(said["network"]),
        created=str(said["created"]),
    )


def _nets(texts: Iterable[str]) -> tuple[Net, ...]:
    return tuple(Net.parse(text) for text in texts)
