"""``felixpy connectivity``: everything that should work in a cluster, tried by pods, and all of it taken away again.

    namespace, servers on two nodes, a Service, a policy  →  clients on each node try  →  a table  →  nothing is left

Invariant: only what is below a namespace of its own is made, and that namespace goes at the end, however it ends.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from felixpy.connectivity import objects
from felixpy.connectivity.objects import Target
from felixpy.kubernetes.client import NOT_FOUND, Api, ApiError
from felixpy.plain_error import PlainError

POLL_SECONDS = 0.5
SERVER, GUARDED, FRIEND, STRANGER = "server", "guarded", "friend", "stranger"


class ConnectivityError(PlainError):
    """The cluster cannot be tried: one sentence for people."""


class Result(NamedTuple):
    """One connection: from where, to what, whether it had to be answered and was, and what was said."""

    source: str
    target: str
    expected: bool
    reached: bool
    said: str

    @property
    def good(self) -> bool:
        return self.expected == self.reached


class Plan(NamedTuple):
    """Where to try, by which image, for how long at most, and whether policy is tried as well."""

    nodes: tuple[str, ...]
    image: str
    seconds: float
    policy: bool = True
    outside: tuple[str, ...] = ()


async def plan(api: Api, *, image: str, home: str, seconds: float, policy: bool, outside: tuple[str, ...]) -> Plan:
    """Two nodes that are ready, or the one that there is; the image of the DaemonSet if none is given.

    Raises:
        ConnectivityError: no node is ready, or there is no DaemonSet and no image.
        ApiError
    """
    listed = (await api.get("/api/v1/nodes"))["items"]
    ready = sorted(one["metadata"]["name"] for one in listed if _is_ready(one) and not one["spec"].get("unschedulable"))
    if not ready:
        raise ConnectivityError("no node of the cluster is Ready; see kubectl get nodes")
    if not image:
        try:
            found = await api.get(f"/apis/apps/v1/namespaces/{home}/daemonsets/felixpy")
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            raise ConnectivityError(
                f"there is no DaemonSet felixpy in the namespace {home}; name it with --home, or an image that has "
                "python3 with --image"
            ) from None
        image = found["spec"]["template"]["spec"]["containers"][0]["image"]
    return Plan(tuple(ready[:2]), image, seconds, policy, outside)


def _is_ready(node: Any) -> bool:
    return any(one["type"] == "Ready" and one["status"] == "True" for one in node["status"].get("conditions", ()))


async def run(api: Api, planned: Plan, say: Callable[[str], None]) -> list[Result]:
    """Try everything. The namespace is gone, or going, when this returns or raises.

    Raises:
        ConnectivityError, ApiError
    """
    name = f"{objects.LABEL}-{secrets.token_hex(3)}"
    say(f"namespace {name}, nodes {', '.join(planned.nodes)}, image {planned.image}")
    await api.request("POST", "/api/v1/namespaces", objects.namespace(name))
    try:
        return await _try(_Namespace(api, name, planned.seconds), planned, say)
    finally:
        await api.request("DELETE", f"/api/v1/namespaces/{name}")


class _Namespace:
    """Objects of one namespace."""

    def __init__(self, api: Api, name: str, seconds: float) -> None:
        self._api = api
        self._path = f"/api/v1/namespaces/{name}"
        self._policies = f"/apis/networking.k8s.io/v1/namespaces/{name}/networkpolicies"
        self._seconds = seconds
        self.name = name

    async def make(self, thing: dict[str, Any]) -> Any:
        kind = f"{thing['kind'].lower()}s"
        path = self._policies if kind == "networkpolicys" else f"{self._path}/{kind}"
        return json.loads(await self._api.request("POST", path, thing))

    async def account(self) -> None:
        """Until pods can be made: the namespace has its service account."""
        await self._until("its service account", self._has_account)

    async def _has_account(self) -> bool:
        try:
            await self._api.get(f"{self._path}/serviceaccounts/default")
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            return False
        return True

    async def ready(self, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Addresses of pods, once all of them are ready.

        Raises:
            ConnectivityError: they are not in time; says what the kubelet says.
        """
        found: dict[str, tuple[str, ...]] = {}
        waits = ""

        async def all_ready() -> bool:
            nonlocal waits
            waits = ""
            for pod in (await self._api.get(f"{self._path}/pods"))["items"]:
                name = pod["metadata"]["name"]
                if name not in names:
                    continue
                if _is_ready(pod):
                    found[name] = tuple(one["ip"] for one in pod["status"].get("podIPs", ()))
                else:
                    waits = f"{name} on {pod['spec'].get('nodeName')}: {_why(pod)}"
            return len(found) == len(names)

        await self._until("pods that are ready", all_ready, lambda: waits)
        return found

    async def log(self, name: str) -> list[dict[str, Any]]:
        """What a client found, once it has ended."""
        text = ""

        async def ended() -> bool:
            nonlocal text
            pod = await self._api.get(f"{self._path}/pods/{name}")
            if pod["status"].get("phase") not in ("Succeeded", "Failed"):
                return False
            text = (await self._api.request("GET", f"{self._path}/pods/{name}/log")).decode()
            return True

        await self._until(f"the end of the pod {name}", ended)
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    async def _until(self, what: str, condition: Callable[[], Any], why: Callable[[], str] = lambda: "") -> None:
        try:
            async with asyncio.timeout(self._seconds * 2):
                while not await condition():  # noqa: ASYNC110  # a question to the API each time
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            reason = f" ({why()})" if why() else ""
            raise ConnectivityError(f"{self.name}: no {what} within {self._seconds * 2:g} s{reason}") from None


def _why(pod: Any) -> str:
    for one in pod["status"].get("containerStatuses", ()):
        if waiting := one.get("state", {}).get("waiting"):
            return f"{waiting.get('reason')} {waiting.get('message', '')}".strip()
    return str(pod["status"].get("phase"))


async def _try(place: _Namespace, planned: Plan, say: Callable[[str], None]) -> list[Result]:
    await place.account()
    servers = {
        f"{role}-{number}": (node, role) for role in (SERVER, GUARDED) for number, node in enumerate(planned.nodes)
    }
    for name, (node, role) in servers.items():
        await place.make(objects.server(name, node, planned.image, role))
    made = await place.make(objects.service("server", SERVER))
    if planned.policy:
        await place.make(objects.policy("friends-only", GUARDED, FRIEND))
    addresses = await place.ready(list(servers))
    say(f"{len(addresses)} servers are ready: {', '.join(f'{name} {a}' for name, a in sorted(addresses.items()))}")
    wanted: dict[str, list[Target]] = {}
    for number, node in enumerate(planned.nodes):
        for role in (FRIEND, STRANGER):
            name = f"{role}-{number}"
            wanted[name] = _targets(node, role, servers, addresses, made["spec"].get("clusterIPs", ()), planned)
            await place.make(objects.client(name, node, planned.image, role, wanted[name], planned.seconds))
    say(f"{sum(map(len, wanted.values()))} connections are tried")
    results = []
    for name, targets in wanted.items():
        told = {one["name"]: one for one in await place.log(name)}
        for target in targets:
            one = told.get(target.name, {"reached": False, "said": "the pod said nothing of it"})
            results.append(Result(name, target.name, target.reached, bool(one["reached"]), str(one["said"])))
    return results


def _targets(
    node: str,
    role: str,
    servers: dict[str, tuple[str, str]],
    addresses: dict[str, tuple[str, ...]],
    cluster_ips: Sequence[str],
    planned: Plan,
) -> list[Target]:
    """What a client of a role on a node tries."""
    found = []
    for name, (its_node, its_role) in servers.items():
        where = "same node" if its_node == node else "other node"
        if its_role == SERVER and role == STRANGER:
            continue  # the friend has tried it
        if its_role == GUARDED and not planned.policy:
            continue
        for address in addresses[name]:
            said = f"{family_of(address)} pod {name}, {where}"
            found.append(Target(said, objects.url(address), its_role == SERVER or role == FRIEND))
    if role == FRIEND:
        found += [Target(f"{family_of(one)} Service", objects.url(one)) for one in cluster_ips]
        found += [Target(f"outside {one}", one) for one in planned.outside]
    return found


def family_of(address: str) -> str:
    return "IPv6" if ":" in address else "IPv4"
