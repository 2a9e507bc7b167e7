"""Addresses out of Calico's blocks, which nodes claim of the pools: the store for clusters.

    own blocks ── full ──► claim one: affinity pending → block → affinity confirmed ── none free ──► borrow, if allowed

Invariant: a block is written only over the version that was read, so of two nodes that want one address or one block
one gets it; whoever loses a block takes its affinity back. Calls that come while a block is being written share the
next write. An ADD costs one write per family; a block more costs three. What a write that nobody answered may have done
is looked for and undone in the background.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog

from felixpy.ipam.assignment import NoAddress, Wanted
from felixpy.ipam.block import (
    Attribute,
    BadHandle,
    Block,
    BlockError,
    NotAffine,
    Release,
    assign,
    assign_address,
    block_spec,
    new_block,
    read_block,
    release,
    release_handle,
)
from felixpy.ipam.candidates import blocks_of, pools_for
from felixpy.ipam.objects import (
    AFFINITIES,
    BLOCKS,
    CONFIGURATION,
    CONFIGURATION_IN_STORE,
    RESERVATIONS,
    Conflict,
    Objects,
    Stored,
    Unavailable,
)
from felixpy.model.names import MAX_NAME, cidr_name
from felixpy.model.net import Family, Net, format_address
from felixpy.model.resources import IPPool
from felixpy.standing import Standing

log = structlog.get_logger("felixpy")

MAX_CONFLICTS = 100
"""As Calico: so often a block is read again because somebody else has written it."""
MAX_BORROWED_FROM = 64
DEFAULT_MAX_BLOCKS = 20
CONFIGURATION_SECONDS = 60.0
AGENT = "felixpy"
SWEEP_FIRST_SECONDS, SWEEP_LAST_SECONDS = 1.0, 60.0

TUNNEL_TYPES = frozenset({"ipipTunnelAddress", "vxlanTunnelAddress", "vxlanV6TunnelAddress"})
"""``type`` of an address that is a tunnel's, in Calico's words: no container has it, and yet it is in use."""

Change = Callable[[Block], tuple[Block, Any]]


@dataclass(frozen=True, slots=True)
class Rules:
    """IPAMConfiguration and IPReservations."""

    strict: bool = False
    most_blocks: int = DEFAULT_MAX_BLOCKS
    claims: bool = True
    cooldown_seconds: float = 0.0
    reserved: tuple[Net, ...] = ()


@dataclass(frozen=True, slots=True)
class Surroundings:
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
        self._writers: dict[Net, _Writer] = {}
        self._claimed: dict[Net, None] = {}
        """Blocks of ours that the watch may not have told of yet."""
        self._claiming = asyncio.Lock()
        self._rules = Rules()
        self._rules_until = 0.0
        self._released: dict[bytes, float] = {}
        self._handles: dict[str, None] = {}
        """Handles that are attached here, or are about to be."""
        self._doubtful: set[tuple[Net, str]] = set()
        self._sweeping: asyncio.Task[None] | None = None
        self._standing = Standing()

    # --- what is asked of a store ------------------------------------------------------------------------------

    async def assign(self, wanted: Wanted) -> tuple[Net, ...]:
        self._handles[wanted.handle] = None
        tried: set[Net] = set()
        families = wanted.families
        try:
            await self._know_rules()
            work = [self._assign(wanted, family, tried) for family in families]
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
        return tuple(one for one in found if isinstance(one, Net))

    async def release(self, handle: str, addresses: tuple[Net, ...]) -> None:
        by_block: dict[Net, list[Net]] = {}
        for address in addresses:
            if (cidr := self._block_of(address)) is not None:
                by_block.setdefault(cidr, []).append(address)
        try:
            for cidr, some in by_block.items():
                with contextlib.suppress(BadHandle):  # somebody else has it by now: then it was released
                    freed = await self._change(cidr, _releasing(some, handle))
                    self._released |= dict.fromkeys(freed or (), self._clock())
        except Unavailable as error:
            raise NoAddress(str(error), later=True) from None
        self._handles.pop(handle, None)

    def adopt(self, handle: str, addresses: tuple[Net, ...]) -> None:
        self._handles[handle] = None

    def exhausted(self, families: tuple[Family, ...]) -> str:
        for family in families:
            if not pools_for(self._around.pools(), family, (), self._around.labels(), {})[0]:
                return f"no {family} pool gives addresses to this node"
        return ""

    async def of_handle(self, handle: str) -> tuple[Net, ...]:
        """What a handle has in the blocks of this node.

        Raises:
            NoAddress: it cannot be told now.
        """
        found: list[Net] = []
        try:
            for cidr in self._own():
                block = await self._writer(cidr).read()
                found += [Net.host(packed) for packed in (block.by_handle() if block else {}).get(handle, ())]
        except Unavailable as error:
            raise NoAddress(str(error), later=True) from None
        return tuple(found)

    async def collect(self) -> int:
        """Release what this agent gave on this node and no attachment has: what a crash left. Returns how many."""
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
                    freed = await self._change(cidr, _releasing_handle(handle))
                    count += len(freed or ())
        return count

    # --- one address -------------------------------------------------------------------------------------------

    async def _assign(self, wanted: Wanted, family: Family, tried: set[Net]) -> Net:
        around = self._around
        attribute = Attribute(wanted.handle, {**wanted.attributes, "agent": AGENT})
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
        node, name = self._around.node, cidr_name(cidr)
        affinity = await self._pending(cidr)
        if affinity is None:
            return False
        held = await self._objects.get(BLOCKS, name)
        if held is None:
            # No earlier block of this CIDR can have had such a number.
            block = new_block(cidr, node, sequence=time.time_ns(), strict=self._rules.strict)
            with contextlib.suppress(Conflict):
                held = await self._objects.create(BLOCKS, name, block_spec(block))
            held = held or await self._objects.get(BLOCKS, name)
        mine = held is not None and held.spec.get("affinity") == f"host:{node}"
        with contextlib.suppress(Conflict):  # who has changed it knows why
            if mine:
                await self._objects.replace(AFFINITIES, affinity, {**affinity.spec, "state": "confirmed"})
            else:
                await self._objects.delete(AFFINITIES, affinity)
        if mine and held is not None:
            self._claimed[cidr] = None
            self._writer(cidr).hold(held)
        return mine

    async def _pending(self, cidr: Net) -> Stored | None:
        """Our affinity to a block in the state pending, None if somebody else is at it under our name."""
        name = affinity_name(self._around.node, cidr)
        spec = {"cidr": str(cidr), "node": self._around.node, "state": "pending", "type": "host", "deleted": False}
        held = await self._objects.get(AFFINITIES, name)
        try:
            if held is None:
                return await self._objects.create(AFFINITIES, name, spec)
            if held.spec.get("state") == "confirmed" and held.spec.get("deleted") not in (True, "true"):
                return held
            return await self._objects.replace(AFFINITIES, held, spec)
        except Conflict:
            return None

    # --- writing -----------------------------------------------------------------------------------------------

    def _writer(self, cidr: Net) -> _Writer:
        return self._writers.setdefault(cidr, _Writer(self._objects, cidr))

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
                        await writer.change(_releasing_handle(handle))
                    self._doubtful.discard((cidr, handle))
                except (Unavailable, BlockError):
                    continue
            if self._doubtful:
                await asyncio.sleep(pause)
                pause = min(2 * pause, SWEEP_LAST_SECONDS)

    async def settled(self) -> None:
        """Until nothing is in doubt any more."""
        while self._sweeping is not None and not self._sweeping.done():
            await asyncio.wait((self._sweeping,))


class _Writer:
    """One block: changes that come while it is written share the next write."""

    def __init__(self, objects: Objects, cidr: Net) -> None:
        self._objects = objects
        self._cidr = cidr
        self._held: Stored | None = None
        self._queue: list[tuple[Change, asyncio.Future[Any]]] = []
        self._writing: asyncio.Task[None] | None = None

    def hold(self, held: Stored) -> None:
        """Take what was just written or read."""
        self._held = held

    def forget(self) -> None:
        """Read the block anew before the next change."""
        self._held = None

    async def read(self) -> Block | None:
        self._held = await self._objects.get(BLOCKS, cidr_name(self._cidr))
        return read_block(self._held.spec) if self._held else None

    async def change(self, change: Change) -> Any:
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append((change, done))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.ensure_future(self._drain())
        return await done

    async def _drain(self) -> None:
        while self._queue:
            some, self._queue = [one for one in self._queue if not one[1].done()], []  # done: it was given up
            try:
                results = await self._write([change for change, _ in some])
            except (Unavailable, BlockError) as error:
                self._held = None
                results = [error] * len(some)
            for (_, done), result in zip(some, results, strict=True):
                if done.done():
                    continue
                if isinstance(result, Exception):
                    done.set_exception(result)
                else:
                    done.set_result(result)

    async def _write(self, changes: Sequence[Change]) -> list[Any]:
        for attempt in range(MAX_CONFLICTS):
            if self._held is None and await self.read() is None:
                return [None] * len(changes)
            held = self._held
            assert held is not None
            before = block = read_block(held.spec)
            results: list[Any] = []
            for change in changes:
                try:
                    block, result = change(block)
                except BlockError as error:
                    result = error
                results.append(result)
            if block == before:
                if all(result is not None and not isinstance(result, Exception) for result in results) or attempt:
                    return results
                self._held = None  # what was remembered may be old: a refusal is believed of what is there now
                continue
            one_change = replace(block, sequence=before.sequence + 1)
            try:
                self._held = await self._objects.replace(BLOCKS, held, block_spec(_renumbered(before, one_change)))
                return results
            except Conflict:
                self._held = None
                await asyncio.sleep(random.uniform(0, 0.001 * min(attempt, 20)))
        raise Unavailable(f"the block {self._cidr} is written by others all the time")


async def change_block(objects: Objects, cidr: Net, change: Change) -> Any:
    """One change of one block, for whoever is no agent.

    Raises:
        BlockError, Unavailable
    """
    return await _Writer(objects, cidr).change(change)


def _renumbered(before: Block, after: Block) -> Block:
    """Several changes in one write are one change: its sequence number is that of all that was given by it."""
    sequences = {
        ordinal: number if before.sequences.get(ordinal) == number else after.sequence
        for ordinal, number in after.sequences.items()
    }
    return replace(after, sequences=sequences)


def freeing(address: bytes) -> Change:
    """Frees an address whoever has it."""
    return lambda block: release(block, [Release(address)])


def _releasing(addresses: Sequence[Net], handle: str) -> Change:
    return lambda block: release(block, [Release(address.packed, handle) for address in addresses])


def _releasing_handle(handle: str) -> Change:
    return lambda block: release_handle(block, handle)


def affinity_name(node: str, cidr: Net) -> str:
    """The name of a BlockAffinity, as Calico makes it; one that is too long ends with a hash."""
    name = f"{node}-{cidr_name(cidr)}"
    if len(name) <= MAX_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:11]
    return f"{name[: MAX_NAME - 12]}-{digest}"


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
