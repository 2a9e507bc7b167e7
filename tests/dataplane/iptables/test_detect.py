"""Which back-end is chosen, and why; then the look at a real host."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from felixpy.config import IptablesBackend, NFTablesMode, Settings
from felixpy.dataplane.backend import Backend
from felixpy.dataplane.iptables.detect import Facts, RuleSurvey, decide, detect, felix_in_use, gather, survey_text
from tests.dataplane.iptables.conftest import output

NFTABLES, LEGACY, NFT = Backend.NFTABLES, Backend.LEGACY, Backend.NFT_VARIANT
KUBE_PROXY = frozenset({("ip6", "kube-proxy")})
HINT = ("KUBE-IPTABLES-HINT",)


@pytest.mark.parametrize(
    ("mode", "variant", "facts", "backend", "reason"),
    [
        ("Enabled", "Legacy", Facts(LEGACY), NFTABLES, "Enabled"),
        ("Auto", "Auto", Facts(LEGACY, KUBE_PROXY), NFTABLES, "ip6 kube-proxy"),
        ("Auto", "Auto", Facts(None), NFTABLES, "no iptables command"),
        ("Auto", "Legacy", Facts(None), LEGACY, "IptablesBackend is Legacy"),
        ("Disabled", "Auto", Facts(None), NFT, "no iptables command"),
        ("Disabled", "Auto", Facts(LEGACY, KUBE_PROXY), LEGACY, "what the iptables command is"),
        ("Auto", "NFT", Facts(LEGACY), NFT, "IptablesBackend is NFT"),
        ("Auto", "Auto", Facts(NFT), NFT, "what the iptables command is"),
        ("Auto", "Auto", Facts(LEGACY), LEGACY, "what the iptables command is"),
        ("Auto", "Auto", Facts(LEGACY, nft=RuleSurvey(0, HINT), legacy=RuleSurvey(9, HINT)), NFT, "KUBE-IPTABLES-HINT"),
        ("Auto", "Auto", Facts(NFT, nft=RuleSurvey(9), legacy=RuleSurvey(1, HINT)), LEGACY, "KUBE-IPTABLES-HINT"),
        ("Auto", "Auto", Facts(LEGACY, nft=RuleSurvey(2), legacy=RuleSurvey(1)), NFT, "1 rules in iptables-legacy, 2"),
        ("Auto", "Auto", Facts(NFT, nft=RuleSurvey(2), legacy=RuleSurvey(2)), LEGACY, "2 rules in iptables-legacy"),
    ],
)
def test_decision(mode: str, variant: str, facts: Facts, backend: Backend, reason: str) -> None:
    settings = replace(Settings(), nftables_mode=NFTablesMode(mode), iptables_backend=IptablesBackend(variant))
    choice = decide(settings, facts)
    assert choice.backend is backend
    assert reason in choice.reason


def test_survey_counts_rules_that_are_not_ours() -> None:
    text = (
        "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n*filter\n:FORWARD ACCEPT [0:0]\n:cali-FORWARD - [0:0]\n"
        ":KUBE-KUBELET-CANARY - [0:0]\n:fpy-x - [0:0]\n"
        "-A FORWARD -j fpy-x\n-A fpy-x -j DROP\n-A FORWARD -j ACCEPT\nCOMMIT\n"
    )
    assert survey_text(text) == RuleSurvey(1, ("KUBE-KUBELET-CANARY",), ("cali-FORWARD",))


def test_survey_does_not_read_the_comments_of_rules() -> None:
    comment = "two\n:cali-x - [0:0]\n-A FORWARD -j DROP\nlines"
    text = f'*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m comment --comment "{comment}" -j ACCEPT\nCOMMIT\n'
    assert survey_text(text) == RuleSurvey(1)


def test_felix_in_use_gives_evidence() -> None:
    assert felix_in_use(Facts(NFT, frozenset({("ip", "felixpy"), ("ip", "filter")}), RuleSurvey(5))) is None
    assert "ip6 calico" in (felix_in_use(Facts(nft_tables=frozenset({("ip6", "calico")}))) or "")
    legacy = felix_in_use(Facts(legacy=RuleSurvey(felix_chains=("cali-FORWARD", "cali-INPUT")))) or ""
    assert "iptables-legacy chain cali-FORWARD and 1 more" in legacy


def test_looking_at_an_empty_host_changes_nothing(network: None) -> None:
    facts = asyncio.run(gather())
    assert (facts.nft_tables, facts.nft, facts.legacy) == (frozenset(), RuleSurvey(), RuleSurvey())
    expected = NFT if "nf_tables" in output("iptables", "--version") else LEGACY
    assert facts.default_variant is expected
    assert asyncio.run(detect(Settings())).backend is expected
    assert output("nft", "list", "tables") == ""
    assert Path("/proc/thread-self/net/ip_tables_names").read_text() == ""


def test_rules_on_the_host_are_found(network: None) -> None:
    output("iptables-legacy", "-A", "FORWARD", "-j", "ACCEPT")
    output("ip6tables-nft", "-t", "mangle", "-N", "KUBE-IPTABLES-HINT")
    output("nft", "add", "table", "ip", "calico")
    facts = asyncio.run(gather())
    assert facts.legacy == RuleSurvey(1)
    assert facts.nft == RuleSurvey(0, HINT)
    assert facts.nft_tables == {("ip", "calico"), ("ip6", "mangle")}
    assert asyncio.run(detect(Settings())).backend is NFT
    output("nft", "add", "table", "ip", "kube-proxy")
    assert asyncio.run(detect(Settings())).backend is NFTABLES


def test_a_host_without_iptables_uses_nftables(network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("felixpy.dataplane.iptables.tools._SEARCH_PATH", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    assert asyncio.run(detect(Settings())).backend is NFTABLES
