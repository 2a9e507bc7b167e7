"""What a node tells its Kubernetes cluster once its network is there, and the pools that a new cluster needs.

    agent ready → condition NetworkUnavailable=False, Calico's annotations → the scheduler sends pods

Invariant: nothing is told before the agent is ready in every family that it has, and only this node's own object is
written, by its status: merge patches of single fields, so that nobody else's are touched. It must never stop the agent:
an API server that is away or refuses is one line in the log, and asked again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import msgspec
import yaml
from msgspec import Struct, field
from msgspec.structs import replace

from felixpy.agent.tunnel_addresses import KINDS
from felixpy.calc.mtu import Tunnel
from felixpy.ipam.assignment import NoAddress
from felixpy.kubernetes.client import CONFLICT, FORBIDDEN, NOT_FOUND, STRATEGIC_PATCH, Api, ApiError
from felixpy.kubernetes.nodes import (
    ADDRESS_ANNOTATION,
    CALICO,
    KubernetesNode,
    NodeCondition,
    NodeStatus,
    decode_own_node,
    node_facts,
)
from felixpy.model.invalid import UNREADABLE
from felixpy.model.net import FAMILIES, Family, Net, format_address
from felixpy.node.detection import Surroundings
from felixpy.node.interfaces import read_surroundings
from felixpy.node.own_addresses import OwnAddresses, read_variables
from felixpy.node.pools import PoolSettingError, are_others, default_pools, installation_pools
from felixpy.standing import Standing

READY_LOOK_SECONDS = 0.1
RETRY_SECONDS = 2.0
LOOK_AGAIN_SECONDS = 300.0
"""How often the node's object is read to see whether somebody took away what we wrote."""

ADDRESSES = "the node's addresses are not as IP and IP6 say"
CONDITION, REASON, MESSAGE = "NetworkUnavailable", "FelixpyIsUp", "felixpy programs the network of this node"
INSTALLATION = "/apis/operator.tigera.io/v1/installations/default"
POOLS = "/apis/projectcalico.org/v3/ippools"
KUBEADM = "/api/v1/namespaces/kube-system/configmaps/kubeadm-config"


class View(Struct, frozen=True):
    """What of the agent is looked at."""

    is_ready: Callable[[], bool]
    complete: Callable[[], bool]
    """Whether the snapshot of the API is known."""
    addresses: Callable[[], Iterable[Net]]
    """Of the node's own interfaces, with the prefix length of their subnets."""
    families: Callable[[], Collection[Family]]
    pool_families: Callable[[], Collection[Family]]
    """Families that have a pool."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the node's own object, its interfaces or the tunnels that pools need have changed."""
    tunnels: Callable[[], Awaitable[Mapping[Tunnel, bytes]]] | None = None
    """Gives addresses of this node's tunnels; None if felixpy gives none here."""
    surroundings: Callable[[], Surroundings] = read_surroundings


class ClusterNode:
    """This node, as it tells the cluster. ``any_pool``: whether an IPv4 pool that nobody named a range for will do."""

    def __init__(
        self, node: str, api: Api, view: View, *, any_pool: bool, environment: Mapping[str, str] = os.environ
    ) -> None:
        self._path = f"/api/v1/nodes/{node}"
        self._api = api
        self._view = view
        self._any_pool = any_pool
        self._environment = environment
        self._variables = read_variables(environment)
        self._own_addresses = OwnAddresses(node, self._variables)
        self._standing = Standing(level="warning")

    async def run(self) -> None:
        """For ever."""
        await _until(self._view.complete)
        await self._insist("default pools cannot be made", self.make_pools)
        await _until(self._view.is_ready)
        while True:
            self._view.changed.clear()
            await self._insist("the node's status cannot be written", self.tell)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN_SECONDS * random.uniform(0.8, 1.2)):
                    await self._view.changed.wait()

    async def _insist(self, what: str, action: Callable[[], Any]) -> None:
        while True:
            try:
                await action()
                self._standing.works(what)
                return
            except (ApiError, PoolSettingError, NoAddress, OSError) as error:
                self._standing.fails(what, str(error))
            await asyncio.sleep(RETRY_SECONDS * random.uniform(0.5, 1.5))

    # --- the node ----------------------------------------------------------------------------------------------

    async def tell(self) -> None:
        """Write what the node's object lacks; nothing if it lacks nothing.

        Raises:
            ApiError, NoAddress, OSError
        """
        try:
            node = decode_own_node(await self._api.request("GET", self._path))
        except UNREADABLE as error:
            raise ApiError(0, f"{self._path}: not a node: {error}") from None
        tunnels = await self._view.tunnels() if self._view.tunnels is not None else None
        chosen = await self._chosen(node)
        patch = node_patch(node, list(self._view.addresses()), datetime.now(UTC), chosen, tunnels)
        if patch:
            await self._api.request("PATCH", f"{self._path}/status", patch, content_type=STRATEGIC_PATCH)

    async def _chosen(self, node: KubernetesNode) -> dict[Family, Net | None]:
        """What Calico's variables say of the families that they speak of; none: nothing is to be told."""
        variables = self._variables
        families = [one for one in self._view.families() if variables.wanted[one] or variables.methods[one]]
        if not families:
            return {}
        internal = [entry.address for entry in node.status.addresses or () if entry.type == "InternalIP"]
        around = replace(await asyncio.to_thread(self._view.surroundings), internal_ips=internal)
        told = node_facts(msgspec.structs.replace(node, status=NodeStatus())).node  # by its annotations alone
        found, problems, _ = await asyncio.to_thread(
            self._own_addresses.find, families, None, told, around, time.monotonic()
        )
        if problems:
            self._standing.fails(ADDRESSES, "; ".join(problems))
        else:
            self._standing.works(ADDRESSES)
        return {family: found.get(family) for family in families}

    # --- pools -------------------------------------------------------------------------------------------------

    async def make_pools(self) -> None:
        """Make the pools of families that have none: those that an ``Installation`` lists, else the default ones.

        Raises:
            ApiError, PoolSettingError
        """
        existing = set(self._view.pool_families())
        missing = [family for family in self._view.families() if family not in existing]
        if not missing:
            return
        if are_others(self._environment):
            default_pools(self._environment)  # a range that is named all the same is told
            return
        pools = installation_pools(await self._read_or_nothing(INSTALLATION))
        for pool in await self._default_pools(missing, existing) if pools is None else pools:
            if _family(pool["spec"]["cidr"]) not in missing:
                continue
            try:
                await self._api.request("POST", POOLS, pool)
            except ApiError as error:
                if error.status != CONFLICT:  # another node made it
                    raise

    async def _default_pools(self, missing: Collection[Family], existing: Collection[Family]) -> list[dict[str, Any]]:
        environment = dict(self._environment)
        for family, cidr in (await self._kubeadm_ranges()).items():
            environment.setdefault(_range_variable(family), cidr)
        pools = default_pools(
            environment,
            existing=existing,
            host_addresses=[net.packed for net in self._view.addresses()],
            random_bytes=os.urandom(5),
            ipv6=Family.V6 in missing,
        )
        named = {family for family in FAMILIES if environment.get(_range_variable(family))}
        if self._any_pool and any(net.family is Family.V4 for net in self._view.addresses()):
            named.add(Family.V4)  # as Calico: only its IPv4 pool needs no word of anybody
        return [pool for pool in pools if _family(pool["spec"]["cidr"]) in named]

    async def _kubeadm_ranges(self) -> dict[Family, str]:
        """The ranges of pods that kubeadm was told, if it made this cluster."""
        answer = await self._read_or_nothing(KUBEADM)
        try:
            written = yaml.safe_load(answer["data"]["ClusterConfiguration"])["networking"]["podSubnet"]
        except (KeyError, TypeError, yaml.YAMLError):
            return {}
        return {_family(cidr): cidr.strip() for cidr in str(written or "").split(",") if cidr.strip()}

    async def _read_or_nothing(self, path: str) -> dict[str, Any]:
        """An object that need not be there, nor be ours to read."""
        try:
            answer: dict[str, Any] = await self._api.get(path)
        except ApiError as error:
            if error.status in (NOT_FOUND, FORBIDDEN):
                return {}
            raise
        return answer


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  readiness is a conclusion of many things, not an event
        await asyncio.sleep(READY_LOOK_SECONDS)


def _family(cidr: str) -> Family:
    return Family.V6 if ":" in cidr else Family.V4


def _range_variable(family: Family) -> str:
    return f"CALICO_IPV{family.version}POOL_CIDR"


def node_patch(
    node: KubernetesNode,
    addresses: Collection[Net],
    now: datetime,
    chosen: Mapping[Family, Net | None] = MappingProxyType({}),
    tunnels: Mapping[Tunnel, bytes] | None = None,
) -> dict[str, Any]:
    """What to change of a node's object, as a strategic merge patch; empty if it is as it should be.

    ``chosen``: addresses of families of which somebody has said which; ``tunnels``: None if others give them.
    """
    patch: dict[str, Any] = {}
    annotations: dict[str, str | None] = dict(_annotations(node, addresses, chosen))
    if annotations := annotations | _tunnel_annotations(node, tunnels):
        patch["metadata"] = {"annotations": annotations}
    if not any(each.type == CONDITION and each.status == "False" for each in node.status.conditions or ()):
        time = now.strftime("%Y-%m-%dT%H:%M:%SZ")
        condition = NodeCondition(CONDITION, "False", REASON, MESSAGE, time, time)
        patch["status"] = {"conditions": [msgspec.to_builtins(condition)]}
    return patch


def _tunnel_annotations(node: KubernetesNode, tunnels: Mapping[Tunnel, bytes] | None) -> dict[str, str | None]:
    """Addresses of tunnels; None takes an annotation away."""
    if tunnels is None:
        return {}
    written = node.metadata.annotations or {}
    wanted = {
        f"{CALICO}{kind.annotation}": format_address(tunnels[tunnel]) if tunnel in tunnels else None
        for tunnel, kind in KINDS.items()
    }
    return {name: text for name, text in wanted.items() if written.get(name) != text}


def _annotations(
    node: KubernetesNode, addresses: Collection[Net], chosen: Mapping[Family, Net | None]
) -> dict[str, str]:
    """The address of each family, with its subnet: what the kubelet tells has none.

    One that stands there and that an interface has was somebody's choice, and stays.
    """
    written = node.metadata.annotations or {}
    by_address = {net.packed: net for net in addresses}
    found = {}
    for family in FAMILIES:
        name = ADDRESS_ANNOTATION[family]
        if family in chosen:
            if (own := chosen[family]) is not None and written.get(name) != str(own):
                found[name] = str(own)
            continue
        if _packed(written.get(name)) in by_address:
            continue
        for entry in node.status.addresses or ():
            net = by_address.get(_packed(entry.address) or b"") if entry.type == "InternalIP" else None
            if net is not None and net.family is family:
                found[name] = str(net)
                break
    return found


def _packed(text: str | None) -> bytes | None:
    try:
        return Net.parse_interface(text or "").packed
    except ValueError:
        return None
