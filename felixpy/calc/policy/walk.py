"""What policy decides about the first packet of a connection, by the calculation's own entries: who, and by which rule.

    from a workload   its egress class ─► the workload's ingress class, or the node itself, or out by an interface
    from outside      the host endpoint of the interface ─► the workload's ingress class, or the node itself
    from the node     its own workloads are never asked; else the host endpoint of the interface

It walks what the kernel gets, before the kernel has it, so a change can be judged that nobody has made yet. Invariant:
looks only, and says the same as the rules that ``layout`` and ``host_layout`` make of these entries. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from felixpy.calc.policy.classes import (
    ClassKey,
    Direction,
    EndOfTier,
    EndpointClass,
    EndpointClasses,
    EndpointClassKey,
    HostEndpointChains,
    HostEndpointKey,
    PolicyAction,
    PolicyChain,
    PolicyChainKey,
    PolicyKey,
    PolicyRule,
    PolicyValue,
    Side,
    TierChains,
)
from felixpy.calc.policy.host_layout import ANY, ICMPV6_ON_HOSTS
from felixpy.calc.policy.sets import Content
from felixpy.calc.rules import ICMPV6_FROM_WORKLOADS
from felixpy.config import EndpointToHostAction, Failsafe, Settings
from felixpy.model.net import Family, Net, family_of
from felixpy.model.policy import Icmp
from felixpy.model.resources import ResourceKey
from felixpy.store.store import Store

ICMP = {Family.V4: 1, Family.V6: 58}
WITH_PORTS = frozenset({6, 17, 132})
FAILSAFE = "failsafe ports"
OWN = "a connection of the agent itself"
NOBODY = "no policy asks"
NO_CLASS = "policy is not known yet"


class Packet(NamedTuple):
    """The first packet of a connection. ``destination`` and ``port`` are those after translation, ``dialled`` those
    before it. ``icmp`` is type and code, None where they are not known."""

    source: bytes
    destination: bytes
    protocol: int
    source_port: int = 0
    port: int = 0
    icmp: tuple[int, int] | None = None
    dialled: tuple[bytes, int] | None = None

    @property
    def family(self) -> Family:
        return family_of(self.source)


class Decision(NamedTuple):
    """Who decided in one direction. ``owner`` is a policy or profile with its rule as written, from 0; without one
    ``end`` says what decided: the end of a tier, failsafe ports, that nobody asks."""

    direction: Direction
    allows: bool
    tier: str = ""
    owner: str = ""
    rule: int | None = None
    end: str = ""

    def __str__(self) -> str:
        if not self.owner:
            return f"{self.end} ({self.direction})"
        rule = "" if self.rule is None else f" {self.direction}[{self.rule}]"
        return f"{f'tier {self.tier}, ' if self.tier else ''}{self.owner}{rule or f' ({self.direction})'}"


class Judgement(NamedTuple):
    """Whether a packet passes this node's policy, and by whose decisions; the last one is that of a packet that does
    not. Without decisions policy has nothing to say of it."""

    allowed: bool
    decisions: tuple[Decision, ...]


class InUse(NamedTuple):
    """The entries but for members, the owners of chains (keys of policies, names of profiles) and the contents of sets,
    both by their names in the kernel."""

    entries: Mapping[PolicyKey, PolicyValue]
    owners: Mapping[str, ResourceKey | str]
    sets: Mapping[str, Content]


class Surroundings(NamedTuple):
    """What the walk has to know besides. ``is_local``: whether an address is the node's own; ``interface_to`` names the
    interface of the node that an address is behind, empty where none is known; ``in_use``: what the agent is told by.
    """

    is_local: Callable[[bytes], bool]
    interface_to: Callable[[bytes], str]
    in_use: tuple[Failsafe, ...] = ()


class Walk:
    """The entries of a calculation as they are now; after a change another walk is made."""

    def __init__(self, in_use: InUse, store: Store, settings: Settings, surroundings: Surroundings) -> None:
        self._entries, self._owners, self._sets = in_use
        self._store = store
        self._settings = settings
        self._surroundings = surroundings
        self._has_hosts = any(isinstance(key, HostEndpointKey) for key in self._entries)
        self._judged: dict[Packet, Judgement] = {}
        self._asks_for_source_ports = any(
            _asks_for_ports(rule.source)
            for chain in self._entries.values()
            if isinstance(chain, PolicyChain)
            for rule in chain.rules
        )

    def judge(self, packet: Packet) -> Judgement:
        """What becomes of a packet, as far as policy decides it."""
        if not self._asks_for_source_ports and not self._has_hosts:
            packet = packet._replace(source_port=0, dialled=None)
        found = self._judged.get(packet)
        if found is None:
            found = self._judged[packet] = self._judge(packet)
        return found

    def interface_of(self, address: bytes) -> str:
        """The interface of the local workload that has an address; empty if none has it."""
        key = self._store.address_owner(Net.host(address))
        endpoint = self._store.endpoints.get(key) if key else None
        return endpoint.interface if endpoint else ""

    def _judge(self, packet: Packet) -> Judgement:
        sender, receiver = self.interface_of(packet.source), self.interface_of(packet.destination)
        to_node = not receiver and self._surroundings.is_local(packet.destination)
        if sender:
            return self._from_workload(packet, sender, receiver, to_node=to_node)
        if self._surroundings.is_local(packet.source):
            return Judgement(True, ()) if receiver or to_node else self._from_node(packet)
        return self._from_outside(packet, receiver, to_node=to_node)

    def _from_workload(self, packet: Packet, sender: str, receiver: str, *, to_node: bool) -> Judgement:
        if to_node and packet.family is Family.V6 and _is_icmp(packet, ICMPV6_FROM_WORKLOADS):
            return Judgement(True, ())
        found = [self._class(packet, sender, Direction.EGRESS)]
        if to_node and found[-1].allows:
            action = self._settings.default_endpoint_to_host_action
            if action in (EndpointToHostAction.DROP, EndpointToHostAction.REJECT):
                found.append(Decision(Direction.EGRESS, False, end=f"DefaultEndpointToHostAction={action.value}"))
        elif receiver and found[-1].allows:
            found.append(self._class(packet, receiver, Direction.INGRESS))
        elif found[-1].allows and (host := self._host(packet, packet.destination)) is not None:
            found += self._forward(packet, host.forward_egress, Direction.EGRESS)
        return _judgement(found)

    def _from_node(self, packet: Packet) -> Judgement:
        host = self._host(packet, packet.destination)
        if host is None:
            return Judgement(True, ())
        remote, port = packet.dialled or (packet.destination, packet.port)
        if _is_one_of(packet, self._surroundings.in_use, remote, port):
            return _judgement([Decision(Direction.EGRESS, True, end=OWN)])
        early = self._early(packet, host.untracked_egress, Direction.EGRESS)
        if early is not None:
            return _judgement([early])
        return _judgement([self._node(packet, host.egress, host.profiles_egress, Direction.EGRESS)])

    def _from_outside(self, packet: Packet, receiver: str, *, to_node: bool) -> Judgement:
        host = self._host(packet, packet.source)
        found: list[Decision] = []
        if host is not None:
            # An early Allow skips what the host endpoint asks later, and not what a workload does.
            before = packet if packet.dialled is None else packet._replace(
                destination=packet.dialled[0], port=packet.dialled[1], dialled=None
            )  # fmt: skip
            early = self._early(before, host.untracked_ingress, Direction.INGRESS) or self._early(
                before, host.pre_dnat, Direction.INGRESS, tracked=True
            )
            if early is not None:
                found.append(early)
            elif to_node:
                found.append(self._node(packet, host.ingress, host.profiles_ingress, Direction.INGRESS))
            else:
                found += self._forward(packet, host.forward_ingress, Direction.INGRESS)
        if receiver and _allows(found):
            found.append(self._class(packet, receiver, Direction.INGRESS))
        elif not to_node and _allows(found) and (out := self._host(packet, packet.destination)) is not None:
            found += self._forward(packet, out.forward_egress, Direction.EGRESS)
        return _judgement(found)

    # --- workloads -----------------------------------------------------------------------------------------------

    def _class(self, packet: Packet, interface: str, direction: Direction) -> Decision:
        numbers = self._entries.get(EndpointClassKey(packet.family, interface))
        number = 0
        if isinstance(numbers, EndpointClasses):
            number = numbers.ingress if direction is Direction.INGRESS else numbers.egress
        found = self._entries.get(ClassKey(packet.family, direction, number)) if number else None
        if not isinstance(found, EndpointClass):
            return Decision(direction, False, end=NO_CLASS)
        decided = self._tiers(packet, found.tiers, direction) or self._profiles(packet, found.profiles, direction)
        if decided is not None:
            return decided
        allows = found.end is PolicyAction.ALLOW
        profile = self._profile_at_end(interface)
        if allows:
            return Decision(direction, True, owner=profile) if profile else Decision(direction, True, end=NOBODY)
        return Decision(direction, False, end="no profile allows it" if profile else "no profile")

    def _profile_at_end(self, interface: str) -> str:
        """The profiles of an endpoint, one of which may decide everything at once and then is no chain."""
        key = self._store.interface_owner(interface)
        endpoint = self._store.endpoints.get(key) if key else None
        names = endpoint.profiles if endpoint else ()
        return f"Profile {', '.join(names)}" if names else ""

    # --- host endpoints ------------------------------------------------------------------------------------------

    def _host(self, packet: Packet, remote: bytes) -> HostEndpointChains | None:
        """The host endpoint of the interface that an address outside is behind."""
        if not self._has_hosts:
            return None
        interface = self._surroundings.interface_to(remote)
        if not interface or interface == "lo" or interface.startswith(self._settings.interface_prefix):
            return None
        for name in (interface, ANY):
            found = self._entries.get(HostEndpointKey(packet.family, name))
            if isinstance(found, HostEndpointChains):
                return found
        return None

    def _early(
        self, packet: Packet, tiers: tuple[TierChains, ...], direction: Direction, *, tracked: bool = False
    ) -> Decision | None:
        """Before connection tracking, or before translation; None: it goes on."""
        if not tiers:
            return None
        if self._is_failsafe(packet, direction, answers=not tracked):
            return None
        return self._tiers(packet, tiers, direction)

    def _node(
        self, packet: Packet, tiers: tuple[TierChains, ...], profiles: tuple[str, ...], direction: Direction
    ) -> Decision:
        if self._is_failsafe(packet, direction, answers=False):
            return Decision(direction, True, end=FAILSAFE)
        decided = self._tiers(packet, tiers, direction) or self._profiles(packet, profiles, direction)
        return decided or Decision(direction, False, end="no profile allows it")

    def _forward(self, packet: Packet, tiers: tuple[TierChains, ...], direction: Direction) -> list[Decision]:
        if not tiers:
            return []
        return [self._tiers(packet, tiers, direction) or Decision(direction, True, end="no policy decides")]

    def _is_failsafe(self, packet: Packet, direction: Direction, *, answers: bool) -> bool:
        if packet.family is Family.V6 and _is_icmp(packet, ICMPV6_ON_HOSTS):
            return True
        there, back = self._settings.failsafe_inbound_host_ports, self._settings.failsafe_outbound_host_ports
        remote = packet.source
        if direction is Direction.EGRESS:
            there, back, remote = back, there, packet.destination
        return _is_one_of(packet, there, remote, packet.port) or (
            answers and _is_one_of(packet, back, remote, packet.source_port)
        )

    # --- chains --------------------------------------------------------------------------------------------------

    def _tiers(self, packet: Packet, tiers: Iterable[TierChains], direction: Direction) -> Decision | None:
        for tier in tiers:
            decided = self._chains(packet, tier.chains, direction, tier.name)
            if decided is not None and decided[0] is not PolicyAction.PASS:
                return decided[1]
            if decided is None and tier.end is EndOfTier.DENY:
                return Decision(direction, False, tier.name, end=f"end of tier {tier.name}")
        return None

    def _profiles(self, packet: Packet, names: Iterable[str], direction: Direction) -> Decision | None:
        decided = self._chains(packet, names, direction, "")
        return decided[1] if decided is not None and decided[0] is not PolicyAction.PASS else None

    def _chains(
        self, packet: Packet, names: Iterable[str], direction: Direction, tier: str
    ) -> tuple[PolicyAction, Decision] | None:
        for name in names:
            chain = self._entries.get(PolicyChainKey(packet.family, name))
            assert isinstance(chain, PolicyChain)
            for rule in chain.rules:
                if rule.action is not PolicyAction.LOG and self._matches(rule, packet):
                    allows = rule.action is PolicyAction.ALLOW
                    owner = _words(self._owners[name])
                    return rule.action, Decision(direction, allows, tier, owner, rule.position)
        return None

    def _matches(self, rule: PolicyRule, packet: Packet) -> bool:
        return (
            rule.protocol in (None, packet.protocol)
            and rule.not_protocol != packet.protocol
            and (rule.icmp is None or _has_icmp(packet, rule.icmp))
            and not (rule.not_icmp is not None and _has_icmp(packet, rule.not_icmp))
            and self._at(rule.source, packet.source, packet.protocol, packet.source_port)
            and self._at(rule.destination, packet.destination, packet.protocol, packet.port)
        )

    def _at(self, side: Side, address: bytes, protocol: int, port: int) -> bool:
        has_ports = protocol in WITH_PORTS
        return (
            all(net.covers(address) for net in side.nets)
            and not any(net.covers(address) for net in side.not_nets)
            and all(self._sets[name].holds(name, address) for name in side.sets)
            and not any(self._sets[name].holds(name, address) for name in side.not_sets)
            and (not side.ports or (has_ports and any(one.first <= port <= one.last for one in side.ports)))
            and not (has_ports and any(one.first <= port <= one.last for one in side.not_ports))
            and all(has_ports and self._sets[name].holds(name, address, protocol, port) for name in side.port_sets)
            and not any(
                has_ports and self._sets[name].holds(name, address, protocol, port) for name in side.not_port_sets
            )
        )


def _asks_for_ports(side: Side) -> bool:
    return bool(side.ports or side.not_ports or side.port_sets or side.not_port_sets)


def _judgement(found: list[Decision]) -> Judgement:
    return Judgement(_allows(found), tuple(found))


def _allows(found: list[Decision]) -> bool:
    return all(one.allows for one in found)


def _words(owner: ResourceKey | str) -> str:
    return f"Profile {owner}" if isinstance(owner, str) else str(owner)


def _is_icmp(packet: Packet, types: Iterable[int]) -> bool:
    return packet.protocol == ICMP[packet.family] and packet.icmp is not None and packet.icmp[0] in types


def _has_icmp(packet: Packet, wanted: Icmp) -> bool:
    if packet.protocol != ICMP[packet.family] or packet.icmp is None:
        return False
    return wanted.type == packet.icmp[0] and wanted.code in (None, packet.icmp[1])


def _is_one_of(packet: Packet, ports: Iterable[Failsafe], remote: bytes, port: int) -> bool:
    return any(
        (one.protocol, one.port) == (packet.protocol, port) and (one.net is None or one.net.covers(remote))
        for one in ports
    )
