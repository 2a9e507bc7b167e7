"""Abstract rules (``felixpy.calc.rules``) as nf_tables expressions. Pure.

One function per match and per action; ``assert_never`` keeps the vocabulary complete.
"""

from __future__ import annotations

import struct
from typing import assert_never

from felixpy.calc.entries import SetName
from felixpy.calc.rules import (
    ChainKey,
    Chains,
    CtState,
    Destination,
    DestinationIn,
    DestinationPairIn,
    Direction,
    ErrorByPairIn,
    Icmpv6Type,
    InInterface,
    Jump,
    Masquerade,
    Match,
    OutInterface,
    Protocol,
    Rule,
    Snat,
    Source,
    SourceIn,
    SourcePairIn,
    Table,
    Verdict,
)
from felixpy.config import PortRange
from felixpy.model.net import Family, Net
from felixpy.netlink import nftables as nft
from felixpy.netlink.nftables import Expression, Hook, NftRule

IPPROTO_ICMPV6 = 58

HOOKS: dict[ChainKey, Hook] = {
    ChainKey(Table.RAW, "PREROUTING"): Hook("filter", nft.HOOK_PREROUTING, -300),
    ChainKey(Table.FILTER, "INPUT"): Hook("filter", nft.HOOK_INPUT, 0),
    ChainKey(Table.FILTER, "FORWARD"): Hook("filter", nft.HOOK_FORWARD, 0),
    # After kube-proxy's postrouting at 100, as Felix does: a Service's own masquerade comes first.
    ChainKey(Table.NAT, "POSTROUTING"): Hook("nat", nft.HOOK_POSTROUTING, 110),
}

_VERDICTS = {
    Verdict.ACCEPT: nft.NF_ACCEPT,
    Verdict.DROP: nft.NF_DROP,
    Verdict.RETURN: nft.NFT_RETURN,
}


def chain_name(key: ChainKey) -> str:
    """``filter-FORWARD``: the table's name is part of ours, because nf_tables has one table for all hooks."""
    return f"{key.table}-{key.name}"


def render_chains(chains: Chains, family: Family) -> dict[ChainKey, tuple[NftRule, ...]]:
    return {key: tuple(render_rule(rule, key.table, family) for rule in rules) for key, rules in chains.items()}


def render_rule(rule: Rule, table: Table, family: Family) -> NftRule:
    expressions: list[Expression] = []
    for match in rule.matches:
        expressions += _match(match, family)
    match rule.action:
        case Verdict.REJECT:
            code = nft.ICMP_PORT_UNREACH if family is Family.V4 else nft.ICMPV6_PORT_UNREACH
            expressions.append(nft.reject(code))
        case Verdict() as verdict:
            expressions.append(nft.verdict(_VERDICTS[verdict]))
        case Jump(chain):
            expressions.append(nft.verdict(nft.NFT_JUMP, chain_name(ChainKey(table, chain))))
        case Masquerade(ports):
            expressions += _masquerade(ports)
        case Snat(address, ports):
            expressions += _snat(family, address, ports)
        case _:
            assert_never(rule.action)
    return NftRule(tuple(expressions), rule.comment)


def _match(match: Match, family: Family) -> list[Expression]:
    match match:
        case InInterface(name, prefix):
            return _interface(nft.NFT_META_IIFNAME, name, prefix)
        case OutInterface(name, prefix):
            return _interface(nft.NFT_META_OIFNAME, name, prefix)
        case Source(net):
            return _within(net, source=True)
        case Destination(net):
            return _within(net, source=False)
        case SourceIn(name, negated):
            return [_address(family, source=True), nft.lookup(name, negated=negated)]
        case DestinationIn(name, negated):
            return [_address(family, source=False), nft.lookup(name, negated=negated)]
        case SourcePairIn(name):
            return _pair(family, name, source=True)
        case DestinationPairIn(name):
            return _pair(family, name, source=False)
        case ErrorByPairIn(name, direction):
            sender = nft.conntrack_source(family, reply=direction is Direction.REPLY)
            return [sender, nft.meta(nft.NFT_META_IIFNAME, _behind_address(family)), nft.lookup(name)]
        case CtState.ESTABLISHED:
            return _state(nft.CT_ESTABLISHED)
        case CtState.RELATED:
            return _state(nft.CT_RELATED)
        case CtState.ESTABLISHED_OR_RELATED:
            return _state(nft.CT_ESTABLISHED | nft.CT_RELATED)
        case CtState.INVALID:
            return _state(nft.CT_INVALID)
        case Protocol(number, port):
            return _protocol(number, port)
        case Icmpv6Type(kind):
            return [*_protocol(IPPROTO_ICMPV6, None), _transport(0, 1), nft.compare(bytes((kind,)))]
        case _:
            assert_never(match)


def _interface(key: int, name: str, prefix: bool) -> list[Expression]:
    data = name.encode() if prefix else nft.interface_name(name)
    return [nft.meta(key), nft.compare(data)] if data else []


def _address(family: Family, *, source: bool, length: int | None = None) -> Expression:
    """The address, or its first ``length`` bytes."""
    if family is Family.V4:
        return nft.payload(nft.NFT_PAYLOAD_NETWORK_HEADER, 12 if source else 16, length or 4)
    return nft.payload(nft.NFT_PAYLOAD_NETWORK_HEADER, 8 if source else 24, length or 16)


def _pair(family: Family, name: SetName, *, source: bool) -> list[Expression]:
    key = nft.NFT_META_IIFNAME if source else nft.NFT_META_OIFNAME
    return [_address(family, source=source), nft.meta(key, _behind_address(family)), nft.lookup(name)]


def _behind_address(family: Family) -> int:
    return nft.REG32_01 if family is Family.V4 else nft.REG_2


def _within(net: Net, *, source: bool) -> list[Expression]:
    load = _address(net.family, source=source)
    if net.is_host:
        return [load, nft.compare(net.packed)]
    whole, rest = divmod(net.length, 8)
    if whole and not rest:
        return [_address(net.family, source=source, length=whole), nft.compare(net.packed[:whole])]
    bits = (((1 << net.length) - 1) << (net.family.bits - net.length)).to_bytes(len(net.packed), "big")
    return [load, nft.mask(bits), nft.compare(net.packed)]


def _state(bits: int) -> list[Expression]:
    data = struct.pack("=I", bits)
    return [nft.conntrack_state(), nft.mask(data), nft.compare(bytes(4), nft.NFT_CMP_NEQ)]


def _protocol(number: int, port: int | None) -> list[Expression]:
    match = [nft.meta(nft.NFT_META_L4PROTO), nft.compare(bytes((number,)))]
    if port is not None:
        match += [_transport(2, 2), nft.compare(struct.pack(">H", port))]
    return match


def _transport(offset: int, length: int) -> Expression:
    return nft.payload(nft.NFT_PAYLOAD_TRANSPORT_HEADER, offset, length)


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
        return [load, nft.source_nat(family, nft.REG_1, flags)]
    registers = (nft.REG_2, nft.REG_2 + 1)
    flags |= nft.NF_NAT_RANGE_PROTO_SPECIFIED
    return [load, *_ports(ports, nft.REG_2), nft.source_nat(family, nft.REG_1, flags, port_registers=registers)]
