"""Calico's block of addresses: who has which, in what order they are given. Pure: block in, block out.

    unallocated: [5, 6, 7, 3] ── assign ──► allocations[5] = attribute    (the one that has been free for longest)
    allocations[5]            ── release ─► unallocated: […, 5]

Invariant: an ordinal is in ``unallocated`` or has an attribute, never both; every attribute has an ordinal; the
sequence number grows with every change, and each allocation keeps that of its own, so a release that is late frees no
address that somebody else has by now. Source: Calico, design/ipam/ipam-core-library.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import Struct, field
from msgspec.structs import replace

from felixpy.model.net import Net, format_address

Blocked = Callable[[bytes], bool]
"""Whether an address may not be given now: reserved, or released a moment ago."""


class BlockError(Exception):
    """Why a change cannot be made to a block."""


class BadSequenceNumber(BlockError):
    """The address was released and given anew since."""


class BadHandle(BlockError):
    """Somebody else has the address."""


class Taken(BlockError):
    """An address that is asked for is not free."""


class NotAffine(BlockError):
    """The block is another node's."""


class Attribute(Struct, frozen=True):
    """Whose an allocation is: a handle, and facts of its owner (node, namespace, pod). ``other``: what else is said."""

    handle: str | None
    secondary: Mapping[str, str] = field(default_factory=dict)
    other: Mapping[str, Any] = field(default_factory=dict)


class Release(NamedTuple):
    """What is to be released; ``handle`` and ``sequence`` are compared if they are given."""

    address: bytes
    handle: str | None = None
    sequence: int | None = None


class Block(Struct, frozen=True):
    """A block. ``affinity`` is the node that it belongs to; ``allocations`` are indexes of attributes by ordinal."""

    cidr: Net
    affinity: str | None
    allocations: tuple[int | None, ...]
    unallocated: tuple[int, ...]
    attributes: tuple[Attribute, ...] = ()
    sequence: int = 0
    sequences: Mapping[int, int] = field(default_factory=dict)
    strict: bool = False
    deleted: bool = False

    def __len__(self) -> int:
        return len(self.allocations)

    @property
    def free(self) -> int:
        return len(self.unallocated)

    @property
    def is_empty(self) -> bool:
        return not self.attributes

    def address(self, ordinal: int) -> bytes:
        first = int.from_bytes(self.cidr.packed, "big")
        return (first + ordinal).to_bytes(len(self.cidr.packed), "big")

    def ordinal(self, address: bytes) -> int:
        """Where an address stands.

        Raises:
            BlockError: it is not of this block.
        """
        if not self.cidr.covers(address):
            raise BlockError(f"{format_address(address)} is not in {self.cidr}")
        return int.from_bytes(address, "big") - int.from_bytes(self.cidr.packed, "big")

    def owner(self, address: bytes) -> Attribute | None:
        index = self.allocations[self.ordinal(address)]
        return None if index is None else self.attributes[index]

    def by_handle(self) -> dict[str | None, list[bytes]]:
        """Addresses in use, by handle."""
        found: dict[str | None, list[bytes]] = {}
        for ordinal, index in enumerate(self.allocations):
            if index is not None:
                found.setdefault(self.attributes[index].handle, []).append(self.address(ordinal))
        return found


def new_block(cidr: Net, node: str | None, *, sequence: int = 0, strict: bool = False) -> Block:
    """A block of which every address is free. ``sequence``: one that no earlier block of this CIDR can have had."""
    size = 1 << (len(cidr.packed) * 8 - cidr.length)
    return Block(cidr, node, (None,) * size, tuple(range(size)), sequence=sequence, strict=strict)


def assign(
    block: Block, attribute: Attribute, count: int = 1, *, node: str | None = None, blocked: Blocked = lambda one: False
) -> tuple[Block, tuple[bytes, ...]]:
    """Give up to ``count`` addresses, those first that have been free for longest.

    Args:
        node: who asks, if only the block's own node may have them.

    Raises:
        NotAffine: the block belongs to another node, or to none.
    """
    if node is not None and block.affinity != node:
        raise NotAffine(f"{block.cidr} belongs to {block.affinity or 'no node'}, not to {node}")
    chosen: list[int] = []
    for ordinal in block.unallocated:
        if len(chosen) == count:
            break
        if not blocked(block.address(ordinal)):
            chosen.append(ordinal)
    if not chosen:
        return block, ()
    return _allocate(block, chosen, attribute), tuple(map(block.address, chosen))


def assign_address(block: Block, attribute: Attribute, address: bytes) -> Block:
    """Give one certain address.

    Raises:
        Taken: somebody has it.
    """
    ordinal = block.ordinal(address)
    if block.allocations[ordinal] is not None:
        owner = block.owner(address)
        raise Taken(f"{format_address(address)} is in use by {(owner and owner.handle) or 'somebody without a handle'}")
    return _allocate(block, [ordinal], attribute)


def _allocate(block: Block, ordinals: Sequence[int], attribute: Attribute) -> Block:
    attributes = block.attributes
    if attribute not in attributes:
        attributes = (*attributes, attribute)
    index = attributes.index(attribute)
    sequence = block.sequence + 1
    allocations, gone = list(block.allocations), set(ordinals)
    for ordinal in ordinals:
        allocations[ordinal] = index
    return replace(
        block,
        allocations=tuple(allocations),
        unallocated=tuple(one for one in block.unallocated if one not in gone),
        attributes=attributes,
        sequence=sequence,
        sequences={**block.sequences, **dict.fromkeys(ordinals, sequence)},
    )


def release(block: Block, releases: Iterable[Release]) -> tuple[Block, tuple[bytes, ...]]:
    """Free addresses, all or none; those that are free already are left out of what comes back.

    Raises:
        BadHandle, BadSequenceNumber: one of them is somebody else's by now.
    """
    ordinals: list[int] = []
    for address, handle, sequence in releases:
        ordinal = block.ordinal(address)
        owner = block.owner(address)
        if owner is None or ordinal in ordinals:
            continue
        if handle is not None and owner.handle != handle:
            raise BadHandle(f"{format_address(address)} belongs to {owner.handle}, not to {handle}")
        if sequence is not None and block.sequences.get(ordinal, sequence) != sequence:
            raise BadSequenceNumber(
                f"{format_address(address)} was given anew: sequence number {block.sequences[ordinal]}, not {sequence}"
            )
        ordinals.append(ordinal)
    return _free(block, ordinals)


def release_handle(block: Block, handle: str) -> tuple[Block, tuple[bytes, ...]]:
    """Free everything that a handle has in this block."""
    indexes = {index for index, attribute in enumerate(block.attributes) if attribute.handle == handle}
    return _free(block, [ordinal for ordinal, index in enumerate(block.allocations) if index in indexes])


def _free(block: Block, ordinals: Sequence[int]) -> tuple[Block, tuple[bytes, ...]]:
    if not ordinals:
        return block, ()
    gone = set(ordinals)
    allocations = [None if ordinal in gone else index for ordinal, index in enumerate(block.allocations)]
    kept = sorted({index for index in allocations if index is not None})
    new_index = {old: new for new, old in enumerate(kept)}
    freed = replace(
        block,
        allocations=tuple(None if index is None else new_index[index] for index in allocations),
        unallocated=(*block.unallocated, *ordinals),
        attributes=tuple(block.attributes[index] for index in kept),
        sequence=block.sequence + 1,
        sequences={ordinal: number for ordinal, number in block.sequences.items() if ordinal not in gone},
    )
    return freed, tuple(map(block.address, ordinals))


# --- as an object of the API ------------------------------------------------------------------------------------


def block_spec(block: Block) -> dict[str, Any]:
    """``spec`` of an IPAMBlock."""
    return {
        "cidr": str(block.cidr),
        "affinity": f"host:{block.affinity}" if block.affinity else None,
        "strictAffinity": block.strict,
        "allocations": list(block.allocations),
        "unallocated": list(block.unallocated),
        "attributes": [
            {"handle_id": one.handle, "secondary": dict(one.secondary), **one.other} for one in block.attributes
        ],
        "sequenceNumber": block.sequence,
        "sequenceNumberForAllocation": {str(ordinal): number for ordinal, number in sorted(block.sequences.items())},
        "deleted": block.deleted,
    }


def read_block(spec: Mapping[str, Any]) -> Block:
    """A block out of ``spec``.

    Raises:
        BlockError: it holds together nowhere: to assign of it would give addresses twice.
    """
    try:
        cidr = Net.parse(spec["cidr"])
        affinity = spec.get("affinity") or ""
        attributes = tuple(
            Attribute(
                one.get("handle_id"),
                dict(one.get("secondary") or {}),
                {key: value for key, value in one.items() if key not in ("handle_id", "secondary")},
            )
            for one in spec.get("attributes") or []
        )
        block = Block(
            cidr,
            affinity.removeprefix("host:") if affinity.startswith("host:") else None,
            tuple(spec.get("allocations") or ()),
            tuple(spec.get("unallocated") or ()),
            attributes,
            int(spec.get("sequenceNumber") or 0),
            {int(one): int(number) for one, number in (spec.get("sequenceNumberForAllocation") or {}).items()},
            bool(spec.get("strictAffinity")),
            is_deleted(spec),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BlockError(f"an IPAMBlock cannot be read: {error}") from None
    check(block)
    return block


def is_deleted(spec: Mapping[str, Any]) -> bool:
    """Whether somebody has begun to delete an object: what Calico's library writes first, and ends if it finds it."""
    return spec.get("deleted") in (True, "true")


def check(block: Block) -> None:
    """Whether a block says one thing of every address.

    Raises:
        BlockError
    """
    size = 1 << (len(block.cidr.packed) * 8 - block.cidr.length)
    if len(block.allocations) != size:
        raise BlockError(f"{block.cidr} has {len(block.allocations)} allocations; {size} is its size")
    free = set(block.unallocated)
    if len(free) != len(block.unallocated):
        raise BlockError(f"{block.cidr} lists an address as free twice")
    for ordinal, index in enumerate(block.allocations):
        if (index is None) != (ordinal in free):
            address = format_address(block.address(ordinal))
            raise BlockError(
                f"{block.cidr}: {address} is {'in use and free' if ordinal in free else 'neither used nor free'}"
            )
        if index is not None and not 0 <= index < len(block.attributes):
            raise BlockError(f"{block.cidr}: {format_address(block.address(ordinal))} has no owner")
    if not free <= set(range(size)):
        raise BlockError(f"{block.cidr} lists addresses that it does not have")
