"""Names of endpoints and interfaces, with the hashes that Calico's own tests have."""

from __future__ import annotations

import pytest

from felixpy.kubernetes.names import endpoint_key, endpoint_name, interface_name
from felixpy.model.resources import Kind


@pytest.mark.parametrize(
    ("namespace", "pod", "name"),
    [
        ("default", "podA", "cali7f94ce7c295"),
        ("default", "podB", "cali92cf1f5e9f6"),
        ("testNamespace", "simplePod", "caliedff4356bd6"),
    ],
)
def test_interface_is_prefix_and_hash(namespace: str, pod: str, name: str) -> None:
    assert interface_name("cali", namespace, pod) == name
    assert len(name) == 15


def test_dashes_of_each_part_are_doubled() -> None:
    assert endpoint_name("node1", "my-pod") == "node1-k8s-my--pod-eth0"
    assert endpoint_name("node-1", "a-b-c") == "node--1-k8s-a--b--c-eth0"
    assert endpoint_key("n1", "default", "web") == (Kind.WORKLOAD_ENDPOINT, "n1-k8s-web-eth0", "default")
