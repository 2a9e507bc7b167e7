"""What an operator takes back: single addresses, and all that a node had that is gone.

    addresses out of their blocks ─► out of their handles ─► the node's blocks given back

Invariant: an address that another node borrowed of a block stays in use, and its block with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from felixpy.ipam.affinity import release_block
from felixpy.ipam.block import Block, Release, read_block, release
from felixpy.ipam.handles import lessen
from felixpy.ipam.objects import AFFINITIES, BLOCKS, Objects
from felixpy.ipam.writing import BlockWriter
from felixpy.model.net import Net


async def free_address(objects: Objects, cidr: Net, address: bytes) -> bool:
    """Free an address of a block whoever has it. Returns whether somebody had it.

    Raises:
        BlockError, Unavailable
    """
    return bool(await _free(objects, cidr, lambda block: [address]))


async def free_node(objects: Objects, node: str) -> int:
    """Free what a node has, in whosever block, and give its blocks back. Returns how many blocks it had.

    Raises:
        BlockError, Unavailable
        StillThere: somebody else wrote one of them meanwhile.
    """
    mine = {Net.parse(one.spec["cidr"]) for one in await objects.items(AFFINITIES) if one.spec.get("node") == node}
    for stored in await objects.items(BLOCKS):
        block = read_block(stored.spec)
        if block.affinity == node:
            mine.add(block.cidr)
        if _of_node(block, node):
            await _free(objects, block.cidr, lambda block: _of_node(block, node))
    for cidr in sorted(mine):
        if not await release_block(objects, node, cidr):
            raise StillThere(f"somebody else has just written block {cidr} or the affinity of {node} to it")
    return len(mine)


class StillThere(Exception):
    """A block could not be given back."""


def _of_node(block: Block, node: str) -> list[bytes]:
    """Addresses that a node has of a block; one that says no node is its owner's."""
    found = []
    for ordinal, index in enumerate(block.allocations):
        if index is not None and block.attributes[index].secondary.get("node", block.affinity) == node:
            found.append(block.address(ordinal))
    return found


async def _free(objects: Objects, cidr: Net, choose: Callable[[Block], list[bytes]]) -> int:
    """Free addresses of a block, and in their handles. Returns how many were in use."""

    def change(block: Block) -> tuple[Block, Counter[str | None]]:
        owners = {address: owner for address in choose(block) if (owner := block.owner(address)) is not None}
        block, freed = release(block, [Release(address) for address in owners])
        return block, Counter(owners[address].handle for address in freed)

    writer = BlockWriter(objects, cidr)
    found = await writer.change(change) or Counter()
    await writer.remove_if_unused()
    for handle, count in found.items():
        if handle is not None:
            await lessen(objects, handle, {cidr: count})
    return sum(found.values())
