"""The workloads, pools, nodes and blocks of the benchmark, as objects, topics and addresses.

Pure. Invariant: names, addresses and interfaces have the same length for every number, so that one workload costs what
another does; numbers from ``SPARE`` on are never part of a preloaded crowd.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from felixpy.demo.resources import Object, block, felix_configuration, ip_pool, node, v3
from felixpy.demo.topology import NODES, NodeSpec
from felixpy.model.net import Family
from felixpy.mqtt import topics

NODE = "node1"
CROWD = 10_000
"""Largest number of workloads preloaded."""

SPARE = CROWD
"""First number of a workload that comes and goes; ``SPARES`` of them have an interface."""
SPARES = 200

POOL_CIDR = {Family.V4: "10.64.0.0/16", Family.V6: "fd00:64::/64"}
POOL_NAME = {Family.V4: "bench-ipv4", Family.V6: "bench-ipv6"}
REMOTE_BLOCKS = 64
BLOCK_ADDRESSES = 64
NODE3 = NodeSpec("node3", {Family.V4: "172.31.0.3", Family.V6: "fd00:31::3"}, {})
"""A node that is only told of: the remote block moves there."""


class Workload(NamedTuple):
    """One workload by number. ``shift`` gives it another address (0 is its first)."""

    number: int
    shift: int = 0

    @property
    def interface(self) -> str:
        return f"cali{self.number:05}"

    @property
    def name(self) -> str:
        return f"w{self.number:05}"

    @property
    def mac(self) -> str:
        high, low = divmod(self.number, 256)
        return f"ee:ee:ee:00:{high:02x}:{low:02x}"

    def address(self, family: Family) -> str:
        """Within the local blocks; shifted addresses (up to 3) lie beyond the crowd's."""
        place = self.number + self.shift * (CROWD + SPARES)
        high, low = divmod(place, BLOCK_ADDRESSES)
        index = high * BLOCK_ADDRESSES + low
        if family is Family.V4:
            return f"10.64.{20 + index // 256}.{index % 256}"
        return f"fd00:64::{0x1000 + index // 65536:x}:{index % 65536:x}"

    @property
    def topic(self) -> str:
        """Relative to the root."""
        return f"wep/{NODE}/default/{self.name}"

    def document(self, families: Iterable[Family]) -> Object:
        spec = {
            "node": NODE,
            "orchestrator": "k8s",
            "pod": self.name,
            "endpoint": "eth0",
            "interfaceName": self.interface,
            "mac": self.mac,
            "ipNetworks": [f"{self.address(family)}/{family.bits}" for family in families],
        }
        return v3("WorkloadEndpoint", self.name, spec, namespace="default")

    def payload(self, families: Iterable[Family]) -> bytes:
        return json.dumps(self.document(families)).encode()


def pool(family: Family, *, nat: bool = True) -> tuple[str, bytes]:
    """Topic and payload of a family's pool."""
    document = ip_pool(POOL_NAME[family], POOL_CIDR[family], natOutgoing=nat)
    return f"ippool/{POOL_NAME[family]}", json.dumps(document).encode()


def remote_cidr(family: Family, number: int) -> str:
    """A block of the pool that no local workload lies in."""
    number += 1  # so that the IPv6 one never begins with a zero that its canonical form leaves out
    return f"10.64.{number // 4}.{number % 4 * 64}/26" if family is Family.V4 else f"fd00:64::{number * 64:x}/122"


def remote_block(family: Family, number: int, owner: str = "node2") -> tuple[str, bytes]:
    """Topic and payload of a block that belongs to another node."""
    cidr = remote_cidr(family, number)
    document = block(cidr, owner)
    return f"block/{document['metadata']['name']}", json.dumps(document).encode()


def local_block(family: Family, number: int) -> tuple[str, bytes]:
    """Topic and payload of the block that holds workloads ``64 * number`` and following."""
    first = Workload(number * BLOCK_ADDRESSES).address(family)
    document = block(f"{first}/{26 if family is Family.V4 else 122}", NODE)
    return f"block/{document['metadata']['name']}", json.dumps(document).encode()


def cluster(families: Iterable[Family], count: int) -> dict[str, bytes]:
    """Topics and payloads of everything retained with ``count`` workloads preloaded, without manifests."""
    families = tuple(families)
    found: dict[str, bytes] = {}
    objects: list[tuple[str, Any]] = [
        ("felixconfig/default", felix_configuration(defaultEndpointToHostAction="Accept")),
        *((f"node/{spec.name}", node(spec, families)) for spec in (*NODES, NODE3)),
    ]
    found.update((topic, json.dumps(document).encode()) for topic, document in objects)
    for family in families:
        found.update([pool(family)])
        found.update(remote_block(family, number) for number in range(REMOTE_BLOCKS))
        found.update(local_block(family, number) for number in range(-(-count // BLOCK_ADDRESSES)))
    for number in range(count):
        one = Workload(number)
        found[one.topic] = one.payload(families)
    return found


def scopes(content: Iterable[str]) -> dict[str, list[str]]:
    """Topics by the scope whose manifest counts them."""
    found: dict[str, list[str]] = {}
    for topic in content:
        found.setdefault(topics.scope_of(topic), []).append(topic)
    return found
