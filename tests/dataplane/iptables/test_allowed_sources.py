"""Prefixes that workloads may use as sources: what one declares never takes anything from another."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from felixpy.calc.entries import ElementKey, SetName
from felixpy.calc.policy.carrier import iptables_marks
from felixpy.dataplane.iptables.allowed_sources import AllowedSources, MarkedPair, Pair, declared_by
from felixpy.dataplane.iptables.filter import IptablesFilter
from felixpy.dataplane.iptables.layout import set_name
from felixpy.dataplane.packet_filter import FilterChange
from felixpy.model.net import Family, Net, format_address
from tests.dataplane.iptables.conftest import MakeFilter, output

INTERFACES = ("cali1", "cali2", "cali3")
NETS = [
    Net(bytes([value << (8 - length) & 0xFF, 0, 0, 0]), length) for length in range(5) for value in range(2**length)
]
"""All prefixes of up to four bits."""

pairs = st.tuples(st.sampled_from(NETS), st.sampled_from(INTERFACES))


class Kernel:
    """A set of type hash:net,iface, as far as this matters: the most specific network that is there decides."""

    def __init__(self) -> None:
        self.members: dict[Pair, int] = {}

    def mark(self, address: bytes, interface: str) -> int | None:
        """What a packet gets; None if it does not pass."""
        holding = [net for net, _ in self.members if net.covers(address)]
        return self.members.get((max(holding, key=lambda net: net.length), interface)) if holding else None


def allows(declared: set[Pair], address: bytes, interface: str) -> bool:
    return any(net.covers(address) and user == interface for net, user in declared)


MARKS = {interface: number for number, interface in enumerate(INTERFACES, start=1)}


def unmarked(members: Iterable[MarkedPair]) -> dict[Pair, int]:
    return {(net, interface): mark for net, interface, mark in members}


@given(st.lists(st.tuples(st.booleans(), pairs), max_size=30))
@settings(deadline=None)
def test_after_any_changes_each_interface_may_use_what_it_declares_and_nothing_else(
    changes: list[tuple[bool, Pair]],
) -> None:
    kernel, sources, declared = Kernel(), AllowedSources(), set[Pair]()
    for adds, pair in changes:
        if adds:
            declared.add(pair)
            kernel.members.update(unmarked(sources.add(*pair, MARKS[pair[1]])))
        else:
            declared.discard(pair)
            for member in sources.remove(*pair):
                kernel.members.pop(member, None)
        assert set(sources) == declared
        assert {net for net, _ in kernel.members} == {net for net, _ in declared}
        for first in range(16):
            address = bytes([first << 4 | 5, 1, 2, 3])
            for interface in INTERFACES:
                mark = MARKS[interface] if allows(declared, address, interface) else None
                assert kernel.mark(address, interface) == mark


@given(st.sets(pairs, max_size=12))
@settings(deadline=None)
def test_what_is_declared_is_read_back_and_what_is_missing_is_noticed(wanted: set[Pair]) -> None:
    declared = {
        (net, user)
        for net, user in wanted
        if not any(other != net and user == its and other.covers(net) for other, its in wanted)
    }
    members, sources = dict[Pair, int](), AllowedSources()
    for net, user in declared:
        members.update(unmarked(sources.add(net, user, MARKS[user])))
    read, incomplete = asyncio.run(declared_by(dict(sorted(members.items()))))
    assert (set(read), incomplete) == (declared, set())
    assert all(unmarked(read.add(*pair, MARKS[pair[1]])).items() <= members.items() for pair in declared)
    for implied in members.keys() - declared:
        for damaged in ({}, {implied: 9}):
            rest = {pair: mark for pair, mark in members.items() if pair != implied} | damaged
            read, incomplete = asyncio.run(declared_by(rest))
            assert set(read) == declared
            assert incomplete
            assert all(net.covers(implied[0]) and user == implied[1] for net, user in incomplete)


def key(family: Family, length: int, interface: str) -> ElementKey:
    """10.1.2.3/length, or fd01:203::/length."""
    whole = bytes([10, 1, 2, 3]) if family is Family.V4 else bytes([0xFD, 1, 2, 3]) + bytes(12)
    return ElementKey(SetName.ALLOWED_SOURCES, Net.host(whole).widened(length), interface)


def passes(packet_filter: IptablesFilter, interface: str) -> bool:
    """What the kernel answers for a packet from 10.1.2.3 or fd01:203::."""
    address = format_address(key(packet_filter.family, packet_filter.family.bits, "").net.packed)
    name = set_name(packet_filter.family, SetName.ALLOWED_SOURCES)
    tested = subprocess.run(["ipset", "test", name, f"{address},{interface}"], capture_output=True, check=False)
    return tested.returncode == 0


def kernel_members(packet_filter: IptablesFilter) -> int:
    listed = output("ipset", "list", set_name(packet_filter.family, SetName.ALLOWED_SOURCES))
    return len(listed.partition("Members:\n")[2].splitlines())


@pytest.mark.parametrize("variant", ["nft"], indirect=True)
def test_a_narrower_prefix_of_another_workload_takes_nothing(packet_filter: IptablesFilter, family: Family) -> None:
    async def run() -> None:
        wide, narrow, host = key(family, 8, "cali1"), key(family, 16, "cali2"), key(family, family.bits, "cali3")
        all_of_it = key(family, 0, "cali4")
        await packet_filter.create_containers()
        held: set[ElementKey] = set()
        for change in (
            FilterChange(add=[wide]),
            FilterChange(add=[narrow]),
            FilterChange(add=[host, all_of_it]),
            FilterChange(remove=[narrow]),
            FilterChange(add=[narrow], remove=[wide]),
            FilterChange(add=[wide], remove=[host]),
            FilterChange(remove=[all_of_it, narrow]),
            FilterChange(remove=[wide]),
        ):
            assert await packet_filter.write(change) == {}
            held = (held | {*change.add}) - {*change.remove}
            for number in range(1, 6):
                assert passes(packet_filter, f"cali{number}") == any(one.interface == f"cali{number}" for one in held)
            assert (await packet_filter.read()).elements == held
        assert kernel_members(packet_filter) == 0

    asyncio.run(run())


@pytest.mark.parametrize("variant", ["nft"], indirect=True)
def test_messages_of_both_families_in_one_send_bring_implied_members(
    packet_filter: IptablesFilter, family: Family
) -> None:
    async def run() -> None:
        await packet_filter.create_containers()
        wide, narrow = key(family, 8, "cali1"), key(family, 16, "cali2")
        for change in (FilterChange(add=[wide]), FilterChange(add=[narrow])):
            requests = packet_filter.member_requests(change)
            assert requests is not None and packet_filter.send_members(requests)
        assert passes(packet_filter, "cali1")
        requests = packet_filter.member_requests(FilterChange(remove=[narrow]))
        assert requests is not None and packet_filter.send_members(requests)
        assert (passes(packet_filter, "cali1"), kernel_members(packet_filter)) == (True, 1)

    asyncio.run(run())


@pytest.mark.parametrize("variant", ["nft"], indirect=True)
def test_another_agent_goes_on_with_what_it_finds(
    packet_filter: IptablesFilter, make_filter: MakeFilter, family: Family
) -> None:
    """Also where an older one or a stranger left a set without implied members, or with those alone."""

    async def run() -> None:
        name = set_name(family, SetName.ALLOWED_SOURCES)
        wide, narrow = key(family, 8, "cali1"), key(family, 16, "cali2")
        await packet_filter.create_containers()
        assert await packet_filter.write(FilterChange(add=[wide, narrow])) == {}
        other = make_filter(family)
        assert (await other.read()).elements == {wide, narrow}
        assert await other.write(FilterChange(remove=[narrow])) == {}
        assert kernel_members(other) == 1
        assert await other.write(FilterChange(add=[narrow])) == {}

        output("ipset", "del", name, f"{narrow.net},cali1")
        assert not passes(other, "cali1")
        assert (await other.read()).elements == {narrow}  # so the apply loop writes the wide one again,
        assert (await other.read()).elements == {wide, narrow}  # or, if nobody wants it, removes it
        assert (await other.read()).elements == {narrow}
        assert await other.write(FilterChange(add=[wide])) == {}
        assert passes(other, "cali1")
        assert (await other.read()).elements == {wide, narrow}

        output("ipset", "del", name, f"{narrow.net},cali2")
        stray = narrow._replace(interface="cali1")
        assert (await other.read()).elements == {wide, stray}
        assert await other.write(FilterChange(remove=[stray])) == {}
        assert (passes(other, "cali1"), kernel_members(other)) == (True, 1)

    asyncio.run(run())


@pytest.mark.parametrize("variant", ["nft"], indirect=True)
def test_one_interface_too_many_is_said_so_and_takes_nothing_from_the_others(
    packet_filter: IptablesFilter, family: Family
) -> None:
    async def run() -> None:
        await packet_filter.create_containers()
        wide = [key(family, 8, f"cali{number}") for number in range(64)]
        assert await packet_filter.write(FilterChange(add=wide)) == {}
        for late in key(family, 8, "late"), key(family, 16, "late"):
            words = (await packet_filter.write(FilterChange(add=[late])))[late]
            assert words.startswith(f"an IP set takes at most 64 interfaces for a prefix, and {late.net} has them;")
            assert kernel_members(packet_filter) == 64
            assert passes(packet_filter, "cali63")
            assert not passes(packet_filter, "late")
        assert (await packet_filter.read()).elements == set(wide)

    asyncio.run(run())


@pytest.mark.parametrize("variant", ["nft"], indirect=True)
def test_members_carry_the_class_of_their_interface_and_implied_ones_too(
    packet_filter: IptablesFilter, make_filter: MakeFilter, family: Family, tool: str
) -> None:
    """Also in a set of an earlier version, without marks and in use; a mark that somebody changed is noticed."""

    async def run() -> None:
        marks, name = iptables_marks(0xFFFF0000), set_name(family, SetName.ALLOWED_SOURCES)
        packet_filter.use_marks(marks)
        wide, narrow = key(family, 8, "cali1"), key(family, 16, "cali2")
        inner, kind = str(narrow.net), "inet" if family is Family.V4 else "inet6"
        output("ipset", "create", name, "hash:net,iface", "family", kind, "maxelem", "1048576")
        output("ipset", "add", name, f"{wide.net},cali1")
        output(tool, "-A", "INPUT", "-m", "set", "--match-set", name, "src,src")
        assert not (await packet_filter.read()).containers
        await packet_filter.create_containers()
        data = {wide: marks.egress.of(3), narrow: marks.egress.of(5)}
        for key_ in (wide, narrow):
            assert await packet_filter.write(FilterChange(add=[key_], data=dict(data))) == {}
        assert shown(name) == {(inner, "cali1"): 3, (inner, "cali2"): 5, (str(wide.net), "cali1"): 3}
        other = make_filter(family)
        other.use_marks(marks)
        state = await other.read()
        assert (state.containers, state.elements, state.data) == (True, {wide, narrow}, data)

        change = FilterChange(add=[wide], data={wide: marks.egress.of(4)}, changed=frozenset({wide}))
        assert await other.write(change) == {}
        assert shown(name) == {(inner, "cali1"): 4, (inner, "cali2"): 5, (str(wide.net), "cali1"): 4}

        mark = f"{marks.egress.of(9):#x}/{marks.egress.mask:#x}"
        output("ipset", "add", "-exist", name, f"{narrow.net},cali1", "skbmark", mark)
        assert (await other.read()).elements == {narrow}  # so the wide one is written again, with what it implies

    def shown(name: str) -> dict[tuple[str, str], int]:
        listed = output("ipset", "list", name).partition("Members:\n")[2]
        found = re.findall(r"^(\S+),(\S+) skbmark (\w+)/(\w+)$", listed, re.M)
        shift = iptables_marks(0xFFFF0000).egress.shift
        return {(net, interface): int(mark, 16) >> shift for net, interface, mark, _ in found}

    asyncio.run(run())
