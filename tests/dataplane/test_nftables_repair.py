"""The nftables back-end among refusals and strangers: culprits apart, other layouts replaced, foreign tables spared."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from felixpy.calc.entries import ElementKey, SetName
from felixpy.calc.rule import ChainKey, Table
from felixpy.calc.rules import SPOOF_CHECK
from felixpy.dataplane.nftables.filter import NftablesFilter
from felixpy.dataplane.nftables.seen import EVERY_SET
from felixpy.dataplane.packet_filter import FilterChange, FilterState, Part
from felixpy.model.net import Family, Net
from felixpy.netlink.expressions import NFT_JUMP, verdict
from felixpy.netlink.nftables import NftRule
from tests.dataplane.conftest import MakeNftables
from tests.dataplane.rule_settings import default_chains, programmed
from tests.kernel import element, run

WORD = {Family.V4: "ip", Family.V6: "ip6"}


def pool(family: Family, number: int, length: int | None = None) -> ElementKey:
    """A pool in 10.N.0.0 or fd00:N::, of 24 or 64 bits if nothing else is said."""
    text = f"10.{number}.0.0" if family is Family.V4 else f"fd00:{number}::"
    if length is None:
        length = 24 if family is Family.V4 else 64
    return ElementKey(SetName.POOLS, Net.parse(f"{text}/{length}"))


def endpoint(family: Family, number: int, interface: str = "cali1") -> ElementKey:
    text = f"10.65.0.{number}/32" if family is Family.V4 else f"fd00:65::{number}/128"
    return element(SetName.FROM_WORKLOAD, text, interface)


# --- culprits ---------------------------------------------------------------------------------------------------


def test_a_member_that_overlaps_is_refused_and_the_rest_applied(nftables: NftablesFilter, family: Family) -> None:
    wide = pool(family, 7, 16 if family is Family.V4 else 32)
    good = [pool(family, 8), endpoint(family, 2), pool(family, 9)]

    async def check() -> None:
        await programmed(nftables, FilterChange(chains=dict(default_chains(nftables)), add=[wide]))
        inside = pool(family, 7)
        refused = await nftables.write(FilterChange(add=[good[0], inside, *good[1:]]))
        assert refused == {inside: "File exists"}
        assert (await nftables.read()).elements == {wide, *good}

    asyncio.run(check())


def test_many_culprits_among_many_members(nftables: NftablesFilter, family: Family) -> None:
    wide = [pool(family, n, 16 if family is Family.V4 else 32) for n in range(5)]
    inside = [pool(family, n) for n in range(5)]
    good = [pool(family, n) for n in range(10, 40)]

    async def check() -> None:
        await programmed(nftables, FilterChange(add=wide))
        assert await nftables.write(FilterChange(add=[*good[:15], *inside, *good[15:]])) == dict.fromkeys(
            inside, "File exists"
        )
        assert (await nftables.read()).elements == {*wide, *good}

    asyncio.run(check())


def test_a_member_of_the_other_family_is_refused_alone(make_nftables: MakeNftables) -> None:
    """A key that can never be written must not hold up its neighbours for ever."""
    packet_filter = make_nftables(Family.V4)
    stranger, good = pool(Family.V6, 7), pool(Family.V4, 7)

    async def check() -> None:
        refused = await packet_filter.write(FilterChange(add=[stranger, good]))
        assert refused.keys() == {stranger}
        assert refused[stranger]
        assert (await packet_filter.read()).elements == {good}

    asyncio.run(check())


def broken_chain() -> tuple[NftRule, ...]:
    return (NftRule((verdict(NFT_JUMP, "raw-nowhere"),)),)


def test_a_chain_that_is_refused_keeps_the_old_rules_and_members_go_in(
    nftables: NftablesFilter, family: Family
) -> None:
    member = endpoint(family, 2)

    async def check() -> None:
        wanted = default_chains(nftables)
        await programmed(nftables, FilterChange(chains=dict(wanted)))
        refused = await nftables.write(FilterChange(chains={SPOOF_CHECK: broken_chain()}, add=[member]))
        assert refused == {SPOOF_CHECK: "No such file or directory"}
        state = await nftables.read()
        assert state.chains == wanted
        assert state.elements == {member}

    asyncio.run(check())


def test_chains_are_one_layout_and_fail_together(nftables: NftablesFilter, family: Family) -> None:
    """Half a rule set could let through what the whole one drops."""

    async def check() -> None:
        wanted = default_chains(nftables)
        chains = {**wanted, SPOOF_CHECK: broken_chain()}
        refused = await nftables.write(FilterChange(chains=dict(chains), add=[endpoint(family, 2)]))
        assert refused == dict.fromkeys(wanted, "No such file or directory")
        state = await nftables.read()
        assert state.chains == {}
        assert state.elements == {endpoint(family, 2)}

        assert (await programmed(nftables, FilterChange(chains=dict(wanted)))).chains == wanted

    asyncio.run(check())


def test_a_culprit_beside_an_absent_member(nftables: NftablesFilter, family: Family) -> None:
    wide, inside = pool(family, 7, 16 if family is Family.V4 else 32), pool(family, 7)

    async def check() -> None:
        await programmed(nftables, FilterChange(add=[wide, endpoint(family, 3)]))
        change = FilterChange(
            add=[inside, endpoint(family, 2)], remove=[endpoint(family, 3), endpoint(family, 4), pool(family, 9)]
        )
        assert await nftables.write(change) == {inside: "File exists"}
        assert (await nftables.read()).elements == {wide, endpoint(family, 2)}

    asyncio.run(check())


def test_a_table_that_somebody_deleted_is_made_again(nftables: NftablesFilter, family: Family) -> None:
    """The back-end believes in its table until it is read again: a refusal names every key, a read mends it."""

    async def check() -> None:
        wanted = default_chains(nftables)
        await programmed(nftables, FilterChange(chains=dict(wanted), add=[endpoint(family, 2)]))
        run("nft", "flush", "ruleset")
        refused = await nftables.write(FilterChange(add=[endpoint(family, 3)]))
        assert refused == {endpoint(family, 3): "No such file or directory"}
        assert not (await nftables.read()).containers
        state = await programmed(nftables, FilterChange(chains=dict(wanted), add=[endpoint(family, 3)]))
        assert (state.chains, state.elements, state.containers) == (wanted, {endpoint(family, 3)}, True)

    asyncio.run(check())


def test_a_table_that_somebody_switched_off_is_switched_on_again(nftables: NftablesFilter, family: Family) -> None:
    async def check() -> None:
        wanted = default_chains(nftables)
        right = await programmed(nftables, FilterChange(chains=dict(wanted), add=[endpoint(family, 2)]))
        for change in (FilterChange(), FilterChange(add=[endpoint(family, 3)])):
            run("nft", f"add table {WORD[family]} felixpy {{ flags dormant ; }}")
            found = await nftables.read()
            assert (found.chains, found.elements, found.containers) == (right.chains, right.elements, False)
            assert nftables.member_requests(FilterChange(add=[endpoint(family, 3)])) is None
            assert await nftables.write(change) == {}
            assert "dormant" not in run("nft", "list", "table", WORD[family], "felixpy")
            assert (await nftables.read()).containers
        assert (await nftables.read()).elements == {endpoint(family, 2), endpoint(family, 3)}

    asyncio.run(check())


# --- other layouts ----------------------------------------------------------------------------------------------


def _nft(family: Family, text: str) -> None:
    lines = text.replace("FAMILY", WORD[family]).replace("; ", "\n").replace(" }", "\n}\n")
    run("nft", "-f", "-", stdin=lines)


OTHER_LAYOUTS: dict[str, str] = {
    "set of another type": "table FAMILY felixpy { set pools { type inet_service; } }",
    "set without intervals": "table FAMILY felixpy { set pools { type FAMILYaddr; } }",
    "set that we do not know": "table FAMILY felixpy { set workloads { type ifname; } }",
    "map that we do not know": "table FAMILY felixpy { map to-workload { type ifname : verdict; } }",
    "hook with another priority": (
        "table FAMILY felixpy { chain filter-FORWARD { type filter hook forward priority -5; } }"
    ),
    "hook elsewhere": "table FAMILY felixpy { chain filter-FORWARD { type filter hook input priority 0; } }",
    "hook with policy drop": (
        "table FAMILY felixpy { chain filter-FORWARD { type filter hook forward priority 0; policy drop; } }"
    ),
    "hook without an attachment": "table FAMILY felixpy { chain filter-FORWARD { } }",
    "chain of ours with a hook": (
        "table FAMILY felixpy { chain filter-forward-to { type filter hook forward priority 0; } }"
    ),
    "chain that we do not know": "table FAMILY felixpy { chain mangle-x { } chain cali-y { jump mangle-x; } }",
}


@pytest.mark.parametrize("layout", OTHER_LAYOUTS)
def test_another_layout_is_replaced_in_one_transaction(nftables: NftablesFilter, family: Family, layout: str) -> None:
    address = "ipv4_addr" if family is Family.V4 else "ipv6_addr"
    _nft(family, OTHER_LAYOUTS[layout].replace("FAMILYaddr", address))

    async def check() -> None:
        state = await nftables.read()
        assert (state.chains, state.elements, state.containers) == ({}, set(), False)
        wanted = default_chains(nftables)
        sends = nftables.socket.sends
        assert await nftables.write(FilterChange(chains=dict(wanted), add=[endpoint(family, 2)])) == {}
        assert nftables.socket.sends == sends + 1
        after = await nftables.read()
        assert (after.chains, after.elements, after.containers) == (wanted, {endpoint(family, 2)}, True)

    asyncio.run(check())


def test_an_older_layout_of_ours_is_replaced_whole(nftables: NftablesFilter, family: Family) -> None:
    """Most sets and chains are right, yet one hook stands elsewhere: an upgrade."""

    async def check() -> None:
        wanted = default_chains(nftables)
        right = await programmed(nftables, FilterChange(chains=dict(wanted), add=[endpoint(family, 2)]))
        text = run("nft", "list", "ruleset")
        older = text.replace("hook forward priority filter", "hook forward priority filter - 5")
        assert older != text
        run("nft", "-f", "-", stdin=f"flush ruleset\n{older}\nadd chain {WORD[family]} felixpy filter-older")
        assert await nftables.read() != right
        sends = nftables.socket.sends
        assert await nftables.write(FilterChange(chains=dict(wanted), add=[endpoint(family, 2)])) == {}
        assert nftables.socket.sends == sends + 1
        assert await nftables.read() == right
        assert run("nft", "list", "ruleset") == text

    asyncio.run(check())


def test_a_refused_replacement_leaves_the_other_layout_as_it_was(nftables: NftablesFilter, family: Family) -> None:
    """Old protection stays until the new one stands."""
    _nft(family, "table FAMILY felixpy { chain old { type filter hook forward priority 0; policy drop; } }")
    before = run("nft", "list", "ruleset")

    async def check() -> None:
        await nftables.read()
        chains = {**default_chains(nftables), SPOOF_CHECK: broken_chain()}
        assert (await nftables.write(FilterChange(chains=dict(chains)))).keys() == chains.keys()
        assert run("nft", "list", "ruleset") == before

    asyncio.run(check())


DRIFTS: dict[str, str] = {
    "extra rule": "add rule FAMILY felixpy filter-FORWARD accept",
    "rule in front": "insert rule FAMILY felixpy raw-from-workload counter accept",
    "rules flushed": "flush chain FAMILY felixpy raw-from-workload",
    "set flushed": "flush set FAMILY felixpy from-workload",
    "member added": "add element FAMILY felixpy pools { ADDRESS }",
    "range that is no prefix": "add element FAMILY felixpy pools { ADDRESS-ADDRESS7 }",
    "range among allowed sources": "add element FAMILY felixpy allowed-sources { ADDRESS-ADDRESS7 . cali1 }",
    "single address among allowed prefixes": "add element FAMILY felixpy allowed-sources { ADDRESS . cali1 }",
    "allowed source": "add element FAMILY felixpy allowed-hosts { ADDRESS . cali1 }",
    "catch-all allowed address": "add element FAMILY felixpy allowed-hosts { * }",
    "catch-all pair": "add element FAMILY felixpy from-workload { * }",
    "catch-all allowed source": "add element FAMILY felixpy allowed-sources { * }",
    "any interface": 'add element FAMILY felixpy allowed-sources { ADDRESS . "cali*" }',
}


@pytest.mark.parametrize("drift", DRIFTS)
def test_drift_shows_and_is_repaired_in_one_transaction(nftables: NftablesFilter, family: Family, drift: str) -> None:
    ours = {endpoint(family, 2), pool(family, 7)}
    if family is Family.V4:
        command = DRIFTS[drift].replace("ADDRESS7", "172.16.0.6").replace("ADDRESS", "172.16.0.1")
    else:
        command = DRIFTS[drift].replace("ADDRESS7", "fd99::6").replace("ADDRESS", "fd99::1")

    async def check() -> None:
        wanted = default_chains(nftables)
        right = await programmed(nftables, FilterChange(chains=dict(wanted), add=list(ours)))
        _nft(family, command)
        found = await nftables.read()
        assert found != right
        chains = {key: rules for key, rules in wanted.items() if found.chains.get(key) != rules}
        change = FilterChange(chains=dict(chains), add=list(ours - found.elements), remove=list(found.elements - ours))
        sends = nftables.socket.sends
        assert await nftables.write(change) == {}
        assert nftables.socket.sends == sends + 1
        assert await nftables.read() == right

    asyncio.run(check())


def test_a_rule_is_compared_by_its_body_and_its_comment(nftables: NftablesFilter, family: Family) -> None:
    async def check() -> None:
        wanted = default_chains(nftables)
        await programmed(nftables, FilterChange(chains=dict(wanted)))
        text = run("nft", "list", "table", WORD[family], "felixpy")
        for old, new in (("drop", "accept"), ("known workload address", "known workload")):
            run("nft", "-f", "-", stdin=f"flush ruleset\n{text.replace(old, new)}")
            state = await nftables.read()
            assert state.containers
            assert state.chains != wanted
            assert state.chains.keys() == wanted.keys()

    asyncio.run(check())


# --- strangers --------------------------------------------------------------------------------------------------

FOREIGN = """
table ip felixpy-else { set pools { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 } } }
table inet felixpy { chain filter-FORWARD { type filter hook forward priority 10; policy accept; counter drop } }
table ip6 kube-proxy { map m { type ipv6_addr : verdict; elements = { fd00::1 : accept } } }
table ip calico { chain cali-FORWARD { meta mark set 0x10000 } }
"""


@pytest.mark.parametrize("prepare", [lambda: None, lambda: run("nft", "add", "table", "ip", "mine")], ids=["-", "+"])
def test_foreign_tables_are_byte_identical_before_and_after(
    make_nftables: MakeNftables, prepare: Callable[[], object]
) -> None:
    _nft(Family.V4, FOREIGN)
    prepare()
    before = run("nft", "-a", "list", "ruleset")
    filters = [make_nftables(family) for family in Family]

    async def check() -> None:
        for one in filters:
            chains = default_chains(one)
            await programmed(one, FilterChange(chains=dict(chains), add=[endpoint(one.family, 2)]))
            await one.write(FilterChange(remove=[endpoint(one.family, 2)]))
            await one.write(FilterChange(chains={ChainKey(Table.RAW, "from-workload"): broken_chain()}))
        assert run("nft", "-a", "list", "ruleset") != before
        for one in filters:
            await one.remove_all()
            assert not (await one.read()).containers

    asyncio.run(check())
    assert run("nft", "-a", "list", "ruleset") == before


def test_removing_twice_and_what_was_never_there(nftables: NftablesFilter, family: Family) -> None:
    async def check() -> None:
        await nftables.remove_all()
        await programmed(nftables, FilterChange(chains=dict(default_chains(nftables))))
        await nftables.remove_all()
        await nftables.remove_all()
        assert run("nft", "list", "ruleset") == ""
        wanted = default_chains(nftables)
        assert (await programmed(nftables, FilterChange(chains=dict(wanted)))).chains == wanted

    asyncio.run(check())


def test_the_other_family_is_not_touched(make_nftables: MakeNftables) -> None:
    async def check() -> None:
        v4, v6 = (make_nftables(family) for family in Family)
        for one in (v4, v6):
            await programmed(one, FilterChange(chains=dict(default_chains(one)), add=[endpoint(one.family, 2)]))
        before = await v6.read()
        await v4.remove_all()
        assert await v6.read() == before
        assert run("nft", "list", "tables") == "table ip6 felixpy\n"

    asyncio.run(check())


def test_rules_are_read_without_the_members_of_sets(nftables: NftablesFilter, family: Family) -> None:
    """What it costs to look at rules must not grow with the workloads of the node."""
    chains = default_chains(nftables)

    async def costs(part: Part) -> tuple[int, FilterState]:
        before = nftables.socket.dumps_sent
        state = await nftables.read(part)
        return nftables.socket.dumps_sent - before, state

    async def check() -> None:
        await programmed(nftables, FilterChange(chains=dict(chains), add=[endpoint(family, 2)]))
        await nftables.read()
        dumps, state = await costs(Part.RULES)
        assert dumps == 3  # tables, chains, rules
        assert (state.part, state.chains, state.containers) == (Part.RULES, chains, True)
        dumps, state = await costs(Part.ALL)
        assert dumps == 4 + len(EVERY_SET)
        assert state.elements == {endpoint(family, 2)}

    asyncio.run(check())


def test_rules_alone_are_not_read_where_the_table_is_gone(nftables: NftablesFilter, family: Family) -> None:
    async def check() -> None:
        await programmed(nftables, FilterChange(chains=dict(default_chains(nftables)), add=[endpoint(family, 2)]))
        await nftables.read()
        run("nft", "delete", "table", WORD[family], "felixpy")
        state = await nftables.read(Part.RULES)
        assert (state.part, state.chains, state.elements, state.containers) == (Part.ALL, {}, set(), False)

    asyncio.run(check())
