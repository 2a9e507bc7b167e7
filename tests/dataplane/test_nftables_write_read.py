"""What the nftables back-end writes is read back without a difference, and ``nft`` understands it."""

from __future__ import annotations

import asyncio
from itertools import product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from felixpy.calc.entries import ADDRESS_MAPS, STANDING_SETS, ElementKey, SetName, SetType
from felixpy.calc.rule import ChainKey, Table, Verdict
from felixpy.calc.rules import NAT_OUTGOING, desired_chains
from felixpy.config import EndpointToHostAction, PortRange
from felixpy.dataplane.nftables.filter import NftablesFilter
from felixpy.dataplane.nftables.steps import ELEMENTS_PER_MESSAGE
from felixpy.dataplane.packet_filter import FilterChange
from felixpy.model.net import FAMILIES, Family, Net
from tests.dataplane.conftest import MakeNftables
from tests.dataplane.rule_settings import (
    NAT_ADDRESS,
    default_chains,
    default_rules,
    members,
    programmed,
    rule_settings,
)
from tests.kernel import run, uncovered

# Hypothesis repeats the test function, not its fixtures: each example starts from what the one before has left.
PROPERTY = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SAMPLE_MEMBERS = {
    Family.V4: ("10.65.0.2/32", "10.65.0.0/26"),
    Family.V6: ("fd00:65::2/128", "fd00:65::/122"),
}


def one_of_each(family: Family) -> list[ElementKey]:
    host, net = map(Net.parse, SAMPLE_MEMBERS[family])
    shapes = {
        SetType.HOST_INTERFACE: (host, "cali1"),
        SetType.NET_INTERFACE: (net, "cali1"),
        SetType.NET: (net, ""),
        SetType.HOST: (host, ""),
    }
    return [ElementKey(name, *shapes[name.type]) for name in STANDING_SETS]


# --- rules ------------------------------------------------------------------------------------------------------


@given(data=st.data())
@PROPERTY
def test_rules_of_any_settings_are_read_back_as_written(make_nftables: MakeNftables, data: st.DataObject) -> None:
    for family in FAMILIES:
        packet_filter = make_nftables(family)
        wanted = packet_filter.render(desired_chains(data.draw(rule_settings(family))))

        async def write_and_read(packet_filter: NftablesFilter = packet_filter, wanted: object = wanted) -> None:
            before = await packet_filter.read()
            assert isinstance(wanted, dict)
            gone = dict.fromkeys(before.chains.keys() - wanted.keys())
            state = await programmed(packet_filter, FilterChange(chains={**wanted, **gone}))
            assert state.chains == wanted
            assert state.containers

        asyncio.run(write_and_read())
        assert "chain raw-PREROUTING" in run("nft", "list", "ruleset")  # some rules of legal bytes make nft abort


def test_every_action_of_nat_and_of_refusal(nftables: NftablesFilter, family: Family) -> None:
    base = replace(default_rules(family), allow_spoofing=True, exclude_hosts=True, prefixes=("cali", "t"))
    for ports, address, action in product(
        [None, PortRange(1, 2)], [None, NAT_ADDRESS[family]], [EndpointToHostAction.REJECT, EndpointToHostAction.RETURN]
    ):
        rules = replace(base, nat_ports=ports, nat_address=address, endpoint_to_host=action)
        wanted = nftables.render(desired_chains(rules))
        assert asyncio.run(programmed(nftables, FilterChange(chains=dict(wanted)))).chains == wanted


def test_only_the_chains_of_a_change_are_written(nftables: NftablesFilter) -> None:
    async def check() -> None:
        wanted = default_chains(nftables)
        await programmed(nftables, FilterChange(chains=dict(wanted), add=one_of_each(nftables.family)))
        sent = nftables.socket.messages_sent
        rules = replace(default_rules(nftables.family), allow=Verdict.RETURN, nat_interface="eth0")
        nat = nftables.render(desired_chains(rules))[NAT_OUTGOING]
        assert await nftables.write(FilterChange(chains={NAT_OUTGOING: nat})) == {}
        assert nftables.socket.messages_sent - sent == 2 + 1 + len(nat)  # frame, flush, one message per rule
        state = await nftables.read()
        assert state.chains == {**wanted, NAT_OUTGOING: nat}
        assert state.elements == set(one_of_each(nftables.family))

    asyncio.run(check())


def test_a_chain_that_nobody_wants_goes_with_its_jump(nftables: NftablesFilter) -> None:
    async def check() -> None:
        wanted = default_chains(nftables)
        await programmed(nftables, FilterChange(chains=dict(wanted)))
        hook = ChainKey(Table.NAT, "POSTROUTING")
        state = await programmed(nftables, FilterChange(chains={hook: (), NAT_OUTGOING: None}))
        expected = {**wanted, hook: ()}
        del expected[NAT_OUTGOING]
        assert state.chains == expected

    asyncio.run(check())


def test_nft_prints_the_table_and_makes_the_same_one_of_its_text(nftables: NftablesFilter, family: Family) -> None:
    """``nft`` as oracle: its own bytes for the text that it prints decode to the rules and members that we wrote."""
    rules = replace(
        default_rules(family), allow_spoofing=True, exclude_hosts=True, nat_ports=PortRange(1024, 2048), floating=True
    )
    wanted = nftables.render(desired_chains(rules))
    elements = one_of_each(family)
    external = Net.parse(SAMPLE_MEMBERS[family][0])
    internal = Net.host(external.packed[:-1] + b"\x09")
    mapped = {ElementKey(name, external): int.from_bytes(internal.packed) for name in ADDRESS_MAPS}
    change = FilterChange(chains=dict(wanted), add=[*elements, *mapped], data=dict(mapped))
    written = asyncio.run(programmed(nftables, change))
    assert written.data == mapped
    word = "ip" if family is Family.V4 else "ip6"
    text = run("nft", "list", "ruleset")
    assert text.startswith(f"table {word} felixpy {{")
    for key in wanted:
        assert f"chain {key.table}-{key.name} {{" in text
    for element in elements:
        assert f"set {element.set} {{" in text
    host, net = SAMPLE_MEMBERS[family]
    assert f'{host.partition("/")[0]} . "cali1"' in text
    assert f'{net} . "cali1"' in text
    from_, to = (str(net).partition("/")[0] for net in (external, internal))
    assert f"{{ {from_} : {to} }}" in text and f"{{ {from_} . {from_} : {to} }}" in text
    assert f"dnat to {word} daddr map @floating" in text
    assert f"snat to {word} saddr . {word} daddr map @floating-loops" in text
    assert text.count("drop") >= 3

    run("nft", "flush", "ruleset")
    run("nft", "-f", "-", stdin=text)
    assert asyncio.run(nftables.read()) == written


# --- members ----------------------------------------------------------------------------------------------------


@given(data=st.data())
@PROPERTY
def test_members_follow_every_change(make_nftables: MakeNftables, family: Family, data: st.DataObject) -> None:
    packet_filter = make_nftables(family)

    async def follow() -> None:
        held = (await packet_filter.read()).elements
        for _ in range(4):
            wanted = uncovered(data.draw(st.sets(members(family), max_size=12)))
            change = FilterChange(add=list(wanted - held), remove=list(held - wanted))
            held = (await programmed(packet_filter, change)).elements
            assert held == wanted

    asyncio.run(follow())


def prefixes(family: Family, *nets: tuple[int, int]) -> set[ElementKey]:
    """Pools by (number of the first address, prefix length)."""
    size = family.bits // 8
    return {ElementKey(SetName.POOLS, Net(number.to_bytes(size, "big"), length)) for number, length in nets}


def test_whole_address_space_its_ends_and_neighbours(nftables: NftablesFilter, family: Family) -> None:
    bits = family.bits
    half, top = 1 << (bits - 1), (1 << bits) - 1
    histories = [
        prefixes(family, (0, 0)),
        prefixes(family, (0, 1), (half, 1)),  # adjacent: together the whole
        prefixes(family, (0, bits), (top, bits)),
        prefixes(family, (0, bits), (1, bits), (2, bits - 1), (4, bits - 2)),  # a row without a gap
        prefixes(family, (1, bits), (2, bits - 1)),
        prefixes(family, (top - 1, bits), (top, bits)),
        prefixes(family, (half, 1)),  # open at the top
        prefixes(family, (0, 0)),
        set(),
    ]

    async def follow() -> None:
        held: set[ElementKey] = set()
        for wanted in histories:
            change = FilterChange(add=list(wanted - held), remove=list(held - wanted))
            held = (await programmed(nftables, change)).elements
            assert held == wanted
            run("nft", "list", "ruleset")

    asyncio.run(follow())


def test_the_whole_address_space_as_allowed_source(nftables: NftablesFilter, family: Family) -> None:
    whole = Net(bytes(family.bits // 8), 0)
    keys = [ElementKey(SetName.ALLOWED_SOURCES, whole, name) for name in ("cali1", "cali2")]
    assert asyncio.run(programmed(nftables, FilterChange(add=keys))).elements == set(keys)
    assert asyncio.run(programmed(nftables, FilterChange(remove=keys[:1]))).elements == set(keys[1:])


def test_a_single_address_that_may_be_source_is_in_a_hash_and_a_prefix_in_a_set_of_prefixes(
    nftables: NftablesFilter, family: Family
) -> None:
    one, prefix = Net.host(bytes(family.bits // 8)), Net(bytes(family.bits // 8), family.bits - 4)
    keys = {ElementKey(SetName.ALLOWED_SOURCES, net, "cali1") for net in (one, prefix)}
    assert asyncio.run(programmed(nftables, FilterChange(add=list(keys)))).elements == keys
    word = {Family.V4: "ip", Family.V6: "ip6"}[family]
    held = {name: run("nft", "list", "set", word, "felixpy", name) for name in ("allowed-hosts", "allowed-sources")}
    assert [text.count('. "cali1"') for text in held.values()] == [1, 1]
    assert "interval" not in held["allowed-hosts"]
    assert asyncio.run(programmed(nftables, FilterChange(remove=list(keys)))).elements == set()


@pytest.mark.parametrize("name", STANDING_SETS)
def test_more_members_than_one_message_holds(nftables: NftablesFilter, family: Family, name: SetName) -> None:
    number = 2 * ELEMENTS_PER_MESSAGE + 1
    interface = "" if name.type in (SetType.NET, SetType.HOST) else "cali23456789abc"
    keys = [ElementKey(name, Net.host((one * 2).to_bytes(family.bits // 8, "big")), interface) for one in range(number)]

    async def check() -> None:
        await programmed(nftables, FilterChange(chains=dict(default_chains(nftables))))
        for change, expected in ((FilterChange(add=keys), set(keys)), (FilterChange(remove=keys), set())):
            sent, sends = nftables.socket.messages_sent, nftables.socket.sends
            assert await nftables.write(change) == {}
            assert (nftables.socket.messages_sent - sent, nftables.socket.sends - sends) == (2 + 3, 1)
            assert (await nftables.read()).elements == expected

    asyncio.run(check())


def test_members_written_twice_and_removed_twice(nftables: NftablesFilter, family: Family) -> None:
    keys = one_of_each(family)

    async def check() -> None:
        for change, expected in (
            (FilterChange(add=keys), set(keys)),
            (FilterChange(add=keys), set(keys)),
            (FilterChange(remove=keys), set()),
            (FilterChange(remove=keys), set()),
        ):
            assert (await programmed(nftables, change)).elements == expected

    asyncio.run(check())


def test_a_removal_of_absent_and_present_members_removes_the_present_ones(
    nftables: NftablesFilter, family: Family
) -> None:
    keys = one_of_each(family)

    async def check() -> None:
        await programmed(nftables, FilterChange(add=keys[::2]))
        assert (await programmed(nftables, FilterChange(remove=keys))).elements == set()

    asyncio.run(check())


def test_nothing_to_write_sends_nothing(nftables: NftablesFilter) -> None:
    assert asyncio.run(nftables.write(FilterChange())) == {}
    assert nftables.socket.messages_sent == 0
    assert run("nft", "list", "ruleset") == ""
