"""Conntrack entries found and deleted on the kernel, with the conntrack tool as the other opinion."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

import pytest

from felixpy.model.net import FAMILIES, Family, format_address, parse_address
from felixpy.netlink import conntrack
from felixpy.netlink.conntrack import ConntrackTable, CtnetlinkMissing, Entry
from felixpy.netlink.message import Request, attribute, attributes, nested
from felixpy.netlink.transport import NetlinkSocket
from tests.netlink.conntrack_lab import (
    PROTOCOLS,
    CountingSocket,
    OtherSubsystem,
    create,
    create_all,
    listed,
    numbered,
    without,
)

UNUSED_PROTOCOL = 31


@pytest.fixture
def netlink(network: None) -> Iterator[CountingSocket]:
    socket = CountingSocket()
    yield socket
    socket.close()


def found(table: ConntrackTable, *addresses: str) -> dict[bytes, Entry]:
    wanted = frozenset(map(parse_address, addresses))
    return {entry.delete: entry for entries in table.entries_of(wanted) for entry in entries}


def in_every_place(family: Family) -> list[Request]:
    """Entries with address 1 in each of the four places, and one with its neighbours only."""
    one, two, three, four = (numbered(family, number) for number in (1, 2, 3, 4))
    return [
        create(one, two, ports=(1, 53)),
        create(two, one, ports=(2, 53)),
        create(two, three, reply_source=one, ports=(3, 53)),
        create(two, four, reply_destination=one, ports=(4, 53)),
        create(one, three, reply_source=four, reply_destination=two, ports=(5, 53)),
        create(two, one, reply_source=three, ports=(6, 53)),
        create(two, three, ports=(7, 53)),
        create(numbered(family, 0x101), numbered(family, 0x1001)),
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_address_in_any_place_is_found_and_only_its_entries_go(netlink: CountingSocket, family: Family) -> None:
    for one in FAMILIES:
        create_all(in_every_place(one))
    before, address = listed(), numbered(family, 1)
    table = ConntrackTable(netlink)
    entries = list(found(table, address).values())
    assert [set(entry.addresses) for entry in entries] == [{parse_address(address)}] * 6
    assert table.delete(entries) == {}
    assert listed() == without(before, address) != before
    assert (netlink.table_reads(), netlink.deletes()) == (1, [6])


def test_addresses_of_both_families_take_one_dump(netlink: CountingSocket) -> None:
    for family in FAMILIES:
        create_all(in_every_place(family))
    before = listed()
    addresses = [numbered(family, number) for family in FAMILIES for number in (1, 3)]
    table = ConntrackTable(netlink)
    entries = found(table, *addresses)
    assert {address for entry in entries.values() for address in entry.addresses} == set(map(parse_address, addresses))
    assert table.delete(list(entries.values())) == {}
    assert listed() == without(before, *addresses)
    assert netlink.table_reads() == 1


def test_a_table_over_many_datagrams_is_walked_in_slices(netlink: CountingSocket) -> None:
    many = [create(numbered(Family.V4, number % 200), numbered(Family.V4, 1000 + number)) for number in range(3000)]
    create_all(many)
    table = ConntrackTable(netlink)
    address = frozenset((parse_address(numbered(Family.V4, 7)),))
    slices = list(table.entries_of(address))
    assert (table.count(), sum(map(len, slices))) == (3000, 15)
    assert len(slices) > 10


def test_an_empty_table_is_not_walked(netlink: CountingSocket) -> None:
    assert found(ConntrackTable(netlink), "10.1.0.1", "fd00:1::1") == {}
    assert netlink.table_reads() == 0


def test_the_same_tuple_in_another_zone_is_another_entry(netlink: CountingSocket) -> None:
    requests = [create("10.1.0.1", "10.1.0.2", zone=zone) for zone in (0, 5, 6)]
    create_all(requests)
    table = ConntrackTable(netlink)
    entries = found(table, "10.1.0.1")
    assert len(entries) == 3
    in_five = [entry for entry in entries.values() if attribute(18, struct.pack(">H", 5)) in entry.delete]
    assert table.delete(in_five) == {}
    assert {entry.zone for entry in listed()} == {"", "6"}
    assert table.delete(list(entries.values())) == {}  # what is gone already is a success
    assert listed() == set()


def test_a_new_entry_with_the_same_tuple_is_safe_from_an_old_delete(netlink: CountingSocket) -> None:
    create_all([create("10.1.0.1", "10.1.0.2")])
    table = ConntrackTable(netlink)
    (old,) = found(table, "10.1.0.1").values()
    assert table.delete([old]) == {}
    fillers = [create("10.1.0.3", "10.1.0.4", ports=(port, 53)) for port in range(1, 101)]
    create_all([*fillers, create("10.1.0.1", "10.1.0.2")])  # the id follows the memory, which the fillers take first
    before = listed()
    assert table.delete([old]) == {}
    assert listed() == before != set()
    (new,) = found(table, "10.1.0.1").values()
    assert new != old
    assert table.delete([new]) == {}
    assert len(listed()) == len(fillers)


def test_decoding_agrees_with_the_tool_for_every_protocol(netlink: CountingSocket) -> None:
    for first, second in (("10.1.0.1", "10.1.0.2"), ("fd00:1::1", "fd00:1::2")):
        create_all(create(first, second, protocol=protocol) for protocol in PROTOCOLS)
    messages = netlink.dump_all(conntrack.dump_request(map(parse_address, ("10.1.0.1", "fd00:1::1"))))
    decoded = [tuple(map(format_address, conntrack.addresses_of(message.payload))) for message in messages]
    assert sorted(decoded) == sorted(entry.addresses for entry in listed())
    assert len(decoded) == 2 * len(PROTOCOLS)
    table = ConntrackTable(netlink)
    assert table.delete(list(found(table, "10.1.0.1", "fd00:1::2").values())) == {}
    assert listed() == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_another_order_of_attributes_means_the_same(netlink: CountingSocket, family: Family) -> None:
    create_all(in_every_place(family))
    for message in netlink.dump_all(conntrack.dump_request([parse_address(numbered(family, 1))])):
        reversed_ = message.payload[:4] + reverse(message.payload, 4, depth=3)
        assert reversed_ != message.payload
        assert set(conntrack.addresses_of(reversed_)) == set(conntrack.addresses_of(message.payload))


def reverse(data: bytes, offset: int, depth: int) -> bytes:
    """An attribute stream from the last attribute to the first, tuples and what is in them too."""
    parts = []
    for kind, value in attributes(data, offset):
        if (depth == 3 and kind in (1, 2)) or depth == 2:
            parts.append(nested(kind, reverse(value, 0, depth - 1)))
        else:
            parts.append(attribute(kind, value))
    return b"".join(reversed(parts))


def test_a_dump_that_is_abandoned_does_not_disturb_the_next(netlink: CountingSocket) -> None:
    create_all(create(numbered(Family.V4, number), "10.2.0.1") for number in range(3000))
    table = ConntrackTable(netlink)
    for _ in table.entries_of(frozenset((parse_address("10.2.0.1"),))):
        break
    assert len(found(table, "10.2.0.1")) == 3000


@pytest.mark.parametrize("socket", [OtherSubsystem(), NetlinkSocket(UNUSED_PROTOCOL)], ids=["subsystem", "protocol"])
def test_a_kernel_without_ctnetlink_is_told_apart(network: None, socket: NetlinkSocket) -> None:
    with pytest.raises(CtnetlinkMissing):
        found(ConntrackTable(socket), "10.1.0.1")
    socket.close()


def test_a_refused_delete_is_named(netlink: CountingSocket) -> None:
    create_all([create("10.1.0.1", "10.1.0.2"), create("10.1.0.1", "10.1.0.3")])
    table = ConntrackTable(netlink)
    good, bad = found(table, "10.1.0.1").values()
    bad = bad._replace(delete=bad.delete[:4] + nested(1, b""))
    refusals = table.delete([bad, good])
    assert {index: refusal.errno for index, refusal in refusals.items()} == {0: errno.EINVAL}
    assert len(listed()) == 1


def test_without_a_tuple_nothing_is_deleted(netlink: CountingSocket) -> None:
    create_all([create("10.1.0.1", "10.1.0.2")])
    (message,) = netlink.dump_all(conntrack.dump_request([parse_address("10.1.0.1")]))
    rest = b"".join(attribute(kind, value) for kind, value in attributes(message.payload, 4) if kind != 1)
    with pytest.raises(ValueError, match="deletes all entries"):
        conntrack.delete_payload(message.payload[:4] + rest)
