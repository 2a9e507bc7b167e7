"""Which of the node's interfaces its own addresses are taken from."""

from __future__ import annotations

import asyncio

from felixpy.calc.host import Host
from felixpy.dataplane.host import read_host
from felixpy.dataplane.links import Links
from felixpy.model.net import parse_address
from tests.kernel import ip, read_links

TUNNEL = "wireguard.cali"


def host() -> Host:
    links = Links(lambda: 0.0)
    read_links(links)
    return asyncio.run(read_host(links, ("cali",), tunnels=(TUNNEL,)))


def test_a_tunnel_that_has_the_node_s_address_for_host_encryption_is_not_where_it_is(network: None) -> None:
    own, other = parse_address("10.9.0.1"), parse_address("10.9.1.1")
    ip(
        f"link add {TUNNEL} mtu 1440 type veth peer name end0",
        f"link set {TUNNEL} up",
        f"addr add 10.9.0.1/32 dev {TUNNEL}",
        f"addr add 10.9.1.1/32 dev {TUNNEL}",
        "link add zulu0 type veth peer name end1",
        "link set zulu0 up",
        "addr add 10.9.1.1/24 dev zulu0",
    )
    for taken, interface in ((own, TUNNEL), (other, "zulu0")):
        found = host().interface_with(taken)
        assert found is not None
        assert found.interface == interface
    ip("addr add 10.9.0.1/32 dev lo")
    found = host().interface_with(own)
    assert found is not None
    assert (found.interface, found.mtu) == ("", 1500)
