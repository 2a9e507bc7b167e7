"""nftables rules as ``nft -n -j list ruleset`` prints them, turned into steps. Pure.

Invariant: an expression that is not known here is answered with None (cannot be judged), never with a guess.
Format: libnftables-json(5).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from felixpy.explain.packet import (
    ACCEPT,
    DROP,
    PROTOCOLS,
    REJECT,
    RETURN,
    TCP,
    UDP,
    UNKNOWN,
    Action,
    Answer,
    Chain,
    IsLocal,
    IsOn,
    Packet,
    Rule,
    Ruleset,
    Step,
    nobody_knows,
)
from felixpy.model.net import Family, Net, parse_address

Json = Any
FAMILIES = {"ip": Family.V4, "ip6": Family.V6}
CT_STATES = {"invalid": 1, "established": 2, "related": 4, "new": 8, "untracked": 64}
CT_STATUS = {"snat": 16, "dnat": 32}
FIB_TYPES = {"unicast": 1, "local": 2}
PORTS = {TCP: "tcp", UDP: "udp", 132: "sctp", 136: "udplite"}
NO_EFFECT = {
    "counter",
    "log",
    "comment",
    "ct helper",
    "ct timeout",
    "ct expectation",
    "flow",
    "set",
    "map",
    "meter",
    None,
}
_SIMPLE = {"accept": ACCEPT, "drop": DROP, "reject": REJECT, "return": RETURN, "continue": True}


class _Absent:
    """The packet has no such field: the rule does not match, whatever the operator."""


class _Unjudged:
    """The field cannot be told here."""


ABSENT, UNJUDGED = _Absent(), _Unjudged()


SetPlace = tuple[str, str, str]
"""Family, table and name of a set."""


def parse(
    text: str,
    family: Family,
    is_local: IsLocal,
    skipped: Collection[tuple[str, str]] = (),
    interfaces: Mapping[SetPlace, Sequence[str]] | None = None,
    is_on: IsOn = nobody_knows,
) -> list[Ruleset]:
    """Tables that packets of a family go through, without ``skipped`` ones, given as (family, name).

    ``interfaces`` are members of the sets that ``nameless`` told of.
    """
    objects = json.loads(text or "{}").get("nftables", [])
    wanted = {"inet", "ip" if family is Family.V4 else "ip6"}
    tables: dict[tuple[str, str], Ruleset] = {}
    sets: dict[tuple[str, str], dict[str, Json]] = {}
    for one in objects:
        for kind, body in one.items():
            key = body.get("family", ""), body.get("name" if kind == "table" else "table", "")
            if key[0] not in wanted or key in skipped:
                continue
            if kind == "table":
                tables[key] = Ruleset(f"nftables table {key[0]} {key[1]}")
            elif kind in ("set", "map"):
                members = (interfaces or {}).get((*key, body["name"]), body.get("elem", []))
                sets.setdefault(key, {})[body["name"]] = members
            elif kind == "chain":
                tables[key].chains[body["name"]] = _chain(body)
            elif kind == "rule":
                made = rule(body, sets.setdefault(key, {}), is_local, is_on)
                tables[key].chains[body["chain"]].rules.append(made)
    return list(tables.values())


def nameless(text: str) -> list[SetPlace]:
    """Sets of interfaces whose members nft prints as empty names (nft 1.0 does): they have to be read otherwise."""
    found = (one["set"] for one in json.loads(text or "{}").get("nftables", []) if "set" in one)
    return [
        (body["family"], body["table"], body["name"])
        for body in found
        if body.get("type") == "ifname" and "" in body.get("elem", ())
    ]


def other_families(text: str) -> list[str]:
    """Tables at hooks that are not followed: those of bridges and of single devices."""
    tables = [one["table"] for one in json.loads(text or "{}").get("nftables", []) if "table" in one]
    return [f"{table['family']} {table['name']}" for table in tables if table["family"] in ("bridge", "netdev")]


def _chain(body: Json) -> Chain:
    return Chain(
        body["name"],
        hook=body.get("hook", ""),
        priority=body.get("prio", 0),
        is_nat=body.get("type") == "nat",
        policy=DROP if body.get("policy") == "drop" else ACCEPT,
    )


def rule(body: Json, sets: Mapping[str, Json], is_local: IsLocal, is_on: IsOn = nobody_knows) -> Rule:
    """One rule; ``sets`` are the elements of the table's sets and maps by name."""
    reader = _Reader(sets, is_local, is_on)
    steps = tuple(step for expression in body.get("expr", []) for step in reader.steps(expression))
    return Rule(steps, rule_text(body), body.get("comment", ""))


class _Reader:
    def __init__(self, sets: Mapping[str, Json], is_local: IsLocal, is_on: IsOn) -> None:
        self._sets = sets
        self._is_local = is_local
        self._is_on = is_on

    def steps(self, expression: Json) -> Iterable[Step]:
        for kind, body in expression.items():
            yield self._step(kind, body)

    def _step(self, kind: str, body: Json) -> Step:
        if kind in _SIMPLE:
            return lambda packet, answer=_SIMPLE[kind]: answer  # type: ignore[misc]
        if kind in NO_EFFECT:
            return lambda packet: True
        if kind == "xt" and isinstance(body, dict) and body.get("name") == "comment":
            return lambda packet: True
        named: dict[str, Callable[[Packet], Answer]] = {
            "match": lambda packet: self._match(packet, body),
            "vmap": lambda packet: self._verdict(packet, body),
            "jump": lambda packet: Action("jump", body["target"]),
            "goto": lambda packet: Action("goto", body["target"]),
            "mangle": lambda packet: self._mangle(packet, body),
            "notrack": _notrack,
            "masquerade": lambda packet: Action("masquerade", port=_first_port(body)),
            "redirect": lambda packet: Action("redirect", port=_first_port(body)),
            "snat": lambda packet: self._nat(packet, "snat", body),
            "dnat": lambda packet: self._nat(packet, "dnat", body),
        }
        if kind in ("limit", "quota", "ct count"):
            return lambda packet: None
        return named.get(kind, lambda packet: UNKNOWN)

    # --- matches -----------------------------------------------------------------------------------------------

    def _match(self, packet: Packet, body: Json) -> bool | None:
        value = self.value(packet, body["left"])
        if value is ABSENT:
            return False
        if value is UNJUDGED:
            return None
        if isinstance(value, frozenset):
            found: bool | None = bool(value & _flags(body["right"]))
        else:
            found = self._equals(value, body["right"])
        if body["op"] in ("==", "in"):
            return found
        if body["op"] == "!=":
            return None if found is None else not found
        if body["op"] in ("<", ">", "<=", ">=") and isinstance(value, int) and isinstance(body["right"], int):
            limit = body["right"]
            return {"<": value < limit, ">": value > limit, "<=": value <= limit, ">=": value >= limit}[body["op"]]
        return None

    def _equals(self, value: Any, right: Json) -> bool | None:
        """Whether a value is or lies in what stands right of an operator."""
        if isinstance(right, str) and right.startswith("@"):
            right = {"set": self._sets.get(right[1:])}
        if isinstance(right, dict) and "set" in right:
            if right["set"] is None:
                return None
            members = right["set"] if isinstance(right["set"], list) else [right["set"]]
            return _any(self._equals(value, member) for member in members)
        if isinstance(right, dict) and "elem" in right:
            return self._equals(value, right["elem"]["val"])
        if isinstance(value, tuple):
            parts = right.get("concat") if isinstance(right, dict) else None
            if parts is None or len(parts) != len(value):
                return None
            return _all(self._equals(one, part) for one, part in zip(value, parts, strict=True))
        return _plain(value, right)

    def value(self, packet: Packet, left: Json) -> Any:
        """What an expression means for this packet: bytes, int, text, a set of flags; ABSENT or UNJUDGED."""
        if not isinstance(left, dict):
            return left if isinstance(left, int) else UNJUDGED
        if "concat" in left:
            parts = tuple(self.value(packet, part) for part in left["concat"])
            return next((part for part in parts if part is ABSENT or part is UNJUDGED), parts)
        if "payload" in left:
            return _payload(packet, left["payload"])
        if "meta" in left:
            return _meta(packet, left["meta"]["key"])
        if "ct" in left:
            return _conntrack(packet, left["ct"]["key"])
        if "fib" in left:
            return self._fib(packet, left["fib"])
        for operator, compute in _BINARY.items():
            if operator in left:
                values = [self.value(packet, part) for part in left[operator][:2]]
                return compute(*values) if all(isinstance(one, int) for one in values) else UNJUDGED
        return UNJUDGED

    def _fib(self, packet: Packet, fib: Json) -> Any:
        flags = set(fib.get("flags", []))
        sides, interfaces = flags & {"saddr", "daddr"}, flags & {"iif", "oif"}
        if fib.get("result") != "type" or len(sides) != 1 or len(interfaces) > 1 or flags - sides - interfaces:
            return UNJUDGED
        address = packet.source if "saddr" in flags else packet.destination
        if not interfaces:
            return FIB_TYPES["local" if self._is_local(address) else "unicast"]
        found = self._is_on(address, packet.iif if "iif" in flags else packet.oif)
        return UNJUDGED if found is None else FIB_TYPES["local" if found else "unicast"]

    # --- maps and statements -----------------------------------------------------------------------------------

    def _lookup(self, packet: Packet, key: Json, data: Json) -> tuple[bool | None, Json]:
        """Whether a map holds the key's value, and what it maps to."""
        value = self.value(packet, key)
        if value is ABSENT:
            return False, None
        if value is UNJUDGED:
            return None, None
        pairs = self._sets.get(data[1:]) if isinstance(data, str) else data.get("set")
        if pairs is None:
            return None, None
        unclear = False
        for member, result in pairs:
            found = bool(value & _flags(member)) if isinstance(value, frozenset) else self._equals(value, member)
            if found:
                return True, result
            unclear = unclear or found is None
        return (None if unclear else False), None

    def _verdict(self, packet: Packet, body: Json) -> Answer:
        found, result = self._lookup(packet, body["key"], body["data"])
        if found is None:
            return UNKNOWN
        if not found:
            return False
        ((kind, target),) = result.items()
        return self._step(kind, target)(packet)

    def _mangle(self, packet: Packet, body: Json) -> bool:
        if body["key"] == {"meta": {"key": "mark"}}:
            value = self.value(packet, body["value"])
            if isinstance(value, int):
                packet.mark = value & 0xFFFFFFFF
        return True

    def _nat(self, packet: Packet, kind: str, body: Json) -> Answer:
        address = (body or {}).get("addr")
        if isinstance(address, dict) and "map" in address:
            found, address = self._lookup(packet, address["map"]["key"], address["map"]["data"])
            if not found:
                return UNKNOWN if found is None else False
        if isinstance(address, dict) and "concat" in address:
            address, port = address["concat"][0], address["concat"][1]
        else:
            port = (body or {}).get("port")
        if isinstance(address, dict) and "range" in address:
            return UNKNOWN
        try:
            packed = parse_address(str(address)) if address else None
        except (ValueError, TypeError):
            return UNKNOWN
        return Action(kind, address=packed, port=port if isinstance(port, int) else None)


_BINARY: dict[str, Callable[[int, int], int]] = {
    "&": lambda one, other: one & other,
    "|": lambda one, other: one | other,
    "^": lambda one, other: one ^ other,
    "<<": lambda one, other: one << other,
    ">>": lambda one, other: one >> other,
}


def _any(answers: Iterable[bool | None]) -> bool | None:
    unclear = False
    for answer in answers:
        if answer:
            return True
        unclear = unclear or answer is None
    return None if unclear else False


def _all(answers: Iterable[bool | None]) -> bool | None:
    unclear = False
    for answer in answers:
        if answer is False:
            return False
        unclear = unclear or answer is None
    return None if unclear else True


def _plain(value: Any, right: Json) -> bool | None:
    """A single value against a single member: an address, a prefix, a range, a number, a name with ``*``."""
    try:
        if isinstance(value, bytes):
            if isinstance(right, dict) and "prefix" in right:
                return Net(parse_address(right["prefix"]["addr"]), right["prefix"]["len"]).covers(value)
            if isinstance(right, dict) and "range" in right:
                first, last = (parse_address(end) for end in right["range"])
                return first <= value <= last
            return Net.parse_masked(str(right)).covers(value)
        if isinstance(right, dict) and "range" in right:
            first, last = right["range"]
            return first <= value <= last if isinstance(value, int) and isinstance(first, int) else None
        if isinstance(value, str):
            if not isinstance(right, str) or not right:
                return None  # an empty name is one that nft could not print
            return value.startswith(right[:-1]) if right.endswith("*") else value == right
        if isinstance(right, str):
            right = PROTOCOLS.get(right, right)
        return value == right if isinstance(right, int) else None
    except (ValueError, TypeError):
        return None


def _flags(right: Json) -> frozenset[int]:
    if isinstance(right, dict):
        right = right.get("set", [])
    members = right if isinstance(right, list) else [right]
    known: Mapping[Any, Any] = {**CT_STATES, **CT_STATUS}
    return frozenset(known.get(one, one) for one in members if isinstance(one, str | int))


def _payload(packet: Packet, payload: Json) -> Any:
    protocol, name = payload.get("protocol"), payload.get("field")
    if protocol in FAMILIES:
        if FAMILIES[protocol] is not packet.family:
            return ABSENT
        fields = {"saddr": packet.source, "daddr": packet.destination, "protocol": packet.protocol,
                  "nexthdr": packet.protocol}  # fmt: skip
        return fields.get(name, UNJUDGED)
    if protocol in PORTS.values() or protocol == "th":
        if packet.protocol not in PORTS or protocol not in ("th", PORTS[packet.protocol]):
            return ABSENT
        ports = {"sport": packet.source_port, "dport": packet.port}
        value = ports.get(name)
        return UNJUDGED if value is None else value
    if payload.get("base") == "th":
        return _raw_transport(packet, payload.get("offset"), payload.get("len"))
    if protocol in ("icmp", "icmpv6"):
        if packet.protocol != PROTOCOLS[protocol]:
            return ABSENT
        return packet.icmp_type if name == "type" else 0 if name == "code" else UNJUDGED
    return UNJUDGED


def _raw_transport(packet: Packet, offset: Any, length: Any) -> Any:
    """Bits behind the IP header without a name: an ICMP type with its code, ports, and the network of VXLAN."""
    if packet.icmp_type is not None:
        known: dict[tuple[Any, Any], int | None] = {(0, 8): packet.icmp_type, (8, 8): 0, (0, 16): packet.icmp_type << 8}
    elif packet.protocol in PORTS:
        known = {(0, 16): packet.source_port, (16, 16): packet.port, (96, 24): packet.vni}
    else:
        return UNJUDGED
    value = known.get((offset, length))
    return UNJUDGED if value is None else value


def _meta(packet: Packet, key: str) -> Any:
    found = {
        "iifname": packet.iif, "iif": packet.iif, "oifname": packet.oif, "oif": packet.oif, "mark": packet.mark,
        "l4proto": packet.protocol, "nfproto": int(packet.family), "protocol": UNJUDGED,
    }  # fmt: skip
    return found.get(key, UNJUDGED)


def _conntrack(packet: Packet, key: str) -> Any:
    if key == "state":
        return frozenset({CT_STATES["new" if packet.tracked else "untracked"]})
    if key == "status":
        return frozenset(CT_STATUS[kind] for kind in packet.translated)
    return UNJUDGED


def _notrack(packet: Packet) -> bool:
    packet.tracked = False
    return True


def _first_port(body: Json) -> int | None:
    port = (body or {}).get("port")
    return port if isinstance(port, int) else None


def rule_text(body: Json) -> str:
    """A rule for people: its comment if it has one, else its expressions in short."""
    short = " ".join(_short(expression) for expression in body.get("expr", []))
    return f'{short} comment "{body["comment"]}"' if "comment" in body else short


def _short(expression: Json) -> str:
    if not isinstance(expression, dict):
        return str(expression)
    for kind, body in expression.items():
        if kind == "match":
            operator = "" if body["op"] in ("==", "in") else f"{body['op']} "
            return f"{_short(body['left'])} {operator}{_short(body['right'])}"
        if kind in ("payload", "meta", "ct"):
            return " ".join(str(part) for part in body.values()) if kind == "payload" else f"{kind} {body['key']}"
        if kind == "prefix":
            return f"{body['addr']}/{body['len']}"
        if kind == "range":
            return f"{body[0]}-{body[1]}"
        if kind == "concat":
            return " . ".join(map(_short, body))
        if kind == "set" and isinstance(body, list):
            return "{ " + ", ".join(map(_short, body[:5])) + (", …" if len(body) > 5 else "") + " }"
        if kind in ("jump", "goto"):
            return f"{kind} {body['target']}"
        return kind if kind != "counter" else "counter"
    return ""
