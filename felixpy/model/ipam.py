"""IPAMBlock and BlockAffinity: which node a block of addresses belongs to, and who borrows from it."""

from __future__ import annotations

from felixpy.model.invalid import InvalidResource
from felixpy.model.names import check_name
from felixpy.model.net import Net, quote
from felixpy.model.objects import BlockAffinitySpec, BlockAttribute, IPAMBlockSpec
from felixpy.model.pool import prefix
from felixpy.model.resources import Absent, BlockAffinity, Borrowed, IPAMBlock, ResourceKey

MAX_ALLOCATIONS = 4096  # addresses of the largest blocks, /20 and /116


def convert_ipam_block(key: ResourceKey, spec: IPAMBlockSpec) -> IPAMBlock | Absent:
    """Check and convert; a deleted block is absent.

    Raises:
        InvalidResource
    """
    cidr = prefix(spec.cidr, "spec.cidr")
    if _deleted(spec.deleted):
        return Absent(key)
    host = _affine_host(spec.affinity or "")
    return IPAMBlock(key, cidr, host, _borrowed(cidr, host, spec.allocations or [], spec.attributes or []))


def convert_block_affinity(key: ResourceKey, spec: BlockAffinitySpec) -> BlockAffinity | Absent:
    """Check and convert.

    Absent are deleted affinities, those of no node (``type: virtual``), and pending ones: until a claim is confirmed
    the block may be another node's. ``pendingDeletion`` still counts, as its addresses may be in use.

    Raises:
        InvalidResource
    """
    cidr = prefix(spec.cidr, "spec.cidr")
    node = check_name(spec.node, "spec.node")
    if spec.state not in (None, "", "confirmed", "pending", "pendingDeletion"):
        reason = f"{quote(spec.state)} must be confirmed, pending or pendingDeletion"
        raise InvalidResource(reason, field="spec.state")
    if spec.type not in (None, "", "host", "virtual"):
        raise InvalidResource(f"{quote(spec.type)} must be host or virtual", field="spec.type")
    if _deleted(spec.deleted) or spec.state == "pending" or spec.type == "virtual":
        return Absent(key)
    return BlockAffinity(key, cidr, node)


def _deleted(value: bool | str | None) -> bool:
    """The field is text in ``crd.projectcalico.org/v1`` and a boolean in ``projectcalico.org/v3``."""
    if value in (None, "", False, "false"):
        return False
    if value in (True, "true"):
        return True
    raise InvalidResource(f"{quote(value)} must be true or false", field="spec.deleted")


def _affine_host(affinity: str) -> str | None:
    kind, _, name = affinity.partition(":")
    if kind == "host":
        return check_name(name, "spec.affinity")
    if kind in ("virtual", ""):
        return None
    raise InvalidResource(f"{quote(affinity)} must be host:<node> or virtual:<name>", field="spec.affinity")


def _borrowed(
    cidr: Net, host: str | None, allocations: list[int | None], attributes: list[BlockAttribute]
) -> tuple[Borrowed, ...]:
    size = 1 << (len(cidr.packed) * 8 - cidr.length)
    if len(allocations) > min(size, MAX_ALLOCATIONS):
        reason = f"has {len(allocations)} entries; {cidr} has room for {min(size, MAX_ALLOCATIONS)}"
        raise InvalidResource(reason, field="spec.allocations")
    elsewhere = _other_nodes(host, attributes)
    first = int.from_bytes(cidr.packed, "big")
    found = []
    for ordinal, index in enumerate(allocations):
        if index is None:
            continue
        if not 0 <= index < len(attributes):
            raise InvalidResource(f"there is no attribute {index}", field=f"spec.allocations[{ordinal}]")
        if index in elsewhere:
            address = (first + ordinal).to_bytes(len(cidr.packed), "big")
            found.append(Borrowed(Net.host(address), elsewhere[index]))
    return tuple(found)


def _other_nodes(host: str | None, attributes: list[BlockAttribute]) -> dict[int, str]:
    """Index of an attribute → its node, where that is not the block's own."""
    found = {}
    for index, attribute in enumerate(attributes):
        node = (attribute.secondary or {}).get("node")
        if node and node != host:
            found[index] = check_name(node, f"spec.attributes[{index}].secondary.node")
    return found
