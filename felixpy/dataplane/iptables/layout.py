"""Names of everything that the iptables back-ends own in the kernel.

    chains   fpy-<name>              fpy-PREROUTING, fpy-nat-outgoing
    jumps    -m comment --comment felixpy -j fpy-<BUILT-IN CHAIN>, one per built-in chain
    sets     fpy4-<name> fpy6-<name> fpy4-from-workload

Invariant: what carries these prefixes is ours, everything else is not. Must never use the prefixes of Felix
(``cali-``, ``felix-``), which a Felix on the node would clean away.
"""

from __future__ import annotations

from enum import Enum
from functools import cache

from felixpy.calc.entries import SetName, SetType
from felixpy.calc.rule import ChainKey, Table
from felixpy.config import ChainInsertMode
from felixpy.model.net import Family
from felixpy.netlink import ipset

CHAIN_PREFIX = "fpy-"
MAX_CHAIN_LENGTH = 28  # XT_EXTENSION_MAXNAMELEN less the final zero byte
JUMP_COMMENT = "felixpy"
MASQUERADE_CHAIN = "KUBE-POSTROUTING"
"""kube-proxy's, and the kubelet's before Kubernetes 1.27."""
BUILT_IN_CHAINS = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})


def chain_name(name: str) -> str:
    """Name in the kernel of a chain of ours.

    Raises:
        ValueError: longer than the kernel allows.
    """
    full = CHAIN_PREFIX + name
    if len(full) > MAX_CHAIN_LENGTH:
        raise ValueError(f"chain name {full!r} is longer than {MAX_CHAIN_LENGTH} characters")
    return full


def chain_key(table: Table, name: str) -> ChainKey:
    """The key of a chain by its name in the kernel."""
    return ChainKey(table, name.removeprefix(CHAIN_PREFIX))


def set_prefix(family: Family) -> str:
    return f"fpy{family.version}-"


@cache
def set_name(family: Family, name: str) -> str:
    """Name in the kernel of a set."""
    return set_prefix(family) + name


def ipset_type(name: SetName) -> str:
    """The kernel's set type for a set. A /32 or /128 in ``hash:net,iface`` and ``hash:net`` serves addresses."""
    match name.type:
        case SetType.NET | SetType.HOST:
            return ipset.HASH_NET
        case SetType.HOST_PORT:
            return ipset.HASH_IP_PORT
        case _:
            return ipset.HASH_NET_IFACE


def carries_mark(name: SetName) -> bool:
    """Whether members of a set carry a mark: the classes of their interface."""
    return name.type in (SetType.HOST_INTERFACE, SetType.NET_INTERFACE)


def jump_text(built_in: str) -> str:
    """The jump from a built-in chain to ours, as the ``-save`` tools print it."""
    return f"-m comment --comment {JUMP_COMMENT} -j {chain_name(built_in)}"


class Place(Enum):
    """Where in a built-in chain our jump has to stand."""

    FIRST = "first"
    LAST = "last"
    BEHIND = f"behind each jump to {MASQUERADE_CHAIN}"


def jump_place(table: str, built_in: str, mode: ChainInsertMode) -> Place:
    """Where our jump has to stand.

    In nat POSTROUTING kube-proxy's masquerade must come first, because it takes a mark off the packet
    (reference/felix.md §1.4). What others append there (a CNI plugin, podman) is of no matter: packets that we
    translate come to no rule behind ours, and those that we do not translate come to all of them.
    """
    if (table, built_in) == (Table.NAT, "POSTROUTING"):
        return Place.BEHIND
    return Place.LAST if mode is ChainInsertMode.APPEND else Place.FIRST
