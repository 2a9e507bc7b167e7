"""What blocks say together: who has how much, what is lost, and what two have. Pure.

Invariant: a finding names the object, what is wrong with it, and what to do; what cannot be known (pods, where no API
tells of them) is no finding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import Struct, field

from felixpy.ipam.block import Block, BlockError, is_deleted, read_block
from felixpy.model.net import Net, format_address

PodName = tuple[str, str]


class Facts(Struct, frozen=True):
    """Objects as they are stored. ``nodes``, ``pods`` (their addresses) and ``handles`` (their objects' names) are None
    where nobody tells of them.
    """

    blocks: Sequence[Mapping[str, Any]] = ()
    affinities: Sequence[Mapping[str, Any]] = ()
    pools: Sequence[Net] = ()
    nodes: frozenset[str] | None = None
    pods: Mapping[PodName, frozenset[bytes]] | None = None
    handles: Mapping[str, str] | None = None
    unreadable: list[str] = field(default_factory=list)


class Row(NamedTuple):
    """One block, for people. ``borrowed``: addresses that other nodes have of it."""

    cidr: Net
    node: str
    used: int
    size: int
    borrowed: int


def rows(facts: Facts) -> list[Row]:
    """The blocks that can be read, in the order of their addresses."""
    found = []
    for block in _readable(facts, []):
        used = len(block) - block.free
        nodes = [_node_of(block, address) for some in block.by_handle().values() for address in some]
        borrowed = sum(1 for node in nodes if node and node != block.affinity)
        found.append(Row(block.cidr, block.affinity or "", used, len(block), borrowed))
    return sorted(found)


def who_has(facts: Facts, address: bytes) -> str:
    """One sentence about one address."""
    text = format_address(address)
    for block in _readable(facts, []):
        if block.cidr.covers(address):
            owner = block.owner(address)
            of = f"block {block.cidr} of {block.affinity or 'no node'}"
            if owner is None:
                return f"{text} is free, in {of}"
            told = ", ".join(f"{key} {value}" for key, value in sorted(owner.secondary.items()))
            handle = owner.handle or "somebody without a handle"
            return f"{text} is in use by {handle} ({told or 'no more is told'}), in {of}"
    pool = next((pool for pool in facts.pools if pool.covers(address)), None)
    return f"{text} is in no block" + (f", but in the pool {pool}" if pool else " and in no pool")


def findings(facts: Facts) -> list[str]:
    """Everything that is wrong, one sentence each."""
    broken: list[str] = []
    blocks = sorted(_readable(facts, broken), key=lambda block: (block.cidr.family, block.cidr))
    found = [*broken, *_overlaps(blocks)]
    for block in blocks:
        if facts.pools and not any(pool.covers(block.cidr) for pool in facts.pools):
            found.append(f"block {block.cidr} is in no pool; make one that holds it, or delete the block")
        if facts.nodes is not None and block.affinity and block.affinity not in facts.nodes:
            found.append(
                f"block {block.cidr} belongs to {block.affinity}, which is no node any more; "
                f"felixpy ipam release --node {block.affinity}"
            )
    found += _affinity_findings(facts, blocks)
    found += _allocation_findings(facts, blocks)
    found += _handle_findings(facts, blocks)
    return found


def _readable(facts: Facts, broken: list[str]) -> Iterator[Block]:
    for spec in facts.blocks:
        try:
            block = read_block(_as_a_whole(spec))
        except BlockError as error:
            broken.append(f"{error}; look at it with kubectl get ipamblock, or delete it if nobody uses it")
            continue
        if not block.deleted:
            yield block


def _as_a_whole(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """A block that an operator assigned says nothing of single addresses: all of them are free."""
    if spec.get("allocations") or spec.get("unallocated"):
        return spec
    try:
        net = Net.parse(str(spec.get("cidr")))
    except ValueError:
        return spec
    size = 1 << (len(net.packed) * 8 - net.length)
    return {**spec, "allocations": [None] * size, "unallocated": list(range(size))} if size <= 1 << 16 else spec


def _node_of(block: Block, address: bytes) -> str | None:
    owner = block.owner(address)
    return owner.secondary.get("node") if owner else None


def _overlaps(blocks: Sequence[Block]) -> Iterator[str]:
    covering: list[Block] = []
    for block in blocks:
        while covering and not covering[-1].cidr.covers(block.cidr):
            covering.pop()
        if covering:
            first = covering[-1]
            yield (
                f"block {block.cidr} of {block.affinity or 'no node'} lies in block {first.cidr} of "
                f"{first.affinity or 'no node'}: its addresses may have two owners; release one of them"
            )
        covering.append(block)


def _affinity_findings(facts: Facts, blocks: Iterable[Block]) -> Iterator[str]:
    owners = {block.cidr: block.affinity for block in blocks}
    confirmed: dict[Net, str] = {}
    for spec in facts.affinities:
        try:
            cidr, node = Net.parse(spec["cidr"]), str(spec["node"])
        except (KeyError, ValueError, TypeError) as error:
            yield f"a BlockAffinity cannot be read: {error}"
            continue
        if is_deleted(spec) or spec.get("state") != "confirmed":
            continue
        if cidr in confirmed:
            yield f"block {cidr} has two confirmed affinities: {confirmed[cidr]} and {node}; delete one of them"
        confirmed[cidr] = node
        if cidr not in owners:
            yield f"{node} has a confirmed affinity to block {cidr}, which is not there; delete the affinity"
        elif owners[cidr] != node:
            yield f"{node} has a confirmed affinity to block {cidr}, which belongs to {owners[cidr] or 'no node'}"


def _allocation_findings(facts: Facts, blocks: Iterable[Block]) -> Iterator[str]:
    given: dict[bytes, str] = {}
    for block in blocks:
        for address, owner in _allocations(block):
            text, said = format_address(address), owner.secondary
            given[address] = owner.handle or ""
            node, pod = said.get("node"), (said.get("namespace", ""), said.get("pod", ""))
            if facts.nodes is not None and node and node not in facts.nodes:
                yield f"{text} is in use by {owner.handle} of {node}, no node any more; felixpy ipam release {text}"
            elif facts.pods is not None and all(pod) and pod not in facts.pods:
                yield f"{text} is in use by pod {'/'.join(pod)}, which is not there; felixpy ipam release {text}"
    had: dict[bytes, PodName] = {}
    for name, addresses in (facts.pods or {}).items():
        for address in sorted(addresses):
            text = format_address(address)
            if address in had:
                both = f"{'/'.join(had[address])} and {'/'.join(name)}"
                yield f"{text} is the address of two pods: {both}; delete one of them"
            had[address] = name
            if address not in given and any(block.cidr.covers(address) for block in blocks):
                yield f"{text} of pod {'/'.join(name)} is free in its block: it may be given twice; delete the pod"


def _handle_findings(facts: Facts, blocks: Iterable[Block]) -> Iterator[str]:
    if facts.handles is None:
        return
    used = {owner.handle for block in blocks for _, owner in _allocations(block)}
    for handle, name in sorted(facts.handles.items()):
        if handle not in used:
            yield f"the handle {handle} has no address in any block; kubectl delete ipamhandle {name}"
    for handle in sorted(used - {None} - set(facts.handles), key=str):
        yield f"the handle {handle} has addresses and no IPAMHandle; the agent of its node writes it at its next start"


def _allocations(block: Block) -> Iterator[tuple[bytes, Any]]:
    for ordinal, index in enumerate(block.allocations):
        if index is not None:
            yield block.address(ordinal), block.attributes[index]
