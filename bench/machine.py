"""What the benchmark runs on: processor, memory, kernel, versions, load. Reads only; no names of the machine."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("felixpy", "aiomqtt", "paho-mqtt", "msgspec", "pyroute2", "python-iptables")
_PROGRAMS = {
    "nft": ("nft", "--version"),
    "iptables": ("iptables", "--version"),
    "iproute2": ("ip", "-V"),
    "mosquitto": ("mosquitto", "-h"),
}


def describe() -> dict[str, Any]:
    """All of it, for the results' head."""
    return {
        "processor": _processor(),
        "processors": os.cpu_count(),
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "versions": {name: _package(name) for name in _PACKAGES} | {n: _program(c) for n, c in _PROGRAMS.items()},
    }


def _processor() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.processor()


def _package(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _program(command: tuple[str, ...]) -> str:
    if shutil.which(command[0]) is None:
        return "not installed"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"v?(\d+\.\d+[\w.]*)", done.stdout + done.stderr)
    return found[1] if found else "unknown"
