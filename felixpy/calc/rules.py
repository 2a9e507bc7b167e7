"""The packet-filter rules, written once for all back-ends and both families.

They are said in the words of ``felixpy.calc.rule``. They depend on settings and on policy
(``felixpy.calc.policy.layout``), never on how many endpoints, pools or nodes there are: those are set members.

    raw     PREROUTING   workload interface: (source, interface) must be a known pair           anti-spoofing
                         and nothing of the node's loopback network; VXLAN between nodes is not tracked
            OUTPUT       VXLAN between nodes is not tracked
    filter  INPUT        workload interface: no tunnels, established, ICMPv6 essentials, then the configured action
    filter  FORWARD      from a workload: established, not invalid, no tunnels; to one: must be a known pair;
                         to a Service that nobody took: dropped
    nat     PREROUTING, OUTPUT  to a floating address: to the workload's own instead (FloatingIPs)
    nat     POSTROUTING  source in a natOutgoing pool, destination in no pool: masquerade;
                         a workload that called itself by its floating address: from that address
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from felixpy.calc.entries import ADDRESS_MAPS, SetName
from felixpy.calc.mtu import OWN_IPIP, Tunnel
from felixpy.calc.policy.carrier import MarkBits, iptables_marks, nftables_marks
from felixpy.calc.rule import (
    ICMP,
    IPIP,
    TCP,
    UDP,
    Action,
    ChainKey,
    Chains,
    CtState,
    Destination,
    DestinationIn,
    DestinationPairIn,
    Direction,
    ErrorByPairIn,
    Icmp,
    InInterface,
    Jump,
    Limit,
    LocalSource,
    Masquerade,
    Match,
    NoTrack,
    OutInterface,
    Protocol,
    Rule,
    SetMark,
    Snat,
    Source,
    SourceIn,
    SourcePairIn,
    Table,
    TranslateDestination,
    TranslateLoop,
    Verdict,
    Vni,
)
from felixpy.config import (
    DEFAULT_MARK_MASK,
    DenyAction,
    EndpointToHostAction,
    Failsafe,
    MasqAgentSources,
    NATOutgoingExclusions,
    PortRange,
    ServiceLoopPrevention,
    Settings,
)
from felixpy.model.net import Family, Net

ICMPV6_FROM_WORKLOADS = (130, 131, 132, 133, 135, 136)
"""MLD queries, reports and done; router solicitation; neighbour solicitation and advertisement: without them IPv6 on
the link dies. Router advertisements (134) are not accepted (reference/felix.md §0.3)."""

VXLAN_PORT = 4789
LOOPBACK = Net.parse("127.0.0.0/8")
NODES = (SetName.HOSTS, SetName.EXTERNAL_HOSTS)
"""Sets of what counts as a node's address."""


SPOOF_CHECK = ChainKey(Table.RAW, "from-workload")
WORKLOAD_TO_HOST = ChainKey(Table.FILTER, "workload-to-host")
FORWARD_FROM = ChainKey(Table.FILTER, "forward-from")
FORWARD_TO = ChainKey(Table.FILTER, "forward-to")
NAT_OUTGOING = ChainKey(Table.NAT, "nat-outgoing")
MASQ_AGENT = ChainKey(Table.NAT, "ip-masq-agent")
MAP_CHAINS = {ChainKey(Table.NAT, str(name)): name for name in ADDRESS_MAPS}
"""The chains that maps of addresses are with iptables. They have no rules here: the members of the map become rules."""
INCOMING_MARK = ChainKey(Table.RAW, "incoming-mark")
WIREGUARD = frozenset({Tunnel.WIREGUARD, Tunnel.WIREGUARD_V6})
VXLAN = frozenset({Tunnel.VXLAN, Tunnel.VXLAN_V6})


class RuleSettings(Struct, frozen=True):
    """The part of the settings that rules depend on, for one family and one back-end."""

    family: Family
    prefixes: tuple[str, ...]
    endpoint_to_host: EndpointToHostAction
    deny: DenyAction
    allow: Verdict
    allow_spoofing: bool
    allow_ipip: bool
    allow_vxlan: bool
    check_invalid: bool
    exclude_hosts: bool
    nat_ports: PortRange | None
    nat_address: bytes | None
    nat_interface: str
    sees_errors: bool
    nftables: bool = True
    marks: MarkBits = nftables_marks(DEFAULT_MARK_MASK)
    failsafe_in: tuple[Failsafe, ...] = ()
    failsafe_out: tuple[Failsafe, ...] = ()
    in_use: tuple[Failsafe, ...] = ()
    log_limit: Limit | None = None
    vxlan_port: int = VXLAN_PORT
    vxlan_vni: int = 4096
    tunnels: frozenset[Tunnel] = frozenset()
    crossed: frozenset[Tunnel] = frozenset()
    wireguard_name: str = ""
    wireguard_port: int = 0
    wireguard_incoming_mark: int = 0
    service_loops: Verdict | None = Verdict.DROP
    masq_agent: MasqAgentSources | None = None
    floating: bool = False
    count_decisions: bool = False

    @classmethod
    def of(
        cls,
        settings: Settings,
        family: Family,
        *,
        nftables: bool,
        sees_errors: bool = True,
        tunnels: Iterable[Tunnel] = (),
        in_use: Iterable[Failsafe] = (),
    ) -> RuleSettings:
        """``sees_errors``: whether the kernel can look into packets (``ErrorByPairIn``, ``Vni``).

        ``tunnels``: those that this node has a device of; of the others' packets nothing is said. Kept are those whose
        packets are of the family, and apart from these, as ``crossed``, those over the other one that carry it.
        ``in_use``: where the agent itself is told from, which no policy of a host endpoint closes.
        """
        v4, there = family is Family.V4, frozenset(tunnels)
        crosses = family in settings.crossed_families
        return cls(
            family=family,
            prefixes=settings.interface_prefix,
            endpoint_to_host=settings.default_endpoint_to_host_action,
            deny=settings.nftables_filter_deny_action if nftables else settings.iptables_filter_deny_action,
            allow=Verdict(settings.nftables_filter_allow_action if nftables else settings.iptables_filter_allow_action),
            allow_spoofing=settings.workload_source_spoofing_any,
            allow_ipip=settings.allow_ipip_packets_from_workloads,
            allow_vxlan=settings.allow_vxlan_packets_from_workloads,
            check_invalid=not settings.disable_conntrack_invalid_check,
            exclude_hosts=settings.nat_outgoing_exclusions is NATOutgoingExclusions.IP_POOLS_AND_HOST_IPS,
            nat_ports=settings.nat_port_range,
            nat_address=settings.nat_outgoing_address if v4 else settings.nat_outgoing_address_ipv6,
            nat_interface=settings.iptables_nat_outgoing_interface_filter,
            sees_errors=sees_errors,
            nftables=nftables,
            marks=mark_bits(settings, nftables=nftables),
            failsafe_in=tuple(one for one in settings.failsafe_inbound_host_ports if one.is_of(family)),
            failsafe_out=tuple(one for one in settings.failsafe_outbound_host_ports if one.is_of(family)),
            in_use=tuple(one for one in in_use if one.is_of(family)),
            log_limit=_log_limit(settings),
            vxlan_port=settings.vxlan_port,
            vxlan_vni=settings.vxlan_vni,
            tunnels=frozenset(one for one in there if one.outer is family),
            crossed=frozenset(one for one in there & VXLAN if crosses and one.outer is not family),
            wireguard_name=settings.wireguard_interface_name if v4 else settings.wireguard_interface_name_v6,
            wireguard_port=settings.wireguard_listening_port if v4 else settings.wireguard_listening_port_v6,
            wireguard_incoming_mark=wireguard_bit(settings) if settings.wireguard_host_encryption_enabled else 0,
            service_loops=_service_loops(settings),
            masq_agent=settings.ip_masq_agent_sources if settings.ip_masq_agent_config else None,
            floating=settings.floating_ips,
            count_decisions=settings.policy_counters,
        )


def mark_bits(settings: Settings, *, nftables: bool) -> MarkBits:
    """What the bits of the mark mask mean for a back-end; WireGuard's is not among them."""
    free = ~wireguard_bit(settings)
    if nftables:
        return nftables_marks(settings.nftables_mark_mask & free)
    return iptables_marks(settings.iptables_mark_mask & free)


def wireguard_bit(settings: Settings) -> int:
    """The bit that packets of WireGuard's devices carry, 0 if none is wanted."""
    if not (settings.wireguard_enabled or settings.wireguard_enabled_v6):
        return 0
    return settings.wireguard_mark


def _log_limit(settings: Settings) -> Limit | None:
    rate = settings.log_action_rate_limit
    return Limit(rate.packets, rate.seconds, settings.log_action_rate_limit_burst) if rate else None


def _service_loops(settings: Settings) -> Verdict | None:
    action = settings.service_loop_prevention
    return None if action is ServiceLoopPrevention.DISABLED else Verdict(action.value.upper())


def desired_chains(settings: RuleSettings) -> Chains:
    """All chains of one family. Pure; the same for every number of endpoints."""
    return {
        **_anti_spoofing(settings),
        **_workload_to_host(settings),
        **_forward(settings),
        **_floating(settings),
        **_nat_outgoing(settings),
    }


def from_workload(settings: RuleSettings, chain: ChainKey) -> tuple[Rule, ...]:
    return tuple(Rule((InInterface(prefix, True),), Jump(chain.name)) for prefix in settings.prefixes)


def to_workload(settings: RuleSettings, chain: ChainKey) -> tuple[Rule, ...]:
    return tuple(Rule((OutInterface(prefix, True),), Jump(chain.name)) for prefix in settings.prefixes)


def _anti_spoofing(settings: RuleSettings) -> Chains:
    rules = []
    if settings.family is Family.V4:
        # route_localnet, which proxy ARP and a DNAT to the node's loopback network need, opens 127.0.0.0/8 to workloads
        # (CVE-2020-8558). Before any DNAT this sees what a workload itself asked for. IPv6 refuses ::1 by itself.
        rules += [
            Rule((Destination(LOOPBACK),), Verdict.DROP, "loopback network of the node"),
            Rule((Source(LOOPBACK),), Verdict.DROP, "loopback network of the node"),
        ]
    if settings.family is Family.V6:
        # Neither is ever forwarded: the kernel refuses such sources on the forward path (RFC 4291 §2.5.2, §2.5.6).
        rules += [
            Rule((Source(Net.parse("fe80::/10")),), Verdict.RETURN, "neighbour discovery"),
            Rule((Source(Net.parse("::/128")),), Verdict.RETURN, "duplicate address detection"),
        ]
    rules.append(Rule((SourcePairIn(SetName.FROM_WORKLOAD),), Verdict.RETURN, "known workload address"))
    if settings.allow_spoofing:
        rules.append(Rule((SourcePairIn(SetName.ALLOWED_SOURCES),), Verdict.RETURN, "allowSpoofedSourcePrefixes"))
    rules.append(Rule((), Verdict.DROP, "spoofed source or unknown workload interface"))
    arriving, leaving = _untracked(settings, SourceIn), _untracked(settings, DestinationIn)
    incoming = _incoming_mark(settings)
    first = tuple(Rule((), Jump(chain.name)) for chain in incoming if isinstance(chain, ChainKey))
    return {
        ChainKey(Table.RAW, "PREROUTING"): (*first, *from_workload(settings, SPOOF_CHECK), *arriving),
        SPOOF_CHECK: tuple(rules),
        **({ChainKey(Table.RAW, "OUTPUT"): leaving} if leaving else {}),
        **incoming,
    }


def _untracked(settings: RuleSettings, other_end: type[SourceIn | DestinationIn]) -> tuple[Rule, ...]:
    """Encapsulated flows between nodes are no connections: each would fill conntrack with the hash of an inner one.

    Nobody else's VXLAN, and nothing of a workload, which has no node's address: there NAT may be wanted.
    """
    if not (vxlan := _our_vxlan(settings)):
        return ()
    return tuple(Rule((*vxlan, other_end(nodes)), NoTrack(), "VXLAN between nodes") for nodes in NODES)


def _our_vxlan(settings: RuleSettings) -> tuple[Match, ...]:
    """What tells VXLAN of our network from that of others on the same port; nothing where that cannot be told."""
    if not (settings.tunnels & VXLAN and settings.sees_errors):
        return ()
    return Protocol(UDP, settings.vxlan_port), Vni(settings.vxlan_vni)


def conntrack(settings: RuleSettings) -> list[Rule]:
    """What is known of a connection decides first; for packets that no workload sends."""
    return [Rule((CtState.ESTABLISHED_OR_RELATED,), settings.allow), *_invalid(settings)]


def _conntrack_from_workload(settings: RuleSettings) -> list[Rule]:
    """Errors pass only about what was sent to the workload itself.

    The kernel takes an error for related to whichever connection it names, so any workload could change the path MTU
    of its node and of others. Related besides are connections that a helper of connection tracking expects.
    """
    icmp = Protocol(ICMP[settings.family])
    own = [
        Rule((icmp, CtState.RELATED, ErrorByPairIn(SetName.FROM_WORKLOAD, direction)), settings.allow, "its own error")
        for direction in Direction
    ]
    return [
        Rule((CtState.ESTABLISHED,), settings.allow),
        *(own if settings.sees_errors else []),
        Rule((icmp, CtState.RELATED), Verdict(settings.deny), "error about a connection of others"),
        Rule((CtState.RELATED,), settings.allow),
        *_invalid(settings),
    ]


def _invalid(settings: RuleSettings) -> list[Rule]:
    return [Rule((CtState.INVALID,), Verdict(settings.deny))] if settings.check_invalid else []


def _incoming_mark(settings: RuleSettings) -> Chains:
    """With host encryption: what came neither from this node nor out of its tunnel carries the mark.

    So the reverse path filter looks for its sender where the packet came from, and not in the tunnel.
    """
    if not (settings.wireguard_incoming_mark and settings.tunnels & WIREGUARD):
        return {}
    mark = settings.wireguard_incoming_mark
    inside = (InInterface("lo"), InInterface(settings.wireguard_name))
    workloads = (InInterface(prefix, True) for prefix in settings.prefixes)
    return {
        INCOMING_MARK: (
            *(Rule((one,), Verdict.RETURN) for one in (*inside, *workloads)),
            Rule((), SetMark(mark, mark), "from outside of WireGuard"),
        )
    }


def _no_tunnels(settings: RuleSettings) -> list[Rule]:
    """What a tunnel's end would unpack, on the node itself or behind it: its inner source was checked by nobody."""
    rules = []
    if not settings.allow_vxlan:
        rules.append(
            Rule((Protocol(UDP, settings.vxlan_port),), Verdict(settings.deny), "VXLAN encapsulated by a workload")
        )
    if not settings.allow_ipip:
        rules.append(Rule((Protocol(IPIP),), Verdict(settings.deny), "IPIP encapsulated by a workload"))
    return rules


def arriving_tunnels(settings: RuleSettings) -> list[Rule]:
    """Of what our tunnels' ends would unpack, only nodes' packets count: an inner source is checked by nobody else.

    VXLAN of other networks on the same port is left alone.
    """
    rules: list[Rule] = []
    if vxlan := _our_vxlan(settings):
        rules += [
            *(Rule((*vxlan, SourceIn(nodes)), Verdict.ACCEPT, "VXLAN of a node") for nodes in NODES),
            Rule(vxlan, Verdict.DROP, "VXLAN of nobody in the cluster"),
        ]
    if Tunnel.IPIP in settings.tunnels:
        rules += [
            *(Rule((Protocol(IPIP), SourceIn(nodes)), Verdict.ACCEPT, "IPIP of a node") for nodes in NODES),
            Rule((Protocol(IPIP),), Verdict.DROP, "IPIP of nobody in the cluster"),
        ]
    if settings.tunnels & WIREGUARD:
        # Whoever sends it: the device takes nothing that a peer has not encrypted.
        rules.append(Rule((Protocol(UDP, settings.wireguard_port),), Verdict.ACCEPT, "WireGuard"))
    return rules


def leaving_tunnels(settings: RuleSettings) -> list[Rule]:
    """What this node sends encapsulated to other nodes: policy of host endpoints is not asked about it, as in Felix."""
    rules: list[Rule] = []
    if vxlan := _our_vxlan(settings):
        rules += [Rule((*vxlan, DestinationIn(nodes)), Verdict.ACCEPT, "VXLAN to a node") for nodes in NODES]
    if Tunnel.IPIP in settings.tunnels:
        rules += [Rule((Protocol(IPIP), DestinationIn(nodes)), Verdict.ACCEPT, "IPIP to a node") for nodes in NODES]
    return rules


def _into_tunnels(settings: RuleSettings) -> list[Rule]:
    """What the node itself sends into a tunnel gets an address that the way back leads through it.

    Its UDP never gets a source port at which answers would be taken for VXLAN.
    """
    rules: list[Rule] = []
    for tunnel in sorted(settings.tunnels | settings.crossed):
        names = (settings.wireguard_name,) if tunnel in WIREGUARD else (tunnel,)
        for name in (*names, OWN_IPIP) if tunnel is Tunnel.IPIP else names:
            foreign = OutInterface(name), LocalSource(of_output=True, negated=True), LocalSource(of_output=False)
            udp = Masquerade(PortRange(min(settings.vxlan_port + 1, 65535), 65535))
            rules.append(Rule((*foreign, Protocol(UDP)), udp, "this node into a tunnel"))
            rules.append(Rule(foreign, Masquerade(), "this node into a tunnel"))
    return rules


def no_service_loops(settings: RuleSettings) -> list[Rule]:
    """What is forwarded and still addressed to a Service has nobody to answer: a proxy would have changed that before.

    The way out leads to a router, whose way to the Service leads back. It stands behind what is for workloads, and
    before everything that accepts the rest: a policy that allows does not make anybody answer.
    """
    if settings.service_loops is None:
        return []
    return [Rule((DestinationIn(SetName.SERVICE_RANGES),), settings.service_loops, "ServiceLoopPrevention")]


def leaving_workload(settings: RuleSettings) -> list[Rule]:
    """What is asked first of a packet from a workload that is forwarded."""
    return [*_conntrack_from_workload(settings), *_no_tunnels(settings)]


def reaching_host(settings: RuleSettings) -> list[Rule]:
    """What is asked first of a packet from a workload to its node: without ICMPv6, IPv6 on the link dies."""
    rules = _no_tunnels(settings)
    if settings.family is Family.V6:
        rules += [Rule((Icmp(kind),), Verdict.ACCEPT) for kind in ICMPV6_FROM_WORKLOADS]
    return rules + _conntrack_from_workload(settings)


def _workload_to_host(settings: RuleSettings) -> Chains:
    action = Verdict(settings.endpoint_to_host.value.upper())
    return {
        ChainKey(Table.FILTER, "INPUT"): (
            *from_workload(settings, WORKLOAD_TO_HOST),
            *arriving_tunnels(settings),
        ),
        WORKLOAD_TO_HOST: (
            *reaching_host(settings),
            Rule((), action, "Configured DefaultEndpointToHostAction"),
        ),
    }


def _forward(settings: RuleSettings) -> Chains:
    arriving = [
        *conntrack(settings),
        Rule((DestinationPairIn(SetName.TO_WORKLOAD),), settings.allow, "known workload address"),
        Rule((), Verdict(settings.deny), "unknown workload address or interface"),
    ]
    return {
        ChainKey(Table.FILTER, "FORWARD"): (
            *from_workload(settings, FORWARD_FROM),
            *to_workload(settings, FORWARD_TO),
            *no_service_loops(settings),
            *(Rule((InInterface(prefix, True),), settings.allow) for prefix in settings.prefixes),
        ),
        FORWARD_FROM: tuple(leaving_workload(settings)),
        FORWARD_TO: tuple(arriving),
    }


def _floating(settings: RuleSettings) -> Chains:
    """Floating addresses, for what arrives and for what the node itself sends."""
    if not settings.floating:
        return {}
    rules = (Rule((), TranslateDestination(SetName.FLOATING), "FloatingIPs"),)
    chains: Chains = {ChainKey(Table.NAT, "PREROUTING"): rules, ChainKey(Table.NAT, "OUTPUT"): rules}
    return chains if settings.nftables else chains | dict.fromkeys(MAP_CHAINS, ())


def _floating_loops(settings: RuleSettings) -> list[Rule]:
    """A workload that calls its own floating address would otherwise get packets from itself, and drop them."""
    return [Rule((), TranslateLoop(SetName.FLOATING_LOOPS), "FloatingIPs")] if settings.floating else []


def _nat_outgoing(settings: RuleSettings) -> Chains:
    leaving: list[Match] = [SourceIn(SetName.MASQ_POOLS), DestinationIn(SetName.POOLS, negated=True)]
    if settings.exclude_hosts:
        leaving += [DestinationIn(nodes, negated=True) for nodes in NODES]
    if settings.nat_interface:
        name = settings.nat_interface
        leaving.append(OutInterface(name.rstrip("+"), prefix=name.endswith("+")))
    rules = []
    if settings.nat_ports:
        # Both actions end the traversal of the nat table, so TCP and UDP never reach the rule without ports.
        rules += [Rule((*leaving, Protocol(number)), _translate(settings, settings.nat_ports)) for number in (TCP, UDP)]
    rules.append(Rule(tuple(leaving), _translate(settings, None), "natOutgoing"))
    masq_agent = _masq_agent(settings)
    if masq_agent:
        rules.append(Rule((), Jump(MASQ_AGENT.name)))
    return {
        ChainKey(Table.NAT, "POSTROUTING"): (*_floating_loops(settings), Rule((), Jump(NAT_OUTGOING.name))),
        NAT_OUTGOING: (*_into_tunnels(settings), *rules),
        **masq_agent,
    }


def _masq_agent(settings: RuleSettings) -> Chains:
    """What ip-masq-agent does, by a file of destinations that keep their source; pools are always such, too."""
    if settings.masq_agent is None:
        return {}
    sources = (SourceIn(SetName.POOLS),) if settings.masq_agent is MasqAgentSources.POOLS else ()
    rules = [
        Rule((OutInterface("lo"),), Verdict.RETURN, "to this node"),
        Rule((DestinationIn(SetName.POOLS),), Verdict.RETURN, "to a pool"),
        Rule((DestinationIn(SetName.NOT_MASQUERADED),), Verdict.RETURN, "nonMasqueradeCIDRs"),
    ]
    if settings.nat_ports:
        rules += [Rule((*sources, Protocol(number)), Masquerade(settings.nat_ports)) for number in (TCP, UDP)]
    rules.append(Rule(sources, Masquerade(), "ip-masq-agent"))
    return {MASQ_AGENT: tuple(rules)}


def _translate(settings: RuleSettings, ports: PortRange | None) -> Action:
    if settings.nat_address:
        return Snat(settings.nat_address, ports)
    return Masquerade(ports)
