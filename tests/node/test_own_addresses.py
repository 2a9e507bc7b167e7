"""Which addresses a running node tells: sticky, applied first, not what another node tells already. Pure."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from felixpy.model.net import FAMILIES, Family, Net
from felixpy.model.resources import Kind, Node, ResourceKey
from felixpy.node.detection import Address, DetectionError, Interface, Surroundings
from felixpy.node.own_addresses import MOVE_SECONDS, NEVER, OwnAddresses, read_variables
from felixpy.node.record import Record

MAIN = Interface("eth0", (Address(Net.parse_interface("10.9.0.1/24")), Address(Net.parse_interface("fd09::1/64"))))
TOLD = {Family.V4: "10.9.0.1/24", Family.V6: "fd09::1/64"}


def node(
    name: str = "n1", four: str = "", six: str = "", since: str = "2026-01-01T00:00:00Z", kind: Kind = Kind.NODE
) -> Node:
    v4, v6 = (Net.parse_interface(text) if text else None for text in (four, six))
    return Node(ResourceKey(kind, name), v4, v6, since=since)


def told(four: str = "10.9.0.1/24", six: str = "fd09::1/64", since: str = "2026-01-01T00:00:00Z") -> Node:
    return node("n1", four, six, since, Kind.NODE_STATE)


def find(
    interfaces: Collection[Interface] = (MAIN,), *, environment: dict[str, str] | None = None,
    before: Node | None = None, applied: Node | None = None, at: float = 100.0, decides: OwnAddresses | None = None,
) -> tuple[dict[Family, str], list[str], float]:  # fmt: skip
    decides = decides or OwnAddresses("n1", read_variables(environment or {}))
    found, problems, again = decides.find(FAMILIES, applied, before, Surroundings(list(interfaces)), at)
    return {family: str(net) for family, net in found.items()}, problems, again


def address(text: str, **flags: bool) -> Address:
    return Address(Net.parse_interface(text), **flags)


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, TOLD),
        ({"IP": "none", "IP6": "autodetect", "CALICO_ROUTER_ID": "hash"}, {Family.V6: "fd09::1/64"}),
        ({"IP6": "none"}, {Family.V4: "10.9.0.1/24"}),
        ({"IP": "10.9.0.1"}, TOLD),
        ({"IP": "10.9.0.1/16"}, {**TOLD, Family.V4: "10.9.0.1/16"}),
        ({"IP_AUTODETECTION_METHOD": "cidr=10.9.0.0/16"}, TOLD),
    ],
)
def test_variables_decide(environment: dict[str, str], wanted: dict[Family, str]) -> None:
    assert find(environment=environment) == (wanted, [], NEVER)


@pytest.mark.parametrize(
    "newcomer",
    [
        Interface("eth1", (address("10.8.0.1/24"), address("fd08::1/64"))),
        Interface("eth0", (address("10.9.0.100/32"), *MAIN.addresses, address("fd09::100/128"))),
        Interface("eth0", (*MAIN.addresses, address("fd09::77/64", temporary=True))),
    ],
    ids=["a second address", "a virtual address", "a temporary address"],
)
def test_what_comes_besides_never_moves_a_node(newcomer: Interface) -> None:
    interfaces = [one for one in (MAIN, newcomer) if one.name != newcomer.name or one is newcomer]
    assert find(interfaces, before=told()) == (TOLD, [], NEVER)
    assert find(interfaces, environment={"IP": "autodetect", "IP6": "autodetect"}, before=told())[0] == TOLD


def test_an_address_that_is_gone_is_told_a_little_longer_and_then_the_node_moves() -> None:
    other = Interface("eth0", (address("10.9.0.2/24"), address("fd09::1/64")))
    decides = OwnAddresses("n1", read_variables({}))
    assert find([other], before=told(), decides=decides, at=5.0) == (TOLD, [], MOVE_SECONDS)
    tentative = Interface("eth0", (address("10.9.0.1/24", unusable=True), address("fd09::1/64")))
    assert find([tentative], before=told(), decides=decides, at=6.0)[0] == TOLD
    assert find([MAIN], before=told(), decides=decides, at=7.0) == (TOLD, [], NEVER), "it came back"
    assert find([other], before=told(), decides=decides, at=8.0)[2] == MOVE_SECONDS, "the wait begins anew"
    moved, problems, again = find([other], before=told(), decides=decides, at=8.0 + MOVE_SECONDS)
    assert (moved[Family.V4], moved[Family.V6], problems, again) == ("10.9.0.2/24", "fd09::1/64", [], NEVER)


def test_a_node_that_lost_all_addresses_stays_where_it_was_and_says_so() -> None:
    decides = OwnAddresses("n1", read_variables({"IP": "autodetect"}))
    find([], before=told(), decides=decides, at=0.0)
    found, problems, _ = find([], before=told(), decides=decides, at=MOVE_SECONDS)
    assert found == TOLD and any("10.9.0.1/24 is kept" in problem for problem in problems)


def test_a_prefix_length_that_changes_is_followed_at_once() -> None:
    wider = Interface("eth0", (address("10.9.0.1/16"), address("fd09::1/64")))
    assert find([wider], before=told())[0][Family.V4] == "10.9.0.1/16"


def test_an_applied_node_wins_and_one_without_part_in_routing_has_no_address() -> None:
    assert find(applied=node(four="10.7.0.1/24"))[0] == {Family.V4: "10.7.0.1/24", Family.V6: "fd09::1/64"}
    out = Node(ResourceKey(Kind.NODE, "n1"), routed=False)
    assert find(applied=out)[0] == {}


def test_only_what_was_asked_for_is_missed() -> None:
    four = Interface("eth0", (address("10.9.0.1/24"),))
    assert find([four]) == ({Family.V4: "10.9.0.1/24"}, [], NEVER)
    assert "IPv6" in find([four], environment={"IP6": "autodetect"})[1][0]
    assert len(find([])[1]) == 2


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"IP": "10.9.0"}, "IP='10.9.0'"),
        ({"IP": "fd00::1"}, "not an IPv4 address"),
        ({"IP6_AUTODETECTION_METHOD": "first"}, "IP6_AUTODETECTION_METHOD='first'"),
        ({"AUTODETECT_POLL_INTERVAL": "often"}, "AUTODETECT_POLL_INTERVAL='often'"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(environment: dict[str, str], words: str) -> None:
    with pytest.raises(DetectionError, match=words):
        read_variables(environment)


@pytest.mark.parametrize(
    ("interval", "follows"), [("", True), ("60s", True), ("1m30s", True), ("0", False), ("0s", False), ("none", False)]
)
def test_the_poll_interval_says_only_whether_a_node_follows_its_interfaces(interval: str, follows: bool) -> None:
    assert read_variables({"AUTODETECT_POLL_INTERVAL": interval}).follows is follows


# --- conflicts -----------------------------------------------------------------------------------------------------


def judge(
    rival: Node, before: Node | None = None, *, applied: Node | None = None, environment: dict[str, str] | None = None
) -> tuple[dict[Family, str], list[str]]:
    decides = OwnAddresses("n1", read_variables(environment or {}))
    found = {Family.V4: Net.parse_interface("10.9.0.1/24"), Family.V6: Net.parse_interface("fd09::1/64")}
    kept, problems = decides.judge(
        found, before, applied, lambda packed: [rival] if rival.ipv4 and rival.ipv4.packed == packed else []
    )
    return {family: str(net) for family, net in kept.items()}, problems


def test_of_two_nodes_with_one_address_the_later_one_does_not_tell_it() -> None:
    rival = node("n2", "10.9.0.1/24", since="2026-01-02T00:00:00Z")
    kept, problems = judge(rival)
    assert kept == {Family.V6: "fd09::1/64"}, "its IPv6 is its own"
    assert "IPv4 address conflict with n2: both tell 10.9.0.1; n1 came later" in problems[0]
    kept, problems = judge(rival, told())
    assert kept == TOLD and "IPv4 address conflict with n2" in problems[0], "who told it first says so, too"
    assert judge(rival, told(since="2026-01-03T00:00:00Z"))[0] == {Family.V6: "fd09::1/64"}
    moved = told("10.9.0.3/24", since="2025-01-01T00:00:00Z")
    assert judge(rival, moved)[0] == {Family.V6: "fd09::1/64"}, "it told another address before"


def test_what_an_operator_applied_is_told_whoever_else_tells_it() -> None:
    kept, problems = judge(node("n2", "10.9.0.1/24"), applied=node(four="10.9.0.1/24"))
    assert kept == TOLD and "conflict with n2" in problems[0]
    applied_rival = node("n2", "10.9.0.1/24", since="")
    assert judge(applied_rival, told())[0] == TOLD and judge(applied_rival)[0] == {Family.V6: "fd09::1/64"}


def test_the_check_can_be_turned_off() -> None:
    assert judge(node("n2", "10.9.0.1/24"), environment={"DISABLE_NODE_IP_CHECK": "true"}) == (TOLD, [])


# --- the record ----------------------------------------------------------------------------------------------------


def test_a_record_is_what_its_parts_say_and_only_news_is_told() -> None:
    record, news = Record(), list[int]()
    record.changed = lambda: news.append(1)
    record.say("addresses", spec={"bgp": {"ipv4Address": "10.9.0.1/24"}})
    record.say("ipip", spec={"bgp": {"ipv4IPIPTunnelAddr": "10.48.0.1"}}, status={"mtu": 1500})
    record.say("ipip", spec={"bgp": {"ipv4IPIPTunnelAddr": "10.48.0.1"}}, status={"mtu": 1500})
    assert len(news) == 2
    document = record.document("n1", "2026-01-01T00:00:00Z")
    assert document["spec"] == {"bgp": {"ipv4Address": "10.9.0.1/24", "ipv4IPIPTunnelAddr": "10.48.0.1"}}
    assert document["status"] == {"mtu": 1500}
    record.say("ipip")
    assert record.document("n1", "")["spec"] == {"bgp": {"ipv4Address": "10.9.0.1/24"}}
