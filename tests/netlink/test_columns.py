"""What is taken apart in one go gives what the attributes one by one give, also for messages that look alike."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from felixpy.netlink import nexthop, rtnetlink, tunnels
from felixpy.netlink import nftables as nft
from felixpy.netlink.columns import SomeAttributes
from felixpy.netlink.message import Message, attribute, nested

byte = st.integers(0, 255)
word = st.integers(0, 0xFFFFFFFF)


def route_payload(
    family: int, kinds: list[int], draw: Callable[[int], bytes], header: tuple[int, ...], flags: int
) -> bytes:
    """A route message with these attributes in this order, all of the length that its type has."""
    lengths = {rtnetlink.RTA_DST: 4 if family == 2 else 16, 12: 32, 20: 1}
    parts = [struct.pack("=BBBBBBBBI", family, *header, flags)]
    parts += [attribute(kind, draw(lengths.get(kind, 4))) for kind in kinds]
    return b"".join(parts)


ORDERS = [
    (2, [15, 1, 4]),
    (2, [1, 15, 4]),
    (2, [15, 1, 5]),
    (2, [15, 7, 4]),
    (2, [15, 1, 30, 5, 4]),
    (2, [15, 1, 9]),
    (10, [15, 1, 6, 30, 5, 4, 12, 20]),
    (10, [15, 1, 6, 4, 12, 20]),
    (10, [15, 6, 1, 4, 12, 20]),
    (10, [15, 1, 4, 6, 12, 20]),
    (10, [15, 5, 6, 4, 12, 20]),
]


@st.composite
def routes(draw: st.DrawFn) -> bytes:
    family, kinds = draw(st.sampled_from(ORDERS))
    values = (
        draw(st.integers(0, 128)),
        0,
        0,
        draw(byte),
        draw(byte),
        draw(byte),
        draw(st.sampled_from((1, 1, 1, 6, 8))),
    )
    flags = draw(st.sampled_from((0, 0, 4, 0x200)))
    return route_payload(family, kinds, lambda size: draw(st.binary(min_size=size, max_size=size)), values, flags)


@st.composite
def neighbours(draw: st.DrawFn) -> bytes:
    family = draw(st.sampled_from((2, 10)))
    address = draw(st.binary(min_size=4 if family == 2 else 16, max_size=4 if family == 2 else 16))
    state = draw(st.sampled_from((0x80, 0x80, 0x02, 0x40)))
    parts = [
        attribute(1, address),
        attribute(2, draw(st.binary(min_size=6, max_size=6))),
        attribute(4, bytes(4)),
        attribute(3, draw(st.binary(min_size=16, max_size=16))),
        attribute(12, bytes((draw(byte),))),
    ]
    if draw(st.booleans()):
        parts = draw(st.permutations(parts))
    return struct.pack("=BBHiHBB", family, 0, 0, draw(st.integers(1, 9999)), state, 0, 1) + b"".join(parts)


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Sometimes one byte is another."""
    data = bytearray(draw(whole))
    if draw(st.booleans()):
        data[draw(st.integers(0, len(data) - 1))] = draw(byte)
    return bytes(data)


def outcome(decode: Callable[[Message], object], payload: bytes) -> object:
    try:
        return decode(Message(0, 0, 0, payload))
    except (ValueError, KeyError, IndexError, struct.error) as error:
        return type(error)


@given(damaged(routes()))
def test_a_route(payload: bytes) -> None:
    message = Message(0, 0, 0, payload)
    alone = outcome(rtnetlink.decode_route, payload)
    taken = rtnetlink._decode_routes_together([message, message])
    assert taken is None or list(taken) == [alone, alone]


@st.composite
def nexthops(draw: st.DrawFn) -> bytes:
    kinds = draw(st.permutations((1, 5, 6))) if draw(st.booleans()) else (1, 5, 6)
    values = {kind: draw(st.binary(min_size=4, max_size=4)) for kind in (1, 5, 6)}
    flags = draw(st.sampled_from((0, 4)))
    header = struct.pack("=BBBBI", 2, 0, draw(byte), 0, flags)
    return header + b"".join(attribute(kind, values[kind]) for kind in kinds)


@st.composite
def fdb_entries(draw: st.DrawFn) -> bytes:
    mac = draw(st.sampled_from((bytes(6), b"\x66abcde", b"\x66fghij")))
    state, family = draw(st.sampled_from((0x80, 0x80, 0x02))), draw(st.sampled_from((7, 7, 7, 2)))
    header = struct.pack("=BBHiHBB", family, 0, 0, draw(st.integers(1, 9999)), state, 2, 0)
    return header + attribute(2, mac) + attribute(1, draw(st.binary(min_size=4, max_size=4))) + attribute(3, bytes(16))


@given(st.lists(damaged(nexthops())), st.lists(damaged(fdb_entries())))
def test_many_nexthops_and_entries_mean_what_each_means_alone(objects: list[bytes], entries: list[bytes]) -> None:
    for payloads, many, alone in (
        (objects, nexthop.decode_nexthops, nexthop.decode_nexthop),
        (entries, tunnels.decode_fdb_entries, tunnels.decode_fdb),
    ):
        usable = [(payload, one) for payload in payloads if not isinstance(one := outcome(alone, payload), type)]
        found = many([Message(0, 0, 0, payload) for payload, _ in usable])
        assert sorted(map(repr, found)) == sorted(repr(one) for _, one in usable if one is not None)


@given(damaged(neighbours()))
def test_a_neighbour(payload: bytes) -> None:
    fast = outcome(rtnetlink.decode_neighbour, payload)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rtnetlink, "_SIGNED_NEIGHBOURS", {})
        assert fast == outcome(rtnetlink.decode_neighbour, payload)


@given(st.lists(damaged(routes())), st.lists(damaged(neighbours())))
def test_many_at_once_mean_what_each_means_alone(some_routes: list[bytes], some_neighbours: list[bytes]) -> None:
    """Routes in their order, too: of several with one key the first is the one that the kernel uses."""
    for payloads, many, alone in (
        (some_routes, rtnetlink.decode_routes, rtnetlink.decode_route),
        (some_neighbours, rtnetlink.decode_neighbours, rtnetlink.decode_neighbour),
    ):
        each = [(payload, outcome(alone, payload)) for payload in payloads]
        usable = [(payload, one) for payload, one in each if not isinstance(one, type)]
        found = many([Message(0, 0, 0, payload) for payload, _ in usable])
        expected = [repr(one) for _, one in usable if one is not None]
        assert sorted(map(repr, found)) == sorted(expected)
        assert many is not rtnetlink.decode_routes or list(map(repr, found)) == expected


def printed(key: bytes, *, timed: bool = False) -> bytes:
    """A list entry as the kernel prints it, with a time-out or without."""
    inner = attribute(nft.ELEMENT_KEY, attribute(1, key)) + (attribute(4, bytes(8)) if timed else b"")
    return attribute(1, inner)


@given(st.lists(st.tuples(st.binary(min_size=20, max_size=20), st.sampled_from((False, False, False, True)))))
def test_keys_of_elements(entries: list[tuple[bytes, bool]]) -> None:
    payload = (
        bytes(4) + attribute(1, b"felixpy\0") + attribute(3, b"".join(printed(key, timed=t) for key, t in entries))
    )
    message = Message(0, 0, 0, payload)
    keys = nft.decode_keys(message, 20)
    assert keys == (None if any(timed for _, timed in entries) else [one.key for one in nft.decode_elements(message)])


def test_the_common_routes_of_the_kernel_are_taken_apart_in_one_go() -> None:
    def draw(size: int) -> bytes:
        return bytes(size)

    through_objects = ((2, [15, 1, 30, 5, 4]), (10, [15, 1, 6, 30, 5, 4, 12, 20]))
    for family, kinds in ((2, [15, 1, 4]), (10, [15, 1, 6, 4, 12, 20]), *through_objects):
        payload = route_payload(family, kinds, draw, (32, 0, 0, 254, 222, 0, 1), 0)
        message = Message(rtnetlink.RTM_NEWROUTE, 0, 0, payload)
        assert rtnetlink._decode_routes_together([message, message]) is not None


def test_messages_of_any_form_give_the_attributes_that_they_have() -> None:
    """Also one that has the length and the first header of an earlier one, and other attributes behind them."""
    some = SomeAttributes(4, (1,), (2, 5))
    first, inner, other = attribute(1, b"abc"), attribute(5, b"here"), attribute(6, b"here")
    messages = {
        first + nested(2, other, inner) + other: {(1,): b"abc", (2, 5): b"here"},
        first + nested(2, inner, other) + other: {(1,): b"abc", (2, 5): b"here"},
        first + nested(3, inner, other) + inner: {(1,): b"abc"},
        first + other: {(1,): b"abc"},
        other: {},
        b"": {},
        attribute(1, b"abc")[:6]: {(1,): b"ab"},
        bytes(8) + first: {},
    }
    for _ in range(2):
        for message, expected in messages.items():
            assert some.of(bytes(4) + message) == expected
