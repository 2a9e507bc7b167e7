"""A node's agent in the network of this process, told what to do by lines of JSON.

    {"do": "start", "backend": "nftables", "node": "n1"}
    {"do": "apply", "put": [objects], "drop": [[kind, name, namespace]], "complete": true}
    {"do": "count"}    who decided about how many packets: [[action, direction, tier, policy, packets], …]
    {"do": "stop", "clean": true}

Each line is answered by one when the kernel holds what is wanted. Everything from the object to the kernel is the
agent's own code; only the stream is these lines.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from felixpy.agent.agent import Agent
from felixpy.agent.policy_counts import PolicyCounts
from felixpy.config import Settings, SettingsSource, resolve
from felixpy.dataplane.backends import remove_leftovers
from felixpy.demo.patience import Patience
from felixpy.model.invalid import InvalidResource
from felixpy.model.net import FAMILIES, parse_address
from felixpy.model.parse import parse_resource
from felixpy.model.resources import Absent, Kind, ResourceKey, Update
from felixpy.sources import SyncState, SyncStatus
from felixpy.standing import Standing
from tests.netns import private_run

PATIENCE_S = 120.0
BACKENDS = {
    "nftables": ("Enabled", "Auto"),
    "legacy": ("Disabled", "Legacy"),
    "nft": ("Disabled", "NFT"),
}


class Node:
    def __init__(self) -> None:
        self.agent: Agent | None = None
        self.task: asyncio.Task[None] | None = None
        self.settings = Settings()

    async def do(self, command: dict[str, Any]) -> dict[str, Any]:
        match command["do"]:
            case "start":
                return await self.start(command)
            case "apply":
                return await self.apply(command)
            case "count":
                return {"packets": await self.count()}
            case "stop":
                return await self.stop(clean=command.get("clean", False))
            case other:
                raise ValueError(other)

    async def start(self, command: dict[str, Any]) -> dict[str, Any]:
        mode, backend = BACKENDS[command["backend"]]
        families = command.get("families", (4, 6))
        source = SettingsSource(
            "environment",
            {
                "FelixHostname": command["node"],
                "NFTablesMode": mode,
                "IptablesBackend": backend,
                "IPv4Support": str(4 in families),
                "Ipv6Support": str(6 in families),
                "EndpointWithoutProfileAction": command.get("without_profile", "Deny"),
                **command.get("settings", {}),
            },
        )
        self.settings, problems = resolve([source])
        assert not problems, problems
        self.agent = Agent(self.settings, [source])
        self.task = asyncio.create_task(self.agent.run())
        return {}

    async def apply(self, command: dict[str, Any]) -> dict[str, Any]:
        agent, task = self.agent, self.task
        assert agent is not None
        assert task is not None
        problems = []
        for obj in command.get("put", ()):
            try:
                made = parse_resource(obj, problems.append)
            except InvalidResource as error:
                problems.append(f"{obj['kind']} {obj['metadata']['name']}: {error}")
                continue
            if made is None or isinstance(made, Absent):
                problems.append(f"{obj['kind']} {obj['metadata']['name']} is nothing to the agent")
                continue
            agent.update(Update(made.key, made))
        for kind, name, namespace in command.get("drop", ()):
            agent.update(Update(ResourceKey(Kind(kind), name, namespace), None))
        for address, port in command.get("in_use", ()):
            agent.will_ask(parse_address(address), port)
        before = sum(table.drifted for table in agent.dataplane.tables())
        sends = self.sends()
        if command.get("complete", True):
            agent.sync_status(SyncStatus(SyncState.IN_SYNC))
        agent._wake_up()
        patience = Patience(PATIENCE_S)
        quiet = 0
        while quiet < 2:
            if task.done():
                task.result()
                raise RuntimeError("the agent ended")
            if patience.over():
                waiting = [str(operation) for operation in agent.dataplane.plan()][:20]
                raise RuntimeError(f"not settled: {waiting}, {agent.failures}")
            await asyncio.sleep(0.005)
            settled = not agent.inbox and agent.complete and agent.dataplane.is_settled and not agent._wake.is_set()
            quiet = quiet + 1 if settled else 0
        drifted = sum(table.drifted for table in agent.dataplane.tables()) - before
        told = {str(key): words for key, words in agent.calculation.problems.items()}
        return {"problems": problems, "told": told, "drifted": drifted, "sends": self.sends() - sends}

    def sends(self) -> int:
        assert self.agent is not None
        return sum(socket.messages_sent for socket in self.agent.dataplane.sockets().values())

    async def count(self) -> list[list[Any]]:
        assert self.agent is not None
        metrics = self.agent.metrics
        await PolicyCounts(self.agent, Standing(), self.agent._calm).read()  # another one may have read just now
        return [[*decider, total] for decider, total in metrics.policy_packets.totals.items()]

    async def stop(self, *, clean: bool) -> dict[str, Any]:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        self.agent = self.task = None
        problems = await remove_leftovers(None, FAMILIES, self.settings) if clean else []
        return {"problems": problems}


async def main() -> None:
    private_run()  # the lock of iptables is the node's own
    reader = asyncio.StreamReader(limit=1 << 26)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    answers = sys.stdout
    sys.stdout = sys.stderr  # what is logged is no answer
    node = Node()
    while line := await reader.readline():
        try:
            answer = await node.do(json.loads(line))
        except Exception as error:  # noqa: BLE001 - the other side has to know, whatever it was
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    await node.stop(clean=False)


if __name__ == "__main__":
    asyncio.run(main())
