"""Set members of the hot path: our bytes are pyroute2's bytes for random values."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_IPSET
from pyroute2.netlink.nfnetlink.ipset import IPSET_CMD_ADD, ipset_msg

from felixpy.model.net import FAMILIES, Net, format_address
from felixpy.netlink import ipset

MARKED_LENGTH, UNMARKED_LENGTH = b"\5\0\3\x40", b"\5\0\3\0"
"""pyroute2 marks the prefix length as in network byte order; for a single byte that means nothing."""
INTERFACES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.", min_size=1, max_size=15)
NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=31)


def encoded(message: Any) -> bytes:
    """A pyroute2 message as bytes, without the 16-byte header."""
    message.encode()
    return bytes(message.data[16 : message["header"]["length"]])


@st.composite
def nets(draw: st.DrawFn) -> Net:
    bits = draw(st.sampled_from(FAMILIES)).bits
    length = draw(st.integers(1, bits))
    number = draw(st.integers(0, 2**bits - 1)) >> (bits - length) << (bits - length)
    return Net(number.to_bytes(bits // 8, "big"), length)


@given(NAMES, nets(), st.just("") | INTERFACES)
def test_an_ipset_member_has_the_bytes_of_pyroute2(name: str, net: Net, interface: str) -> None:
    address = f"IPSET_ATTR_IPADDR_IPV{net.family.version}", format_address(net.packed)
    data: list[tuple[str, Any]] = [("IPSET_ATTR_IP", {"attrs": [address]}), ("IPSET_ATTR_CIDR", net.length)]
    data += [("IPSET_ATTR_IFACE", interface)] if interface else []
    message = ipset_msg()
    message["header"]["type"] = NFNL_SUBSYS_IPSET << 8 | IPSET_CMD_ADD
    message["nfgen_family"] = 2
    message["attrs"] = [
        ("IPSET_ATTR_PROTOCOL", ipset.PROTOCOL),
        ("IPSET_ATTR_SETNAME", name),
        ("IPSET_ATTR_DATA", {"attrs": data}),
    ]
    for request in (ipset.add(name, ipset.Member(net, interface)), ipset.delete(name, ipset.Member(net, interface))):
        assert request.payload == encoded(message).replace(MARKED_LENGTH, UNMARKED_LENGTH)
