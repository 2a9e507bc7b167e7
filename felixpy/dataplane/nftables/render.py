"""Abstract rules (``felixpy.calc.rule``) as nf_tables expressions. Pure.

One function per match and per action; ``assert_never`` keeps the vocabulary complete.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import assert_never

from felixpy.calc.entries import SetName
from felixpy.calc.rule import (
    Action,
    ChainKey,
    Chains,
    ClassElement,
    CtState,
    Destination,
    DestinationIn,
    DestinationPairIn,
    DestinationPortIn,
    Direction,
    ErrorByPairIn,
    Goto,
    GotoClass,
    Icmp,
    InInterface,
    InInterfaceIn,
    Jump,
    Limit,
    LocalSource,
    Log,
    MapMark,
    Marked,
    Masquerade,
    Match,
    NoTrack,
    OutInterface,
    OutInterfaceIn,
    PortIn,
    Protocol,
    Rule,
    RuleKey,
    SetMark,
    Snat,
    Source,
    SourceIn,
    SourcePairIn,
    SourcePortIn,
    Table,
    TranslateDestination,
    TranslateLoop,
    Verdict,
    Vni,
)
from felixpy.config import PortRange
from felixpy.dataplane.nftables.elements import EXACT_SOURCES
from felixpy.model.net import Family, Net
from felixpy.netlink import expressions as nft
from felixpy.netlink.expressions import Expression
from felixpy.netlink.nftables import (
    HOOK_FORWARD,
    HOOK_INPUT,
    HOOK_OUTPUT,
    HOOK_POSTROUTING,
    HOOK_PREROUTING,
    Hook,
    NftRule,
    interface_name,
)
from felixpy.netlink.rtnetlink import RTN_LOCAL

IPPROTO_ICMP = {Family.V4: 1, Family.V6: 58}
LOG_LEVEL = 5  # notice
FEW_PORTS = 4
"""So many ports or ranges of a list are a rule each; more, or what is none of them, are a set beside the rule."""

HOOKS: dict[ChainKey, Hook] = {
    ChainKey(Table.RAW, "PREROUTING"): Hook("filter", HOOK_PREROUTING, -300),
    ChainKey(Table.RAW, "OUTPUT"): Hook("filter", HOOK_OUTPUT, -300),
    ChainKey(Table.MANGLE, "PREROUTING"): Hook("filter", HOOK_PREROUTING, -150),
    ChainKey(Table.MANGLE, "POSTROUTING"): Hook("filter", HOOK_POSTROUTING, -150),
    ChainKey(Table.FILTER, "INPUT"): Hook("filter", HOOK_INPUT, 0),
    ChainKey(Table.FILTER, "FORWARD"): Hook("filter", HOOK_FORWARD, 0),
    ChainKey(Table.FILTER, "OUTPUT"): Hook("filter", HOOK_OUTPUT, 0),
    # After kube-proxy's at -100 and 100, as Felix does: a Service's own translation comes first.
    ChainKey(Table.NAT, "PREROUTING"): Hook("nat", HOOK_PREROUTING, -90),
    ChainKey(Table.NAT, "OUTPUT"): Hook("nat", HOOK_OUTPUT, -90),
    ChainKey(Table.NAT, "POSTROUTING"): Hook("nat", HOOK_POSTROUTING, 110),
}

_TABLES = {table.value: table for table in Table}

_VERDICTS = {
    Verdict.ACCEPT: nft.NF_ACCEPT,
    Verdict.DROP: nft.NF_DROP,
    Verdict.RETURN: nft.NFT_RETURN,
}


def chain_name(key: ChainKey) -> str:
    """``filter-FORWARD``: the table's name is part of ours, because nf_tables has one table for all hooks."""
    return f"{key.table}-{key.name}"


def chain_key(name: str) -> ChainKey | None:
    """Inverse of ``chain_name``; None for a chain that we would never make."""
    table, _, rest = name.partition("-")
    return ChainKey(_TABLES[table], rest) if table in _TABLES and rest else None


def render_chains(chains: Chains, family: Family) -> dict[RuleKey, tuple[NftRule | str, ...]]:
    """Rules as expressions; an element of a map of classes as the chain that it goes to."""
    return {
        key: tuple(_target(rule) for rule in rules)
        if isinstance(key, ClassElement)
        else tuple(_rendered(rules, key.table, family))
        for key, rules in chains.items()
    }


def _rendered(rules: Iterable[Rule], table: Table, family: Family) -> Iterator[NftRule]:
    for rule in rules:
        if not rule.matches and type(rule.action) is Jump and not (rule.counted or rule.comment):
            yield _jump(table, rule.action.chain)  # nearly all of a class
        else:
            yield from render_rule(rule, table, family)


def render_rule(rule: Rule, table: Table, family: Family) -> Iterator[NftRule]:
    """A rule; or several, one for each of what a match offers as alternatives. Of those for ports the first bears the
    comment.
    """
    ways: list[tuple[Expression, ...]] = [()]
    is_log = type(rule.action) is Log  # stays one rule, as its limit counts for all of them
    for match in rule.matches:
        found = _match(match, family, is_log)
        is_plain = len(found) == len(ways) == 1
        ways = [ways[0] + found[0]] if is_plain else [way + one for way in ways for one in found]
    action = _action(rule.action, table, family, rule.counted)
    yield NftRule(ways[0] + action, rule.comment)
    if len(ways) > 1:
        comment = rule.comment if any(type(match) is SourcePairIn for match in rule.matches) else ""
        yield from (NftRule(way + action, comment) for way in ways[1:])


def _target(rule: Rule) -> str:
    if not isinstance(rule.action, Goto) or rule.matches:
        raise ValueError(f"a map of classes has chains to go to, and no {rule}")
    return chain_name(ChainKey(Table.FILTER, rule.action.chain))


@lru_cache(1 << 13, typed=True)
def _action(action: Action, table: Table, family: Family, counted: bool) -> tuple[Expression, ...]:
    """Policies have few different ones."""
    expressions = [nft.counter()] if counted else []
    match action:
        case Verdict.REJECT:
            code = nft.ICMP_PORT_UNREACH if family is Family.V4 else nft.ICMPV6_PORT_UNREACH
            expressions.append(nft.reject(code))
        case Verdict() as verdict:
            expressions.append(nft.verdict(_VERDICTS[verdict]))
        case Jump(chain):
            expressions.append(nft.verdict(nft.NFT_JUMP, chain_name(ChainKey(table, chain))))
        case Goto(chain):
            expressions.append(nft.verdict(nft.NFT_GOTO, chain_name(ChainKey(table, chain))))
        case GotoClass(name, mask):
            load = [nft.meta(nft.NFT_META_MARK), nft.mask(nft.mark(mask))]
            expressions += [*load, nft.lookup_verdict(name)]
        case SetMark(value, mask):
            keep = nft.mark(~mask & 0xFFFFFFFF)
            expressions += [nft.meta(nft.NFT_META_MARK), nft.merge(keep, nft.mark(value)), nft.set_mark()]
        case MapMark():
            raise ValueError("nftables takes no mark from a member of a set: use GotoClass")
        case Log(prefix):
            expressions.append(nft.log(prefix, LOG_LEVEL))
        case NoTrack():
            expressions.append(nft.notrack())
        case Masquerade(ports):
            expressions += _masquerade(ports)
        case Snat(address, ports):
            expressions += _snat(family, address, ports)
        case TranslateDestination(name):
            load = [_address(family, source=False), nft.lookup_data(name)]
            expressions += [*load, nft.address_nat(family, nft.REG_1, nft.NF_NAT_RANGE_MAP_IPS, destination=True)]
        case TranslateLoop(name):
            load = [_address(family, source=True), _address(family, source=False, register=_behind_address(family))]
            load.append(nft.lookup_data(name))
            expressions += [*load, nft.address_nat(family, nft.REG_1, nft.NF_NAT_RANGE_MAP_IPS)]
        case _:
            assert_never(action)
    return tuple(expressions)


@lru_cache(1 << 14)
def _jump(table: Table, chain: str) -> NftRule:
    """Most rules of classes are such."""
    return NftRule((nft.verdict(nft.NFT_JUMP, chain_name(ChainKey(table, chain))),))


@lru_cache(1 << 14, typed=True)  # matches of two kinds may be equal tuples
def _match(match: Match, family: Family, together: bool) -> tuple[tuple[Expression, ...], ...]:
    """What a match is; or each of its alternatives, which a rule of its own asks, unless they are to be ``together``.

    A few ports are a rule each: to name another set, the kernel goes through all that there are. And single addresses
    that may be sources are in a set of their own.
    """
    some = [match]
    if not together and isinstance(match, PortIn) and not match.negated:
        ranges = _merged(match.ranges)
        if 1 < len(ranges) <= FEW_PORTS:
            some = [match._replace(ranges=(PortRange(*one),)) for one in ranges]
    elif not together and isinstance(match, SourcePairIn) and match.set is SetName.ALLOWED_SOURCES:
        some = [SourcePairIn(EXACT_SOURCES), match]
    return tuple(tuple(_expressions_of(one, family)) for one in some)


def _expressions_of(match: Match, family: Family) -> list[Expression]:
    match match:
        case InInterface(name, prefix):
            return _interface(nft.NFT_META_IIFNAME, name, prefix)
        case OutInterface(name, prefix):
            return _interface(nft.NFT_META_OIFNAME, name, prefix)
        case Source(net, negated):
            return _in_net(net, source=True, negated=negated)
        case Destination(net, negated):
            return _in_net(net, source=False, negated=negated)
        case SourceIn(name, negated):
            return [_address(family, source=True), nft.lookup(name, negated=negated)]
        case DestinationIn(name, negated):
            return [_address(family, source=False), nft.lookup(name, negated=negated)]
        case SourcePairIn(name):
            return _pair(family, name, source=True)
        case DestinationPairIn(name, negated):
            return _pair(family, name, source=False, negated=negated)
        case ErrorByPairIn(name, direction):
            sender = nft.conntrack_source(family, reply=direction is Direction.REPLY)
            return [sender, nft.meta(nft.NFT_META_IIFNAME, _behind_address(family)), nft.lookup(name)]
        case InInterfaceIn(name):
            return [nft.meta(nft.NFT_META_IIFNAME), nft.lookup(name)]
        case OutInterfaceIn(name):
            return [nft.meta(nft.NFT_META_OIFNAME), nft.lookup(name)]
        case SourcePortIn(name, negated):
            return _address_port(family, name, source=True, negated=negated)
        case DestinationPortIn(name, negated):
            return _address_port(family, name, source=False, negated=negated)
        case CtState.ESTABLISHED:
            return _state(nft.CT_ESTABLISHED)
        case CtState.RELATED:
            return _state(nft.CT_RELATED)
        case CtState.ESTABLISHED_OR_RELATED:
            return _state(nft.CT_ESTABLISHED | nft.CT_RELATED)
        case CtState.INVALID:
            return _state(nft.CT_INVALID)
        case CtState.NOT_ESTABLISHED:
            return _state(nft.CT_ESTABLISHED | nft.CT_RELATED, nft.NFT_CMP_EQ)
        case Protocol(number, port, negated):
            return _protocol(number, port, negated=negated)
        case Icmp(kind, code, negated):
            # Type and code stand side by side, so the pair is compared, and negated, as one.
            data = bytes((kind,)) if code is None else bytes((kind, code))
            operation = nft.NFT_CMP_NEQ if negated else nft.NFT_CMP_EQ
            return [*_protocol(IPPROTO_ICMP[family], None), _transport(0, len(data)), nft.compare(data, operation)]
        case PortIn(ranges, source, negated):
            return [_transport(0 if source else 2, 2), *_in_ranges(ranges, negated=negated)]
        case Marked(value, mask):
            return [nft.meta(nft.NFT_META_MARK), nft.mask(nft.mark(mask)), nft.compare(nft.mark(value))]
        case Vni(number):
            return [_transport(12, 3), nft.compare(number.to_bytes(3, "big"))]
        case LocalSource(of_output, negated):
            operation = nft.NFT_CMP_NEQ if negated else nft.NFT_CMP_EQ
            return [nft.source_type(of_output=of_output), nft.compare(struct.pack("=I", RTN_LOCAL), operation)]
        case Limit(packets, seconds, burst):
            return [nft.limit(packets, seconds, burst)]
        case _:
            assert_never(match)


def _interface(key: int, name: str, prefix: bool) -> list[Expression]:
    data = name.encode() if prefix else interface_name(name)
    return [nft.meta(key), nft.compare(data)] if data else []


def _address(family: Family, *, source: bool, length: int | None = None, register: int = nft.REG_1) -> Expression:
    """The address, or its first ``length`` bytes."""
    if family is Family.V4:
        return nft.payload(nft.NFT_PAYLOAD_NETWORK_HEADER, 12 if source else 16, length or 4, register)
    return nft.payload(nft.NFT_PAYLOAD_NETWORK_HEADER, 8 if source else 24, length or 16, register)


def _pair(family: Family, name: str, *, source: bool, negated: bool = False) -> list[Expression]:
    key = nft.NFT_META_IIFNAME if source else nft.NFT_META_OIFNAME
    return [_address(family, source=source), nft.meta(key, _behind_address(family)), nft.lookup(name, negated=negated)]


def _behind_address(family: Family) -> int:
    return nft.REG32_01 if family is Family.V4 else nft.REG_2


def _address_port(family: Family, name: str, *, source: bool, negated: bool) -> list[Expression]:
    protocol, port = (nft.REG32_01, nft.REG32_02) if family is Family.V4 else (nft.REG_2, nft.REG32_05)
    return [
        _address(family, source=source),
        nft.meta(nft.NFT_META_L4PROTO, protocol),
        _transport(0 if source else 2, 2, port),
        nft.lookup(name, negated=negated),
    ]


def _merged(ranges: tuple[PortRange, ...]) -> list[tuple[int, int]]:
    """Ranges that neither overlap nor touch."""
    merged: list[tuple[int, int]] = []
    for one in sorted(ranges):
        if merged and one.first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(merged[-1][1], one.last)
        else:
            merged.append((one.first, one.last))
    return merged


def _in_ranges(ranges: tuple[PortRange, ...], *, negated: bool) -> list[Expression]:
    """Register 1 lies in one of the ranges. One port, or one range, needs no set."""
    merged = _merged(ranges)
    if len(merged) != 1:
        return [nft.port_set(merged, negated=negated)]
    operation = nft.NFT_CMP_NEQ if negated else nft.NFT_CMP_EQ
    first, last = (struct.pack(">H", port) for port in merged[0])
    return [nft.compare(first, operation) if first == last else nft.in_range(first, last, operation)]


def _in_net(net: Net, *, source: bool, negated: bool) -> list[Expression]:
    load, operation = _address(net.family, source=source), nft.NFT_CMP_NEQ if negated else nft.NFT_CMP_EQ
    if net.is_host:
        return [load, nft.compare(net.packed, operation)]
    whole, rest = divmod(net.length, 8)
    if whole and not rest:
        return [_address(net.family, source=source, length=whole), nft.compare(net.packed[:whole], operation)]
    bits = (((1 << net.length) - 1) << (net.family.bits - net.length)).to_bytes(len(net.packed), "big")
    return [load, nft.mask(bits), nft.compare(net.packed, operation)]


def _state(bits: int, operation: int = nft.NFT_CMP_NEQ) -> list[Expression]:
    data = struct.pack("=I", bits)
    return [nft.conntrack_state(), nft.mask(data), nft.compare(bytes(4), operation)]


def _protocol(number: int, port: int | None, *, negated: bool = False) -> list[Expression]:
    operation = nft.NFT_CMP_NEQ if negated else nft.NFT_CMP_EQ
    match = [nft.meta(nft.NFT_META_L4PROTO), nft.compare(bytes((number,)), operation)]
    if port is not None:
        match += [_transport(2, 2), nft.compare(struct.pack(">H", port))]
    return match


def _transport(offset: int, length: int, register: int = nft.REG_1) -> Expression:
    return nft.payload(nft.NFT_PAYLOAD_TRANSPORT_HEADER, offset, length, register)


def _ports(ports: PortRange, first_register: int) -> list[Expression]:
    first, last = struct.pack(">H", ports.first), struct.pack(">H", ports.last)
    return [nft.immediate(first, first_register), nft.immediate(last, first_register + 1)]


def _masquerade(ports: PortRange | None) -> list[Expression]:
    if ports is None:
        return [nft.masquerade(nft.NF_NAT_RANGE_PROTO_RANDOM_FULLY)]
    flags = nft.NF_NAT_RANGE_PROTO_RANDOM_FULLY | nft.NF_NAT_RANGE_PROTO_SPECIFIED
    return [*_ports(ports, nft.REG_1), nft.masquerade(flags, port_registers=(nft.REG_1, nft.REG_1 + 1))]


def _snat(family: Family, address: bytes, ports: PortRange | None) -> list[Expression]:
    load = nft.immediate(address, nft.REG_1)
    flags = nft.NF_NAT_RANGE_PROTO_RANDOM_FULLY | nft.NF_NAT_RANGE_MAP_IPS
    if ports is None:
        return [load, nft.address_nat(family, nft.REG_1, flags)]
    registers = (nft.REG_2, nft.REG_2 + 1)
    flags |= nft.NF_NAT_RANGE_PROTO_SPECIFIED
    return [load, *_ports(ports, nft.REG_2), nft.address_nat(family, nft.REG_1, flags, port_registers=registers)]
