"""An agent in this process with its source, and the ways to change its stream and to see all that it says and does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import aiomqtt
from msgspec.structs import replace
from structlog.testing import capture_logs

from felixpy.agent.agent import Agent
from felixpy.agent.own_node import OwnNode
from felixpy.config import SettingsSource, load_environment, resolve
from felixpy.demo.patience import Patience
from felixpy.demo.resources import Object, ip_pool, v3
from felixpy.sources.directory import DirectorySource
from felixpy.sources.ending import end
from felixpy.sources.mqtt import MqttSource
from tests.broker import Broker
from tests.kernel import ip_json, run

NODE = "n1"
ROOT = "felixpy/v1"
PATIENCE_S = 3.0
QUIET_S = 0.15
NFTABLES = {"FELIX_NFTABLESMODE": "Enabled"}
LEGACY = {"FELIX_NFTABLESMODE": "Disabled", "FELIX_IPTABLESBACKEND": "Legacy"}
NFT = {"FELIX_NFTABLESMODE": "Disabled", "FELIX_IPTABLESBACKEND": "NFT"}
_OF_THE_KERNEL = re.compile("proto kernel|expires")
"""Routes that the kernel makes by itself, some of them a while after their interface."""

TOPICS = {"IPPool": "ippool", "Node": "node", "IPAMBlock": "block", "FelixConfiguration": "felixconfig"}


def endpoint(name: str, number: int, *, interface: str = "", **spec: Any) -> Object:
    """A dual-stack endpoint ``10.48.0.<number>``, ``fd00:48::<number>`` on ``cali<number>``; ``spec`` replaces."""
    return v3(
        "WorkloadEndpoint",
        name,
        {
            "node": NODE,
            "interfaceName": interface or f"cali{number}",
            "ipNetworks": [f"10.48.0.{number}/32", f"fd00:48::{number}/128"],
            "mac": f"ee:ee:ee:ee:ee:{number:02x}",
            **spec,
        },
        "default",
    )


GOOD = endpoint("good", 1)
"""The neighbour that nothing may disturb."""

POOLS = [
    ip_pool("four", "10.48.0.0/16", natOutgoing=True),
    ip_pool("six", "fd00:48::/64", natOutgoing=True),
]


def topic_of(document: Object) -> str:
    metadata = document["metadata"]
    if document["kind"] == "WorkloadEndpoint":
        return f"wep/{document['spec']['node']}/{metadata['namespace']}/{metadata['name']}"
    return f"{TOPICS[document['kind']]}/{metadata['name']}"


class Stream:
    """Publishes as a person with ``mosquitto_pub -r`` would, and follows every status topic."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self._client = client
        self.status: dict[str, dict[str, Any]] = {}
        self.states: dict[str, dict[str, Any]] = {}
        """What nodes say of themselves."""
        self.history: list[tuple[str, dict[str, Any]]] = []

    async def put(self, *documents: Object) -> None:
        for document in documents:
            await self.raw(topic_of(document), json.dumps(document).encode())

    async def raw(self, topic: str, payload: bytes) -> None:
        """An empty payload deletes."""
        await self._client.publish(f"{ROOT}/{topic}", payload, qos=1, retain=True)

    async def follow(self) -> None:
        async for message in self._client.messages:
            key = message.topic.value.removeprefix(f"{ROOT}/status/")
            if (name := key.removeprefix(f"{ROOT}/nodestate/")) != key:
                self.states[name] = json.loads(bytes(message.payload) or b"{}")
            elif message.payload:
                self.status[key] = json.loads(bytes(message.payload))
                self.history.append((key, self.status[key]))
            else:
                self.status.pop(key, None)


@contextlib.asynccontextmanager
async def stream_to(broker: Broker) -> AsyncIterator[Stream]:
    async with aiomqtt.Client("127.0.0.1", broker.port) as client:
        await client.subscribe([(f"{ROOT}/status/#", 1), (f"{ROOT}/nodestate/#", 1)])
        stream = Stream(client)
        follower = asyncio.create_task(stream.follow())
        try:
            yield stream
        finally:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)


class Running:
    """A running agent and what it said: ``log`` are its events."""

    def __init__(self, agent: Agent, stream: Stream, log: list[Any]) -> None:
        self.agent = agent
        self.stream = stream
        self.log = log

    async def until(self, condition: Callable[[], object], what: str = "") -> None:
        patience = Patience(PATIENCE_S)
        while not condition():
            assert not patience.over(), f"{what} never came; said: {self.log[-12:]} {self.stream.status}"
            await asyncio.sleep(0.01)

    async def in_sync(self) -> None:
        await self.until(lambda: self.stream.status.get(NODE, {}).get("state") == "in-sync", "in-sync")

    def events(self, event: str, **fields: str) -> list[Any]:
        """Log events with these fields."""
        return [
            each for each in self.log if each["event"] == event and all(each.get(k) == v for k, v in fields.items())
        ]

    @property
    def problems(self) -> dict[str, str]:
        return {str(key): reason for key, reason in self.agent.outcome.problems.items()}

    def metric(self, name: str, **labels: str) -> float:
        return self.agent.metrics.registry.get_sample_value(name, labels) or 0.0

    async def quiet(self) -> None:
        """Until the agent has done what there is to do, and for a moment longer."""
        patience, calm, passes = Patience(PATIENCE_S), Patience(QUIET_S), self.agent.last_progress
        while not calm.over():
            await asyncio.sleep(0.01)
            if self._is_busy() or self.agent.last_progress != passes:
                calm, passes = Patience(QUIET_S), self.agent.last_progress
            assert not patience.over(), f"never quiet; said: {self.log[-12:]}"

    def _is_busy(self) -> bool:
        """What waits for an interface, or is refused, may be so for good."""
        agent = self.agent
        reads = agent.comparisons.is_asked or agent.links._readers
        return bool(agent.inbox or reads or any(table._readers for table in agent.dataplane.tables()))

    async def endpoint_is(self, name: str, state: str, reason: str = "") -> dict[str, Any]:
        """Wait for an endpoint's status topic; returns its payload."""

        def seen() -> dict[str, Any]:
            return self.stream.status.get(f"{NODE}/wep/default/{name}", {})

        await self.until(lambda: seen().get("state") == state and reason in seen()["reason"], f"{name} {state}")
        return seen()


@contextlib.asynccontextmanager
async def running(
    broker: Broker,
    environ: Mapping[str, str] = NFTABLES,
    *,
    directory: Path | None = None,
    file: Path | None = None,
    introduces: Mapping[str, str] | None = None,
) -> AsyncIterator[Running]:
    """An agent that follows the broker (or a directory, with its status seen nowhere) until the block ends.

    ``introduces``: it says itself what it is, by these variables.
    """
    variables = {
        "NODENAME": NODE,
        "FELIX_MQTTHOST": "" if directory else "127.0.0.1",
        "FELIX_MQTTPORT": str(broker.port),
        "FELIX_SNAPSHOTQUIETTIME": "0.1",
        "FELIX_SNAPSHOTTIMEOUT": "0.6",
        **environ,
    }
    sources = [load_environment(variables)]
    if file is not None:
        from felixpy.config import load_toml

        sources.append(load_toml(file))
    with capture_logs() as log:
        async with stream_to(broker) as stream:
            agent, tasks = _start(sources, directory, introduces)
            try:
                yield Running(agent, stream, log)
                for task in tasks:
                    if task.done():
                        task.result()
            finally:
                await end(tasks, 3.0)


def _start(
    sources: list[SettingsSource], directory: Path | None, introduces: Mapping[str, str] | None
) -> tuple[Agent, list[asyncio.Task[None]]]:
    settings, problems = resolve(sources)
    assert not problems
    settings = replace(settings, nodename=NODE)
    mqtt = None if directory else MqttSource(settings, NODE)
    agent = Agent(settings, sources, status=mqtt)
    source = mqtt or DirectorySource(directory or Path())
    parts = [agent.run(), source.run(agent)]
    if introduces is not None and mqtt is not None:
        parts.append(OwnNode(agent, mqtt.publish_node_state, environment=introduces).run())
        agent.introduces_itself = True
    return agent, [asyncio.create_task(part) for part in parts]


# --- the kernel --------------------------------------------------------------------------------------------------


def routes(*selectors: str) -> set[str]:
    """Destinations of our routes, both families, as ``ip`` prints them."""
    found = [
        *ip_json("-4", "route", "show", "proto", "222", *selectors),
        *ip_json("-6", "route", "show", "proto", "222", *selectors),
    ]
    return {str(route["dst"]) for route in found}


def members(name: str) -> set[str]:
    """Members of a set in both families, as ``nft`` prints them, in the nftables back-end."""
    found: set[str] = set()
    for family in ("ip", "ip6"):
        text = run("nft", "list", "set", family, "felixpy", name)
        if "elements = {" in text:
            inside = text.partition("elements = {")[2].partition("}")[0]
            found |= {" ".join(each.split()) for each in inside.split(",")}
    return found


def state_of(interface: str) -> str:
    """What felixpy keeps of one workload's interface."""
    lines = dump().splitlines()
    own = [line for line in lines if f" dev {interface} " in line or f"/{interface}/" in line]
    own += sorted(
        member for name in ("from-workload", "to-workload") for member in members(name) if interface in member
    )
    return "\n".join(own)


def dump(*, sysctls: bool = True) -> str:
    """Everything that felixpy could change in this network, as text."""
    commands = [
        ("nft", "-s", "list", "ruleset"),
        ("ip", "-4", "route", "show", "table", "all"),
        ("ip", "-6", "route", "show", "table", "all"),
        ("ip", "-4", "neigh", "show", "nud", "permanent"),
        ("ip", "-6", "neigh", "show", "nud", "permanent"),
        ("ipset", "save"),
    ]
    if sysctls:
        commands.append(("grep", "-rHs", ".", *map(str, _sysctl_files())))
    if _legacy_in_use():  # asking would otherwise make the tables
        commands += [("iptables-legacy-save",), ("ip6tables-legacy-save",)]
    lines = "\n".join(run(*command) for command in commands).splitlines()
    return "\n".join(line for line in lines if not line.startswith(("#", ":")) and not _OF_THE_KERNEL.search(line))


def _sysctl_files() -> list[Path]:
    names = ("forwarding", "proxy_arp", "accept_ra", "rp_filter", "route_localnet")
    return sorted(file for name in names for file in Path("/proc/sys/net").glob(f"ipv*/conf/*/{name}"))


def _legacy_in_use() -> bool:
    return any(Path(f"/proc/net/{name}_tables_names").read_text().split() for name in ("ip", "ip6"))
