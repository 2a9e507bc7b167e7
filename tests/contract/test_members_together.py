"""Members of both families in one send: the same result as of two, and a refusal costs the other family nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from felixpy.calc.entries import ElementKey, SetName
from felixpy.dataplane.fake import FakePacketFilter
from felixpy.dataplane.filter_tables import MEMBERS_TOGETHER, FilterTables, write_together
from felixpy.dataplane.nftables.filter import NftablesFilter
from felixpy.dataplane.packet_filter import FilterChange, PacketFilter
from felixpy.dataplane.release import AddressRelease
from felixpy.dataplane.report import ApplyReport
from felixpy.model.net import FAMILIES, Family, Net
from tests.contract.test_packet_filter import member, pool, read, rules, write
from tests.contract.worlds import FILTERS

Pair = list[PacketFilter]


@pytest.fixture(params=[name for name in FILTERS if name != "fake"])
def pair(request: pytest.FixtureRequest, network: None) -> Iterator[Pair]:
    """Both families of one back-end, with their rules."""
    filters = [FILTERS[request.param](family) for family in FAMILIES]
    for one in filters:
        assert write(one, chains=dict(rules(one)), add=[member(one, 1)]) == {}
        read(one)
    yield filters
    for one in filters:
        one.close()


def tables_of(pair: Pair) -> list[FilterTables]:
    async def made() -> list[FilterTables]:
        tables = [FilterTables(one, AddressRelease()) for one in pair]
        for one in tables:
            one.elements.want(member(one.filter, 1), None)
            for key, chain in rules(one.filter).items():
                one.chains.want(key, chain)
            await one.read(0)
            assert not one.chains.delta(0)
        return tables

    return asyncio.run(made())


def sends(pair: Pair) -> int:
    return sum(one.socket.sends for one in pair)


def test_additions_and_removals_of_both_families_are_one_send_each(pair: Pair) -> None:
    tables, report = tables_of(pair), ApplyReport()
    for one in tables:
        one.elements.drop(member(one.filter, 1))
        one.elements.want(member(one.filter, 2), None)
        one.elements.want(pool(one.filter, 0), None)
    before = sends(pair)
    assert write_together([(one, one.additions(1, complete=True)) for one in tables], 1, report)
    assert [read(one).elements for one in pair] == [
        {member(one, 1), member(one, 2), pool(one, 0)} for one in pair
    ]  # what must not overlap goes with additions, other members later
    assert write_together([(one, one.removals(1)) for one in tables], 1, report)
    assert [read(one).elements for one in pair] == [{member(one, 2), pool(one, 0)} for one in pair]
    assert sends(pair) - before == 2
    assert not any(one.elements.dirty for one in tables)
    assert report.written == 6


def test_what_one_family_is_refused_the_other_writes(pair: Pair) -> None:
    """An unknown set; nothing is taken for written before each family has tried alone."""
    four, six = tables_of(pair)
    four.elements.want(member(four.filter, 2), None)
    for key in (member(six.filter, 2), stranger(six.filter)):
        six.elements.want(key, None)
    deltas = [(one, one.additions(1, complete=True)) for one in (four, six)]
    assert not write_together(deltas, 1, ApplyReport())
    assert four.elements.dirty == {member(four.filter, 2)}

    async def alone() -> ApplyReport:
        report = ApplyReport()
        for one in (four, six):
            await one.add(1, report, complete=True)
        return report

    assert asyncio.run(alone()).failures == {}
    assert [read(one).elements for one in pair] == [{member(one, 1), member(one, 2)} for one in pair]
    assert set(six.elements.refused) == {stranger(six.filter)}
    assert not four.elements.refused and not four.elements.dirty


def stranger(packet_filter: PacketFilter) -> ElementKey:
    """A member that the kernel refuses: of the other family."""
    net = Net.parse("10.65.0.9" if packet_filter.family is Family.V6 else "fd00:65::9")
    return ElementKey(SetName.TO_WORKLOAD, net, "cali9")


def test_a_broken_socket_is_no_answer(pair: Pair) -> None:
    tables = tables_of(pair)
    for one in tables:
        one.elements.want(member(one.filter, 2), None)
    pair[0].socket._open().close()
    assert not write_together([(one, one.additions(1, complete=True)) for one in tables], 1, ApplyReport())
    assert all(one.elements.dirty for one in tables)


def test_what_is_more_than_members_is_not_tried(pair: Pair) -> None:
    tables = tables_of(pair)
    assert all(one.only_members for one in tables)
    key = next(iter(tables[0].chains.committed))
    tables[0].chains.want(key, ())
    assert not tables[0].only_members
    many = [member(pair[0], 2)._replace(interface=f"cali{number}") for number in range(MEMBERS_TOGETHER + 1)]
    for one in many:
        tables[1].elements.want(one, None)
    assert not write_together([(tables[1], tables[1].additions(1, complete=True))], 1, ApplyReport())


def test_where_the_layout_is_not_whole_members_have_to_wait_for_it(network: None) -> None:
    for one in (NftablesFilter(Family.V4), FakePacketFilter(Family.V4)):
        assert one.member_requests(FilterChange(add=[member(one, 1)])) is None
        one.close()
