"""IPPool: defaults and rules of the v3 object, and what several pools may not do together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from felixpy.model.invalid import InvalidResource
from felixpy.model.net import Family, Net, quote
from felixpy.model.objects import IPPoolSpec
from felixpy.model.resources import Encapsulation, IPPool, ResourceKey
from felixpy.model.selectors import ALL, parse_selector
from felixpy.model.special import special_range

_BLOCK_SIZES = {Family.V4: (20, 32, 26), Family.V6: (116, 128, 122)}  # least, most, default
_MODES = {"": "Never", "Never": "Never", "Always": "Always", "CrossSubnet": "CrossSubnet"}
_USES = frozenset({"Workload", "Tunnel", "LoadBalancer"})
_DEFAULT_USES = frozenset({"Workload", "Tunnel"})
_MAX_SELECTOR = 1024


def convert_ip_pool(key: ResourceKey, spec: IPPoolSpec) -> IPPool:
    """Check and convert.

    Raises:
        InvalidResource
    """
    cidr = prefix(spec.cidr, "spec.cidr")
    disabled = bool(spec.disabled)
    block_size = _block_size(spec, cidr, disabled)
    encapsulation = _encapsulation(spec, cidr.family)
    uses = _allowed_uses(spec)
    _check_selectors(spec, uses)
    if spec.assignment_mode not in (None, "", "Automatic", "Manual"):
        reason = f"{quote(spec.assignment_mode)} must be Automatic or Manual"
        raise InvalidResource(reason, field="spec.assignmentMode")
    if "LoadBalancer" in uses:
        _check_load_balancer(spec, uses, encapsulation)
    return IPPool(
        key, cidr, block_size, bool(spec.nat_outgoing), disabled, encapsulation, uses,
        parse_selector(spec.node_selector or ""), parse_selector(spec.namespace_selector or ""),
        spec.assignment_mode == "Manual",
    )  # fmt: skip


def prefix(text: str | None, field: str) -> Net:
    """A CIDR without host bits that stays clear of special ranges.

    Raises:
        InvalidResource
    """
    if not text:
        raise InvalidResource("is missing", field=field)
    try:
        net = Net.parse(text)
    except ValueError as error:
        raise InvalidResource(str(error), field=field) from None
    if "/" not in text:
        raise InvalidResource(f"{text} is an address; write a CIDR like {net}", field=field)
    if special := special_range(net):
        raise InvalidResource(f"{net} overlaps {special}", field=field)
    return net


def _block_size(spec: IPPoolSpec, cidr: Net, disabled: bool) -> int:
    least, most, default = _BLOCK_SIZES[cidr.family]
    size = spec.block_size or default
    if not least <= size <= most:
        raise InvalidResource(f"{size} must be from {least} to {most} for {cidr.family}", field="spec.blockSize")
    if cidr.length > size and not disabled:
        reason = f"{cidr} is smaller than one block of /{size}; make the pool larger or blockSize {cidr.length}"
        raise InvalidResource(reason, field="spec.cidr")
    return size


def _mode(text: str | None, field: str) -> str:
    mode = _MODES.get(text or "")
    if mode is None:
        raise InvalidResource(f"{quote(text)} must be Never, Always or CrossSubnet", field=field)
    return mode


def _encapsulation(spec: IPPoolSpec, family: Family) -> Encapsulation:
    ipip = _mode(spec.ipip_mode, "spec.ipipMode")
    vxlan = _mode(spec.vxlan_mode, "spec.vxlanMode")
    if ipip != "Never" and vxlan != "Never":
        raise InvalidResource("cannot be used together with vxlanMode", field="spec.ipipMode")
    if ipip != "Never":
        if family is Family.V6:
            raise InvalidResource("IPIP carries IPv4 only; leave it out for an IPv6 pool", field="spec.ipipMode")
        return Encapsulation.IPIP if ipip == "Always" else Encapsulation.IPIP_CROSS_SUBNET
    if vxlan != "Never":
        return Encapsulation.VXLAN if vxlan == "Always" else Encapsulation.VXLAN_CROSS_SUBNET
    return Encapsulation.NONE


def _allowed_uses(spec: IPPoolSpec) -> frozenset[str]:
    for index, use in enumerate(spec.allowed_uses or ()):
        if use not in _USES:
            reason = f"{quote(use)} must be Workload, Tunnel or LoadBalancer"
            raise InvalidResource(reason, field=f"spec.allowedUses[{index}]")
    return frozenset(spec.allowed_uses or _DEFAULT_USES)


def _check_selectors(spec: IPPoolSpec, uses: frozenset[str]) -> None:
    _check_selector(spec.node_selector, "spec.nodeSelector")
    _check_selector(spec.namespace_selector, "spec.namespaceSelector")
    if spec.namespace_selector and "Tunnel" in uses:
        reason = "cannot be used by a pool with use Tunnel; set allowedUses to [Workload]"
        raise InvalidResource(reason, field="spec.namespaceSelector")


def _check_selector(text: str | None, field: str) -> None:
    if not text:
        return
    if len(text) > _MAX_SELECTOR:
        raise InvalidResource(f"is longer than {_MAX_SELECTOR} characters", field=field)
    try:
        selector = parse_selector(text)
    except ValueError as error:
        raise InvalidResource(str(error), field=field) from None
    if selector.has_global:
        raise InvalidResource("global() is not allowed here", field=field)


def _check_load_balancer(spec: IPPoolSpec, uses: frozenset[str], encapsulation: Encapsulation) -> None:
    if len(uses) > 1:
        raise InvalidResource("LoadBalancer excludes the other uses", field="spec.allowedUses")
    if encapsulation is not Encapsulation.NONE:
        field = "spec.ipipMode" if encapsulation.startswith("IPIP") else "spec.vxlanMode"
        raise InvalidResource("must be Never for a LoadBalancer pool", field=field)
    if spec.node_selector and parse_selector(spec.node_selector) != ALL:
        raise InvalidResource("must be all() for a LoadBalancer pool", field="spec.nodeSelector")
    if spec.disable_bgp_export:
        raise InvalidResource("must be false for a LoadBalancer pool", field="spec.disableBGPExport")


class PoolOverlap(NamedTuple):
    """Two pools that claim the same addresses."""

    first: IPPool
    second: IPPool

    def __str__(self) -> str:
        first, second = self
        return f"{first.key} ({first.cidr}) overlaps {second.key} ({second.cidr}); change or delete one of them"


def overlapping_pools(pools: Iterable[IPPool]) -> tuple[PoolOverlap, ...]:
    """Each pool that lies in another one, with the smallest pool that it lies in. The order of input is free."""
    found = []
    covering: list[IPPool] = []
    for pool in sorted(pools, key=lambda pool: (pool.cidr.family, pool.cidr.packed, pool.cidr.length, pool.key)):
        # Two prefixes are disjoint or nested, so what covers this one lies on the stack.
        while covering and not covering[-1].cidr.covers(pool.cidr):
            covering.pop()
        if covering:
            found.append(PoolOverlap(covering[-1], pool))
        covering.append(pool)
    return tuple(found)
