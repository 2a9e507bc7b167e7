"""Addresses out of Calico's blocks, which nodes claim of the pools: the store for clusters.

    own blocks ── full ──► claim one: affinity pending → block → affinity confirmed ── none free ──► borrow, if allowed

Invariant: a block is written only over the version that was read, so of two nodes that want one address or one block
one gets it; whoever loses a block takes its affinity back. Calls that come while a block is being written share the
next write. An ADD waits for one write per family, and three for a block more; its handle is written beside it. What a
write that nobody answered may have done is looked for and undone in the background.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import structlog
from msgspec import Struct

from felixpy.ipam.affinity import claim_block, release_block
from felixpy.ipam.assignment import NoAddress, Wanted
from felixpy.ipam.block import Attribute, BadHandle, Block, BlockError, NotAffine, assign, assign_address
from felixpy.ipam.candidates import blocks_of, pools_for
from felixpy.ipam.handles import Handles
from felixpy.ipam.objects import CONFIGURATION, CONFIGURATION_IN_STORE, RESERVATIONS, Objects, Unavailable
from felixpy.ipam.writing import BlockWriter, Change, releasing, releasing_handle
from felixpy.model.net import Family, Net, format_address
from felixpy.model.resources import IPPool
from felixpy.standing import Standing

log = structlog.get_logger("felixpy")

MAX_BORROWED_FROM = 64
DEFAULT_MAX_BLOCKS = 20
CONFIGURATION_SECONDS = 60.0
AGENT = "felixpy"
SWEEP_FIRST_SECONDS, SWEEP_LAST_SECONDS = 1.0, 60.0

TUNNEL_TYPES = frozenset({
    "ipipTunnelAddress", "vxlanTunnelAddress", "vxlanV6TunnelAddress", "wireguardTunnelAddress",
    "wireguardV6TunnelAddress",
})  # fmt: skip
"""``type`` of an address that is a tunnel's, in Calico's words: no container has it, and yet it is in use."""


class Rules(Struct, frozen=True):
    """IPAMConfiguration and IPReservations."""

    strict: bool = False
    most_blocks: int = DEFAULT_MAX_BLOCKS
    claims: bool = True
    cooldown_seconds: float = 0.0
    reserved: tuple[Net, ...] = ()


class Surroundings(Struct, frozen=True):
    """What of the cluster is known without asking: pools, whose blocks there are, labels of this node."""

    node: str
    pools: Callable[[], Iterable[IPPool]]
    blocks: Callable[[], Iterable[tuple[Net, str | None]]]
    labels: Callable[[], Mapping[str, str]] = dict


class CalicoBlocks:
    """A store over objects with compare-and-swap."""

    def __init__(
        self, objects: Objects, surroundings: Surroundings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._objects = objects
        self._around = surroundings
        self._clock = clock
        self._writers: dict[Net, BlockWriter] = {}
        self._claimed: dict[Net, None] = {}
        """Blocks of ours that the watch may not have told of yet."""
        self._claiming = asyncio.Lock()
        self._rules = Rules()
        self._rules_until = 0.0
        self._released: dict[bytes, float] = {}
        self._handles: dict[str, tuple[Net, ...]] = {}
        """Handles that are attached here, or are about to be, and what they have as far as it is given."""
        self._unseen: set[str] = set()
        """Handles of an earlier run, whose objects have not been looked for yet."""
        self._index = Handles(objects)
        self._doubtful: set[tuple[Net, str]] = set()
        self._sweeping: asyncio.Task[None] | None = None
        self._standing = Standing()

    # --- what is asked of a store ------------------------------------------------------------------------------

    async def assign(self, wanted: Wanted) -> tuple[Net, ...]:
        before = self._handles.setdefault(wanted.handle, ())
        tried: set[Net] = set()
        attribute = Attribute(wanted.handle, {**wanted.attributes, "agent": AGENT, "timestamp": _timestamp()})
        try:
            await self._know_rules()
            work = [self._assign(wanted, attribute, family, tried) for family in wanted.families]
            found = await asyncio.gather(*work, return_exceptions=True)
            for one in found:
                if isinstance(one, BaseException):
                    raise one
        except BaseException as error:
            self._handles.pop(wanted.handle, None)
            self._doubt(tried, wanted.handle)
            if isinstance(error, Unavailable):
                raise NoAddress(str(error), later=True) from None
            raise
        given = tuple(one for one in found if isinstance(one, Net))
        self._handles[wanted.handle] = (*before, *given)
        self._index.write(wanted.handle, self._counts(self._handles[wanted.handle]), new=not before)
        return given

    async def release(self, handle: str, addresses: tuple[Net, ...]) -> None:
        if not addresses and handle not in self._handles:
            return
        by_block: dict[Net, list[Net]] = {}
        for address in addresses:
            if (cidr := self._block_of(address)) is not None:
                by_block.setdefault(cidr, []).append(address)
        kept = tuple(one for one in self._handles.get(handle, ()) if one not in addresses)
        try:
            await asyncio.gather(*(self._release(cidr, some, handle) for cidr, some in by_block.items()))
            if kept:
                self._index.write(handle, self._counts(kept))
            else:
                await self._index.drop(handle)
        except Unavailable as error:
            raise NoAddress(str(error), later=True) from None
        if kept:
            self._handles[handle] = kept
        else:
            self._handles.pop(handle, None)

    async def _release(self, cidr: Net, addresses: list[Net], handle: str) -> None:
        with contextlib.suppress(BadHandle):  # somebody else has it by now: then it was released
            freed = await self._change(cidr, releasing(addresses, handle))
            self._released |= dict.fromkeys(freed or (), self._clock())
            await self._tidy(cidr)

    def adopt(self, handle: str, addresses: tuple[Net, ...]) -> None:
        if self._handles.get(handle) != addresses:
            self._handles[handle] = addresses
            self._unseen.add(handle)

    def exhausted(self, families: tuple[Family, ...]) -> str:
        for family in families:
            if not pools_for(self._around.pools(), family, (), self._around.labels(), {})[0]:
                return f"no {family} pool gives addresses to this node"
        return ""

    async def by_handle(self) -> dict[str, tuple[Net, ...]]:
        """What each handle has in the blocks of this node, each of which is read once.

        Raises:
            NoAddress: it cannot be told now.
        """
        found: dict[str, tuple[Net, ...]] = {}
        try:
            for cidr in self._own():
                block = await self._writer(cidr).read()
                for handle, addresses in (block.by_handle() if block else {}).items():
                    if handle is not None:
                        found[handle] = (*found.get(handle, ()), *map(Net.host, addresses))
        except Unavailable as error:
            raise NoAddress(str(error), later=True) from None
        return found

    async def collect(self) -> int:
        """Release what this agent gave on this node and no attachment has: what a crash left. Returns how many."""
        self._look_for_handles()
        count = 0
        for cidr in self._own():
            held = await self._writer(cidr).read()
            for attribute in held.attributes if held else ():
                mine = (
                    attribute.secondary.get("agent") == AGENT and attribute.secondary.get("node") == self._around.node
                )
                mine = mine and attribute.secondary.get("type", "") not in TUNNEL_TYPES
                handle = attribute.handle
                if mine and handle is not None and handle not in self._handles:
                    freed = await self._change(cidr, releasing_handle(handle))
                    await self._index.drop(handle)
                    count += len(freed or ())
        return count

    def _look_for_handles(self) -> None:
        """What an earlier run gave has its handle, too, if that run did not come to it."""
        while self._unseen:
            handle = self._unseen.pop()
            if counts := self._counts(self._handles.get(handle, ())):
                self._index.write(handle, counts)

    def _counts(self, addresses: Iterable[Net]) -> Counter[Net]:
        return Counter(cidr for address in addresses if (cidr := self._block_of(address)) is not None)

    # --- one address -------------------------------------------------------------------------------------------

    async def _assign(self, wanted: Wanted, attribute: Attribute, family: Family, tried: set[Net]) -> Net:
        around = self._around
        asked = wanted.pools.get(family, ())
        pools, unknown = pools_for(around.pools(), family, asked, around.labels(), wanted.namespace_labels, wanted.use)
        if unknown:
            raise NoAddress(f"{', '.join(unknown)}: no {family} pool has this name or CIDR and gives addresses")
        for address in wanted.requested:
            if address.family is family:
                return await self._assign_requested(address, attribute, tried)
        if not pools:
            raise NoAddress(
                f"no {family} pool gives addresses to this node and this namespace; make an IPPool", later=True
            )
        for cidr in self._own(family, pools):
            if found := await self._take(cidr, attribute, tried, own=True):
                return found
        async with self._claiming:
            for cidr in self._own(family, pools):  # somebody else may have claimed one meanwhile
                if found := await self._take(cidr, attribute, tried, own=True):
                    return found
            if (claimed := await self._claim(family, pools)) and (
                found := await self._take(claimed, attribute, tried, own=True)
            ):
                return found
        if not self._rules.strict:
            for cidr in self._others(family, pools):
                if found := await self._take(cidr, attribute, tried, own=False):
                    return found
        names = ", ".join(f"{pool.key.name} ({pool.cidr})" for pool in pools)
        raise NoAddress(f"no {family} address is free for this node in {names}{self._why_full()}")

    def _why_full(self) -> str:
        rules = self._rules
        if not rules.claims:
            return "; IPAMConfiguration has autoAllocateBlocks=false"
        if rules.strict and len(list(self._own())) >= rules.most_blocks > 0:
            return f"; this node has maxBlocksPerHost={rules.most_blocks} blocks"
        return ""

    async def _take(self, cidr: Net, attribute: Attribute, tried: set[Net], *, own: bool) -> Net | None:
        """One address of a block, None if it has none for us."""
        node = self._around.node if own else None
        strict = not own

        def change(block: Block) -> tuple[Block, bytes | None]:
            if block.deleted or (strict and block.strict):
                return block, None
            block, found = assign(block, attribute, node=node, blocked=self._is_blocked)
            return block, found[0] if found else None

        tried.add(cidr)
        try:
            packed = await self._change(cidr, change)
        except NotAffine:
            self._claimed.pop(cidr, None)
            packed = None
        except BlockError as error:
            self._standing.fails(f"block {cidr} cannot be used", str(error))
            packed = None
        else:
            self._standing.works(f"block {cidr} cannot be used")
        if packed is None:
            tried.discard(cidr)
            if self._writer(
                cidr
            ).is_missing:  # somebody gave it back for us, as Calico's controllers do with empty ones
                self._claimed.pop(cidr, None)
            return None
        return Net.host(packed)

    async def _assign_requested(self, address: Net, attribute: Attribute, tried: set[Net]) -> Net:
        text = format_address(address.packed)
        cidr = self._block_of(address)
        if cidr is None:
            raise NoAddress(f"the address {text} that is asked for is in no pool")
        tried.add(cidr)
        if not any(cidr == known for known, _ in self._known()):
            async with self._claiming:
                await self._claim_block(cidr)

        def change(block: Block) -> tuple[Block, bool]:
            return assign_address(block, attribute, address.packed), True

        try:
            if await self._change(cidr, change) is None:
                raise NoAddress(f"the block {cidr} of the address {text} that is asked for is not there", later=True)
        except BlockError as error:
            tried.discard(cidr)
            raise NoAddress(f"the address that is asked for cannot be had: {error}", later=True) from None
        return address

    def _is_blocked(self, address: bytes) -> bool:
        released = self._released.get(address)
        if released is not None:
            if self._clock() - released < self._rules.cooldown_seconds:
                return True
            del self._released[address]
        return any(net.covers(address) for net in self._rules.reserved)

    # --- blocks ------------------------------------------------------------------------------------------------

    def _known(self) -> Iterator[tuple[Net, str | None]]:
        yield from self._around.blocks()
        yield from ((cidr, self._around.node) for cidr in self._claimed)

    def _own(self, family: Family | None = None, pools: Sequence[IPPool] | None = None) -> list[Net]:
        mine = dict.fromkeys(cidr for cidr, node in self._known() if node == self._around.node)
        some = [cidr for cidr in mine if family is None or cidr.family is family]
        if pools is not None:
            some = [cidr for cidr in some if any(pool.cidr.covers(cidr) for pool in pools)]
        return sorted(some)

    def _others(self, family: Family, pools: Sequence[IPPool]) -> list[Net]:
        """Blocks to borrow of, in random order, so that not every node asks the same one."""
        found = [
            cidr
            for cidr, node in self._known()
            if node not in (None, self._around.node) and any(pool.cidr.covers(cidr) for pool in pools)
        ]
        return random.sample(found, min(len(found), MAX_BORROWED_FROM))

    def _block_of(self, address: Net) -> Net | None:
        for cidr, _ in self._known():
            if cidr.covers(address):
                return cidr
        covering = [pool for pool in self._around.pools() if pool.cidr.covers(address)]
        best = max(covering, key=lambda pool: pool.cidr.length, default=None)
        return Net(address.packed, address.length).widened(best.block_size) if best else None

    async def _claim(self, family: Family, pools: Sequence[IPPool]) -> Net | None:
        """A block more for this node, None if there is none to be had."""
        rules = self._rules
        if not rules.claims or (rules.strict and 0 < rules.most_blocks <= len(self._own())):
            return None
        taken = {cidr for cidr, _ in self._known()}
        for pool in pools:
            for cidr in blocks_of(pool.cidr, pool.block_size, self._around.node):
                if cidr in taken or any(net.covers(cidr) for net in rules.reserved):
                    continue
                if await self._claim_block(cidr):
                    return cidr
        return None

    async def _claim_block(self, cidr: Net) -> bool:
        """Whether the block is this node's afterwards."""
        held = await claim_block(self._objects, self._around.node, cidr, strict=self._rules.strict)
        if held is not None:
            self._claimed[cidr] = None
            self._writer(cidr).hold(held)
        return held is not None

    async def _tidy(self, cidr: Net) -> None:
        """An empty block goes if it is no node's, or this one's and its pool is not for this node any more."""
        writer = self._writer(cidr)
        block = writer.last()
        await writer.remove_if_unused()
        is_ours = block is not None and block.is_empty and block.affinity == self._around.node
        if is_ours and not self._is_for_us(cidr):
            writer.forget()
            if await release_block(self._objects, self._around.node, cidr, only_empty=True):
                self._claimed.pop(cidr, None)

    def _is_for_us(self, cidr: Net) -> bool:
        """Whether a pool of it selects this node, or there is none of it."""
        covering = [pool for pool in self._around.pools() if pool.cidr.covers(cidr)]
        return not covering or any(pool.node_selector.matches(self._around.labels()) for pool in covering)

    # --- writing -----------------------------------------------------------------------------------------------

    def _writer(self, cidr: Net) -> BlockWriter:
        return self._writers.setdefault(cidr, BlockWriter(self._objects, cidr))

    async def _change(self, cidr: Net, change: Change) -> Any:
        """What a change of a block gives, None if there is no such block.

        Raises:
            BlockError: the change is not possible.
            Unavailable: the store does not answer.
        """
        return await self._writer(cidr).change(change)

    async def _know_rules(self) -> None:
        if self._clock() < self._rules_until:
            return
        held = await self._objects.get(CONFIGURATION, "default")
        held = held or await self._objects.get(CONFIGURATION_IN_STORE, "default")
        reservations = await self._objects.items(RESERVATIONS)
        self._rules = rules_of(held.spec if held else {}, [one.spec for one in reservations])
        self._rules_until = self._clock() + CONFIGURATION_SECONDS

    # --- what may be left --------------------------------------------------------------------------------------

    def _doubt(self, cidrs: Iterable[Net], handle: str) -> None:
        """An assignment failed: of these blocks it may have got an address."""
        self._doubtful |= {(cidr, handle) for cidr in cidrs}
        if self._doubtful and (self._sweeping is None or self._sweeping.done()):
            self._sweeping = asyncio.ensure_future(self._sweep())

    async def _sweep(self) -> None:
        pause = SWEEP_FIRST_SECONDS
        while self._doubtful:
            for cidr, handle in list(self._doubtful):
                try:
                    if handle not in self._handles:  # it did not succeed meanwhile
                        writer = self._writer(cidr)
                        writer.forget()
                        await writer.change(releasing_handle(handle))
                    self._doubtful.discard((cidr, handle))
                except (Unavailable, BlockError):
                    continue
            if self._doubtful:
                await asyncio.sleep(pause)
                pause = min(2 * pause, SWEEP_LAST_SECONDS)

    async def settled(self) -> None:
        """Until nothing is in doubt any more, and every handle is written."""
        while self._sweeping is not None and not self._sweeping.done():
            await asyncio.wait((self._sweeping,))
        await self._index.settled()


def _timestamp() -> str:
    """Now, as Calico's plugin writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f +0000 UTC")


def rules_of(configuration: Mapping[str, Any], reservations: Iterable[Mapping[str, Any]]) -> Rules:
    """What the objects say; what is not readable in them is as if it were absent."""
    reserved = []
    for reservation in reservations:
        for text in reservation.get("reservedCIDRs") or []:
            with contextlib.suppress(ValueError, TypeError):
                reserved.append(Net.parse_masked(text))
    most = configuration.get("maxBlocksPerHost")
    return Rules(
        strict=configuration.get("strictAffinity") is True,
        most_blocks=most if isinstance(most, int) and most > 0 else DEFAULT_MAX_BLOCKS,
        claims=configuration.get("autoAllocateBlocks") is not False,
        cooldown_seconds=float(configuration.get("ipCooldownSeconds") or 0),
        reserved=tuple(reserved),
    )
