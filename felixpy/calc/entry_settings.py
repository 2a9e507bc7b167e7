"""What entries depend on of the settings. Pure.

Invariant: the calculation of entries sees this and no other setting, so where it is equal the entries are, too.
"""

from __future__ import annotations

from dataclasses import dataclass

from felixpy.config import ProgramClusterRoutes, Settings
from felixpy.model.net import Net


@dataclass(frozen=True, slots=True)
class EntrySettings:
    """The part of the settings that entries depend on, under the same names."""

    interface_prefix: tuple[str, ...]
    ipv4_support: bool
    ipv6_support: bool
    ip_forwarding: bool
    workload_source_spoofing_any: bool
    external_nodes_cidr_list: tuple[Net, ...]
    device_route_protocol: int
    device_route_source_address: bytes | None
    device_route_source_address_ipv6: bytes | None
    ipv4_normal_route_priority: int
    ipv6_normal_route_priority: int
    program_cluster_routes: ProgramClusterRoutes

    @classmethod
    def of(cls, settings: Settings) -> EntrySettings:
        return cls(
            interface_prefix=settings.interface_prefix,
            ipv4_support=settings.ipv4_support,
            ipv6_support=settings.ipv6_support,
            ip_forwarding=settings.ip_forwarding,
            workload_source_spoofing_any=settings.workload_source_spoofing_any,
            external_nodes_cidr_list=settings.external_nodes_cidr_list,
            device_route_protocol=settings.device_route_protocol,
            device_route_source_address=settings.device_route_source_address,
            device_route_source_address_ipv6=settings.device_route_source_address_ipv6,
            ipv4_normal_route_priority=settings.ipv4_normal_route_priority,
            ipv6_normal_route_priority=settings.ipv6_normal_route_priority,
            program_cluster_routes=settings.program_cluster_routes,
        )
