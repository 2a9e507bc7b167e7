"""Rules as text, and the reading of what the tools print. Pure."""

from __future__ import annotations

import doctest
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from felixpy.calc.entries import STANDING_SETS, SetName
from felixpy.calc.rule import (
    ChainKey,
    DestinationIn,
    InInterface,
    Jump,
    Masquerade,
    OutInterface,
    Protocol,
    Rule,
    Snat,
    Source,
    SourceIn,
    SourcePairIn,
    Table,
    Verdict,
)
from felixpy.config import ChainInsertMode, PortRange
from felixpy.dataplane.iptables import nat6, render
from felixpy.dataplane.iptables.layout import Place, chain_name, jump_place, jump_text, set_name
from felixpy.dataplane.iptables.plan import plan_write, present_chains, restore_text
from felixpy.dataplane.iptables.render import canonical, rule_text, words
from felixpy.dataplane.iptables.save_text import parse_save
from felixpy.model.net import FAMILIES, Family, Net, parse_address

V4, V6 = FAMILIES


@pytest.mark.parametrize(
    ("family", "rule", "text"),
    [
        (V4, Rule((InInterface("cali", True),), Jump("from-workload")), "-i cali+ -j fpy-from-workload"),
        (V4, Rule((InInterface("abcdefghijklmno", True),), Verdict.DROP), "-i abcdefghijklmno -j DROP"),
        (V4, Rule((OutInterface("", True), Source(Net.parse("0.0.0.0/0"))), Verdict.DROP), "-j DROP"),
        (
            V6,
            Rule((Source(Net.parse("::/128")),), Verdict.RETURN, "a b"),
            '-s ::/128 -m comment --comment "a b" -j RETURN',
        ),
        (V4, Rule((), Verdict.REJECT), "-j REJECT --reject-with icmp-port-unreachable"),
        (V6, Rule((), Verdict.REJECT), "-j REJECT --reject-with icmp6-port-unreachable"),
        (V4, Rule((Protocol(4),), Verdict.DROP), "-p ipencap -j DROP"),
        (V4, Rule((Protocol(17, 4789),), Verdict.DROP), "-p udp -m udp --dport 4789 -j DROP"),
        (
            V6,
            Rule((SourceIn(SetName.MASQ_POOLS), DestinationIn(SetName.POOLS, True), OutInterface("e")), Masquerade()),
            "-o e -m set --match-set fpy6-masq-pools src -m set ! --match-set fpy6-pools dst"
            " -j MASQUERADE --random-fully",
        ),
        (
            V4,
            Rule((SourcePairIn(SetName.FROM_WORKLOAD),), Verdict.RETURN),
            "-m set --match-set fpy4-from-workload src,src -j RETURN",
        ),
        (V4, Rule((), Masquerade(PortRange(7, 7))), "-j MASQUERADE --to-ports 7 --random-fully"),
        (
            V6,
            Rule((), Snat(parse_address("fd00::1"), PortRange(1, 2))),
            "-j SNAT --to-source [fd00::1]:1-2 --random-fully",
        ),
        (V4, Rule((), Snat(parse_address("10.0.0.1"))), "-j SNAT --to-source 10.0.0.1 --random-fully"),
    ],
)
def test_rule_text(family: Family, rule: Rule, text: str) -> None:
    assert rule_text(family, rule) == text
    assert canonical(text) == text


@pytest.mark.parametrize(
    "rule",
    [
        Rule((InInterface("a"), InInterface("b")), Verdict.DROP),
        Rule((), Verdict.DROP, 'say "no"'),
        Rule((), Verdict.DROP, "two\nlines"),
        Rule((), Jump("a-chain-name-that-is-far-too-long")),
    ],
)
def test_what_iptables_cannot_say_is_an_error(rule: Rule) -> None:
    with pytest.raises(ValueError, match=r"\w+"):
        rule_text(V4, rule)


@pytest.mark.parametrize(
    ("printed", "text"),
    [
        ("-p 4 -j DROP", "-p ipencap -j DROP"),
        ("-p icmpv6 -m icmp6 --icmpv6-type 135 -j ACCEPT", "-p ipv6-icmp -m icmp6 --icmpv6-type 135 -j ACCEPT"),
        ('-m comment --comment "IPIP" -j DROP', "-m comment --comment IPIP -j DROP"),
        ('-m comment --comment "odd', '-m comment --comment "odd'),
    ],
)
def test_canonical_hides_what_differs_between_machines(printed: str, text: str) -> None:
    assert canonical(printed) == text


@pytest.mark.parametrize(
    "printed", ['-m comment --comment "it\'s \\"quoted\\"" -j DROP', "-m string --string '\\' -j DROP"]
)
def test_rules_that_others_put_into_our_chains_can_be_read(printed: str) -> None:
    saved = parse_save(f"*filter\n:fpy-x - [0:0]\n-A fpy-x {printed}\nCOMMIT\n")
    assert len(present_chains(saved, ChainInsertMode.INSERT)[ChainKey(Table.FILTER, "x")]) == 1


def test_docstring_examples() -> None:
    assert doctest.testmod(render) == (0, 2)


def test_names_fit_into_the_kernel() -> None:
    assert max(len(set_name(V6, name) + "-new") for name in STANDING_SETS) <= 31
    assert chain_name("x" * 24) == "fpy-" + "x" * 24


@pytest.mark.parametrize("mode", ChainInsertMode)
def test_nat_postrouting_is_always_behind_kube_proxys(mode: ChainInsertMode) -> None:
    assert jump_place("nat", "POSTROUTING", mode) is Place.BEHIND
    first = mode is ChainInsertMode.INSERT
    assert jump_place("raw", "PREROUTING", mode) is (Place.FIRST if first else Place.LAST)


def test_a_plan_leaves_a_jump_that_is_right_and_orders_references() -> None:
    saved = parse_save(
        f"*filter\n:FORWARD ACCEPT [0:0]\n:fpy-FORWARD - [0:0]\n:fpy-old - [0:0]\n-A FORWARD {jump_text('FORWARD')}\n"
        "-A FORWARD -j ACCEPT\n-A fpy-FORWARD -j fpy-old\nCOMMIT\n"
    )
    forward, old = ChainKey(Table.FILTER, "FORWARD"), ChainKey(Table.FILTER, "old")
    plans = plan_write({forward: ("-j ACCEPT",), old: None}, saved, ChainInsertMode.INSERT)
    assert restore_text(plans).splitlines() == [
        "*filter",
        ":fpy-FORWARD - [0:0]",
        ":fpy-old - [0:0]",
        "-A fpy-FORWARD -j ACCEPT",
        "-X fpy-old",
        "COMMIT",
    ]


def test_nat6_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="--persistent"):
        nat6.encode("SNAT", {"--persistent": ""})


@given(st.lists(st.sampled_from(['"', "'", "\\", " ", "a", "--b", "#", "\t", "\xa0"]), max_size=9).map("".join))
def test_a_rule_is_split_as_a_shell_would(text: str) -> None:
    try:
        expected = shlex.split(text)
    except ValueError:
        with pytest.raises(ValueError, match="No"):
            words(text)
    else:
        assert words(text) == expected
