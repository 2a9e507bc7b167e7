"""The calculation of policy by tables: order, classes, numbers, sets, host endpoints, and what a change tells."""

from __future__ import annotations

from typing import Any

import pytest

from felixpy.calc.policy.classes import (
    ClassKey,
    Direction,
    EndOfTier,
    EndpointClass,
    EndpointClasses,
    EndpointClassKey,
    HostEndpointChains,
    HostEndpointKey,
    MemberKey,
    PolicyAction,
    PolicyChain,
    PolicyChainKey,
    PolicySet,
    PolicySetKey,
    Ports,
    TierChains,
    Use,
)
from felixpy.calc.policy.numbering import USUAL, Numbers
from felixpy.calc.policy.output import GONE
from felixpy.calc.policy.sets import without_covered
from felixpy.calc.policy.settings import PolicySettings
from felixpy.model.net import FAMILIES, Family, Net
from felixpy.model.parse import parse_resource
from felixpy.model.resources import Absent, Kind, Resource, ResourceKey
from tests.policy.node import Node

CALICO = "projectcalico.org/v3"
V4, V6 = Family.V4, Family.V6
ALLOW, DENY, PASS = ({"action": word} for word in ("Allow", "Deny", "Pass"))
OPEN = PolicySettings(FAMILIES)


def made(kind: str, name: str, spec: dict[str, Any] | None = None, version: str = CALICO, **metadata: Any) -> Resource:
    obj = {"apiVersion": version, "kind": kind, "metadata": {"name": name, **metadata}, "spec": spec or {}}
    found = parse_resource(obj)
    assert found is not None and not isinstance(found, Absent)
    return found


def pod(name: str, *addresses: str, node: str = "n1", interface: str = "", profiles: Any = (), ports: Any = (),
        **labels: str) -> Resource:  # fmt: skip
    spec = {"node": node, "interfaceName": interface or f"cali{name}", "ipNetworks": list(addresses),
            "orchestrator": "k8s", "profiles": list(profiles), "ports": list(ports)}  # fmt: skip
    return made("WorkloadEndpoint", name, spec, namespace="x", labels=labels)


def policy(name: str, selector: str = "all()", **spec: Any) -> Resource:
    return made("GlobalNetworkPolicy", name, {"selector": selector, **spec})


def profile(name: str, ingress: Any = (), egress: Any = (), **labels: str) -> Resource:
    spec = {"ingress": list(ingress), "egress": list(egress), "labelsToApply": labels}
    return made("Profile", name, spec)


def class_of(node: Node, name: str, way: Direction = Direction.INGRESS, family: Family = V4) -> EndpointClass | None:
    """The class of a pod's interface; None for no class."""
    numbers = node.told[EndpointClassKey(family, f"cali{name}")]
    assert isinstance(numbers, EndpointClasses)
    number = numbers.ingress if way is Direction.INGRESS else numbers.egress
    found = node.told[ClassKey(family, way, number)] if number else None
    assert found is None or isinstance(found, EndpointClass)
    return found


def order_of(node: Node, name: str, way: Direction = Direction.INGRESS) -> str:
    """What a pod is asked, by the comments of the chains."""
    found = class_of(node, name, way)
    if found is None:
        return "denied"
    parts = [f"{tier.name}:{' '.join(words(node, tier.chains))}:{tier.end}" for tier in found.tiers]
    return " > ".join([*parts, *words(node, found.profiles), found.end])


def words(node: Node, chains: tuple[str, ...]) -> list[str]:
    return [chain(node, name).comment.split()[-1] for name in chains]


def chain(node: Node, name: str, family: Family = V4) -> PolicyChain:
    found = node.told[PolicyChainKey(family, name)]
    assert isinstance(found, PolicyChain)
    return found


def members(node: Node) -> set[str]:
    return {str(key).split(" ", 1)[1] for key in node.told if isinstance(key, MemberKey)}


def numbers(node: Node, name: str) -> tuple[int, int]:
    found = node.told[EndpointClassKey(V4, f"cali{name}")]
    assert isinstance(found, EndpointClasses)
    return tuple(found)  # type: ignore[return-value]


# --- order -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ([], "Allow"),
        ([policy("b"), policy("a")], "default:a b:Deny > Deny"),
        ([policy("a"), policy("b", order=5)], "default:b a:Deny > Deny"),
        ([policy("a", tier="late"), policy("b")], "default:b:Deny > Deny"),
        ([policy("a", tier="kube-admin"), policy("b")], "kube-admin:a:Pass > default:b:Deny > Deny"),
        ([policy("a", tier="t", ingress=[PASS]), made("Tier", "t", {"order": 1}), policy("b")],
         "t:a:Deny > default:b:Deny > Deny"),
        ([policy("a", tier="t"), made("Tier", "t", {"order": 1}), policy("b")], "t:a:Deny > Deny"),
        ([policy("a", tier="t"), made("Tier", "t", {"order": 1, "defaultAction": "Pass"})], "t:a:Pass > Deny"),
        ([policy("a", types=["Egress"])], "Allow"),
        ([policy("a", "app == 'other'")], "Allow"),
        ([policy("a", preDNAT=True, applyOnForward=True)], "Allow"),
        ([made("StagedGlobalNetworkPolicy", "a", {"selector": "all()"})], "Allow"),
    ],
)  # fmt: skip
def test_what_an_endpoint_without_profile_is_asked(resources: list[Resource], expected: str) -> None:
    for node in (
        Node("n1", OPEN).put(pod("a", "10.0.0.1"), *resources),
        Node("n1", OPEN).put(*resources, pod("a", "10.0.0.1")),
    ):
        assert order_of(node, "a") == expected
        node.world()


@pytest.mark.parametrize(
    ("profiles", "resources", "expected"),
    [
        (["p"], [profile("p", [ALLOW])], "Allow"),
        (["p"], [profile("p", [DENY])], "Deny"),
        (["p"], [profile("p")], "Deny"),
        (["p"], [], "Deny"),
        (["p"], [profile("p", [{"action": "Allow", "protocol": "TCP"}])], "p > Deny"),
        (["p", "q"], [profile("p", [{"action": "Allow", "protocol": "TCP"}]), profile("q", [ALLOW])], "p > Allow"),
        (["gone", "q"], [profile("q", [ALLOW])], "Deny"),
        (["q"], [profile("q", [ALLOW]), policy("a")], "default:a:Deny > Deny"),
        (["q"], [profile("q", [ALLOW]), policy("a", tier="kube-admin")], "kube-admin:a:Pass > Allow"),
        (["q"], [profile("q", [ALLOW]), policy("a", tier="gone")], "gone:a:Deny > Deny"),
        (["kns.x"], [made("Namespace", "x", version="v1")], "Allow"),
        (["ksa.x.s"], [made("ServiceAccount", "s", version="v1", namespace="x")], "Deny"),
        (["kns.x"], [made("Namespace", "x", version="v1"), profile("kns.x", [DENY])], "Deny"),
    ],
)  # fmt: skip
def test_what_profiles_add(profiles: list[str], resources: list[Resource], expected: str) -> None:
    assert order_of(Node("n1", OPEN).put(pod("a", "10.0.0.1", profiles=profiles), *resources), "a") == expected


def test_a_policy_of_the_node_that_selects_workloads_by_the_same_words_is_not_asked_of_them() -> None:
    before = {"preDNAT": True, "applyOnForward": True}
    several = [policy("b", ingress=[DENY], **before), policy("a"), pod("a", "10.0.0.1")]
    for objects in (several, several[::-1]):  # whoever comes last decides when it is asked
        assert order_of(Node("n1", OPEN).put(*objects), "a") == "default:a:Deny > Deny"


def test_of_two_profiles_with_one_label_the_first_counts_and_an_own_label_before_both() -> None:
    node = Node("n1", OPEN).put(
        profile("p", of="first"), profile("q", of="second"),
        policy("one", "of == 'first'"), policy("two", "of == 'own'"),
        pod("a", "10.0.0.1", profiles=["p", "q"]), pod("b", "10.0.0.2", profiles=["q", "p"]),
        pod("c", "10.0.0.3", profiles=["p", "q"], of="own"),
    )  # fmt: skip
    assert [order_of(node, name) for name in "abc"] == ["default:one:Deny > Deny", "Deny", "default:two:Deny > Deny"]


def test_endpoints_that_nothing_is_asked_of_are_named() -> None:
    node = Node("n1", OPEN).put(
        pod("a", "10.0.0.1"), pod("b", "10.0.0.2", profiles=["p"]), profile("p", [ALLOW], [ALLOW])
    )
    assert [key.name for key in node.policy.open_endpoints()] == ["a"]
    node.put(policy("both", types=["Ingress", "Egress"]))
    assert list(node.policy.open_endpoints()) == []
    assert list(Node("n1").put(pod("a", "10.0.0.1")).policy.open_endpoints()) == []


# --- classes -----------------------------------------------------------------------------------------------------


def test_endpoints_that_are_asked_alike_share_a_class_and_those_of_other_nodes_have_none() -> None:
    node = Node("n1").put(
        policy("a", "app == 'web'"), pod("a", "10.0.0.1", app="web", one="1"), pod("b", "10.0.0.2", app="web"),
        pod("c", "10.0.0.3", "fd00::3", app="db"), pod("d", "10.0.0.4", node="n2", app="web"),
    )  # fmt: skip
    assert numbers(node, "a") == numbers(node, "b") != numbers(node, "c")
    interfaces = {(key.family, key.interface) for key in node.told if isinstance(key, EndpointClassKey)}
    assert interfaces == {(V4, "calia"), (V4, "calib"), (V4, "calic"), (V6, "calic")}


def test_a_policy_for_a_whole_class_moves_nobody() -> None:
    pods = [pod(f"a{number}", f"10.0.0.{number}", app="web") for number in range(1, 9)]
    node = Node("n1").put(policy("a", "app == 'web'"), *pods)
    before = numbers(node, "a1")
    node.apply(policy("b", "app == 'web'").key, policy("b", "app == 'web'"), flush=False)
    changes = node.flush()
    assert not [key for key in changes if isinstance(key, EndpointClassKey)]
    assert numbers(node, "a1") == before
    assert order_of(node, "a1") == "default:a b:Deny > Deny"


def test_where_a_class_splits_only_those_move_that_leave_it() -> None:
    pods = [pod(f"a{number}", f"10.0.0.{number}", app="web", odd=str(number % 2)) for number in range(1, 6)]
    node = Node("n1").put(policy("a", "app == 'web'"), *pods)
    found = policy("b", "odd == '0'")
    node.apply(found.key, found, flush=False)
    changes = node.flush()
    assert {key.interface for key in changes if isinstance(key, EndpointClassKey)} == {"calia2", "calia4"}
    assert order_of(node, "a1") == "default:a:Deny > Deny"
    assert order_of(node, "a2") == "default:a b:Deny > Deny"


def test_rules_alone_change_their_chain_alone() -> None:
    node = Node("n1").put(policy("a", ingress=[ALLOW]), pod("a", "10.0.0.1"))
    found = policy("a", ingress=[{"action": "Allow", "protocol": "TCP"}])
    node.apply(found.key, found, flush=False)
    assert {type(key) for key in node.flush()} == {PolicyChainKey}
    found = policy("a", ingress=[PASS])
    node.apply(found.key, found, flush=False)
    assert {type(key) for key in node.flush()} == {PolicyChainKey, ClassKey}  # a tier with Pass is another thing


def test_a_peer_that_comes_goes_or_moves_changes_members_alone() -> None:
    rule = {"action": "Allow", "source": {"selector": "app == 'db'"}}
    node = Node("n1").put(policy("a", "app == 'web'", ingress=[rule]), pod("a", "10.0.0.1", app="web"))
    for step, expected in (
        (pod("p", "10.0.0.9", node="n2", app="db"), {"10.0.0.9": True}),
        (pod("p", "10.0.0.8", "fd00::8", node="n2", app="db"), {"10.0.0.8": True, "fd00::8": True, "10.0.0.9": False}),
        (pod("p", "10.0.0.8", "fd00::8", node="n3", app="db"), {}),
        (pod("p", "10.0.0.8", "fd00::8", node="n3", app="cache"), {"10.0.0.8": False, "fd00::8": False}),
        (pod("p", "10.0.0.8", node="n3", app="cache", other="1"), {}),
    ):
        node.apply(step.key, step, flush=False)
        changes = node.flush()
        assert {str(key).split()[2]: value is not GONE for key, value in changes.items()} == expected
        assert all(isinstance(key, MemberKey) for key in changes)


def test_before_everything_is_known_only_endpoints_that_nothing_asks_have_a_class() -> None:
    node = Node("n1", OPEN, complete=False).put(
        pod("a", "10.0.0.1", app="web"),
        pod("b", "10.0.0.2"),
        pod("c", "10.0.0.3", profiles=["narrow"]),
        policy("p", "app == 'web'", ingress=[ALLOW], egress=[ALLOW]),
        profile("narrow", ingress=[ALLOW | {"source": {"selector": "app == 'web'"}}], egress=[ALLOW]),
    )
    assert [order_of(node, name) for name in "abc"] == ["denied", "Allow", "denied"]
    node.complete()
    assert [order_of(node, name) for name in "abc"] == ["default:p:Deny > Deny", "Allow", "narrow > Deny"]


def test_numbers_are_those_that_the_kernel_has_and_rest_before_they_serve_again() -> None:
    resources = [policy("a", "app == 'web'"), pod("a", "10.0.0.1", app="web"), pod("b", "10.0.0.2")]
    first = Node("n1", OPEN).put(*resources)
    known = {
        (key.direction, value.name): 9 + key.number
        for key, value in first.told.items()
        if isinstance(key, ClassKey) and isinstance(value, EndpointClass)
    }
    again = Node("n1", OPEN, complete=False).put(*reversed(resources))
    again.policy.adopt(known)
    again.complete()
    asked = class_of(again, "a")
    assert asked is not None and numbers(again, "a")[0] == known[Direction.INGRESS, asked.name]
    numbering = Numbers()
    taken = [numbering.take(name, usual=name == "b") for name in "abcd"]
    assert taken == [2, USUAL, 3, 4]
    numbering.give(USUAL)
    numbering.give(2)
    assert numbering.take("e", usual=True) == 5
    numbering.settled()
    assert numbering.take("f", usual=False) == 2
    assert [numbering.take(str(number), usual=False) for number in range(5000)][-1] > 4095
    assert numbering.take("g", usual=True) == USUAL


def test_the_usual_number_is_of_the_open_class_or_of_the_largest_at_a_start_and_stays_with_it() -> None:
    several = [pod(str(number), f"10.0.0.{number}", app="web" if number > 2 else str(number)) for number in range(6)]
    open_first = Node("n1", OPEN).put(policy("a", "app == '1'"), *several)
    assert [numbers(open_first, str(number))[0] for number in (0, 1, 5)] == [USUAL, 2, USUAL]
    open_first.put(policy("all", "all()"))
    assert [numbers(open_first, str(number))[0] for number in (0, 1, 5)] == [USUAL, 2, USUAL]
    assert order_of(open_first, "5") == "default:all:Deny > Deny"
    asked = Node("n1", OPEN, complete=False).put(*(policy(one, f"app == '{one}'") for one in ("0", "1", "2", "web")))
    asked.put(*several).complete()
    assert [numbers(asked, str(number))[0] for number in (3, 4, 5)] == [USUAL] * 3
    assert USUAL not in [numbers(asked, str(number))[0] for number in (0, 1, 2)]


def test_two_endpoints_of_one_interface_have_the_class_of_the_one_that_has_it() -> None:
    node = Node("n1", OPEN).put(policy("a", "app == 'web'"), pod("a", "10.0.0.1", interface="calix", app="web"),
                                pod("b", "10.0.0.2", interface="calix"))  # fmt: skip
    assert order_of(node, "x") == "default:a:Deny > Deny"
    node.drop(ResourceKey(Kind.WORKLOAD_ENDPOINT, "a", "x"))
    assert order_of(node, "x") == "Allow"
    node.drop(ResourceKey(Kind.WORKLOAD_ENDPOINT, "b", "x"))
    assert not [key for key in node.told if isinstance(key, EndpointClassKey)]


def test_interfaces_that_are_no_workloads_have_no_class() -> None:
    node = Node("n1", OPEN).put(pod("a", "10.0.0.1"), pod("b", "10.0.0.2", interface="eth0"))
    node.policy.reconfigure(PolicySettings(FAMILIES, interface_prefixes=("cali",)))
    node.flush()
    assert {key.interface for key in node.told if isinstance(key, EndpointClassKey)} == {"calia"}


def test_what_there_is_can_be_shown() -> None:
    rule = {"action": "Allow", "source": {"selector": "app == 'db'"}}
    web = policy("p", "app == 'web'", ingress=[rule], tier="kube-admin")
    node = Node("n1").put(web, pod("a", "10.0.0.1", app="web"), pod("b", "10.0.0.2", app="db", node="n2"))
    assert node.policy.asking(policy("p").key) == 1
    assert sorted(node.policy.classes()) == [("egress", 2, "deny", 1), ("ingress", 2, "kube-admin [p], deny", 1)]
    ((name, described, count, users),) = node.policy.sets()
    assert (name[:2], described, count, users) == ("s-", "app == 'db'", 1, "p")


# --- rules and sets ----------------------------------------------------------------------------------------------


def only_chain(node: Node, family: Family = V4) -> PolicyChain:
    (found,) = [v for k, v in node.told.items() if isinstance(k, PolicyChainKey) and k.family is family]
    assert isinstance(found, PolicyChain)
    return found


def test_prefixes_of_a_set_never_cover_each_other_and_come_back() -> None:
    rule = {"action": "Allow", "source": {"selector": "net == 'yes'"}}
    sets = {
        name: made("GlobalNetworkSet", name, {"nets": nets}, labels={"net": "yes"})
        for name, nets in {
            "wide": ["10.0.0.0/8"], "narrow": ["10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32"], "twin": ["10.1.0.0/16"],
        }.items()
    }  # fmt: skip
    node = Node("n1").put(policy("a", ingress=[rule]), pod("a", "192.0.2.1"), sets["narrow"], sets["twin"])
    assert members(node) == {"{ 10.1.0.0/16 }", "{ 10.1.2.3 }"}
    node.put(sets["wide"])
    assert members(node) == {"{ 10.0.0.0/8 }", "{ 10.1.2.3 }"}
    node.drop(sets["wide"].key)
    assert members(node) == {"{ 10.1.0.0/16 }", "{ 10.1.2.3 }"}
    node.drop(sets["narrow"].key)
    assert members(node) == {"{ 10.1.0.0/16 }"}
    node.world()
    assert len(only_chain(node).rules) == 2
    node.drop(sets["twin"].key)
    assert members(node) == set() and len(only_chain(node).rules) == 1
    nets = [Net.parse(text) for text in ("10.0.0.0/9", "10.0.0.0/8", "10.128.0.0/9", "fd00::/8", "10.0.0.0/8")]
    assert without_covered(nets) == (Net.parse("10.0.0.0/8"), Net.parse("fd00::/8"))


def test_a_rule_of_one_family_is_in_that_family_alone() -> None:
    rules = [
        {"action": "Allow", "source": {"nets": ["10.0.0.0/8", "fd00::/8"]}},
        {"action": "Deny", "source": {"notNets": ["10.0.0.0/8"]}},
        {"action": "Allow", "ipVersion": 6},
        {"action": "Allow", "protocol": "ICMP"},
        {"action": "Deny", "source": {"notNets": ["0.0.0.0/0", "fd00::/8"]}},
    ]
    node = Node("n1").put(policy("a", ingress=rules), pod("a", "10.0.0.1"))
    assert [rule.position for rule in only_chain(node, V4).rules] == [0, 1, 3]
    assert [rule.position for rule in only_chain(node, V6).rules] == [0, 2, 4]


def test_ports_by_number_and_name_are_alternatives_and_a_log_says_each_packet_once() -> None:
    web = {"name": "web", "protocol": "TCP", "port": 8080}
    destination = {"ports": [80, "81:90", "web"]}
    rules = [{"action": "Log", "protocol": "TCP", "destination": destination},
             {"action": "Allow", "protocol": "TCP", "destination": destination}]  # fmt: skip
    node = Node("n1").put(policy("a", ingress=rules, tier="sec"), pod("a", "10.0.0.1", ports=[web]))
    first, second, third, fourth = only_chain(node).rules
    assert first.destination.ports == third.destination.ports == (Ports(80, 90),)
    assert second.destination.not_ports == (Ports(80, 90),) and fourth.destination.not_ports == ()
    assert second.destination.port_sets == fourth.destination.port_sets != ()
    assert members(node) == {"{ 10.0.0.1 . 6 . 8080 }"}
    assert {rule.log_prefix for rule in only_chain(node).rules} == {"calico-packet: ", ""}
    node.policy.reconfigure(PolicySettings(FAMILIES, PolicyAction.DENY, "%t|%k|%p|%n"))
    node.flush()
    assert only_chain(node).rules[0].log_prefix == "sec|GlobalNetworkPolicy|a|a: "


def test_rules_after_one_that_decides_everything_are_not_there() -> None:
    node = Node("n1").put(policy("a", ingress=[{"action": "Log"}, ALLOW, DENY]), pod("a", "10.0.0.1"))
    assert [rule.action for rule in only_chain(node).rules] == [PolicyAction.LOG, PolicyAction.ALLOW]


def test_selectors_that_no_local_endpoint_is_asked_by_have_no_members() -> None:
    rule = {"action": "Allow", "source": {"selector": "all()"}}
    peers = [pod(f"p{number}", f"10.0.1.{number}", node="n2") for number in range(5)]
    node = Node("n1").put(policy("a", "app == 'web'", ingress=[rule]), *peers, pod("a", "10.0.0.1"))
    assert members(node) == set() and node.policy.counts() == {"policies": 0, "selectors": 0}
    node.put(pod("a", "10.0.0.1", app="web"))
    assert len(members(node)) == 6 and node.policy.counts() == {"policies": 1, "selectors": 1}
    node.put(pod("a", "10.0.0.1"))
    assert members(node) == set() and not [key for key in node.told if isinstance(key, PolicySetKey)]


def test_sets_say_what_they_stand_for() -> None:
    rule = {
        "action": "Allow",
        "source": {"selector": "app == 'it\"s'"},
        "destination": {"nets": ["10.0.0.0/8", "11.0.0.0/8"]},
    }
    node = Node("n1").put(policy("a", ingress=[rule]), pod("a", "10.0.0.1"))
    comments = {value.comment for value in node.told.values() if isinstance(value, PolicySet)}
    assert comments == {"app == its", "10.0.0.0/8,11.0.0.0/8"}


def test_families_that_are_off_have_no_entries_and_come_back_whole() -> None:
    rule = {"action": "Allow", "source": {"selector": "all()"}}
    node = Node("n1").put(policy("a", ingress=[rule]), pod("a", "10.0.0.1", "fd00::1"))
    before = dict(node.told)
    node.policy.reconfigure(PolicySettings((V4,), PolicyAction.DENY))
    node.flush()
    assert node.told == {key: value for key, value in before.items() if key.family is V4} == node.policy.entries()
    node.put(pod("b", "fd00::2"), pod("b", "fd00::1"))
    node.drop(ResourceKey(Kind.WORKLOAD_ENDPOINT, "b", "x"))
    node.policy.reconfigure(PolicySettings(FAMILIES, PolicyAction.DENY))
    node.flush()
    assert node.told == before


# --- host endpoints ----------------------------------------------------------------------------------------------


def host(name: str, interface: str = "eth0", node: str = "n1", **spec: Any) -> Resource:
    return made("HostEndpoint", name, {"node": node, "interfaceName": interface, **spec}, labels={"host": name})


def asked_of(node: Node, interface: str) -> HostEndpointChains:
    found = node.told[HostEndpointKey(V4, interface)]
    assert isinstance(found, HostEndpointChains)
    return found


def test_each_policy_is_asked_in_its_place() -> None:
    everywhere = {"types": ["Ingress", "Egress"], "applyOnForward": True}
    node = Node("n1").put(
        host("h", profiles=["p"]), profile("p", [ALLOW], [{"action": "Allow", "protocol": "TCP"}]),
        policy("normal", "has(host)"), policy("forward", "has(host)", **{**everywhere, "egress": [PASS]}),
        policy("dnat", "has(host)", preDNAT=True, applyOnForward=True),
        policy("raw", "has(host)", doNotTrack=True, **everywhere),
        made("NetworkPolicy", "never", {"selector": "all()"}, namespace="x"),
    )  # fmt: skip
    found = asked_of(node, "eth0")

    def names(tiers: tuple[TierChains, ...]) -> list[tuple[str, str, list[str]]]:
        return [(tier.name, tier.end, words(node, tier.chains)) for tier in tiers]

    deny, on = EndOfTier.DENY, EndOfTier.PASS
    assert names(found.ingress) == [("default", deny, ["forward", "normal"])]
    assert names(found.egress) == [("default", deny, ["forward"])]
    assert (words(node, found.profiles_ingress), words(node, found.profiles_egress)) == ([], ["p"])
    assert names(found.forward_ingress) == names(found.forward_egress) == [("default", deny, ["forward"])]
    assert names(found.pre_dnat) == [("default", on, ["dnat"])]
    assert names(found.untracked_ingress) == names(found.untracked_egress) == [("default", on, ["raw"])]
    uses = {chain(node, name).use for tier in found.untracked_ingress for name in tier.chains}
    assert uses == {Use.UNTRACKED_INGRESS}
    node.world()
    node.drop(ResourceKey(Kind.HOST_ENDPOINT, "h"))
    assert node.told == {}


def test_one_interface_has_one_host_endpoint_and_others_say_why_not() -> None:
    node = Node("n1", PolicySettings(FAMILIES, host_addresses=(("eth7", Net.parse("192.0.2.7").packed),)))
    node.put(host("b"), host("a"), host("w", "*"), host("e", "", expectedIPs=["192.0.2.7"]), host("o", node="n2"),
             host("f", "", expectedIPs=["192.0.2.8"]))  # fmt: skip
    assert {key.interface for key in node.told if isinstance(key, HostEndpointKey)} == {"eth0", "*", "eth7"}
    assert asked_of(node, "eth0").comment == "HostEndpoint a"
    assert {key.name: words for key, words in node.policy.problems.items()} == {
        "b": "interface eth0 is already that of HostEndpoint a",
        "f": "no interface of this node has one of spec.expectedIPs",
    }
    node.drop(ResourceKey(Kind.HOST_ENDPOINT, "a"))
    assert asked_of(node, "eth0").comment == "HostEndpoint b"
    node.policy.reconfigure(PolicySettings(FAMILIES, host_addresses=(("eth8", Net.parse("192.0.2.8").packed),)))
    node.flush()
    assert {key.interface for key in node.told if isinstance(key, HostEndpointKey)} == {"eth0", "*", "eth8"}
    assert [key.name for key in node.policy.problems] == ["e"]


def test_host_endpoints_of_all_nodes_are_peers() -> None:
    rule = {"action": "Allow", "source": {"selector": "has(host)"}}
    node = Node("n1").put(policy("a", "app == 'web'", ingress=[rule]), pod("a", "10.0.0.1", app="web"),
                          host("o", node="n2", expectedIPs=["192.0.2.9"]))  # fmt: skip
    assert members(node) == {"{ 192.0.2.9 }"}


def test_problems_of_policies_are_told_and_forgotten() -> None:
    node = Node("n1").put(policy("a", ingress=[{"action": "Allow", "later": 1}]))
    (words,) = node.policy.problems.values()
    assert words.endswith("the rule is left out")
    node.put(policy("a", ingress=[ALLOW]))
    assert node.policy.problems == {}


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ({"ingress": [{"action": "Deny", "source": {"selector": "app == 'bad'"}}, ALLOW]}, "spec.ingress[0]"),
        ({"ingress": [{"action": "Allow", "source": {"notSelector": "app == 'bad'"}}]}, "spec.ingress[0]"),
        ({"egress": [ALLOW, {"action": "Pass", "destination": {"selector": "app == 'x'"}}]}, "spec.egress[1]"),
        ({"ingress": [{"action": "Allow", "source": {"selector": "app == 'good'"}}]}, ""),
        ({"ingress": [{"action": "Deny", "source": {"notSelector": "app == 'good'"}}]}, ""),
        ({"ingress": [{"action": "Deny", "source": {"nets": ["192.0.2.0/24"]}}]}, ""),
        ({"ingress": [{"action": "Deny", "destination": {"selector": "app == 'x'"}}]}, ""),
    ],
)
def test_where_other_nodes_endpoints_are_not_known_what_that_makes_wider_is_told(
    rules: dict[str, Any], told: str
) -> None:
    kinds = {"ingress": "Ingress", "egress": "Egress"}
    made_of = policy("p", types=[kinds[name] for name in rules], **rules)
    blind = Node("n1", OPEN)
    assert blind.policy.use_peers("too many") == set()
    blind.put(made_of)
    (words,) = blind.policy.problems.values() or ("",)
    assert words.startswith(told) and bool(words) == bool(told) == ("(too many)" in words)
    assert blind.policy.use_peers("") == ({made_of.key} if told else set())
    assert blind.policy.problems == Node("n1", OPEN).put(made_of).policy.problems == {}
    assert blind.policy.use_peers("hidden") == ({made_of.key} if told else set())
