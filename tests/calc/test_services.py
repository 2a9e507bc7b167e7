"""Ranges of Services: what a BGPConfiguration says, whose counts, and where the rule stands that looks at them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from felixpy.calc.entries import SetName
from felixpy.calc.policy.classes import Direction, HostEndpointChains, HostEndpointKey
from felixpy.calc.policy.host_layout import joined
from felixpy.calc.policy.layout import active_chains
from felixpy.calc.rule import ChainKey, Chains, DestinationIn, Jump, OutInterface, Rule, SetMark, Table, Verdict
from felixpy.calc.rules import RuleSettings, desired_chains
from felixpy.config import ServiceLoopPrevention, Settings
from felixpy.model.net import FAMILIES, Family
from felixpy.model.parse import parse_resource
from felixpy.model.resources import BGPConfiguration, Kind, ResourceKey, Update
from tests.calc.samples import HOST_FACTS, SETTINGS, calculated, members, nets, service_ranges
from tests.policy.handmade import host_endpoints

LETS_OUT = (Verdict.ACCEPT, Jump("hosts-via-out"))
KEY = ResourceKey(Kind.BGP_CONFIGURATION, "default")


def parsed(**spec: object) -> BGPConfiguration:
    found = parse_resource(
        {
            "apiVersion": "projectcalico.org/v3",
            "kind": "BGPConfiguration",
            "metadata": {"name": "default"},
            "spec": spec,
        }
    )
    assert isinstance(found, BGPConfiguration)
    return found


def test_the_three_lists_are_read_and_what_is_for_bgp_speakers_is_known() -> None:
    told: list[str] = []
    obj = {
        "apiVersion": "projectcalico.org/v3", "kind": "BGPConfiguration", "metadata": {"name": "default"},
        "spec": {
            "asNumber": 64512, "nodeToNodeMeshEnabled": False, "logSeverityScreen": "Info", "more": 1,
            "serviceClusterIPs": [{"cidr": "10.96.0.0/12"}, {"cidr": "fd00:96::/112"}],
            "serviceExternalIPs": [{"cidr": "192.0.2.7/32"}, {"cidr": "10.96.0.0/12"}],
            "serviceLoadBalancerIPs": [{"cidr": "203.0.113.9/24"}],
        },
    }  # fmt: skip
    ranges = nets("10.96.0.0/12", "fd00:96::/112", "192.0.2.7/32", "203.0.113.0/24")
    assert parse_resource(obj, told.append) == BGPConfiguration(KEY, ranges)
    assert told == ["BGPConfiguration field spec.more"]


@pytest.mark.parametrize("wrong", [{"cidr": "10.96.0.0/33"}, {"cidr": "web"}, {"cidr": ""}, {}, {"cidr": "0.0.0.0/0"}])
def test_a_range_that_is_none_is_left_out_and_told(wrong: dict[str, str]) -> None:
    found = parsed(serviceExternalIPs=[wrong, {"cidr": "192.0.2.0/24"}])
    assert found.service_ranges == nets("192.0.2.0/24")
    (problem,) = found.problems
    assert problem.startswith("spec.serviceExternalIPs[0].cidr: ") and problem.endswith(": it is left out")
    calculation = calculated(found)
    assert members(calculation, SetName.SERVICE_RANGES) == {"service-ranges { 192.0.2.0/24 }"}
    assert calculation.problems == {KEY: problem}


def test_ranges_are_members_but_those_that_a_wider_one_covers() -> None:
    calculation = calculated(service_ranges("10.96.0.0/12", "10.100.0.0/16", "192.0.2.7/32", "fd00:96::/112"))
    assert members(calculation, SetName.SERVICE_RANGES) == {
        "service-ranges { 10.96.0.0/12 }", "service-ranges { 192.0.2.7 }", "service-ranges { fd00:96::/112 }"
    }  # fmt: skip


def test_only_the_default_counts() -> None:
    calculation = calculated(service_ranges("10.96.0.0/12", name="node.n1"), service_ranges("10.0.0.0/8", name="other"))
    assert members(calculation, SetName.SERVICE_RANGES) == set()


def test_a_family_that_is_not_supported_has_no_members() -> None:
    found = service_ranges("10.96.0.0/12", "fd00:96::/112")
    without = calculated(found, settings=replace(SETTINGS, ipv6_support=False))
    assert members(without, SetName.SERVICE_RANGES) == {"service-ranges { 10.96.0.0/12 }"}
    without = calculated(found, host=replace(HOST_FACTS, ipv6=False))
    assert members(without, SetName.SERVICE_RANGES) == {"service-ranges { 10.96.0.0/12 }"}


def test_ranges_follow_and_go() -> None:
    calculation = calculated(service_ranges("10.96.0.0/12"), service_ranges("10.0.0.0/8"))
    assert members(calculation, SetName.SERVICE_RANGES) == {"service-ranges { 10.0.0.0/8 }"}
    calculation.calculate(calculation.store.apply(Update(KEY, None)))
    assert members(calculation, SetName.SERVICE_RANGES) == set()
    assert len(calculation.store) == 0


def rule_settings(action: ServiceLoopPrevention, family: Family, *, nftables: bool) -> RuleSettings:
    return RuleSettings.of(Settings(service_loop_prevention=action), family, nftables=nftables)


def layouts(settings: RuleSettings) -> Iterator[tuple[set[str], Chains]]:
    """Where what leaves the node is accepted, and the chains: without and with policy, and with host endpoints."""
    hosts: dict[HostEndpointKey, HostEndpointChains] = {}
    for key, value in host_endpoints(settings.family).items():
        if isinstance(key, HostEndpointKey) and isinstance(value, HostEndpointChains):
            hosts[key] = value
    for is_active, policy in ((False, set()), (True, {"e-done"})):
        chains = desired_chains(settings) | (active_chains(settings, dict.fromkeys(Direction)) if is_active else {})
        yield {"FORWARD", *policy}, chains
        yield {"FORWARD", "via-done", *policy}, joined(chains, hosts, settings, is_active=is_active)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
@pytest.mark.parametrize("nftables", [True, False], ids=["nftables", "iptables"])
def test_the_rule_stands_behind_workloads_and_before_all_that_lets_the_rest_out(family: Family, nftables: bool) -> None:
    for action, verdict in ((ServiceLoopPrevention.DROP, Verdict.DROP), (ServiceLoopPrevention.REJECT, Verdict.REJECT)):
        rule = Rule((DestinationIn(SetName.SERVICE_RANGES),), verdict, "ServiceLoopPrevention")
        for places, chains in layouts(rule_settings(action, family, nftables=nftables)):
            assert {key.name for key, rules in chains.items() if rule in rules and isinstance(key, ChainKey)} == places
            for place in places:
                rules = chains[ChainKey(Table.FILTER, place)]
                at = rules.index(rule)
                assert isinstance(rules[at - 1].matches[0], OutInterface), "what is for a workload went its way"
                assert all(one.action in LETS_OUT or isinstance(one.action, SetMark) for one in rules[at + 1 :])
                assert not any(one.action in LETS_OUT for one in rules[:at])


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_disabled_there_is_no_rule(family: Family) -> None:
    for nftables in (True, False):
        for _, chains in layouts(rule_settings(ServiceLoopPrevention.DISABLED, family, nftables=nftables)):
            assert not any("service-ranges" in str(rules) for rules in chains.values())
