"""BGPConfiguration: the ranges that a cluster's Services have addresses of. What it says to BGP speakers is theirs.

A range that is none is left out, and told; the others count.
"""

from __future__ import annotations

from felixpy.model.keys import ResourceKey
from felixpy.model.net import Net
from felixpy.model.objects import BGPConfigurationSpec
from felixpy.model.resources import BGPConfiguration


def convert_bgp_configuration(key: ResourceKey, spec: BGPConfigurationSpec) -> BGPConfiguration:
    """Cluster, external and load-balancer ranges in the order given, without duplicates."""
    ranges: dict[Net, None] = {}
    problems = []
    for field, found in (
        ("serviceClusterIPs", spec.service_cluster_ips),
        ("serviceExternalIPs", spec.service_external_ips),
        ("serviceLoadBalancerIPs", spec.service_load_balancer_ips),
    ):
        for index, one in enumerate(found or ()):
            try:
                ranges[_service_range(one.cidr)] = None
            except ValueError as error:
                problems.append(f"spec.{field}[{index}].cidr: {error}: it is left out")
    return BGPConfiguration(key, tuple(ranges), tuple(problems))


def _service_range(text: str | None) -> Net:
    if not text:
        raise ValueError("is missing")
    net = Net.parse_masked(text)
    if not net.length:
        raise ValueError("is every address, and nothing could be forwarded")
    return net
