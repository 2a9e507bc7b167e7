"""The source with a real API server, with the rights of the manifests."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import signal
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from felixpy.agent import events
from felixpy.agent.cluster import ClusterNode, View
from felixpy.config import Settings
from felixpy.kubernetes.access import Access, Identity, Material
from felixpy.kubernetes.client import Api, ApiError
from felixpy.kubernetes.names import endpoint_key
from felixpy.model.net import FAMILIES, Family, Net
from felixpy.model.resources import Kind, ResourceKey, WorkloadEndpoint
from felixpy.sources import SyncState
from felixpy.sources.kubernetes import KubernetesSource
from felixpy.sources.once import Collected
from tests.kubernetes.api.conftest import Server

PATIENCE_SECONDS = 120


@pytest.fixture
def namespace(server: Server) -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"color": "red"}}})
    server.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name}})
    yield name
    server.kubectl("-n", name, "delete", "pods", "--all", "--force", "--grace-period=0")


def pod(namespace: str, name: str, node: str) -> dict[str, Any]:
    spec = {"nodeName": node, "automountServiceAccountToken": False, "containers": [{"name": "c", "image": "none"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "spec": spec}


def give_addresses(server: Server, namespace: str, name: str, *addresses: str) -> None:
    listed = ", ".join(f'{{"ip": "{each}"}}' for each in addresses)
    status = f'{{"status": {{"phase": "Running", "podIP": "{addresses[0]}", "podIPs": [{listed}]}}}}'
    server.kubectl("-n", namespace, "patch", "pod", name, "--subresource=status", "--type=merge", "-p", status)


@asynccontextmanager
async def following(identity: Identity, node: str) -> AsyncIterator[Collected]:
    sink = Collected()
    source = KubernetesSource(Settings(nodename=node), Api(Access(identity)))
    task = asyncio.create_task(source.run(sink))
    try:
        yield sink
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110  whatever the tests wait for
            await asyncio.sleep(0.02)


def endpoint(sink: Collected, key: ResourceKey) -> WorkloadEndpoint | None:
    update = sink.updates.get(key)
    resource = update.resource if update else None
    assert resource is None or isinstance(resource, WorkloadEndpoint)
    return resource


def test_own_pods_and_those_of_others_come_and_go(server: Server, namespace: str) -> None:
    async def run() -> None:
        server.apply(pod(namespace, "mine", "n1"), pod(namespace, "theirs", "n2"))
        give_addresses(server, namespace, "mine", "10.48.0.1", "fd48::1")
        async with following(server.agent(), "n1") as sink:
            await until(lambda: sink.status.state is SyncState.IN_SYNC)
            mine = endpoint(sink, endpoint_key("n1", namespace, "mine"))
            assert mine is not None
            assert [str(each) for each in mine.addresses] == ["10.48.0.1/32", "fd48::1/128"]
            assert endpoint(sink, endpoint_key("n2", namespace, "theirs")) is None  # no address yet
            give_addresses(server, namespace, "theirs", "10.48.1.1")
            await until(lambda: endpoint(sink, endpoint_key("n2", namespace, "theirs")) is not None)
            server.kubectl("-n", namespace, "delete", "pod", "mine", "--force", "--grace-period=0")
            await until(lambda: endpoint(sink, mine.key) is None)
            assert sink.updates[ResourceKey(Kind.NAMESPACE, namespace)].resource is not None

    asyncio.run(run())


def test_a_restart_of_the_api_server_changes_nothing_and_loses_nothing(server: Server, namespace: str) -> None:
    async def run() -> None:
        server.apply(pod(namespace, "mine", "n1"))
        give_addresses(server, namespace, "mine", "10.48.0.1")
        async with following(server.agent(), "n1") as sink:
            await until(lambda: sink.status.state is SyncState.IN_SYNC)
            before = dict(sink.updates)
            os.killpg(int((server.run / "pid" / "kube-apiserver").read_text()), signal.SIGKILL)
            await until(lambda: sink.status.state is SyncState.CONNECTING)
            assert "cannot be reached" in sink.status.reason
            assert sink.updates == before
            server.script("start.sh", "kube-apiserver")
            await until(lambda: server.try_kubectl("get", "--raw", "/readyz").returncode == 0)
            server.apply(pod(namespace, "second", "n1"))
            give_addresses(server, namespace, "second", "10.48.0.2")
            await until(lambda: endpoint(sink, endpoint_key("n1", namespace, "second")) is not None)
            await until(lambda: sink.status.state is SyncState.IN_SYNC)
            assert {key: sink.updates[key] for key in before} == before

    asyncio.run(run())


async def make_many(api: Api, namespace: str, count: int) -> None:
    """Pods with an address each, the first one on node n1, the others on n2, a few at a time."""
    numbers = iter(range(count))

    async def make() -> None:
        for number in numbers:
            name = f"p{number}"
            path = f"/api/v1/namespaces/{namespace}/pods"
            await api.request("POST", path, pod(namespace, name, "n2" if number else "n1"))
            address = str(ipaddress.IPv4Address("10.48.0.0") + number)
            status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
            await api.request(
                "PATCH", f"{path}/{name}/status", {"status": status}, content_type="application/merge-patch+json"
            )

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(make())


def test_five_thousand_pods(server: Server, namespace: str) -> None:
    """All are known once the source is in sync, and each goes when all are deleted at one go."""

    async def run() -> None:
        async with Api(Access(server.admin)) as admin:
            await make_many(admin, namespace, 5000)
            async with following(server.agent(), "n1") as sink:
                await until(lambda: sink.status.state is SyncState.IN_SYNC)
                keys = {key for key, update in sink.updates.items() if isinstance(update.resource, WorkloadEndpoint)}
                addresses = {str(each) for key in keys for each in _addresses(sink, key)}
                assert len(keys) == len(addresses) == 5000
                pods, at_once = f"/api/v1/namespaces/{namespace}/pods", {"gracePeriodSeconds": "0"}
                await admin.request("DELETE", pods, params=at_once, seconds=PATIENCE_SECONDS)
                await until(lambda: not any(endpoint(sink, key) for key in keys))

    asyncio.run(run())


def _addresses(sink: Collected, key: ResourceKey) -> tuple[Net, ...]:
    found = endpoint(sink, key)
    assert found is not None
    return found.addresses


def test_a_bad_pool_is_refused_by_the_api_server_and_columns_are_shown(server: Server) -> None:
    bad = '{"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": "bad"}, "spec": %s}'
    for spec, reason in (
        ('{"cidr": "fd48::/48", "ipipMode": "Always"}', "IPIP carries IPv4 only"),
        ('{"cidr": "10.48.0.0/16", "blockSize": 16}', "blockSize must be"),
        ('{"cidr": "10.48.0.0/16", "ipipMode": "Always", "vxlanMode": "Always"}', "not by both"),
        ('{"cidr": "10.48.0.0"}', "spec.cidr"),
        ('{"cidr": "10.48.0.0/16", "vxlanMode": "Sometimes"}', "vxlanMode"),
        ("{}", "spec.cidr"),
    ):
        refused = server.try_kubectl("apply", "-f", "-", given=bad % spec)
        assert refused.returncode != 0, spec
        assert reason in refused.stderr, spec
    server.kubectl("apply", "-f", "-", given=bad.replace('"bad"', '"good"') % '{"cidr": "10.49.0.0/16"}')
    shown = server.kubectl("get", "pools", "good")
    assert "CIDR" in shown
    assert "10.49.0.0/16" in shown
    server.kubectl("delete", "pool", "good")


def test_the_node_tells_of_itself_and_makes_pools_with_its_rights_only(server: Server) -> None:
    async def run() -> None:
        server.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n9"}})
        status = '{"status": {"addresses": [{"type": "InternalIP", "address": "172.30.0.19"}]}}'
        server.kubectl("patch", "node", "n9", "--subresource=status", "--type=merge", "-p", status)
        view = View(
            is_ready=lambda: True,
            complete=lambda: True,
            addresses=lambda: [Net.parse_interface("172.30.0.19/24")],
            families=lambda: FAMILIES,
            pool_families=lambda: [Family.V6],
        )
        environment = {"CALICO_IPV4POOL_CIDR": "10.50.0.0/16"}
        async with Api(Access(server.agent())) as api:
            node = ClusterNode("n9", api, view, any_pool=False, environment=environment)
            await node.make_pools()
            await node.make_pools()  # another node was first
            await node.tell()
            written = await api.get("/api/v1/nodes/n9")
            version = written["metadata"]["resourceVersion"]
            await node.tell()
            assert (await api.get("/api/v1/nodes/n9"))["metadata"]["resourceVersion"] == version
            with pytest.raises(ApiError) as refused:
                await api.request("DELETE", "/api/v1/nodes/n9")
            assert refused.value.status == 403
        assert written["metadata"]["annotations"]["projectcalico.org/IPv4Address"] == "172.30.0.19/24"
        condition = next(each for each in written["status"]["conditions"] if each["type"] == "NetworkUnavailable")
        assert condition["status"] == "False"
        pools = server.kubectl("get", "pools", "-o", "name").split()
        assert pools == ["ippool.projectcalico.org/default-ipv4-ippool"]
        server.kubectl("delete", "pools", "--all")
        server.kubectl("delete", "node", "n9")

    asyncio.run(run())


def test_events_on_an_object_are_written_with_the_agents_rights_and_shown_by_kubectl(
    server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "SPACING_SECONDS", 0)
    policy = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
              "metadata": {"name": "web", "namespace": namespace}, "spec": {"podSelector": {}}}  # fmt: skip
    pool = {"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": "told"},
            "spec": {"cidr": "10.51.0.0/16"}}  # fmt: skip
    server.apply(policy, pool)
    standing = [(ResourceKey(Kind.KUBERNETES_NETWORK_POLICY, "web", namespace), "a rule denies everything"),
                (ResourceKey(Kind.IP_POOL, "told"), "no tunnel")]  # fmt: skip

    async def run() -> None:
        for _ in range(2):  # nodes
            async with Api(Access(server.agent())) as api:
                await events.Events(api, lambda: standing).tell()

    asyncio.run(run())
    for place, kind, words in (
        (namespace, "NetworkPolicy", "a rule denies everything"),
        ("default", "IPPool", "no tunnel"),
    ):
        (found,) = json.loads(server.kubectl("-n", place, "get", "events", "-o", "json", "--field-selector",
                                             f"involvedObject.kind={kind}"))["items"]  # fmt: skip
        assert (found["message"], found["reason"], found["type"]) == (words, "NotEnforced", "Warning")
    assert "no tunnel" in server.kubectl("describe", "ippools.projectcalico.org", "told")
    server.kubectl("delete", "pool", "told")


def test_without_rights_the_reason_names_them_and_nothing_is_in_sync(server: Server) -> None:
    async def run() -> None:
        server.kubectl("create", "serviceaccount", "nobody", "-n", "felixpy")
        token = server.kubectl("-n", "felixpy", "create", "token", "nobody")
        identity = Identity(server.admin.server, server.admin.ca, Material(text=token))
        async with following(identity, "n1") as sink:
            await until(lambda: sink.status.state is SyncState.DEGRADED)
            assert "cannot list resource" in sink.status.reason or "cannot watch resource" in sink.status.reason
            assert "config/kubernetes" in sink.status.reason
        server.kubectl("delete", "serviceaccount", "nobody", "-n", "felixpy")

    asyncio.run(run())


def test_a_kind_that_comes_later_is_found(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("felixpy.kubernetes.kinds.DISCOVERY_SECONDS", 0.5)

    async def run() -> None:
        crd = "felixconfigurations.projectcalico.org"
        kept = server.kubectl("get", "crd", crd, "-o", "yaml")
        server.kubectl("delete", "crd", crd)
        async with following(server.agent(), "n1") as sink:
            await until(lambda: sink.status.state is SyncState.IN_SYNC)
            server.kubectl("create", "-f", "-", given=_as_new(kept))
            server.kubectl("wait", "--for=condition=Established", "crd", crd, "--timeout=60s")
            server.apply({"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration",
                          "metadata": {"name": "default"}, "spec": {"logSeverityScreen": "Debug"}})  # fmt: skip
            key = ResourceKey(Kind.FELIX_CONFIGURATION, "default")
            await until(lambda: key in sink.updates and sink.updates[key].resource is not None)
            server.kubectl("delete", "felixconfig", "default")
            await until(lambda: sink.updates[key].resource is None)

    asyncio.run(run())


def _as_new(text: str) -> str:
    import yaml

    found = yaml.safe_load(text)
    found["metadata"] = {"name": found["metadata"]["name"]}
    del found["status"]
    return str(yaml.safe_dump(found))
