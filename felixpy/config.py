"""Settings: one typed declaration per setting, from which parsing, precedence, documentation and help follow.

Names are Felix's; a setting of our own says so. Precedence, highest first: environment, file, FelixConfiguration
``node.<name>``, FelixConfigurations with a matching ``nodeSelector``, FelixConfiguration ``default``, built-in default.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from felixpy.model.net import Net


class EndpointToHostAction(StrEnum):
    DROP = "Drop"
    ACCEPT = "Accept"
    RETURN = "Return"
    REJECT = "Reject"


class DenyAction(StrEnum):
    DROP = "DROP"
    REJECT = "REJECT"


class AllowAction(StrEnum):
    ACCEPT = "ACCEPT"
    RETURN = "RETURN"


class NATOutgoingExclusions(StrEnum):
    IP_POOLS_ONLY = "IPPoolsOnly"
    IP_POOLS_AND_HOST_IPS = "IPPoolsAndHostIPs"


class NFTablesMode(StrEnum):
    AUTO = "Auto"
    ENABLED = "Enabled"
    DISABLED = "Disabled"


class IptablesBackend(StrEnum):
    AUTO = "Auto"
    LEGACY = "Legacy"
    NFT = "NFT"


class ChainInsertMode(StrEnum):
    INSERT = "insert"
    APPEND = "append"


class ProgramClusterRoutes(StrEnum):
    ENABLED = "Enabled"
    DISABLED = "Disabled"


class PortRange(NamedTuple):
    """Inclusive range of ports."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, parsed. Intervals are seconds (0: off)."""

    nodename: str = ""
    interface_prefix: tuple[str, ...] = ("cali",)
    ipv4_support: bool = True
    ipv6_support: bool = True
    ip_forwarding: bool = True
    default_endpoint_to_host_action: EndpointToHostAction = EndpointToHostAction.DROP
    iptables_filter_deny_action: DenyAction = DenyAction.DROP
    nftables_filter_deny_action: DenyAction = DenyAction.DROP
    iptables_filter_allow_action: AllowAction = AllowAction.ACCEPT
    nftables_filter_allow_action: AllowAction = AllowAction.ACCEPT
    disable_conntrack_invalid_check: bool = False
    workload_source_spoofing_any: bool = False
    allow_ipip_packets_from_workloads: bool = False
    allow_vxlan_packets_from_workloads: bool = False
    nat_outgoing_exclusions: NATOutgoingExclusions = NATOutgoingExclusions.IP_POOLS_ONLY
    nat_port_range: PortRange | None = None
    nat_outgoing_address: bytes | None = None
    nat_outgoing_address_ipv6: bytes | None = None
    iptables_nat_outgoing_interface_filter: str = ""
    external_nodes_cidr_list: tuple[Net, ...] = ()
    device_route_protocol: int = 222
    device_route_source_address: bytes | None = None
    device_route_source_address_ipv6: bytes | None = None
    ipv4_normal_route_priority: int = 0
    ipv6_normal_route_priority: int = 1024
    program_cluster_routes: ProgramClusterRoutes = ProgramClusterRoutes.ENABLED
    remove_external_routes: bool = True
    nftables_mode: NFTablesMode = NFTablesMode.AUTO
    iptables_backend: IptablesBackend = IptablesBackend.AUTO
    chain_insert_mode: ChainInsertMode = ChainInsertMode.INSERT
    max_ipset_size: int = 1048576
    interface_refresh_interval: float = 90.0
    route_refresh_interval: float = 90.0
    iptables_refresh_interval: float = 180.0
    ipsets_refresh_interval: float = 90.0
    nftables_refresh_interval: float = 180.0
    health_enabled: bool = False
    health_host: str = "localhost"
    health_port: int = 9099
    prometheus_metrics_enabled: bool = False
    prometheus_metrics_host: str = ""
    prometheus_metrics_port: int = 9091
    log_severity_screen: str = "INFO"
    reporting_interval_secs: float = 30.0
    endpoint_status_path_prefix: str = ""
    # The stream. All our own, environment and file only.
    resource_directory: Path = Path("/etc/felixpy/resources")
    mqtt_host: str = ""
    mqtt_port: int = 0
    mqtt_topic_root: str = "felixpy/v1"
    mqtt_client_id: str = ""
    mqtt_username: str = ""
    mqtt_password: str = ""
    mqtt_password_file: Path | None = None
    mqtt_tls: bool = False
    mqtt_ca_file: Path | None = None
    mqtt_cert_file: Path | None = None
    mqtt_key_file: Path | None = None
    mqtt_keepalive: float = 20.0
    snapshot_timeout: float = 5.0
    snapshot_quiet_time: float = 1.0

    @property
    def mqtt_enabled(self) -> bool:
        """MQTT is the source if a broker is named, the resource directory otherwise."""
        return bool(self.mqtt_host)
