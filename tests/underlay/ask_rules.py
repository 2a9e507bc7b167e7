"""Cases of packet-filter rules: what they say to packets that arrive in a tunnel; the rest is tried by packets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from felixpy.calc.mtu import Tunnel
from felixpy.calc.rule import Match, Protocol, Rule, SourceIn, Vni
from felixpy.calc.rules import RuleSettings, arriving_tunnels
from felixpy.config import Settings
from felixpy.model.net import Family, Net, parse_address
from tests.underlay.vectors import Answer, elsewhere, same

PACKETS = "tests/underlay/test_tunnel_rules.py sends them"


def ask(case: dict[str, Any]) -> Iterator[Answer]:
    given, packets = case["given"], case["expect"].get("packets")
    if packets is None or "hosts" not in given:
        yield elsewhere("packets", PACKETS)
        return
    hosts = [Net.parse_masked(one) for one in (*given["hosts"], *given.get("ExternalNodesCIDRList", ()))]
    settings = RuleSettings.of(Settings(), Family.V4, nftables=True, tunnels=(Tunnel.VXLAN, Tunnel.IPIP))
    for packet in packets:
        got = _verdict(arriving_tunnels(settings), packet, hosts)
        yield same(f"from {packet['from']}", packet["verdict"], got)


def _verdict(rules: Iterable[Rule], packet: Mapping[str, Any], hosts: Iterable[Net]) -> str:
    for rule in rules:
        if all(_holds(match, packet, hosts) for match in rule.matches):
            return str(rule.action).lower()
    return "not ours"


def _holds(match: Match, packet: Mapping[str, Any], hosts: Iterable[Net]) -> bool:
    """A packet of UDP is VXLAN of ours here: by its port alone it is ours or not."""
    match match:
        case Protocol(number, port, False):
            return number == packet.get("proto", 17) and port in (None, packet.get("udp"))
        case SourceIn(_, False):
            return any(net.covers(parse_address(packet["from"])) for net in hosts)
        case Vni():
            return "udp" in packet
        case _:
            raise AssertionError(f"a match that tunnels' packets were not asked before: {match}")
