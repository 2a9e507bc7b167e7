"""The configuration file of ip-masq-agent: which destinations are not masqueraded. Pure.

Keys and defaults are that program's. A file that has something wrong is refused as a whole, so that what is in force
stays. Invariant: an IPv6 destination is never masqueraded because nobody wrote IPv6 prefixes. That program then
masquerades all of IPv6, pod to pod, too; here pools are always left out besides.
"""

from __future__ import annotations

import json
from typing import Any

from msgspec import Struct

from felixpy.config.values import parse_duration
from felixpy.model.net import Family, Net, quote

LINK_LOCAL = {Family.V4: Net.parse("169.254.0.0/16"), Family.V6: Net.parse("fe80::/10")}
EVERYTHING = {Family.V4: Net.parse("0.0.0.0/0"), Family.V6: Net.parse("::/0")}
RFC_1918 = tuple(Net.parse(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
RESERVED = tuple(
    Net.parse(text)
    for text in (
        "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24",
        "203.0.113.0/24", "240.0.0.0/4",
    )
)  # fmt: skip
"""Left out besides with ``--nomasq-all-reserved-ranges``."""

LIMIT = 64
RESYNC_SECONDS = 60.0


class MasqFileError(ValueError):
    """The file cannot be used; one sentence with the key."""


class MasqAgentConfig(Struct, frozen=True):
    """The file's content with its defaults; ``resync_interval`` is seconds."""

    non_masquerade_cidrs: tuple[Net, ...] = RFC_1918
    masq_link_local: bool = False
    masq_link_local_ipv6: bool = False
    resync_interval: float = RESYNC_SECONDS
    cidr_limit: int = LIMIT

    def not_masqueraded(self, family: Family) -> tuple[Net, ...]:
        """Destinations of a family that keep their source address, besides those local to the node."""
        masquerades_local = self.masq_link_local if family is Family.V4 else self.masq_link_local_ipv6
        local = () if masquerades_local else (LINK_LOCAL[family],)
        return (*local, *(net for net in self.non_masquerade_cidrs if net.family is family))

    def left_alone(self) -> tuple[Net, ...]:
        """What keeps its source address, in both families.

        All of IPv6, unless the file says something of it: names an IPv6 prefix, or that nothing is to be left alone.
        """
        cidrs = self.non_masquerade_cidrs
        speaks_of_ipv6 = not cidrs or any(net.family is Family.V6 for net in cidrs)
        six = self.not_masqueraded(Family.V6) if speaks_of_ipv6 else (EVERYTHING[Family.V6],)
        return (*self.not_masqueraded(Family.V4), *six)


def defaults(*, all_reserved: bool = False) -> MasqAgentConfig:
    """What holds without a file."""
    return MasqAgentConfig(RFC_1918 + RESERVED if all_reserved else RFC_1918)


def parse(text: str | None, *, ipv6: bool, all_reserved: bool = False) -> MasqAgentConfig:
    """The configuration that a file means; ``None`` is a file that is not there.

    Raises:
        MasqFileError: it is refused as a whole.
    """
    base = defaults(all_reserved=all_reserved)
    if text is None:
        return base
    content = _content(text)
    known = {key.lower(): value for key, value in content.items()}  # Go's decoder takes keys in any case
    limit = _take(known, "cidrLimit", int, base.cidr_limit)
    cidrs = base.non_masquerade_cidrs
    if known.get("nonmasqueradecidrs") is not None:
        cidrs = _cidrs(known["nonmasqueradecidrs"], limit, ipv6=ipv6)
    elif len(cidrs) > limit:
        raise MasqFileError(f"nonMasqueradeCIDRs: {len(cidrs)} prefixes, and cidrLimit is {limit}")
    return MasqAgentConfig(
        cidrs,
        _take(known, "masqLinkLocal", bool, base.masq_link_local),
        _take(known, "masqLinkLocalIPv6", bool, base.masq_link_local_ipv6),
        _interval(known.get("resyncinterval"), base.resync_interval),
        limit,
    )


def _content(text: str) -> dict[str, Any]:
    import yaml  # 0.02 s of every start, for a file that few nodes have

    try:
        content = json.loads(text) if text.lstrip().startswith("{") else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError):
        raise MasqFileError("the file is neither YAML nor JSON") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise MasqFileError("the file must hold keys with values")
    return content


def _take(known: dict[str, Any], key: str, kind: type[Any], default: Any) -> Any:
    value = known.get(key.lower())
    if value is None:
        return default
    if type(value) is not kind:
        raise MasqFileError(f"{key}: {quote(value)} is not {'a whole number' if kind is int else 'true or false'}")
    return value


def _cidrs(value: Any, limit: int, *, ipv6: bool) -> tuple[Net, ...]:
    if not isinstance(value, list):
        raise MasqFileError("nonMasqueradeCIDRs: must be a list")
    if len(value) > limit:
        raise MasqFileError(f"nonMasqueradeCIDRs: {len(value)} prefixes, and cidrLimit is {limit}")
    found: list[Net] = []
    for item in value:
        try:
            if not isinstance(item, str) or "/" not in item:
                raise ValueError(f"{quote(item)} is no CIDR")
            net = Net.parse(item)
        except ValueError as error:
            raise MasqFileError(f"nonMasqueradeCIDRs: {error}") from None
        if net.family is Family.V6 and not ipv6:
            raise MasqFileError(f"nonMasqueradeCIDRs: {net} is IPv6, which is off")
        found.append(net)
    return tuple(dict.fromkeys(found))


def _interval(value: Any, default: float) -> float:
    if value is None:
        return default
    try:
        if not isinstance(value, str) or value.strip().replace(".", "").isdigit():
            raise ValueError  # a Go duration has a unit
        return parse_duration(value)
    except ValueError:
        raise MasqFileError(f"resyncInterval: {quote(value)} is not a duration like 60s or 1m30s") from None
