"""Kinds of resources, and how a resource is named."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    """Kinds that the agent consumes."""

    WORKLOAD_ENDPOINT = "WorkloadEndpoint"
    IP_POOL = "IPPool"
    NODE = "Node"
    NODE_STATE = "NodeState"  # ours: what a node says of itself
    IPAM_BLOCK = "IPAMBlock"
    BLOCK_AFFINITY = "BlockAffinity"
    FELIX_CONFIGURATION = "FelixConfiguration"
    BGP_CONFIGURATION = "BGPConfiguration"
    PROFILE = "Profile"
    TIER = "Tier"
    NETWORK_POLICY = "NetworkPolicy"
    GLOBAL_NETWORK_POLICY = "GlobalNetworkPolicy"
    STAGED_NETWORK_POLICY = "StagedNetworkPolicy"
    STAGED_GLOBAL_NETWORK_POLICY = "StagedGlobalNetworkPolicy"
    STAGED_KUBERNETES_NETWORK_POLICY = "StagedKubernetesNetworkPolicy"
    KUBERNETES_NETWORK_POLICY = "KubernetesNetworkPolicy"  # NetworkPolicy of networking.k8s.io
    CLUSTER_NETWORK_POLICY = "ClusterNetworkPolicy"
    NETWORK_SET = "NetworkSet"
    GLOBAL_NETWORK_SET = "GlobalNetworkSet"
    HOST_ENDPOINT = "HostEndpoint"
    NAMESPACE = "Namespace"
    SERVICE_ACCOUNT = "ServiceAccount"
    SERVICE = "Service"
    ENDPOINT_SLICE = "EndpointSlice"


NAMESPACED = frozenset(
    {
        Kind.WORKLOAD_ENDPOINT,
        Kind.NETWORK_POLICY,
        Kind.STAGED_NETWORK_POLICY,
        Kind.KUBERNETES_NETWORK_POLICY,
        Kind.STAGED_KUBERNETES_NETWORK_POLICY,
        Kind.NETWORK_SET,
        Kind.SERVICE_ACCOUNT,
        Kind.SERVICE,
        Kind.ENDPOINT_SLICE,
    }
)
"""Kinds of which an object is in a namespace."""


class ResourceKey(NamedTuple):
    """Identity of a resource. ``namespace`` is empty for cluster-wide kinds."""

    kind: Kind
    name: str
    namespace: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"
