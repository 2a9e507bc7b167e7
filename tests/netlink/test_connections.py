"""Conntrack entries as connections, with the conntrack tool as the other opinion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from felixpy.model.net import FAMILIES, format_address, parse_address
from felixpy.netlink.connections import Connection, Stage, read_connections
from felixpy.netlink.conntrack import ConntrackTable
from tests.netlink.conntrack_lab import PROTOCOLS, CountingSocket, create, create_all, listed, numbered

GRE = 47


@pytest.fixture
def netlink(network: None) -> Iterator[CountingSocket]:
    socket = CountingSocket()
    yield socket
    socket.close()


def found(netlink: CountingSocket) -> list[Connection]:
    return [one for some in read_connections(ConntrackTable(netlink)) for one in some]


def test_every_protocol_and_both_families_in_one_dump(netlink: CountingSocket) -> None:
    create_all(
        create(numbered(family, 1), numbered(family, 2), ports=(1000, 53), protocol=protocol)
        for family in FAMILIES
        for protocol in PROTOCOLS
    )
    connections = found(netlink)
    assert netlink.dumps_sent == 2  # the count, and the table
    read = Counter(
        (
            *map(format_address, (*one.opening[:2], *one.answer[:2])),
            one.opening.source_port * (one.opening.protocol != GRE),
        )
        for one in connections
    )
    ports = {"tcp", "udp", "sctp"}  # the tool has other words for GRE's keys
    tool = Counter(
        (*entry.addresses, int(entry.ports[0]) if entry.protocol in ports and entry.ports else 0) for entry in listed()
    )
    assert read == tool
    assert len(connections) == 2 * len(PROTOCOLS)
    echoes = {one.opening.icmp for one in connections if one.opening.protocol in (1, 58)}
    assert echoes == {(8, 0), (128, 0)}
    assert {one.stage for one in connections} == {Stage.UNANSWERED}


def test_translation_and_zone(netlink: CountingSocket) -> None:
    create_all(
        [create("192.0.2.9", "192.0.2.1", reply_source="10.48.0.1", ports=(40000, 80)),
         create("10.48.0.1", "192.0.2.9", reply_destination="192.0.2.1", zone=7)]
    )  # fmt: skip
    first, second = sorted(found(netlink), key=lambda one: one.zone)
    assert (first.opening.destination, first.receiver) == (parse_address("192.0.2.1"), (parse_address("10.48.0.1"), 80))
    assert second.zone == 7
    assert second.answer.destination == parse_address("192.0.2.1")


def test_an_empty_table_is_not_dumped(netlink: CountingSocket) -> None:
    assert found(netlink) == []
    assert netlink.dumps_sent == 1
