"""A file per endpoint that the kernel carries, where CNI plugins wait for it, as Felix writes them.

    <EndpointStatusPathPrefix>/endpoint-status/k8s default%2Fpod-a eth0  →  {"ifaceName": …, "ipv4Nets": […], …}

Invariant: a file is there only while its endpoint is up in the kernel; each is written whole or not at all. Nothing is
touched before the first complete apply; then what is stale goes. Failures are said once and tried again; they stop
nothing. The cost of an update does not grow with the number of files.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import structlog

from felixpy.model.net import Family
from felixpy.model.resources import ResourceKey, WorkloadEndpoint

FOLDER = "endpoint-status"
RETRY_SECONDS = 10.0
FILES_PER_FLUSH = 50
"""So that many endpoints at once never hold an update back for long."""
_TEMPORARY = ".felixpy-"
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

    def __init__(self, prefix: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = prefix / FOLDER if prefix else None
        self._clock = clock
        self._wanted: dict[str, bytes] = {}
        self._names: dict[ResourceKey, str] = {}
        self._dirty: set[str] = set()
        self._started = self._listed = False
        self._failure = ""
        self._retry_at = 0.0
        self._log = structlog.get_logger("felixpy")

    def set(self, key: ResourceKey, endpoint: WorkloadEndpoint | None) -> None:
        """Note that an endpoint is up in the kernel, or (None) that it is not or no longer."""
        name = file_name(endpoint) if endpoint else ""
        old = self._names.pop(key, "")
        if old and old != name:
            self._wanted.pop(old, None)
            self._mark(old)
        if name and endpoint:
            self._names[key] = name
            text = content(endpoint)
            if self._wanted.get(name) != text:
                self._wanted[name] = text
                self._mark(name)

    def _mark(self, name: str) -> None:
        if self._folder is not None:
            self._dirty.add(name)

    def start(self) -> None:
        """The first complete apply is over: what is there and not wanted, or different, is mended from now on."""
        self._started = True

    def use(self, prefix: Path | None) -> None:
        """Take another prefix; the old files go."""
        folder = prefix / FOLDER if prefix else None
        if folder == self._folder:
            return
        if self._folder is not None and self._started:
            for name in self._wanted:  # all at once: nobody will look at this folder again
                with contextlib.suppress(OSError):
                    (self._folder / name).unlink()
        self._folder, self._dirty = folder, set(self._wanted) if folder else set()
        self._listed, self._retry_at = False, 0.0

    def flush(self) -> None:
        """Write some of what has changed (``next_retry`` says whether more is due); after a failure wait first."""
        is_due = self._started and (self._dirty or not self._listed)
        if self._folder is None or not is_due or self._clock() < self._retry_at:
            return
        try:
            if not self._listed:
                self._dirty.update(self._present())
                self._listed = True
            if not self._dirty:
                return
            self._folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            for _ in range(min(FILES_PER_FLUSH, len(self._dirty))):
                name = self._dirty.pop()  # walking over a set that was large costs its former size
                try:
                    self._write(name)
                except OSError:
                    self._dirty.add(name)
                    raise
        except OSError as error:
            self._fail(error)
            return
        if self._failure:
            self._log.info("endpoint-status files are written again", was=self._failure)
            self._failure = ""

    def next_retry(self) -> float:
        """When something is due again, on the clock; infinity if nothing is."""
        waits = self._folder is not None and self._started and (self._dirty or not self._listed)
        return self._retry_at if waits else float("inf")

    def _present(self) -> list[str]:
        assert self._folder is not None
        if not self._folder.exists():
            return []
        return [entry.name for entry in os.scandir(self._folder) if entry.is_file(follow_symlinks=False)]

    def _write(self, name: str) -> None:
        assert self._folder is not None
        path, text = self._folder / name, self._wanted.get(name)
        if text is None:
            path.unlink(missing_ok=True)
            return
        if path.is_file() and path.read_bytes() == text:
            return
        temporary = self._folder / f"{_TEMPORARY}{os.getpid()}"
        temporary.write_bytes(text)
        temporary.chmod(0o644)
        temporary.replace(path)

    def _fail(self, error: OSError) -> None:
        reason = f"{self._folder}: {error.strerror or error}"
        self._retry_at = self._clock() + RETRY_SECONDS
        if reason != self._failure:
            self._failure = reason
            self._log.warning("endpoint-status files cannot be written; will be tried again", reason=reason)
