"""Random histories of every kind: piece by piece is as from scratch, and both are what the second opinion says."""

from __future__ import annotations

import ipaddress
from itertools import product

from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from felixpy.calc.policy.classes import (
    ClassKey,
    Direction,
    EndpointClass,
    EndpointClasses,
    EndpointClassKey,
    PolicyKey,
    PolicyValue,
)
from felixpy.model.parse import parse_resource
from felixpy.model.policy import Policy, Profile
from felixpy.model.resources import Absent, Resource, ResourceKey
from tests.policy.node import Node
from tests.policy.oracle import Oracle, Question
from tests.policy.strategies import ADDRESSES, CALICO, OBJECTS, START, Object, made
from tests.policy.walk import Packet

OUTSIDE = ("10.9.9.9", "203.0.113.9", "2001:db8::9")
TRANSPORT = [(6, 80), (6, 81), (17, 80), (17, 8080), (132, 80), (47, 0)]


def parsed(obj: Object) -> Resource:
    found = parse_resource(obj)
    assert found is not None and not isinstance(found, Absent)
    if isinstance(found, Policy | Profile):
        assert found.problems == (), (obj, found.problems)
    return found


def questions(endpoint: Object, way: Direction) -> list[tuple[Question, Packet]]:
    found = []
    for own, other in product(endpoint["spec"]["ipNetworks"], (*ADDRESSES, *OUTSIDE)):
        if ipaddress.ip_address(own).version != ipaddress.ip_address(other).version:
            continue
        source, destination = (other, own) if way is Direction.INGRESS else (own, other)
        version = ipaddress.ip_address(own).version
        echoes = [(1 if version == 4 else 58, 0, (kind, code)) for kind, code in ((8, 0), (128, 1), (3, 3))]
        for protocol, port, icmp in [*((p, n, (0, 0)) for p, n in TRANSPORT), *echoes]:
            for source_port in (40000, 80) if (protocol, port) == (6, 80) else (40000,):
                question = Question(source, destination, protocol, source_port, port, icmp)
                packed = [ipaddress.ip_address(text).packed for text in (source, destination)]
                found.append((question, Packet(packed[0], packed[1], protocol, source_port, port, icmp)))
    return found


def by_name(entries: dict[PolicyKey, PolicyValue]) -> dict[object, object]:
    """Entries without the numbers of classes, which tell of the past."""
    names = {
        (key.family, key.direction, key.number): value
        for key, value in entries.items()
        if isinstance(key, ClassKey) and isinstance(value, EndpointClass)
    }
    found: dict[object, object] = {}
    for key, value in entries.items():
        if isinstance(key, ClassKey):
            assert isinstance(value, EndpointClass)
            assert (key.family, key.direction, value.name) not in found  # one class of a name
            found[key.family, key.direction, value.name] = value
        elif isinstance(key, EndpointClassKey):
            assert isinstance(value, EndpointClasses)
            found[key] = [
                names.get((key.family, way, number))
                for way, number in zip((Direction.INGRESS, Direction.EGRESS), value, strict=True)
            ]
        else:
            found[key] = value
    return found


def agree(node: Node, objects: dict[ResourceKey, Object]) -> tuple[int, int]:
    """Every question about every endpoint of the node is answered alike; how many were asked, and how many allowed."""
    oracle, world, asked, allowed = Oracle(objects.values()), node.world(), 0, 0
    for key, obj in objects.items():
        endpoint = node.store.endpoints.get(key)
        if endpoint is None or node.store.interface_owner(endpoint.interface) != key:
            continue
        for way in Direction:
            for question, packet in questions(obj, way):
                expected = oracle.allows(key.name, way.value, question)
                assert world.decides(endpoint.interface, way, packet) is expected, (key, way, question)
                asked, allowed = asked + 1, allowed + expected
    return asked, allowed


STEPS = st.lists(
    st.tuples(OBJECTS, st.sampled_from(["put", "put", "put", "put", "drop"]), st.booleans()), min_size=1, max_size=30
)


ONLY_IPV6 = {"namespaceSelector": "global()", "notNets": ["fd00::/64"]}
PREFIXES_THAT_NO_RULE_OF_THEIR_FAMILY_NAMES: tuple[Object, ...] = (
    made(
        CALICO,
        "WorkloadEndpoint",
        "w1",
        {"node": "n1", "interfaceName": "caliw1", "ipNetworks": [], "profiles": ["p1"]},
        "x",
    ),
    made(CALICO, "GlobalNetworkSet", "e1", {"nets": ["10.0.0.0/24"]}),
    made(CALICO, "Profile", "p1", {"egress": [{"action": "Allow", "destination": ONLY_IPV6}]}),
)


@example(start=PREFIXES_THAT_NO_RULE_OF_THEIR_FAMILY_NAMES, more=[], completes=0)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(start=START, more=STEPS, completes=st.integers(0, 10))
def test_any_history_ends_as_from_scratch_and_as_the_oracle_says(
    start: tuple[Object, ...], more: list[tuple[Object, str, bool]], completes: int
) -> None:
    steps = [*((obj, "put", False) for obj in start), *more]
    node = Node("n1", complete=False)
    objects: dict[ResourceKey, Object] = {}
    for number, (obj, verb, flush) in enumerate(steps):
        resource = parsed(obj)
        if number == completes:
            node.complete()
        node.apply(resource.key, resource if verb == "put" else None, flush=flush)
        if verb == "put":
            objects[resource.key] = obj
        else:
            objects.pop(resource.key, None)
    node.complete()
    node.flush()
    scratch = Node("n1").put_all(parsed(obj) for obj in reversed(objects.values()))
    assert by_name(node.told) == by_name(scratch.told)
    asked, allowed = agree(node, objects)
    event(f"questions: {asked // 100 * 100}")
    event(f"allowed: {round(10 * allowed / asked) * 10 if asked else 0} %")
    assert len(node.policy.problems) == len(scratch.policy.problems)
    node.drop(*objects)
    assert node.told == {}
    assert_forgotten(node)


def assert_forgotten(node: Node) -> None:
    """Nothing is kept of objects that are gone."""
    policy = node.policy
    assert (len(policy.peers), len(policy.workloads), len(policy.hosts)) == (0, 0, 0)
    for selection in (policy.peers, policy.workloads, policy.hosts):
        kept = {name: value for name, value in vars(selection).items() if name not in ("_profiles", "_moved")}
        assert not any(kept.values()), kept
    assert len(node.store) == 0
    assert len(node.store.identities) == 0
