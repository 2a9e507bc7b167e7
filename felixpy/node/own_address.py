"""Which address of a family the node tells others: by the settings IP and IP6, or as it was. Pure.

    ""          IP: detected if none is known, else what is known;  IP6: what is known
    autodetect  detected; where nothing is found what is known stays, and that is told
    none        what is known
    address     with the prefix length of the interface that has it (Calico gives an IPv6 address /128 here)
    CIDR        as written

Invariant: sticky. A detected address that the node already told stays as long as an interface has it, so that a second
address, a virtual IP or another order of interfaces never moves a node.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from felixpy.model.net import Family, Net, format_address, quote
from felixpy.node.detection import DetectionError, Interface, Surroundings, detect, prefix_of

AUTODETECT, NONE = "autodetect", "none"
SETTINGS = {Family.V4: "IP", Family.V6: "IP6"}


class OwnAddress(NamedTuple):
    """An address with the prefix length of its subnet, or none; ``warning`` is empty if all is well."""

    net: Net | None
    how: str
    warning: str = ""


def own_address(
    setting: str, method: str, family: Family, known: Net | None, around: Surroundings, *, sticky: bool = True
) -> OwnAddress:
    """Decide on the address of one family; ``known`` is what the node told before.

    Raises:
        DetectionError: the setting cannot be used, or an address is wanted and there is none.
    """
    name = SETTINGS[family]
    if setting == AUTODETECT or (setting == "" and known is None and family is Family.V4):
        return _detected(method, family, known, around, sticky=sticky)
    if setting in ("", NONE):
        kept = f"{name}={setting} keeps what is known" if setting else "as known"
        return OwnAddress(known, kept, _missing(known, around.interfaces))
    try:
        written = Net.parse_interface(setting)
    except ValueError as error:
        raise DetectionError(f"{name}={quote(setting)}: {error}") from None
    if written.family is not family:
        raise DetectionError(f"{name}={quote(setting)} is not an {family} address")
    net = written if "/" in setting else prefix_of(written.packed, around.interfaces)
    return OwnAddress(net, f"{name} as written", _missing(net, around.interfaces))


def check_found(addresses: Iterable[OwnAddress]) -> None:
    """At least one family must have an address.

    Raises:
        DetectionError: no address at all.
    """
    if not any(one.net for one in addresses):
        raise DetectionError(
            "no address: no interface that is looked at has an IPv4 or IPv6 address that others can reach; set IP or "
            "IP6, or IP_AUTODETECTION_METHOD (interface=lo for an address on lo)"
        )


def conflicts(own_name: str, own: Iterable[Net | None], others: Iterable[tuple[str, Net | None]]) -> list[str]:
    """Other nodes that tell the same address; such a node must not be believed to be this one."""
    mine = {net.packed: net for net in own if net is not None}
    return [
        f"{net.family} address conflict with {name}: both tell {format_address(net.packed)}"
        for name, net in sorted(others, key=lambda one: one[0])
        if net is not None and name != own_name and net.packed in mine
    ]


def _detected(method: str, family: Family, known: Net | None, around: Surroundings, *, sticky: bool) -> OwnAddress:
    how = f"detected by {method or 'first-found'}"
    try:
        found = detect(method, family, around)
    except DetectionError as error:
        if known is None:
            raise
        return OwnAddress(known, "kept", f"no {family} address was found ({error}); {known} is kept")
    if sticky and known is not None and known.packed != found.packed and has_address(known, around.interfaces):
        return OwnAddress(prefix_of(known.packed, around.interfaces), f"kept; {how} it would be {found}")
    return OwnAddress(found, how)


def has_address(net: Net, interfaces: Iterable[Interface]) -> bool:
    """Whether an interface has an address, and it is no other's."""
    return any(one.net.packed == net.packed and not one.unusable for each in interfaces for one in each.addresses)


def _missing(net: Net | None, interfaces: Iterable[Interface]) -> str:
    if net is None or has_address(net, interfaces):
        return ""
    return f"no interface of this node has {format_address(net.packed)}"
