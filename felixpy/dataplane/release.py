"""Addresses between two workloads: one that leaves an interface serves nobody before its conntrack entries are gone.

    wanted no more ──leave──► removed from the kernel ──release──► entries deleted ──► looked at again

Invariant: only such an address waits; everything else of its old and new endpoint goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import structlog

from felixpy.calc.entries import ElementKey, RouteKey, SetName
from felixpy.dataplane.conntrack import ConntrackCleaner
from felixpy.dataplane.table import KeyedTable, Waiting
from felixpy.model.net import format_address
from felixpy.netlink.transport import NETLINK_NETFILTER, NetlinkSocket


class AddressRelease:
    """Which addresses are held back. ``changed`` is called when some are free again."""

    def __init__(self) -> None:
        self.changed: Callable[[], None] = lambda: None
        self._leaving: dict[bytes, set[ElementKey]] = {}
        self._held: dict[bytes, set[tuple[KeyedTable[Any, Any, Any], RouteKey | ElementKey]]] = {}
        self._cleaner: ConntrackCleaner | None = None

    def unwanted(self, key: ElementKey) -> None:
        """A member that the kernel holds is no longer wanted: its address leaves."""
        if key.set is SetName.TO_WORKLOAD:
            self._leaving.setdefault(key.net.packed, set()).add(key)

    def wanted_again(self, key: ElementKey) -> None:
        """It stays where it is after all."""
        members = self._leaving.get(key.net.packed, set())
        members.discard(key)
        if not members:
            self._leaving.pop(key.net.packed, None)

    def hold(self, table: KeyedTable[Any, Any, Any], key: RouteKey | ElementKey, address: bytes) -> None:
        """Let an entry wait while its address is held back.

        Raises:
            Waiting: it is; the entry will be marked when the address is free.
        """
        if address in self._leaving or (self._cleaner is not None and self._cleaner.is_releasing(address)):
            self._held.setdefault(address, set()).add((table, key))
            raise Waiting(f"conntrack entries of {format_address(address)} from its last workload are being removed")

    def removed(self, keys: Iterable[ElementKey]) -> None:
        """Members are gone from the kernel: delete the conntrack entries of their addresses."""
        self._release({key.net.packed for key in keys if key.set is SetName.TO_WORKLOAD})

    def settle(self, present: Callable[[ElementKey], bool]) -> None:
        """Release addresses whose members went without our knowing: by another's hand, or with their back-end."""
        if self._leaving:
            self._release({address for address, keys in self._leaving.items() if not any(map(present, keys))})

    def _release(self, addresses: set[bytes]) -> None:
        if not addresses:
            return
        if self._cleaner is None:
            log = structlog.get_logger("felixpy")
            socket = NetlinkSocket(NETLINK_NETFILTER)
            self._cleaner = ConntrackCleaner(socket, self._free, lambda words: log.warning("conntrack", reason=words))
        for address in addresses:
            self._leaving.pop(address, None)
        self._cleaner.release(addresses)

    def close(self) -> None:
        if self._cleaner is not None:
            self._cleaner.close()

    def _free(self, addresses: frozenset[bytes]) -> None:
        for address in addresses:
            for table, key in self._held.pop(address, ()):
                table.mark((key,))
        self.changed()
