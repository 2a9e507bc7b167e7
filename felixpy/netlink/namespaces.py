"""Work inside another network namespace, without leaving one's own.

Invariant: a thread that has entered a namespace does nothing else and ends there, so nothing of the agent ever runs in
a workload's network by mistake. Descriptors, not paths, name namespaces: a path may lead elsewhere in a container.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
NS_GET_NSTYPE = 0xB703

_libc = ctypes.CDLL(None, use_errno=True)


def is_network_namespace(descriptor: int) -> bool:
    """Whether a descriptor from outside is what it should be."""
    try:
        return fcntl.ioctl(descriptor, NS_GET_NSTYPE) == CLONE_NEWNET
    except OSError:
        return False


def is_own_namespace(descriptor: int) -> bool:
    """Whether it is the network that this process is in: the node's."""
    one, own = os.fstat(descriptor), os.stat("/proc/self/ns/net")  # noqa: PTH116  a link that is no path
    return (one.st_dev, one.st_ino) == (own.st_dev, own.st_ino)


def enter(descriptor: int) -> None:
    """Move the calling thread.

    Raises:
        OSError: not a network namespace, or no CAP_SYS_ADMIN.
    """
    if _libc.setns(descriptor, CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, f"the network namespace cannot be entered: {os.strerror(error)}")


async def in_thread(work: Callable[[], T]) -> T:
    """What ``work`` gives, in a thread of its own. It is waited for even if the caller is cancelled: half of it is
    worse than late.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  it is raised where it is awaited
            loop.call_soon_threadsafe(tell, None, error)
        else:
            loop.call_soon_threadsafe(tell, result, None)

    threading.Thread(target=run, name="namespace", daemon=True).start()
    return await uncancelled(done)


async def uncancelled(future: asyncio.Future[T]) -> T:
    """Wait to the end; a cancellation that came meanwhile is passed on after it."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError as error:
            if future.cancelled():
                raise
            cancelled = error
        except BaseException:  # noqa: BLE001  it is in the future
            break
    if cancelled is not None:
        future.exception()
        raise cancelled
    return future.result()
