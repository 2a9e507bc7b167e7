"""python-iptables' traps, pinned: what ``legacy_tables`` must walk around, and the lock that it takes."""

from __future__ import annotations

import asyncio
import ctypes.util
import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from felixpy.calc.rule import Action, ChainKey, InInterface, Masquerade, Rule, Snat, Table, Verdict
from felixpy.config import PortRange
from felixpy.dataplane.iptables import LegacyFilter, legacy_tables, lock
from felixpy.dataplane.iptables.filter import IptablesFilter
from felixpy.dataplane.packet_filter import FilterChange
from felixpy.model.net import FAMILIES, Family, parse_address
from tests.dataplane.iptables.conftest import MakeFilter, output, saved
from tests.dataplane.iptables.programmed import program, try_to_program

pytestmark = pytest.mark.parametrize("variant", ["legacy"], indirect=True)


def test_the_library_is_not_loaded_by_reading_or_members(network: None, variant: str) -> None:
    script = (
        "import asyncio, sys\n"
        "from felixpy.dataplane.iptables import LegacyFilter\n"
        "from felixpy.model.net import Family\n"
        "from tests.dataplane.iptables.programmed import workload\n"
        "from felixpy.dataplane.packet_filter import FilterChange\n"
        "async def run():\n"
        "    one = LegacyFilter(Family.V4)\n"
        "    await one.create_containers()\n"
        "    await one.write(FilterChange(add=workload(Family.V4, 1)))\n"
        "    await one.read()\n"
        "    one.close()\n"
        "asyncio.run(run())\n"
        "print('iptc' in sys.modules)\n"
    )
    assert output(sys.executable, "-c", script) == "False\n"


def test_loading_the_library_starts_no_program_and_loads_no_setuptools(network: None, variant: str) -> None:
    script = (
        "import ctypes.util, sys\n"
        "search, started = ctypes.util.find_library, []\n"
        "sys.addaudithook(lambda event, what: started.append(what[0]) if event == 'subprocess.Popen' else None)\n"
        "from felixpy.dataplane.iptables import legacy_tables\n"
        "library = legacy_tables._library()\n"
        "print(started, [one for one in ('distutils', 'setuptools') if one in sys.modules])\n"
        "print(ctypes.util.find_library is search, len(library.protocols))\n"
    )
    assert output(sys.executable, "-c", script) == "[] []\nTrue 2\n"


def test_a_library_of_another_name_is_searched_for(
    network: None, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(legacy_tables, "_USUAL_NAMES", {"c": "libc.so.99"})
    with legacy_tables._nothing_searched():
        assert ctypes.util.find_library("c") == "libc.so.6"
        assert ctypes.util.find_library("xtwrapper") is None


def test_binary_nat_targets_are_what_the_tool_writes(packet_filter: IptablesFilter, family: Family, tool: str) -> None:
    address = parse_address("192.0.2.1" if family is Family.V4 else "2001:db8::1")
    actions: list[Action] = [
        Masquerade(),
        Masquerade(PortRange(1024, 65535)),
        Snat(address),
        Snat(address, PortRange(80, 80)),
    ]
    key = ChainKey(Table.NAT, "x")

    async def run() -> None:
        for action in actions:
            rules = packet_filter.render({key: (Rule((), action),)})[key]
            if "ports" not in rules[0] and ":80" not in rules[0]:
                await packet_filter.write(FilterChange(chains={key: rules}))
                # -C compares the kernel's binary form with what the tool itself would write
                output(tool, "-t", "nat", "-C", "fpy-x", *rules[0].split())
            rules = tuple(f"-p udp {rule}" for rule in rules)
            await packet_filter.write(FilterChange(chains={key: rules}))
            output(tool, "-t", "nat", "-C", "fpy-x", *rules[0].split())

    asyncio.run(run())


def test_interface_matches_are_what_the_tool_writes(packet_filter: IptablesFilter, tool: str) -> None:
    key = ChainKey(Table.FILTER, "x")

    async def run() -> None:
        for match in (
            InInterface("cali", True),
            InInterface("cali"),
            InInterface("abcdefghijklmno"),
            InInterface("abcdefghijklmn", True),
        ):
            rules = packet_filter.render({key: (Rule((match,), Verdict.DROP),)})[key]
            await packet_filter.write(FilterChange(chains={key: rules}))
            output(tool, "-C", "fpy-x", *rules[0].split())

    asyncio.run(run())


def test_standard_output_of_other_threads_stays_out_of_rules(
    make_filter: MakeFilter, capfd: pytest.CaptureFixture[str]
) -> None:
    stop = threading.Event()
    lines = 0

    def talk() -> None:
        nonlocal lines
        while not stop.is_set():
            os.write(1, b"--talk 1\n")
            lines += 1
            time.sleep(0.0001)

    talker = threading.Thread(target=talk)
    talker.start()
    try:
        for family in FAMILIES:
            asyncio.run(program(make_filter(family)))
    finally:
        stop.set()
        talker.join()
    assert capfd.readouterr().out.count("--talk 1\n") == lines


def test_exiting_commits_nothing(network: None, variant: str) -> None:
    """The library's tables commit when they are collected unless autocommit is off, which would undo others."""
    script = (
        "import asyncio, subprocess\n"
        "from felixpy.dataplane.iptables import LegacyFilter\n"
        "from felixpy.model.net import Family\n"
        "from tests.dataplane.iptables.programmed import program\n"
        "one = LegacyFilter(Family.V4)\n"
        "asyncio.run(program(one))\n"
        "one.close()\n"
        "subprocess.run(['iptables-legacy', '-A', 'FORWARD', '-j', 'ACCEPT'], check=True)\n"
    )
    output(sys.executable, "-c", script)
    assert saved("iptables-legacy", "-t", "filter").count("-A FORWARD -j ACCEPT") == 1


def test_no_table_stays_open(make_filter: MakeFilter) -> None:
    for family in FAMILIES:
        asyncio.run(program(make_filter(family)))
    for name in ("raw", "raw6"):  # libiptc holds a raw socket for each open table
        sockets = Path(f"/proc/thread-self/net/{name}").read_text().splitlines()
        assert len(sockets) == 1, sockets


def test_a_missing_c_library_is_one_clear_sentence(network: None, variant: str) -> None:
    script = (
        "import asyncio\n"
        "from felixpy.dataplane.iptables import LegacyFilter\n"
        "from felixpy.model.net import Family\n"
        "from tests.dataplane.iptables.programmed import try_to_program\n"
        "print(*set(asyncio.run(try_to_program(LegacyFilter(Family.V4))).values()))\n"
    )
    environment = os.environ | {"PYTHON_IPTABLES_XTABLES_VERSION": "99"}  # the library's way to name libxtables
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert "install the package 'iptables'" in done.stdout
    assert "FELIX_IPTABLESBACKEND=NFT" in done.stdout
    assert done.stdout.count("\n") == 1


def hold_lock(path: Path) -> int:
    descriptor = os.open(path, os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def test_a_command_waits_for_the_lock_without_blocking_the_loop(
    packet_filter: IptablesFilter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packet_filter.patient = True
    path = tmp_path / "lock"
    monkeypatch.setenv("XTABLES_LOCKFILE", str(path))
    descriptor = hold_lock(path)

    async def run() -> None:
        write = asyncio.create_task(program(packet_filter))
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert not write.done()
        assert not (await packet_filter.read()).chains
        os.close(descriptor)
        await write
        assert (await packet_filter.read()).chains

    asyncio.run(run())


def test_a_lock_that_is_never_released_is_an_error_that_names_it(
    packet_filter: IptablesFilter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock"
    monkeypatch.setenv("XTABLES_LOCKFILE", str(path))
    descriptor = hold_lock(path)
    refused = asyncio.run(try_to_program(packet_filter, 1))
    assert refused and all(isinstance(key, ChainKey) and str(path) in words for key, words in refused.items())
    assert len(asyncio.run(packet_filter.read()).elements) == 2, "members need no lock"
    os.close(descriptor)
    asyncio.run(program(packet_filter))


def test_the_tool_takes_the_same_lock(packet_filter: IptablesFilter, tool: str) -> None:
    """Without XTABLES_LOCKFILE both use /run/xtables.lock (/run is this test process's own)."""
    asyncio.run(program(packet_filter))
    assert Path(lock.DEFAULT_PATH).exists()
    with lock.xtables_lock(1.0):
        refused = subprocess.run([tool, "-w", "1", "-L"], capture_output=True, text=True)
    assert refused.returncode == 4
    assert "xtables lock" in refused.stderr


@pytest.mark.parametrize("same_lock", [True, False])
def test_writing_among_the_writes_of_others_loses_nothing(
    packet_filter: IptablesFilter, tool: str, same_lock: bool
) -> None:
    """A program that knows another lock (another mount namespace) makes the kernel answer EAGAIN: read anew, again."""
    key = ChainKey(Table.FILTER, "x")
    script = f"for i in $(seq 60); do until {tool} -w 20 -A OUTPUT -p tcp --dport $i -j ACCEPT; do :; done; done"
    environment = dict(os.environ) if same_lock else os.environ | {"XTABLES_LOCKFILE": "/run/another.lock"}
    other = subprocess.Popen(["sh", "-c", script], env=environment, stderr=subprocess.DEVNULL)

    async def run() -> int:
        written = 0
        while other.poll() is None or not written:
            refused = await packet_filter.write(FilterChange(chains={key: ("-j DROP",)}))
            # The other one may hold the lock for longer than is waited: then nothing is written, and that is said.
            assert not refused or "holds the iptables lock" in refused[key]
            written += not refused
        return written

    assert asyncio.run(run())
    # A set: the tool reports failure, and is run again, when only its last step (counters) met our write.
    assert len({line for line in saved(tool, "-t", "filter") if line.startswith("-A OUTPUT")}) == 60


def test_the_thread_ends_with_the_last_filter(network: None, variant: str) -> None:
    one, two = LegacyFilter(Family.V4), LegacyFilter(Family.V6)
    for packet_filter in (one, two):
        asyncio.run(program(packet_filter))

    def threads() -> int:
        return sum(thread.name.startswith("iptables-legacy") for thread in threading.enumerate())

    assert threads() == 1
    one.close()
    assert threads() == 1
    two.close()
    assert threads() == 0
