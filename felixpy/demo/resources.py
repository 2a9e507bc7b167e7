"""The lab's resources as ``projectcalico.org/v3`` objects, the way a user writes them.

Pure: everything follows from the topology and the mode.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from felixpy.demo.topology import NODE_PREFIX_LENGTH, NODES, POOLS, Mode, NodeSpec, PodSpec
from felixpy.model.net import Family

Object = dict[str, Any]


def v3(kind: str, name: str, spec: Mapping[str, Any], namespace: str = "") -> Object:
    """One v3 object."""
    metadata = {"name": name, "namespace": namespace} if namespace else {"name": name}
    return {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": dict(spec)}


def felix_configuration(name: str = "default", **spec: Any) -> Object:
    return v3("FelixConfiguration", name, spec)


def ip_pool(name: str, cidr: str, **spec: Any) -> Object:
    return v3("IPPool", name, {"cidr": cidr, **spec})


def pool_name(family: Family) -> str:
    """Calico's name of the default pool."""
    return f"default-ipv{family.version}-ippool"


def default_pool(family: Family, **spec: Any) -> Object:
    """The lab's pool of one family; ``natOutgoing`` unless told otherwise."""
    return ip_pool(pool_name(family), POOLS[family], **{"natOutgoing": True, **spec})


def node(spec: NodeSpec, families: Iterable[Family]) -> Object:
    addresses = {
        f"ipv{family.version}Address": f"{spec.addresses[family]}/{NODE_PREFIX_LENGTH[family]}" for family in families
    }
    return v3("Node", spec.name, {"bgp": addresses})


def block(cidr: str, node_name: str) -> Object:
    """A block of a node, named as Calico names it."""
    name = cidr.replace(".", "-").replace(":", "-").replace("/", "-")
    spec = {"cidr": cidr, "affinity": f"host:{node_name}", "allocations": [], "attributes": [], "unallocated": []}
    return v3("IPAMBlock", name, spec)


def workload_endpoint(pod: PodSpec, families: Iterable[Family], **extra: Any) -> Object:
    spec = {
        "node": pod.node,
        "orchestrator": "k8s",
        "pod": pod.name,
        "endpoint": "eth0",
        "interfaceName": pod.interface,
        "ipNetworks": [f"{pod.addresses[family]}/{family.bits}" for family in families],
        **extra,
    }
    made = v3("WorkloadEndpoint", pod.endpoint, spec, namespace="default")
    made["metadata"]["labels"] = {"app": pod.name}
    return made


def lab_resources(mode: Mode, pods: Sequence[PodSpec]) -> list[Object]:
    """Everything that the agents of a lab need; workloads may reach their node."""
    families = mode.families
    return [
        felix_configuration(defaultEndpointToHostAction="Accept"),
        *(default_pool(family) for family in families),
        *(node(spec, families) for spec in NODES),
        *(block(spec.blocks[family], spec.name) for spec in NODES for family in families),
        *(workload_endpoint(pod, families) for pod in pods),
    ]


def write_manifests(objects: Iterable[Object], folder: Path) -> Path:
    """Write one multi-document YAML file per kind, as ``felixpy apply -f FOLDER`` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds: dict[str, list[Object]] = {}
    for document in objects:
        kinds.setdefault(document["kind"], []).append(document)
    for kind, documents in kinds.items():
        (folder / f"{kind.lower()}.yaml").write_text(yaml.safe_dump_all(documents, sort_keys=False))
    return folder
