"""What attaches containers, put together: the CNI server with its addresses, the network configuration, collection.

    runtime ── plugin ── CniServer ──► Addresses (this node's ranges, or Calico's blocks in the API)
                              └──────► Attaching (the agent)

Composition only; it must never decide anything about one container.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from felixpy.agent.agent import Agent
from felixpy.agent.attaching import Attaching
from felixpy.agent.tunnel_addresses import TunnelAddresses
from felixpy.calc.overlay import workload_mtu
from felixpy.cni.attachments import LocalAttachments
from felixpy.cni.calls import Calls
from felixpy.cni.conflist import BadNetworkConfiguration, ConflistWriter, default_conflist, given_conflist
from felixpy.cni.journal import Journal
from felixpy.cni.programming import Node, Pods
from felixpy.cni.server import CniServer
from felixpy.config import Settings
from felixpy.config.values import IPAMType
from felixpy.ipam.assignment import Addresses
from felixpy.ipam.candidates import pools_for
from felixpy.ipam.local import LocalAddresses
from felixpy.model.net import FAMILIES, Family, Net
from felixpy.observe.metrics import Metrics
from felixpy.plain_error import PlainError
from felixpy.standing import Standing

if TYPE_CHECKING:
    from felixpy.agent.pods import PodSource
    from felixpy.ipam.blocks import CalicoBlocks
    from felixpy.kubernetes.client import Api

log = structlog.get_logger("felixpy")

COLLECT_SECONDS = 600.0
"""Between two looks for addresses of ours that no container has."""
UNCOLLECTED = "addresses that no container has cannot be collected"

_WHERE = {
    IPAMType.POD_CIDR: "give it a pod CIDR, or an IPAMBlock or BlockAffinity; or set IPAMType",
    IPAMType.POOLS: "there is no IPPool that is not disabled",
}


class Containers:
    """The parts of an agent with ``CNISocket``. ``open`` before its source runs, then run ``parts`` beside it."""

    def __init__(
        self,
        settings: Settings,
        agent: Agent,
        attachments: LocalAttachments,
        source: PodSource | None = None,
        api: Api | None = None,
    ) -> None:
        assert settings.cni_socket is not None
        self._settings = settings
        self._agent = agent
        self._attaching = Attaching(agent)
        self._blocks: CalicoBlocks | None = None
        self._local: LocalAddresses | None = None
        pods: Pods | None = None
        if source is not None and api is not None:
            from felixpy.agent.pods import ApiPods

            pods = ApiPods(source, api)
        node = Node(settings.nodename, lambda: agent.settings.interface_prefix[0], self._mtu)
        journal = Journal(settings.cni_state_directory / "attachments")
        self._calls = Calls(node, attachments, journal, self._addresses(api), self._attaching, pods)
        self._server = CniServer(settings.cni_socket, self._calls, partial(_count, agent.metrics))
        agent.metrics.sampled.append(lambda: agent.metrics.attachments.set(len(attachments)))

    async def open(self) -> None:
        """Take what an earlier run attached.

        Raises:
            JournalError, OSError
        """
        await self._calls.open()

    def parts(self) -> list[Coroutine[Any, Any, None]]:
        """What runs until it is cancelled."""
        found = [self._server.serve()]
        if self._settings.cni_config_file is not None:
            state = self._attaching.state
            found.append(ConflistWriter(self._settings.cni_config_file, state, self._conflist).run())
        if self._blocks is not None:
            found.append(self._collect_forever(self._blocks))
        return found

    def _addresses(self, api: Api | None) -> Addresses:
        settings, store = self._settings, self._agent.store
        if settings.ipam_type is not IPAMType.CALICO:
            self._local = LocalAddresses(self.ranges, _WHERE[settings.ipam_type], self._of_tunnels)
            return self._local
        if api is None:
            raise PlainError(
                "FELIX_IPAMTYPE=Calico keeps its blocks in the Kubernetes API, which is not the source of this agent; "
                "set FELIX_DATASTORETYPE=kubernetes, or IPAMType to PodCIDR or Pools"
            )
        from felixpy.ipam.blocks import CalicoBlocks, Surroundings
        from felixpy.ipam.objects import KubernetesObjects

        around = Surroundings(
            settings.nodename,
            lambda: store.pools.values(),
            lambda: [(block.cidr, block.host) for block in store.blocks.values()],
            lambda: store.labels,
        )
        self._blocks = CalicoBlocks(KubernetesObjects(api), around)
        return self._blocks

    def tunnel_addresses(self) -> TunnelAddresses:
        """Addresses of this node's tunnels, of the same store as those of containers."""
        calculation = self._agent.calculation
        return TunnelAddresses(self._agent.store, lambda: calculation.settings, self.ranges, self._local, self._blocks)

    def _of_tunnels(self) -> frozenset[bytes]:
        """Addresses of this node's tunnels, which no container gets."""
        own = self._agent.store.nodes.get(self._agent.store.node_name)
        if own is None:
            return frozenset()
        return frozenset(own.tunnel_addresses).union(filter(None, map(own.wireguard_address, FAMILIES)))

    def _mtu(self) -> int:
        """What the network between nodes carries in one piece, unless somebody said a number; 0: nobody knows."""
        calculation = self._agent.calculation
        found = workload_mtu(self._agent.store, calculation.settings, calculation.host)
        return self._settings.cni_mtu or (found.mtu if found else 0)

    def ranges(self, family: Family) -> list[Net]:
        """What this node may give addresses of, in the order of the prefixes; each once."""
        store = self._agent.store
        if self._settings.ipam_type is IPAMType.POOLS:
            nets = {pool.cidr for pool in pools_for(store.pools.values(), family, (), store.labels, {})[0]}
        else:
            nets = {block.cidr for block in store.blocks.values() if block.host == store.node_name}
        return sorted(net for net in nets if net.family is family)

    def _conflist(self) -> bytes:
        socket, template = self._settings.cni_socket, self._settings.cni_network_config_file
        assert socket is not None
        if template is None:
            return default_conflist(socket, [family for family in FAMILIES if self._has_addresses(family)])
        try:
            return given_conflist(template.read_bytes(), socket)
        except BadNetworkConfiguration as error:
            raise BadNetworkConfiguration(f"{template}: {error}") from None

    def _has_addresses(self, family: Family) -> bool:
        return not self._blocks.exhausted((family,)) if self._blocks is not None else bool(self.ranges(family))

    async def _collect_forever(self, blocks: CalicoBlocks) -> None:
        from felixpy.ipam.block import BlockError
        from felixpy.ipam.objects import Unavailable

        standing = Standing(level="warning")
        await self._attaching.ready()
        while True:
            try:
                if count := await blocks.collect():
                    log.info("addresses that no container has are given back", count=count)
                standing.works(UNCOLLECTED)
            except (BlockError, Unavailable) as error:
                standing.fails(UNCOLLECTED, str(error))
            await asyncio.sleep(COLLECT_SECONDS * random.uniform(0.8, 1.2))


def _count(metrics: Metrics, command: str, seconds: float, code: int) -> None:
    metrics.cni_calls.inc(command, str(code))
    if command == "ADD" and not code:
        metrics.cni_add_seconds.observe(seconds)
