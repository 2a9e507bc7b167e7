"""All settings, one declaration each; parsing, precedence and documentation follow from it.

Names are Felix's; a setting of our own says so. A default that differs from Felix's says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import and_
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from felixpy.config.values import (
    BOOLEAN,
    FAILSAFES,
    HOST,
    INTERFACE_NAME,
    INTERFACE_PREFIXES,
    LEAST_MARK_BITS,
    MAC,
    MARK_MASK,
    NODE_NAME,
    OPTIONAL_BOOLEAN,
    OPTIONAL_PATH,
    PATH,
    PORT,
    PORT_RANGE,
    PREFIXES,
    RATE,
    ROUTE_PROTOCOL,
    SECRET,
    TABLE_RANGES,
    TEXT,
    TOPIC,
    AllowAction,
    ChainInsertMode,
    DatastoreType,
    DenyAction,
    EndpointToHostAction,
    EndpointWithoutProfileAction,
    Failsafe,
    IPAMType,
    IptablesBackend,
    MasqAgentSources,
    MqttPeers,
    NATOutgoingExclusions,
    NFTablesMode,
    Parser,
    PortRange,
    ProgramClusterRoutes,
    Rate,
    ServiceLoopPrevention,
    TableRange,
    address,
    choice,
    duration,
    integer,
    pattern,
    switch,
    whole_seconds,
    word,
)
from felixpy.model.net import Family, Net

T = TypeVar("T")


class Declaration(Struct, frozen=True):
    """What there is to know of one setting beside its value.

    ``also`` are further names, such as the one in FelixConfiguration where it differs by more than case.
    Settings of the stream take effect when they change; ``local_only`` ones are read at the start.
    """

    attribute: str
    name: str
    parser: Parser[Any]
    doc: str
    also: tuple[str, ...] = ()
    ours: bool = False
    local_only: bool = False
    secret: bool = False

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return f"FELIX_{self.name.upper()}"


_DECLARED: list[Declaration] = []
"""In the order of the fields of ``Settings``, whose defaults the two functions below return."""


def _setting(default: T, name: str, parser: Parser[T], doc: str, *also: str, ours: bool = False) -> T:
    _DECLARED.append(Declaration("", name, parser, doc, also, ours))
    return default


def _local(
    default: T, name: str, parser: Parser[T], doc: str, *also: str, ours: bool = True, secret: bool = False
) -> T:
    _DECLARED.append(Declaration("", name, parser, doc, also, ours, local_only=True, secret=secret))
    return default


DEFAULT_MARK_MASK = 0xFFFF0000
_CONTROL_PLANE = tuple(Failsafe(6, port) for port in (179, 2379, 2380, 5473, 6443, 6666, 6667))
_FAILSAFE_IN = (Failsafe(6, 22), Failsafe(17, 68), *_CONTROL_PLANE)
_FAILSAFE_OUT = (Failsafe(17, 53), Failsafe(17, 67), *_CONTROL_PLANE)
_PRIORITY_MOST = (1 << 31) - 2  # as in Felix; the kernel takes 32 bits


def _wireguard_mark(*masks: int) -> int:
    common = reduce(and_, masks)
    bit = 1 << common.bit_length() - 1 if common else 0
    enough = all("1" * LEAST_MARK_BITS in f"{mask & ~bit:b}" for mask in masks)
    return bit if enough else 0


class Settings(Struct, frozen=True):
    """All settings, parsed. Intervals are seconds (0: off)."""

    nodename: str = _local(
        "", "FelixHostname", NODE_NAME,
        "Name of this node in the stream. `NODENAME` sets it, too; else the host name. In lower case.",
        ours=False,
    )  # fmt: skip
    interface_prefix: tuple[str, ...] = _setting(
        ("cali",), "InterfacePrefix", INTERFACE_PREFIXES, "Interfaces whose name starts so belong to workloads."
    )
    ipv4_support: bool = _setting(True, "IPv4Support", BOOLEAN, "Program IPv4. Off removes all IPv4 state.", ours=True)
    ipv6_support: bool = _setting(True, "Ipv6Support", BOOLEAN, "Program IPv6. Off removes all IPv6 state.")
    ip_forwarding: bool = _setting(
        True, "IPForwarding", switch("Enabled", "Disabled"), "Turn on the kernel's forwarding at start."
    )
    default_endpoint_to_host_action: EndpointToHostAction = _setting(
        EndpointToHostAction.DROP, "DefaultEndpointToHostAction", choice(EndpointToHostAction),
        "What happens to packets from a workload to its own node.",
    )  # fmt: skip
    iptables_filter_deny_action: DenyAction = _setting(
        DenyAction.DROP, "IptablesFilterDenyAction", choice(DenyAction), "How iptables rules refuse a packet."
    )
    nftables_filter_deny_action: DenyAction = _setting(
        DenyAction.DROP, "NftablesFilterDenyAction", choice(DenyAction), "How nftables rules refuse a packet."
    )
    iptables_filter_allow_action: AllowAction = _setting(
        AllowAction.ACCEPT, "IptablesFilterAllowAction", choice(AllowAction), "How iptables rules let a packet pass."
    )
    nftables_filter_allow_action: AllowAction = _setting(
        AllowAction.ACCEPT, "NftablesFilterAllowAction", choice(AllowAction), "How nftables rules let a packet pass."
    )
    endpoint_without_profile_action: EndpointWithoutProfileAction = _setting(
        EndpointWithoutProfileAction.ALLOW, "EndpointWithoutProfileAction", choice(EndpointWithoutProfileAction),
        "What happens to traffic of an endpoint that names no profile and that no policy selects. Felix denies it;"
        " here nobody attaches profiles by itself.",
        ours=True,
    )  # fmt: skip
    log_prefix: str = _setting(
        "calico-packet", "LogPrefix", TEXT, "How lines of Log rules begin; `%t`, `%k`, `%p`, `%n` name the policy."
    )
    iptables_mark_mask: int = _setting(
        DEFAULT_MARK_MASK, "IptablesMarkMask", MARK_MASK, "Bits of packets' marks that iptables rules may use."
    )
    nftables_mark_mask: int = _setting(
        DEFAULT_MARK_MASK, "NftablesMarkMask", MARK_MASK, "Bits of packets' marks that nftables rules may use."
    )
    failsafe_inbound_host_ports: tuple[Failsafe, ...] = _setting(
        _FAILSAFE_IN, "FailsafeInboundHostPorts", FAILSAFES,
        "Ports of the node that host endpoints' policies never close to the outside.",
    )  # fmt: skip
    failsafe_outbound_host_ports: tuple[Failsafe, ...] = _setting(
        _FAILSAFE_OUT, "FailsafeOutboundHostPorts", FAILSAFES,
        "Ports outside that host endpoints' policies never close to the node.",
    )  # fmt: skip
    log_action_rate_limit: Rate | None = _setting(
        None, "LogActionRateLimit", RATE, "How many packets a Log rule of a policy writes at most; none: all."
    )
    log_action_rate_limit_burst: int = _setting(
        5, "LogActionRateLimitBurst", integer(1, 9999), "How many packets a Log rule writes before its limit counts."
    )
    policy_counters: bool = _setting(
        True, "PolicyCounters", switch("Enabled", "Disabled"),
        "Count packets that policies, profiles and ends of tiers allow and deny, for metrics.", ours=True,
    )  # fmt: skip
    service_loop_prevention: ServiceLoopPrevention = _setting(
        ServiceLoopPrevention.DROP, "ServiceLoopPrevention", choice(ServiceLoopPrevention),
        "What becomes of forwarded packets to a Service that nobody took: the ranges of the default BGPConfiguration.",
    )  # fmt: skip
    floating_ips: bool = _setting(
        False, "FloatingIPs", switch("Enabled", "Disabled"), "Whether `ipNATs` of WorkloadEndpoints are honoured."
    )
    disable_conntrack_invalid_check: bool = _setting(
        False, "DisableConntrackInvalidCheck", BOOLEAN, "Do not drop packets that connection tracking calls invalid."
    )
    workload_source_spoofing_any: bool = _setting(
        False, "WorkloadSourceSpoofing", switch("Any", "Disabled"), "Whether `allowSpoofedSourcePrefixes` is honoured."
    )
    allow_ipip_packets_from_workloads: bool = _setting(
        False, "AllowIPIPPacketsFromWorkloads", BOOLEAN, "Let workloads send IPIP packets of their own."
    )
    allow_vxlan_packets_from_workloads: bool = _setting(
        False, "AllowVXLANPacketsFromWorkloads", BOOLEAN, "Let workloads send VXLAN packets of their own."
    )
    nat_outgoing_exclusions: NATOutgoingExclusions = _setting(
        NATOutgoingExclusions.IP_POOLS_ONLY, "NATOutgoingExclusions", choice(NATOutgoingExclusions),
        "Destinations that natOutgoing leaves alone: pools, or pools and nodes.",
    )  # fmt: skip
    nat_port_range: PortRange | None = _setting(
        None, "NATPortRange", PORT_RANGE, "Source ports of TCP and UDP behind NAT."
    )
    nat_outgoing_address: bytes | None = _setting(
        None, "NATOutgoingAddress", address(Family.V4), "IPv4 source address of natOutgoing, instead of masquerading."
    )
    nat_outgoing_address_ipv6: bytes | None = _setting(
        None, "NATOutgoingAddressIPv6", address(Family.V6), "The same for IPv6.", ours=True
    )
    iptables_nat_outgoing_interface_filter: str = _setting(
        "", "IptablesNATOutgoingInterfaceFilter", pattern(r"[A-Za-z0-9_.-]{1,14}\+|[A-Za-z0-9_.-]{1,15}",
        "an interface name, `+` at its end for any rest"), "Only packets that leave by this interface get natOutgoing.",
    )  # fmt: skip
    ip_masq_agent_config: Path | None = _local(
        None, "IPMasqAgentConfig", OPTIONAL_PATH, "Do what ip-masq-agent does, by this file of it, such as "
        "`/etc/config/ip-masq-agent`: followed, and its defaults if it is not there. Unset: off.",
    )  # fmt: skip
    ip_masq_agent_sources: MasqAgentSources = _setting(
        MasqAgentSources.ANY, "IPMasqAgentSources", choice(MasqAgentSources),
        "Whose packets that concerns: everybody's, as with ip-masq-agent, or those from pools.", ours=True,
    )  # fmt: skip
    ip_masq_agent_reserved_ranges: bool = _local(
        False, "IPMasqAgentReservedRanges", BOOLEAN,
        "Without `nonMasqueradeCIDRs`, leave all reserved IPv4 ranges alone (its `--nomasq-all-reserved-ranges`).",
    )  # fmt: skip
    external_nodes_cidr_list: tuple[Net, ...] = _setting(
        (), "ExternalNodesCIDRList", PREFIXES, "Nodes outside the cluster that count as its nodes.", "ExternalNodesList"
    )
    device_route_protocol: int = _setting(
        222, "DeviceRouteProtocol", ROUTE_PROTOCOL, "`proto` of our routes: how we know them after a restart. "
        "Felix's 3 is shared with others. Set another one on the node, not in the stream: `cleanup` must know it.",
    )  # fmt: skip
    device_route_source_address: bytes | None = _setting(
        None,
        "DeviceRouteSourceAddress",
        address(Family.V4),
        "`src` of our IPv4 routes: to workloads, to other nodes' blocks, and blackholes.",
    )
    device_route_source_address_ipv6: bytes | None = _setting(
        None, "DeviceRouteSourceAddressIPv6", address(Family.V6), "The same for IPv6."
    )
    ipv4_normal_route_priority: int = _setting(
        0, "IPv4NormalRoutePriority", integer(0, _PRIORITY_MOST), "Metric of IPv4 routes to workloads. Felix: 1024; "
        "0 is what the CNI plugin uses, so that both make one route.",
    )  # fmt: skip
    ipv6_normal_route_priority: int = _setting(
        1024, "IPv6NormalRoutePriority", integer(1, _PRIORITY_MOST), "Metric of IPv6 routes to workloads."
    )
    program_cluster_routes: ProgramClusterRoutes = _setting(
        ProgramClusterRoutes.ENABLED, "ProgramClusterRoutes", choice(ProgramClusterRoutes),
        "Program routes to other nodes: all, those of IPIP pools (Felix's default), or those of pools without "
        "encapsulation; the rest is a BGP speaker's. Those of VXLAN pools are always programmed.",
    )  # fmt: skip
    vxlan_enabled: bool | None = _setting(
        None, "VXLANEnabled", OPTIONAL_BOOLEAN, "IPv4 VXLAN, whatever the pools say. Unset: as they need it."
    )
    vxlan_vni: int = _setting(4096, "VXLANVNI", integer(1, (1 << 24) - 1), "Network identifier of VXLAN.")
    vxlan_port: int = _setting(4789, "VXLANPort", integer(1, 65535), "UDP port of VXLAN.")
    vxlan_mtu: int = _setting(
        0,
        "VXLANMTU",
        integer(0, 65535),
        "MTU of `vxlan.calico`. 0: what the interface with the node's address carries.",
    )
    vxlan_mtu_v6: int = _setting(0, "VXLANMTUV6", integer(0, 65535), "The same for `vxlan-v6.calico`.")
    ipip_enabled: bool | None = _setting(
        None, "IpInIpEnabled", OPTIONAL_BOOLEAN, "IPIP, whatever the pools say. Unset: as they need it.", "IPIPEnabled"
    )
    ipip_mtu: int = _setting(0, "IpInIpMtu", integer(0, 65535), "The same for `tunl0`.", "IPIPMTU")
    ipv4_vxlan_tunnel_address: bytes | None = _setting(
        None, "IPv4VXLANTunnelAddr", address(Family.V4), "Address of `vxlan.calico`. Unset: as the Node says."
    )
    ipv6_vxlan_tunnel_address: bytes | None = _setting(
        None, "IPv6VXLANTunnelAddr", address(Family.V6), "Address of `vxlan-v6.calico`. Unset: as the Node says."
    )
    ipip_tunnel_address: bytes | None = _setting(
        None, "IpInIpTunnelAddr", address(Family.V4), "Address of `tunl0`. Unset: as the Node says."
    )
    vxlan_tunnel_mac: bytes | None = _setting(
        None, "VXLANTunnelMACAddr", MAC, "MAC of `vxlan.calico`. Unset: as the Node says, or made from its name."
    )
    vxlan_tunnel_mac_v6: bytes | None = _setting(None, "VXLANTunnelMACAddrV6", MAC, "The same for `vxlan-v6.calico`.")
    ipv6_over_ipv4: bool = _setting(
        False, "IPv6OverIPv4", BOOLEAN, "Let `vxlan.calico` carry IPv6 of VXLAN pools, too, between two nodes of which "
        "one has no IPv6 address. The same on all nodes.", ours=True,
    )  # fmt: skip
    ipv4_over_ipv6: bool = _setting(
        False, "IPv4OverIPv6", BOOLEAN, "The same for IPv4, `vxlan-v6.calico` and nodes without an IPv4 address.",
        ours=True,
    )  # fmt: skip
    wireguard_enabled: bool = _setting(
        False, "WireguardEnabled", BOOLEAN, "Encrypt IPv4 between nodes that publish a key."
    )
    wireguard_enabled_v6: bool = _setting(False, "WireguardEnabledV6", BOOLEAN, "The same for IPv6.")
    wireguard_listening_port: int = _setting(
        51820, "WireguardListeningPort", integer(1, 65535), "UDP port of `wireguard.cali`; the same on all nodes."
    )
    wireguard_listening_port_v6: int = _setting(
        51821, "WireguardListeningPortV6", integer(1, 65535), "UDP port of `wg-v6.cali`; the same on all nodes."
    )
    wireguard_interface_name: str = _setting(
        "wireguard.cali", "WireguardInterfaceName", INTERFACE_NAME, "Device of WireGuard over IPv4."
    )
    wireguard_interface_name_v6: str = _setting(
        "wg-v6.cali", "WireguardInterfaceNameV6", INTERFACE_NAME, "Device of WireGuard over IPv6."
    )
    wireguard_mtu: int = _setting(
        0, "WireguardMTU", integer(0, 65535), "MTU of `wireguard.cali`. 0: what the underlay carries."
    )
    wireguard_mtu_v6: int = _setting(0, "WireguardMTUV6", integer(0, 65535), "The same for `wg-v6.cali`.")
    wireguard_routing_rule_priority: int = _setting(
        99, "WireguardRoutingRulePriority", integer(1, 32765), "Priority of the rules that lead into the devices."
    )
    wireguard_persistent_keep_alive: int = _setting(
        0, "WireguardPersistentKeepAlive", whole_seconds(65535), "How often a silent peer is told that we are there. "
        "0: never.",
    )  # fmt: skip
    wireguard_host_encryption_enabled: bool = _setting(
        False, "WireguardHostEncryptionEnabled", BOOLEAN, "Encrypt what nodes send each other, too."
    )
    wireguard_threading_enabled: bool = _setting(
        False, "WireguardThreadingEnabled", BOOLEAN, "Let threads of the kernel do WireGuard's work (`threaded`)."
    )
    route_table_ranges: tuple[TableRange, ...] = _setting(
        (TableRange(1, 250),), "RouteTableRanges", TABLE_RANGES, "Routing tables that WireGuard may take: of IPv4 the "
        "first, of IPv6 the second.", "RouteTableRange",
    )  # fmt: skip
    wireguard_key_directory: Path = _local(
        Path("/var/lib/felixpy"), "WireguardKeyDirectory", PATH, "Where the private keys are kept, `wireguard.key` and "
        "`wireguard-v6.key`: made once, readable by root alone.",
    )  # fmt: skip
    wireguard_userspace: Path | None = _local(
        None, "WireguardUserspace", OPTIONAL_PATH, "Program that makes the devices where the kernel has no WireGuard, "
        "such as `/usr/bin/wireguard-go`. Unset: none.",
    )  # fmt: skip
    remove_external_routes: bool = _setting(
        True, "RemoveExternalRoutes", BOOLEAN, "Remove routes over workload interfaces that are not ours."
    )
    nftables_mode: NFTablesMode = _setting(
        NFTablesMode.AUTO, "NFTablesMode", choice(NFTablesMode), "Use nftables. `Auto`: as the host does."
    )
    iptables_backend: IptablesBackend = _setting(
        IptablesBackend.AUTO, "IptablesBackend", choice(IptablesBackend), "Which iptables. `Auto`: as the host does.",
    )  # fmt: skip
    chain_insert_mode: ChainInsertMode = _setting(
        ChainInsertMode.INSERT, "ChainInsertMode", choice(ChainInsertMode),
        "Our jumps go before or after other rules (iptables only).",
    )  # fmt: skip
    max_ipset_size: int = _setting(1048576, "MaxIpsetSize", integer(1, 1 << 30), "Most members of an ipset.")
    interface_refresh_interval: float = _setting(
        90.0, "InterfaceRefreshInterval", duration(), "How often interfaces are read again. 0: never."
    )
    route_refresh_interval: float = _setting(
        90.0, "RouteRefreshInterval", duration(), "How often routes and neighbours are read again. 0: never."
    )
    iptables_refresh_interval: float = _setting(
        180.0, "IptablesRefreshInterval", duration(), "How often iptables rules are read again. 0: never."
    )
    ipsets_refresh_interval: float = _setting(
        90.0, "IpsetsRefreshInterval", duration(), "How often ipsets are read again. 0: never."
    )
    nftables_refresh_interval: float = _setting(
        180.0, "NftablesRefreshInterval", duration(), "How often our nftables are read again. 0: never."
    )
    health_enabled: bool = _setting(False, "HealthEnabled", BOOLEAN, "Serve /liveness and /readiness.")
    health_host: str = _setting("localhost", "HealthHost", HOST, "Where to serve them.")
    health_port: int = _setting(9099, "HealthPort", PORT, "Port of them.")
    prometheus_metrics_enabled: bool = _setting(False, "PrometheusMetricsEnabled", BOOLEAN, "Serve /metrics.")
    prometheus_metrics_host: str = _setting(
        "", "PrometheusMetricsHost", HOST, "Where to serve them; empty: on every address."
    )
    prometheus_metrics_port: int = _setting(9091, "PrometheusMetricsPort", PORT, "Port of them.")
    endpoint_status_path_prefix: Path | None = _setting(
        Path("/var/run/calico"), "EndpointStatusPathPrefix", OPTIONAL_PATH, "Where `endpoint-status/` lies: a file per "
        "endpoint that is up, for CNI plugins that wait for it. `none`, or empty but in the environment: no files.",
    )  # fmt: skip
    log_severity_screen: str = _setting(
        "INFO",
        "LogSeverityScreen",
        word("TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "FATAL", "NONE", zero=("NONE",)),
        "Least severe log line.",
    )
    reporting_interval_secs: float = _setting(
        30.0, "ReportingIntervalSecs", duration(), "How often the agent's status is published. 0: at changes only.",
        "ReportingInterval",
    )  # fmt: skip
    mtu_file: Path | None = _local(
        Path("/var/lib/calico/mtu"), "MTUFile", OPTIONAL_PATH,
        "Where the MTU of workloads is written for CNI plugins, if its folder is there. `none`: nowhere.",
    )  # fmt: skip
    control_socket: Path | None = _local(
        Path("/run/felixpy/felixpy.sock"), "ControlSocket", OPTIONAL_PATH,
        "Where `felixpy status` asks the running agent; for root only. `none`, or empty in the file: nowhere.",
    )  # fmt: skip
    cni_socket: Path | None = _local(
        None, "CNISocket", OPTIONAL_PATH,
        "Where the CNI plugin asks this agent to attach containers, such as `/run/felixpy/cni.sock`; for root only. "
        "Unset or `none`: nowhere.",
    )  # fmt: skip
    cni_state_directory: Path = _local(
        Path("/var/lib/felixpy/cni"), "CNIStateDirectory", PATH, "Where the attachments of this node are kept."
    )
    cni_config_file: Path | None = _local(
        None, "CNIConfigFile", OPTIONAL_PATH, "The network configuration that container runtimes read, such as "
        "`/etc/cni/net.d/10-felixpy.conflist`: written when the node is ready, taken away when it is not. Unset: none.",
    )  # fmt: skip
    cni_network_config_file: Path | None = _local(
        None, "CNINetworkConfigFile", OPTIONAL_PATH, "What to write there, a list of plugins or one; unset: ours and "
        "`portmap`, for the families of which this node has addresses.",
    )  # fmt: skip
    cni_mtu: int = _local(0, "CNIMTU", integer(0, 65535), "MTU of containers' interfaces. 0: what tunnels carry.")
    ipam_type: IPAMType = _local(
        IPAMType.POD_CIDR, "IPAMType", choice(IPAMType), "Where containers' addresses come from. `PodCIDR`: blocks of "
        "this node, by its pod CIDRs or because an operator assigned them. `Pools`: whole pools, for a node alone. "
        "`Calico`: Calico's blocks in the Kubernetes API.",
    )  # fmt: skip
    # The stream. All our own, environment and file only.
    datastore_type: DatastoreType = _local(
        DatastoreType.AUTO, "DatastoreType", choice(DatastoreType),
        "Where resources come from. `Auto`: a broker if one is named, else the Kubernetes cluster that the agent is a "
        "pod of, else the resource directory.", ours=False,
    )  # fmt: skip
    kubeconfig: Path | None = _local(
        None, "Kubeconfig", OPTIONAL_PATH, "How to reach the Kubernetes API; unset: as a pod, else by `KUBECONFIG`."
    )
    resource_directory: Path = _local(
        Path("/etc/felixpy/resources"),
        "ResourceDirectory",
        PATH,
        "Directory of manifests: the source without a broker.",
    )
    max_objects: int = _local(
        250_000, "MaxObjects", integer(1, 1 << 30), "Most objects that are taken from the stream; others are left out."
    )
    mqtt_host: str = _local("", "MQTTHost", HOST, "Broker. If set, MQTT is the source.")
    mqtt_port: int = _local(0, "MQTTPort", PORT, "Port of the broker. 0: 8883 with TLS, else 1883.")
    mqtt_topic_root: str = _local("felixpy/v1", "MQTTTopicRoot", TOPIC, "Root of all topics.")
    mqtt_peers: MqttPeers = _local(
        MqttPeers.AUTO, "MQTTPeers", choice(MqttPeers),
        "Whether the endpoints of other nodes are followed over MQTT, which policies ask for; Auto: up to 10,000; Hub: "
        "as `felixpy hub` tells of them.",
    )  # fmt: skip
    mqtt_client_id: str = _local(
        "", "MQTTClientID", TEXT, "Client id; empty: node's name and random bits, new at each start."
    )
    mqtt_username: str = _local("", "MQTTUsername", TEXT, "User at the broker.")
    mqtt_password: str = _local("", "MQTTPassword", SECRET, "Password. Never logged.", secret=True)
    mqtt_password_file: Path | None = _local(
        None, "MQTTPasswordFile", OPTIONAL_PATH, "File that holds the password; a new one is followed."
    )
    mqtt_tls: bool = _local(False, "MQTTTLS", BOOLEAN, "Use TLS.")
    mqtt_ca_file: Path | None = _local(
        None, "MQTTCAFile", OPTIONAL_PATH, "Certificates to trust, followed; unset: the system's.", "MQTTCACertFile"
    )
    mqtt_cert_file: Path | None = _local(
        None, "MQTTCertFile", OPTIONAL_PATH, "Client certificate; a new one is followed."
    )
    mqtt_key_file: Path | None = _local(
        None, "MQTTKeyFile", OPTIONAL_PATH, "Key of the client certificate; a new one is followed."
    )
    mqtt_keepalive: float = _local(20.0, "MQTTKeepalive", duration(1.0, 65535.0), "MQTT keep-alive.")
    snapshot_timeout: float = _local(
        5.0, "SnapshotTimeout", duration(0.1), "Without progress for so long, a snapshot is read again in parts."
    )
    snapshot_quiet_time: float = _local(
        1.0, "SnapshotQuietTime", duration(0.01), "Without manifests: in sync after so long a silence."
    )

    @property
    def mqtt_enabled(self) -> bool:
        """MQTT is the source if a broker is named and nothing else is asked for."""
        return bool(self.mqtt_host) and self.datastore_type in (DatastoreType.AUTO, DatastoreType.MQTT)

    def __repr__(self) -> str:
        shown = ((name, getattr(self, name)) for name, one in DECLARATIONS.items() if not one.secret)
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown)})"

    @property
    def crossed_families(self) -> frozenset[Family]:
        """Families whose packets may travel over the other one, to or from a node without an address of theirs."""
        asked = {Family.V4: self.ipv4_over_ipv6, Family.V6: self.ipv6_over_ipv4}
        return frozenset(family for family, crosses in asked.items() if crosses)

    @property
    def wireguard_mark(self) -> int:
        """The bit of the mark that packets of WireGuard's devices carry: the highest one that is in both masks.

        0 if one of them has not enough left without it.
        """
        return _wireguard_mark(self.nftables_mark_mask, self.iptables_mark_mask)


DECLARATIONS: Mapping[str, Declaration] = {
    attribute: replace(declared, attribute=attribute)
    for attribute, declared in zip(Settings.__struct_fields__, _DECLARED, strict=True)
}
"""Attribute of ``Settings`` → its declaration, in the order of the documentation."""

DEFAULTS: Mapping[str, Any] = dict(zip(Settings.__struct_fields__, Settings.__struct_defaults__, strict=True))
