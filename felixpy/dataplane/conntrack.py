"""Conntrack entries of addresses that have left a workload: gone before the address serves again.

NAT and "established" are decided once per entry, so an address that moves to another workload with its old entries
would carry the old decisions. Invariant: an address is being released from ``release`` until every entry of it that
existed then is gone, also while the kernel refuses, and only that address waits.

One pass serves all addresses that are queued when it starts. It runs in a thread, because the kernel walks its whole
table inside one call; between two datagrams it looks whether it shall stop. Must never hold up the event loop, and
never delete an entry that has none of the addresses.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from msgspec import Struct

from felixpy.dataplane.table import FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS
from felixpy.model.net import format_address
from felixpy.netlink.conntrack import ConntrackTable, CtnetlinkMissing
from felixpy.netlink.transport import DumpInterrupted, NetlinkSocket

ADDRESSES_IN_WARNING = 3


class _Waiting(Struct):
    """An address that is not released yet: when to try (on the loop's clock), tries that failed, why the last did."""

    due: float
    tries: int = 0
    reason: str = ""


class ConntrackCleaner:
    """Deletes the entries of released addresses in the background of a running event loop.

    Args:
        netlink: a netfilter socket of its own; from now on only the cleaner's thread touches it.
        released: called in the event loop with addresses whose entries are gone.
        warn: takes one sentence for the log, once per failure and not once per try.
    """

    def __init__(
        self, netlink: NetlinkSocket, released: Callable[[frozenset[bytes]], None], warn: Callable[[str], None]
    ) -> None:
        self.passes = 0
        self._table = ConntrackTable(netlink)
        self._released = released
        self._warn = warn
        self._waiting: dict[bytes, _Waiting] = {}
        self._passing: dict[bytes, _Waiting] = {}
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._stop = threading.Event()
        self._thread = ThreadPoolExecutor(1, "conntrack")
        self._missing_said = False

    def release(self, addresses: Iterable[bytes]) -> None:
        """Queue addresses; call it when nothing in the kernel forwards for them any more.

        An address that a running pass deals with goes into the next one as well: the pass may have gone by.
        """
        loop = asyncio.get_running_loop()
        self._waiting.update((address, _Waiting(loop.time())) for address in addresses)
        self._wake.set()
        if self._waiting and (self._task is None or self._task.done()):
            self._task = loop.create_task(self._work())
            self._task.add_done_callback(self._ended)

    def is_releasing(self, address: bytes) -> bool:
        """Whether the address must not be used yet."""
        return address in self._waiting or address in self._passing

    def reason(self, address: bytes) -> str:
        """Why the last try failed; empty before it, and for an address that is free."""
        waiting = self._waiting.get(address) or self._passing.get(address)
        return waiting.reason if waiting else ""

    def close(self) -> None:
        """Stop at the next datagram; nothing is called back any more, entries that are left stay in the kernel."""
        if self._stop.is_set():
            return
        self._stop.set()
        if self._task is not None:
            self._task.cancel()
        self._thread.submit(self._table.netlink.close)
        self._thread.shutdown(wait=False)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            now = loop.time()
            self._wake.clear()
            self._passing = {address: one for address, one in self._waiting.items() if one.due <= now}
            if not self._passing:
                await self._sleep(min(one.due for one in self._waiting.values()) - now)
                continue
            for address in self._passing:
                del self._waiting[address]
            self.passes += 1
            refused: dict[bytes, str] = {}
            try:
                refused = await loop.run_in_executor(self._thread, self._pass, frozenset(self._passing))
            except CtnetlinkMissing as missing:
                self._say_missing(missing)
            self._settle(refused, loop.time())

    async def _sleep(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._wake.wait(), seconds)
        except TimeoutError:
            pass

    def _settle(self, refused: dict[bytes, str], now: float) -> None:
        passed, self._passing = self._passing, {}
        failures: dict[tuple[str, float], list[bytes]] = {}
        for address, reason in refused.items():
            one = passed[address]
            pause = min(FIRST_RETRY_SECONDS * 2 ** min(one.tries, 16), LAST_RETRY_SECONDS)
            if reason != one.reason:
                failures.setdefault((reason, pause), []).append(address)
            self._waiting.setdefault(address, _Waiting(now + pause, one.tries + 1, reason))
        for (reason, pause), addresses in failures.items():
            self._warn(_sentence(addresses, reason, pause))
        done = frozenset(address for address in passed if address not in self._waiting)
        if done:
            self._released(done)

    def _say_missing(self, missing: CtnetlinkMissing) -> None:
        if not self._missing_said:
            self._missing_said = True
            self._warn(
                f"This kernel cannot delete conntrack entries ({missing}), so flows of removed workloads live until "
                "they time out; load nf_conntrack_netlink (CONFIG_NF_CT_NETLINK)."
            )

    @staticmethod
    def _ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.result()  # a bug goes to the event loop's exception handler; its addresses stay unused

    # --- in the thread -------------------------------------------------------------------------------------------

    def _pass(self, addresses: frozenset[bytes]) -> dict[bytes, str]:
        """Delete all entries of these addresses. Returns the kernel's words by address that still has some.

        Raises:
            CtnetlinkMissing
        """
        refused: dict[bytes, str] = {}
        try:
            for entries in self._table.entries_of(addresses):
                if self._stop.is_set():
                    break
                for index, refusal in self._table.delete(entries).items():
                    refused.update(dict.fromkeys(entries[index].addresses, str(refusal)))
        except DumpInterrupted:
            return dict.fromkeys(addresses, "the table kept changing while it was read")
        except OSError as error:
            return dict.fromkeys(addresses, error.strerror or str(error))
        return refused


def _sentence(addresses: list[bytes], reason: str, pause: float) -> str:
    names = ", ".join(map(format_address, itertools.islice(addresses, ADDRESSES_IN_WARNING)))
    more = f" and {len(addresses) - ADDRESSES_IN_WARNING} more" if len(addresses) > ADDRESSES_IN_WARNING else ""
    return (
        f"The kernel does not delete the conntrack entries of {names}{more}: {reason}; "
        f"nobody else gets the address before they are gone, next try in {pause:g} s."
    )
