"""The lab's topology as data, and the ``ip -batch`` text that builds it.

    ext ──┐                         172.31.0.254, fd00:31::fe; "Internet": 198.51.100.1, 2001:db8:100::1;
          ├─ fabric (bridge)        no route to any workload
    node1 ┤   └ Mosquitto           172.31.0.253, fd00:31::fd
    node2 ┘
      └ cali… ── p1a, p1b, p2a      as a CNI plugin leaves them, without the host's own routes and settings

Invariant: in a single-family mode no namespace holds an address or route of the other family (link-local ones and
127.0.0.1 of the outside apart); in IPv6-only mode the nodes do not even have 127.0.0.1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import StrEnum

from msgspec import Struct

from felixpy.model.net import FAMILIES, Family

GATEWAY_V4 = "169.254.1.1"
HOST_MAC = "ee:ee:ee:ee:ee:ee"
HOST_LINK_LOCAL = "fe80::ecee:eeff:feee:eeee"  # EUI-64 of HOST_MAC

Addresses = Mapping[Family, str]

EXT: Addresses = {Family.V4: "172.31.0.254", Family.V6: "fd00:31::fe"}
INTERNET: Addresses = {Family.V4: "198.51.100.1", Family.V6: "2001:db8:100::1"}
BROKER: Addresses = {Family.V4: "172.31.0.253", Family.V6: "fd00:31::fd"}
NODE_PREFIX_LENGTH = {Family.V4: 24, Family.V6: 64}


class Mode(StrEnum):
    """Which families the whole lab has."""

    DUAL = "dual"
    V4 = "v4"
    V6 = "v6"

    @property
    def families(self) -> tuple[Family, ...]:
        if self is Mode.DUAL:
            return FAMILIES
        return (Family.V4,) if self is Mode.V4 else (Family.V6,)


class NodeSpec(Struct, frozen=True, eq=False):
    """A node and its address block per family."""

    name: str
    addresses: Addresses
    blocks: Addresses


class PodSpec(Struct, frozen=True, eq=False):
    """A workload of namespace ``default`` on a node."""

    name: str
    node: str
    addresses: Addresses

    @property
    def interface(self) -> str:
        """Name of the host side, by the rule of the Kubernetes datastore (reference/seeds.md D.1)."""
        return "cali" + hashlib.sha1(f"default.{self.name}".encode()).hexdigest()[:11]

    @property
    def endpoint(self) -> str:
        """Name of the WorkloadEndpoint."""
        return f"{self.node}-k8s-{self.name}-eth0"


NODE1 = NodeSpec(
    "node1",
    {Family.V4: "172.31.0.1", Family.V6: "fd00:31::1"},
    {Family.V4: "10.48.0.0/26", Family.V6: "fd00:48::/122"},
)
NODE2 = NodeSpec(
    "node2",
    {Family.V4: "172.31.0.2", Family.V6: "fd00:31::2"},
    {Family.V4: "10.48.1.0/26", Family.V6: "fd00:48:0:1::/122"},
)
NODES = (NODE1, NODE2)
UNALLOCATED: Addresses = {Family.V4: "10.48.0.50", Family.V6: "fd00:48::32"}
"""Addresses of node1's block that no workload has."""

P1A = PodSpec("p1a", "node1", {Family.V4: "10.48.0.1", Family.V6: "fd00:48::1"})
P1B = PodSpec("p1b", "node1", {Family.V4: "10.48.0.2", Family.V6: "fd00:48::2"})
P2A = PodSpec("p2a", "node2", {Family.V4: "10.48.1.1", Family.V6: "fd00:48:0:1::1"})
PODS = (P1A, P1B, P2A)

POOLS: Addresses = {Family.V4: "10.48.0.0/21", Family.V6: "fd00:48::/48"}


def fabric_commands(mode: Mode, pids: Mapping[str, int]) -> list[str]:
    """The bridge, the broker's address on it, and one cable into each host's namespace."""
    commands = ["link set lo up", "link add br0 type bridge", "link set br0 up"]
    for host, pid in pids.items():
        commands += [
            f"link add to-{host} type veth peer name eth0 netns {pid}",
            f"link set to-{host} master br0 up",
        ]
    return commands + [address_command(family, BROKER, "br0") for family in mode.families]


def ext_commands(mode: Mode) -> list[str]:
    """The outside host. It has no route to any workload: only NAT brings its answers back."""
    commands = ["link set lo up", "link set eth0 up"]
    for family in mode.families:
        commands += [address_command(family, EXT, "eth0"), f"addr add {INTERNET[family]}/{family.bits} dev lo"]
    return commands


def node_commands(mode: Mode, node: NodeSpec, pods: Mapping[PodSpec, int], router: Addresses = EXT) -> list[str]:
    """A node's fabric address and default route, and the host side of its workloads' interfaces."""
    commands = ["link set lo up", "link set eth0 up"]
    if Family.V4 not in mode.families:
        commands.append("addr del 127.0.0.1/8 dev lo")
    for family in mode.families:
        commands += [address_command(family, node.addresses, "eth0"), f"route add default via {router[family]}"]
    for pod, pid in pods.items():
        commands += [
            f"link add {pod.interface} type veth peer name eth0 netns {pid}",
            f"link set {pod.interface} address {HOST_MAC} up",
        ]
    return commands


def pod_commands(mode: Mode, pod: PodSpec) -> list[str]:
    """The workload's side, as a CNI plugin leaves it (reference/seeds.md row 37)."""
    commands = ["link set lo up", "link set eth0 up"]
    for family in mode.families:
        nodad = " nodad" if family is Family.V6 else ""
        commands.append(f"addr add {pod.addresses[family]}/{family.bits} dev eth0{nodad}")
    if Family.V4 in mode.families:
        commands += [f"route add {GATEWAY_V4} dev eth0 scope link", f"route add default via {GATEWAY_V4} dev eth0"]
    if Family.V6 in mode.families:
        commands.append(f"route add default via {HOST_LINK_LOCAL} dev eth0")
    return commands


def address_command(family: Family, addresses: Addresses, device: str) -> str:
    """Gives an interface a node's address."""
    nodad = " nodad" if family is Family.V6 else ""
    return f"addr add {addresses[family]}/{NODE_PREFIX_LENGTH[family]} dev {device}{nodad}"
