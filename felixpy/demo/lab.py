"""The lab: two nodes, workloads, an outside host and a broker in private namespaces, up in well under a second.

``async with Lab(Mode.DUAL) as lab`` builds it and takes everything away again, also on failure. It never touches the
machine's own network; two labs never meet, so tests run side by side.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import aiomqtt
from aiomqtt import ProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from felixpy.demo import topology
from felixpy.demo.agent import Agent
from felixpy.demo.host import Host, LabError, stop_process
from felixpy.demo.patience import limit
from felixpy.demo.topology import NODES, PODS, Mode, NodeSpec, PodSpec
from felixpy.model.net import Family

BROKER_PORT = 1883
BROKER_START_S = 20.0
TOPIC_ROOT = "felixpy/v1"


class Lab:
    """A running lab. Hosts: ``ext``, ``node(name)``, ``pod(name)``, and ``fabric`` with the broker."""

    def __init__(self, mode: Mode = Mode.DUAL, pods: Sequence[PodSpec] = PODS) -> None:
        self.mode = mode
        self.pods = tuple(pods)
        self.hosts: dict[str, Host] = {}
        self.agents: dict[str, Agent] = {}
        self.status: dict[str, dict[str, Any]] = {}
        self.status_changed = asyncio.Event()
        self._folder = tempfile.TemporaryDirectory(prefix="felixpy-lab-")
        self._mosquitto: asyncio.subprocess.Process | None = None
        self._mqtt: aiomqtt.Client | None = None
        self._follower: asyncio.Task[None] | None = None

    # --- what is in it -------------------------------------------------------------------------------------------

    @property
    def families(self) -> tuple[Family, ...]:
        return self.mode.families

    @property
    def folder(self) -> Path:
        """The lab's own temporary folder, gone with the lab."""
        return Path(self._folder.name)

    @property
    def ext(self) -> Host:
        return self.hosts["ext"]

    @property
    def fabric(self) -> Host:
        return self.hosts["fabric"]

    def node(self, name: str) -> Host:
        return self.hosts[name]

    def pod(self, name: str) -> Host:
        return self.hosts[name]

    # --- life ----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Lab:
        try:
            await self._start_hosts()
            await self._build()
            await self._serve()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End every process of the lab; the kernel then removes the namespaces and all that is in them."""
        if self._follower:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)
        await asyncio.gather(*(agent.kill() for agent in self.agents.values()))
        if self._mosquitto:
            await stop_process(self._mosquitto)
        await asyncio.gather(*(host.close() for host in self.hosts.values()))
        self._folder.cleanup()

    async def _start_hosts(self) -> None:
        wanted: list[NodeSpec | PodSpec] = [*NODES, *self.pods]
        starting = [Host.start("fabric", topology.BROKER), Host.start("ext", topology.EXT)]
        starting += [Host.start(spec.name, spec.addresses) for spec in wanted]
        results = await asyncio.gather(*starting, return_exceptions=True)
        self.hosts = {result.name: result for result in results if isinstance(result, Host)}
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _build(self) -> None:
        mode = self.mode
        cabled = {name: self.hosts[name].pid for name in ("ext", *(node.name for node in NODES))}
        await self.fabric.ip(topology.fabric_commands(mode, cabled))
        tasks = [self.ext.ip(topology.ext_commands(mode))]
        for node in NODES:
            pods = {pod: self.hosts[pod.name].pid for pod in self.pods if pod.node == node.name}
            tasks.append(self.hosts[node.name].ip(topology.node_commands(mode, node, pods)))
        await asyncio.gather(*tasks)
        await asyncio.gather(*(self.hosts[pod.name].ip(topology.pod_commands(mode, pod)) for pod in self.pods))

    async def _serve(self) -> None:
        listening: list[Coroutine[Any, Any, None]] = []
        for family in self.families:
            listening += [host.listen(host.address(family)) for name, host in self.hosts.items() if name != "fabric"]
            listening.append(self.ext.listen(topology.INTERNET[family]))
        await asyncio.gather(*listening)

    # --- broker --------------------------------------------------------------------------------------------------

    @property
    def broker(self) -> str:
        """The broker's address as nodes reach it."""
        return topology.BROKER[self.families[0]]

    @property
    def _broker_socket(self) -> Path:
        return self.folder / "mqtt.sock"

    async def start_broker(self) -> None:
        """Start Mosquitto on the fabric and follow what the agents report.

        Raises:
            LabError: Mosquitto does not start.
        """
        log = self.folder / "mosquitto.log"
        config = self.folder / "mosquitto.conf"
        listeners = [f"listener {BROKER_PORT} {topology.BROKER[family]}" for family in self.families]
        options = [
            *listeners,
            f"listener 0 {self._broker_socket}",
            "allow_anonymous true",
            "persistence false",
            "max_queued_messages 200000",
            "set_tcp_nodelay true",
            "user root",  # a changed user would clear the death signal
        ]
        config.write_text("\n".join(options) + "\n")
        with log.open("wb") as output:
            self._mosquitto = await self.fabric.spawn("mosquitto", "-c", str(config), output=output)
        self._mqtt = aiomqtt.Client(
            str(self._broker_socket), transport="unix", identifier="felixpy-lab", protocol=ProtocolVersion.V5
        )
        connected: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            async with limit(BROKER_START_S):
                await self._listening()
                self._follower = asyncio.create_task(self._follow(self._mqtt, connected))
                await connected
        except (TimeoutError, aiomqtt.MqttError) as error:
            said = log.read_text().strip().splitlines()
            raise LabError(f"Mosquitto did not start in the lab: {said[-1] if said else error}") from error

    async def _follow(self, client: aiomqtt.Client, connected: asyncio.Future[None]) -> None:
        async with client:
            await client.subscribe(f"{TOPIC_ROOT}/status/#", qos=1)
            connected.set_result(None)
            async for message in client.messages:
                payload = bytes(message.payload) if isinstance(message.payload, (bytes, bytearray)) else b""
                key = message.topic.value.removeprefix(f"{TOPIC_ROOT}/status/")
                if payload:
                    self.status[key] = json.loads(payload)
                else:
                    self.status.pop(key, None)
                self.status_changed.set()

    async def _listening(self) -> None:
        """Wait until the broker accepts connections, which is a little later than its socket is there."""
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_unix_connection(self._broker_socket)
                writer.close()
                return
            await asyncio.sleep(0.01)

    async def publish(self, topic: str, payload: bytes) -> None:
        """Publish one retained message under the topic root; an empty payload deletes."""
        if self._mqtt is None:
            raise LabError("the lab has no broker yet; call start_broker first")
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.UserProperty = ("ts", str(time.time_ns()))
        await self._mqtt.publish(f"{TOPIC_ROOT}/{topic}", payload, qos=1, retain=True, properties=properties)

    # --- agents --------------------------------------------------------------------------------------------------

    def agent_environment(self, node: str, extra: dict[str, str] | None = None) -> dict[str, str]:
        """Settings with which an agent on ``node`` finds the broker and knows its families."""
        return {
            "NODENAME": node,
            "FELIX_MQTTHOST": self.broker,
            "FELIX_MQTTPORT": str(BROKER_PORT),
            "FELIX_IPV4SUPPORT": str(Family.V4 in self.families).lower(),
            "FELIX_IPV6SUPPORT": str(Family.V6 in self.families).lower(),
            **(extra or {}),
        }

    async def start_agent(self, node: str, env: dict[str, str] | None = None) -> Agent:
        """Start ``felixpy run`` on a node; wait for it with ``Agent.wait_ready``."""
        log = self.folder / f"{node}.log"
        agent = await Agent.start(self, node, self.agent_environment(node, env), log)
        self.agents[node] = agent
        return agent

    async def felixpy(self, *arguments: str, env: dict[str, str] | None = None, check: bool = True) -> str:
        """Run a ``felixpy`` command beside the broker, as a person would, and return what it prints."""
        return await Agent.command(self.fabric, self.agent_environment("fabric", env), *arguments, check=check)
