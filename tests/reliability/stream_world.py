"""A node for tests of the stream: a network of its own with Mosquitto, one real agent process and the real kernel.

Kernel state is read with the ``nft`` tool and followed with ``nft monitor``; what the agent says is what it publishes.
Endpoints have no interface here: their set members are written all the same, and are what the tests count.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ParamSpec

import aiomqtt

from felixpy.demo.patience import Patience
from felixpy.mqtt.ledger import counted
from felixpy.mqtt.manifest import Manifest
from felixpy.mqtt.publisher import open_publisher
from tests.broker import Broker
from tests.reliability.mqtt_wire import publish

NODE = "n1"
ROOT = "felixpy/v1"
PROJECT = Path(__file__).parents[2]
PATIENCE_S = 60.0
ANONYMOUS = ("allow_anonymous true",)

_DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")
P = ParamSpec("P")
Objects = Mapping[str, Any]
"""Topic below the root → object, bytes, or None for a deletion."""


def scenario(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run an ``async def`` test to its end on a loop of its own."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))  # type: ignore[arg-type]

    return run


# --- objects -----------------------------------------------------------------------------------------------------


def endpoint(number: int, *, name: str = "", interface: str = "", at: int | None = None) -> dict[str, Any]:
    """Endpoint ``w<number>`` with one address per family; ``at``: the number that its addresses are made of."""
    name, at = name or f"w{number}", number if at is None else at
    return {
        "apiVersion": "projectcalico.org/v3",
        "kind": "WorkloadEndpoint",
        "metadata": {"name": name, "namespace": f"ns{number % 5}"},
        "spec": {
            "node": NODE,
            "orchestrator": "k8s",
            "pod": name,
            "endpoint": "eth0",
            "interfaceName": interface or f"cali{number}",
            "ipNetworks": [f"10.{at >> 16}.{at >> 8 & 255}.{at & 255}/32", f"fd00:10::{at:x}/128"],
        },
    }


def endpoint_topic(number: int) -> str:
    return f"wep/{NODE}/ns{number % 5}/w{number}"


def endpoints(numbers: Iterable[int]) -> dict[str, Any]:
    return {endpoint_topic(number): endpoint(number) for number in numbers}


def pool(cidr: str = "10.0.0.0/8", **spec: Any) -> dict[str, Any]:
    metadata = {"name": "pool"}
    return {
        "apiVersion": "projectcalico.org/v3",
        "kind": "IPPool",
        "metadata": metadata,
        "spec": {"cidr": cidr, "natOutgoing": True, **spec},
    }


def encode(value: Any) -> bytes:
    if value is None:
        return b""
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def manifests(objects: Objects, *, epoch: str = "one", rev: int = 1) -> dict[str, bytes]:
    """True manifests of both scopes."""
    content = {topic: encode(value) for topic, value in objects.items()}
    return {
        f"sync/{scope}": _manifest({t: p for t, p in content.items() if t.startswith("wep/") is own}, epoch, rev)
        for scope, own in (("shared", False), (f"node/{NODE}", True))
    }


def _manifest(content: Mapping[str, bytes], epoch: str, rev: int) -> bytes:
    return counted(content, Manifest({}, epoch=epoch, rev=rev - 1), epoch).manifest().encode()


# --- the kernel --------------------------------------------------------------------------------------------------

Member = tuple[str, str]
"""Address and interface."""


def pairs(numbers: Iterable[int]) -> set[Member]:
    """The set members that endpoints must have, of both families."""
    found = set()
    for number in numbers:
        four, six = (address.partition("/")[0] for address in endpoint(number)["spec"]["ipNetworks"])
        found |= {(four, f"cali{number}"), (six, f"cali{number}")}
    return found


def _nft(*arguments: str) -> str:
    done = subprocess.run(["nft", *arguments], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


def kernel_pairs(name: str = "from-workload") -> set[Member]:
    """Members of a set of pairs in both families; empty if there is no such set."""
    found: set[Member] = set()
    for family in ("ip", "ip6"):
        text = _nft("-j", "list", "set", family, "felixpy", name)
        for item in json.loads(text)["nftables"] if text else ():
            for member in item.get("set", {}).get("elem", ()):
                found.add(tuple(member["concat"]))
    return found


def kernel_pools() -> str:
    return _nft("list", "set", "ip", "felixpy", "pools")


def kernel() -> str:
    """Everything of ours, as text that is equal if and only if the state is."""
    return "".join(
        sorted((_nft("list", "table", "ip", "felixpy") + _nft("list", "table", "ip6", "felixpy")).split("\n"))
    )


class Monitor:
    """Changes of nf_tables while it runs, as ``nft monitor`` prints them."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / f"monitor-{time.monotonic_ns()}"
        with self._file.open("wb") as output:
            command = [*_DIE_WITH_PARENT, "nft", "monitor"]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    async def ready(self) -> Monitor:
        """Wait until it sees what happens."""
        await self.lines()
        return self

    async def lines(self) -> list[str]:
        """All changes so far but those of the monitor's own probes."""

        def seen() -> bool:
            name = f"probe{time.monotonic_ns()}"
            _nft("add", "table", "inet", name)
            _nft("delete", "table", "inet", name)
            time.sleep(0.01)
            return f"delete table inet {name}" in self._file.read_text()

        await until(seen)
        lines = self._file.read_text().splitlines()
        return [line for line in lines if "inet probe" not in line and not line.startswith("#")]

    async def pairs(self, verb: str, name: str = "from-workload") -> list[Member]:
        """Members of a set that were added (``add``) or removed (``delete``), in order."""
        wanted = re.compile(rf'{verb} element ip6? felixpy {name} {{ (\S+) \. "(\S+)"')
        return [match.group(1, 2) for line in await self.lines() if (match := wanted.match(line))]

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


# --- the world ---------------------------------------------------------------------------------------------------


async def until(condition: Callable[[], object], seconds: float = PATIENCE_S, why: Callable[[], object] = str) -> None:
    patience = Patience(seconds)
    while not condition():
        assert not patience.over(), f"not within {patience}: {why()}"
        await asyncio.sleep(0.01)


class World:
    """Broker, agent and what they say. Use ``World.made``."""

    def __init__(self, folder: Path, config: tuple[str, ...]) -> None:
        self.folder = folder
        self.broker = Broker(folder, config)
        self.history: list[dict[str, Any]] = []
        """What the agent said of itself, since ``forget``."""
        self.of_endpoints: dict[str, dict[str, Any]] = {}
        self._agent: subprocess.Popen[bytes] | None = None
        self._monitors: list[Monitor] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def made(cls, folder: Path, config: tuple[str, ...] = ANONYMOUS) -> AsyncIterator[World]:
        """A world with a running broker; ended with the block."""
        world = cls(folder, config)
        world.broker.start()
        follower = asyncio.create_task(world._follow())
        try:
            yield world
        except AssertionError:
            print(world.log()[-6000:], world.history[-5:], sep="\n")
            raise
        finally:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)
            world.kill_agent()
            world.broker.stop()
            for monitor in world._monitors:
                monitor.stop()

    async def monitor(self) -> Monitor:
        self._monitors.append(Monitor(self.folder))
        return await self._monitors[-1].ready()

    # --- the agent -------------------------------------------------------------------------------------------------

    def start_agent(self, *program: str, before: tuple[str, ...] = (), **settings: str) -> None:
        """Start ``felixpy run``; ``program`` are arguments of Python instead of ``-m felixpy run``.

        ``before`` is a command that starts its arguments.
        """
        environment = {
            **{name: value for name, value in os.environ.items() if not name.upper().startswith("FELIX_")},
            "PYTHONPATH": str(PROJECT),
            "NODENAME": NODE,
            "FELIX_MQTTHOST": "127.0.0.1",
            "FELIX_MQTTPORT": str(self.broker.port),
            "FELIX_NFTABLESMODE": "Enabled",
            "FELIX_SNAPSHOTTIMEOUT": "0.6",
            "FELIX_SNAPSHOTQUIETTIME": "0.25",
            **settings,
        }
        command = [*_DIE_WITH_PARENT, *before, sys.executable, *(program or ("-m", "felixpy", "run"))]
        with (self.folder / "agent.log").open("ab") as output:
            self._agent = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.folder
            )

    def kill_agent(self) -> None:
        """SIGKILL."""
        if self._agent is not None:
            self._agent.kill()
            self._agent.wait()
            self._agent = None

    def reload_agent(self) -> None:
        assert self._agent is not None
        self._agent.send_signal(signal.SIGHUP)

    def log(self) -> str:
        file = self.folder / "agent.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def events(self, event: str) -> list[dict[str, Any]]:
        """What the agent logged under one name."""
        lines = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def resident_kib(self) -> int:
        """Memory of the agent."""
        assert self._agent is not None
        text = Path(f"/proc/{self._agent.pid}/status").read_text()
        return int(text.partition("VmRSS:")[2].split()[0])

    # --- what it says ----------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Forget what was said so far, so that only news is waited for."""
        self.history.clear()

    @property
    def said(self) -> dict[str, Any]:
        """The latest word of the agent."""
        return self.history[-1] if self.history else {"state": "", "reason": ""}

    async def says(self, state: str, *words: str) -> dict[str, Any]:
        """Wait until the agent's latest word is ``state`` with a reason that holds all ``words``."""

        def told() -> bool:
            assert self._agent is not None and self._agent.poll() is None, "the agent has ended"
            return self.said["state"] == state and all(word in self.said["reason"] for word in words)

        await until(told, why=lambda: f"{state} {words}; the agent says {self.said}")
        return self.said

    async def says_offline(self) -> None:
        """Wait for the last will of an agent that was killed."""
        await until(lambda: self.said["state"] == "offline", why=lambda: self.said)

    def states(self) -> list[str]:
        """The states that were told since ``forget``, each once per stretch."""
        states = [status["state"] for status in self.history]
        return [state for index, state in enumerate(states) if index == 0 or states[index - 1] != state]

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(aiomqtt.MqttError):
                async with aiomqtt.Client("127.0.0.1", self.broker.port) as client:
                    await client.subscribe(f"{ROOT}/status/#", qos=1)
                    async for message in client.messages:
                        self._hear(str(message.topic).removeprefix(f"{ROOT}/status/{NODE}"), bytes(message.payload))
            await asyncio.sleep(0.05)

    def _hear(self, about: str, payload: bytes) -> None:
        if not about:
            if payload:
                self.history.append(json.loads(payload))
        elif payload:
            self.of_endpoints[about.removeprefix("/wep/")] = json.loads(payload)
        else:
            self.of_endpoints.pop(about.removeprefix("/wep/"), None)

    # --- publishing ------------------------------------------------------------------------------------------------

    async def put(self, objects: Objects) -> None:
        """Publish as any client may, in this order, all of it acknowledged by the broker."""
        messages = [(f"{ROOT}/{topic}", encode(value)) for topic, value in objects.items()]
        await asyncio.to_thread(publish, self.broker.port, messages)

    async def put_all(self, objects: Objects, *, epoch: str = "one", rev: int = 1) -> None:
        """Publish objects and true manifests of exactly these."""
        await self.put({**objects, **manifests(objects, epoch=epoch, rev=rev)})

    async def felixpy(self, verb: str, objects: Objects, *, recount: bool = False) -> None:
        """``felixpy apply`` or ``felixpy delete``, without the process."""
        from felixpy.config import Settings
        from felixpy.model.documents import load_text
        from felixpy.mqtt.batch import prepare

        batch = prepare(load_text(encode(list(objects.values())), "test"))
        settings = Settings(mqtt_host="127.0.0.1", mqtt_port=self.broker.port)
        async with open_publisher(settings) as publisher:
            await (publisher.apply if verb == "apply" else publisher.delete)(batch, recount=recount)

    async def kernel_becomes(self, numbers: Iterable[int]) -> None:
        """Wait until the kernel holds exactly these endpoints, in both directions."""
        await self.kernel_members_become(pairs(numbers))

    async def kernel_members_become(self, wanted: set[Member]) -> None:
        def equal() -> bool:
            return kernel_pairs() == wanted and kernel_pairs("to-workload") == wanted

        await until(equal, why=lambda: kernel_pairs() ^ wanted)
