"""What ``config/kubernetes`` has besides the network itself is taken by an API server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import yaml

from felixpy.agent.cluster import ClusterNode, View
from felixpy.kubernetes.access import Access
from felixpy.kubernetes.client import Api
from felixpy.model.net import FAMILIES
from tests.kubernetes.api.conftest import MANIFESTS, Server


@pytest.mark.parametrize("overlay", ["mqtt", "try", "beside-calico"])
def test_an_overlay_is_taken(server: Server, overlay: str) -> None:
    folder = str(MANIFESTS / overlay)
    taken = server.kubectl("apply", "-k", folder, "--server-side", "--force-conflicts", "--dry-run=server")
    assert "daemonset.apps/felixpy serverside-applied (server dry run)" in taken


def test_in_a_cluster_of_calicos_its_kinds_are_left_alone(server: Server) -> None:
    """Neither are they defined anew, nor may the agent write any; what it writes is events and its node's status."""
    written = list(yaml.safe_load_all(server.kubectl("kustomize", str(MANIFESTS / "beside-calico"))))
    assert not [one["metadata"]["name"] for one in written if one["kind"] == "CustomResourceDefinition"]
    (role,) = [one for one in written if one["kind"] == "ClusterRole"]
    writes = {"create", "update", "patch", "delete"}
    assert [one["resources"] for one in role["rules"] if writes & {*one["verbs"]}] == [["events"], ["nodes/status"]]
    # Calico's BIRD tells its peers of each pod whose route has a lower metric than Felix's.
    (settings,) = [one["data"] for one in written if one["kind"] == "ConfigMap"]
    assert settings["FELIX_IPV4NORMALROUTEPRIORITY"] == "1024"


def test_the_clean_up_is_taken_and_deleted(server: Server) -> None:
    """For real: a dry run makes no namespace, and what is in it could not be tried."""
    folder = str(MANIFESTS / "cleanup")
    assert "daemonset.apps/felixpy-cleanup created" in server.kubectl("apply", "-k", folder)
    server.kubectl("delete", "-k", folder, "--wait=false")


def installation(**pool: Any) -> str:
    """As the operator's own walkthroughs write it, with a field that felixpy does not read."""
    network = {"bgp": "Disabled", "ipPools": [{"encapsulation": "None", "natOutgoing": "Enabled", **pool}]}
    kind = {"apiVersion": "operator.tigera.io/v1", "kind": "Installation", "metadata": {"name": "default"}}
    return json.dumps(kind | {"spec": {"variant": "Calico", "calicoNetwork": network}})


def test_the_pools_of_an_installation_are_made_with_the_agents_rights(server: Server) -> None:
    server.kubectl("apply", "-k", str(MANIFESTS / "installation"))
    server.kubectl("wait", "--for=condition=Established", "crd/installations.operator.tigera.io", "--timeout=60s")
    try:
        for field, wrong in (
            ("encapsulation", {"cidr": "2001::/64", "encapsulation": "GRE"}),
            ("cidr", {"blockSize": 122}),
        ):
            refused = server.try_kubectl("apply", "-f", "-", given=installation(**wrong)).stderr
            assert f"spec.calicoNetwork.ipPools[0].{field}" in refused
        server.kubectl("apply", "-f", "-", given=installation(cidr="2001::00/64", blockSize=122))
        asyncio.run(make_pools(server))
        found = json.loads(server.kubectl("get", "pools", "-o", "json"))["items"]
        assert [(one["metadata"]["name"], one["spec"]["cidr"], one["spec"]["natOutgoing"]) for one in found] == [
            ("default-ipv6-ippool", "2001::/64", True)
        ]
    finally:
        server.kubectl("delete", "pools", "--all")
        server.kubectl("delete", "-k", str(MANIFESTS / "installation"))


async def make_pools(server: Server) -> None:
    view = View(lambda: True, lambda: True, lambda: [], lambda: FAMILIES, lambda: ())
    async with Api(Access(server.agent())) as api:
        await ClusterNode("n9", api, view, any_pool=False, environment={}).make_pools()


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"cidr": "10.9.0.0/28"}, "smaller than one block"),
        ({"cidr": "10.9.0.0/27", "blockSize": 0}, "smaller than one block"),
        ({"cidr": "fd09::/123"}, "smaller than one block"),
        ({"cidr": "169.254.7.0/24"}, "link-local"),
        ({"cidr": "FE90::/64"}, "link-local"),
        ({"cidr": "10.9.0.0/16", "allowedUses": ["LoadBalancer", "Workload"]}, "for nothing else"),
        ({"cidr": "10.9.0.0/16", "namespaceSelector": "all()"}, "cannot be used for tunnels"),
        ({"cidr": "10.9.0.0/28", "disabled": True}, ""),
        ({"cidr": "10.9.0.0/28", "blockSize": 28}, ""),
        ({"cidr": "10.9.0.0/26"}, ""),
        ({"cidr": "fd09::/122"}, ""),
        ({"cidr": "10.9.0.0/16", "namespaceSelector": "all()", "allowedUses": ["Workload"]}, ""),
        ({"cidr": "10.9.0.0/16", "namespaceSelector": "", "allowedUses": ["LoadBalancer"]}, ""),
    ],
)
def test_a_pool_that_makes_no_sense_is_refused_with_the_reason(
    server: Server, spec: dict[str, Any], reason: str
) -> None:
    pool = {"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": "tried"}, "spec": spec}
    done = server.try_kubectl("create", "--dry-run=server", "-f", "-", given=json.dumps(pool))
    assert (done.returncode != 0) is bool(reason), done.stderr
    assert reason in done.stderr
