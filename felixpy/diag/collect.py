"""What goes into the archive, part by part: each a name and the bytes, or why there are none."""

from __future__ import annotations

import asyncio
import importlib.metadata
import io
import json
import platform
import sys
import tarfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from felixpy import __version__
from felixpy.check.facts import read_facts
from felixpy.check.judge import judge, wanted_families
from felixpy.config import Settings, SettingsSource
from felixpy.config.table import shown
from felixpy.dataplane.iptables.tools import find_tool, tool_name
from felixpy.explain.facts import variants_in_use
from felixpy.model.net import FAMILIES
from felixpy.observe.control import ControlError, ask
from felixpy.plain_error import PlainError
from felixpy.sources import Source

COMMAND_SECONDS = 20.0
MAX_PART_BYTES = 64 << 20
CHECK_SECONDS = 5.0
LOG_LINES = "5000"
SYSCTLS = ("ipv4/ip_forward", "ipv4/conf/*/forwarding", "ipv4/conf/*/rp_filter", "ipv4/conf/*/proxy_arp",
           "ipv6/conf/*/forwarding", "ipv6/conf/*/accept_ra", "ipv6/conf/*/disable_ipv6",
           "netfilter/nf_conntrack_count", "netfilter/nf_conntrack_max")  # fmt: skip

COMMANDS: dict[str, tuple[str, ...]] = {
    "kernel/ip-link.txt": ("ip", "-details", "-statistics", "link"),
    "kernel/ip-address.txt": ("ip", "address"),
    "kernel/ip-rule-4.txt": ("ip", "-4", "rule"),
    "kernel/ip-rule-6.txt": ("ip", "-6", "rule"),
    "kernel/ip-route-4.txt": ("ip", "-4", "-details", "route", "show", "table", "all"),
    "kernel/ip-route-6.txt": ("ip", "-6", "-details", "route", "show", "table", "all"),
    "kernel/ip-neighbour.txt": ("ip", "neighbour"),
    "kernel/nft.txt": ("nft", "-a", "list", "ruleset"),
    "kernel/ipset.txt": ("ipset", "save"),
    "kernel/conntrack-4.txt": ("conntrack", "-L", "-f", "ipv4"),
    "kernel/conntrack-6.txt": ("conntrack", "-L", "-f", "ipv6"),
    "log/journal.txt": ("journalctl", "--no-pager", "--unit", "felixpy", "--lines", LOG_LINES, "--output", "short-iso"),
}


class ArchiveError(PlainError):
    """The archive cannot be written: one sentence with path, reason and what to do."""


class Part(NamedTuple):
    """A file of the archive; ``missing`` says why there is none."""

    name: str
    data: bytes = b""
    missing: str = ""


async def collect(settings: Settings, source: Source, sources: Sequence[SettingsSource]) -> list[Part]:
    """Everything that can be had, in order; takes some seconds."""
    parts = [
        await _part("versions.json", _versions),
        await _part("settings.json", lambda: _json(shown(settings))),
        await _part("agent/status.json", lambda: _asked(settings, "status")),
        await _part("agent/settings.json", lambda: _asked(settings, "settings")),
        await _part("agent/metrics.txt", lambda: _asked(settings, "metrics")),
        await _part("check.json", lambda: _check(settings, source, sources)),
        await _part("kernel/sysctl.txt", _sysctls),
    ]
    for name, command in {**COMMANDS, **_iptables()}.items():
        parts.append(await _part(name, lambda command=command: _output(command)))  # type: ignore[misc]
    return parts


def archive(parts: list[Part], path: Path) -> None:
    """Write the parts as a tar.gz that only its owner can read, whole or not at all.

    Raises:
        ArchiveError: the file cannot be written.
    """
    now = int(time.time())
    missing = "".join(f"{part.name}: {part.missing}\n" for part in parts if part.missing)
    try:
        path.touch(mode=0o600, exist_ok=False)
    except OSError as error:
        raise _unwritten(path, error) from None
    try:
        with tarfile.open(path, "w:gz") as file:
            for name, data in [(part.name, part.data) for part in parts if not part.missing] + [
                ("missing.txt", missing.encode())
            ]:
                info = tarfile.TarInfo(f"{path.name.removesuffix('.tar.gz')}/{name}")
                info.size, info.mtime, info.mode = len(data), now, 0o600
                file.addfile(info, io.BytesIO(data))
    except BaseException as error:
        path.unlink(missing_ok=True)  # half an archive is taken for one
        if isinstance(error, OSError):
            raise _unwritten(path, error) from None
        raise


def check_place(path: Path) -> None:
    """Look before anything is collected whether an archive can be made there.

    Raises:
        ArchiveError: it cannot.
    """
    if path.exists():
        raise ArchiveError(f"{path} exists already; name another file with --output")
    if not path.parent.is_dir():
        raise ArchiveError(f"{path}: there is no folder {path.parent}; make it, or name another file with --output")


def _unwritten(path: Path, error: OSError) -> ArchiveError:
    return ArchiveError(f"{path} cannot be written: {error.strerror or error}; name another file with --output")


async def _part(name: str, make: Callable[[], Awaitable[bytes]]) -> Part:
    """A part, whatever goes wrong with it."""
    try:
        return Part(name, (await make())[:MAX_PART_BYTES])
    except Exception as error:  # noqa: BLE001 - each part stands alone, and an archive without one is better than none
        return Part(name, missing=str(error) or type(error).__name__)


async def _json(value: object) -> bytes:
    return json.dumps(value, indent=1).encode()


async def _versions() -> bytes:
    packages = {}
    for name in (
        "aiomqtt",
        "aiohttp",
        "msgspec",
        "paho-mqtt",
        "prometheus-client",
        "python-iptables",
        "structlog",
    ):
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = ""
    os_release = Path("/etc/os-release")
    return await _json({
        "felixpy": __version__,
        "python": sys.version,
        "kernel": platform.release(),
        "machine": platform.machine(),
        "os": os_release.read_text() if os_release.exists() else "",
        "packages": packages,
    })  # fmt: skip


async def _asked(settings: Settings, verb: str) -> bytes:
    """The running agent's answer.

    Raises:
        ControlError: none answers.
    """
    said = await ask(settings.control_socket, verb)
    return said.encode() if isinstance(said, str) else await _json(said)


async def _check(settings: Settings, source: Source, sources: Sequence[SettingsSource]) -> bytes:
    facts = await read_facts(settings, source, CHECK_SECONDS, sources)
    findings = judge(facts.settings, facts, wanted_families(facts.settings, ""))
    return await _json([one._asdict() for one in findings])


async def _sysctls() -> bytes:
    lines = []
    for pattern in SYSCTLS:
        for path in sorted(Path("/proc/sys/net").glob(pattern)):
            try:
                lines.append(f"{path.relative_to('/proc/sys')} = {path.read_text().strip()}")
            except OSError as error:
                lines.append(f"{path}: {error.strerror}")
    return "\n".join(lines).encode() + b"\n"


def _iptables() -> dict[str, tuple[str, ...]]:
    """The -save tools of variants that hold something: the others would bring their tables into being."""
    found: dict[str, tuple[str, ...]] = {}
    for family in FAMILIES:
        try:
            in_use = variants_in_use(family)
        except OSError:
            continue
        for variant, used in in_use.items():
            if used:
                name = tool_name(family, variant, "save")
                found[f"kernel/{name}.txt"] = (name, "-c")
    return found


async def _output(command: tuple[str, ...]) -> bytes:
    """Standard output of a command.

    Raises:
        ControlError: it is not installed, failed, or did not end in time.
    """
    path = find_tool(command[0])
    if path is None:
        raise ControlError(f"{command[0]} is not installed")
    process = await asyncio.create_subprocess_exec(
        path,
        *command[1:],
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(COMMAND_SECONDS):
            output, error = await process.communicate()
    except TimeoutError:
        raise ControlError(f"{' '.join(command)} did not end within {COMMAND_SECONDS:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise ControlError(f"{' '.join(command)}: {error.decode(errors='replace').strip()}")
    return output
