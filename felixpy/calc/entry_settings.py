"""What entries depend on of the settings. Pure.

Invariant: the calculation of entries sees this and no other setting, so where it is equal the entries are, too.
"""

from __future__ import annotations

from msgspec import Struct

from felixpy.calc.mtu import Tunnel
from felixpy.config import ProgramClusterRoutes, Settings, TableRange, tables_of
from felixpy.model.net import FAMILIES, Family, Net


def wireguard_tables(ranges: tuple[TableRange, ...]) -> dict[Family, int]:
    """Routing tables by family; those families have none for which the ranges are too small."""
    return dict(zip(FAMILIES, tables_of(ranges), strict=False))


class EntrySettings(Struct, frozen=True):
    """The part of the settings that entries depend on, under the same names."""

    interface_prefix: tuple[str, ...]
    ipv4_support: bool
    ipv6_support: bool
    ip_forwarding: bool
    workload_source_spoofing_any: bool
    floating_ips: bool
    external_nodes_cidr_list: tuple[Net, ...]
    device_route_protocol: int
    device_route_source_address: bytes | None
    device_route_source_address_ipv6: bytes | None
    ipv4_normal_route_priority: int
    ipv6_normal_route_priority: int
    program_cluster_routes: ProgramClusterRoutes
    vxlan_enabled: bool | None
    vxlan_vni: int
    vxlan_port: int
    vxlan_mtu: int
    vxlan_mtu_v6: int
    ipip_enabled: bool | None
    ipip_mtu: int
    ipv4_vxlan_tunnel_address: bytes | None
    ipv6_vxlan_tunnel_address: bytes | None
    ipip_tunnel_address: bytes | None
    vxlan_tunnel_mac: bytes | None
    vxlan_tunnel_mac_v6: bytes | None
    crossed_families: frozenset[Family]
    wireguard_enabled: bool
    wireguard_enabled_v6: bool
    wireguard_interface_name: str
    wireguard_interface_name_v6: str
    wireguard_listening_port: int
    wireguard_listening_port_v6: int
    wireguard_mtu: int
    wireguard_mtu_v6: int
    wireguard_routing_rule_priority: int
    wireguard_persistent_keep_alive: int
    wireguard_host_encryption_enabled: bool
    wireguard_threading_enabled: bool
    route_table_ranges: tuple[TableRange, ...]
    wireguard_mark: int

    def route_source(self, family: Family) -> bytes | None:
        """The ``src`` of our routes."""
        return self.device_route_source_address if family is Family.V4 else self.device_route_source_address_ipv6

    def mtu_of(self, tunnel: Tunnel) -> int:
        """The MTU that is set for a tunnel's device, 0 if none is."""
        mtus = {
            Tunnel.VXLAN: self.vxlan_mtu,
            Tunnel.VXLAN_V6: self.vxlan_mtu_v6,
            Tunnel.IPIP: self.ipip_mtu,
            Tunnel.WIREGUARD: self.wireguard_mtu,
            Tunnel.WIREGUARD_V6: self.wireguard_mtu_v6,
        }
        return mtus[tunnel]

    def tunnel_address(self, tunnel: Tunnel) -> bytes | None:
        """The address that is set for a tunnel's device."""
        addresses = {
            Tunnel.VXLAN: self.ipv4_vxlan_tunnel_address,
            Tunnel.VXLAN_V6: self.ipv6_vxlan_tunnel_address,
            Tunnel.IPIP: self.ipip_tunnel_address,
        }
        return addresses.get(tunnel)

    def vxlan_mac(self, family: Family) -> bytes | None:
        """The MAC that is set for a VXLAN device."""
        return self.vxlan_tunnel_mac if family is Family.V4 else self.vxlan_tunnel_mac_v6

    def encrypts(self, family: Family) -> bool:
        """Whether WireGuard is asked for."""
        return self.wireguard_enabled if family is Family.V4 else self.wireguard_enabled_v6

    def wireguard_name(self, family: Family) -> str:
        """The name of a family's WireGuard device."""
        return self.wireguard_interface_name if family is Family.V4 else self.wireguard_interface_name_v6

    def wireguard_port(self, family: Family) -> int:
        return self.wireguard_listening_port if family is Family.V4 else self.wireguard_listening_port_v6

    def wireguard_table(self, family: Family) -> int | None:
        """The routing table that leads into a family's device: the first of ``RouteTableRanges``, or the second."""
        return wireguard_tables(self.route_table_ranges).get(family)

    @classmethod
    def of(cls, settings: Settings) -> EntrySettings:
        return cls(**{name: getattr(settings, name) for name in cls.__struct_fields__})
