"""Other nodes of the benchmark, by number: what the stream says of each, with its blocks. Pure.

They are in the measured node's own subnet, so that the pools' mode alone decides whether packets to them are
encapsulated; those from ``BEYOND`` on are in another one. Nobody answers there.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Iterator

from bench.workloads import POOL_CIDR, POOL_NAME, scopes
from bench.world import PLAIN_SERVER, SERVER, pod_payload, pod_topic
from felixpy.demo.resources import Object, block, felix_configuration, ip_pool, node, v3
from felixpy.demo.topology import NODE1, NODE2
from felixpy.model.net import Family
from felixpy.mqtt import topics
from felixpy.mqtt.ledger import counted

BEYOND = 100_000
SUBNET = {
    Family.V4: ("172.31.15.1/16", "172.31.15.2/16"),
    Family.V6: ("fd00:31::f:1/64", "fd00:31::f:2/64"),
}
"""Addresses with which the two real nodes are in the subnet of all but those beyond."""
NATIVE, CROSSING, TUNNEL = "Never", "CrossSubnet", "Always"
ENDS = {
    NODE1.name: {Family.V4: "10.64.250.63", Family.V6: "fd00:64::900:3f"},
    NODE2.name: {Family.V4: "10.64.251.63", Family.V6: "fd00:64::910:3f"},
}
BLOCKS = {
    NODE1.name: {Family.V4: "10.64.250.0/26", Family.V6: "fd00:64::900:0/122"},
    NODE2.name: {Family.V4: "10.64.251.0/26", Family.V6: "fd00:64::910:0/122"},
}
Content = dict[str, bytes]


def name(number: int) -> str:
    return f"peer{number:06}"


def address(family: Family, number: int, shift: int = 0) -> str:
    """The node's own; ``shift`` gives it another one."""
    beyond, number = divmod(number, BEYOND)
    number += 20_000 * shift
    if family is Family.V4:
        return f"{'172.30' if beyond else '172.31'}.{16 + number // 250}.{1 + number % 250}"
    return str(ipaddress.ip_address(f"fd00:{'30' if beyond else '31'}::1:0:0") + number)


def blocks(family: Family, number: int, count: int = 1) -> list[str]:
    """CIDRs of its blocks; of a node with several they lie behind everybody's first one."""
    place = number % BEYOND
    places = [place, *(6_000 + place % 10 * 100 + extra for extra in range(count - 1))]
    if family is Family.V4:
        return [f"{ipaddress.ip_address('10.64.0.0') + 8 * one}/29" for one in places]
    return [f"{ipaddress.ip_address('fd00:64::100:0') + 64 * one}/122" for one in places]


def documents(
    families: Iterable[Family], number: int, *, count: int = 1, shift: int = 0, lacks: Family | None = None
) -> Content:
    """Topics and payloads: its blocks, then the node, which has no address of the family that it ``lacks``."""
    families = tuple(families)
    found: Content = {}
    has = [family for family in families if family is not lacks]
    bgp = {f"ipv{f.version}Address": f"{address(f, number, shift)}/{16 if f is Family.V4 else 64}" for f in has}
    ends = {}
    for family in families:
        own = blocks(family, number, count)
        ends[f"ipv{family.version}VXLANTunnelAddr"] = str(ipaddress.ip_network(own[0])[7])
        for cidr in own:
            found |= _message("block", block(cidr, name(number)))
    return found | _message("node", v3("Node", name(number), {"bgp": bgp, **ends}))


def pools(families: Iterable[Family], mode: str) -> Content:
    found: Content = {}
    for family in families:
        found |= _message("ippool", ip_pool(POOL_NAME[family], POOL_CIDR[family], natOutgoing=True, vxlanMode=mode))
    return found


def settings(*, crossed: bool = False) -> Content:
    """The settings of all nodes; ``crossed``: each family goes through the other's tunnel to nodes that lack it."""
    crossing = {"ipv6OverIPv4": crossed, "ipv4OverIPv6": crossed}
    return _message("felixconfig", felix_configuration("default", defaultEndpointToHostAction="Accept", **crossing))


def cluster(families: Iterable[Family], count: int, mode: str) -> Content:
    """Everything retained with so many other nodes, with manifests: two real nodes with a workload each, too."""
    families = tuple(families)
    content = pools(families, mode) | settings()
    for spec in (NODE1, NODE2):
        document = node(spec, families)
        wide = {key: value.replace("/24", "/16") for key, value in document["spec"]["bgp"].items()}
        ends = {f"ipv{family.version}VXLANTunnelAddr": ENDS[spec.name][family] for family in families}
        content |= _message("node", v3("Node", spec.name, {"bgp": wide, **ends}))
        for family in families:
            content |= _message("block", block(BLOCKS[spec.name][family], spec.name))
    for pod in (SERVER, PLAIN_SERVER):
        content[pod_topic(pod)] = pod_payload(pod, families)
    for number in range(count):
        content |= documents(families, number)
    for scope, members in scopes(content).items():
        ledger = counted({topic: content[topic] for topic in members}, None, "bench")
        content[topics.manifest_topic(scope)] = ledger.manifest().encode()
    return content


def _message(kind: str, document: Object) -> Content:
    return {f"{kind}/{document['metadata']['name']}": json.dumps(document).encode()}


def calico_addresses(families: Iterable[Family], numbers: Iterable[int]) -> Iterator[list[str]]:
    """What the comparators have to know of other nodes: name, and for each family address, tunnel's end, block."""
    families = tuple(families)
    for number in numbers:
        words = [name(number)]
        for family in families:
            cidr = blocks(family, number)[0]
            words += [address(family, number), str(ipaddress.ip_network(cidr)[7]), cidr]
        yield words
