"""What the second observer must have seen before a workload counts as there, or as gone. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from bench.workloads import Workload
from felixpy.model.net import Family

SETS = ("from-workload", "to-workload")


def routing(one: Workload, families: Iterable[Family], *, present: bool = True) -> set[str]:
    """Its routes and neighbours."""
    sign = "+" if present else "-"
    return {f"{sign}{what} {one.address(family)}" for family in families for what in ("route", "neigh")}


def members(one: Workload, families: Iterable[Family]) -> list[tuple[str, str, str]]:
    """Its IP set members (set, address, interface) in the iptables back-ends."""
    return [(f"fpy{f.version}-{name}", one.address(f), one.interface) for f in families for name in SETS]


def filtering(one: Workload, families: Iterable[Family], backend: str, *, present: bool = True) -> set[str]:
    """Its elements of nftables sets, or its IP set members."""
    sign = "+" if present else "-"
    if backend == "nftables":
        return {f"{sign}elem {name} {one.address(family)}" for family in families for name in SETS}
    return {f"{sign}member {name} {address}" for name, address, _ in members(one, families)}


def workload(one: Workload, families: Iterable[Family], backend: str, *, present: bool = True) -> set[str]:
    """Everything of a workload."""
    families = tuple(families)
    return routing(one, families, present=present) | filtering(one, families, backend, present=present)
