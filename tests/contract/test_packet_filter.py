"""The contract of set members and chains, for the fake and the three back-ends alike."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from felixpy.calc.entries import STANDING_SETS, ElementKey, SetName
from felixpy.calc.rule import ChainKey, Jump, Rule, Table, Verdict
from felixpy.calc.rules import RuleSettings, desired_chains
from felixpy.config import EndpointToHostAction, Settings
from felixpy.dataplane.fake import FakePacketFilter
from felixpy.dataplane.nftables.filter import NftablesFilter
from felixpy.dataplane.packet_filter import FilterChange, FilterState, PacketFilter, RenderedChain
from felixpy.model.net import Family, Net

NETS = {
    Family.V4: ("10.65.0.0/16", "10.66.0.0/16", "10.65.3.0/24"),
    Family.V6: ("fd00:65::/48", "fd00:66::/48", "fd00:65:0:3::/64"),
}


def member(packet_filter: PacketFilter, number: int, name: SetName = SetName.TO_WORKLOAD) -> ElementKey:
    text = f"10.65.0.{number}" if packet_filter.family is Family.V4 else f"fd00:65::{number}"
    return ElementKey(name, Net.parse(text), f"cali{number}")


def pool(packet_filter: PacketFilter, number: int, name: SetName = SetName.POOLS) -> ElementKey:
    return ElementKey(name, Net.parse(NETS[packet_filter.family][number]))


def rules(packet_filter: PacketFilter, **changes: Any) -> dict[ChainKey, RenderedChain]:
    wanted = RuleSettings.of(
        Settings(**changes), packet_filter.family, nftables=isinstance(packet_filter, NftablesFilter)
    )
    return packet_filter.render(desired_chains(wanted))


def write(packet_filter: PacketFilter, **change: Any) -> Mapping[ChainKey | ElementKey, str]:
    async def carry_out() -> Mapping[ChainKey | ElementKey, str]:
        await packet_filter.create_containers()
        return await packet_filter.write(FilterChange(**change))

    return asyncio.run(carry_out())


def read(packet_filter: PacketFilter) -> FilterState:
    return asyncio.run(packet_filter.read())


def test_an_empty_kernel_reads_as_nothing(packet_filter: PacketFilter) -> None:
    state = read(packet_filter)
    assert (state.chains, state.elements, state.containers, state.foreign) == ({}, set(), False, ())


def test_rules_and_members_are_read_as_written(packet_filter: PacketFilter) -> None:
    chains = rules(packet_filter)
    members = [member(packet_filter, 1), member(packet_filter, 1, SetName.FROM_WORKLOAD), pool(packet_filter, 0)]
    assert write(packet_filter, chains=dict(chains), add=members) == {}
    state = read(packet_filter)
    assert (state.chains, state.elements, state.containers) == (chains, set(members), True)


def test_adding_again_and_removing_what_is_not_there_are_successes(packet_filter: PacketFilter) -> None:
    one, two, net = member(packet_filter, 1), member(packet_filter, 2), pool(packet_filter, 0)
    assert write(packet_filter, chains=dict(rules(packet_filter)), add=[one, net]) == {}
    assert write(packet_filter, add=[one, net, two]) == {}
    assert write(packet_filter, remove=[one, net]) == {}
    assert write(packet_filter, remove=[one, net]) == {}
    assert read(packet_filter).elements == {two}


def test_of_overlapping_prefixes_at_most_the_second_is_refused(packet_filter: PacketFilter) -> None:
    """nf_tables refuses it alone, IP sets take it; the calculation never asks for it."""
    wide, other, inner = (pool(packet_filter, number) for number in range(3))
    assert write(packet_filter, chains=dict(rules(packet_filter)), add=[wide]) == {}
    one = member(packet_filter, 1)
    refused = write(packet_filter, add=[inner, other, one])
    strict = isinstance(packet_filter, NftablesFilter | FakePacketFilter)
    assert list(refused) == ([inner] if strict else [])
    assert all("File exists" in words for words in refused.values())
    assert read(packet_filter).elements == {wide, other, one} | (set() if strict else {inner})


def test_overlaps_in_other_sets_and_a_prefix_for_its_part_are_fine(packet_filter: PacketFilter) -> None:
    wide, inner = pool(packet_filter, 0), pool(packet_filter, 2)
    other = pool(packet_filter, 2, SetName.SERVICE_RANGES)
    assert write(packet_filter, chains=dict(rules(packet_filter)), add=[wide, other]) == {}
    assert write(packet_filter, add=[inner], remove=[wide]) == {} or not isinstance(packet_filter, NftablesFilter)
    assert inner in read(packet_filter).elements


def test_a_change_of_rules_leaves_members_and_other_chains_alone(packet_filter: PacketFilter) -> None:
    before, after = (
        rules(packet_filter),
        rules(packet_filter, default_endpoint_to_host_action=EndpointToHostAction.ACCEPT),
    )
    one = member(packet_filter, 1)
    assert write(packet_filter, chains=dict(before), add=[one]) == {}
    changed: dict[ChainKey, RenderedChain | None] = {key: after[key] for key in after if after[key] != before.get(key)}
    changed |= dict.fromkeys(before.keys() - after.keys())
    assert changed, "these settings mean the same rules"
    assert write(packet_filter, chains=changed) == {}
    state = read(packet_filter)
    assert (state.chains, state.elements) == (after, {one})


def test_chains_with_a_jump_into_nothing_are_refused_and_the_members_are_written(packet_filter: PacketFilter) -> None:
    chains = rules(packet_filter)
    assert write(packet_filter, chains=dict(chains)) == {}
    key = ChainKey(Table.FILTER, "forward-from")
    broken = packet_filter.render({key: (Rule((), Jump("nowhere")),)})
    one = member(packet_filter, 1)
    refused = write(packet_filter, chains=dict(broken), add=[one])
    assert set(refused) == {key} and refused[key]
    state = read(packet_filter)
    assert (state.chains, state.elements) == (chains, {one})


def test_a_chain_is_added_and_deleted(packet_filter: PacketFilter) -> None:
    chains = rules(packet_filter)
    key = ChainKey(Table.FILTER, "more")
    more = packet_filter.render({key: (Rule((), Verdict.ACCEPT, "more"),)})
    assert write(packet_filter, chains={**chains, **more}) == {}
    assert read(packet_filter).chains == {**chains, **more}
    assert write(packet_filter, chains={key: None}) == {}
    assert read(packet_filter).chains == chains


def test_a_chain_that_rules_jump_to_is_not_deleted(packet_filter: PacketFilter) -> None:
    chains = rules(packet_filter)
    assert write(packet_filter, chains=dict(chains)) == {}
    key = ChainKey(Table.FILTER, "forward-from")
    assert set(write(packet_filter, chains={key: None})) == {key}
    assert read(packet_filter).chains == chains


def test_maps_hold_an_address_for_each_member_and_get_another_one(packet_filter: PacketFilter) -> None:
    """With iptables they are chains: what stands in these is members, and no rule of the chain."""
    one, two = (floating(packet_filter, number) for number in (1, 2))
    loop = ElementKey(SetName.FLOATING_LOOPS, one.net)
    chains = rules(packet_filter, floating_ips=True)
    first, other = number_of("10.65.0.1"), number_of("10.65.0.2")
    data = {one: first, two: first, loop: other}
    assert write(packet_filter, chains=dict(chains), add=[one, two, loop], data=dict(data)) == {}
    assert contents(packet_filter) == (chains, data)
    assert write(packet_filter, add=[one], data={one: other}, changed=frozenset({one})) == {}
    assert write(packet_filter, remove=[two]) == {}
    assert contents(packet_filter) == (chains, {one: other, loop: other})
    assert write(packet_filter, remove=[one, two, loop], chains=dict(chains)) == {}
    assert contents(packet_filter) == (chains, {})


def test_maps_keep_their_members_when_rules_change_and_go_with_theirs(packet_filter: PacketFilter) -> None:
    one, first = floating(packet_filter, 1), number_of("10.65.0.1")
    before, off = rules(packet_filter, floating_ips=True), rules(packet_filter)
    assert write(packet_filter, chains=dict(before), add=[one], data={one: first}) == {}
    hook = ChainKey(Table.NAT, "POSTROUTING")
    assert write(packet_filter, chains={hook: off[hook]}) == {}
    assert contents(packet_filter) == ({**before, hook: off[hook]}, {one: first})
    gone = dict.fromkeys(before.keys() - off.keys())
    assert write(packet_filter, chains={**off, **gone}) == {}
    assert write(packet_filter, remove=[one]) == {}
    assert contents(packet_filter) == (off, {})


def number_of(text: str) -> int:
    """An address that fits a map of either family."""
    return int.from_bytes(Net.parse(text).packed)


def floating(packet_filter: PacketFilter, number: int) -> ElementKey:
    text = f"203.0.113.{number}" if packet_filter.family is Family.V4 else f"2001:db8:f::{number}"
    return ElementKey(SetName.FLOATING, Net.parse(text))


def contents(packet_filter: PacketFilter) -> tuple[dict[Any, RenderedChain], dict[ElementKey, int]]:
    state = read(packet_filter)
    assert state.elements == state.data.keys()
    return dict(state.chains), state.data


def test_everything_goes_and_may_go_again(packet_filter: PacketFilter) -> None:
    assert write(packet_filter, chains=dict(rules(packet_filter)), add=[member(packet_filter, 1)]) == {}
    for _ in range(2):
        asyncio.run(packet_filter.remove_all())
        state = read(packet_filter)
        assert (state.chains, state.elements, state.containers) == ({}, set(), False)


def test_what_was_done_is_counted_and_what_was_refused_too(packet_filter: PacketFilter) -> None:
    if isinstance(packet_filter, FakePacketFilter):
        return  # it sends nothing that could be counted
    chains = rules(packet_filter)
    assert packet_filter.counts().writes == 0
    assert write(packet_filter, chains=dict(chains), add=[member(packet_filter, 1)]) == {}
    read(packet_filter)
    good = packet_filter.counts()
    assert good.writes >= 1 and good.reads >= 1
    assert (good.write_errors, good.read_errors, good.set_errors) == (0, 0, 0)
    broken = packet_filter.render({ChainKey(Table.FILTER, "forward-from"): (Rule((), Jump("nowhere")),)})
    assert write(packet_filter, chains=dict(broken))
    bad = packet_filter.counts()
    assert bad.writes > good.writes and bad.write_errors > 0
    if isinstance(packet_filter, NftablesFilter):
        return
    assert good.set_calls >= 2 and good.set_lines > len(STANDING_SETS), "the standing sets and a member"
    assert good.lines == bad.lines, "what was refused changed nothing"
    written = sum(map(len, chains.values()))
    jumps = sum(key.is_hook for key in chains)
    assert sum(good.lines.values()) == len(chains) + written + jumps
    assert packet_filter.counts().all_sets == len(STANDING_SETS)
    assert packet_filter.counts().set_errors == 0
    assert write(packet_filter, add=[member(packet_filter, 2)._replace(interface="a-name-that-is-too-long")])
    assert packet_filter.counts().set_errors == 1
