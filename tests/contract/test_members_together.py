"""Members of both families in one send: the same result as of two, and a refusal costs the other family nothing."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from felixpy.calc.policy.classes import MemberKey
from felixpy.dataplane.fake import FakePacketFilter
from felixpy.dataplane.filter_tables import MEMBERS_TOGETHER, FilterTables, write_together
from felixpy.dataplane.nftables.filter import NftablesFilter
from felixpy.dataplane.packet_filter import FilterChange, FilterState, PacketFilter, Part
from felixpy.dataplane.release import AddressRelease
from felixpy.dataplane.report import ApplyReport
from felixpy.model.net import FAMILIES, Family, Net
from felixpy.netlink.message import Request
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


def stranger(packet_filter: PacketFilter) -> MemberKey:
    """A member that the kernel refuses: of a set that is not there."""
    return MemberKey("s-nowhere", Net.parse("10.65.0.9" if packet_filter.family is Family.V4 else "fd00:65::9"))


def test_a_broken_socket_is_no_answer(pair: Pair) -> None:
    tables = tables_of(pair)
    for one in tables:
        one.elements.want(member(one.filter, 2), None)
    pair[0].socket._open().close()
    assert not write_together([(one, one.additions(1, complete=True)) for one in tables], 1, ApplyReport())
    assert all(one.elements.dirty for one in tables)


@pytest.mark.parametrize("error", [OSError(errno.ENOBUFS, "No buffer space available"), TimeoutError("no answer")])
def test_after_an_answer_that_was_lost_the_kernel_is_read_before_it_is_written(
    pair: Pair, error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not in the same apply: a kernel that did not answer for 20 s would be waited for by each family again."""
    tables = tables_of(pair)
    asked = record_calls(pair, monkeypatch)

    async def apply(now: float) -> ApplyReport:
        """As the apply loop does."""
        report = ApplyReport()
        for step in ("additions", "removals"):
            additions = step == "additions"
            deltas = [(one, one.additions(now, complete=True) if additions else one.removals(now)) for one in tables]
            if not (all(one.only_members for one in tables) and write_together(deltas, now, report)):
                for one in tables:
                    await (one.add(now, report, complete=True) if additions else one.remove(now, report))
        return report

    def send_and_lose(requests: Sequence[Request]) -> bool:
        assert type(pair[0]).send_members(pair[0], requests)
        raise error

    for now, want in enumerate((True, False)):
        for one in tables:
            key = member(one.filter, 2)
            one.elements.want(key, None) if want else one.elements.drop(key)
        with monkeypatch.context() as patch:
            patch.setattr(pair[0], "send_members", send_and_lose)
            assert set(asyncio.run(apply(now)).failures) == set(FAMILIES)
        assert not asked
        assert all(one.elements.state_of(member(one.filter, 2)) == str(error) for one in tables)
        assert asyncio.run(apply(now + 0.5)).failures == {}
        assert asked == ["read", "read"], "the kernel had done it"
        assert not any(one.elements.dirty or one.elements.refused for one in tables)
        assert all((member(one, 2) in read(one).elements) == want for one in pair)
        asked.clear()


def test_what_was_read_before_an_answer_was_lost_tells_nothing(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison is under way meanwhile."""
    (one, *_), key = tables_of(pair), member(pair[0], 2)
    look = type(pair[0]).read

    async def read_and_lose(self: PacketFilter, part: Part = Part.ALL) -> FilterState:
        state = await look(self, part)
        one.elements.want(key, None)
        delta = one.additions(1, complete=True)
        assert await self.write(FilterChange(add=[*delta.put])) == {}
        one.fail(delta, OSError("lost"), 1, ApplyReport())
        return state

    monkeypatch.setattr(type(pair[0]), "read", read_and_lose)
    asyncio.run(one.read(1))
    monkeypatch.undo()
    assert not one.known
    one.elements.drop(key)
    for at in (2, 3):
        asyncio.run(one.add(at, ApplyReport(), complete=True))
        asyncio.run(one.remove(at, ApplyReport()))
    assert read(pair[0]).elements == {member(pair[0], 1)}


def record_calls(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the tables ask of their back-ends from now on."""
    asked: list[str] = []

    def recorded(one: PacketFilter, name: str) -> Callable[..., Any]:
        real = getattr(one, name)

        async def call(*arguments: Any) -> Any:
            asked.append(name)
            return await real(*arguments)

        return call

    for one in pair:
        for name in ("read", "write"):
            monkeypatch.setattr(one, name, recorded(one, name))
    return asked


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
