"""Only what is ours is touched, and it stands where it should."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from felixpy.calc.entries import SetName
from felixpy.calc.rule import ChainKey, Rule, Table, Verdict
from felixpy.config import ChainInsertMode
from felixpy.dataplane.iptables import LegacyFilter, NftVariantFilter
from felixpy.dataplane.iptables.filter import IptablesFilter
from felixpy.dataplane.iptables.layout import jump_text, set_name
from felixpy.dataplane.packet_filter import FilterChange, FilterError
from felixpy.model.net import Family
from tests.dataplane.iptables.conftest import MakeFilter, output, saved
from tests.dataplane.iptables.programmed import program

FOREIGN = """*raw
:OTHER - [7:77]
[1:2] -A PREROUTING -i eth9 -m comment --comment "a jump of \\"others\\"" -j OTHER
[3:4] -A OTHER -p tcp -m tcp --dport 1:9 -j DROP
COMMIT
*filter
:INPUT ACCEPT [11:12]
:FORWARD DROP [13:14]
:cali-x - [0:0]
[5:6] -A FORWARD -m mark --mark 0x1/0x1 -j cali-x
[7:8] -A cali-x -m limit --limit 1/sec -j REJECT
COMMIT
*nat
[9:10] -A POSTROUTING -o eth9 -j MASQUERADE
COMMIT
"""


def foreign_lines(tool: str) -> list[str]:
    return [line for line in saved(tool, "-c") if "fpy-" not in line]


def test_rules_and_counters_of_others_survive_programming_and_removal(packet_filter: IptablesFilter, tool: str) -> None:
    output(f"{tool}-restore", "-c", stdin=FOREIGN)
    output("ipset", "create", "fpyx-foreign", "hash:ip")
    before = foreign_lines(tool)
    assert '-m comment --comment "a jump' in "".join(before)

    async def run() -> None:
        await program(packet_filter, 1)
        assert foreign_lines(tool) == before
        assert any("fpy-" in line for line in saved(tool))
        await packet_filter.remove_all()

    asyncio.run(run())
    assert saved(tool, "-c") == before
    assert output("ipset", "list", "-n").split() == ["fpyx-foreign"]


def jump(tool: str, table: str, chain: str) -> list[str]:
    return [line.removeprefix(f"-A {chain} ") for line in saved(tool, "-t", table) if line.startswith(f"-A {chain} ")]


@pytest.mark.parametrize("mode", ChainInsertMode)
def test_jumps_stand_first_or_last_and_in_nat_behind_what_was_there(
    make_filter: MakeFilter, family: Family, tool: str, mode: ChainInsertMode
) -> None:
    output(f"{tool}-restore", stdin=FOREIGN)
    asyncio.run(program(make_filter(family, insert_mode=mode), 1))
    first = mode is ChainInsertMode.INSERT
    assert jump(tool, "raw", "PREROUTING").index(jump_text("PREROUTING")) == (0 if first else 1)
    assert jump(tool, "filter", "FORWARD").index(jump_text("FORWARD")) == (0 if first else 1)
    assert jump(tool, "nat", "POSTROUTING").index(jump_text("POSTROUTING")) == 1


@pytest.mark.parametrize(
    "damage",
    [
        ["-D", "FORWARD", "1"],
        ["-I", "FORWARD", "1", "-j", "ACCEPT"],
        ["-A", "FORWARD", "-m", "comment", "--comment", "felixpy", "-j", "fpy-FORWARD"],
        ["-R", "FORWARD", "1", "-j", "fpy-FORWARD"],
        ["-I", "fpy-FORWARD", "1", "-j", "ACCEPT"],
        ["-F", "fpy-forward-to"],
        ["-F"],
    ],
    ids=" ".join,
)
def test_damage_is_seen_and_one_write_of_what_differs_mends_it(
    packet_filter: IptablesFilter, tool: str, damage: list[str]
) -> None:
    async def run() -> None:
        await program(packet_filter, 1)
        good = (await packet_filter.read()).chains
        output(tool, *damage)
        present = (await packet_filter.read()).chains
        broken = {key: rules for key, rules in good.items() if present.get(key) != rules}
        assert broken
        assert await packet_filter.write(FilterChange(chains=dict(broken))) == {}
        assert (await packet_filter.read()).chains == good
        assert jump(tool, "filter", "FORWARD").count(jump_text("FORWARD")) == 1

    asyncio.run(run())


KUBE_PROXY = '-m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING'


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("mode", ChainInsertMode)
def test_what_others_append_to_nat_postrouting_is_no_difference(
    make_filter: MakeFilter, family: Family, tool: str, mode: ChainInsertMode, told: bool
) -> None:
    """A CNI plugin and podman append; kube-proxy's masquerade alone has to come before ours."""
    packet_filter = make_filter(family, insert_mode=mode)

    async def run() -> None:
        await program(packet_filter, 1)
        right = (await packet_filter.read()).chains

        async def read() -> set[ChainKey]:
            packet_filter._told = told  # type: ignore[attr-defined]  # by netlink alone, in the nft variant
            present = (await packet_filter.read()).chains
            return {key for key, rules in right.items() if present.get(key) != rules}

        def order() -> list[str]:
            return [rule.rpartition(" ")[2] for rule in jump(tool, "nat", "POSTROUTING")]

        output(f"{tool}-restore", "--noflush", stdin="*nat\n:KUBE-POSTROUTING - [0:0]\n:CNI-1 - [0:0]\nCOMMIT\n")
        for _ in range(3):
            output(tool, "-t", "nat", "-A", "POSTROUTING", "-j", "CNI-1")
            output(tool, "-t", "nat", "-I", "POSTROUTING", "-j", "CNI-1")
        output(
            tool, "-t", "nat", "-A", "POSTROUTING", "-m", "comment", "--comment", "-j KUBE-POSTROUTING", "-j", "CNI-1"
        )
        output(f"{tool}-restore", "--noflush", stdin=f"*nat\n-I POSTROUTING {KUBE_PROXY}\nCOMMIT\n")
        assert await read() == set()
        output(f"{tool}-restore", "--noflush", stdin=f"*nat\n-A POSTROUTING {KUBE_PROXY}\nCOMMIT\n")
        assert await read() == {ChainKey(Table.NAT, "POSTROUTING")}
        await program(packet_filter, 1)
        assert await read() == set()
        assert order()[-2:] == ["KUBE-POSTROUTING", "fpy-POSTROUTING"]
        output(tool, "-t", "nat", "-A", "POSTROUTING", "-j", "CNI-1")
        assert await read() == set()
        output(tool, "-t", "nat", "-D", "POSTROUTING", *jump_text("POSTROUTING").split())
        assert await read() == {ChainKey(Table.NAT, "POSTROUTING")}

    asyncio.run(run())


def test_unknown_chains_and_sets_of_ours_are_reported_and_go(
    packet_filter: IptablesFilter, family: Family, tool: str
) -> None:
    async def run() -> None:
        await program(packet_filter, 1)
        output(
            f"{tool}-restore",
            "--noflush",
            stdin="*security\n:fpy-old - [0:0]\n-A FORWARD -j fpy-old\nCOMMIT\n*filter\n:fpy-x - [0:0]\nCOMMIT\n",
        )
        output("ipset", "create", f"fpy{family.version}-old", "hash:ip")
        state = await packet_filter.read()
        assert state.foreign == ("security fpy-old", f"fpy{family.version}-old")
        unknown = ChainKey(Table.FILTER, "x")
        assert state.chains[unknown] == ()
        assert await packet_filter.write(FilterChange(chains={unknown: None})) == {}
        state = await packet_filter.read()
        assert (state.foreign, unknown in state.chains) == ((), False)
        assert not [line for line in saved(tool, "-t", "security") if "fpy-" in line]

    asyncio.run(run())


def test_removing_where_nothing_is_ours_touches_nothing(packet_filter: IptablesFilter, family: Family) -> None:
    names = Path(f"/proc/thread-self/net/{'ip' if family is Family.V4 else 'ip6'}_tables_names")

    async def run() -> None:
        assert not (await packet_filter.read()).chains
        await packet_filter.remove_all()
        await packet_filter.remove_all()

    asyncio.run(run())
    assert names.read_text() == ""
    assert output("nft", "list", "tables") == ""
    assert packet_filter.tools.starts == 0


def test_programming_opens_only_our_three_tables(packet_filter: IptablesFilter, variant: str, family: Family) -> None:
    asyncio.run(program(packet_filter, 1))
    if variant == "legacy":
        prefix = "ip" if family is Family.V4 else "ip6"
        tables = Path(f"/proc/thread-self/net/{prefix}_tables_names").read_text().split()
    else:
        tables = [line.split()[2] for line in output("nft", "list", "tables").splitlines()]
    assert sorted(tables) == ["filter", "nat", "raw"]


def test_a_refused_table_does_not_hold_up_the_others(packet_filter: IptablesFilter) -> None:
    async def run() -> None:
        await program(packet_filter, 1)
        good, bad = ChainKey(Table.RAW, "good"), ChainKey(Table.FILTER, "bad")
        change = FilterChange(
            chains={bad: ("-j fpy-missing",), good: packet_filter.render({good: (Rule((), Verdict.DROP),)})[good]}
        )
        refused = await packet_filter.write(change)
        assert list(refused) == [bad]
        assert refused[bad]
        chains = (await packet_filter.read()).chains
        assert (good in chains, bad in chains) == (True, False)

    asyncio.run(run())


def test_a_rule_over_a_missing_set_is_an_error_with_words(packet_filter: IptablesFilter) -> None:
    async def run() -> None:
        key = ChainKey(Table.FILTER, "x")
        change = FilterChange(chains={key: ("-m set --match-set fpy4-nowhere src -j DROP",)})
        assert list(await packet_filter.write(change)) == [key]

    asyncio.run(run())


def test_a_set_in_use_by_others_stops_removal_with_its_name(
    packet_filter: IptablesFilter, family: Family, tool: str
) -> None:
    name = set_name(family, SetName.POOLS)

    async def run() -> None:
        await program(packet_filter, 1)
        output(tool, "-A", "OUTPUT", "-m", "set", "--match-set", name, "dst", "-j", "ACCEPT")
        with pytest.raises(FilterError, match=name):
            await packet_filter.remove_all()
        output(tool, "-F", "OUTPUT")
        await packet_filter.remove_all()

    asyncio.run(run())
    assert subprocess.run(["ipset", "list", "-n"], capture_output=True, text=True).stdout == ""


def test_a_missing_program_is_one_clear_sentence(
    packet_filter: IptablesFilter, tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(program(packet_filter, 1))
    monkeypatch.setattr("felixpy.dataplane.iptables.tools._SEARCH_PATH", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FilterError, match=f"{tool}-save was not found; install the package 'iptables'"):
        asyncio.run(packet_filter.read())


def test_the_variants_share_the_sets(network: None, family: Family) -> None:
    """Changing the variant: the new rules go in first, then the old ones out, and the sets stay."""
    legacy, nft = LegacyFilter(family, max_ipset_size=65536), NftVariantFilter(family, max_ipset_size=65536)

    async def run() -> None:
        await program(legacy, 1)
        members = (await legacy.read()).elements
        await program(nft)
        await legacy.remove_rules()
        state = await nft.read()
        assert (state.containers, state.elements) == (True, members)
        assert not (await legacy.read()).chains
        legacy.close()
        await nft.remove_all()
        nft.close()

    asyncio.run(run())
    assert output("ipset", "list", "-n") == ""


def test_a_host_without_the_programs_and_without_rules_has_nothing_to_remove(
    packet_filter: IptablesFilter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("felixpy.dataplane.iptables.tools._SEARCH_PATH", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    asyncio.run(packet_filter.remove_all())


@pytest.mark.parametrize("remover", [LegacyFilter, NftVariantFilter])
def test_removing_all_by_either_variant_leaves_nothing_of_the_other(
    packet_filter: IptablesFilter, family: Family, tool: str, remover: type[IptablesFilter]
) -> None:
    async def run() -> None:
        await program(packet_filter, 1)
        other = remover(family)
        await other.remove_all()
        other.close()

    asyncio.run(run())
    assert not [line for line in saved(tool) if "fpy-" in line]
    assert output("ipset", "list", "-n") == ""
