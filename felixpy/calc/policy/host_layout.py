"""Host endpoints as abstract rules: what is asked of packets through the node's own interfaces, and where. Pure.

    raw     PREROUTING, OUTPUT   doNotTrack policies                      accepted: marked, and tracked by nobody
    mangle  PREROUTING           preDNAT policies, before any translation accepted: marked
    filter  INPUT, OUTPUT        the node's own traffic: failsafe ports, tiers, profiles, deny
    filter  FORWARD              applyOnForward policies, before and after the workloads'

Invariant: neighbour discovery, MLD, the failsafe ports and what the agent itself is told by are decided before any
policy, so that no policy takes the node off the network or from its broker. Traffic of workloads is not asked for here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from felixpy.calc.policy.classes import HostEndpointChains, HostEndpointKey, TierChains, text_hash
from felixpy.calc.policy.policy_rules import NO_PROFILE, tier_chains
from felixpy.calc.rule import (
    UDP,
    ChainKey,
    Chains,
    CtState,
    Destination,
    Goto,
    Icmp,
    InInterface,
    Jump,
    Marked,
    Match,
    OutInterface,
    PortIn,
    Protocol,
    Rule,
    SetMark,
    Source,
    Table,
    Verdict,
)
from felixpy.calc.rules import (
    FORWARD_FROM,
    FORWARD_TO,
    WIREGUARD,
    RuleSettings,
    conntrack,
    from_workload,
    leaving_tunnels,
    no_service_loops,
    to_workload,
)
from felixpy.config import Failsafe, PortRange
from felixpy.model.net import Family

ICMPV6_ON_HOSTS = (130, 131, 132, 143, 133, 134, 135, 136)
"""MLD, router and neighbour discovery: link-local conversation without which a node has no IPv6."""

ANY = "*"
LONGEST_NAME = 10

Hosts = Mapping[HostEndpointKey, HostEndpointChains]


def host_chains(interface: str, host: HostEndpointChains, settings: RuleSettings) -> Chains:
    """The chains of one interface."""
    deny = Rule((), Verdict(settings.deny), counted=settings.count_decisions)
    last_word = deny._replace(comment=NO_PROFILE)
    accept = Rule((), Verdict.ACCEPT)
    chains: Chains = {}

    def add(
        table: Table,
        place: str,
        tiers: tuple[TierChains, ...],
        *,
        first: tuple[Rule, ...] = (),
        end: Rule | None = None,
        last: tuple[Rule, ...] = (),
    ) -> None:
        name = _chain(place, interface)
        made = tier_chains(table, name, tiers, settings, end)
        rules = [*first, *made[ChainKey(table, name)], *last]
        if rules and not rules[0].comment:
            rules[0] = rules[0]._replace(comment=host.comment)
        chains.update(made)
        chains[ChainKey(table, name)] = tuple(rules)

    tracked = tuple(conntrack(settings))
    for place, tiers, profiles in (
        ("host-in", host.ingress, host.profiles_ingress),
        ("host-out", host.egress, host.profiles_egress),
    ):
        failsafe = Rule((), Jump(_FAILSAFE[place]))
        asked = tuple(Rule((), Jump(profile)) for profile in profiles)
        add(
            Table.FILTER,
            place,
            tiers,
            first=(*tracked, failsafe),
            end=deny,
            last=(*asked, last_word),
        )
    if host.forward_ingress:
        last = (Rule((), Goto("via-done")),)
        add(Table.FILTER, "via-in", host.forward_ingress, first=tracked, end=deny, last=last)
    if host.forward_egress:
        add(Table.FILTER, "via-out", host.forward_egress, first=tracked, end=deny, last=(accept,))
    for table, place, tiers in (
        (Table.MANGLE, "pre", host.pre_dnat),
        (Table.RAW, "raw-in", host.untracked_ingress),
        (Table.RAW, "raw-out", host.untracked_egress),
    ):
        if tiers:
            add(table, place, tiers, first=(Rule((), Jump(_FAILSAFE[place])),))
    return chains


_FAILSAFE = {
    "host-in": "failsafe-in",
    "host-out": "failsafe-out",
    "pre": "failsafe-in",
    "raw-in": "failsafe-in",
    "raw-out": "failsafe-out",
}


def joined(standing: Chains, hosts: Hosts, settings: RuleSettings, *, is_active: bool) -> Chains:
    """The standing chains with the ways to those of host endpoints; without any, as they are."""
    if not hosts:
        return standing
    chains = dict(standing)
    accepted = settings.marks.accepted
    is_accepted = Marked(accepted, accepted)
    by_name = {key.interface: host for key, host in hosts.items()}
    forward_in = [name for name, host in by_name.items() if host.forward_ingress]
    forward_out = [name for name, host in by_name.items() if host.forward_egress]
    filtering = Table.FILTER
    chains[ChainKey(filtering, "hosts-in")] = _dispatch("host-in", by_name, by_name, settings, incoming=True)
    chains[ChainKey(filtering, "hosts-out")] = _dispatch("host-out", by_name, by_name, settings, incoming=False)
    chains[ChainKey(filtering, "failsafe-in")] = _failsafe(settings, incoming=True, untracked=False)
    chains[ChainKey(filtering, "failsafe-out")] = _failsafe(settings, incoming=False, untracked=False)
    hook = ChainKey(filtering, "INPUT")
    chains[hook] = (*chains[hook], Rule((is_accepted,), Verdict.ACCEPT), Rule((), Jump("hosts-in")))
    chains[ChainKey(filtering, "OUTPUT")] = (
        *(Rule((OutInterface(prefix, True),), Verdict.RETURN) for prefix in settings.prefixes),
        *leaving_tunnels(settings),
        Rule((is_accepted,), Verdict.ACCEPT),
        Rule((), Jump("hosts-out")),
    )
    if forward_in or forward_out:
        _join_forward(chains, forward_in, forward_out, by_name, settings, is_active=is_active)
    if pre := [name for name, host in by_name.items() if host.pre_dnat]:
        chains[ChainKey(Table.MANGLE, "PREROUTING")] = (
            Rule((CtState.ESTABLISHED,), Verdict.RETURN),
            Rule((is_accepted,), Verdict.RETURN),
            Rule((), Jump("hosts-pre")),
        )
        chains[ChainKey(Table.MANGLE, "hosts-pre")] = _dispatch("pre", pre, by_name, settings, incoming=True)
        chains[ChainKey(Table.MANGLE, "failsafe-in")] = _failsafe(settings, incoming=True, untracked=False)
    raw_in = [name for name, host in by_name.items() if host.untracked_ingress]
    raw_out = [name for name, host in by_name.items() if host.untracked_egress]
    if raw_in or raw_out:
        _join_raw(chains, raw_in, raw_out, by_name, settings)
    if settings.in_use:
        _keep_in_use(chains, settings)
    return chains


def _keep_in_use(chains: Chains, settings: RuleSettings) -> None:
    """Mark what the agent itself is told by before a Service's address is translated: no later hook knows that."""
    accepted, hook = settings.marks.accepted, ChainKey(Table.RAW, "OUTPUT")
    chains[hook] = (
        Rule((), SetMark(0, accepted)),
        *(
            Rule(
                (Protocol(one.protocol, one.port), Destination(one.net)),
                SetMark(accepted, accepted),
                "of the agent itself",
            )
            for one in settings.in_use
            if one.net is not None
        ),
        Rule((Marked(accepted, accepted),), Verdict.RETURN),
        *chains.get(hook, ()),
    )


def _join_forward(
    chains: Chains,
    forward_in: list[str],
    forward_out: list[str],
    hosts: Collection[str],
    settings: RuleSettings,
    *,
    is_active: bool,
) -> None:
    filtering, accepted = Table.FILTER, settings.marks.accepted
    chains[ChainKey(filtering, "hosts-via-in")] = _dispatch("via-in", forward_in, hosts, settings, incoming=True)
    chains[ChainKey(filtering, "hosts-via-out")] = _dispatch("via-out", forward_out, hosts, settings, incoming=False)
    chains[ChainKey(filtering, "via-done")] = (
        *(Rule((OutInterface(prefix, True),), Goto(FORWARD_TO.name)) for prefix in settings.prefixes),
        *no_service_loops(settings),
        Rule((), Jump("hosts-via-out")),
        Rule((), SetMark(0, settings.marks.mask)),
        Rule((), Verdict.ACCEPT),
    )
    from_workloads = tuple(Rule((InInterface(one, True),), settings.allow) for one in settings.prefixes)
    chains[ChainKey(filtering, "FORWARD")] = (
        Rule((Marked(0, accepted),), Jump("hosts-via-in")),
        *from_workload(settings, FORWARD_FROM),
        *to_workload(settings, FORWARD_TO),
        *no_service_loops(settings),
        Rule((), Jump("hosts-via-out")),
        *from_workloads,
    )
    if is_active:
        done = ChainKey(filtering, "e-done")
        rules = chains[done]
        chains[done] = (*rules[:-2], Rule((), Jump("hosts-via-out")), *rules[-2:])


def _join_raw(
    chains: Chains, raw_in: list[str], raw_out: list[str], hosts: Collection[str], settings: RuleSettings
) -> None:
    raw, mask = Table.RAW, settings.marks.mask
    hook = ChainKey(raw, "PREROUTING")
    chains[hook] = (*chains[hook], Rule((), Jump("hosts-raw-in")))
    clear = Rule((), SetMark(0, mask))
    chains[ChainKey(raw, "hosts-raw-in")] = (clear, *_dispatch("raw-in", raw_in, hosts, settings, incoming=True))
    chains[ChainKey(raw, "failsafe-in")] = _failsafe(settings, incoming=True, untracked=True)
    hook = ChainKey(raw, "OUTPUT")
    chains[hook] = (*chains.get(hook, ()), Rule((), Jump("hosts-raw-out")))
    chains[ChainKey(raw, "hosts-raw-out")] = (clear, *_dispatch("raw-out", raw_out, hosts, settings, incoming=False))
    chains[ChainKey(raw, "failsafe-out")] = _failsafe(settings, incoming=False, untracked=True)


def _chain(place: str, interface: str) -> str:
    """Names of chains are short in iptables; one of every interface has none in its name."""
    if interface == ANY:
        return place
    return f"{place}-{interface if len(interface) <= LONGEST_NAME else text_hash(interface)[:LONGEST_NAME]}"


def _dispatch(
    place: str, asking: Collection[str], hosts: Collection[str], settings: RuleSettings, *, incoming: bool
) -> tuple[Rule, ...]:
    """From an interface to its chain; workloads and the loopback are nobody's, and ``*`` has what is left: no interface
    that has a host endpoint of its own, also if that one asks nothing here."""
    match = InInterface if incoming else OutInterface
    rules = [Rule((match(prefix, True),), Verdict.RETURN) for prefix in settings.prefixes]
    rules.append(Rule((match("lo"),), Verdict.RETURN))
    for one in sorted(hosts if ANY in asking else asking):
        if one != ANY:
            rules.append(Rule((match(one),), Goto(_chain(place, one)) if one in asking else Verdict.RETURN))
    if ANY in asking:
        rules.append(Rule((), Goto(_chain(place, ANY))))
    return tuple(rules)


def _failsafe(settings: RuleSettings, *, incoming: bool, untracked: bool) -> tuple[Rule, ...]:
    """Accept what keeps the node on the network; of what is not tracked, answers are accepted by their source port.

    Encrypted packets are of that, too: what is in them is judged when it comes out of the device.
    """
    rules: list[Rule] = []
    if settings.family is Family.V6:
        rules += [Rule((Icmp(kind),), Verdict.ACCEPT) for kind in ICMPV6_ON_HOSTS]
    tunnel = (Failsafe(UDP, settings.wireguard_port),) if settings.tunnels & WIREGUARD else ()
    there, back = (*settings.failsafe_in, *tunnel), (*settings.failsafe_out, *settings.in_use, *tunnel)
    if not incoming:
        there, back = back, there
    rules += [_port_rule(one, incoming=incoming, answer=False) for one in there]
    if untracked:
        rules += [_port_rule(one, incoming=incoming, answer=True) for one in back]
    return tuple(rules)


def _port_rule(one: Failsafe, *, incoming: bool, answer: bool) -> Rule:
    matches: list[Match] = [Protocol(one.protocol)]
    if one.net is not None:
        matches.append(Source(one.net) if incoming else Destination(one.net))
    matches.append(PortIn((PortRange(one.port, one.port),), source=answer))
    return Rule(tuple(matches), Verdict.ACCEPT)
