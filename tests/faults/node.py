"""One node in the test's network with an agent in this process that can be stopped, killed and started again.

The stream is a dictionary that survives the agent. ``settled`` waits until a second agent, started from scratch on the
same stream, finds nothing to change in the kernel.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from felixpy.agent.agent import Agent
from felixpy.config import Settings, SettingsSource, resolve
from felixpy.dataplane.packet_filter import FilterError
from felixpy.demo.patience import Patience
from felixpy.model.net import Net
from felixpy.model.resources import IPPool, Kind, ResourceKey, Update
from felixpy.sources import SyncState, SyncStatus
from tests.drift.world import BACKENDS, NODE, endpoint, put, sh, surroundings
from tests.faults.injection import Killed, sparing

PATIENCE_SECONDS = 30.0
NO_TIMERS = {f"{name}RefreshInterval": "0" for name in ("Route", "Interface", "NFTables", "Iptables", "Ipsets")}
FOREIGN = """
add table inet foreign
add chain inet foreign c { type filter hook input priority 5; }
add rule inet foreign c tcp dport 9 accept
add set inet foreign s { type ipv4_addr; elements = { 192.0.2.1 } }
"""


class Reports:
    """Takes what the agent publishes."""

    def __init__(self) -> None:
        self.status: list[Mapping[str, Any]] = []
        self.endpoints: dict[str, list[Mapping[str, Any] | None]] = {}

    def publish_status(self, payload: Mapping[str, Any]) -> None:
        self.status.append(payload)

    def publish_endpoint_status(self, namespace: str, name: str, payload: Mapping[str, Any] | None) -> None:
        self.endpoints.setdefault(name, []).append(payload)


class Node:
    """The stream, the kernel of this network, and the agent between them."""

    def __init__(self, backend: str, **changes: str) -> None:
        self.backend = backend
        self.source = SettingsSource(
            "test", {"NODENAME": NODE, **BACKENDS[backend], **NO_TIMERS, **changes}, local=True
        )
        self.settings: Settings
        self.settings, problems = resolve([self.source])
        assert not problems
        self.stream: dict[ResourceKey, Update] = {}
        self.reports = Reports()
        self.agent: Agent | None = None
        self.has_run = False
        self.task: asyncio.Task[None] | None = None
        for update in surroundings():
            self.stream[update.key] = update

    # --- stream --------------------------------------------------------------------------------------------------

    def publish(self, resource: Any) -> None:
        self._update(put(resource))

    def delete(self, key: ResourceKey) -> None:
        self._update(Update(key, None, received_ns=time.monotonic_ns()))

    def put_endpoint(self, number: int, **changes: Any) -> None:
        self.publish(endpoint(number, **changes))

    def delete_endpoint(self, number: int) -> None:
        self.delete(endpoint(number).key)

    def put_pool(self, name: str, cidr: str, *, nat_outgoing: bool) -> None:
        self.publish(IPPool(ResourceKey(Kind.IP_POOL, name), Net.parse(cidr), 26, nat_outgoing=nat_outgoing))

    def _update(self, update: Update) -> None:
        if update.resource is None:
            self.stream.pop(update.key, None)
        else:
            self.stream[update.key] = update
        if self.agent is not None:
            self.agent.update(update)

    # --- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start an agent; it finds the stream complete at once."""
        assert self.task is None
        self.has_run = False
        self.agent = Agent(self.settings, [self.source], status=self.reports)
        self.task = asyncio.create_task(self.agent.run())
        self._deliver(self.agent)

    async def stop(self) -> None:
        """End the agent, wherever it is, if it has not ended by itself; the kernel stays as it is."""
        if self.task is None:
            return
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.agent = self.task = None

    def _deliver(self, agent: Agent) -> None:
        for update in self.stream.values():
            agent.update(update._replace(received_ns=time.monotonic_ns()))
        agent.sync_status(SyncStatus(SyncState.IN_SYNC))

    # --- waiting -------------------------------------------------------------------------------------------------

    async def until(self, holds: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
        patience = Patience(seconds)
        while not holds():
            if self.task is not None and self.task.done():
                self._take_the_end(self.task)
            assert not patience.over(), f"not within {patience}: {self._state()}"
            await asyncio.sleep(0.002)

    def _take_the_end(self, task: asyncio.Task[None]) -> None:
        """An agent that was killed, or cannot read the kernel at its start, is started again as systemd would."""
        try:
            task.result()
        except Killed:
            pass
        except (OSError, FilterError):
            assert not self.has_run
        self.agent = self.task = None
        self.start()

    def idle(self) -> bool:
        """Nothing pending, nothing dirty, every family ready; and no comparison under way, such as follows a start."""
        agent = self.agent
        return (
            agent is not None
            and not agent.inbox
            and agent.is_ready()[0]
            and not any(table.dirty or table._readers for table in agent.dataplane.tables())
            and not (agent.comparisons.is_asked or agent.links._readers)
        )

    async def settled(self) -> None:
        """Wait until the kernel equals a calculation from scratch."""
        patience = Patience(PATIENCE_SECONDS)
        while True:
            await self.until(self.idle)
            plan = await self.from_scratch()
            if not plan:
                self.has_run = True
                return
            assert not patience.over(), plan
            await asyncio.sleep(0.02)

    async def from_scratch(self) -> list[tuple[str, ...]]:
        """What an agent that has just started would change."""
        agent = Agent(self.settings, [self.source])
        spared = sparing.set(True)
        try:
            await agent.open()
            self._deliver(agent)
            await agent.absorb()
            return [tuple(operation) for operation in agent.dataplane.plan()]
        finally:
            sparing.reset(spared)
            agent.close()

    def compare_everything(self) -> None:
        """What the refresh timers do."""
        assert self.agent is not None
        self.agent.comparisons.ask()

    def _state(self) -> Any:
        agent = self.agent
        if agent is None:
            return "no agent"
        tables = agent.dataplane.tables()
        return {
            "ready": agent.is_ready(),
            "failures": agent.failures,
            "pending": len(agent.inbox),
            "dirty": {table.name: sorted(map(str, table.dirty))[:5] for table in tables if table.dirty},
            "refused": {str(key): why for table in tables for key, why in table.refused.items()},
        }


def add_foreign_state() -> None:
    """What other programs have on the node; nothing of it may ever change."""
    sh(f"nft -f - <<'END'{FOREIGN}END")
    sh("ipset create foreign hash:net && ipset add foreign 198.18.0.0/15")
    for prefix in ("", "6"):
        for variant in ("legacy", "nft"):
            tables = f"ip{prefix}tables-{variant}"
            sh(f"{tables} -N FOREIGN && {tables} -A FORWARD -j FOREIGN && {tables} -A FOREIGN -j RETURN")
    sh("ip route add unreachable 198.18.1.0/24 proto 80; ip -6 route add unreachable 2001:db8:18::/48 proto 80")
    sh("ip route add blackhole 198.18.2.0/24 table 100; ip rule add from 198.18.2.0/24 table 100")
    sh(
        "ip link add foreign0 type veth peer name foreign1; ip link set foreign1 up; ip link set foreign0 up;"
        "ip addr add 198.18.9.1/24 dev foreign0"
    )
    sh("ip neigh add 198.18.9.9 lladdr 02:00:00:00:00:09 nud permanent dev foreign0")


def foreign_state() -> str:
    """All of it as the tools print it."""
    saves = "; ".join(f"ip{six}tables-{variant}-save" for six in ("", "6") for variant in ("legacy", "nft"))
    return sh(
        "nft -s list table inet foreign; ipset save foreign;"
        f"({saves}) 2>/dev/null | grep FOREIGN | sed 's/\\[.*\\]//';"
        "ip route show proto 80; ip -6 route show proto 80; ip route show table 100; ip rule show;"
        "ip route show dev foreign0; ip neigh show dev foreign0; ip route show default; ip -6 route show default"
    )
