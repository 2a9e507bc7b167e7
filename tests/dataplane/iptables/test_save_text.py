"""What other programs' rules do to the reading of a ``-save`` tool's output: nothing."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from felixpy.dataplane.iptables.filter import IptablesFilter
from felixpy.dataplane.iptables.layout import Place, jump_text
from felixpy.dataplane.iptables.save_text import parse_save
from tests.dataplane.iptables.conftest import output, saved
from tests.dataplane.iptables.programmed import program

LOOKS_LIKE_OURS = "two\n*nat\n:fpy-PREROUTING - [0:0]\n-A FORWARD -j fpy-x\n-A fpy-forward-to -j ACCEPT\nCOMMIT\n"
COMMENTS = (
    LOOKS_LIKE_OURS,
    'it\'s "quoted" \\',
    'an odd " quote\n-A INPUT',
    "a\rb\u2028c\x85d\x0be",
    "-j",
    "",
    "keep this before -j fpy-FORWARD",
    '"-j fpy-FORWARD"',
    "felixpy -g fpy-INPUT",
    "-j-fpy-FORWARD",
)
PIECES = (
    "*",
    "raw",
    "*nat\n",
    ":",
    "fpy-",
    "-A",
    "-A ",
    " ",
    '"',
    ' "',
    "\\",
    "\n",
    "\r",
    "\u2028",
    "[1:2] ",
    "[",
    "FORWARD",
)
PIECES += (
    "# Table `raw' is incompatible, use 'nft' tool.\n",
    "-j ",
    "-g ",
    "COMMIT\n",
    "\udcff",
    "\0",
    "]",
    "\t",
    "\n*",
)


@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join)))
def test_nothing_that_a_tool_prints_raises(text: str) -> None:
    parse_save(text)


def test_a_quote_that_is_never_closed_ends_with_its_line() -> None:
    begun = '*filter\n:fpy-x - [0:0]\n-A FORWARD -m odd --name "open -j ACCEPT\n' + "-A fpy-x -j DROP\n" * 20_000
    table = parse_save(f"{begun}COMMIT\n")["filter"]
    assert (len(table.rules["fpy-x"]), table.lengths) == (20_000, {"FORWARD": 1})


def test_counters_are_passed_over() -> None:
    table = parse_save(f"*filter\n:fpy-x - [1:2]\n[3:4] -A FORWARD {jump_text('FORWARD')}\n[5:6] -A fpy-x -j DROP\n")
    assert table["filter"].hooked("FORWARD", Place.LAST)
    assert table["filter"].rules == {"fpy-x": ["-j DROP"]}


def test_rules_of_others_are_counted_whatever_they_hold(packet_filter: IptablesFilter, tool: str) -> None:
    """A rule without match and target, and comments that look like what a tool prints."""

    async def run() -> None:
        await program(packet_filter, 1)
        before = await packet_filter.read()
        for built_in in ("INPUT", "FORWARD"):
            output(tool, "-A", built_in)
            for comment in COMMENTS:
                output(tool, "-A", built_in, "-m", "comment", "--comment", comment, "-j", "ACCEPT")
        output(tool, "-N", "OTHER")
        output(tool, "-A", "OTHER")
        after = await packet_filter.read()
        assert (after.chains, after.foreign) == (before.chains, before.foreign)
        others = parse_save("\n".join(saved(tool, "-c", "-t", "filter")))["filter"]
        assert others.lengths == {"INPUT": len(COMMENTS) + 2, "FORWARD": len(COMMENTS) + 2, "OTHER": 1}

    asyncio.run(run())


def test_a_rule_without_match_and_target_in_a_chain_of_ours_goes(packet_filter: IptablesFilter, tool: str) -> None:
    async def run() -> None:
        await program(packet_filter, 1)
        before = (await packet_filter.read()).chains
        output(tool, "-A", "fpy-FORWARD")
        assert (await packet_filter.read()).chains != before
        await program(packet_filter, 1)
        assert (await packet_filter.read()).chains == before

    asyncio.run(run())


def test_a_rule_of_others_that_names_our_jump_in_a_comment_stays(packet_filter: IptablesFilter, tool: str) -> None:
    """Nor is it in the way when the jump itself has to be moved, or goes."""

    async def run() -> None:
        await program(packet_filter, 1)
        for position in ("-I", "-A"):
            output(
                tool, position, "FORWARD", "-m", "comment", "--comment", f"before {jump_text('FORWARD')}", "-j", "DROP"
            )
        others = [line for line in saved(tool) if "before" in line]
        await program(packet_filter, 1)
        rules = [line for line in saved(tool, "-t", "filter") if line.startswith("-A FORWARD")]
        assert rules == [f"-A FORWARD {jump_text('FORWARD')}", *others]
        await packet_filter.remove_all()
        assert [line for line in saved(tool) if "fpy-" in line] == others

    asyncio.run(run())


@pytest.mark.parametrize("target", ["-j", "-g"])
def test_a_jump_to_us_is_one_whatever_stands_before_it(packet_filter: IptablesFilter, tool: str, target: str) -> None:
    async def run() -> None:
        await program(packet_filter, 1)
        output(tool, "-A", "OUTPUT", target, "fpy-forward-to")
        output(tool, "-A", "FORWARD", "-m", "comment", "--comment", "-j", target, "fpy-FORWARD")
        output(tool, "-A", "FORWARD", "-m", "comment", "--comment", 'a "b" \\', target, "fpy-FORWARD")
        table = parse_save("\n".join(saved(tool, "-t", "filter")))["filter"]
        assert [len(table.jumps[chain]) for chain in ("FORWARD", "OUTPUT")] == [3, 1]
        await packet_filter.remove_all()
        assert not [line for line in saved(tool) if "fpy-" in line]

    asyncio.run(run())
