"""What entries depend on of the settings. Pure.

Invariant: the calculation of entries sees this and no other setting, so where it is equal the entries are, too.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from felixpy.calc.mtu import Tunnel
from felixpy.config import ProgramClusterRoutes, Settings
from felixpy.model.net import Family, Net


@dataclass(frozen=True, slots=True)
class EntrySettings:
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

    def route_source(self, family: Family) -> bytes | None:
        """The ``src`` of our routes."""
        return self.device_route_source_address if family is Family.V4 else self.device_route_source_address_ipv6

    def mtu_of(self, tunnel: Tunnel) -> int:
        """The MTU that is set for a tunnel's device, 0 if none is."""
        mtus = {Tunnel.VXLAN: self.vxlan_mtu, Tunnel.VXLAN_V6: self.vxlan_mtu_v6, Tunnel.IPIP: self.ipip_mtu}
        return mtus.get(tunnel, 0)

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

    @classmethod
    def of(cls, settings: Settings) -> EntrySettings:
        return cls(**{one.name: getattr(settings, one.name) for one in fields(cls)})
