"""Entries of the calculation of policy, walked by a packet as a kernel would: for tests without one.

It knows the contract (``felixpy.calc.policy.classes``) and nothing of how the entries came about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from felixpy.calc.policy.classes import (
    ClassKey,
    Direction,
    EndOfTier,
    EndpointClass,
    EndpointClasses,
    EndpointClassKey,
    HostEndpointChains,
    HostEndpointKey,
    Icmp,
    MemberKey,
    PolicyAction,
    PolicyChain,
    PolicyChainKey,
    PolicyKey,
    PolicyRule,
    PolicySet,
    PolicySetKey,
    PolicySetType,
    PolicyValue,
    Side,
    TierChains,
)
from felixpy.model.net import Family, Net, family_of

ICMP = {Family.V4: 1, Family.V6: 58}
WITH_PORTS = (6, 17, 132)


@dataclass(frozen=True)
class Packet:
    """A packet of a new connection. ``icmp`` is type and code."""

    source: bytes
    destination: bytes
    protocol: int = 6
    source_port: int = 40000
    port: int = 80
    icmp: tuple[int, int] = (0, 0)

    @property
    def family(self) -> Family:
        return family_of(self.source)


class World:
    """The entries of one node."""

    def __init__(self, entries: Mapping[PolicyKey, PolicyValue]) -> None:
        self.entries = entries
        self.members: dict[str, set[MemberKey]] = {}
        for key in entries:
            if isinstance(key, MemberKey):
                self.members.setdefault(key.set, set()).add(key)
        self.logged: list[str] = []

    def check(self) -> None:
        """What entries refer to is there, and what is there is referred to."""
        chains, sets, classes = set(), set(), set()
        for key, value in self.entries.items():
            if isinstance(value, EndpointClass):
                assert isinstance(key, ClassKey)
                chains |= {(key.family, name) for tier in value.tiers for name in tier.chains}
                chains |= {(key.family, name) for name in value.profiles}
                assert value.comment.isascii() and len(value.comment) <= 100
            elif isinstance(value, HostEndpointChains):
                assert isinstance(key, HostEndpointKey)
                for field in value[:-1]:
                    names = [name for one in field for name in (one.chains if isinstance(one, TierChains) else (one,))]
                    chains |= {(key.family, name) for name in names}
            elif isinstance(value, PolicyChain):
                assert isinstance(key, PolicyChainKey)
                for rule in value.rules:
                    for side in (rule.source, rule.destination):
                        used = (*side.sets, *side.not_sets, *side.port_sets, *side.not_port_sets)
                        sets |= {(key.family, name) for name in used}
                        assert all(net.family is key.family for net in (*side.nets, *side.not_nets))
                        assert len(side.nets) <= 1 and (not side.ports or rule.protocol in WITH_PORTS)
                    assert (rule.action is PolicyAction.LOG) == bool(rule.log_prefix)
            elif isinstance(value, EndpointClasses):
                assert isinstance(key, EndpointClassKey)
                for way, number in zip((Direction.INGRESS, Direction.EGRESS), value, strict=True):
                    if number:
                        classes.add(ClassKey(key.family, way, number))
        there = {(key.family, key.name) for key in self.entries if isinstance(key, PolicyChainKey)}
        assert chains == there
        known = {(key.family, key.name): value for key, value in self.entries.items() if isinstance(key, PolicySetKey)}
        assert sets <= known.keys()
        named = {name for _, name in sets}
        words = {value.comment for (_, name), value in known.items() if name in named}
        # The prefixes of a selector are a set in the families that have some, also where rules of another one name it.
        assert all(value.comment in words for (_, name), value in known.items() if name not in named)
        assert classes <= {key for key in self.entries if isinstance(key, ClassKey)}
        for name, members in self.members.items():
            for member in members:
                value = known[(member.family, name)]
                assert isinstance(value, PolicySet)
                assert member.net.is_host or value.type is PolicySetType.NETS
                assert bool(member.port) == (value.type is PolicySetType.ADDRESS_PORTS)
            nets = [member.net for member in members if known[(member.family, name)].type is PolicySetType.NETS]
            assert not [(a, b) for a in nets for b in nets if a != b and a.covers(b)]

    def decides(self, interface: str, way: Direction, packet: Packet) -> bool:
        """Whether a workload's policy lets a packet through in a direction."""
        numbers = self.entries.get(EndpointClassKey(packet.family, interface))
        if not isinstance(numbers, EndpointClasses):
            raise AssertionError(f"{interface} has no classes")
        number = numbers.ingress if way is Direction.INGRESS else numbers.egress
        if not number:
            return False
        found = self.entries[ClassKey(packet.family, way, number)]
        assert isinstance(found, EndpointClass)
        verdict = self.tiers(found.tiers, packet)
        if verdict is None:
            verdict = self.chains(found.profiles, packet)
        return (verdict or found.end) is PolicyAction.ALLOW

    def tiers(self, tiers: Iterable[TierChains], packet: Packet) -> PolicyAction | None:
        for tier in tiers:
            verdict = self.chains(tier.chains, packet)
            if verdict in (PolicyAction.ALLOW, PolicyAction.DENY):
                return verdict
            if verdict is None and tier.end is EndOfTier.DENY:
                return PolicyAction.DENY
        return None

    def chains(self, names: Iterable[str], packet: Packet) -> PolicyAction | None:
        for name in names:
            chain = self.entries[PolicyChainKey(packet.family, name)]
            assert isinstance(chain, PolicyChain)
            for rule in chain.rules:
                if not self.matches(rule, packet):
                    continue
                if rule.action is not PolicyAction.LOG:
                    return rule.action
                self.logged.append(rule.log_prefix)
        return None

    def matches(self, rule: PolicyRule, packet: Packet) -> bool:
        if rule.protocol not in (None, packet.protocol) or rule.not_protocol == packet.protocol:
            return False
        if rule.icmp and not _icmp(rule.icmp, packet):
            return False
        if rule.not_icmp and _icmp(rule.not_icmp, packet):
            return False
        return self.side(rule.source, packet.source, packet.protocol, packet.source_port) and self.side(
            rule.destination, packet.destination, packet.protocol, packet.port
        )

    def side(self, side: Side, address: bytes, protocol: int, port: int) -> bool:
        has_ports = protocol in WITH_PORTS
        return (
            all(net.covers(address) for net in side.nets)
            and not any(net.covers(address) for net in side.not_nets)
            and all(self.has(name, address) for name in side.sets)
            and not any(self.has(name, address) for name in side.not_sets)
            and (not side.ports or (has_ports and any(p.first <= port <= p.last for p in side.ports)))
            and not (has_ports and any(p.first <= port <= p.last for p in side.not_ports))
            and all(has_ports and self.has_port(name, address, protocol, port) for name in side.port_sets)
            and not any(has_ports and self.has_port(name, address, protocol, port) for name in side.not_port_sets)
        )

    def has(self, name: str, address: bytes) -> bool:
        return any(member.net.covers(address) for member in self.members.get(name, ()))

    def has_port(self, name: str, address: bytes, protocol: int, port: int) -> bool:
        return MemberKey(name, Net.host(address), protocol, port) in self.members.get(name, ())


def _icmp(wanted: Icmp, packet: Packet) -> bool:
    kind, code = packet.icmp
    if packet.protocol != ICMP[packet.family]:
        return False
    return wanted.type == kind and wanted.code in (None, code)
