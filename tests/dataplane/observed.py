"""An agent in the test's own process, and everything that it asks of the kernel: messages, processes, sysctl writes."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from felixpy.agent.agent import Agent, StatusPublisher
from felixpy.config import SettingsSource, resolve
from felixpy.dataplane.backend import Backend
from felixpy.demo.patience import Patience, limit
from felixpy.model.resources import Resource, ResourceKey, Update
from felixpy.netlink import nftables, rtnetlink
from felixpy.netlink.message import NLM_F_DUMP, Request
from felixpy.netlink.transport import NETLINK_NETFILTER, NetlinkSocket
from felixpy.netlink.xtables import NFNL_SUBSYS_NFT_COMPAT
from felixpy.sources import SyncState, SyncStatus

PATIENCE_SECONDS, QUIET_LOOKS = 30.0, 10
_RT = {value: name for name, value in vars(rtnetlink).items() if name.startswith("RTM_")}
_NFT = {
    getattr(nftables, name): name for name in ("NEWTABLE", "DELTABLE", "NEWCHAIN", "DELCHAIN", "NEWRULE", "DELRULE")
}
_NFT |= {getattr(nftables, name): name for name in ("NEWSET", "DELSET", "NEWSETELEM", "DELSETELEM")}
_IPSET = {2: "CREATE", 3: "DESTROY", 4: "FLUSH", 5: "RENAME", 6: "SWAP", 7: "LIST", 9: "ADD", 10: "DEL", 13: "TYPE"}
IPSET = 6
_QUESTIONS = {"ipset LIST", "ipset TYPE", "xtables GET"}  # the latter two are no dumps but ask only


def name_of(protocol: int, request: Request) -> str:
    """``RTM_NEWROUTE``, ``nft NEWSETELEM``, ``ipset ADD``, ``batch`` (the frame of a transaction)."""
    if protocol != NETLINK_NETFILTER:
        return _RT.get(request.type, str(request.type))
    subsystem, command = request.type >> 8, request.type & 0xFF
    if subsystem == 0:
        return "batch"
    if subsystem == nftables.NFNL_SUBSYS_NFTABLES:
        return f"nft {_NFT.get(command, command)}"
    if subsystem == NFNL_SUBSYS_NFT_COMPAT and command == 0:
        return "xtables GET"
    return f"ipset {_IPSET.get(command, command)}" if subsystem == IPSET else f"conntrack {command}"


@dataclass
class Observed:
    """What was asked of the kernel since the last ``clear``."""

    writes: Counter[str] = field(default_factory=Counter)
    sends: int = 0
    bytes: int = 0
    dumps: int = 0
    processes: list[str] = field(default_factory=list)
    sysctls: list[str] = field(default_factory=list)

    def clear(self) -> None:
        self.writes.clear()
        self.processes.clear()
        self.sysctls.clear()
        self.sends = self.bytes = self.dumps = 0

    def cost(self) -> dict[str, Any]:
        """All that was written, without what was only read."""
        return {
            "messages": dict(self.writes), "sends": self.sends, "bytes": self.bytes,
            "processes": list(self.processes), "sysctls": sorted(path.rpartition("/")[2] for path in self.sysctls),
        }  # fmt: skip

    def sent(self, protocol: int, requests: Sequence[Request]) -> None:
        asked = [request for request in requests if request.flags & NLM_F_DUMP == NLM_F_DUMP]
        names = [name_of(protocol, request) for request in requests]
        if asked or set(names) <= _QUESTIONS:
            self.dumps += len(requests)
            return
        self.writes.update(names)
        self.sends += 1
        self.bytes += sum(16 + len(request.payload) for request in requests)

    def event(self, name: str, arguments: tuple[Any, ...]) -> None:
        """An audit event of this process."""
        if name in ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.exec"):
            words = arguments[1] if name == "subprocess.Popen" else [name]
            self.processes.append(" ".join(map(str, words)))
        elif name == "open" and str(arguments[0]).startswith("/proc/sys/") and int(arguments[2]) & os.O_ACCMODE:
            self.sysctls.append(str(arguments[0]))


_listening: list[Observed] = []


def _audit(name: str, arguments: tuple[Any, ...]) -> None:
    for one in _listening:
        one.event(name, arguments)


_hooked: list[bool] = []


@contextmanager
def observe() -> Iterator[Observed]:
    """Look over the shoulder of every ``NetlinkSocket`` and of the process; nothing behaves otherwise for it."""
    if not _hooked:  # an audit hook stays for the life of the process
        sys.addaudithook(_audit)
        _hooked.append(True)
    observed, send = Observed(), NetlinkSocket._send

    def observed_send(self: NetlinkSocket, requests: Sequence[Request], ack_at: int) -> None:
        observed.sent(self._protocol, requests)
        send(self, requests, ack_at)

    NetlinkSocket._send = observed_send  # type: ignore[method-assign]
    _listening.append(observed)
    try:
        yield observed
    finally:
        NetlinkSocket._send = send  # type: ignore[method-assign]
        _listening.remove(observed)


BACKENDS = {
    Backend.NFTABLES: {"NFTablesMode": "Enabled"},
    Backend.LEGACY: {"NFTablesMode": "Disabled", "IptablesBackend": "Legacy"},
    Backend.NFT_VARIANT: {"NFTablesMode": "Disabled", "IptablesBackend": "NFT"},
}


def source_for(backend: Backend, **others: str) -> SettingsSource:
    """Settings of node ``n1`` as its environment would give them."""
    return SettingsSource("test", {"FelixHostname": "n1", **BACKENDS[backend], **others})


def make_agent(source: SettingsSource, status: StatusPublisher | None = None) -> Agent:
    settings, problems = resolve([source])
    assert not problems
    return Agent(settings, [source], status=status)


class InProcess:
    """A running agent, its stream, and what it reports."""

    def __init__(self, source: SettingsSource) -> None:
        self._others = _children()  # of other tests in this process
        self.agent = make_agent(source, self)
        self.reported: dict[str, Mapping[str, Any] | None] = {}
        self._news = asyncio.Event()

    def publish_status(self, payload: Mapping[str, Any]) -> None:
        self._news.set()

    def publish_endpoint_status(self, namespace: str, name: str, payload: Mapping[str, Any] | None) -> None:
        self.reported[name] = payload
        self._news.set()

    def put(self, *resources: Resource) -> None:
        for resource in resources:
            self.reported.pop(resource.key.name, None)
            self.agent.update(Update(resource.key, resource))

    def drop(self, *keys: ResourceKey) -> None:
        for key in keys:
            self.agent.update(Update(key, None))

    def in_sync(self) -> None:
        self.agent.sync_status(SyncStatus(SyncState.IN_SYNC))

    async def up(self, *names: str) -> None:
        """Wait until endpoints are reported to be up."""
        async with limit(PATIENCE_SECONDS):
            while any((self.reported.get(name) or {}).get("state") != "up" for name in names):
                self._news.clear()
                await self._news.wait()

    async def idle(self) -> None:
        """Wait until the stream is taken in, nothing is left to write, and the agent sleeps.

        The rules that iptables-nft-restore wrote come back as notifications, and are read again once.
        """
        quiet, patience = 0, Patience(PATIENCE_SECONDS)
        while quiet < QUIET_LOOKS:
            passes = self.agent.last_progress
            await asyncio.sleep(0.005)
            busy = self._busy_with()
            quiet = quiet + 1 if not busy and self.agent.last_progress == passes else 0
            assert not patience.over(), busy

    def _busy_with(self) -> list[object]:
        agent = self.agent
        unready = agent.is_ready()[1] if not agent.is_ready()[0] else ""
        children = _children() - self._others
        dirty = [table.dirty for table in agent.dataplane.tables() if table.dirty]
        doubts = agent.watch._doubts or None
        comparing = agent.comparisons.is_asked or [table.name for table in agent.dataplane.tables() if table._readers]
        comparing = comparing or agent.links._readers  # everything is, right after the start
        found = (unready, agent.inbox, agent._wake.is_set(), doubts, dirty, children, comparing)
        return [one for one in found if one]


def _children() -> set[str]:
    """Processes that this thread has started and that have not ended."""
    return set(Path("/proc/thread-self/children").read_text().split())


@asynccontextmanager
async def running(source: SettingsSource) -> AsyncIterator[InProcess]:
    """An agent that runs, until the end of the block; the kernel stays as it is."""
    node = InProcess(source)
    task = asyncio.create_task(node.agent.run())
    try:
        yield node
    finally:
        task.cancel()
        outcome = (await asyncio.gather(task, return_exceptions=True))[0]
    assert isinstance(outcome, asyncio.CancelledError), outcome
