"""A change calculated beside the present: what is told is the difference between two calculations from scratch."""

from __future__ import annotations

import functools
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from felixpy.agent.agent import Agent
from felixpy.calc.policy.classes import Direction, EndpointClassKey
from felixpy.calc.policy.settings import PolicySettings
from felixpy.calc.policy.walk import ICMP, Packet
from felixpy.config import Settings
from felixpy.model.documents import load_text
from felixpy.model.net import FAMILIES, Family, format_address
from felixpy.model.resources import ResourceKey, Update
from felixpy.netlink.connections import Stage
from felixpy.plan import change, connections
from felixpy.plan.connections import Seen
from felixpy.plan.outlook import outlook
from tests.policy.cases import Case, load
from tests.policy.node import Node
from tests.policy.strategies import OBJECTS, START, Object, calico_policies, cluster_policies, kubernetes_policies
from tests.policy.test_histories import parsed, questions
from tests.policy.walk import Packet as Asked
from tests.policy.walk import World

CALICO = "projectcalico.org/v3"
OPEN = Settings(nodename="n1", interface_prefix=("",))


def agent_with(objects: Iterable[Object], settings: Settings = OPEN) -> Agent:
    """An agent that has no kernel: everything is known, nothing written."""
    agent = Agent(settings, ())
    for obj in objects:
        resource = parsed(obj)
        agent.calculation.calculate(agent.store.apply(Update(resource.key, resource)) | {resource.key})
    agent.calculation.complete()
    agent.complete = True
    return agent


def written(apply: Iterable[Object] = (), delete: Iterable[Object] = ()) -> bytes:
    documents = [list(load_text(json.dumps(list(objects)).encode(), "files")) for objects in (apply, delete)]
    return change.write(*documents).data


def told(agent: Agent, data: bytes, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(connections, "read_seen", lambda: seen)
    found: dict[str, Any] = json.loads(outlook(agent, data))
    return found


def seen_of(packets: Iterable[Packet], stage: Stage = Stage.LIVE) -> Seen:
    return Seen({packet: Counter({stage: 1}) for packet in packets})


# --- the property --------------------------------------------------------------------------------------------------

POLICIES = st.one_of(
    *(calico_policies("GlobalNetworkPolicy", name) for name in ("g1", "g2")),
    calico_policies("NetworkPolicy", "g1", "x"),
    kubernetes_policies("g1", "x"),
    cluster_policies("c1"),
)
STEPS = st.lists(
    st.tuples(st.one_of(POLICIES, OBJECTS), st.sampled_from(["put", "put", "drop"])), min_size=1, max_size=3
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(start=START, more=st.lists(OBJECTS, max_size=6), steps=STEPS)
def test_a_plan_is_the_difference_between_two_calculations_from_scratch(
    monkeypatch: pytest.MonkeyPatch, start: tuple[Object, ...], more: list[Object], steps: list[tuple[Object, str]]
) -> None:
    before = keyed([*start, *(obj for obj in more if obj["kind"] != "HostEndpoint")])
    steps = [(obj, verb) for obj, verb in steps if obj["kind"] != "HostEndpoint"]
    steps = list({parsed(obj).key: (obj, verb) for obj, verb in steps}.values())
    after = dict(before)
    for obj, verb in steps:
        after.pop(parsed(obj).key, None)
        if verb == "put":
            after[parsed(obj).key] = obj
    if not steps:
        return
    puts, drops = ([obj for obj, verb in steps if verb == wanted] for wanted in ("put", "drop"))
    packets = {packet for obj in {**before, **after}.values() for packet in asked_of(obj)}
    said = told(agent_with(before.values()), written(puts, drops), seen_of(packets), monkeypatch)

    old, new = scratch(before), scratch(after)
    expected: dict[str, set[tuple[object, ...]]] = {"cut": set(), "opened": set()}
    for packet in packets:
        fares = [verdict(node, packet) for node in (old, new)]
        left = any(place(old, end) not in ("", place(new, end)) for end in packet[:2])
        if left:
            fares[1] = False
        if fares[0] is not fares[1] and None not in fares:
            expected["opened" if fares[1] else "cut"].add(pair_of(packet))
    found: dict[str, set[tuple[object, ...]]] = {"cut": set(), "opened": set()}
    for row in said["connections"]["pairs"]:
        icmp = tuple(row["icmp"]) if row["icmp"] else None
        found[row["effect"]].add((row["source"], row["destination"], row["protocol"], row["port"], icmp))
    assert found == expected
    event(f"cut: {bool(found['cut'])}, opened: {bool(found['opened'])}")
    assert classes_moved(said) == differing(old, new)


def keyed(objects: Iterable[Object]) -> dict[ResourceKey, Object]:
    return {parsed(obj).key: obj for obj in objects}


def scratch(objects: Mapping[ResourceKey, Object]) -> Node:
    return Node("n1", PolicySettings(FAMILIES)).put_all(parsed(obj) for obj in objects.values())


def asked_of(obj: Object) -> list[Packet]:
    if obj["kind"] != "WorkloadEndpoint":
        return []
    asked = [packet for way in Direction for _, packet in questions(obj, way)]
    return [
        Packet(one.source, one.destination, one.protocol, 0 if one.protocol in (1, 58, 47) else one.source_port,
               0 if one.protocol in (1, 58, 47) else one.port, one.icmp if one.protocol in (1, 58) else None)
        for one in asked[::3]
    ]  # fmt: skip


def pair_of(packet: Packet) -> tuple[object, ...]:
    return format_address(packet.source), format_address(packet.destination), *packet[2:3], packet.port, packet.icmp


def place(node: Node, address: object) -> str:
    assert isinstance(address, bytes)
    for key, endpoint in node.store.endpoints.items():
        for own in endpoint.addresses:
            if own.packed == address and node.store.address_owner(own) == key:
                return endpoint.interface
    return ""


def verdict(node: Node, packet: Packet) -> bool | None:
    """By the second opinion: whether both ends let it pass; None if neither is here."""
    world = world_of(node)
    asked = Asked(packet.source, packet.destination, packet.protocol, packet.source_port, packet.port,
                  packet.icmp or (0, 0))  # fmt: skip
    ends = ((packet.source, Direction.EGRESS), (packet.destination, Direction.INGRESS))
    found = [
        EndpointClassKey(packet.family, there) in world.entries and world.decides(there, way, asked)
        for end, way in ends
        if (there := place(node, end))
    ]
    return all(found) if found else True


@functools.lru_cache(4)
def world_of(node: Node) -> World:
    return node.world()


def classes_moved(said: Mapping[str, Any]) -> set[tuple[str, str]]:
    return {(row["direction"], name) for row in said["classes"] for name in row["names"]}


def differing(old: Node, new: Node) -> set[tuple[str, str]]:
    views = [dict(words_of(node)) for node in (old, new)]
    return {key for key in views[0].keys() | views[1].keys() if views[0].get(key) != views[1].get(key)}


def words_of(node: Node) -> Iterable[tuple[tuple[str, str], str]]:
    """What the endpoint of each interface is asked, in words, by direction and name."""
    asked = {(way, number): words for way, number, words, _ in node.policy.classes()}
    for key, endpoint in node.store.endpoints.items():
        if node.store.interface_owner(endpoint.interface) != key:
            continue
        numbers = node.policy.assignment.classes_of(key)
        if not endpoint.addresses:
            continue
        for way, number in zip(Direction, numbers, strict=True):
            yield (way.value, f"{key.namespace}/{key.name}"), asked[way.value, number]


# --- from one case to the next ---------------------------------------------------------------------------------------

CASES = [case for case in load() if not case.has_hosts]
PROBES = [(6, 80, None), (6, 81, None), (17, 53, None), (132, 80, None), (0, 0, (8, 0))]


def test_from_each_case_of_policy_to_the_next_a_plan_says_who_is_cut_and_who_let_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sums: Counter[str] = Counter()
    for one, next_one in itertools.pairwise(CASES):
        before, after = (keyed(dict(obj) for obj in case.objects()) for case in (one, next_one))
        if one.topology["pods"] != next_one.topology["pods"]:
            continue
        puts = [obj for key, obj in after.items() if before.get(key) != obj]
        drops = [obj for key, obj in before.items() if key not in after]
        if not (puts or drops):
            continue
        packets = list(all_pairs(one))
        said = told(agent_with(before.values()), written(puts, drops), seen_of(packets), monkeypatch)
        old, new = scratch(before), scratch(after)
        expected = {
            (pair_of(packet), "opened" if fares[1] else "cut")
            for packet in packets
            if (fares := [verdict(node, packet) for node in (old, new)])[0] is not fares[1]
        }
        found = {
            ((row["source"], row["destination"], row["protocol"], row["port"], row["icmp"] and tuple(row["icmp"])),
             row["effect"])
            for row in said["connections"]["pairs"]
        }  # fmt: skip
        assert found == expected, (one.name, next_one.name)
        assert classes_moved(said) <= differing(old, new)
        assert sum(row["endpoints"] for row in said["classes"]) == len(differing(old, new))
        sums.update(effect for _, effect in found)
    assert min(sums["cut"], sums["opened"]) > 1000, sums


def all_pairs(case: Case) -> Iterable[Packet]:
    names = [*case.pods(), "ext1"]
    for family in FAMILIES:
        for source, destination in itertools.permutations(names, 2):
            ends = case.address(source, family), case.address(destination, family)
            for protocol, port, icmp in PROBES:
                number = protocol or ICMP[family]
                kind = (128, 0) if icmp and family is Family.V6 else icmp
                yield Packet(*ends, number, 40000 if port else 0, port, kind)
