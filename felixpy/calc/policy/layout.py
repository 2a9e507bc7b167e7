"""Classes, policies and host endpoints as abstract rules, and which chains a change of one of them touches.

    FORWARD  from a workload: established, invalid ─► from-class ─► class ─► policies ─Allow─► e-done ─► to (a workload)
    FORWARD  to a workload:   established, invalid ─► to ─► to-class ─► class ─► policies ─Allow─► t-done: accept
    INPUT    from a workload: … the same to e-done, which ends in DefaultEndpointToHostAction there

A class is a chain that jumps to the chains of its policies in order; Allow is a goto to the end of its direction,
Deny refuses, Pass marks the packet and returns. A class that asks nothing is the end of its direction itself. While
there is no other, the rules are those of ``felixpy.calc.rules`` alone: an endpoint without policy costs what it costs
there.

Invariant: what refers to a chain is in the same change as the chain; a packet of an endpoint without a chain for its
class is denied. Must never write, and never walk all classes or policies for a change of one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from msgspec import Struct, field

from felixpy.calc.entries import SetName
from felixpy.calc.policy import host_layout
from felixpy.calc.policy.carrier import BIT_SETS, MAPS, POLICED, code_of
from felixpy.calc.policy.classes import (
    ClassKey,
    Direction,
    EndpointClass,
    HostEndpointChains,
    HostEndpointKey,
    PolicyAction,
    PolicyChain,
    PolicyChainKey,
    Use,
    class_name,
    is_open,
)
from felixpy.calc.policy.numbering import USUAL
from felixpy.calc.policy.policy_rules import NO_PROFILE, policy_rules, tier_chains
from felixpy.calc.rule import (
    ChainKey,
    Chains,
    ClassElement,
    CtState,
    DestinationPairIn,
    Goto,
    GotoClass,
    InInterface,
    InInterfaceIn,
    Jump,
    MapMark,
    Marked,
    OutInterface,
    OutInterfaceIn,
    Rule,
    RuleKey,
    SetMark,
    Table,
    Verdict,
    jump,
)
from felixpy.calc.rules import (
    FORWARD_FROM,
    FORWARD_TO,
    WORKLOAD_TO_HOST,
    RuleSettings,
    arriving_tunnels,
    conntrack,
    desired_chains,
    from_workload,
    leaving_workload,
    no_service_loops,
    reaching_host,
)
from felixpy.config import EndpointToHostAction

CLASS_PREFIX = {Direction.INGRESS: "t", Direction.EGRESS: "f"}
DONE = {Direction.INGRESS: "t-done", Direction.EGRESS: "e-done"}
HOST_DONE = "host-done"
TO = "to"
NO_CLASS = "no class"
GROUP = 16
"""Rules of one chain that finds a class by its mark, where there are no maps."""

TABLE_OF_USE = {
    Use.PRE_DNAT: Table.MANGLE,
    Use.UNTRACKED_INGRESS: Table.RAW,
    Use.UNTRACKED_EGRESS: Table.RAW,
}

Source = ClassKey | PolicyChainKey | HostEndpointKey | str
"""What chains are made of; the standing ones of a name each."""

STANDING = "standing"


def chain_of_class(direction: Direction, value: EndpointClass) -> str:
    return DONE[direction] if is_open(value) else f"{CLASS_PREFIX[direction]}-{value.name}"


def class_of_chain(name: str) -> tuple[Direction, str] | None:
    """Direction and name of the class that a chain of this name belongs to; None if it is none's."""
    for direction, prefix in CLASS_PREFIX.items():
        if name == DONE[direction]:
            return direction, class_name(direction, (), (), PolicyAction.ALLOW)
        start, _, rest = name.partition("-")
        if start == prefix and rest and rest != "done" and "." not in rest:
            return direction, rest
    return None


class PolicyLayout(Struct):
    """Policy of one family, as far as rules depend on it. ``changed`` are the objects whose chains are due.

    ``denied`` is how many interfaces have no class and so are denied; it counts because somebody has to ask for them.
    """

    settings: RuleSettings | None = None
    classes: dict[ClassKey, EndpointClass] = field(default_factory=dict)
    policies: dict[PolicyChainKey, PolicyChain] = field(default_factory=dict)
    hosts: dict[HostEndpointKey, HostEndpointChains] = field(default_factory=dict)
    denied: int = 0
    changed: set[Source] = field(default_factory=set)
    _asking: int = 0
    _classified: int = 0
    _made: dict[Source, Chains] = field(default_factory=dict)
    _was_active: bool = False

    def configure(self, settings: RuleSettings) -> None:
        """Take other settings: all chains are due."""
        if settings != self.settings:
            self.settings = settings
            self.changed |= {STANDING, *self.classes, *self.policies, *self.hosts}

    def take_class(self, key: ClassKey, value: EndpointClass | None) -> None:
        for one, sign in ((self.classes.pop(key, None), -1), (value, 1)):
            if one is not None:
                self._asking += sign * (not is_open(one))
                self._classified += sign * (not is_open(one) or key.number != USUAL)
        if value is not None:
            self.classes[key] = value
        self.changed |= {key, _dispatch(key.direction)}
        if key.number == USUAL:
            self.changed.add(STANDING)

    def take_policy(self, key: PolicyChainKey, value: PolicyChain | None) -> None:
        self.policies.pop(key, None)
        if value is not None:
            self.policies[key] = value
        self.changed.add(key)

    def take_host(self, key: HostEndpointKey, value: HostEndpointChains | None) -> None:
        self.hosts.pop(key, None)
        if value is not None:
            self.hosts[key] = value
        self.changed |= {key, STANDING}

    def count_denied(self, difference: int) -> None:
        self.denied += difference

    @property
    def is_active(self) -> bool:
        """Whether packets of workloads have to be classified."""
        return bool(self._classified or self.denied)

    @property
    def decides(self) -> bool:
        """Whether there are chains that may count what they allow and deny."""
        return bool(self.policies or self.hosts or self._asking)

    def changes(self) -> dict[RuleKey, tuple[Rule, ...] | None]:
        """Chains that are other ones since the last call; None for those that are gone."""
        if self.settings is None:
            return {}
        if self.is_active != self._was_active:
            self._was_active = self.is_active
            self.changed |= {STANDING, *map(_dispatch, Direction)}
        gone: set[RuleKey] = set()
        made: Chains = {}
        for source in self.changed:
            old, new = self._made.pop(source, {}), self._chains_of(source, self.settings)
            gone |= old.keys() - new.keys()
            made |= {key: rules for key, rules in new.items() if old.get(key) != rules}
            if new:
                self._made[source] = new
        self.changed = set()
        return {**dict.fromkeys(gone - made.keys()), **made}

    def chains(self) -> Chains:
        """All chains as ``changes`` told of them so far."""
        return {key: rules for chains in self._made.values() for key, rules in chains.items()}

    def _chains_of(self, source: Source, settings: RuleSettings) -> Chains:
        if isinstance(source, ClassKey):
            value = self.classes.get(source)
            return class_chains(source, value, settings) if value is not None else {}
        if isinstance(source, PolicyChainKey):
            chain = self.policies.get(source)
            if chain is None:
                return {}
            table = TABLE_OF_USE.get(chain.use, Table.FILTER)
            return {ChainKey(table, source.name): policy_rules(chain, settings)}
        if isinstance(source, HostEndpointKey):
            host = self.hosts.get(source)
            return host_layout.host_chains(source.interface, host, settings) if host is not None else {}
        if source == STANDING:
            return host_layout.joined(self._standing(settings), self.hosts, settings, is_active=self.is_active)
        return self._dispatches(source, settings) if self.is_active and not settings.nftables else {}

    def _standing(self, settings: RuleSettings) -> Chains:
        if not self.is_active:
            return desired_chains(settings)
        usual = {way: self.classes.get(ClassKey(settings.family, way, USUAL)) for way in Direction}
        return desired_chains(settings) | active_chains(settings, usual)

    def _dispatches(self, source: str, settings: RuleSettings) -> Chains:
        """The chains that find a class by its mark; two steps where there are many classes."""
        direction = next(one for one in Direction if _dispatch(one) == source)
        found = settings.marks.of(direction)
        codes = {key.number: value for key, value in self.classes.items() if key.direction is direction}
        # A number that does not fit is no pair's (``ClassMembers``): who has it is denied.
        rules = {
            code: Rule((Marked(found.of(code), found.mask),), Goto(chain_of_class(direction, value)))
            for code, value in sorted(codes.items())
            if code < found.largest
        }
        deny = Rule((), Verdict(settings.deny), NO_CLASS)
        root = MAPS[direction]
        if len(rules) <= GROUP:
            return {ChainKey(Table.FILTER, root): (*rules.values(), deny)}
        groups: dict[int, list[Rule]] = {}
        for code, rule in rules.items():
            groups.setdefault(code // GROUP, []).append(rule)
        high = found.mask & ~found.of(GROUP - 1)
        chains: Chains = {
            ChainKey(Table.FILTER, root): (
                *(Rule((Marked(found.of(one * GROUP), high),), Goto(f"{root}-{one}")) for one in groups),
                deny,
            )
        }
        for one, some in groups.items():
            chains[ChainKey(Table.FILTER, f"{root}-{one}")] = (*some, deny)
        return chains


def _dispatch(direction: Direction) -> str:
    return f"dispatch {direction}"


# --- standing chains ---------------------------------------------------------------------------------------------


Usual = Mapping[Direction, EndpointClass | None]
"""The class of either direction that has the usual number."""


def active_chains(settings: RuleSettings, usual: Usual) -> Chains:
    """The standing chains that differ from those without policy, and those that come besides."""
    carrier = _bit_chains(settings, usual) if settings.nftables else _mark_chains(settings)
    return {**_common_chains(settings, usual), **carrier}


def _common_chains(settings: RuleSettings, usual: Usual) -> Chains:
    marks, filtering = settings.marks, Table.FILTER
    classify_from, classify_to = (_classify(settings, way, usual) for way in (Direction.EGRESS, Direction.INGRESS))
    to: list[Rule] = []
    if settings.nftables:
        to.append(
            Rule(
                (DestinationPairIn(SetName.TO_WORKLOAD, negated=True),),
                Verdict(settings.deny),
                "unknown workload address or interface",
            )
        )
    return {
        FORWARD_FROM: (*leaving_workload(settings), *classify_from),
        FORWARD_TO: (*conntrack(settings), Rule((), Goto(TO))),
        WORKLOAD_TO_HOST: (*reaching_host(settings), Rule((), SetMark(*marks.to_host)), *classify_from),
        ChainKey(filtering, TO): (*to, *classify_to),
        ChainKey(filtering, DONE[Direction.INGRESS]): (
            Rule((), SetMark(0, marks.mask), "allowed"),
            Rule((), Verdict.ACCEPT),
        ),
        ChainKey(filtering, DONE[Direction.EGRESS]): (
            Rule((Marked(*marks.to_host),), Goto(HOST_DONE), "to the node itself"),
            *(Rule((OutInterface(prefix, True),), Goto(TO)) for prefix in settings.prefixes),
            *no_service_loops(settings),
            Rule((), SetMark(0, marks.mask), "allowed"),
            Rule((), Verdict.ACCEPT),
        ),
        ChainKey(filtering, HOST_DONE): _host_done(settings),
        **_input_hook(settings),
    }


def _classify(settings: RuleSettings, direction: Direction, usual: Usual) -> tuple[Rule, ...]:
    """To the class."""
    to_class = Goto(MAPS[direction])
    if not settings.nftables:
        return (Rule((), to_class),)
    match = InInterfaceIn if direction is Direction.EGRESS else OutInterfaceIn
    return (Rule((match(POLICED[direction]),), to_class), _to_usual(settings, direction, usual))


def _to_usual(settings: RuleSettings, direction: Direction, usual: Usual) -> Rule:
    """Where interfaces go of which no set says anything."""
    value = usual[direction]
    if value is None:
        return Rule((), Verdict(settings.deny), NO_CLASS)
    return Rule((), Goto(chain_of_class(direction, value)), "no policy" if is_open(value) else "the usual class")


def returns_to_host(settings: RuleSettings) -> bool:
    """Whether what a policy allowed to the node goes on in other programs' rules: in nftables it does so anyway."""
    return settings.endpoint_to_host is EndpointToHostAction.RETURN and not settings.nftables


def _host_done(settings: RuleSettings) -> tuple[Rule, ...]:
    clear = Rule((), SetMark(0, settings.marks.mask))
    if returns_to_host(settings):
        # The way back leads through chains of policies that would go on: the mark tells them not to.
        accepted = settings.marks.accepted
        return (clear, Rule((), SetMark(accepted, accepted)), Rule((), Verdict.RETURN))
    action = Verdict(settings.endpoint_to_host.value.upper())
    if action is Verdict.RETURN:
        action = Verdict.ACCEPT
    return (clear, Rule((), action, "Configured DefaultEndpointToHostAction"))


def _input_hook(settings: RuleSettings) -> Chains:
    if not returns_to_host(settings):
        return {}
    hook = ChainKey(Table.FILTER, "INPUT")
    clear = (Rule((InInterface(prefix, True),), SetMark(0, settings.marks.accepted)) for prefix in settings.prefixes)
    return {hook: (*from_workload(settings, WORKLOAD_TO_HOST), *clear, *arriving_tunnels(settings))}


def _bit_chains(settings: RuleSettings, usual: Usual) -> Chains:
    """nftables: the class number is put together from the sets of its bits, and looked up in a map.

    A packet that is on its way while its workload moves to another class may find some bits of the one and some of the
    other, or none where it moves to the usual one. So whoever has no class is asked once more.
    """
    chains: Chains = {}
    for direction in Direction:
        found = settings.marks.of(direction)
        match = InInterfaceIn if direction is Direction.EGRESS else OutInterfaceIn
        bits = BIT_SETS[direction][: found.bits]
        ask = (
            Rule((), SetMark(0, found.mask)),
            *(Rule((match(name),), SetMark(found.of(1 << bit), found.of(1 << bit))) for bit, name in enumerate(bits)),
            Rule((), GotoClass(MAPS[direction], found.mask)),
        )
        again = f"{MAPS[direction]}-again"
        none = Rule((match(POLICED[direction]),), Verdict(settings.deny), NO_CLASS)
        chains[ChainKey(Table.FILTER, MAPS[direction])] = (*ask, Rule((), Goto(again), NO_CLASS))
        chains[ChainKey(Table.FILTER, again)] = (*ask, none, _to_usual(settings, direction, usual))
    return chains


def _mark_chains(settings: RuleSettings) -> Chains:
    """iptables: the class number is taken from the members of the sets of pairs, which only the mangle table can."""
    marks, mangle = settings.marks, Table.MANGLE
    cross = ((InInterface, "map-from"), (OutInterface, "map-to"))
    jumps = tuple(Rule((match(prefix, True),), Jump(to)) for match, to in cross for prefix in settings.prefixes)
    inward = tuple(
        Rule((InInterface(prefix, True), CtState.NOT_ESTABLISHED), Jump("map-from")) for prefix in settings.prefixes
    )
    return {
        ChainKey(mangle, "FORWARD"): (Rule((CtState.NOT_ESTABLISHED,), Jump("map")),),
        ChainKey(mangle, "INPUT"): inward,
        ChainKey(mangle, "map"): jumps,
        ChainKey(mangle, "map-from"): (
            Rule((), SetMark(0, marks.egress.mask | marks.ingress.mask)),
            *((Rule((), MapMark(SetName.ALLOWED_SOURCES, source=True)),) if settings.allow_spoofing else ()),
            Rule((), MapMark(SetName.FROM_WORKLOAD, source=True)),
        ),
        ChainKey(mangle, "map-to"): (
            Rule((), SetMark(0, marks.ingress.mask)),
            Rule((), MapMark(SetName.TO_WORKLOAD, source=False)),
        ),
    }


# --- classes -----------------------------------------------------------------------------------------------------


def class_chains(key: ClassKey, value: EndpointClass, settings: RuleSettings) -> Chains:
    """The chain of a class, a chain for each of its tiers that a Pass can leave, and its element of the map."""
    name = chain_of_class(key.direction, value)
    if is_open(value):
        return _class_element(key, name, settings) if key.number != USUAL else {}
    deny = Rule((), Verdict(settings.deny), counted=settings.count_decisions)
    asked = _after_each(settings) if key.direction is Direction.EGRESS else ()
    chains = tier_chains(Table.FILTER, name, value.tiers, settings, deny, asked)
    root = list(chains[ChainKey(Table.FILTER, name)])
    root += [rule for profile in value.profiles for rule in (jump(profile), *asked)]
    if value.end is PolicyAction.ALLOW:
        root.append(Rule((), Goto(DONE[key.direction])))
    elif not root or root[-1].matches or root[-1].action != deny.action:
        root.append(deny._replace(comment=NO_PROFILE))
    chains[ChainKey(Table.FILTER, name)] = tuple(commented(root, value.comment))
    return chains | _class_element(key, name, settings)


def _class_element(key: ClassKey, chain: str, settings: RuleSettings) -> Chains:
    """Where nftables finds a class. For the usual one it tells who reads the kernel which number that class has."""
    found = settings.marks.of(key.direction)
    if not settings.nftables or key.number > found.largest:  # a larger one is no interface's (``ClassMembers``)
        return {}
    code = code_of(key.number, found.bits)
    return {ClassElement(MAPS[key.direction], found.of(code)): (Rule((), Goto(chain)),)}


def _after_each(settings: RuleSettings) -> tuple[Rule, ...]:
    accepted = settings.marks.accepted
    return (Rule((Marked(accepted, accepted),), Verdict.RETURN),) if returns_to_host(settings) else ()


def commented(rules: list[Rule], comment: str) -> Iterator[Rule]:
    """Rules, the first of which tells what they are of, unless it has a comment of its own."""
    first = (rule if rule.comment else rule._replace(comment=comment) for rule in rules[:1])
    return itertools.chain(first, rules[1:])
