"""A file per endpoint that the kernel carries, where CNI plugins wait for it, as Felix writes them.

    <EndpointStatusPathPrefix>/endpoint-status/k8s default%2Fpod-a eth0  →  {"ifaceName": …, "ipv4Nets": […], …}

Invariant: a file is there only while its endpoint is up in the kernel; each is written whole or not at all. Nothing is
touched before the first complete apply, but for files of an earlier boot, whose endpoints are gone; then what is stale
goes, also in folders of ours that are in use no more (``felixpy.observe.endpoint_folders``). Failures are said once and
tried again; they stop nothing, and one of a single file no other file. The cost of an update does not grow with the
number of files.
"""

from __future__ import annotations

import errno
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import structlog

from felixpy.model.net import Family
from felixpy.model.resources import ResourceKey, WorkloadEndpoint
from felixpy.observe.endpoint_folders import (
    FOLDER,
    Folders,
    empty,
    files_in,
    is_of_earlier_boot,
    is_ours,
    is_same,
    write_whole,
)
from felixpy.standing import Standing

RETRY_SECONDS = 10.0
FILES_PER_FLUSH = 50
"""So that many endpoints at once never hold an update back for long."""
OF_ONE_FILE = {errno.ENAMETOOLONG, errno.EISDIR, errno.EBUSY, errno.EINVAL}
"""Of its name or of what stands in its place. Any other failure (a full disk, no rights) is the folder's, and to try
each of ten thousand files would be in vain.
"""
UNWRITTEN = "endpoint-status files cannot be written; will be tried again"
_SEPARATOR = re.compile(r"(?<!-)-(?!-)")


def file_name(endpoint: WorkloadEndpoint) -> str:
    """``<orchestrator> <workload> <endpoint>``, each path-escaped; empty if the object's name does not tell them.

    Calico names an endpoint ``<node>-<orchestrator>-<workload>-<endpoint>`` with every dash inside a part doubled.
    """
    parts = [part.replace("--", "-") for part in _SEPARATOR.split(endpoint.key.name)]
    if len(parts) != 4:
        return ""
    _, orchestrator, workload, interface = parts
    if orchestrator == "k8s":
        workload = f"{endpoint.key.namespace}/{workload}"
    return " ".join(quote(part, safe="$&+=:@") for part in (orchestrator, workload, interface))


def content(endpoint: WorkloadEndpoint) -> bytes:
    """What the file says; what is empty is left out."""
    nets = {family: [str(net) for net in endpoint.addresses if net.family is family] for family in Family}
    said = {
        "ifaceName": endpoint.interface,
        "mac": endpoint.mac.hex(":") if endpoint.mac else "",
        "ipv4Nets": nets[Family.V4],
        "ipv6Nets": nets[Family.V6],
    }
    return json.dumps({name: value for name, value in said.items() if value}).encode()


class EndpointFiles:
    """The files of this node's endpoints; ``prefix`` None: off. ``set`` notes, ``flush`` writes."""

    def __init__(
        self,
        prefix: Path | None,
        clock: Callable[[], float] = time.monotonic,
        folders: Folders | None = None,
        standing: Standing | None = None,
    ) -> None:
        self._folders = folders or Folders()
        self._folder = prefix / FOLDER if prefix else None
        self._clock = clock
        self._wanted: dict[str, bytes] = {}
        self._names: dict[ResourceKey, str] = {}
        self._dirty: set[str] = set()
        self._aside: dict[str, str] = {}
        """Files that cannot be written while others can, and why; tried again at ``_aside_until``."""
        self._aside_until = 0.0
        self.told: Callable[[ResourceKey], None] = lambda key: None
        """Is told of an endpoint whose ``reason_of`` changed."""
        self._keys: dict[str, ResourceKey] = {}
        self._standing = standing or Standing(level="warning")
        self._started, self._listed, self._claimed = False, self._folder is None, False
        self._left: list[Path] = []
        self._doomed: list[Path] = []
        self._retry_at = 0.0
        self._log = structlog.get_logger("felixpy")

    def set(self, key: ResourceKey, endpoint: WorkloadEndpoint | None) -> None:
        """Note that an endpoint is up in the kernel, or (None) that it is not or no longer."""
        name = file_name(endpoint) if endpoint else ""
        old = self._names.pop(key, "")
        if old and old != name:
            self._wanted.pop(old, None)
            self._keys.pop(old, None)
            self._mark(old)
        if name and endpoint:
            self._names[key], self._keys[name] = name, key
            text = content(endpoint)
            if self._wanted.get(name) != text:
                self._wanted[name] = text
                self._mark(name)

    def reason_of(self, key: ResourceKey) -> str:
        """Why an endpoint has no file though others have theirs; empty if it has, or needs none."""
        reason = self._aside.get(self._names.get(key, ""), "")
        return f"its endpoint-status file cannot be written: {reason}" if reason else ""

    def _tell(self, name: str) -> None:
        if name in self._keys:
            self.told(self._keys[name])

    def _mark(self, name: str) -> None:
        if self._folder is not None:
            self._dirty.add(name)

    def forget_earlier_boot(self) -> None:
        """The agent starts: what was up before the machine started anew is not."""
        folders = self._folders.ours() + ([self._folder] if self._folder else [])
        for folder in filter(is_of_earlier_boot, folders):
            try:
                empty(self._folders, folder)
            except OSError as error:
                reason = f"{folder}: {error.strerror or error}"
                self._log.warning("endpoint-status files of an earlier boot remain; remove that folder", reason=reason)

    def start(self) -> None:
        """The first complete apply is over: what is there and not wanted, or different, is mended from now on."""
        if not self._started:
            self._started = True
            self._left += self._folders.ours(besides=self._folder)

    def use(self, prefix: Path | None) -> None:
        """Take another prefix; the old files go."""
        folder = prefix / FOLDER if prefix else None
        if folder == self._folder:
            return
        if self._folder is not None and self._started:
            self._left.append(self._folder)
        self._doomed = []
        aside, self._aside = self._aside, {}
        for name in aside:
            self._tell(name)
        self._folder, self._dirty = folder, set(self._wanted) if folder else set()
        self._listed, self._claimed, self._retry_at = folder is None, False, 0.0

    def flush(self) -> None:
        """Do some of what is to be done (``next_retry`` says whether more is due); after a failure wait first."""
        now = self._clock()
        if self._aside and now >= self._aside_until:
            self._dirty.update(self._aside)
            self._aside_until = now + RETRY_SECONDS
        if not self._is_due or now < self._retry_at:
            return
        if self._left:
            self._leave(self._left[-1])
        if self._folder is None:
            return
        try:
            self._mend(self._folder)
        except OSError as error:
            self._fail(error)
            return
        self._standing.works(UNWRITTEN)

    @property
    def _is_due(self) -> bool:
        return self._started and bool(self._dirty or self._left or not self._listed)

    def _leave(self, folder: Path) -> None:
        """Remove some files of a folder that is in use no more; one that is not ours any more is let be."""
        in_use = self._folder is not None and is_same(folder, self._folder)
        try:
            if is_ours(folder) and not in_use:
                self._doomed = self._doomed or files_in(folder)
                for path in self._doomed[:FILES_PER_FLUSH]:
                    path.unlink(missing_ok=True)
                del self._doomed[:FILES_PER_FLUSH]
                if self._doomed:
                    return
                self._folders.release(folder)
        except OSError as error:
            reason = f"{folder}: {error.strerror or error}"
            self._log.warning("endpoint-status files of earlier settings remain; remove that folder", reason=reason)
        self._doomed = []
        self._left.remove(folder)

    def _mend(self, folder: Path) -> None:
        if not self._listed:
            self._dirty.update(path.name for path in files_in(folder))
            self._listed = True
        if not folder.exists():
            if not self._dirty:
                return
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._claimed = False
        if not self._claimed:
            self._folders.claim(folder)
            self._claimed = True
        for _ in range(min(FILES_PER_FLUSH, len(self._dirty))):
            name = self._dirty.pop()  # walking over a set that was large costs its former size
            try:
                self._write(folder / name)
            except OSError as error:
                if error.errno not in OF_ONE_FILE:
                    self._dirty.add(name)
                    raise
                self._set_aside(folder / name, error)
                continue
            if self._aside and (was := self._aside.pop(name, "")):
                self._log.info("an endpoint-status file is right again", was=was)
                self._tell(name)

    def _set_aside(self, path: Path, error: OSError) -> None:
        if not self._aside:
            self._aside_until = self._clock() + RETRY_SECONDS
        reason = f"{path}: {error.strerror or error}"
        if error.errno == errno.ENAMETOOLONG:
            reason += "; give the workload or its endpoint a shorter name, for a CNI plugin may wait for that file"
        if self._aside.get(path.name) != reason:
            self._aside[path.name] = reason
            self._tell(path.name)
            self._log.warning("an endpoint-status file cannot be written; will be tried again", reason=reason)

    def next_retry(self) -> float:
        """When something is due again, on the clock; infinity if nothing is."""
        aside_at = self._aside_until if self._started and self._aside else float("inf")
        return min(aside_at, self._retry_at if self._is_due else float("inf"))

    def _write(self, path: Path) -> None:
        text = self._wanted.get(path.name)
        if text is None:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                if error.errno not in (errno.ENAMETOOLONG, errno.EISDIR):  # it never was, or is not ours
                    raise
        elif not (path.is_file() and path.read_bytes() == text):
            write_whole(path, text)

    def _fail(self, error: OSError) -> None:
        self._retry_at = self._clock() + RETRY_SECONDS
        self._standing.fails(UNWRITTEN, f"{self._folder}: {error.strerror or error}")
