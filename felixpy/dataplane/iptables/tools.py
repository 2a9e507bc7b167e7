"""Starts the iptables tools; the only place of the back-ends where a process begins.

Invariant: ``starts`` counts every process, so that tests and metrics can show that there was none. A tool never
outlives the call that started it. Must never be used for set members.
"""

from __future__ import annotations

import asyncio
import shutil
from typing import NamedTuple

from felixpy.dataplane.packet_filter import FilterError
from felixpy.model.net import Family

TIMEOUT_SECONDS = 60.0
# DaemonSets and systemd units run with short search paths.
_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Finished(NamedTuple):
    """How a tool ended; ``error`` is its standard error in one line."""

    code: int
    output: str
    error: str


def find_tool(name: str) -> str | None:
    """Path of a tool, in PATH or the usual system folders."""
    return shutil.which(name) or shutil.which(name, path=_SEARCH_PATH)


def tool_name(family: Family, variant: str, verb: str) -> str:
    """``iptables-nft-save``, ``ip6tables-legacy-save``, …"""
    return f"{'iptables' if family is Family.V4 else 'ip6tables'}-{variant}-{verb}"


class Tools:
    """Runs tools and counts them."""

    def __init__(self) -> None:
        self.starts = 0

    async def run(self, name: str, *arguments: str, stdin: str = "") -> Finished:
        """Run a tool to its end.

        Raises:
            FilterError: it is not installed, or did not end within ``TIMEOUT_SECONDS``.
        """
        path = find_tool(name)
        if path is None:
            raise FilterError(
                f"the program {name} was not found; install the package 'iptables' (apt install iptables)"
                " or choose another back-end with FELIX_NFTABLESMODE or FELIX_IPTABLESBACKEND"
            )
        self.starts += 1
        process = await asyncio.create_subprocess_exec(
            path,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            data = stdin.encode(errors="surrogateescape")
            async with asyncio.timeout(TIMEOUT_SECONDS):  # wait_for of Python 3.11 can swallow a cancellation
                output, error = await process.communicate(data)
        except TimeoutError:
            raise FilterError(
                f"{name} did not end within {TIMEOUT_SECONDS:.0f} s and was killed; run it by hand to see why"
            ) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return Finished(process.returncode or 0, _decode(output), " ".join(_decode(error).split()))


def _decode(data: bytes) -> str:
    return data.decode(errors="surrogateescape")
