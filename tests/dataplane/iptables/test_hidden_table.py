"""A table with a rule that only nft can say: ``iptables-nft-save`` prints nothing of it, and exits with 0."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from felixpy.calc.rule import ChainKey, Rule, Table, Verdict
from felixpy.calc.rules import SPOOF_CHECK
from felixpy.dataplane.iptables import NftVariantFilter
from felixpy.dataplane.packet_filter import FilterChange, FilterError
from felixpy.model.net import Family
from tests.dataplane.iptables.conftest import output, saved
from tests.dataplane.iptables.programmed import program, try_to_program

FILTER_X = ChainKey(Table.FILTER, "x")


@pytest.fixture
def nft_family(family: Family) -> str:
    return "ip" if family is Family.V4 else "ip6"


@contextlib.asynccontextmanager
async def filter_of(family: Family) -> AsyncIterator[NftVariantFilter]:
    one = NftVariantFilter(family)
    try:
        yield one
    finally:
        one.close()


def hide(nft_family: str, table: str, chain: str) -> None:
    output("nft", "add", "rule", nft_family, table, chain, "meta", "mark", "set", "numgen", "inc", "mod", "2")


def show(nft_family: str, table: str, chain: str) -> None:
    """Take the rule of nft away again; it is the last one."""
    listed = output("nft", "-a", "list", "chain", nft_family, table, chain).splitlines()
    (handle,) = [line.rpartition(" ")[2] for line in listed if "numgen" in line]
    output("nft", "delete", "rule", nft_family, table, chain, "handle", handle)


@pytest.mark.parametrize("told", [False, True])
def test_a_hidden_table_is_not_written_and_named_and_the_others_are_written(
    network: None, family: Family, nft_family: str, told: bool
) -> None:
    async def run() -> None:
        async with filter_of(family) as one:
            await program(one, 1)
            right = (await one.read()).chains
            hide(nft_family, "raw", "PREROUTING")
            rules = output("nft", "-s", "list", "table", nft_family, "raw")
            for _ in range(3):
                seen = await one.read()
                assert {key.table for key in seen.chains} == {Table.FILTER, Table.NAT}
                one._told = told
                refused = await try_to_program(one, 1)
                assert {key.table for key in refused if isinstance(key, ChainKey)} == {Table.RAW}
                (words,) = set(refused.values())
                assert "cannot read the table raw" in words and f"'nft list table {nft_family} raw'" in words
                assert output("nft", "-s", "list", "table", nft_family, "raw") == rules
            drop = one.render({FILTER_X: (Rule((), Verdict.DROP),)})
            assert await one.write(FilterChange(chains=dict(drop))) == {}
            show(nft_family, "raw", "PREROUTING")
            assert (await one.read()).chains == right | drop

    asyncio.run(run())


def test_a_table_in_which_nothing_is_ours_may_hold_anything(network: None, family: Family, nft_family: str) -> None:
    output("iptables-nft" if family is Family.V4 else "ip6tables-nft", "-t", "mangle", "-A", "INPUT", "-j", "ACCEPT")
    hide(nft_family, "mangle", "INPUT")

    async def run() -> None:
        async with filter_of(family) as one:
            await program(one, 1)
            assert not (await one.read()).foreign
            await one.remove_all()
            hide(nft_family, "raw", "PREROUTING")
            await one.remove_all()

    asyncio.run(run())


def test_what_is_hidden_and_ours_cannot_be_removed_and_is_named(network: None, family: Family, nft_family: str) -> None:
    tool = "iptables-nft" if family is Family.V4 else "ip6tables-nft"

    async def run() -> None:
        async with filter_of(family) as one:
            await program(one, 1)
            hide(nft_family, "raw", "PREROUTING")
            with pytest.raises(FilterError, match="cannot read the table raw"):
                await one.remove_rules()
            assert not [line for line in saved(tool) if "fpy-" in line], "the other tables are free of us"
            show(nft_family, "raw", "PREROUTING")
            assert [line for line in saved(tool) if SPOOF_CHECK.name in line]
            await one.remove_all()
            assert not [line for line in saved(tool) if "fpy-" in line]

    asyncio.run(run())
