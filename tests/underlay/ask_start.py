"""Cases of a node's start: its addresses, router id, default pools, conflicts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from felixpy.model.net import FAMILIES, Family, Net, family_of, parse_address
from felixpy.node.detection import Address, DetectionError, Interface, Surroundings, detect
from felixpy.node.own_address import SETTINGS, check_found, conflicts, own_address
from felixpy.node.pools import PoolSettingError, default_pools
from felixpy.node.router_id import router_id
from tests.underlay.vectors import Answer, elsewhere, same

USUAL = [
    {"name": "lo", "addrs": ["127.0.0.1/8", "::1/128"]},
    {"name": "eth0", "addrs": ["10.9.0.1/24", "fe80::1/64", "fd09::1/64"]},
]
"""What cases mean that name no interfaces."""


def ask(case: dict[str, Any]) -> Iterator[Answer]:
    given, expect = case["given"], case["expect"]
    for fits, how in _FORMS:
        if fits(given, expect):
            yield from how(given, expect)
            return
    yield elsewhere("everything", "no function is known for a case of this form")


# --- addresses -----------------------------------------------------------------------------------------------------


def _interfaces(given: Mapping[str, Any]) -> list[Interface]:
    if given.get("found") is False:
        return []
    listed = given.get("interfaces")
    if listed is None:
        named = [{"name": k, "addrs": v} for k, v in given.items() if isinstance(v, list) and _is_addresses(v)]
        listed = named or USUAL
    return [
        Interface(one["name"], tuple(_address(text) for text in one.get("addrs", one.get("addresses", []))))
        for one in listed
    ]


def _is_addresses(value: list[Any]) -> bool:
    return bool(value) and all(
        isinstance(text, str) and re.match(r"[0-9a-fA-F:.]+/\d+( \w+)*$", text) for text in value
    )


def _address(text: str) -> Address:
    net, *words = text.split()
    flags = {word.strip("(),") for word in words}
    unusable = bool(flags & {"tentative", "dadfailed", "duplicate"})
    return Address(Net.parse_interface(net), "temporary" in flags, "deprecated" in flags, unusable)


def _surroundings(given: Mapping[str, Any]) -> Surroundings:
    interfaces = _interfaces(given)
    node = given.get("k8s_node", given.get("k8sNode", given.get("kubernetes_node", {})))
    internal = given.get("internal_ips", given.get("InternalIP", given.get("kubernetes_internal_ips")))
    if internal is None and isinstance(node, Mapping):
        listed = node.get("addresses", node.get("status", {}).get("addresses", []))
        internal = [one["address"] for one in listed if one.get("type") == "InternalIP"] or node.get("InternalIP")
    if isinstance(internal, str):
        internal = [internal]
    return Surroundings(interfaces, _reach(given.get("routes", []), interfaces), internal)


def _reach(routes: list[str], interfaces: list[Interface]) -> Callable[[str, Family], bytes | None]:
    """The kernel's choice of a source address, for routes as ``ip route`` writes them."""

    def source_for(host: str, family: Family) -> bytes | None:
        target, best = parse_address(host), (-1, "")
        for text in routes:
            words = text.split()
            default = "0.0.0.0/0" if family is Family.V4 else "::/0"
            net = Net.parse(default if words[0] == "default" else words[0])
            if net.covers(target):
                best = max(best, (net.length, words[words.index("dev") + 1]))
        for interface in interfaces:
            if interface.name == best[1]:
                usable = [one.net.packed for one in interface.addresses if one.net.family is family]
                return next((one for one in usable if not one.startswith(b"\xfe\x80")), None)
        return None

    return source_for


def _found(method: str, family: Family, given: Mapping[str, Any]) -> str:
    try:
        return str(detect(method, family, _surroundings(given)))
    except DetectionError as error:
        return f"error: {error}"


def _agree(wanted: Any, got: str) -> bool:
    if wanted is None:
        return got.startswith("error")
    return got.startswith("error") if str(wanted).startswith(("error", "none")) else str(wanted) == got


def _detection(given: Mapping[str, Any], expect: Mapping[str, Any]) -> Iterator[Answer]:
    for key, family in (("ipv4", Family.V4), ("ipv6", Family.V6)):
        if key not in expect:
            continue
        setting = "IP_AUTODETECTION_METHOD" if family is Family.V4 else "IP6_AUTODETECTION_METHOD"
        methods = given.get("methods", [given.get(setting, given.get("method", "first-found"))])
        wanted = expect[key] if isinstance(expect[key], list) else [expect[key]]
        for method, each in zip(methods, wanted, strict=True):
            got = _found(method, family, given)
            yield Answer(f"{key} by {method}", each, got, _agree(each, got))
    if "packets_sent" in expect:
        yield elsewhere("packets_sent", "tests/node/test_interfaces.py counts them")


def _settings(given: Mapping[str, Any], expect: Mapping[str, Any]) -> Iterator[Answer]:
    results = expect.get("results", expect.get("ipv4", []))
    for one, wanted in zip(given["cases"], results, strict=True):
        yield Answer(str(one), wanted, *_setting({**given, **one}, str(wanted).partition("felixpy:")[2] or str(wanted)))


def _setting(one: Mapping[str, Any], wanted: str) -> tuple[str, bool]:
    """What IP and IP6 come to, and whether that is what the words say."""
    around = _surroundings(one)
    decided = []
    try:
        for family in FAMILIES:
            if SETTINGS[family] not in one:
                continue
            text = one.get("existing" if family is Family.V4 else "existing6", one.get("existing", ""))
            known = (
                Net.parse_interface(text) if text and family_of(Net.parse_interface(text).packed) is family else None
            )
            method = one.get(f"{SETTINGS[family]}_AUTODETECTION_METHOD", "first-found")
            decided.append(own_address(one[SETTINGS[family]], method, family, known, around))
        if len(decided) > 1:
            check_found(decided)
    except DetectionError as error:
        return f"error: {error}", "error" in wanted
    decision = decided[0]
    got = f"{decision.net} {decision.how} {decision.warning}"
    name = "IP" if "IP" in one else "IP6"
    net = str(decision.net)
    right = "error" not in wanted
    if cidr := re.search(r"[0-9a-f:.]+/\d+", wanted):
        right = right and cidr[0] == net
    if "kept" in wanted:
        right = right and net == one.get("existing")
    if "warned" in wanted:
        right = right and bool(decision.warning)
    if "autodetect" in wanted:
        right = right and decision.how.startswith("detected")
    if "no IPv" in wanted:
        right = right and decision.net is None
    if "prefix of the interface" in wanted:
        prefixes = [str(a.net) for i in around.interfaces for a in i.addresses]
        right = right and net in prefixes
    if "as written" in wanted:
        right = right and net == one[name]
    return got, right


# --- the rest -------------------------------------------------------------------------------------------------------


def _router_ids(given: Mapping[str, Any], expect: Mapping[str, Any]) -> Iterator[Answer]:
    named = ("names", "name", "nodes", "node", "nodename", "NODENAME", "hostname")
    names: Any = next((given[key] for key in named if key in given), list(expect))
    names = [names] if isinstance(names, str) else list(names)
    ids = expect.get("router_ids", expect.get("ids", expect.get("results", expect.get("router_id", expect))))
    for index, name in enumerate(names):
        wanted = ids if isinstance(ids, str) else ids[index] if isinstance(ids, list) else ids[name]
        yield same(f"router id of {name}", wanted, router_id(name))


def _pools(given: Mapping[str, Any], expect: Mapping[str, Any]) -> Iterator[Answer]:
    for one, wanted in zip(given["cases"], expect["results"], strict=True):
        yield Answer(str(one), wanted, *_pool(one, str(wanted)))


def _pool(environment: Mapping[str, str], wanted: str) -> tuple[str, bool]:
    try:
        pools = default_pools(environment)
    except PoolSettingError as error:
        return f"error: {error}", wanted.startswith("error")
    made = {Net.parse(pool["spec"]["cidr"]).family: pool["spec"] for pool in pools}
    got = str(list(made.values()))
    if wanted.startswith("error"):
        return got, False
    if wanted == "none made":
        return got, not made
    if wanted == "accepted":
        return got, bool(made)
    right = True
    for part in wanted.split(", "):
        if absent := re.fullmatch(r"no (IPv[46]) pool", part):
            right = right and absent[1] not in map(str, made)
        elif present := re.fullmatch(r"(IPv[46]) (?:one|pool) made", part):
            right = right and present[1] in map(str, made)
        elif value := re.fullmatch(r"(\w+) (\S+)", part):
            families = [f for f in made if any(f"IPV{f.version}POOL" in key for key in environment)] or list(made)
            right = right and all(str(made[f].get(value[1])).lower() == value[2].lower() for f in families)
        else:
            right = False
    return got, right


def _collision(given: Mapping[str, Any], expect: Mapping[str, Any]) -> Iterator[Answer]:
    addresses = [Net.parse_interface(text).packed for text in given["host_addresses"]]
    (pool,) = [
        p for p in default_pools(given.get("env", {}), host_addresses=addresses) if "ipv4" in p["metadata"]["name"]
    ]
    yield same("cidr", expect["cidr"], pool["spec"]["cidr"])


def _conflicts(given: Mapping[str, Any], expect: Mapping[str, Any]) -> Iterator[Answer]:
    own = given["self"] if isinstance(given["self"], list) else [given["self"]]
    others = [
        (one["name"], Net.parse_interface(one[key]))
        for one in given["nodes"]
        for key in ("ipv4", "ipv6")
        if one.get(key)
    ]
    found = conflicts(given.get("name", ""), [Net.parse_interface(text) for text in own], others)
    got = found[0] if found else ""
    wanted = expect.get("error", "")
    yield Answer("error", wanted, got, got.startswith(wanted) if wanted else not got)
    if "DISABLE_NODE_IP_CHECK=true" in expect:
        yield elsewhere("DISABLE_NODE_IP_CHECK", "tests/node/test_startup.py starts a node")


def _cases_with(given: Mapping[str, Any], word: str) -> bool:
    return isinstance(given.get("cases"), list) and any(word in key for one in given["cases"] for key in one)


def _looks_like_ids(expect: Mapping[str, Any]) -> bool:
    values = [
        v for e in expect.values() for v in (e if isinstance(e, list) else e.values() if isinstance(e, dict) else [e])
    ]
    return bool(values) and all(isinstance(v, str) and re.fullmatch(r"\d+(\.\d+){3}", v) for v in values)


_FORMS: tuple[tuple[Callable[[Any, Any], bool], Callable[[Any, Any], Iterator[Answer]]], ...] = (
    (lambda given, expect: _cases_with(given, "POOL"), _pools),
    (lambda given, expect: _cases_with(given, "IP"), _settings),
    (lambda given, expect: "host_addresses" in given and "cidr" in expect, _collision),
    (lambda given, expect: "self" in given and "nodes" in given, _conflicts),
    (lambda given, expect: isinstance(expect, dict) and _looks_like_ids(expect), _router_ids),
    (lambda given, expect: "ipv4" in expect or "ipv6" in expect, _detection),
)
