"""The plugin as a container runtime calls it, with a running agent and real packets."""

from __future__ import annotations

from tests.cni.lab import NOTHING, Node


def test_two_containers_reach_each_other_and_leave_nothing(node: Node) -> None:
    one, two = node.container("one"), node.container("two")
    first, second = node.add(one), node.add(two)
    addresses = [[entry["address"].split("/")[0] for entry in result["ips"]] for result in (first, second)]
    assert [len(some) for some in addresses] == [2, 2]
    for address in addresses[1]:
        one.ping(address)
    for address in addresses[0]:
        two.ping(address)
    for container in (one, two):
        node.delete(container)
    node.wait(lambda: node.leaks() == NOTHING)
    for container in (one, two):
        node.delete(container)
