"""The network configuration that container runtimes read: there while this node can attach containers.

    node ready ──► <CNIConfigFile> written as a whole ──► the runtime calls the plugin, the kubelet says Ready

Invariant: the file is never half; it stays through a restart of the agent, because the plugin waits for it, and while
a source is away that this run has not heard of yet: a node must not become NotReady by that. It goes when a node that
was ready has not been so for ``GONE_SECONDS``, or if it is of an earlier boot of the machine. A file of that name with
another content is replaced: the name is ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from felixpy.cni.errors import CniError
from felixpy.cni.programming import NodeState
from felixpy.cni.request import parse_configuration
from felixpy.model.net import Family
from felixpy.plain_error import PlainError
from felixpy.standing import Standing

GONE_SECONDS = 15.0
LOOK_SECONDS = 1.0
STARTING_SECONDS = 0.05
"""Between two looks until the node is ready for the first time: pods wait for it."""
CANNOT = "the network configuration of containers cannot be written"
PLUGIN = "felixpy-cni"


class BadNetworkConfiguration(PlainError):
    """The file that should be written is none."""


def default_conflist(socket: Path, families: Sequence[Family]) -> bytes:
    """The configuration of a node without a word of anybody: addresses of the families that it has ranges of.

    Its version is one that the node's ``portmap`` knows, which may be older than felixpy: 1.1 came to it with 1.6. A
    runtime takes the newest of ``cniVersions`` for the whole list, so a list of one's own says 1.1 where all its
    plugins know that.

    Raises:
        BadNetworkConfiguration: it has none.
    """
    if not families:
        raise BadNetworkConfiguration("this node has no range of addresses yet: no pod CIDR, no block")
    ipam = {"type": "felixpy-ipam", **{f"assign_ipv{each.version}": each in families for each in Family}}
    plugins = [
        {"type": PLUGIN, "socket": str(socket), "ipam": ipam},
        {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}},
    ]
    conflist = {"name": "k8s-pod-network", "cniVersion": "1.0.0", "plugins": plugins}
    return msgspec.json.format(msgspec.json.encode(conflist), indent=2) + b"\n"


def given_conflist(text: bytes, socket: Path) -> bytes:
    """A configuration that somebody wrote: a list, or one plugin alone, with the socket of this agent put in.

    Calico's plugin types are taken for ours, so that its configurations can be used as they are: that of its manifest,
    too, in which its installer would replace ``__CNI_MTU__``; what the agent finds counts in its place.

    Raises:
        BadNetworkConfiguration: what is wrong with it.
    """
    try:
        written = msgspec.json.decode(text.replace(b"__CNI_MTU__", b"0"))
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadNetworkConfiguration(f"it is not JSON: {error}") from None
    if not isinstance(written, dict):
        raise BadNetworkConfiguration("it must be an object of JSON")
    if "plugins" not in written:
        written = {key: written[key] for key in ("name", "cniVersion") if key in written} | {"plugins": [written]}
    plugins = written["plugins"]
    if not isinstance(plugins, list) or not all(isinstance(one, dict) for one in plugins):
        raise BadNetworkConfiguration("plugins must be a list of objects")
    ours = [_ours(one, socket) if one.get("type") in (PLUGIN, "calico") else one for one in plugins]
    first = next((one for one in ours if one.get("type") == PLUGIN), None)
    if first is None:
        raise BadNetworkConfiguration(f"none of its plugins has the type {PLUGIN}")
    try:
        parse_configuration({**first, "name": written.get("name"), "cniVersion": written.get("cniVersion")})
    except CniError as error:
        raise BadNetworkConfiguration(str(error)) from None
    return msgspec.json.format(msgspec.json.encode({**written, "plugins": ours}), indent=2) + b"\n"


def _ours(plugin: dict[str, Any], socket: Path) -> dict[str, Any]:
    kept = {key: value for key, value in plugin.items() if key not in _CALICO_ONLY}
    return {**kept, "type": PLUGIN, "socket": str(socket)}


_CALICO_ONLY = frozenset(
    {
        "datastore_type", "nodename", "nodename_file_optional", "kubernetes", "policy", "log_level", "log_file_path",
        "log_file_max_size", "log_file_max_age", "log_file_max_count", "etcd_endpoints", "container_settings",
        "policy_setup_timeout_seconds", "endpoint_status_dir",
    }
)  # fmt: skip
"""Fields of Calico's plugin by which it finds the API and its log, for which our plugin has no use."""


class ConflistWriter:
    """Keeps one file. ``content`` gives what it should hold; it is asked again when the file is to be written."""

    def __init__(self, path: Path, state: Callable[[], NodeState], content: Callable[[], bytes]) -> None:
        self._path = path
        self._state = state
        self._content = content
        self._standing = Standing()
        self._unready_since: float | None = None
        self._was_ready = False

    async def run(self) -> None:
        """Until cancelled; the file stays."""
        while True:
            self.look(time.monotonic())
            await asyncio.sleep(LOOK_SECONDS if self._was_ready else STARTING_SECONDS)

    def look(self, now: float) -> None:
        """Write the file, or take it away, if that is due."""
        try:
            if not self._state().cannot:
                self._was_ready, self._unready_since = True, None
                self._write(self._content())
            else:
                self._unready_since = now if self._unready_since is None else self._unready_since
                is_gone = self._was_ready and now - self._unready_since >= GONE_SECONDS
                if is_gone or self._is_of_earlier_boot():
                    self._path.unlink(missing_ok=True)
            self._standing.works(CANNOT)
        except OSError as error:
            self._standing.fails(CANNOT, f"{self._path}: {error.strerror or error}")
        except BadNetworkConfiguration as error:
            self._standing.fails(CANNOT, str(error))

    def _is_of_earlier_boot(self) -> bool:
        try:
            return self._path.stat().st_mtime < _boot_time()
        except FileNotFoundError:
            return False

    def _write(self, content: bytes) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self._path.read_bytes() == content:
                return
        self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        new = self._path.with_name(f".{self._path.name}.new")  # runtimes read by the end of the name
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        new.replace(self._path)


def _boot_time() -> float:
    """When the machine was started, by its clock."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
