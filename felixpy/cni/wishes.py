"""What a pod and its namespace ask of the network by Calico's annotations. Pure.

Invariant: what cannot be done is refused by name, never left out: a pod that asks for an address and gets another one
is worse than one that does not start. Source: Calico's documentation of ``cni.projectcalico.org/``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import msgspec
from msgspec import Struct, field

from felixpy.model.net import FAMILIES, Family, Net, quote

PREFIX = "cni.projectcalico.org/"
_REFUSED = {
    "ipAddrsNoIpam": "addresses that no store of addresses knows could be given twice; use ipAddrs",
}
_MAC = re.compile(r"[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}")


class PodWishes(Struct, frozen=True):
    """What is asked for. ``refused``: why it cannot be had, in one sentence; then nothing else counts.

    ``floating``: the floating addresses; they are no addresses of the pod's own.
    """

    addresses: tuple[Net, ...] = ()
    pools: Mapping[Family, tuple[str, ...]] = field(default_factory=dict)
    mac: bytes | None = None
    families: tuple[Family, ...] = ()
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    floating: tuple[Net, ...] = ()
    refused: str = ""
    later: bool = False
    """Whether the refusal may end by itself: the API does not tell of the pod yet."""


class _Refused(Exception):
    pass


def wishes_of(
    pod: Mapping[str, str], namespace: Mapping[str, str], namespace_labels: Mapping[str, str] | None = None
) -> PodWishes:
    """Annotations of a pod and of its namespace; the pod's come first."""
    both = {**namespace, **pod}
    try:
        for name, reason in _REFUSED.items():
            if pod.get(f"{PREFIX}{name}", "[]") not in ("", "[]"):
                raise _Refused(f"{PREFIX}{name}: {reason}")
        pools = {each: _texts(both, f"ipv{each.version}pools") for each in FAMILIES}
        return PodWishes(
            _addresses(pod),
            {each: names for each, names in pools.items() if names},
            _mac(pod.get(f"{PREFIX}hwAddr", "")),
            _families(both),
            dict(namespace_labels or {}),
            tuple(_single_addresses(pod, "floatingIPs")),
        )
    except _Refused as error:
        return PodWishes(refused=str(error))


def _texts(annotations: Mapping[str, str], name: str) -> tuple[str, ...]:
    written = annotations.get(f"{PREFIX}{name}", "")
    if not written:
        return ()
    try:
        return tuple(msgspec.json.decode(written, type=list[str]))
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _Refused(f'{PREFIX}{name}: {quote(written)} is not a list of texts like ["a"]') from None


def _addresses(pod: Mapping[str, str]) -> tuple[Net, ...]:
    found: dict[Family, Net] = {}
    for net in _single_addresses(pod, "ipAddrs"):
        if net.family in found:
            raise _Refused(f"{PREFIX}ipAddrs: {found[net.family]} and {net} are two addresses of one family")
        found[net.family] = net
    return tuple(found.values())


def _single_addresses(pod: Mapping[str, str], name: str) -> Iterator[Net]:
    for text in _texts(pod, name):
        try:
            net = Net.parse(text)
        except ValueError as error:
            raise _Refused(f"{PREFIX}{name}: {error}") from None
        if not net.is_host:
            raise _Refused(f"{PREFIX}{name}: {quote(text)} is not a single address")
        yield net


def _mac(text: str) -> bytes | None:
    if not text:
        return None
    if not _MAC.fullmatch(text) or int(text[:2], 16) & 1 or text == "00:00:00:00:00:00":
        raise _Refused(f"{PREFIX}hwAddr: {quote(text)} is not the MAC address of one interface")
    return bytes.fromhex(text.replace(":", ""))


def _families(annotations: Mapping[str, str]) -> tuple[Family, ...]:
    words = {f"ipv{each.version}": each for each in FAMILIES}
    found = []
    for text in _texts(annotations, "ipFamilies"):
        if text.lower() not in words:
            raise _Refused(f"{PREFIX}ipFamilies: {quote(text)} must be IPv4 or IPv6")
        found.append(words[text.lower()])
    return tuple(sorted(set(found)))
