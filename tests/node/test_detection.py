"""Methods of address detection, beyond the shared cases."""

from __future__ import annotations

import pytest

from felixpy.model.net import Family, Net
from felixpy.node.detection import Address, DetectionError, Interface, Surroundings, detect
from felixpy.node.own_address import conflicts, own_address


def interfaces(**addresses: str) -> list[Interface]:
    return [
        Interface(name.replace("_", "-"), tuple(Address(Net.parse_interface(text)) for text in texts.split()))
        for name, texts in addresses.items()
    ]


AROUND = Surroundings(
    interfaces(lo="127.0.0.1/8", eth0="10.9.0.1/24 fd09::1/64", eth1="192.168.5.4/16", docker0="172.17.0.1/16"),
    internal_ips=["node1", "10.9.0.1", "fd09::1"],
)


@pytest.mark.parametrize(
    ("method", "family", "found"),
    [
        ("", Family.V4, "192.168.5.4/16"),
        ("first-found", Family.V6, "fd09::1/64"),
        ("skip-interface=eth1", Family.V4, "10.9.0.1/24"),
        ("skip-interface=th1, wlan.*", Family.V4, "10.9.0.1/24"),
        ("interface=docker0", Family.V4, "172.17.0.1/16"),
        ("cidr=172.16.0.0/12", Family.V4, "172.17.0.1/16"),
        ("cidr=fd09::5/64", Family.V6, "fd09::1/64"),
        ("kubernetes-internal-ip", Family.V4, "10.9.0.1/24"),
        ("kubernetes-internal-ip", Family.V6, "fd09::1/64"),
    ],
)
def test_methods(method: str, family: Family, found: str) -> None:
    assert str(detect(method, family, AROUND)) == found


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("fist-found", "no way to detect"),
        ("interface=", "no interface is named"),
        ("interface=(", "no regular expression"),
        ("skip-interface=eth.*", "no interface that may be looked at"),
        ("cidr=10.9.0.0", "invalid CIDR"),
        ("can-reach=", "no IPv4 route"),
    ],
)
def test_what_cannot_be_used_is_named(method: str, reason: str) -> None:
    with pytest.raises(DetectionError, match=reason):
        detect(method, Family.V4, AROUND)


@pytest.mark.parametrize(
    ("address", "may_be_told"),
    [
        ("240.0.0.5/20", True),
        ("255.255.255.254/31", True),
        ("255.255.255.255/32", False),
        ("224.0.0.5/24", False),
        ("239.255.1.1/24", False),
        ("0.0.0.5/24", False),
        ("127.0.0.5/8", False),
        ("169.254.7.7/16", False),
    ],
)
def test_what_is_unicast_to_the_kernel_may_be_a_nodes_address(address: str, may_be_told: bool) -> None:
    around = Surroundings(interfaces(eth0=address))
    if may_be_told:
        assert str(detect("first-found", Family.V4, around)) == address
    else:
        with pytest.raises(DetectionError):
            detect("first-found", Family.V4, around)


def test_internal_ip_needs_kubernetes() -> None:
    with pytest.raises(DetectionError, match="Kubernetes only"):
        detect("kubernetes-internal-ip", Family.V4, Surroundings(AROUND.interfaces))


def test_virtual_address_comes_after_one_with_a_subnet_but_before_none() -> None:
    around = Surroundings(interfaces(eth0="10.9.0.100/32 10.9.0.1/24"))
    assert str(detect("first-found", Family.V4, around)) == "10.9.0.1/24"
    around = Surroundings(interfaces(eth0="10.9.0.100/32"))
    assert str(detect("first-found", Family.V4, around)) == "10.9.0.100/32"


def test_detected_address_is_kept_while_an_interface_has_it() -> None:
    known = Net.parse_interface("10.9.0.1/24")
    assert own_address("autodetect", "", Family.V4, known, AROUND).net == known
    gone = Surroundings(interfaces(eth1="192.168.5.4/16"))
    assert str(own_address("autodetect", "", Family.V4, known, gone).net) == "192.168.5.4/16"


def test_kept_address_takes_a_new_prefix_length() -> None:
    known = Net.parse_interface("10.9.0.1/32")
    assert str(own_address("autodetect", "", Family.V4, known, AROUND).net) == "10.9.0.1/24"


def test_address_that_no_interface_has_is_told() -> None:
    assert "no interface" in own_address("10.9.0.77", "", Family.V4, None, AROUND).warning


def test_own_name_is_no_conflict() -> None:
    mine = [Net.parse_interface("10.9.0.1/24")]
    assert conflicts("node1", mine, [("node1", mine[0])]) == []
    (one,) = conflicts("node1", mine, [("node1", mine[0]), ("node9", Net.parse_interface("10.9.0.1/16"))])
    assert one.startswith("IPv4 address conflict with node9")
