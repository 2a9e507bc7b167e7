"""The plugin on a node of a Kubernetes cluster: pods as the API tells of them, addresses of pod CIDRs and of blocks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cni.cluster import Cluster
from tests.cni.lab import NOTHING, Node, running
from tests.cni.test_life import addresses, interface
from tests.kernel import ip_json

PREFIX = "cni.projectcalico.org/"


@pytest.fixture
def cluster(network: None) -> Iterator[Cluster]:
    with Cluster().running() as found:
        status = {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}
        spec = {"podCIDRs": ["10.48.7.0/24", "fd00:48:0:7::/64"], "podCIDR": "10.48.7.0/24"}
        found.put("nodes", "n1", spec=spec, status=status)
        found.put("ippools", "four", spec={"cidr": "10.48.0.0/16", "natOutgoing": True})
        found.put("ippools", "six", spec={"cidr": "fd00:48::/48", "natOutgoing": True})
        for namespace in ("default", "team"):
            found.put("namespaces", namespace)
        yield found


@pytest.fixture
def node(cluster: Cluster, plugin: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Node]:
    environ = {
        "FELIX_DATASTORETYPE": "kubernetes",
        "FELIX_KUBECONFIG": str(cluster.kubeconfig(tmp_path)),
        "FELIX_NFTABLESMODE": "Enabled",
        **getattr(request, "param", {}),
    }
    with running(tmp_path, plugin, environ) as found:
        yield found


CALICO = pytest.mark.parametrize("node", [{"FELIX_IPAMTYPE": "Calico"}], indirect=True)


def test_pods_by_their_pod_cidrs(node: Node, cluster: Cluster) -> None:
    """Names of Calico, no write to the API, and nothing at all of it for a DEL of the unknown."""
    cluster.pod("one")
    cluster.pod("two")
    one, two = node.container("one"), node.container("two")
    first = node.add(one)
    cluster.requests.clear()
    second = node.add(two)
    assert cluster.writes() == []
    assert interface(first) != interface(second)
    for address in addresses(second):
        one.ping(address)
    cluster.requests.clear()
    for _ in range(3):
        node.delete(one)
    assert [one for one in cluster.requests if "/nodes/" not in one.path] == []  # a start says of the node how it is
    node.delete(two)
    node.wait(lambda: node.leaks() == NOTHING)


def test_the_name_of_the_interface_is_calicos(node: Node, cluster: Cluster) -> None:
    cluster.pod("podA")
    container = node.container("podA", pod="podA")
    assert interface(node.add(container)) == "cali7f94ce7c295"


def test_a_pod_that_the_api_does_not_know(node: Node, cluster: Cluster) -> None:
    container = node.container("one")
    answer = node.call("ADD", container)
    assert (answer.code, answer.result["code"]) == (1, 11)
    assert "default/one" in answer.result["msg"]
    cluster.pod("one")
    node.add(container)


def test_a_pod_that_was_made_anew(node: Node, cluster: Cluster) -> None:
    """A StatefulSet's pod comes back under its name, with another uid, before the old one's DEL."""
    cluster.pod("one")
    old = node.container("old", pod="one")
    node.add(old, CNI_ARGS=old.arguments().replace("0a1b2c3d-old", "0a1b2c3d-one"))
    cluster.delete("pods", "one", "default")
    cluster.put("pods", "one", "default", metadata={"uid": "second"}, spec={"nodeName": "n1"})
    new = node.container("new", pod="one")
    result = node.add(new, CNI_ARGS=new.arguments().replace("0a1b2c3d-new", "second"))
    node.delete(old)
    new.ping("192.0.2.1")
    assert interface(result) in {link["ifname"] for link in ip_json("link")}


def test_annotations(node: Node, cluster: Cluster) -> None:
    asked: dict[str, tuple[dict[str, str], Any]] = {
        "addresses": ({"ipAddrs": '["10.48.7.77","fd00:48:0:7::77"]'}, ["10.48.7.77", "fd00:48:0:7::77"]),
        "mac": ({"hwAddr": "0a:00:00:00:00:07"}, None),
        "six": ({"ipFamilies": '["IPv6"]'}, None),
        "floating": ({"floatingIPs": '["192.0.2.9"]'}, "the network configuration does not allow it"),
        "elsewhere": ({"ipAddrs": '["10.99.0.1"]'}, "10.99.0.1 that is asked for is in no range"),
        "taken": ({"ipAddrs": '["10.48.7.77"]'}, "10.48.7.77 that is asked for is in use"),
    }
    results = {}
    for name, (said, expected) in asked.items():
        cluster.pod(name, {f"{PREFIX}{key}": value for key, value in said.items()})
        answer = node.call("ADD", node.container(name))
        results[name] = answer.result
        if isinstance(expected, str):
            assert answer.code == 1, name
            assert expected in answer.result["msg"]
        else:
            assert answer.code == 0, answer.result
            assert expected is None or addresses(answer.result) == expected
    assert results["mac"]["interfaces"][1]["mac"] == "0a:00:00:00:00:07"
    assert [":" in address for address in addresses(results["six"])] == [True]


@pytest.mark.parametrize("node", [{"FELIX_FLOATINGIPS": "Enabled"}], indirect=True)
def test_floating_addresses_as_calicos_plugin_gives_them(node: Node, cluster: Cluster) -> None:
    asked = ["203.0.113.9", "2001:db8:f::9"]
    cluster.pod("one", {f"{PREFIX}floatingIPs": json.dumps(asked)})
    cluster.pod("two")
    one, two = node.container("one"), node.container("two")
    node.add(two)
    allowed = node.conf(feature_control={"floating_ips": True})
    result = node.add(one, allowed)
    assert len(addresses(result)) == 2 and not set(asked) & set(addresses(result)), "they are not the pod's own"
    for address in asked:
        two.ping(address)
        one.ping(address)
    node.delete(one)
    node.delete(two)
    node.wait(lambda: node.leaks() == NOTHING)


def test_floating_addresses_that_the_agent_does_not_have_are_no_pod(node: Node, cluster: Cluster) -> None:
    cluster.pod("one", {f"{PREFIX}floatingIPs": '["203.0.113.9"]'})
    one = node.container("one")
    answer = node.call("ADD", one, node.conf(feature_control={"floating_ips": True}))
    assert answer.code == 1 and "the setting FloatingIPs is Disabled" in answer.result["msg"]
    node.wait(lambda: node.leaks() == NOTHING)


@CALICO
def test_blocks_of_calico(node: Node, cluster: Cluster) -> None:
    """A block per family is claimed for the first pod; each further ADD is one write per family and one of its handle,
    and so is DEL.
    """
    for number in range(4):
        cluster.pod(f"pod{number}")
    containers = [node.container(f"pod{number}") for number in range(4)]
    node.add(containers[0])
    node.wait(lambda: len(cluster.specs("ipamhandles")) == 1)
    assert {spec["affinity"] for spec in cluster.specs("ipamblocks").values()} == {"host:n1"}
    assert {spec["state"] for spec in cluster.specs("blockaffinities").values()} == {"confirmed"}
    cluster.requests.clear()
    results = [node.add(container) for container in containers[1:]]
    node.wait(lambda: len(cluster.specs("ipamhandles")) == 4)
    writes = cluster.writes()
    assert sum(line.startswith("PUT ") and "/ipamblocks/" in line for line in writes) == 6, writes
    assert sum(line.startswith("POST ") and line.endswith("/ipamhandles") for line in writes) == 3, writes
    assert len(writes) == 9, writes
    assert all(len(spec["block"]) == 2 for spec in cluster.specs("ipamhandles").values())
    # The agent may look once or twice at its blocks meanwhile, for addresses of tunnels; no ADD does.
    looks = Counter(one.path for one in cluster.requests if one.method == "GET" and "/ipam" in one.path)
    assert max(looks.values(), default=0) < 3, looks
    for address in addresses(results[-1]):
        containers[0].ping(address)
    attributes = [one for spec in cluster.specs("ipamblocks").values() for one in spec["attributes"]]
    assert {one["secondary"]["pod"] for one in attributes} == {f"pod{number}" for number in range(4)}
    cluster.requests.clear()
    for container in containers:
        node.delete(container)
        node.delete(container)
    assert len(cluster.writes()) == 12
    assert cluster.specs("ipamhandles") == {}
    assert not [one for spec in cluster.specs("ipamblocks").values() for one in spec["attributes"]]
    node.wait(lambda: node.leaks() == NOTHING)


@CALICO
def test_addresses_that_a_crash_left_are_collected(node: Node, cluster: Cluster) -> None:
    """The agent is killed, its journal is lost: what it had given is given back at the next start, and only that."""
    cluster.pod("one")
    container = node.container("one")
    node.add(container)
    node.kill()
    node.journal.unlink()
    (name,) = [name for name, spec in cluster.specs("ipamblocks").items() if "." in spec["cidr"]]
    block = cluster.get("ipamblocks", name)
    assert block is not None
    spec = {**block["spec"], "attributes": [*block["spec"]["attributes"], {"handle_id": "theirs", "secondary": {}}]}
    spec["allocations"] = [*spec["allocations"][:-1], 1]
    spec["unallocated"] = [one for one in spec["unallocated"] if one != len(spec["allocations"]) - 1]
    cluster.put("ipamblocks", name, spec=spec)
    node.start()
    node.wait(lambda: not [
        one
        for each in cluster.specs("ipamblocks").values()
        for one in each["attributes"]
        if one["handle_id"] != "theirs"
    ])  # fmt: skip
    assert [one["handle_id"] for one in cluster.specs("ipamblocks")[name]["attributes"]] == ["theirs"]
    assert node.leaks() == NOTHING


@CALICO
def test_a_pool_of_the_namespace(node: Node, cluster: Cluster) -> None:
    cluster.put("ippools", "small", spec={"cidr": "10.99.0.0/24", "nodeSelector": "!all()"})
    cluster.put("namespaces", "team", metadata={"annotations": {f"{PREFIX}ipv4pools": '["small"]'}})
    cluster.pod("one", namespace="team")
    container = node.container("one")
    arguments = container.arguments().replace("K8S_POD_NAMESPACE=default", "K8S_POD_NAMESPACE=team")
    result = node.add(container, CNI_ARGS=arguments)
    assert addresses(result)[0].startswith("10.99.0.")
