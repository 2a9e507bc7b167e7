"""Policy by hand, in the words of the calculation: every match, action, use and kind of set occurs."""

from __future__ import annotations

from felixpy.calc.entries import ElementKey, Key, SetName, Value
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
    PolicyRule,
    PolicySet,
    PolicySetKey,
    PolicySetType,
    Ports,
    Side,
    TierChains,
    Use,
    chain_name,
    set_name,
    text_hash,
)
from felixpy.model.net import Family, Net, parse_address

TCP, UDP, SCTP, UDPLITE = 6, 17, 132, 136
ICMP = {Family.V4: 1, Family.V6: 58}
ADDRESS = {Family.V4: "10.65.0.{}", Family.V6: "fd00:65::{}"}
NETS = {Family.V4: ("10.66.0.0/16", "10.67.1.0/25"), Family.V6: ("fd00:66::/48", "fd00:67:1::/65")}
ALLOW, DENY, PASS, LOG = PolicyAction.ALLOW, PolicyAction.DENY, PolicyAction.PASS, PolicyAction.LOG

Entries = dict[Key, Value]

ADDRESSES, PREFIXES, PORTS = (
    set_name(kind, "by hand") for kind in (PolicySetType.ADDRESSES, PolicySetType.NETS, PolicySetType.ADDRESS_PORTS)
)


def host(family: Family, number: int) -> Net:
    return Net.host(parse_address(ADDRESS[family].format(number)))


def every_match(family: Family) -> tuple[PolicyRule, ...]:
    """Rules that use each match, positive, negated and together."""
    wide, narrow = map(Net.parse, NETS[family])
    many = tuple(Ports(port, port) for port in range(1, 40, 2))
    icmp = ICMP[family]
    return (
        PolicyRule(ALLOW, protocol=TCP, destination=Side(ports=(Ports(80, 80),))),
        PolicyRule(DENY, protocol=TCP, destination=Side(ports=(Ports(80, 90), Ports(443, 443)))),
        PolicyRule(ALLOW, protocol=UDP, source=Side(ports=(Ports(53, 53), Ports(5353, 5353)))),
        PolicyRule(ALLOW, protocol=TCP, source=Side(ports=many), destination=Side(ports=(*many, Ports(1000, 1001)))),
        PolicyRule(DENY, protocol=SCTP, destination=Side(not_ports=(*many, Ports(60000, 65535)))),
        PolicyRule(ALLOW, protocol=UDPLITE),
        PolicyRule(ALLOW, protocol=89),
        PolicyRule(DENY, not_protocol=TCP),
        PolicyRule(ALLOW, protocol=TCP, destination=Side(not_ports=(Ports(22, 22),))),
        PolicyRule(ALLOW, protocol=TCP, destination=Side(not_ports=(Ports(22, 25),))),
        PolicyRule(ALLOW, protocol=icmp, icmp=Icmp(128)),
        PolicyRule(ALLOW, protocol=icmp, icmp=Icmp(3, 1)),
        PolicyRule(DENY, protocol=icmp, not_icmp=Icmp(3)),
        PolicyRule(DENY, protocol=icmp, not_icmp=Icmp(3, 1)),
        PolicyRule(
            PASS, source=Side(nets=(wide,), not_nets=(narrow, host(family, 9))), destination=Side(nets=(narrow,))
        ),
        PolicyRule(ALLOW, source=Side(not_nets=(wide,)), destination=Side(not_nets=(host(family, 7),))),
        PolicyRule(ALLOW, source=Side(sets=(ADDRESSES, PREFIXES)), destination=Side(not_sets=(PREFIXES,))),
        PolicyRule(ALLOW, source=Side(not_sets=(ADDRESSES, PREFIXES))),
        PolicyRule(ALLOW, destination=Side(port_sets=(PORTS,)), source=Side(not_port_sets=(PORTS,))),
        PolicyRule(LOG, protocol=TCP, log_prefix="calico-packet: "),
        PolicyRule(PASS, protocol=TCP),
        PolicyRule(DENY),
    )


def sets(family: Family) -> Entries:
    """A set of each shape with members."""
    wide, narrow = map(Net.parse, NETS[family])
    entries: Entries = {
        PolicySetKey(family, ADDRESSES): PolicySet(PolicySetType.ADDRESSES, "app == db"),
        PolicySetKey(family, PREFIXES): PolicySet(PolicySetType.NETS, "nets of a rule"),
        PolicySetKey(family, PORTS): PolicySet(PolicySetType.ADDRESS_PORTS, "port http of app == db"),
    }
    members = [
        MemberKey(ADDRESSES, host(family, 1)),
        MemberKey(ADDRESSES, host(family, 2)),
        MemberKey(PREFIXES, wide),
        MemberKey(PREFIXES, narrow),
        MemberKey(PREFIXES, host(family, 77)),
        MemberKey(PORTS, host(family, 1), TCP, 80),
        MemberKey(PORTS, host(family, 1), SCTP, 81),
        MemberKey(PORTS, host(family, 2), UDP, 53),
    ]
    return entries | dict.fromkeys(members)


def policy(family: Family, use: Use, name: str, *rules: PolicyRule) -> Entries:
    return {PolicyChainKey(family, chain_name(use, name)): PolicyChain(use, rules, f"policy {name}")}


def tier(name: str, end: EndOfTier, use: Use, *policies: str, passes: bool = False) -> TierChains:
    chains = tuple(chain_name(use, one) for one in policies)
    return TierChains(name, end, chains, (passes,) * len(chains))


def endpoint_class(
    direction: Direction, *tiers: TierChains, profiles: tuple[str, ...] = (), end: PolicyAction = DENY
) -> EndpointClass:
    name = text_hash(direction, repr((tiers, profiles, end)))
    return EndpointClass(name, tiers, profiles, end, f"class of {len(tiers)} tiers")


def workload(family: Family, number: int, ingress: int, egress: int) -> Entries:
    """Workload ``number`` behind ``cali<number>``."""
    interface, address = f"cali{number}", host(family, number)
    return {
        ElementKey(SetName.FROM_WORKLOAD, address, interface): None,
        ElementKey(SetName.TO_WORKLOAD, address, interface): None,
        EndpointClassKey(family, interface): EndpointClasses(ingress, egress),
    }


def everything(family: Family) -> Entries:
    """Classes of both directions with everything that a class can have, and workloads of each."""
    uses = Use.WORKLOAD_INGRESS, Use.WORKLOAD_EGRESS
    entries = sets(family)
    for use in uses:
        entries |= policy(family, use, "a", *every_match(family))
        entries |= policy(family, use, "b", PolicyRule(ALLOW, protocol=UDP))
        entries |= policy(family, use, "profile", PolicyRule(ALLOW))
        direction = use.direction
        passing = tier("first", EndOfTier.PASS, use, "a", "b", passes=True)
        denying = tier("default", EndOfTier.DENY, use, "b")
        profiles = (chain_name(use, "profile"),)
        entries[ClassKey(family, direction, 1)] = endpoint_class(direction, end=ALLOW)
        entries[ClassKey(family, direction, 2)] = endpoint_class(direction, denying)
        entries[ClassKey(family, direction, 3)] = endpoint_class(direction, passing, denying)
        entries[ClassKey(family, direction, 4)] = endpoint_class(direction, passing, profiles=profiles)
        entries[ClassKey(family, direction, 8)] = endpoint_class(direction)
    for number, classes in enumerate([(1, 1), (2, 3), (3, 4), (4, 8), (8, 2), (0, 1)], start=1):
        entries |= workload(family, number, *classes)
    return entries


def host_endpoints(family: Family) -> Entries:
    """Host endpoints with policies in every place."""
    entries: Entries = {}
    for use in Use:
        if use not in (Use.WORKLOAD_INGRESS, Use.WORKLOAD_EGRESS):
            rules = PolicyRule(ALLOW, protocol=TCP, destination=Side(ports=(Ports(80, 80),))), PolicyRule(DENY)
            entries |= policy(family, use, "host", *rules)
            entries |= policy(family, use, "pass", PolicyRule(PASS))
    both = {
        use: (tier("sec", EndOfTier.DENY, use, "pass", passes=True), tier("default", EndOfTier.DENY, use, "host"))
        for use in Use
    }
    profile = {use: (chain_name(use, "host"),) for use in Use}
    for interface in ("eth0", "*"):
        entries[HostEndpointKey(family, interface)] = HostEndpointChains(
            ingress=both[Use.HOST_INGRESS],
            egress=both[Use.HOST_EGRESS],
            profiles_ingress=profile[Use.HOST_INGRESS],
            profiles_egress=profile[Use.HOST_EGRESS],
            forward_ingress=both[Use.FORWARD_INGRESS],
            forward_egress=both[Use.FORWARD_EGRESS],
            pre_dnat=both[Use.PRE_DNAT],
            untracked_ingress=both[Use.UNTRACKED_INGRESS],
            untracked_egress=both[Use.UNTRACKED_EGRESS],
            comment=f"host endpoint {interface}",
        )
    return entries
