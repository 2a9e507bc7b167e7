"""One block in a store that compares and swaps: changes are made over what was read, and read again until they fit.

Invariant: a block is written only over the version that was read. Changes that come while it is written share the next
write. A refusal is believed only of what was just read.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import replace

from felixpy.ipam.block import Block, BlockError, Release, block_spec, read_block, release, release_handle
from felixpy.ipam.objects import BLOCKS, Conflict, Objects, Stored, Unavailable
from felixpy.model.names import cidr_name
from felixpy.model.net import Net

MAX_CONFLICTS = 100
"""As Calico: so often a block is read again because somebody else has written it."""

Change = Callable[[Block], tuple[Block, Any]]
"""A block, and what it is afterwards with what came of it; None is a refusal."""


class BlockWriter:
    """One block: changes that come while it is written share the next write."""

    def __init__(self, objects: Objects, cidr: Net) -> None:
        self._objects = objects
        self._cidr = cidr
        self._held: Stored | None = None
        self.is_missing = False
        """Whether there was no such block when it was read last."""
        self._queue: list[tuple[Change, asyncio.Future[Any]]] = []
        self._writing: asyncio.Task[None] | None = None

    def hold(self, held: Stored) -> None:
        """Take what was just written or read."""
        self._held, self.is_missing = held, False

    def forget(self) -> None:
        """Read the block anew before the next change."""
        self._held = None

    async def read(self) -> Block | None:
        self._held = await self._objects.get(BLOCKS, cidr_name(self._cidr))
        self.is_missing = self._held is None
        return read_block(self._held.spec) if self._held else None

    def last(self) -> Block | None:
        """The block as it was written or read last, None if that is not known."""
        return read_block(self._held.spec) if self._held else None

    async def remove_if_unused(self) -> None:
        """Delete the block if nobody has an address of it, and no node it, as far as was written or read last."""
        held, block = self._held, self.last()
        if held is not None and block is not None and block.is_empty and block.affinity is None:
            self._held = None
            with contextlib.suppress(Conflict):  # somebody has taken one since
                await self._objects.delete(BLOCKS, held)

    async def change(self, change: Change) -> Any:
        """What a change gives, None if there is no such block.

        Raises:
            BlockError: the change is not possible.
            Unavailable: the store does not answer.
        """
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


def _renumbered(before: Block, after: Block) -> Block:
    """Several changes in one write are one change: its sequence number is that of all that was given by it."""
    sequences = {
        ordinal: number if before.sequences.get(ordinal) == number else after.sequence
        for ordinal, number in after.sequences.items()
    }
    return replace(after, sequences=sequences)


def releasing(addresses: Sequence[Net], handle: str) -> Change:
    """Frees addresses of a handle; gives those that were in use."""
    return lambda block: release(block, [Release(address.packed, handle) for address in addresses])


def releasing_handle(handle: str) -> Change:
    """Frees all that a handle has; gives those addresses."""
    return lambda block: release_handle(block, handle)
