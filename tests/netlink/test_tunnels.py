"""Messages of tunnel devices that this kernel may have no module for, beside pyroute2's reading of them."""

from __future__ import annotations

import pytest
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from felixpy.model.net import parse_address
from felixpy.netlink.message import Message, Request
from felixpy.netlink.rtnetlink import RTM_NEWLINK
from felixpy.netlink.transport import NETLINK_ROUTE, NetlinkSocket
from felixpy.netlink.tunnels import (
    KernelDevice,
    decode_device,
    device_query,
    ipip_change_request,
    ipip_create_request,
)
from tests.kernel import ip

OWN = KernelDevice("ipip", 1480, True, "", local=parse_address("10.9.0.1"))


def read(request: Request) -> ifinfmsg:
    """As pyroute2 reads the payload of a request."""
    found = ifinfmsg((16 + len(request.payload)).to_bytes(4, "little") + bytes(12) + request.payload)
    found.decode()
    return found


def test_an_ipip_device_with_an_outer_source_and_no_other_end() -> None:
    made = read(ipip_create_request("tunl-felixpy", OWN))
    assert (made.get_attr("IFLA_IFNAME"), made.get_attr("IFLA_MTU")) == ("tunl-felixpy", 1480)
    for request in (ipip_create_request("tunl-felixpy", OWN), ipip_change_request(7, OWN)):
        info = read(request).get_attr("IFLA_LINKINFO")
        data = info.get_attr("IFLA_INFO_DATA")
        assert (info.get_attr("IFLA_INFO_KIND"), data.get_attr("IFLA_IPIP_LOCAL")) == ("ipip", "10.9.0.1")
        assert (data.get_attr("IFLA_IPIP_REMOTE"), data.get_attr("IFLA_IPIP_PMTUDISC")) == (None, 0)
        assert decode_device(Message(RTM_NEWLINK, 0, 0, request.payload)).local == OWN.local


@pytest.mark.parametrize(
    ("more", "plain"),
    [
        ("nolearning", True),
        ("nolearning ttl 3 udpcsum ageing 30", True),
        *(
            (f"nolearning {one}", False)
            for one in ("gbp", "gpe external", "l2miss", "l3miss", "proxy", "rsc", "remcsumtx", "remcsumrx", "external")
        ),
        ("learning", False),
        ("nolearning group 239.0.0.1 dev lo", False),
    ],
)
def test_a_device_that_others_made_for_something_else_is_not_plain(network: None, more: str, plain: bool) -> None:
    named = "" if "external" in more else "id 4096"
    ip(f"link add vxlan.calico type vxlan {named} dstport 4789 local 10.9.0.1 {more}")
    socket = NetlinkSocket(NETLINK_ROUTE)
    try:
        assert decode_device(socket.ask(device_query("vxlan.calico"))).plain is plain
    finally:
        socket.close()
