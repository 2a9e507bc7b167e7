"""Which address of an interface is the node's own: Calico's six methods. Pure.

    first-found  interface=A,B  skip-interface=A,B  cidr=C,D  can-reach=X  kubernetes-internal-ip

Interfaces are looked at from the last to the first, as Calico does. Of the addresses that a method allows, those come
last that other nodes should not be told: with a host prefix (virtual IPs), deprecated, temporary. Invariant: an address
whose duplicate detection is not over, or failed, is never taken; no packet is sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from msgspec import Struct

from felixpy.model.net import Family, Net, family_of, parse_address, quote
from felixpy.model.special import special_range

DEFAULT_EXCLUDES = (
    "docker.*", "cbr.*", "dummy.*", "podman.*", "virbr.*", "lxcbr.*", "veth.*", "lo", "br-.*", "cali.*", "tunl.*",
    "flannel.*", "kube-ipvs.*", "cni.*", "vxlan.calico.*", "vxlan-v6.calico.*", "wireguard.cali.*", "wg-v6.cali.*",
    "nodelocaldns.*",
)  # fmt: skip
"""Interfaces that are never a node's way to others. As in Calico a match anywhere in the name counts."""

METHODS = "first-found, interface=, skip-interface=, cidr=, can-reach= or kubernetes-internal-ip"


class DetectionError(ValueError):
    """The method cannot be used as it is written, or found nothing; one sentence for people."""


class Address(NamedTuple):
    """An address of an interface; ``net`` keeps the host bits. ``unusable``: tentative, or a duplicate of another's."""

    net: Net
    temporary: bool = False
    deprecated: bool = False
    unusable: bool = False


class Interface(NamedTuple):
    """An interface with its addresses, in the kernel's order."""

    name: str
    addresses: tuple[Address, ...]


class Surroundings(Struct, frozen=True):
    """What a method may look at.

    ``source_for`` gives the source address of packets to a host or address (a connected UDP socket), or None.
    ``internal_ips`` are the Kubernetes Node's InternalIPs, None outside of Kubernetes.
    """

    interfaces: Sequence[Interface]
    source_for: Callable[[str, Family], bytes | None] = lambda host, family: None
    internal_ips: Sequence[str] | None = None


def detect(method: str, family: Family, around: Surroundings) -> Net:
    """The node's address of a family with the prefix length of its interface.

    Raises:
        DetectionError: a method that there is not, or nothing was found.
    """
    name, _, argument = method.strip().partition("=")
    if name not in _METHODS:
        raise DetectionError(f"{quote(method)} is no way to detect an address; use {METHODS}")
    return _METHODS[name](argument, family, around)


def prefix_of(address: bytes, interfaces: Iterable[Interface]) -> Net:
    """An address with the prefix length that its interface has; /32 or /128 if no interface has it."""
    for interface in reversed(list(interfaces)):
        for one in interface.addresses:
            if one.net.packed == address:
                return one.net
    return Net.host(address)


def _first_found(argument: str, family: Family, around: Surroundings) -> Net:
    return _best(around.interfaces, family, excluded=_pattern(DEFAULT_EXCLUDES))


def _by_interface(argument: str, family: Family, around: Surroundings) -> Net:
    return _best(around.interfaces, family, included=_pattern(_list(argument)))


def _skip_interface(argument: str, family: Family, around: Surroundings) -> Net:
    return _best(around.interfaces, family, excluded=_pattern((*DEFAULT_EXCLUDES, *_list(argument))))


def _by_cidr(argument: str, family: Family, around: Surroundings) -> Net:
    cidrs = []
    for text in _list(argument):
        try:
            if "/" not in text:
                raise ValueError("no prefix length")
            cidrs.append(Net.parse_masked(text))
        except ValueError:
            raise DetectionError(f"invalid CIDR {quote(text)} in cidr=") from None
    return _best(around.interfaces, family, within=cidrs)


def _can_reach(argument: str, family: Family, around: Surroundings) -> Net:
    source = around.source_for(argument, family) if argument else None
    if source is None:
        raise DetectionError(f"no {family} route to {quote(argument)}")
    return prefix_of(source, around.interfaces)


def _internal_ip(argument: str, family: Family, around: Surroundings) -> Net:
    if around.internal_ips is None:
        raise DetectionError("kubernetes-internal-ip works on a node of Kubernetes only")
    for text in around.internal_ips:
        try:
            packed = parse_address(text)
        except ValueError:
            continue
        if family_of(packed) is family:
            return prefix_of(packed, around.interfaces)
    raise DetectionError(f"the Kubernetes Node has no InternalIP of {family}")


_METHODS: dict[str, Callable[[str, Family, Surroundings], Net]] = {
    "": _first_found,
    "first-found": _first_found,
    "interface": _by_interface,
    "skip-interface": _skip_interface,
    "cidr": _by_cidr,
    "can-reach": _can_reach,
    "kubernetes-internal-ip": _internal_ip,
}

METHOD_NAMES = frozenset(_METHODS)


def _list(argument: str) -> list[str]:
    return [item for item in re.split(r"\s*,\s*", argument.strip()) if item]


def _pattern(expressions: Iterable[str]) -> re.Pattern[str]:
    """One expression for all; a match anywhere in a name counts.

    Raises:
        DetectionError: one is no regular expression.
    """
    parts = []
    for expression in expressions:
        try:
            re.compile(expression)
        except re.error as error:
            raise DetectionError(f"{quote(expression)} is no regular expression: {error}") from None
        parts.append(f"(?:{expression})")
    if not parts:
        raise DetectionError("no interface is named")
    return re.compile("|".join(parts))


def _best(
    interfaces: Sequence[Interface],
    family: Family,
    *,
    included: re.Pattern[str] | None = None,
    excluded: re.Pattern[str] | None = None,
    within: Sequence[Net] = (),
) -> Net:
    """The first allowed address of the least reluctance."""
    found: dict[int, Net] = {}
    for interface in reversed(interfaces):
        if included is not None and not included.search(interface.name):
            continue
        if excluded is not None and excluded.search(interface.name):
            continue
        for address in interface.addresses:
            net = address.net
            if net.family is not family or address.unusable or not _is_global(Net.host(net.packed)):
                continue
            if within and not any(cidr.covers(net.packed) for cidr in within):
                continue
            found.setdefault(_reluctance(address), net)
    if not found:
        raise DetectionError(f"no interface that may be looked at has an {family} address that other nodes can reach")
    return found[min(found)]


def _reluctance(address: Address) -> int:
    if address.deprecated or address.temporary:
        return 2
    return 1 if address.net.is_host else 0


def _is_global(net: Net) -> bool:
    """Global unicast. Of 0.0.0.0/8 none is, though Linux forwards all but the first."""
    return not special_range(net) and not (net.family is Family.V4 and net.packed[0] == 0)
