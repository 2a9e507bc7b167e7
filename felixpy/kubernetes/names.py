"""Names that Calico gives to a pod's endpoint and interface, so that both find each other's. Pure.

Source: libcalico-go, ``backend/k8s/conversion`` and ``names``.
"""

from __future__ import annotations

from hashlib import sha1

from felixpy.model.resources import Kind, ResourceKey

ENDPOINT = "eth0"
"""The container's interface that Kubernetes knows of."""

_HASH_CHARACTERS = 11  # with "cali" the 15 that the kernel takes


def interface_name(prefix: str, namespace: str, pod: str) -> str:
    """The node's end of a pod's veth: ``cali7f94ce7c295``."""
    digest = sha1(f"{namespace}.{pod}".encode(), usedforsecurity=False).hexdigest()
    return prefix + digest[:_HASH_CHARACTERS]


def endpoint_name(node: str, pod: str, endpoint: str = ENDPOINT) -> str:
    """The name of a pod's WorkloadEndpoint: ``node1-k8s-my--pod-eth0``."""
    parts = (node, "k8s", pod, endpoint)
    return "-".join(part.replace("-", "--") for part in parts)


def endpoint_key(node: str, namespace: str, pod: str, endpoint: str = ENDPOINT) -> ResourceKey:
    """The key of a pod's WorkloadEndpoint."""
    return ResourceKey(Kind.WORKLOAD_ENDPOINT, endpoint_name(node, pod, endpoint), namespace)
