"""How much is written for nodes and pools that change, counted on the real kernel: by nodes, never by blocks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from felixpy.calc.graph import Calculation
from felixpy.calc.host import Host, HostAddress
from felixpy.config import Settings
from felixpy.dataplane import devices
from felixpy.dataplane.apply import Dataplane
from felixpy.dataplane.batches import REQUESTS_PER_SEND
from felixpy.dataplane.links import Links
from felixpy.model.net import FAMILIES, Family, Net
from felixpy.model.resources import Encapsulation, IPAMBlock, IPPool, Kind, Node, Resource, ResourceKey, Update
from felixpy.store.store import Store
from tests.calc.test_linear import calls
from tests.kernel import ip, ip_json, pairs

NODES, BLOCKS = 30, 4
"""Other nodes, and blocks of each in each family."""

HOST = Host(tuple(HostAddress("eth0", Net.parse_interface(text)) for text in ("10.9.0.1/16", "fd09::1/64")))


def pool(family: Family, encapsulation: Encapsulation) -> IPPool:
    cidr = "10.48.0.0/12" if family is Family.V4 else "fd00:48::/48"
    size = 26 if family is Family.V4 else 122
    return IPPool(ResourceKey(Kind.IP_POOL, f"p{family.version}"), Net.parse(cidr), size, encapsulation=encapsulation)


def node(number: int) -> Node:
    return Node(
        ResourceKey(Kind.NODE, f"n{number}"),
        Net.parse_interface(f"10.9.0.{number}/16"),
        Net.parse_interface(f"fd09::{number}/64"),
        vxlan_ipv4=Net.parse(f"10.48.{number}.63").packed,
        vxlan_ipv6=Net.parse(f"fd00:48:0:{number}::3f").packed,
    )


def blocks(number: int) -> Iterator[IPAMBlock]:
    for one in range(BLOCKS):
        for cidr in (f"10.48.{number}.{one * 64}/26", f"fd00:48:0:{number}::{one}00/122"):
            name = cidr.translate(str.maketrans("./:", "---"))
            yield IPAMBlock(ResourceKey(Kind.IPAM_BLOCK, name), Net.parse(cidr), f"n{number}")


class Cluster:
    """This node's calculation and kernel, with what a change makes it write."""

    def __init__(self) -> None:
        self.calculation = Calculation(Store("n1"), Settings(nodename="n1"), HOST)
        self.dataplane = Dataplane(Settings(nodename="n1"), Links(time.monotonic), {})
        asyncio.run(self.dataplane.read())

    def put(self, *resources: Resource) -> tuple[int, int]:
        """Entries written, and sends."""
        dirty = set()
        for resource in resources:
            dirty |= self.calculation.store.apply(Update(resource.key, resource))
        self.dataplane.want(self.calculation.calculate(dirty))
        sends = self.dataplane.socket.sends
        report = asyncio.run(self.dataplane.apply(complete=True))
        assert not any(table.refused for table in self.dataplane.tables())
        return report.written, self.dataplane.socket.sends - sends

    def ways(self) -> set[str]:
        """Interfaces through which blocks of others lead now."""
        found = [one for family in ("-4", "-6") for one in ip_json(family, "route") if one.get("protocol") == "222"]
        assert len(found) == 2 * BLOCKS * NODES
        return {one["dev"] for one in found}


@pytest.fixture
def cluster(network: None, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(devices, "SETTLING_SECONDS", 0.0)  # other nodes need no time here
    pairs("eth0")
    ip("addr add 10.9.0.1/16 dev eth0", "addr add fd09::1/64 dev eth0 nodad")
    found = Cluster()
    others = range(2, NODES + 2)
    crossing = [pool(family, Encapsulation.VXLAN_CROSS_SUBNET) for family in FAMILIES]
    found.put(*crossing, node(1), *map(node, others), *(one for number in others for one in blocks(number)))
    assert found.ways() == {"eth0"}
    return found


def test_another_mode_of_a_pool_is_one_write_for_each_node_in_few_sends(cluster: Cluster) -> None:
    for encapsulation, way in ((Encapsulation.VXLAN, "vxlan.calico"), (Encapsulation.VXLAN_CROSS_SUBNET, "eth0")):
        written, sends = cluster.put(pool(Family.V4, encapsulation))
        assert (written, sends) == (NODES, NODES // REQUESTS_PER_SEND + 1)
        assert cluster.ways() == {way, "eth0"}


def test_another_mode_of_both_pools_at_once_is_one_batch(cluster: Cluster) -> None:
    assert cluster.put(*(pool(family, Encapsulation.VXLAN) for family in FAMILIES)) == (2 * NODES, 1)
    assert cluster.ways() == {"vxlan.calico", "vxlan-v6.calico"}


def test_another_address_of_a_node_is_one_write_for_each_family(cluster: Cluster) -> None:
    moved = replace(node(2), ipv4=Net.parse_interface("10.9.1.2/16"), ipv6=Net.parse_interface("fd09::1:2/64"))
    # Natively the nexthop has its address, and the FDB of the tunnel that others are reached by does, too.
    assert cluster.put(moved) == (4, 1)
    cluster.put(*(pool(family, Encapsulation.VXLAN) for family in FAMILIES))
    assert cluster.put(node(2)) == (2, 1)
    assert cluster.put(replace(node(2), ipv4=moved.ipv4)) == (1, 1), "the other family stays as it is"


def test_a_node_that_comes_back_with_what_it_had_writes_nothing(cluster: Cluster) -> None:
    assert cluster.put(
        node(2), *blocks(2), *(pool(family, Encapsulation.VXLAN_CROSS_SUBNET) for family in FAMILIES)
    ) == (0, 0)


def test_a_node_with_its_blocks_is_three_messages_and_as_many_calls_among_many_as_among_few(cluster: Cluster) -> None:
    """A call is a function of Python or of C, from the message to the kernel's answer."""

    def added(number: int) -> tuple[int, tuple[int, int]]:
        first, second = list(blocks(number))[:2]
        written = (0, 0)

        def work() -> None:
            nonlocal written
            written = cluster.put(first, second, node(number))

        return calls(work), written

    added(NODES + 2)  # what is done once is done
    few, written = added(NODES + 3)
    assert written == (8, 1), "a nexthop, a route and a tunnel's end in FDB and neighbours, in each family, in one send"
    others = range(NODES + 10, 5 * NODES)
    cluster.put(*map(node, others), *(one for number in others for one in blocks(number)))
    many, again = added(5 * NODES + 1)
    assert again == written
    assert many < 1.1 * few, f"{few} calls beside {NODES}, {many} beside {5 * NODES}"


def test_an_agent_that_starts_on_what_another_left_writes_nothing(cluster: Cluster) -> None:
    again = Cluster()
    others = range(2, NODES + 2)
    crossing = [pool(family, Encapsulation.VXLAN_CROSS_SUBNET) for family in FAMILIES]
    written, _ = again.put(*crossing, node(1), *map(node, others), *(one for n in others for one in blocks(n)))
    assert written == 0
