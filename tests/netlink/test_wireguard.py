"""WireGuard's messages and routing rules: the same bytes as pyroute2's, read back, and the keys as ``wg`` has them."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.generic.wireguard import WGPEER_F_REMOVE_ME, WGPEER_F_REPLACE_ALLOWEDIPS, wgmsg
from pyroute2.netlink.rtnl.fibmsg import fibmsg

from felixpy.model.net import Family, Net, format_address, parse_address
from felixpy.model.wireguard import clamped, format_key, parse_key, public_key
from felixpy.netlink import wireguard_uapi
from felixpy.netlink.message import Message, Request
from felixpy.netlink.rule import KernelRule, decode_rule, rule_dump_request, rule_request
from felixpy.netlink.transport import NETLINK_ROUTE, NetlinkSocket
from felixpy.netlink.wireguard import (
    MOST_ALLOWED_IPS,
    PeerChange,
    WireGuardPeer,
    decode_device,
    device_request,
    peer_requests,
)
from tests.kernel import run

KEY, OTHER = bytes(range(1, 33)), bytes(range(2, 34))
NETS = tuple(sorted(map(Net.parse, ("10.48.2.0/26", "10.48.2.62/32", "fd00:48:0:2::/122"))))


def theirs(command: int, *attrs: list[Any]) -> bytes:
    """The payload that pyroute2 makes."""
    message = wgmsg()
    message["cmd"], message["version"], message["attrs"] = command, 1, [["WGDEVICE_A_IFNAME", "wg0"], *attrs]
    message.encode()
    return bytes(message.data[16:])


def their_peer(*attrs: list[Any]) -> bytes:
    return theirs(1, ["WGDEVICE_A_PEERS", [{"attrs": [["WGPEER_A_PUBLIC_KEY", format_key(KEY)], *attrs]}]])


def their_nets(nets: tuple[Net, ...]) -> list[Any]:
    fields = [
        {
            "attrs": [
                ["WGALLOWEDIP_A_FAMILY", int(net.family)],
                ["WGALLOWEDIP_A_IPADDR", net.packed],
                ["WGALLOWEDIP_A_CIDR_MASK", net.length],
            ]
        }
        for net in nets
    ]
    return ["WGPEER_A_ALLOWEDIPS", fields]


def test_a_device_as_pyroute2_writes_it() -> None:
    mine = device_request(30, "wg0", KEY, 51820, 0x80000000)
    assert mine.type == 30
    assert mine.payload == theirs(
        1,
        ["WGDEVICE_A_PRIVATE_KEY", format_key(KEY)],
        ["WGDEVICE_A_LISTEN_PORT", 51820],
        ["WGDEVICE_A_FWMARK", 0x80000000],
    )


@pytest.mark.parametrize("address", ["10.9.0.2", "fd09::2"])
def test_a_peer_as_pyroute2_writes_it(address: str) -> None:
    (mine,) = peer_requests(30, "wg0", PeerChange(KEY, WireGuardPeer((parse_address(address), 51820), NETS, 25)))
    assert mine.payload == their_peer(
        ["WGPEER_A_ENDPOINT", {"addr": address, "port": 51820}],
        ["WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", 25],
        ["WGPEER_A_FLAGS", WGPEER_F_REPLACE_ALLOWEDIPS],
        their_nets(NETS),
    )


def test_a_peer_that_goes_and_one_that_gets_more() -> None:
    (gone,) = peer_requests(30, "wg0", PeerChange(KEY, None))
    assert gone.payload == their_peer(["WGPEER_A_FLAGS", WGPEER_F_REMOVE_ME])
    before = WireGuardPeer((parse_address("10.9.0.2"), 51820), NETS[:1], 0)
    (more,) = peer_requests(30, "wg0", PeerChange(KEY, before._replace(allowed=NETS), before))
    assert more.payload == their_peer(
        ["WGPEER_A_ENDPOINT", {"addr": "10.9.0.2", "port": 51820}],
        ["WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", 0],
        ["WGPEER_A_FLAGS", 0],
        their_nets(NETS[1:]),
    )
    (less,) = peer_requests(30, "wg0", PeerChange(KEY, before, before._replace(allowed=NETS)))
    assert less.payload == their_peer(
        ["WGPEER_A_ENDPOINT", {"addr": "10.9.0.2", "port": 51820}],
        ["WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", 0],
        ["WGPEER_A_FLAGS", WGPEER_F_REPLACE_ALLOWEDIPS],
        their_nets(NETS[:1]),
    )


def as_told(request: Request) -> Message:
    """A message of ours as the kernel would send it back: it has the same attributes."""
    return Message(request.type, 0, 0, request.payload)


def test_more_allowed_ips_than_fit_are_read_back_as_one_peer() -> None:
    numbers = range(2 * MOST_ALLOWED_IPS + 1)
    nets = tuple(Net((0xFD00 << 112 | number << 64).to_bytes(16, "big"), 64) for number in numbers)
    peer = WireGuardPeer((parse_address("fd09::2"), 51821), nets, 0)
    requests = list(peer_requests(30, "wg0", PeerChange(KEY, peer)))
    assert len(requests) == 3
    assert all(len(request.payload) < 1 << 16 for request in requests)
    assert decode_device(map(as_told, requests)).peers == {KEY: peer}


prefixes = st.builds(
    lambda family, number, length: Net.parse_masked(
        f"{format_address((number % (1 << family.bits)).to_bytes(family.bits // 8))}/{length % (family.bits + 1)}"
    ),
    st.sampled_from(Family),
    st.integers(0, (1 << 128) - 1),
    st.integers(0, 128),
)
peers = st.builds(
    WireGuardPeer,
    st.tuples(st.sampled_from([b"\x0a\x09\x00\x02", parse_address("fd09::2")]), st.integers(1, 65535)),
    st.sets(prefixes, max_size=5).map(lambda nets: tuple(sorted(nets))),
    st.integers(0, 65535),
)


@given(peers)
def test_what_is_written_is_read_back(peer: WireGuardPeer) -> None:
    assert decode_device(map(as_told, peer_requests(30, "wg0", PeerChange(KEY, peer)))).peers == {KEY: peer}


@given(peers, peers)
def test_a_user_space_device_is_told_the_same(peer: WireGuardPeer, known: WireGuardPeer) -> None:
    said = wireguard_uapi.peers_request([PeerChange(KEY, peer), PeerChange(OTHER, None)])
    lines = said.split("\n")
    assert lines[:2] == ["set=1", f"public_key={KEY.hex()}"]
    assert lines[-4:] == [f"public_key={OTHER.hex()}", "remove=true", "", ""]
    answer = "\n".join(line for line in lines[1:-4] if line != "replace_allowed_ips=true")
    assert wireguard_uapi.decode_device(f"private_key={OTHER.hex()}\nlisten_port=7\n{answer}").peers == {KEY: peer}
    change = PeerChange(KEY, peer, known)
    assert ("replace_allowed_ips=true" in wireguard_uapi.peers_request([change])) != change.only_adds


def test_a_key_of_rfc_7748() -> None:
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    assert public_key(bob).hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"


def test_keys_as_wg_makes_them() -> None:
    for _ in range(5):
        private = os.urandom(32)
        said = run("wg", "pubkey", stdin=format_key(private) + "\n")
        assert public_key(private) == parse_key(said)
        assert public_key(clamped(private)) == public_key(private)


@pytest.mark.parametrize("text", ["", "AAAA", "not base64!", "A" * 43 + "=", "é" * 44])
def test_what_is_no_key(text: str) -> None:
    with pytest.raises(ValueError, match="is not a WireGuard key"):
        parse_key(text)


RULE = KernelRule(Family.V4, 99, 1, 0x80000000, 222)


@pytest.mark.parametrize("table", [1, 1000])
@pytest.mark.parametrize("family", Family)
def test_a_rule_as_pyroute2_reads_it(family: Family, table: int) -> None:
    request = rule_request(RULE._replace(family=family, table=table))
    header = (16 + len(request.payload)).to_bytes(4, "little") + request.type.to_bytes(2, "little") + bytes(10)
    read = fibmsg(header + request.payload)
    read.decode()
    found = dict(read["attrs"])
    assert (read["family"], read["action"], read["flags"]) == (family, 1, 2)
    assert {name: found[f"FRA_{name}"] for name in ("PRIORITY", "FWMARK", "FWMASK", "TABLE", "PROTOCOL")} == {
        "PRIORITY": 99,
        "FWMARK": 0x80000000,
        "FWMASK": 0x80000000,
        "TABLE": table,
        "PROTOCOL": 222,
    }


@pytest.mark.parametrize("family", Family)
def test_what_the_kernel_makes_of_a_rule(network: None, family: Family) -> None:
    version = f"-{family.version}"
    run("ip", version, "rule", "add", "pref", "98", "iif", "lo", "lookup", "7")
    run("ip", version, "rule", "add", "pref", "97", "from", "all", "fwmark", "0x10/0x10", "lookup", "7")
    socket = NetlinkSocket(NETLINK_ROUTE)
    try:
        rules = [RULE._replace(family=family), RULE._replace(family=family, table=1000, priority=100)]
        assert socket.transact([rule_request(rule) for rule in rules]) == {}
        shown = run("ip", version, "rule")
        assert "99:\tnot from all fwmark 0x80000000/0x80000000 lookup 1 proto 222" in shown
        found = [decode_rule(message) for message in socket.dump_all(rule_dump_request(family))]
        assert [one for one in found if one is not None] == rules
        assert list(socket.transact([rule_request(rules[0])])) == [0]
        assert socket.transact([rule_request(rule, delete=True) for rule in rules]) == {}
        assert "proto 222" not in run("ip", version, "rule")
    finally:
        socket.close()
