"""The packet around a packet, from what the kernel knows of tunnels."""

from __future__ import annotations

import pytest

from felixpy.explain.packet import ICMP, UDP, Packet
from felixpy.explain.tunnels import IPIP, Tunnels
from felixpy.explain.walk import Around, Outcome, Route, Verdict
from felixpy.model.net import Family, Net, parse_address
from felixpy.model.wireguard import format_key
from felixpy.netlink.tunnels import KernelDevice
from felixpy.netlink.wireguard import WireGuardDevice, WireGuardPeer

OWN, PEER, END = (parse_address(text) for text in ("10.9.0.1", "10.9.7.3", "10.48.3.63"))
MAC = bytes.fromhex("66ef1d03cf2a")
VXLAN = KernelDevice("vxlan", 1450, True, "felixpy", 4096, 4789, OWN, 2, MAC)
KNOWN = Tunnels(
    {"vxlan.calico": VXLAN, "tunl0": KernelDevice("ipip", 1480, True, "felixpy")},
    {("vxlan.calico", END): MAC},
    {("vxlan.calico", MAC): PEER},
)


def leaving(interface: str, gateway: bytes, outcome: Outcome = Outcome.PASSES) -> Verdict:
    packet = Packet(Family.V4, parse_address("10.48.1.1"), parse_address("10.48.3.1"), ICMP, oif=interface)
    return Verdict(outcome, packet, route=Route(interface, gateway))


def test_vxlan_goes_to_the_node_behind_the_mac_of_the_gateway() -> None:
    around = KNOWN.around(leaving("vxlan.calico", END))
    assert around is not None and around.outer is not None
    assert (around.kind, around.mtu, around.fault) == ("VXLAN id 4096", 1450, "")
    outer = around.outer
    assert (outer.source, outer.destination, outer.protocol, outer.port, outer.vni) == (OWN, PEER, UDP, 4789, 4096)


def test_ipip_goes_to_the_gateway() -> None:
    around = KNOWN.around(leaving("tunl0", PEER))
    assert around is not None and around.outer is not None
    assert (around.kind, around.mtu) == ("IPIP", 1480)
    assert (around.outer.destination, around.outer.protocol) == (PEER, IPIP)


WIDE, NARROW = bytes([1] * 32), bytes([2] * 32)


def encrypted(*allowed: tuple[bytes, str], endpoint: tuple[bytes, int] | None = (PEER, 51820)) -> Around:
    """The packet around one for ``END`` where these peers are allowed these prefixes."""
    peers = {key: WireGuardPeer(endpoint, (Net.parse(text),), 0) for key, text in allowed}
    device = WireGuardDevice(b"", b"", 51999, 0x80000000, peers, {})
    known = Tunnels(
        {"wireguard.cali": KernelDevice("wireguard", 1440, True, "felixpy")}, wireguard={"wireguard.cali": device}
    )
    around = known.around(leaving("wireguard.cali", b""))
    assert around is not None
    return around


def test_wireguard_goes_to_the_peer_with_the_longest_prefix_and_carries_the_devices_mark() -> None:
    around = encrypted((WIDE, "10.48.0.0/16"), (NARROW, "10.48.3.0/26"))
    outer = around.outer
    assert outer is not None
    assert (around.kind, around.mtu) == (f"WireGuard peer {format_key(NARROW)}", 1440)
    assert (outer.destination, outer.protocol, outer.port, outer.source_port) == (PEER, UDP, 51820, 51999)
    assert outer.mark == 0x80000000


def test_what_no_peer_of_wireguard_takes_is_stopped() -> None:
    assert encrypted((WIDE, "10.49.0.0/16")).fault == "no peer of wireguard.cali is allowed 10.48.3.1"
    assert encrypted((WIDE, "10.48.0.0/16"), endpoint=None).fault == f"the peer {format_key(WIDE)} has no endpoint"


@pytest.mark.parametrize(
    ("tunnels", "fault"),
    [
        (Tunnels({"vxlan.calico": VXLAN}), "10.48.3.63 has no neighbour entry on vxlan.calico"),
        (
            Tunnels({"vxlan.calico": VXLAN}, {("vxlan.calico", END): MAC}),
            "vxlan.calico does not know where 66:ef:1d:03:cf:2a is",
        ),
    ],
)
def test_what_the_kernel_does_not_know_stops_the_packet(tunnels: Tunnels, fault: str) -> None:
    around = tunnels.around(leaving("vxlan.calico", END))
    assert around is not None
    assert (around.outer, around.fault) == (None, fault)


@pytest.mark.parametrize(
    "verdict", [leaving("eth0", PEER), leaving("vxlan.calico", END, Outcome.DROPPED)], ids=["natively", "dropped"]
)
def test_nothing_is_around_what_enters_no_tunnel(verdict: Verdict) -> None:
    assert KNOWN.around(verdict) is None
