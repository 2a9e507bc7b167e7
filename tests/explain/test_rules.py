"""Rules of both languages against packets: what matches, what does not, and what cannot be judged."""

from __future__ import annotations

import json
from typing import Any

import pytest

from felixpy.explain import nft, xtables
from felixpy.explain.facts import Sets
from felixpy.explain.packet import ICMP, TCP, UDP, Chain, Packet, Ruleset
from felixpy.explain.walk import Node, Outcome, Route, Verdict, explain, tell
from felixpy.model.net import Family, Net, parse_address
from felixpy.netlink.ipset import Member

LOCAL = frozenset({parse_address("172.31.0.1")})
SETS = Sets({
    "pools": [Member(Net.parse("10.48.0.0/21")), Member(Net.parse("10.48.1.0/24"), "nomatch ")],
    "pairs": [Member(Net.parse("10.48.0.1/32"), "cali1", mark=0x80000, mask=0xC0000)],
    "ports": [Member(Net.parse("198.51.100.1/32"), "", TCP, 80)],
})  # fmt: skip


def packet(protocol: int = TCP, port: int | None = 80, **fields: Any) -> Packet:
    found = Packet(Family.V4, parse_address("10.48.0.1"), parse_address("198.51.100.1"), protocol, port, iif="cali1")
    for name, value in fields.items():
        setattr(found, name, value)
    return found


def walked(rulesets: list[Ruleset], sent: Packet | None = None, route: Route | None = None) -> Verdict:
    return explain(
        Node(rulesets, lambda _: route or Route("eth0"), lambda _: True, lambda _: parse_address("172.31.0.1")),
        sent or packet(),
    )


def ipt(*rules: str, table: str = "filter", chains: str = "FORWARD ACCEPT") -> list[Ruleset]:
    declared = "\n".join(f":{one} [0:0]" for one in chains.split(","))
    lines = "\n".join(f"-A {rule}" for rule in rules)
    return xtables.parse(f"*{table}\n{declared}\n{lines}\nCOMMIT\n", "iptables", SETS, LOCAL.__contains__)


@pytest.mark.parametrize(
    "match",
    [
        "-s 10.48.0.0/24", "! -s 10.49.0.0/24", "-d 198.51.100.1/32", "-i cali+", "-i cali1", "-o eth+", "! -i eth0",
        "-p tcp -m tcp --dport 80", "-p tcp -m tcp --dport 70:90", "-p tcp -m multiport --dports 22,80",
        "-p tcp -m multiport ! --dports 22,81", "-m conntrack --ctstate NEW", "-m conntrack ! --ctstate INVALID",
        "-m set --match-set ports dst,dst", "-m set ! --match-set ports src,src", "-m conntrack --ctdir ORIGINAL",
        "-m iprange --src-range 10.48.0.0-10.48.0.1", "-m iprange ! --dst-range 198.51.100.2-198.51.100.9",
        "-m set --match-set pools src -m set ! --match-set pools dst",
        "-m set --match-set pools src", "-m set ! --match-set pools dst", "-m set --match-set pairs src,src",
        "-m addrtype ! --dst-type LOCAL", "-m mark --mark 0x0/0x4000", "-m comment --comment \"a ! b\"",
    ],
)  # fmt: skip
def test_iptables_matches(match: str) -> None:
    verdict = walked(ipt(f"FORWARD {match} -j DROP"))
    assert (verdict.outcome, verdict.doubts) == (Outcome.DROPPED, []), match


@pytest.mark.parametrize(
    "match",
    [
        "! -s 10.48.0.0/24", "-i eth+", "-p udp", "-p tcp -m tcp --dport 81", "-m state --state RELATED",
        "-m set --match-set pairs dst,dst", "-m addrtype --dst-type LOCAL", "-m mark --mark 0x1",
        "-p icmp -m icmp --icmp-type 8", "-m set --match-set ports src,dst", "-m set --match-set ports dst,src",
        "-m iprange --dst-range 10.48.0.0-10.48.0.1", "-m conntrack --ctdir REPLY",
    ],
)  # fmt: skip
def test_iptables_mismatches(match: str) -> None:
    verdict = walked(ipt(f"FORWARD {match} -j DROP"))
    assert (verdict.outcome, verdict.doubts) == (Outcome.PASSES, []), match


def test_a_more_exact_exception_of_a_set_counts() -> None:
    assert SETS.holds("pools", packet(source=parse_address("10.48.0.9")), "src") is True
    assert SETS.holds("pools", packet(source=parse_address("10.48.1.9")), "src") is False
    assert SETS.holds("other", packet(), "src") is None


@pytest.mark.parametrize("match", ["-m limit --limit 1/sec", "-m owner --uid-owner 0", "-m set --match-set other src",
                                   "-m physdev --physdev-is-bridged", "-m frobnicate --x 1"])  # fmt: skip
def test_what_is_not_known_makes_the_verdict_uncertain_and_is_named(match: str) -> None:
    verdict = walked(ipt(f"FORWARD {match} -j DROP"))
    assert verdict.outcome is Outcome.PASSES
    assert not verdict.certain
    assert match in verdict.doubts[0]
    assert "dropped by iptables table filter chain FORWARD" in verdict.doubts[0]
    harmless = walked(ipt(f"FORWARD {match} -j ACCEPT"))
    assert harmless.certain


def test_jump_return_goto_and_policy() -> None:
    chains = "FORWARD DROP,one -,two -"
    assert walked(ipt("FORWARD -j one", "one -j RETURN", chains=chains)).by.endswith("policy DROP")
    assert walked(ipt("FORWARD -j one", "one -j two", "two -j ACCEPT", chains=chains)).outcome is Outcome.PASSES
    assert walked(ipt("FORWARD -g one", "FORWARD -j ACCEPT", "one -s 1.1.1.1/32 -j DROP", chains=chains)).by.endswith(
        "policy DROP"
    )


def test_marks_are_kept_from_hook_to_hook() -> None:
    marked = ipt("PREROUTING -j MARK --set-xmark 0x4000/0x4000", table="mangle", chains="PREROUTING ACCEPT")
    assert walked(marked + ipt("FORWARD -m mark --mark 0x4000/0x4000 -j DROP")).outcome is Outcome.DROPPED


def test_the_member_of_a_set_gives_its_bits_of_the_mark() -> None:
    given = "-j SET --map-set {} src,src --map-mark"
    all_bits = "PREROUTING -j MARK --set-xmark 0x1f0000/0x1f0000"
    for name, mark in (("pairs", "0x1b0000"), ("ports", "0x1f0000")):  # who is in no set keeps his mark
        marked = ipt(all_bits, f"PREROUTING {given.format(name)}", table="mangle", chains="PREROUTING ACCEPT")
        verdict = walked(marked + ipt(f"FORWARD -m mark --mark {mark}/0x1f0000 -j DROP"))
        assert (verdict.outcome, verdict.doubts) == (Outcome.DROPPED, []), name
    for unknown in (given.format("other"), "-j SET --map-set pairs src,src --map-prio"):
        verdict = walked(ipt(f"FORWARD {unknown}", "FORWARD -m mark --mark 0x80000/0xc0000 -j DROP"))
        assert not verdict.certain, unknown


def test_an_accept_ends_its_own_table_only() -> None:
    rules = ipt("FORWARD -j ACCEPT") + ipt("FORWARD -j DROP", table="security")
    verdict = walked(rules)
    assert "table security" in verdict.by
    assert [stage.did for stage in verdict.stages] == ["dev eth0", "accept", "drop"]


def test_nat_of_both_directions_and_nat_once() -> None:
    rules = ipt("PREROUTING -p tcp --dport 80 -j DNAT --to-destination 10.0.0.5:8080", table="nat",
                chains="PREROUTING ACCEPT") + ipt("POSTROUTING -j MASQUERADE", "POSTROUTING -j DROP", table="nat",
                                                  chains="POSTROUTING ACCEPT")  # fmt: skip
    seen = walked(rules).packet
    assert (seen.source, seen.destination, seen.port) == (
        parse_address("172.31.0.1"), parse_address("10.0.0.5"), 8080
    )  # fmt: skip
    untracked = ipt("PREROUTING -j CT --notrack", table="raw", chains="PREROUTING ACCEPT")
    assert walked(rules + untracked).packet.destination == parse_address("198.51.100.1")


def test_routing_and_forwarding_can_stop_it() -> None:
    verdict = walked([], route=Route(failure="no route"))
    assert tell(verdict) == "dropped by the kernel's routing: no route"
    node = Node([], lambda _: Route("eth0"), lambda _: False, lambda _: b"")
    assert "forwarding is off on cali1" in explain(node, packet()).by
    assert walked([], route=Route("lo", local=True)).outcome is Outcome.LOCAL


def test_chains_without_end_are_no_endless_loop() -> None:
    rulesets = [Ruleset("t", {"a": Chain("a", hook="forward")})]
    rulesets[0].chains["a"].rules += ipt("FORWARD -j a", chains="FORWARD ACCEPT")[0].chains["FORWARD"].rules
    assert walked(rulesets).outcome is Outcome.UNKNOWN


# --- nftables --------------------------------------------------------------------------------------------------------


def payload(protocol: str, field: str) -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": field}}


def nft_text(*rules: Any, sets: dict[str, Any] | None = None, policy: str = "accept", family: str = "inet") -> str:
    objects: list[Any] = [{"table": {"family": family, "name": "t"}}]
    for name, elements in (sets or {}).items():
        objects.append({"set": {"family": family, "table": "t", "name": name, "elem": elements}})
    chain = {"family": family, "table": "t", "name": "c", "type": "filter", "hook": "forward", "prio": 5}
    objects.append({"chain": {**chain, "policy": policy}})
    for expressions in rules:
        objects.append({"rule": {"family": family, "table": "t", "chain": "c", "expr": list(expressions)}})
    return json.dumps({"nftables": objects})


def match(left: Any, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


DROP = {"drop": None}
IIFNAME, STATE, MARK = {"meta": {"key": "iifname"}}, {"ct": {"key": "state"}}, {"meta": {"key": "mark"}}


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        (match(IIFNAME, "cali*"), True),
        (match(IIFNAME, {"set": ["eth0", "cali1"]}), True),
        (match(IIFNAME, {"set": [{"range": ["", ""]}]}), None),  # how nft 1.0 prints a set of "cali*"
        (match(payload("ip", "saddr"), "@s"), True),
        (match(payload("ip", "daddr"), "@s", "!="), True),
        (match(payload("ip", "saddr"), {"range": ["10.48.0.0", "10.48.0.5"]}), True),
        (match(payload("ip6", "saddr"), "fd00::1", "!="), False),
        (match({"concat": [payload("ip", "saddr"), IIFNAME]}, {"set": [{"concat": ["10.48.0.1", "cali1"]}]}), True),
        (match({"concat": [payload("ip", "saddr"), IIFNAME]}, {"set": [{"concat": ["10.48.0.1", "cali2"]}]}), False),
        (match(payload("tcp", "dport"), {"set": [22, {"range": [80, 90]}]}), True),
        (match(payload("udp", "dport"), 80, "!="), False),
        (match(STATE, ["established", "related"], "in"), False),
        (match(STATE, 8, "in"), True),
        (match(STATE, {"set": [2, 4]}, "!="), True),
        (match({"&": [MARK, 16384]}, 16384), False),
        (match({"fib": {"result": "type", "flags": ["daddr"]}}, 2), False),
        (match({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, 0), None),
        (match({"meta": {"key": "l4proto"}}, {"set": [6, 17]}), True),
        (match({"meta": {"key": "skuid"}}, 0), None),
        ({"limit": {"rate": 1}}, None),
        ({"counter": {"packets": 1}}, True),
    ],
)
def test_nft_expressions(expression: dict[str, Any], found: bool | None) -> None:
    text = nft_text([expression, DROP], sets={"s": [{"elem": {"val": {"prefix": {"addr": "10.48.0.0", "len": 24}}}}]})
    verdict = walked(nft.parse(text, Family.V4, LOCAL.__contains__))
    assert (verdict.outcome is Outcome.DROPPED, verdict.certain) == (found is True, found is not None)


def test_names_that_nft_cannot_print_are_read_otherwise_or_in_doubt() -> None:
    interfaces = {"set": {"family": "inet", "table": "t", "name": "i", "type": "ifname", "elem": ["", ""]}}
    objects = json.loads(nft_text([match(IIFNAME, "@i"), DROP]))["nftables"]
    text = json.dumps({"nftables": [objects[0], interfaces, *objects[1:]]})
    assert nft.nameless(text) == [("inet", "t", "i")]
    assert not walked(nft.parse(text, Family.V4, LOCAL.__contains__)).certain
    for names, outcome in ((["cali1", "cali2"], Outcome.DROPPED), (["cali2"], Outcome.PASSES), ([], Outcome.PASSES)):
        read = {("inet", "t", "i"): names}
        verdict = walked(nft.parse(text, Family.V4, LOCAL.__contains__, interfaces=read))
        assert (verdict.outcome, verdict.doubts) == (outcome, []), names


@pytest.mark.parametrize(
    ("protocol", "offset", "length", "value"),
    [(ICMP, 0, 16, 0x800), (ICMP, 0, 8, 8), (UDP, 16, 16, 80), (TCP, 0, 16, 40000)],
)
def test_bits_of_the_transport_header(protocol: int, offset: int, length: int, value: int) -> None:
    bits = {"payload": {"base": "th", "offset": offset, "len": length}}
    for operation, outcome in (("==", Outcome.DROPPED), ("!=", Outcome.PASSES)):
        text = nft_text([match(bits, value, operation), DROP])
        verdict = walked(nft.parse(text, Family.V4, LOCAL.__contains__), packet(protocol))
        assert (verdict.outcome, verdict.doubts) == (outcome, [])


def test_nft_verdict_maps_marks_and_policy() -> None:
    states = {"set": [[1, {"drop": None}], [8, {"accept": None}]]}
    accepted = nft_text([{"vmap": {"key": STATE, "data": states}}], policy="drop")
    assert walked(nft.parse(accepted, Family.V4, LOCAL.__contains__)).outcome is Outcome.PASSES
    by_name = nft_text([{"vmap": {"key": payload("tcp", "dport"), "data": "@m"}}], sets={"m": [[80, {"drop": None}]]})
    assert walked(nft.parse(by_name, Family.V4, LOCAL.__contains__)).outcome is Outcome.DROPPED
    marked = {"mangle": {"key": MARK, "value": {"|": [MARK, 64]}}}
    text = nft_text([marked], [match({"&": [MARK, 64]}, 64), DROP])
    assert walked(nft.parse(text, Family.V4, LOCAL.__contains__)).outcome is Outcome.DROPPED
    queue = walked(nft.parse(nft_text([{"queue": {"num": 1}}]), Family.V4, LOCAL.__contains__))
    assert not queue.certain
    assert walked(nft.parse(nft_text(policy="drop"), Family.V4, LOCAL.__contains__)).by.endswith("policy DROP")


def test_tables_of_another_family_do_not_count_and_hooks_that_are_not_followed_are_named() -> None:
    assert nft.parse(nft_text([DROP], family="ip6"), Family.V4, LOCAL.__contains__) == []
    assert nft.parse(nft_text([DROP], family="ip"), Family.V4, LOCAL.__contains__, {("ip", "t")}) == []
    assert nft.other_families(nft_text(family="bridge")) == ["bridge t"]


def test_protocols_have_their_own_fields() -> None:
    echo = packet(ICMP, None)
    assert walked(ipt("FORWARD -p icmp -m icmp --icmp-type 8 -j DROP"), echo).outcome is Outcome.DROPPED
    assert walked(ipt("FORWARD -p udp -m udp --dport 80 -j DROP"), packet(UDP)).outcome is Outcome.DROPPED
    text = nft_text([match(payload("icmp", "type"), 8), DROP])
    assert walked(nft.parse(text, Family.V4, LOCAL.__contains__), echo).outcome is Outcome.DROPPED


def test_a_local_address_of_one_interface() -> None:
    """As the rule for what the node itself sends into a tunnel asks: the node's own, but not the tunnel's."""
    own = parse_address("172.31.0.1")

    def is_on(address: bytes, interface: str) -> bool:
        return (address, interface) == (own, "eth0")

    fib = {"fib": {"result": "type", "flags": ["saddr", "oif"]}}
    chain = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m addrtype {} --src-type LOCAL --limit-iface-out -j DROP\n"
    for operation, sign, dropped in (("==", "", "eth0"), ("!=", "!", "vxlan.calico")):
        text = nft_text([match(fib, 2, operation), DROP])
        for interface in ("eth0", "vxlan.calico"):
            by_nft = nft.parse(text, Family.V4, LOCAL.__contains__, is_on=is_on)
            by_iptables = xtables.parse(chain.format(sign), "iptables", SETS, LOCAL.__contains__, is_on)
            for rules in (by_nft, by_iptables):
                verdict = walked(rules, packet(source=own), Route(interface))
                assert (verdict.outcome is Outcome.DROPPED, verdict.doubts) == (interface == dropped, [])
        assert not walked(nft.parse(text, Family.V4, LOCAL.__contains__)).certain


def test_an_echo_request_has_code_0() -> None:
    for code, outcome in (("", Outcome.DROPPED), ("/0", Outcome.DROPPED), ("/1", Outcome.PASSES)):
        rules = ipt(f"FORWARD -p icmp -m icmp --icmp-type 8{code} -j DROP")
        assert walked(rules, packet(ICMP, None)).outcome is outcome, code


def test_a_comment_with_line_breaks_is_one_rule() -> None:
    comment = '-m comment --comment "two\n-A FORWARD -j ACCEPT\nlines" -j DROP'
    (table,) = xtables.parse(f"*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD {comment}\n", "iptables", SETS, bool)
    assert len(table.chains["FORWARD"].rules) == 1
