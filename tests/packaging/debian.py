"""Debian trees (``.ci/debian-tree``) to boot and to build on, and a machine booted from one by systemd-nspawn.

Everything happens on a file system in memory above the tree, in mount and process namespaces of the machine's own and
with an empty network; a test that is killed takes its machine with it. The trees themselves are never written to.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from felixpy.demo.patience import Patience

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path("/var/cache/felixpy-tests")
CGROUP = "felixpy-test"
_NUMBERS = itertools.count()

OWN_NAMESPACES = ("unshare", "--mount", "--propagation=private", "--pid", "--kill-child", "--mount-proc")
"""Whoever kills the first process, or whose death does, ends all that is within."""

# As root in new mount namespaces; $1 tree, $2 folder of the test, $3 name of the cgroup.
BOOT = f"""
set -e
mkdir -p "$2/memory"
mount -t tmpfs tmpfs "$2/memory"
mkdir "$2/memory/upper" "$2/memory/work" "$2/memory/tree"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/memory/upper,workdir=$2/memory/work" "$2/memory/tree"
umount -R /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for left in /sys/fs/cgroup/{CGROUP}-*; do find "$left" -depth -type d -exec rmdir {{}} + 2>/dev/null || true; done
mkdir "/sys/fs/cgroup/$3"
echo $$ >"/sys/fs/cgroup/$3/cgroup.procs"
mount -t tmpfs tmpfs /run
mkdir -p "$2/memory/tree/usr/src/felixpy"
cd {ROOT}
cp -r Makefile constraints.txt pyproject.toml README.md CHANGELOG.md LICENSE felixpy systemd config docs \\
    "$2/memory/tree/usr/src/felixpy"
exec systemd-nspawn --quiet --boot --directory="$2/memory/tree" --machine=felixpy-test --private-network \\
    --register=no --keep-unit --console=pipe --link-journal=no --resolv-conf=off --timezone=off
"""

REMOVE_CGROUP = """
umount -R /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 cgroup2 /sys/fs/cgroup
cd /sys/fs/cgroup
for i in $(seq 300); do  # what ends in it may take its time on a busy machine
    [ -d "$1" ] || exit 0
    find "$1" -depth -type d -exec rmdir {} + 2>/dev/null && exit 0
    sleep 0.2
done
exit 1
"""


@contextlib.contextmanager
def debian_tree(name: str) -> Iterator[Path]:
    """A tree that stays while the block runs; without one, the test says how to get it."""
    found = sorted(CACHE.glob(f"*/{name}/etc/debian_version"))
    if not found:
        pytest.skip("no Debian tree; make one with .ci/debian-tree")
    with (CACHE / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield found[0].parents[1]


class Machine:
    """A running system."""

    def __init__(self, leader: int) -> None:
        self._leader = leader

    def run(self, command: str, *, check: bool = True, network: int | None = None) -> str:
        """What a shell command in the machine prints; with another network, to fetch packages from."""
        done = subprocess.run(
            (*self._enter(network), "/bin/sh", "-c", command),
            env={"PATH": "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "COLUMNS": "200"},
            capture_output=True, text=True, check=False, start_new_session=True,
            pass_fds=() if network is None else (network,),
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def _enter(self, network: int | None) -> tuple[str, ...]:
        own = (
            "nsenter",
            f"--target={self._leader}",
            "--mount",
            "--uts",
            "--ipc",
            "--pid",
            "--cgroup",
            "--root",
            "--wd",
        )
        if network is None:
            return (*own, "--net")
        # Whatever runs there can use that network, but not change it.
        return (*own, f"--net=/proc/self/fd/{network}", "setpriv", "--bounding-set=-net_admin,-net_raw,-sys_module")

    def write(self, path: str, text: str) -> None:
        subprocess.run(
            ("nsenter", f"--target={self._leader}", "--all", "--wd",
             "/bin/sh", "-c", 'mkdir -p "${0%/*}"; cat >"$0"', path),
            input=text, text=True, check=True,
        )  # fmt: skip

    def show(self, unit: str, name: str) -> str:
        return self.run(f"systemctl show --value --property={name} {unit}").strip()

    def journal(self, unit: str = "felixpy") -> str:
        return self.run(f"journalctl --no-pager --output=cat --unit={unit} | tail -n 40", check=False)

    def until(self, holds: Callable[[], bool], what: str, seconds: float = 60) -> None:
        patience = Patience(seconds)
        while not holds():
            status = self.run("systemctl status --no-pager felixpy", check=False)
            assert not patience.over(), f"not in {patience}: {what}\n{status}\n{self.journal()}"
            time.sleep(0.1)


@contextlib.contextmanager
def booted(folder: Path, kind: str = "node") -> Iterator[Machine]:
    """A machine with felixpy's sources in /usr/src/felixpy and nothing of it installed."""
    name = f"{CGROUP}-{os.getpid()}-{next(_NUMBERS)}"
    with debian_tree(kind) as tree, (folder / "console").open("wb") as console:
        process = subprocess.Popen(
            ("setpriv", "--pdeathsig=KILL", *OWN_NAMESPACES,
             "/bin/sh", "-c", BOOT, "boot", str(tree), str(folder), name),
            stdin=subprocess.DEVNULL, stdout=console, stderr=console,
        )  # fmt: skip
        try:
            machine = Machine(_leader(process, folder / "console"))
            state = "systemctl is-system-running --wait"
            machine.until(lambda: "running" in machine.run(state, check=False), "the machine has started")
            yield machine
        finally:
            process.kill()
            process.wait()
            subprocess.run(
                ("unshare", "--mount", "--propagation=private", "/bin/sh", "-c", REMOVE_CGROUP, "remove", name),
                check=True,
            )


def _leader(process: subprocess.Popen[bytes], console: Path) -> int:
    """The first process of the machine, once it is systemd and answers."""
    patience = Patience(60)
    while not patience.over():
        assert process.poll() is None, console.read_text(errors="replace")
        for child in [below for above in _children(process.pid) for below in _children(above)]:
            with contextlib.suppress(OSError):
                name = Path(f"/proc/{child}/comm").read_text().strip()
                if name == "systemd" and Path("/proc", str(child), "root", "run/dbus/system_bus_socket").exists():
                    return child
        time.sleep(0.05)
    raise AssertionError(f"the machine did not start:\n{console.read_text(errors='replace')}")


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []
