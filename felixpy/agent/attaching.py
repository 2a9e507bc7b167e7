"""The CNI server in the agent: what it sees of it, and how it is put together.

    server ──update──► agent ──outcome──► server

Invariant: ``up`` is what the outcome says of an endpoint after it was written, never a guess; of an endpoint that is
another one than the caller means nothing is concluded. It must never hold the loop up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from felixpy.agent.agent import Agent
from felixpy.cni.attachments import LocalAttachments
from felixpy.cni.conflist import BadNetworkConfiguration, ConflistWriter, default_conflist, given_conflist
from felixpy.cni.journal import Journal
from felixpy.cni.server import CniServer, Node, NodeState, NotProgrammed, Pods
from felixpy.cni.wishes import PodWishes
from felixpy.config import Settings
from felixpy.config.values import IPAMType
from felixpy.ipam.local import LocalAddresses
from felixpy.model.net import FAMILIES, Family, Net
from felixpy.model.resources import ResourceKey, Update, WorkloadEndpoint
from felixpy.sources import SyncState


class Attaching:
    """``Programming`` of the CNI server."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def update(self, update: Update) -> None:
        self._agent.update(update)

    async def ready(self) -> None:
        await self._agent.known.wait()

    @contextmanager
    def until_up(self, key: ResourceKey, is_it: Callable[[WorkloadEndpoint], bool]) -> Iterator[Awaitable[None]]:
        agent = self._agent
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def told(state: str, reason: str) -> None:
            if done.done():
                return
            endpoint = agent.store.endpoints.get(key)
            if state == "error" and (endpoint is None or is_it(endpoint)):
                done.set_exception(NotProgrammed(reason, later=False))
            elif state == "up" and endpoint is not None and is_it(endpoint):
                done.set_result(None)

        with agent.outcome.following(key, told):
            try:
                yield done
            finally:
                if not done.done():
                    done.cancel()
                elif not done.cancelled():
                    done.exception()  # whether anybody waited or not

    def is_up(self, key: ResourceKey) -> tuple[bool, str]:
        state, reason = self._agent.outcome.state_of(key)
        return state == "up", reason or state or "it is not known"

    def state(self) -> NodeState:
        agent = self._agent
        if not agent.known.is_set():
            return NodeState(cannot=f"the stream is not known yet: {agent.stream.reason or agent.stream.state.value}")
        ready, why = agent.is_ready()
        if not ready:
            return NodeState(cannot=why)
        limited = [f"{family} is not programmed: {reason}" for family, reason in agent.failures.items()]
        if agent.stream.state is SyncState.DEGRADED and not limited:
            limited = [f"the stream is degraded: {agent.stream.reason}"]
        return NodeState(limited="; ".join(limited))


class AnyPod:
    """``Pods`` that wish for nothing."""

    async def wishes(self, namespace: str, pod: str, uid: str) -> PodWishes:
        return PodWishes()


def cni_server(settings: Settings, agent: Agent, attachments: LocalAttachments, pods: Pods | None) -> CniServer:
    """The server of an agent, at ``CNISocket``."""
    assert settings.cni_socket is not None
    node = Node(settings.nodename, lambda: agent.settings.interface_prefix[0], lambda: settings.cni_mtu)
    journal = Journal(settings.cni_state_directory / "attachments")
    addresses = LocalAddresses(lambda family: _ranges(agent, settings, family), _WHERE[settings.ipam_type])
    return CniServer(settings.cni_socket, node, attachments, journal, addresses, Attaching(agent), pods)


def conflist_writer(settings: Settings, agent: Agent) -> ConflistWriter | None:
    """Who keeps ``CNIConfigFile``, if there is to be one."""
    socket, template = settings.cni_socket, settings.cni_network_config_file
    if socket is None or settings.cni_config_file is None:
        return None

    def content() -> bytes:
        if template is not None:
            try:
                return given_conflist(template.read_bytes(), socket)
            except BadNetworkConfiguration as error:
                raise BadNetworkConfiguration(f"{template}: {error}") from None
        return default_conflist(socket, [family for family in FAMILIES if _ranges(agent, settings, family)])

    return ConflistWriter(settings.cni_config_file, Attaching(agent).state, content)


_WHERE = {
    IPAMType.POD_CIDR: "give it a pod CIDR, or an IPAMBlock or BlockAffinity; or set IPAMType",
    IPAMType.POOLS: "there is no IPPool that is not disabled",
    IPAMType.CALICO: "blocks of the Kubernetes API are not followed",
}


def _ranges(agent: Agent, settings: Settings, family: Family) -> list[Net]:
    """What this node may give addresses of, in the order of the prefixes; each once."""
    store = agent.store
    if settings.ipam_type is IPAMType.POOLS:
        pools = [pool.cidr for pool in store.pools.values() if not pool.disabled and "Workload" in pool.allowed_uses]
        return sorted({net for net in pools if net.family is family})
    mine = {block.cidr for block in store.blocks.values() if block.host == store.node_name}
    return sorted(net for net in mine if net.family is family)
