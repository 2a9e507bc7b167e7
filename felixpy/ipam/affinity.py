"""Which node a block belongs to: claimed and given back in an order in which nobody takes half of it for the whole.

    claim:    affinity pending ─► block ─► affinity confirmed
    release:  affinity pendingDeletion ─► block gone, or of no node while somebody has an address of it ─► affinity gone

Invariant: each step is written over what was read. Who finds that somebody else has written leaves the rest to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from datetime import UTC, datetime

from felixpy.ipam.block import block_spec, is_deleted, new_block, read_block
from felixpy.ipam.objects import AFFINITIES, BLOCKS, Conflict, Objects, Stored
from felixpy.model.names import MAX_NAME, cidr_name
from felixpy.model.net import Net


async def claim_block(objects: Objects, node: str, cidr: Net, *, strict: bool) -> Stored | None:
    """The block, if it is this node's afterwards.

    Raises:
        Unavailable
    """
    affinity = await _pending(objects, node, cidr)
    if affinity is None:
        return None
    held = await _made(objects, node, cidr, strict=strict)
    mine = held is not None and held.spec.get("affinity") == f"host:{node}"
    with contextlib.suppress(Conflict):  # who has changed it knows why
        if mine:
            await objects.replace(AFFINITIES, affinity, {**affinity.spec, "state": "confirmed"})
        else:
            await objects.delete(AFFINITIES, affinity)
    return held if mine else None


async def _pending(objects: Objects, node: str, cidr: Net) -> Stored | None:
    """Our affinity to a block in the state pending, None if somebody else is at it under our name."""
    name = affinity_name(node, cidr)
    spec = {"cidr": str(cidr), "node": node, "state": "pending", "type": "host", "deleted": False}
    held = await objects.get(AFFINITIES, name)
    try:
        if held is None:
            return await objects.create(AFFINITIES, name, spec)
        if held.spec.get("state") == "confirmed" and not is_deleted(held.spec):
            return held
        return await objects.replace(AFFINITIES, held, spec)
    except Conflict:
        return None


async def _made(objects: Objects, node: str, cidr: Net, *, strict: bool) -> Stored | None:
    """The block as it is there, a new one of this node if there was none."""
    name = cidr_name(cidr)
    held = await objects.get(BLOCKS, name)
    if held is not None and is_deleted(held.spec):  # whoever said so did not come to the end of it
        with contextlib.suppress(Conflict):
            await objects.delete(BLOCKS, held)
        held = None
    if held is None:
        # No earlier block of this CIDR can have had such a number.
        spec = block_spec(new_block(cidr, node, sequence=time.time_ns(), strict=strict))
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        with contextlib.suppress(Conflict):
            held = await objects.create(BLOCKS, name, {**spec, "affinityClaimTime": now})
        held = held or await objects.get(BLOCKS, name)
    return held


async def release_block(objects: Objects, node: str, cidr: Net, *, only_empty: bool = False) -> bool:
    """Give a block back. With ``only_empty`` one of which somebody has an address stays.

    Returns whether the node has it no more.

    Raises:
        Unavailable
        BlockError: the block cannot be read.
    """
    affinity = await objects.get(AFFINITIES, affinity_name(node, cidr))
    held = await objects.get(BLOCKS, cidr_name(cidr))
    block = read_block(held.spec) if held is not None and held.spec.get("affinity") == f"host:{node}" else None
    if only_empty and block is not None and not block.is_empty:
        return False
    try:
        if affinity is not None:
            affinity = await objects.replace(AFFINITIES, affinity, {"state": "pendingDeletion"})
        if held is not None and block is not None:
            if block.is_empty:
                await objects.delete(BLOCKS, held)
            else:
                gone = {"affinity": None, "affinityClaimTime": None, "sequenceNumber": block.sequence + 1}
                await objects.replace(BLOCKS, held, gone)
        if affinity is not None:
            await objects.delete(AFFINITIES, affinity)
    except Conflict:
        return False
    return True


def affinity_name(node: str, cidr: Net) -> str:
    """The name of a BlockAffinity, as Calico makes it; one that is too long is cut and ends with a hash."""
    block = cidr_name(cidr)
    if len(node) + 1 + len(block) < MAX_NAME:
        return f"{node}-{block}"
    digest = hashlib.sha256(f"{node}+{block}".encode()).hexdigest()[:11]
    return f"{node[: MAX_NAME - 14 - len(block)]}-{block}-{digest}"
