"""What is told of WireGuard: whether the device is there, who publishes no key, and who never answers. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from felixpy.check.facts import Facts
from felixpy.check.finding import Finding, Level
from felixpy.config import Settings
from felixpy.model.net import Family, format_address
from felixpy.netlink.wireguard import WireGuardDevice

OK, INFO, WARN, _ = Level
WHY = "what goes to a node that is no peer, or to one that does not answer, is not encrypted or is lost"


def wireguard(settings: Settings, facts: Facts) -> Iterator[Finding]:
    """Findings of the families that are to be encrypted."""
    for family, device in facts.wireguard.items():
        name = f"wireguard.v{family.version}"
        if device is None:
            fix = "start felixpy; if it runs, its log says why: modprobe wireguard, or set WireguardUserspace"
            yield Finding(name, WARN, f"there is no device that encrypts {family}", WHY, fix)
            continue
        yield from _keys(name, settings, facts, family)
        yield _peers(name, facts, family, device)


def _keys(name: str, settings: Settings, facts: Facts, family: Family) -> Iterator[Finding]:
    nodes = facts.stream.nodes if facts.stream else {}
    others = [one for one in nodes.values() if one.key.name != settings.nodename and one.address(family)]
    keyless = sorted(one.key.name for one in others if one.wireguard_key(family) is None)
    if keyless:
        found = f"{len(keyless)} of {len(others)} nodes publish no {family} key, first {keyless[0]}"
        yield Finding(f"{name}.keys", WARN, found, WHY, "enable WireGuard there, and publish its key")


def _peers(name: str, facts: Facts, family: Family, device: WireGuardDevice) -> Finding:
    """A peer that was sent something and never shook hands is behind something that drops its packets."""
    nodes = facts.stream.nodes.values() if facts.stream else ()
    names = {key: one.key.name for one in nodes if (key := one.wireguard_key(family))}
    silent = [key for key, traffic in device.traffic.items() if traffic.sent and not traffic.handshake]
    if silent:
        endpoint = device.peers[silent[0]].endpoint
        at = f" at {format_address(endpoint[0])} port {endpoint[1]}" if endpoint else ""
        first = f"{names.get(silent[0], 'an unknown node')}{at}"
        found = f"{len(silent)} of {len(device.peers)} peers never answered, first {first}"
        return Finding(name, WARN, found, WHY, "let its UDP port pass between nodes; compare the keys of the two")
    recent = sum(traffic.is_recent(facts.now) for traffic in device.traffic.values())
    found = f"{len(device.peers)} peers, {recent} with a handshake in the last three minutes"
    return Finding(name, OK if device.peers else INFO, found, WHY)
