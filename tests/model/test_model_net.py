"""Addresses and prefixes: round trips, and never looser than the standard library."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from felixpy.model.names import cidr_name
from felixpy.model.net import Family, Net, format_address, parse_address, peer_address, quote

addresses = st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16))
nets = addresses.flatmap(
    lambda packed: st.integers(0, len(packed) * 8).map(
        lambda length: Net.parse_masked(f"{format_address(packed)}/{length}")
    )
)


@given(nets)
def test_a_net_survives_being_written_and_read(net: Net) -> None:
    assert Net.parse(str(net)) == net
    assert Net.parse_interface(str(net)) == net
    assert str(net) == str(ipaddress.ip_network(str(net)))


@given(nets, nets)
def test_covers_and_overlaps_agree_with_the_standard_library(one: Net, other: Net) -> None:
    first, second = ipaddress.ip_network(str(one)), ipaddress.ip_network(str(other))
    if one.family is other.family:
        assert one.covers(other) == second.subnet_of(first)  # type: ignore[arg-type]
    assert one.overlaps(other) == first.overlaps(second)
    assert one.__contains__(other) == one.covers(other)


@given(st.one_of(st.text(max_size=45), st.text("0123456789abcdef:./%", max_size=45)))
def test_parsing_is_never_looser_than_the_standard_library(text: str) -> None:
    try:
        packed = parse_address(text)
    except ValueError:
        pass
    else:
        assert ipaddress.ip_address(text).packed == packed
    try:
        net = Net.parse(text)
    except ValueError:
        return
    assert str(net) == str(ipaddress.ip_network(text, strict=True))


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("2001::00/64", "2001::/64"),
        ("fd20::0/112", "fd20::/112"),
        ("10.48.0.0/21", "10.48.0.0/21"),
        ("10.48.0.7", "10.48.0.7/32"),
        ("FD00::0001", "fd00::1/128"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::/0", "::/0"),
    ],
)
def test_a_prefix_is_canonical(text: str, canonical: str) -> None:
    assert str(Net.parse(text)) == canonical


@pytest.mark.parametrize(
    "text",
    ["", "/", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/+8", "10.0.0.0/1_0", "10.0.0.0/٨",
     "10.0.0.0/255.0.0.0", "010.0.0.1", "10.0.0.1/8/8", "10.0.0", "fe80::1%eth0", "::/129",
     "1.2.3.4\x00", " 1.2.3.4", "\ud800"],
)  # fmt: skip
def test_what_is_not_a_prefix_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Net.parse(text)


def test_host_bits_are_refused_with_the_network_that_was_meant() -> None:
    with pytest.raises(ValueError, match=r"'10\.48\.0\.1/21' has host bits set; the network is 10\.48\.0\.0/21"):
        Net.parse("10.48.0.1/21")
    assert str(Net.parse_masked("10.48.0.1/21")) == "10.48.0.0/21"
    assert str(Net.parse_interface("10.48.0.1/21")) == "10.48.0.1/21"


def test_an_object_is_named_after_a_cidr_as_in_calico() -> None:
    assert cidr_name(Net.parse("10.48.0.0/26")) == "10-48-0-0-26"
    assert cidr_name(Net.parse("fd00:48::/122")) == "fd00-48---122"
    assert Net.parse("fd00::/8").family is Family.V6


@given(st.one_of(st.text(), st.integers(), st.lists(st.text())))
def test_a_quoted_value_is_short_and_printable(value: object) -> None:
    text = quote(value)
    assert len(text) <= 80
    assert text.replace("…", "").isascii()
    assert text.isprintable()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (("192.0.2.7", 1883), "192.0.2.7"),
        (("2001:db8::7", 1883, 0, 0), "2001:db8::7"),
        (("::ffff:192.0.2.7", 1883, 0, 0), "192.0.2.7"),
        (("fe80::1%eth0", 1883, 0, 2), "fe80::1"),
        ("/run/broker.sock", ""),
        (None, ""),
        (("broker", 1883), ""),
    ],
)
def test_the_other_end_of_a_connection(name: object, expected: str) -> None:
    packed = peer_address(name)
    assert (format_address(packed) if packed else "") == expected
