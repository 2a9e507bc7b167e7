"""Objects of the API server -> topics with the content that nodes read. Pure.

What is published is the object as its author wrote it, without what the API server keeps for itself: a status or a
managed field that changes is no news. Pods become WorkloadEndpoints and Kubernetes' Nodes become Calico's, as every
agent would convert them by itself. An object that cannot be used is published all the same: nodes treat it as it
stands, and say why.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from felixpy.kubernetes.kinds import CALICO_V3, KindOfObject, as_written, read_object
from felixpy.kubernetes.nodes import calico_spec, decode_own_node, node_facts, pod_cidr_blocks
from felixpy.kubernetes.pods import decode_pod
from felixpy.model.invalid import UNREADABLE
from felixpy.model.net import format_address
from felixpy.model.policy import ORCHESTRATOR_LABEL, SERVICE_ACCOUNT_LABEL
from felixpy.model.resources import IPPool, Kind, ResourceKey, WorkloadEndpoint
from felixpy.mqtt import topics

_KEPT_METADATA = ("name", "namespace", "labels", "creationTimestamp")
_KEPT_OF_PODS = (*_KEPT_METADATA, "deletionTimestamp")
_LEFT_OUT = frozenset({"metadata", "status"})


class Published(Struct, frozen=True):
    """An object as nodes get it. Without a topic it is not published: ``error`` says why, if there is a reason.

    ``endpoint``: what peers are told of, for a pod. ``blocks``: what a node's pod CIDRs are, by topic.
    """

    topic: str = ""
    payload: bytes = b""
    endpoint: WorkloadEndpoint | None = None
    blocks: tuple[tuple[str, bytes], ...] = ()
    error: str = ""
    names_services: bool = False


def object_reader(entry: KindOfObject, group: str) -> Callable[[msgspec.Raw], Published]:
    """How objects of a kind are read."""

    def read(raw: msgspec.Raw) -> Published:
        try:
            obj = as_written(msgspec.json.decode(raw), entry, group)
        except UNREADABLE as error:
            return Published(error=f"{entry.plural}: not an object: {error}")
        found = read_object(obj)
        if found.resource is not None:
            topic = topics.topic_of(found.resource)
        elif found.key is not None and found.error and found.key.kind not in _NAMED_BY_CONTENT:
            topic = topics.shared_topic(found.key)
        else:
            return Published(error=found.error)
        if isinstance(found.resource, IPPool) and found.resource.disabled:  # also by what is left out
            obj = {**obj, "spec": {**obj["spec"], "disabled": True}}
        return Published(topic, encode(obj), error=found.error, names_services=b'"services"' in bytes(raw))

    return read


_NAMED_BY_CONTENT = topics.OF_A_NODE | {Kind.IPAM_BLOCK, Kind.BLOCK_AFFINITY}
"""Their topics cannot be told from their names: one that cannot be read has none."""


def encode(obj: Any, of_metadata: tuple[str, ...] = _KEPT_METADATA) -> bytes:
    """An object without what the API server keeps for itself; equal objects have equal bytes."""
    metadata = obj.get("metadata") or {}
    kept = {name: metadata[name] for name in of_metadata if metadata.get(name)}
    content = {name: value for name, value in obj.items() if name not in _LEFT_OUT}
    # Not by msgspec, which sorts keys from 0.19 on only.
    return json.dumps({**content, "metadata": kept}, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def pod_reader(prefix: str) -> Callable[[msgspec.Raw], Published]:
    """How pods are read; ``prefix`` is that of workload interfaces."""

    def read(raw: msgspec.Raw) -> Published:
        facts = decode_pod(raw, prefix)
        endpoint = facts.endpoint
        if endpoint is None:
            return Published(error=facts.error)
        payload = encode(_endpoint(endpoint), _KEPT_OF_PODS)
        return Published(topics.topic_of(endpoint), payload, endpoint, error="; ".join(endpoint.problems))

    return read


def _endpoint(endpoint: WorkloadEndpoint) -> dict[str, Any]:
    labels = dict(endpoint.labels)
    spec: dict[str, Any] = {
        "node": endpoint.node,
        "interfaceName": endpoint.interface,
        "ipNetworks": [str(net) for net in endpoint.addresses],
        "profiles": list(endpoint.profiles),
        "orchestrator": labels.get(ORCHESTRATOR_LABEL),
        "serviceAccountName": labels.get(SERVICE_ACCOUNT_LABEL),
        "ports": [{"name": port.name, "protocol": port.protocol, "port": port.port} for port in endpoint.ports],
        "allowSpoofedSourcePrefixes": [str(net) for net in endpoint.allowed_source_prefixes],
        "ipNATs": [
            {"internalIP": format_address(nat.internal.packed), "externalIP": format_address(nat.external.packed)}
            for nat in endpoint.ip_nats
        ],
    }
    return {
        "apiVersion": CALICO_V3,
        "kind": "WorkloadEndpoint",
        "metadata": {
            "name": endpoint.key.name,
            "namespace": endpoint.key.namespace,
            "labels": labels,
            "creationTimestamp": endpoint.created,
            "deletionTimestamp": endpoint.deleted,
        },
        "spec": {name: value for name, value in spec.items() if value},
    }


def read_node(raw: msgspec.Raw) -> Published:
    """How nodes are read."""
    try:
        node = decode_own_node(bytes(raw))
    except UNREADABLE as error:
        return Published(error=f"not a node: {error}")
    name, facts = node.metadata.name, node_facts(node)
    obj = {
        "apiVersion": CALICO_V3,
        "kind": "Node",
        "metadata": {"name": name, "labels": node.metadata.labels},
        "spec": _without_nothing(msgspec.to_builtins(calico_spec(node))),
    }
    blocks = tuple(
        (
            topics.block_topic(block.cidr),
            encode(
                {
                    "apiVersion": CALICO_V3,
                    "kind": "IPAMBlock",
                    "metadata": {"name": block.key.name},
                    "spec": {"cidr": str(block.cidr), "affinity": f"host:{name}"},
                }
            ),
        )
        for block in pod_cidr_blocks(facts)
    )
    topic = topics.shared_topic(ResourceKey(Kind.NODE, name))
    return Published(topic, encode(obj), blocks=blocks, error=facts.error)


def _without_nothing(value: Any) -> Any:
    """Nested objects without the fields that are not set."""
    if not isinstance(value, dict):
        return value
    return {name: _without_nothing(each) for name, each in value.items() if each is not None}
