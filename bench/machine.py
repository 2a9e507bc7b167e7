"""What the benchmark runs on: processor, memory, kernel, versions, load. Reads only; no names of the machine."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.workloads import Workload
from felixpy.model.net import FAMILIES
from felixpy.model.parse import parse_payload
from felixpy.mqtt import topics

IDLE_S = 0.06
"""The pause between two changes that are measured."""
MEMBARRIER_CMD_GLOBAL = 1  # linux/membarrier.h
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
        "in_a_row_us": round(_same_work_us(lambda: None)),
        "after_spin_us": round(_same_work_us(_spin)),
        "after_sleep_us": round(_same_work_us(_sleep)),
        "grace_period_ms": _grace_period_ms(),
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "versions": {name: _package(name) for name in _PACKAGES} | {n: _program(c) for n, c in _PROGRAMS.items()},
    }


def _same_work_us(rest: Callable[[], None]) -> float:
    """Median microseconds of always the same work, the parsing of one workload, each time after a rest.

    After 60 ms it takes a multiple of what it takes in a row, also if the processor did not sleep and this process
    alone has run on it: the caches are shared with whoever else is on the machine, and each piece of code and data has
    to be fetched anew. That is in every figure of a change that meets an idle agent.
    """
    key = topics.key_of(Workload(0).topic)
    assert key is not None
    payload = Workload(0).payload(FAMILIES)
    times = []
    for _ in range(40):
        rest()
        begin = time.perf_counter()
        parse_payload(payload, key)
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e6


def _sleep() -> None:
    time.sleep(IDLE_S)


def _spin() -> None:
    until = time.perf_counter() + IDLE_S
    while time.perf_counter() < until:
        pass


def _grace_period_ms() -> float | None:
    """Median milliseconds of an RCU grace period of this kernel (membarrier(2) waits for one); None if it tells not."""
    number = {"x86_64": 324, "aarch64": 283}.get(platform.machine())
    call = ctypes.CDLL(None).syscall
    times = []
    for _ in range(20 if number is not None else 0):
        time.sleep(0.01)
        begin = time.perf_counter()
        if call(number, MEMBARRIER_CMD_GLOBAL, 0, 0):
            return None
        times.append(time.perf_counter() - begin)
    return round(statistics.median(times) * 1000, 1) if times else None


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
