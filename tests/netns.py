"""Private network and mount namespaces for tests: whatever a test does to the kernel vanishes with its process.

``enter_private_namespaces`` moves the calling thread (call it in the main thread of a test process, once);
``enter_new_network`` gives the next test an empty network. The machine's own network and files stay as they are.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000

_libc = ctypes.CDLL(None, use_errno=True)


@functools.cache
def enter_private_namespaces() -> None:
    """Leave the machine's network and mounts: empty network, own /run (with /run/netns), own /sys. Once a process.

    Raises:
        OSError: not root, or the container forbids it.
    """
    _unshare(CLONE_NEWNET | CLONE_NEWNS)
    _mount("none", "/", "none", MS_REC | MS_PRIVATE)
    _mount("tmpfs", "/run", "tmpfs")
    os.mkdir("/run/netns")  # noqa: PTH102
    _mount("sysfs", "/sys", "sysfs")
    _loopback_up()


def private_run() -> None:
    """A /run of this process's own, for one that is in a network already."""
    _unshare(CLONE_NEWNS)
    _mount("none", "/", "none", MS_REC | MS_PRIVATE)
    _mount("tmpfs", "/run", "tmpfs")


def enter_new_network() -> None:
    """An empty network for the calling thread; the old one is gone once nothing in it is open."""
    _unshare(CLONE_NEWNET)
    _loopback_up()


def current_network() -> int:
    """A descriptor of the calling thread's network, to come back to by ``return_to_network``. The caller closes it."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def return_to_network(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, f"setns: {os.strerror(error)}")


def _unshare(flags: int) -> None:
    if _libc.unshare(flags):
        error = ctypes.get_errno()
        raise OSError(error, f"unshare: {os.strerror(error)}")


def _mount(source: str, target: str, kind: str, flags: int = 0) -> None:
    if _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), None):
        error = ctypes.get_errno()
        raise OSError(error, f"mount {target}: {os.strerror(error)}")


def _loopback_up() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
