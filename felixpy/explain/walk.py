"""Follows one packet through hooks and routing and says what becomes of it. Pure: rules and routes come as facts.

    from others   prerouting → routing → forward → postrouting, or input for an address of this node
    our own       routing → output → postrouting

A rule that cannot be judged is taken not to match; then every such rule is tried once as matching, and where that
changes the outcome the verdict says so. An accept ends its own base chain only; a drop is final (nftables and iptables
alike, several programs at one hook).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

from msgspec import Struct, field
from msgspec.structs import replace

from felixpy.explain.decision import Decision, Said, asks, decision, said
from felixpy.explain.packet import Action, Chain, Packet, Ruleset, owner
from felixpy.model.net import format_address

MAX_DOUBTS = 64
MAX_DEPTH = 64


class Outcome(StrEnum):
    """What becomes of the packet at this node."""

    PASSES = "passes"
    LOCAL = "delivered to this node"
    DROPPED = "dropped"
    UNKNOWN = "cannot be judged"


class Route(NamedTuple):
    """The kernel's answer to a route lookup; ``failure`` is why there is none. ``gateway`` is empty on the link."""

    interface: str = ""
    gateway: bytes = b""
    source: bytes = b""
    local: bool = False
    failure: str = ""


class Stage(NamedTuple):
    """What one base chain, or the routing, did: ``rule`` is the rule that decided, empty for the policy."""

    hook: str
    where: str
    did: str
    rule: str = ""
    owner: str = ""


class Place(NamedTuple):
    """A rule in the kernel."""

    table: str
    chain: str
    position: int


class Around(NamedTuple):
    """What a tunnel makes of a packet; ``fault`` says why it cannot, and then there is no ``outer`` packet."""

    device: str
    kind: str
    mtu: int
    outer: Packet | None = None
    fault: str = ""


class Encapsulated(NamedTuple):
    """The packet around a packet, and what becomes of it at this node."""

    around: Around
    verdict: Verdict | None = None


class Verdict(Struct):
    """The outcome with what led to it. ``doubts`` are rules that could change it, with what they would do.

    ``decisions`` are those of policy on the way; the last one is that of a packet that is dropped by policy. ``said``
    is what each policy on the way says, also those that are not asked because another one decides before. ``around``
    is there where the way leads into a tunnel.
    """

    outcome: Outcome
    packet: Packet
    by: str = ""
    route: Route = field(default_factory=Route)
    stages: list[Stage] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)
    around: Encapsulated | None = None

    @property
    def certain(self) -> bool:
        return not self.doubts and self.outcome is not Outcome.UNKNOWN


RouteLookup = Callable[[Packet], Route]
"""The kernel's route for a packet as it is now, with input interface and mark."""


class Node(NamedTuple):
    """What the walk has to know. ``forwarding`` says of an interface whether packets from it are forwarded."""

    rulesets: Sequence[Ruleset]
    route: RouteLookup
    forwarding: Callable[[str], bool]
    masquerade_source: Callable[[Packet], bytes]


def explain(node: Node, packet: Packet) -> Verdict:
    """What becomes of a packet, with the rules in doubt that could change it."""
    first = _Walk(node, None)
    verdict = first.run(_copy(packet))
    if len(first.doubts) > MAX_DOUBTS:
        verdict.doubts.append(
            f"{len(first.doubts)} rules on the way cannot be judged; the first {MAX_DOUBTS} are tried"
        )
    for place, text in list(first.doubts.items())[:MAX_DOUBTS]:
        other = _Walk(node, place).run(_copy(packet))
        if _gist(other) != _gist(verdict):
            where = f"{place.table} chain {place.chain}: {text}"
            verdict.doubts.append(f"{where} (cannot be judged here; if it matches: {tell(other)})")
    return verdict


def tell(verdict: Verdict) -> str:
    """The outcome in one line."""
    if verdict.outcome is Outcome.DROPPED:
        return f"dropped by {verdict.by}"
    if verdict.outcome is Outcome.UNKNOWN:
        return f"cannot be judged: {verdict.by}"
    if verdict.outcome is Outcome.LOCAL:
        return f"delivered to this node as {verdict.packet}"
    via = f" via {format_address(verdict.route.gateway)}" if verdict.route.gateway else ""
    seen = format_address(verdict.packet.source)
    return f"passes, leaves by {verdict.packet.oif}{via}; the far side sees {seen}"


def _gist(verdict: Verdict) -> object:
    packet = verdict.packet
    return verdict.outcome, packet.source, packet.destination, packet.port, packet.oif


def _copy(packet: Packet) -> Packet:
    return replace(packet, translated=set(packet.translated))


class _Walk:
    """One walk; ``assumed`` is the one rule in doubt that is taken to match."""

    def __init__(self, node: Node, assumed: Place | None) -> None:
        self.node = node
        self.assumed = assumed
        self.doubts: dict[Place, str] = {}
        self.stages: list[Stage] = []
        self.decisions: list[Decision] = []
        self.said: list[Said] = []

    def run(self, packet: Packet) -> Verdict:
        ours = not packet.iif
        route = Route()
        if not ours and (stopped := self._hook("prerouting", packet)):
            return self._end(stopped, packet, route)
        route = self._route(packet)
        if route.failure:
            return self._end((Outcome.DROPPED, f"the kernel's routing: {route.failure}"), packet, route)
        if route.local and not ours:
            stopped = self._hook("input", packet)
            return self._end(stopped or (Outcome.LOCAL, ""), packet, route)
        packet.oif = route.interface
        if ours:
            before = packet.destination
            stopped = self._hook("output", packet)
            if not stopped and packet.destination != before:
                route = self._route(packet)
                packet.oif = route.interface
        else:
            if not self.node.forwarding(packet.iif):
                word = f"the kernel: forwarding is off on {packet.iif}"
                return self._end((Outcome.DROPPED, word), packet, route)
            stopped = self._hook("forward", packet)
        stopped = stopped or self._hook("postrouting", packet)
        if not stopped and ours and route.local:
            stopped = self._delivered_here(packet)
        return self._end(stopped or (Outcome.LOCAL if route.local else Outcome.PASSES, ""), packet, route)

    def _delivered_here(self, packet: Packet) -> tuple[Outcome, str] | None:
        """A packet to ourselves comes in again through the loopback."""
        packet.iif, packet.oif = "lo", ""
        return self._hook("prerouting", packet) or self._hook("input", packet)

    def _end(self, stopped: tuple[Outcome, str], packet: Packet, route: Route) -> Verdict:
        return Verdict(stopped[0], packet, stopped[1], route, self.stages, decisions=self.decisions, said=self.said)

    def _route(self, packet: Packet) -> Route:
        route = self.node.route(packet)
        via = f" via {format_address(route.gateway)}" if route.gateway else ""
        did = route.failure or ("this node" if route.local else f"dev {route.interface}{via}")
        self.stages.append(Stage("routing", "kernel", did))
        return route

    def _hook(self, hook: str, packet: Packet) -> tuple[Outcome, str] | None:
        """All base chains at a hook; None if the packet goes on."""
        bases = [(one, chain) for one in self.node.rulesets for chain in one.chains.values() if chain.hook == hook]
        for ruleset, base in sorted(bases, key=lambda pair: pair[1].priority):
            kind = "dnat" if hook in ("prerouting", "output") else "snat"
            if base.is_nat and (not packet.tracked or kind in packet.translated):
                continue
            asked = len(self.decisions)
            action, place, text = self._chain(ruleset, base, packet, 0)
            chain, whose = place.chain if place else base.name, ""
            if place:
                whose = owner(ruleset.name, chain) or owner(ruleset.name, base.name)
            where = f"{ruleset.name} chain {chain}"
            by = f"{where}{f' of {whose}' if whose else ''}: {text or f'policy {action.kind.upper()}'}"
            if place or action.kind != "accept":
                self.stages.append(Stage(hook, where, self._words(action), text, whose))
            if action.kind in ("drop", "reject"):
                is_policy = len(self.decisions) > asked and self.decisions[-1].did == "denies"
                return Outcome.DROPPED, f"{self.decisions[-1]}: {by}" if is_policy else by
            if action.kind == "unknown":
                return Outcome.UNKNOWN, by
            if action.kind != "accept" and self._translate(action, packet, kind) is None:
                return Outcome.UNKNOWN, by
        return None

    @staticmethod
    def _words(action: Action) -> str:
        return f"{action.kind} to {format_address(action.address)}" if action.address else action.kind

    def _translate(self, action: Action, packet: Packet, kind: str) -> bool | None:
        """Carry out a NAT action; None if its address cannot be told."""
        packet.translated.add(kind)
        if action.kind == "masquerade":
            address: bytes | None = self.node.masquerade_source(packet)
        elif action.kind == "redirect":
            address = self.node.route(packet).source if packet.iif else packet.source
        else:
            address = action.address or (packet.destination if kind == "dnat" else packet.source)
        if not address:
            return None
        if kind == "dnat":
            packet.destination, packet.port = address, action.port or packet.port
        else:
            packet.source = address
        return True

    def _chain(self, ruleset: Ruleset, chain: Chain, packet: Packet, depth: int) -> tuple[Action, Place | None, str]:
        """Walk a chain: the action, and the rule that decided (None: the end of the chain)."""
        at_end = chain.policy if chain.hook else Action("return")
        if depth > MAX_DEPTH:
            return Action("unknown"), None, "chains jump too deep"
        if asks(ruleset.name, chain) and "." not in chain.name:  # those with a dot are the tiers of another
            self.said += _Walk(self.node, None).ask_all(ruleset, chain, _copy(packet))
        for index, rule in enumerate(chain.rules):
            place = Place(ruleset.name, chain.name, index)
            action = self._rule(rule.steps, rule.text, place, packet)
            if action is None:
                continue
            if decided := decision(ruleset.name, chain, rule, action):
                self.decisions.append(decided)
            if action.kind in ("jump", "goto"):
                target = ruleset.chains.get(action.target)
                if target is None:
                    return Action("unknown"), place, f"{rule.text} (a target that is not known here)"
                inner = self._chain(ruleset, target, packet, depth + 1)
                if inner[0].kind != "return":
                    return inner
                if action.kind == "jump":
                    continue
                return at_end, None, ""
            if action.kind == "return":
                return at_end, None, ""
            return action, place, rule.text
        return at_end, None, ""

    def ask_all(self, ruleset: Ruleset, chain: Chain, packet: Packet) -> Iterator[Said]:
        """What each policy says that a chain asks, in order, as if none decided before."""
        for index, rule in enumerate(chain.rules):
            action = self._rule(rule.steps, rule.text, Place(ruleset.name, chain.name, index), packet)
            target = ruleset.chains.get(action.target) if action and action.kind in ("jump", "goto") else None
            if target is None:
                continue
            if asks(ruleset.name, target):
                yield from self.ask_all(ruleset, target, packet)
            elif told := said(target, *self._first(ruleset, target, _copy(packet))):
                yield told

    def _first(self, ruleset: Ruleset, chain: Chain, packet: Packet) -> tuple[str, str]:
        """The kind and the text of the first rule of a policy that decides; empty if none does."""
        for index, rule in enumerate(chain.rules):
            action = self._rule(rule.steps, rule.text, Place(ruleset.name, chain.name, index), packet)
            if action is not None and action.kind != "jump":
                return action.kind, rule.text
        return "", ""

    def _rule(
        self, steps: Sequence[Callable[[Packet], object]], text: str, place: Place, packet: Packet
    ) -> Action | None:
        """What a rule does; None: it does not match or has no effect on the way."""
        for step in steps:
            answer = step(packet)
            if answer is False:
                return None
            if answer is None or (isinstance(answer, Action) and answer.kind == "unknown"):
                self.doubts.setdefault(place, text)
                if self.assumed != place:
                    return None
                if answer is not None:
                    return Action("unknown")
            elif isinstance(answer, Action):
                return answer
        return None
