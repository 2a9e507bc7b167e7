"""Addresses between two workloads: one that leaves an interface serves nobody before its conntrack entries are gone.

    wanted no more ──leave──► removed from the kernel ──release──► entries deleted ──► looked at again

What an agent finds at its start nobody wants yet, which says nothing: its endpoint may still come. Such an address
leaves when another interface is wanted for it, since it has one at most; its old member goes with a complete snapshot.

Invariant: only such an address waits; everything else of its old and new endpoint goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import structlog

from felixpy.calc.entries import ElementKey, RouteKey, SetName
from felixpy.dataplane.conntrack import ConntrackCleaner
from felixpy.dataplane.packet_filter import Member
from felixpy.dataplane.table import KeyedTable, Waiting
from felixpy.model.net import format_address
from felixpy.netlink.transport import NETLINK_NETFILTER, NetlinkSocket

_CONNECTED = frozenset({SetName.TO_WORKLOAD, SetName.FLOATING})
"""Sets whose members decide once for a whole connection where its packets go."""


class AddressRelease:
    """Which addresses are held back. ``changed`` is called when some are free again."""

    def __init__(self) -> None:
        self.changed: Callable[[], None] = lambda: None
        self._leaving: dict[bytes, set[ElementKey]] = {}
        self._unclaimed: dict[bytes, tuple[ElementKey, ...]] = {}
        """Members that were found in the kernel and that nobody has wanted yet."""
        self._held: dict[bytes, set[tuple[KeyedTable[Any, Any, Any], RouteKey | ElementKey]]] = {}
        self._cleaner: ConntrackCleaner | None = None
        self._translated: set[bytes] = set()
        """Floating addresses that nobody left: nothing of theirs is held back meanwhile."""

    def unwanted(self, key: ElementKey) -> None:
        """A member that the kernel holds is no longer wanted: its address leaves."""
        if key.set is SetName.TO_WORKLOAD:
            self._leaving.setdefault(key.net.packed, set()).add(key)

    def found(self, key: ElementKey) -> None:
        """A member that nobody wants was found in the kernel."""
        if key.set is SetName.TO_WORKLOAD:
            self._unclaimed[key.net.packed] = (*self._unclaimed.get(key.net.packed, ()), key)

    def wanted_anew(self, key: ElementKey) -> None:
        """A member that the kernel does not hold is wanted: where its address was found, it leaves."""
        if self._unclaimed and key.set is SetName.TO_WORKLOAD:
            for old in self._unclaimed.pop(key.net.packed, ()):
                self.unwanted(old)

    def wanted_again(self, key: ElementKey) -> None:
        """It stays where it is after all."""
        if self._unclaimed and key.set is SetName.TO_WORKLOAD:
            found = self._unclaimed.pop(key.net.packed, ())
            if others := tuple(other for other in found if other != key):
                self._unclaimed[key.net.packed] = others
        members = self._leaving.get(key.net.packed, set())
        members.discard(key)
        if not members:
            self._leaving.pop(key.net.packed, None)

    def hold(self, table: KeyedTable[Any, Any, Any], key: RouteKey | ElementKey, address: bytes) -> None:
        """Let an entry wait while its address is held back.

        Raises:
            Waiting: it is; the entry will be marked when the address is free.
        """
        if address in self._leaving or self._is_releasing(address):
            self._held.setdefault(address, set()).add((table, key))
            raise Waiting(
                f"{format_address(address)} waits until what its last workload left of it is removed"
                " (set member, conntrack entries)"
            )

    def removed(self, keys: Iterable[Member]) -> None:
        """Members are gone from the kernel: delete the conntrack entries of their addresses."""
        addresses = {key.net.packed for key in keys if key.set in _CONNECTED}
        self._translated -= addresses
        self._release(addresses)

    def translated(self, keys: Iterable[Member]) -> None:
        """Members are in the kernel that were not, or with other data.

        Connections to floating addresses begin anew, also those that went elsewhere untranslated.
        """
        if addresses := {key.net.packed for key in keys if key.set is SetName.FLOATING}:
            self._translated |= addresses
            self._release(addresses)

    def settle(self, present: Callable[[ElementKey], bool]) -> None:
        """Release addresses whose members went without our knowing: by another's hand, or with their back-end."""
        if self._leaving:
            self._release({address for address, keys in self._leaving.items() if not any(map(present, keys))})
        # A new one each time: an emptied dictionary keeps the size that it had at the start.
        self._unclaimed = {one: keys for one, keys in self._unclaimed.items() if any(map(present, keys))}

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

    def _is_releasing(self, address: bytes) -> bool:
        return self._cleaner is not None and address not in self._translated and self._cleaner.is_releasing(address)

    def close(self) -> None:
        if self._cleaner is not None:
            self._cleaner.close()

    def _free(self, addresses: frozenset[bytes]) -> None:
        self._translated -= addresses
        for address in addresses:
            for table, key in self._held.pop(address, ()):
                table.mark((key,))
        self.changed()
