"""What the benchmark runs on: processor, memory, kernel, versions, load. Reads only; no names of the machine."""

from __future__ import annotations

import os
import platform
import re
import shutil
import statistics
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

IDLE_S = 0.06
"""The pause between two changes that are measured."""
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
        "awake_us": round(_same_work_us(0.0)),
        "after_idle_us": round(_same_work_us(IDLE_S)),
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "versions": {name: _package(name) for name in _PACKAGES} | {n: _program(c) for n, c in _PROGRAMS.items()},
    }


def _same_work_us(idle_s: float) -> float:
    """Median microseconds of always the same work in Python, after so long a sleep.

    A processor that slept begins slowly: that is in every figure of a change that meets an idle agent.
    """
    times = []
    for _ in range(30):
        time.sleep(idle_s)
        begin = time.perf_counter()
        words: dict[int, str] = {}
        for number in range(1500):
            words[number & 255] = str(number)
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e6


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
