"""Nexthop objects under the routes to other nodes: one for each node and pool, replaced when the way changes.

Ours are those with our protocol number (``nhm_protocol``). An object has a number and no name, so the number is made
from what it is for; where two meet, the next free one is taken. An agent that starts finds its numbers again: it takes
the one of which the object leads where it wants it. A kernel without nexthop objects (before 5.3) gets the same ways as
plain routes, and so does a host whose networkd takes objects away (``networkd``). The kernel drops the objects of an
interface that goes down or loses its carrier, with all their routes, and says nothing: link events tell.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterable
from itertools import chain

from felixpy.calc.entries import Nexthop, NexthopKey
from felixpy.dataplane.links import Links
from felixpy.dataplane.networkd import takes_nexthops
from felixpy.dataplane.ownership import Ownership
from felixpy.dataplane.table import MISSING, KeyedTable, Waiting
from felixpy.model.net import Family
from felixpy.netlink.message import Message
from felixpy.netlink.nexthop import RTM_DELNEXTHOP, KernelNexthop, decode_nexthop, decode_nexthops, nexthop_dump_request
from felixpy.netlink.transport import NetlinkError, NetlinkSocket

ABSENT_ERRORS = {errno.EOPNOTSUPP, errno.EINVAL}
_BITS = 30
_BASE = 1 << _BITS
"""Numbers of ours begin here: people give low ones."""


class NexthopTable:
    """Keyed table of nexthop objects with their numbers."""

    def __init__(self, links: Links, ownership: Ownership, clock: Callable[[], float]) -> None:
        self.links = links
        self.ownership = ownership
        self.has_objects = True
        """Whether this kernel knows nexthop objects, and nobody takes ours away."""
        self._clock = clock
        self._numbers: dict[NexthopKey, int] = {}
        self._keys: dict[int, NexthopKey] = {}
        self._foreign: set[int] = set()
        self._has_unnamed = False
        """Whether objects of ours may be known of which nobody has said yet what they are for."""
        self.table: KeyedTable[NexthopKey, Nexthop, KernelNexthop] = KeyedTable(
            "nexthops",
            self.resolve,
            ours=lambda key, nexthop: nexthop.protocol == self.ownership.device_route_protocol,
            interface_of=lambda key, nexthop: nexthop.interface,
            describe=lambda nexthop: f"a nexthop through {links.name_of(nexthop.interface)}",
        )

    def want(self, key: NexthopKey, nexthop: Nexthop) -> None:
        """Want a nexthop; it gets its number."""
        if key not in self._numbers:
            self._assign(key, nexthop)
        self.table.want(key, nexthop)

    def drop(self, key: NexthopKey) -> None:
        """No longer want a nexthop."""
        self.table.drop(key)
        self.release((key,))

    def release(self, keys: Iterable[NexthopKey]) -> None:
        """Free the numbers of keys that are neither wanted nor in the kernel."""
        for key in keys:
            if key in self._numbers and key not in self.table.desired and key not in self.table.committed:
                del self._keys[self._numbers.pop(key)]

    def number_of(self, key: NexthopKey) -> int:
        return self._numbers[key]

    def resolve(self, key: NexthopKey, nexthop: Nexthop) -> KernelNexthop:
        """The object as the kernel has it.

        Raises:
            Waiting: the interface cannot carry one now.
        """
        link = self.links.by_name.get(nexthop.interface)
        if link is None:
            raise Waiting(f"interface {nexthop.interface} does not exist", gone=True)
        if not link.up:
            raise Waiting(f"interface {nexthop.interface} is down")
        if self.has_objects and not link.carrier:
            raise Waiting(f"interface {nexthop.interface} has no carrier")
        return KernelNexthop(
            self._numbers[key], link.ifindex, nexthop.gateway, True, self.ownership.device_route_protocol
        )

    async def read(self, socket: NetlinkSocket) -> dict[NexthopKey, KernelNexthop]:
        """Our nexthops, those of unknown keys under a key made of the number.

        Raises:
            NetlinkError: the kernel refused.
        """
        try:
            found = list(chain.from_iterable(await socket.decode_together(nexthop_dump_request(), decode_nexthops)))
        except NetlinkError as error:
            if error.errno not in ABSENT_ERRORS:
                raise
            self.has_objects = False
            return dict(self.table.committed)
        ours = self.ownership.device_route_protocol
        self._foreign = {one.id for one in found if one.protocol != ours}
        # A node that has some of ours keeps them: the plain routes would leave them behind.
        self.has_objects = any(one.protocol == ours for one in found) or not takes_nexthops()
        if not self.has_objects:
            return dict(self.table.committed)
        return {self._key_of(one): one for one in found if one.protocol == ours}

    def settle(self) -> None:
        """Give found nexthops to keys that were wanted while they were read."""
        for key in [key for key in self.table.committed if not key.node]:
            named = self._keys.get(self.table.committed[key].id)
            if named is not None:
                self.table.rename(key, named)
        self._has_unnamed = any(not key.node for key in self.table.committed)
        self.release(list(self._numbers))

    def notify(self, message: Message) -> NexthopKey | None:
        """Take a nexthop notification. Returns the key of one that is gone, and with it its routes."""
        nexthop = decode_nexthop(message)
        key = self._keys.get(nexthop.id)
        if message.type == RTM_DELNEXTHOP:
            self._foreign.discard(nexthop.id)
            known = key or self._key_of(nexthop)
            if known in self.table.committed:
                self.table.observe(known, MISSING, self._clock())
                return known
        elif key is not None or nexthop.protocol == self.ownership.device_route_protocol:
            self.table.observe(key or self._key_of(nexthop), nexthop, self._clock())
        else:
            self._foreign.add(nexthop.id)
        return None

    def _assign(self, key: NexthopKey, nexthop: Nexthop) -> None:
        """The number whose object leads there already, of those that this key may have; else the first that is free."""
        if not self._has_unnamed:
            free = next(one for one in self._candidates(key) if one not in self._keys and one not in self._foreign)
            self._numbers[key], self._keys[free] = free, key
            return
        committed, first = self.table.committed, 0
        for number in self._candidates(key):
            if number in self._keys or number in self._foreign:
                continue
            found = committed.get(_unnamed(nexthop.gateway, number))
            if found is None:
                first = first or number
                break
            if found.gateway == nexthop.gateway and self.links.name_of(found.interface) == nexthop.interface:
                first = number
                break
            first = first or number
        self._numbers[key], self._keys[first] = first, key
        for family_gateway in (bytes(4), bytes(16)):
            unnamed = _unnamed(family_gateway, first)
            if unnamed in committed:
                self.table.rename(unnamed, key)

    def _candidates(self, key: NexthopKey) -> range:
        text = "\0".join((str(key.family.version), key.node, key.pool))
        start = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") >> (32 - _BITS)
        return range(_BASE + start, _BASE + start + (1 << 16))

    def _key_of(self, nexthop: KernelNexthop) -> NexthopKey:
        named = self._keys.get(nexthop.id)
        self._has_unnamed = self._has_unnamed or named is None
        return named or _unnamed(nexthop.gateway, nexthop.id)


def _unnamed(gateway: bytes, number: int) -> NexthopKey:
    """The key of an object of which nobody has said yet what it is for."""
    return NexthopKey(Family.V6 if len(gateway) == 16 else Family.V4, "", str(number))
