"""Rarely read facts: addresses of chosen interfaces, and default routes learnt by router advertisement."""

from __future__ import annotations

import asyncio
import time

import pytest

from felixpy.demo.patience import Patience
from felixpy.model.net import Net
from felixpy.netlink.inventory import is_usable, read_addresses, read_advertised_default_interfaces
from felixpy.netlink.rtnetlink import InterfaceAddress
from tests.kernel import ip, ip_json, pairs


def index_of(name: str) -> int:
    return int(ip_json("link", "show", name)[0]["ifindex"])


def test_addresses_of_the_interfaces_asked_for_and_no_others(network: None) -> None:
    pairs("eth0", "eth1", "cali1")
    ip(
        "addr add 192.0.2.5/24 dev eth0",
        "addr add 2001:db8::5/64 dev eth0 nodad",
        "addr add 198.51.100.5/24 dev eth1",
        "addr add 10.0.0.1/32 dev cali1",
    )
    eth0, eth1 = index_of("eth0"), index_of("eth1")
    found = asyncio.run(read_addresses([eth0, eth1]))
    assert {one.interface for one in found} == {eth0, eth1}
    usable = {(one.interface, str(one.net)) for one in found if is_usable(one)}
    assert usable == {(eth0, "192.0.2.5/24"), (eth0, "2001:db8::5/64"), (eth1, "198.51.100.5/24")}
    assert asyncio.run(read_addresses([])) == []
    ip("link del eth1")
    assert asyncio.run(read_addresses([eth1, eth0])) == [one for one in found if one.interface == eth0]


def test_an_address_that_another_node_has_does_not_count(network: None) -> None:
    pairs("eth0")
    ip("addr add 2001:db8::5/64 dev p-eth0 nodad", "addr add 2001:db8::5/64 dev eth0")
    patience = Patience(30)
    while not any(info.get("dadfailed") for info in ip_json("addr", "show", "dev", "eth0")[0]["addr_info"]):
        assert not patience.over()
        time.sleep(0.05)
    found = asyncio.run(read_addresses([index_of("eth0")]))
    assert "2001:db8::5/64" not in {str(one.net) for one in found}


@pytest.mark.parametrize(
    ("address", "usable"),
    [
        ("192.0.2.1/24", True),
        ("127.0.0.1/8", False),
        ("127.1.2.3/8", False),
        ("2001:db8::1/64", True),
        ("fd00::1/64", True),
        ("fe80::1/64", False),
        ("febf::1/64", False),
        ("fec0::1/64", True),
        ("::1/128", False),
    ],
)
def test_which_addresses_reach_another_node(address: str, usable: bool) -> None:
    assert is_usable(InterfaceAddress(1, Net.parse_interface(address))) is usable


def test_only_advertised_default_routes_of_the_main_table_count(network: None) -> None:
    pairs("eth0", "eth1", "eth2", "eth3")
    ip(
        "route add default via fe80::1 dev eth0 proto ra metric 1024",
        "route add default via fe80::1 dev eth1 proto static metric 2048",
        "route add 2001:db8:1::/64 via fe80::1 dev eth2 proto ra",
        "route add default via fe80::1 dev eth3 proto ra table 1000",
    )
    assert asyncio.run(read_advertised_default_interfaces()) == {index_of("eth0")}
    ip("route add default via fe80::2 dev eth3 proto ra metric 4096")
    assert asyncio.run(read_advertised_default_interfaces()) == {index_of("eth0"), index_of("eth3")}
