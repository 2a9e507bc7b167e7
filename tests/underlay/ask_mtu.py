"""Cases of MTUs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from felixpy.calc.mtu import Tunnel, device_mtu, pod_mtu
from felixpy.model.net import Family
from tests.underlay.vectors import Answer, elsewhere, same

SHORT = {
    "ipip": Tunnel.IPIP,
    "tunl0": Tunnel.IPIP,
    "vxlan": Tunnel.VXLAN,
    "vxlan4": Tunnel.VXLAN,
    "vxlan6": Tunnel.VXLAN_V6,
    "vxlanv6": Tunnel.VXLAN_V6,
    "wireguard": Tunnel.WIREGUARD,
    "wireguard4": Tunnel.WIREGUARD,
    "wg4": Tunnel.WIREGUARD,
    "wireguard6": Tunnel.WIREGUARD_V6,
    "wireguardv6": Tunnel.WIREGUARD_V6,
    "wg6": Tunnel.WIREGUARD_V6,
} | {str(tunnel): tunnel for tunnel in Tunnel}
SETTINGS = {
    "ipipmtu": Tunnel.IPIP,
    "ipinipmtu": Tunnel.IPIP,
    "vxlanmtu": Tunnel.VXLAN,
    "vxlanmtuv6": Tunnel.VXLAN_V6,
    "wireguardmtu": Tunnel.WIREGUARD,
    "wireguardmtuv6": Tunnel.WIREGUARD_V6,
}


def ask(case: dict[str, Any]) -> Iterator[Answer]:
    given, expect = case["given"], case["expect"]
    if isinstance(given, list):
        for row in given:
            yield from _devices(row, row)
        return
    if "default_at_creation" in expect or "errno" in expect:
        yield elsewhere("limits of the kernel", "tests/underlay/test_vxlan.py tries them")
        return
    if "encap" in given:
        yield from _one(given, expect)
        return
    if "enabled" in given:
        yield from _pods(given, expect)
    yield from _devices(given, expect)


def _settings(given: Mapping[str, Any]) -> dict[Tunnel, int]:
    every = {**given, **given.get("settings", {})}
    return {SETTINGS[key.lower()]: int(value) for key, value in every.items() if key.lower() in SETTINGS}


def _parent(given: Mapping[str, Any]) -> int:
    parent = given.get("parent_mtu", given.get("parent", 0))
    return int(parent["mtu"] if isinstance(parent, dict) else parent)


def _devices(given: Mapping[str, Any], expect: Mapping[str, Any]) -> Iterator[Answer]:
    for tunnel in Tunnel:
        if tunnel in expect:
            got = device_mtu(tunnel, _parent(given), _settings(given).get(tunnel, 0)).mtu
            yield same(f"{tunnel} over {_parent(given)}", expect[tunnel], got)


def _pods(given: Mapping[str, Any], expect: Mapping[str, Any]) -> Iterator[Answer]:
    enabled = [SHORT[str(name).lower()] for name in given["enabled"]]
    parent = _parent(given)
    devices = [device_mtu(tunnel, parent, _settings(given).get(tunnel, 0)).mtu for tunnel in enabled]
    ipv6 = any(tunnel.outer is Family.V6 for tunnel in enabled)
    if "pod_mtu" in expect:
        yield same("pod_mtu", expect["pod_mtu"], pod_mtu(parent, devices, ipv6=ipv6).mtu)


def _one(given: Mapping[str, Any], expect: Mapping[str, Any]) -> Iterator[Answer]:
    got = device_mtu(SHORT[given["encap"].lower()], _parent(given), _settings(given).get(SHORT[given["encap"]], 0))
    if "computed" in expect:
        yield same("computed", expect["computed"], got.computed)
    then = str(expect.get("then", ""))
    if number := re.search(r"device MTU (\d+)", then):
        yield same("device MTU", int(number[1]), got.mtu)
    if words := re.search(r"'([^']*)'", then):
        yield same("problem", words[1], got.problem)
