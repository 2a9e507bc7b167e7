"""What is written is read back without a difference: rules of all settings, members of all sets."""

from __future__ import annotations

import asyncio
from itertools import product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from felixpy.calc.entries import STANDING_SETS, ElementKey, SetName, SetType
from felixpy.calc.rule import Chains, Verdict
from felixpy.calc.rules import RuleSettings, desired_chains
from felixpy.config import ChainInsertMode, DenyAction, EndpointToHostAction, PortRange, Settings
from felixpy.dataplane.iptables.filter import IptablesFilter
from felixpy.dataplane.packet_filter import FilterChange, FilterState
from felixpy.model.net import FAMILIES, Family, Net, parse_address
from tests.dataplane.iptables.conftest import MakeFilter

NAT_ADDRESS = {Family.V4: parse_address("192.0.2.1"), Family.V6: parse_address("2001:db8::1")}
# Hypothesis repeats the test function, not its fixtures; every example leaves only our own chains, which it rewrites.
PROPERTY = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def rule_settings(family: Family) -> st.SearchStrategy[RuleSettings]:
    return st.builds(
        RuleSettings,
        family=st.just(family),
        prefixes=st.sampled_from([("cali",), ("cali", "tap"), ("abcdefghijklmno",), ("",)]),
        endpoint_to_host=st.sampled_from(EndpointToHostAction),
        deny=st.sampled_from(DenyAction),
        allow=st.sampled_from([Verdict.ACCEPT, Verdict.RETURN]),
        allow_spoofing=st.booleans(),
        allow_ipip=st.booleans(),
        allow_vxlan=st.booleans(),
        check_invalid=st.booleans(),
        exclude_hosts=st.booleans(),
        nat_ports=st.sampled_from([None, PortRange(1024, 65535), PortRange(7, 7)]),
        nat_address=st.sampled_from([None, NAT_ADDRESS[family]]),
        nat_interface=st.sampled_from(["", "eth0", "eth+"]),
        sees_errors=st.booleans(),
        service_loops=st.sampled_from([None, Verdict.DROP, Verdict.REJECT]),
    )


async def program(packet_filter: IptablesFilter, chains: Chains) -> FilterState:
    """Write chains as the apply loop does and read everything back."""
    await packet_filter.create_containers()
    before = await packet_filter.read()
    wanted = packet_filter.render(chains)
    gone = dict.fromkeys(before.chains.keys() - wanted.keys())
    assert await packet_filter.write(FilterChange(chains={**wanted, **gone})) == {}
    return await packet_filter.read()


@given(data=st.data())
@PROPERTY
def test_rules_of_any_settings_are_read_back_as_written(make_filter: MakeFilter, data: st.DataObject) -> None:
    for family in FAMILIES:  # both in one process: libxtables keeps state across families
        chains = desired_chains(data.draw(rule_settings(family)))
        packet_filter = make_filter(family, insert_mode=data.draw(st.sampled_from(ChainInsertMode)))
        state = asyncio.run(program(packet_filter, chains))
        assert state.chains == packet_filter.render(chains)
        assert state.containers
        assert state.foreign == ()


def test_every_action_and_match_of_the_largest_rule_set(packet_filter: IptablesFilter, family: Family) -> None:
    base = replace(
        RuleSettings.of(Settings(), family, nftables=False),
        allow_spoofing=True,
        exclude_hosts=True,
        prefixes=("cali", "t"),
    )
    for ports, address in product([None, PortRange(1, 2)], [None, NAT_ADDRESS[family]]):
        chains = desired_chains(replace(base, nat_ports=ports, nat_address=address))
        assert asyncio.run(program(packet_filter, chains)).chains == packet_filter.render(chains)


def nets(family: Family) -> st.SearchStrategy[Net]:
    def net(number: int, length: int) -> Net:
        host_bits = family.bits - length
        return Net((number >> host_bits << host_bits).to_bytes(family.bits // 8, "big"), length)

    return st.builds(net, st.integers(0, 2**family.bits - 1), st.integers(0, family.bits))


@st.composite
def elements(draw: st.DrawFn, family: Family) -> ElementKey:
    name = draw(st.sampled_from(STANDING_SETS))
    net = draw(nets(family))
    if name.type in (SetType.HOST_INTERFACE, SetType.HOST):
        net = Net.host(net.packed)
    single = name.type in (SetType.NET, SetType.HOST)
    interface = "" if single else draw(st.sampled_from(["cali1", "cali23456789abc", "tap-ü"]))
    return ElementKey(name, net, interface)


def uncovered(keys: set[ElementKey]) -> set[ElementKey]:
    """What the calculation hands out: members of a set and interface that do not cover each other."""
    return {
        key
        for key in keys
        if not any(o != key and (o.set, o.interface) == (key.set, key.interface) and key.net in o.net for o in keys)
    }


@pytest.mark.parametrize("variant", ["nft"], indirect=True)  # members go the same way in both
@given(data=st.data())
@PROPERTY
def test_members_follow_every_change(make_filter: MakeFilter, family: Family, data: st.DataObject) -> None:
    packet_filter = make_filter(family)

    async def run() -> None:
        await packet_filter.create_containers()
        held = (await packet_filter.read()).elements
        for _ in range(4):
            wanted = uncovered(data.draw(st.sets(elements(family), max_size=12)))
            assert await packet_filter.write(FilterChange(add=list(wanted - held), remove=list(held - wanted))) == {}
            held = (await packet_filter.read()).elements
            assert held == wanted

    asyncio.run(run())


def test_whole_address_space_and_its_halves_replace_each_other(packet_filter: IptablesFilter, family: Family) -> None:
    size = family.bits // 8
    whole = ElementKey(SetName.POOLS, Net(bytes(size), 0))
    low = ElementKey(SetName.POOLS, Net(bytes(size), 1))
    high = ElementKey(SetName.POOLS, Net(b"\x80" + bytes(size - 1), 1))
    histories = [{whole}, {low, high}, {whole}, {low}, {low, high}, set(), {high}, {whole}, set()]

    async def run() -> None:
        await packet_filter.create_containers()
        held: set[ElementKey] = set()
        for wanted in histories:
            await packet_filter.write(FilterChange(add=list(wanted - held), remove=list(held - wanted)))
            held = (await packet_filter.read()).elements
            assert held == wanted

    asyncio.run(run())


def test_a_restarted_agent_that_wants_halves_converges(make_filter: MakeFilter, family: Family) -> None:
    size = family.bits // 8
    halves = [ElementKey(SetName.POOLS, Net(first + bytes(size - 1), 1)) for first in (b"\0", b"\x80")]

    async def run() -> None:
        first = make_filter(family)
        await first.create_containers()
        await first.write(FilterChange(add=halves))
        second = make_filter(family)
        held = (await second.read()).elements
        await second.write(FilterChange(add=list(set(halves) - held), remove=list(held - set(halves))))
        assert (await second.read()).elements == set(halves)

    asyncio.run(run())
