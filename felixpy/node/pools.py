"""Default pools as Calico's start-up makes them, from CALICO_IPV4POOL_* and CALICO_IPV6POOL_*. Pure.

A pool is made for a family that has none. Invariant: what cannot be used is an error before anything is made; a pool
never covers an address of the node where there is another choice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from felixpy.model.expand import INSTALLATION, expand_parts
from felixpy.model.invalid import InvalidResource
from felixpy.model.net import FAMILIES, Family, Net, quote
from felixpy.model.selectors import parse_selector

PREFERRED = Net.parse("192.168.0.0/16")
FALLBACKS = tuple(Net.parse(f"172.{number}.0.0/16") for number in range(16, 32))
NAMES = {Family.V4: "default-ipv4-ippool", Family.V6: "default-ipv6-ippool"}
BLOCK_SIZES = {Family.V4: (20, 32, 26), Family.V6: (116, 128, 122)}
"""Least, most, default."""
_NAT_DEFAULT = {Family.V4: True, Family.V6: False}
_MODES = {
    "": "Never",
    "off": "Never",
    "never": "Never",
    "crosssubnet": "CrossSubnet",
    "cross-subnet": "CrossSubnet",
    "always": "Always",
}
_FALSE = frozenset({"false", "0", "no", "n", "f"})


class PoolSettingError(ValueError):
    """A setting or an ``Installation`` that cannot be used; one sentence with its name."""


def default_pools(
    environment: Mapping[str, str],
    *,
    existing: Collection[Family] = (),
    host_addresses: Collection[bytes] = (),
    random_bytes: bytes = b"",
    ipv6: bool = True,
) -> list[dict[str, Any]]:
    """The pools to make, as v3 objects.

    ``existing``: families that have a pool. ``random_bytes``: five, for the prefix of an IPv6 pool (RFC 4193).

    Raises:
        PoolSettingError
    """
    cidrs = {family: environment.get(f"{_prefix(family)}_CIDR", "") for family in FAMILIES}
    if are_others(environment):
        for family, text in cidrs.items():
            if text:
                raise PoolSettingError(
                    f"NO_DEFAULT_POOLS is set, and {_prefix(family)}_CIDR too; leave one of them out"
                )
        return []
    pools = []
    for family in FAMILIES:
        if cidrs[family] == "none":
            continue
        pool = _pool(family, environment, cidrs[family], host_addresses, random_bytes)
        if family not in existing and (family is Family.V4 or ipv6):
            pools.append(pool)
    return pools


def are_others(environment: Mapping[str, str]) -> bool:
    """Whether pools are somebody else's to make."""
    return environment.get("NO_DEFAULT_POOLS", "").lower() == "true"


def installation_pools(installation: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The pools that an ``Installation`` lists, as v3 objects; None if it says nothing of pools.

    Raises:
        PoolSettingError
    """
    spec = installation.get("spec")
    network = spec.get("calicoNetwork") if isinstance(spec, Mapping) else None
    if not isinstance(network, Mapping) or network.get("ipPools") is None:
        return None
    pools = []
    try:
        for part in expand_parts({**installation, "apiVersion": INSTALLATION, "kind": "Installation"}):
            if part.error is not None:
                raise part.error
            pools.append(dict(part.object))
    except InvalidResource as error:
        raise PoolSettingError(f"Installation {error}") from None
    return pools


def choose_cidr(host_addresses: Collection[bytes]) -> Net:
    """The first of the usual IPv4 pools that holds no address of the node; the first of all if each holds one."""
    for candidate in (PREFERRED, *FALLBACKS):
        if not any(len(address) == 4 and candidate.covers(address) for address in host_addresses):
            return candidate
    return PREFERRED


def unique_local(random_bytes: bytes) -> Net:
    """``fdXX:XXXX:XXXX::/48`` of five random bytes."""
    return Net(b"\xfd" + random_bytes[:5].ljust(5, b"\0") + bytes(10), 48)


def _pool(
    family: Family, environment: Mapping[str, str], cidr: str, host_addresses: Collection[bytes], random_bytes: bytes
) -> dict[str, Any]:
    if cidr:
        net = _cidr(cidr, family)
    else:
        net = choose_cidr(host_addresses) if family is Family.V4 else unique_local(random_bytes)
    spec: dict[str, Any] = {
        "cidr": str(net),
        "blockSize": _block_size(environment, family),
        "natOutgoing": _boolean(environment, f"{_prefix(family)}_NAT_OUTGOING", default=_NAT_DEFAULT[family]),
        "ipipMode": _mode(environment, f"{_prefix(family)}_IPIP") if family is Family.V4 else "Never",
        "vxlanMode": _mode(environment, f"{_prefix(family)}_VXLAN"),
        "nodeSelector": _selector(environment, f"{_prefix(family)}_NODE_SELECTOR"),
        "disableBGPExport": _boolean(environment, f"{_prefix(family)}_DISABLE_BGP_EXPORT", default=False),
    }
    if spec["ipipMode"] != "Never" and spec["vxlanMode"] != "Never":
        raise PoolSettingError(f"{_prefix(family)}_IPIP and {_prefix(family)}_VXLAN exclude each other; leave one out")
    return {
        "apiVersion": "projectcalico.org/v3",
        "kind": "IPPool",
        "metadata": {"name": NAMES[family]},
        "spec": spec,
    }


def _prefix(family: Family) -> str:
    return f"CALICO_IPV{family.version}POOL"


def _cidr(text: str, family: Family) -> Net:
    name = f"{_prefix(family)}_CIDR"
    try:
        if "/" not in text:
            raise ValueError(f"{quote(text)} has no prefix length")
        net = Net.parse_masked(text)  # Calico drops the host bits, too
    except ValueError as error:
        raise PoolSettingError(f"{name}: {error}") from None
    if net.family is not family:
        raise PoolSettingError(f"{name}={quote(text)} is not an {family} CIDR")
    return net


def _block_size(environment: Mapping[str, str], family: Family) -> int:
    least, most, default = BLOCK_SIZES[family]
    name = f"{_prefix(family)}_BLOCK_SIZE"
    text = environment.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        raise PoolSettingError(f"{name}={quote(text)} must be from {least} to {most}")
    return int(text)


def _mode(environment: Mapping[str, str], name: str) -> str:
    text = environment.get(name, "")
    if text.lower() not in _MODES:
        raise PoolSettingError(f"{name}={quote(text)} must be Never, Always or CrossSubnet")
    return _MODES[text.lower()]


def _boolean(environment: Mapping[str, str], name: str, *, default: bool) -> bool:
    """As in Calico everything but a word for false is true."""
    return environment[name].lower() not in _FALSE if name in environment else default


def _selector(environment: Mapping[str, str], name: str) -> str:
    text = environment.get(name, "")
    try:
        if text:
            parse_selector(text)
    except ValueError as error:
        raise PoolSettingError(f"{name}: {error}") from None
    return text or "all()"
