"""Which back-end a node should use, and whether a Felix is at work on it.

``gather`` looks at the host once; ``decide`` and ``felix_in_use`` are pure. Invariant: looking changes nothing, not
even by loading a module or bringing a table into being. Must never choose silently: every choice has its reason.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

from msgspec import Struct

from felixpy.config import IptablesBackend, NFTablesMode, Settings
from felixpy.dataplane.backend import Backend
from felixpy.dataplane.iptables.layout import CHAIN_PREFIX
from felixpy.dataplane.iptables.legacy import legacy_in_use
from felixpy.dataplane.iptables.nft_rules import IPTABLES_TABLES, table_names
from felixpy.dataplane.iptables.save_text import save_lines
from felixpy.dataplane.iptables.tools import Tools, find_tool, tool_name
from felixpy.model.net import FAMILIES, Family
from felixpy.netlink.transport import NETLINK_NETFILTER, NetlinkSocket

HINT_CHAINS = frozenset({"KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"})
"""Chains that the kubelet puts into the mangle table of the variant that the node uses (KEP-3178)."""

NFT_FAMILIES = (("ip", Family.V4), ("ip6", Family.V6))


class RuleSurvey(NamedTuple):
    """What one iptables variant holds: rules that are not ours, hint chains found, Felix's chains found."""

    rules: int = 0
    hints: tuple[str, ...] = ()
    felix_chains: tuple[str, ...] = ()


NOTHING = RuleSurvey()


class Facts(Struct, frozen=True):
    """The host as it is. ``default_variant`` is what the host's ``iptables`` command is, None without one."""

    default_variant: Backend | None = None
    nft_tables: frozenset[tuple[str, str]] = frozenset()  # ("ip" or "ip6", table name)
    nft: RuleSurvey = NOTHING
    legacy: RuleSurvey = NOTHING


class Choice(NamedTuple):
    """A back-end and the evidence for it, for the log and the status."""

    backend: Backend
    reason: str


async def detect(settings: Settings) -> Choice:
    """Choose the back-end for this host.

    Raises:
        OSError: the kernel's nftables cannot be asked.
        FilterError: an iptables tool did not end.
    """
    return decide(settings, await gather())


def decide(settings: Settings, facts: Facts) -> Choice:
    """The back-end that the settings and the host ask for (reference/felix.md §2.1, §4.4). Pure."""
    if settings.nftables_mode is NFTablesMode.ENABLED:
        return Choice(Backend.NFTABLES, "NFTablesMode is Enabled")
    if settings.nftables_mode is NFTablesMode.AUTO:
        for family in ("ip", "ip6"):
            if (family, "kube-proxy") in facts.nft_tables:
                return Choice(Backend.NFTABLES, f"kube-proxy uses the nftables table {family} kube-proxy")
        if facts.default_variant is None and settings.iptables_backend is IptablesBackend.AUTO:
            return Choice(Backend.NFTABLES, "no iptables command is installed")
    if settings.iptables_backend is IptablesBackend.LEGACY:
        return Choice(Backend.LEGACY, "IptablesBackend is Legacy")
    if settings.iptables_backend is IptablesBackend.NFT:
        return Choice(Backend.NFT_VARIANT, "IptablesBackend is NFT")
    return _decide_variant(facts)


def _decide_variant(facts: Facts) -> Choice:
    for backend, survey in ((Backend.NFT_VARIANT, facts.nft), (Backend.LEGACY, facts.legacy)):
        if survey.hints:
            return Choice(backend, f"Kubernetes left its hint chain {survey.hints[0]} there")
    counts = f"{facts.legacy.rules} rules in iptables-legacy, {facts.nft.rules} in iptables-nft"
    if facts.nft.rules > facts.legacy.rules:
        return Choice(Backend.NFT_VARIANT, counts)
    if facts.legacy.rules:
        return Choice(Backend.LEGACY, counts)
    if facts.default_variant is None:
        return Choice(Backend.NFT_VARIANT, "nothing uses iptables yet and no iptables command is installed")
    return Choice(facts.default_variant, "nothing uses iptables yet; this is what the iptables command is")


def felix_in_use(facts: Facts) -> str | None:
    """Evidence that a Felix programs this node, or None."""
    evidence = [f"the nftables table {family} calico" for family, name in sorted(facts.nft_tables) if name == "calico"]
    for variant, survey in (("nft", facts.nft), ("legacy", facts.legacy)):
        if survey.felix_chains:
            evidence.append(
                f"the iptables-{variant} chain {survey.felix_chains[0]} and {len(survey.felix_chains) - 1} more"
            )
    if not evidence:
        return None
    return (
        f"a Calico Felix runs or ran on this node ({', '.join(evidence)}); stop it and run felixpy takeover,"
        " which keeps workloads connected, or remove Calico from the node and restart it"
    )


async def gather(tools: Tools | None = None) -> Facts:
    """Look at the host.

    Raises:
        OSError: the kernel's nftables cannot be asked.
        FilterError: an iptables tool did not end.
    """
    tools = tools or Tools()
    with contextlib.closing(NetlinkSocket(NETLINK_NETFILTER)) as netlink:
        nft_tables = frozenset(
            (prefix, name) for prefix, family in NFT_FAMILIES for name in table_names(netlink, family)
        )
    nft_families = [
        family for prefix, family in NFT_FAMILIES if any((prefix, name) in nft_tables for name in IPTABLES_TABLES)
    ]
    return Facts(
        default_variant=await _default_variant(tools),
        nft_tables=nft_tables,
        nft=await _survey(tools, "nft", nft_families),
        legacy=await _survey(tools, "legacy", [family for family in FAMILIES if legacy_in_use(family)]),
    )


def survey_text(text: str) -> RuleSurvey:
    """Survey the output of a ``-save`` tool. Pure."""
    table, rules = "", 0
    hints: list[str] = []
    felix: list[str] = []
    for line in save_lines(text):
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith(":"):
            chain = line[1:].split(" ", 1)[0]
            if table == "mangle" and chain in HINT_CHAINS:
                hints.append(chain)
            if table == "filter" and chain.startswith("cali-"):
                felix.append(chain)
        elif line.startswith("-A ") and CHAIN_PREFIX not in line:
            rules += 1
    return RuleSurvey(rules, tuple(hints), tuple(felix))


async def _survey(tools: Tools, variant: str, families: list[Family]) -> RuleSurvey:
    surveys = []
    for family in families:
        name = tool_name(family, variant, "save")
        if find_tool(name):
            surveys.append(survey_text((await tools.run(name)).output))
    return RuleSurvey(
        sum(survey.rules for survey in surveys),
        tuple(hint for survey in surveys for hint in survey.hints),
        tuple(chain for survey in surveys for chain in survey.felix_chains),
    )


async def _default_variant(tools: Tools) -> Backend | None:
    """What ``iptables --version`` says: ``iptables v1.8.9 (nf_tables)``; before 1.8 there was legacy only."""
    if find_tool("iptables") is None:
        return None
    finished = await tools.run("iptables", "--version")
    return Backend.NFT_VARIANT if "nf_tables" in finished.output else Backend.LEGACY
