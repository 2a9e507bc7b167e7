"""Names and endpoints of containers that no API knows."""

from __future__ import annotations

from felixpy.cni.attachments import Attachment
from felixpy.cni.endpoint import container_key, endpoint_of, interface_name
from felixpy.model.names import check_name
from felixpy.model.net import Net


def test_names_of_interfaces() -> None:
    assert interface_name("cali", "default", "podA") == "cali7f94ce7c295"
    assert len(interface_name("workload-", "a", "b")) == 15
    assert interface_name("cali", "c1", "eth0") != interface_name("cali", "c1", "eth1")


def test_keys_are_valid_and_differ_for_any_id() -> None:
    ids = ["abc", "ABC", "a_b", "a-b", "a.b", "f" * 64, "g" * 200, "a--b"]
    keys = {container_key("node-1", one, interface) for one in ids for interface in ("eth0", "net1")}
    assert len(keys) == 2 * len(ids)
    for key in keys:
        check_name(key.name, "name")
        assert key.namespace == "default"
    assert container_key("node-1", "abc", "eth0").name == "node--1-cni-abc-eth0"


def test_policies_can_select_it() -> None:
    attachment = Attachment("", "", "", "abc", "cali1", (Net.parse("10.48.0.1"),), created="2026-01-01T00:00:00Z")
    endpoint = endpoint_of(container_key("n1", "abc", "eth0"), "n1", attachment)
    assert endpoint.labels == {"projectcalico.org/namespace": "default", "projectcalico.org/orchestrator": "cni"}
    assert (endpoint.profiles, endpoint.interface, endpoint.created) == ((), "cali1", "2026-01-01T00:00:00Z")
