"""The product's walk: it decides as the entries say by these tests' own opinion, and names who decides."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from felixpy.calc.policy.classes import (
    Direction,
    EndOfTier,
    EndpointClassKey,
    HostEndpointChains,
    HostEndpointKey,
    TierChains,
)
from felixpy.calc.policy.host_layout import joined
from felixpy.calc.policy.walk import Packet, Surroundings, Walk
from felixpy.calc.rule import Verdict
from felixpy.calc.rules import RuleSettings, desired_chains
from felixpy.config import EndpointToHostAction, Failsafe, Settings
from felixpy.model.net import Family, Net, parse_address
from felixpy.model.parse import parse_resource
from felixpy.model.resources import Absent, Resource, ResourceKey
from tests.policy import walk as second
from tests.policy.node import Node
from tests.policy.strategies import START, Object
from tests.policy.test_histories import parsed, questions

NODE, OTHER = "192.0.2.1", "192.0.2.7"
CALICO = "projectcalico.org/v3"


def walk_of(node: Node, own: tuple[str, ...] = (), **changed: Any) -> Walk:
    """Addresses outside are behind eth0."""
    there = {parse_address(text) for text in own}
    return Walk(
        node.policy.in_use(), node.store, Settings(**changed), Surroundings(there.__contains__, lambda address: "eth0")
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(start=START)
def test_the_walk_decides_as_the_entries_say(start: tuple[Object, ...]) -> None:
    node = Node("n1")
    objects: dict[ResourceKey, Object] = {}
    for obj in start:
        resource = parsed(obj)
        objects[resource.key] = obj
        node.apply(resource.key, resource, flush=False)
    node.flush()
    world, walk = node.world(), walk_of(node)
    for key, obj in objects.items():
        endpoint = node.store.endpoints.get(key)
        if endpoint is None or node.store.interface_owner(endpoint.interface) != key:
            continue
        for way in Direction:
            for _, asked in questions(obj, way):
                compare(node, world, walk, asked)


def compare(node: Node, world: second.World, walk: Walk, asked: second.Packet) -> None:
    packet = Packet(asked.source, asked.destination, asked.protocol, asked.source_port, asked.port, asked.icmp)
    judged = walk.judge(packet)
    expected = []
    for address, way in ((asked.source, Direction.EGRESS), (asked.destination, Direction.INGRESS)):
        if (interface := walk.interface_of(address)) and all(expected):
            known = EndpointClassKey(asked.family, interface) in world.entries  # else the interface is another one's
            expected.append(known and world.decides(interface, way, asked))
    assert [decision.allows for decision in judged.decisions] == expected, (packet, judged)
    assert judged.allowed is all(expected)


def made(kind: str, name: str, spec: dict[str, Any], **metadata: Any) -> Resource:
    found = parse_resource({"apiVersion": CALICO, "kind": kind, "metadata": {"name": name, **metadata}, "spec": spec})
    assert found is not None and not isinstance(found, Absent)
    return found


def host_node(*more: Resource) -> Node:
    node = Node("n1")
    web = {"node": "n1", "interfaceName": "cali1", "ipNetworks": ["10.0.0.1"], "orchestrator": "k8s"}
    allow = made("GlobalNetworkPolicy", "all", {"selector": "has(app)", "ingress": [{"action": "Allow"}],
                                                "egress": [{"action": "Allow"}]})  # fmt: skip
    uplink = made("HostEndpoint", "uplink", {"node": "n1", "interfaceName": "eth0"}, labels={"host": "n1"})
    return node.put(made("WorkloadEndpoint", "web", web, namespace="x", labels={"app": "web"}), allow, uplink, *more)


def host_policy(name: str, *rules: dict[str, Any], direction: str = "ingress", **spec: Any) -> Resource:
    types = [direction.capitalize()]
    return made("GlobalNetworkPolicy", name, {"selector": "has(host)", "types": types, direction: rules, **spec})


TCP_80 = {"protocol": "TCP", "destination": {"ports": [80]}}


@pytest.mark.parametrize(
    ("source", "destination", "port", "policies", "allowed", "words"),
    [
        (OTHER, NODE, 80, [], False, "no profile allows it (ingress)"),
        (OTHER, NODE, 22, [], True, "failsafe ports (ingress)"),
        (OTHER, NODE, 80, [host_policy("in", {"action": "Allow", **TCP_80})], True,
         "tier default, GlobalNetworkPolicy in ingress[0]"),
        (OTHER, NODE, 81, [host_policy("in", {"action": "Allow", **TCP_80})], False, "end of tier default (ingress)"),
        (NODE, OTHER, 81, [host_policy("out", {"action": "Allow", **TCP_80}, direction="egress")], False,
         "end of tier default (egress)"),
        (NODE, "10.0.0.1", 81, [host_policy("out", direction="egress")], True, None),
        (OTHER, "10.0.0.1", 80, [host_policy("in")], True, "tier default, GlobalNetworkPolicy all ingress[0]"),
        (OTHER, "10.0.0.1", 80, [host_policy("via", applyOnForward=True)], False, "end of tier default (ingress)"),
        (OTHER, "10.0.0.1", 22, [host_policy("via", applyOnForward=True)], False, "end of tier default (ingress)"),
        ("10.0.0.1", OTHER, 80, [host_policy("via", direction="egress", applyOnForward=True)], False,
         "end of tier default (egress)"),
        (OTHER, "10.0.0.1", 80, [host_policy("pre", {"action": "Deny"}, applyOnForward=True, preDNAT=True)], False,
         "tier default, GlobalNetworkPolicy pre ingress[0]"),
        (OTHER, NODE, 80, [host_policy("pre", {"action": "Allow"}, applyOnForward=True, preDNAT=True)], True,
         "tier default, GlobalNetworkPolicy pre ingress[0]"),
        (OTHER, NODE, 80, [host_policy("raw", {"action": "Deny"}, applyOnForward=True, doNotTrack=True)], False,
         "tier default, GlobalNetworkPolicy raw ingress[0]"),
        ("10.0.0.1", NODE, 80, [host_policy("in")], False, "DefaultEndpointToHostAction=Drop (egress)"),
    ],
)  # fmt: skip
def test_host_endpoints_are_walked_as_packets_meet_them(
    source: str, destination: str, port: int, policies: list[Resource], allowed: bool, words: str | None
) -> None:
    node = host_node(*policies)
    judged = walk_of(node, (NODE,)).judge(Packet(parse_address(source), parse_address(destination), 6, 40000, port))
    assert judged.allowed is allowed
    assert (str(judged.decisions[-1]) if judged.decisions else None) == words


def test_before_translation_is_judged_by_what_was_dialled() -> None:
    node = host_node(host_policy("pre", {"action": "Deny", "protocol": "TCP", "destination": {"ports": [30080]}},
                                 applyOnForward=True, preDNAT=True))  # fmt: skip
    walk = walk_of(node, (NODE,), default_endpoint_to_host_action=EndpointToHostAction.ACCEPT)
    pod, own, other = map(parse_address, ("10.0.0.1", NODE, OTHER))
    assert not walk.judge(Packet(other, pod, 6, 40000, 80, None, (own, 30080))).allowed
    assert walk.judge(Packet(other, pod, 6, 40000, 80, None, (own, 30081))).allowed
    assert walk.judge(Packet(other, pod, 6, 40000, 80)).allowed


def test_what_the_agent_is_told_by_is_never_judged() -> None:
    node = host_node(host_policy("out", {"action": "Deny"}, direction="egress"))
    broker = Failsafe(6, 1883, Net.parse(f"{OTHER}/32"))
    surroundings = Surroundings(lambda address: address == parse_address(NODE), lambda address: "eth0", (broker,))
    walk = Walk(node.policy.in_use(), node.store, Settings(), surroundings)
    own, other = parse_address(NODE), parse_address(OTHER)
    found = {port: walk.judge(Packet(own, other, 6, 40000, port)).allowed for port in (1883, 1884)}
    assert found == {1883: True, 1884: False}


@pytest.mark.parametrize("place", ["hosts-via-in", "hosts-via-out", "hosts-pre", "hosts-raw-in", "hosts-raw-out"])
def test_an_interface_with_a_host_endpoint_of_its_own_is_never_asked_what_any_other_is(place: str) -> None:
    """By the rules that the kernel gets: eth0 has a host endpoint that asks nothing there, and ``*`` one that does."""
    asked = (TierChains("default", EndOfTier.DENY, ("x",), (False,)),)
    nothing = HostEndpointChains((), (), (), (), (), (), (), (), (), "eth0")
    everything = nothing._replace(forward_ingress=asked, forward_egress=asked, pre_dnat=asked,
                                  untracked_ingress=asked, untracked_egress=asked)  # fmt: skip
    rules = RuleSettings.of(Settings(), Family.V4, nftables=True)
    hosts = {HostEndpointKey(Family.V4, "eth0"): nothing, HostEndpointKey(Family.V4, "*"): everything}
    chains = joined(desired_chains(rules), hosts, rules, is_active=False)
    (chain,) = [found for key, found in chains.items() if getattr(key, "name", "") == place]
    of_eth0 = [one.action for one in chain if one.matches and getattr(one.matches[0], "name", "") == "eth0"]
    assert of_eth0 == [Verdict.RETURN]
