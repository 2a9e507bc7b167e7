"""A node with an agent of its own process, the plugin as container runtimes start it, and containers' namespaces.

The resources come from a directory, so no broker and no API is there: that is how podman, nerdctl or Nomad use it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from felixpy.demo.agent import FELIXPY, environment
from felixpy.demo.patience import Patience
from felixpy.demo.resources import Object, block, ip_pool, write_manifests
from tests.kernel import ip, ip_json, run

NODE = "n1"
PATIENCE_SECONDS = 60.0
POOLS = [ip_pool("four", "10.48.0.0/16", natOutgoing=True), ip_pool("six", "fd00:48::/64", natOutgoing=True)]
BLOCKS = [block("10.48.7.0/26", NODE), block("fd00:48::740/122", NODE)]
SOURCE = Path(__file__).resolve().parents[2] / "felixpy" / "cni" / "stub" / "felixpy-cni.c"


COUNTERS = """ip -s link; ip -6 addr; ip -6 route; ip -4 neigh; ip -6 neigh; cat /proc/net/stat/nf_conntrack
awk '$2' /proc/net/snmp6; tc -s qdisc"""
"""Where a packet may have stayed: a single one that is lost is seldom seen again."""


def build_plugin(folder: Path) -> Path:
    """The stub, compiled as the Makefile does."""
    plugin = folder / "felixpy-cni"
    subprocess.run(
        ["gcc", "-static", "-O2", "-std=c11", "-Wall", "-Wextra", "-Werror", "-o", plugin, SOURCE], check=True
    )
    return plugin


class Answer(NamedTuple):
    """What the plugin gave: exit code, standard output as JSON (None if empty), seconds."""

    code: int
    result: Any
    seconds: float


@dataclass
class Container:
    """A container as a runtime has it: an id and a network namespace."""

    name: str
    container_id: str
    pod: str = ""

    @property
    def netns(self) -> str:
        return f"/run/netns/{self.name}"

    def run(self, *command: str) -> str:
        return run("ip", "netns", "exec", self.name, *command)

    def ping(self, address: str) -> None:
        """One packet there and back, or the test fails, with what the kernel counted of it here and on the node."""
        try:
            self.run("ping", "-n", "-c", "1", "-W", "10", address)
        except AssertionError as lost:
            inside = ["ip", "netns", "exec", self.name, "sh", "-c", COUNTERS]
            found = [
                subprocess.run(command, capture_output=True, text=True, check=False).stdout
                for command in (inside, ["sh", "-c", f"{COUNTERS}; nft list ruleset"])
            ]
            raise AssertionError(f"{lost}\n{self.name}:\n{found[0]}\nnode:\n{found[1]}") from None

    def can_reach(self, address: str) -> bool:
        command = ["ip", "netns", "exec", self.name, "ping", "-n", "-c", "1", "-W", "1", address]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def arguments(self) -> str:
        """``CNI_ARGS`` as containerd writes them."""
        return (
            f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={self.pod or self.name};"
            f"K8S_POD_INFRA_CONTAINER_ID={self.container_id};K8S_POD_UID=0a1b2c3d-{self.name}"
        )


@dataclass
class Node:
    """The node under test."""

    folder: Path
    plugin: Path
    environ: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    containers: list[Container] = field(default_factory=list)

    @property
    def socket(self) -> Path:
        return self.folder / "cni.sock"

    @property
    def journal(self) -> Path:
        return self.folder / "state" / "attachments"

    @property
    def log(self) -> Path:
        return self.folder / "agent.log"

    # --- the agent ---------------------------------------------------------------------------------------

    def resources(self, *documents: Object) -> None:
        """What the agent's directory holds from now on."""
        folder = self.folder / "resources"
        folder.mkdir(exist_ok=True)
        new = write_manifests(documents, self.folder / "resources.new")
        wanted = {file.name for file in new.iterdir()}
        for file in new.iterdir():
            file.replace(folder / file.name)
        for file in folder.iterdir():
            if file.name not in wanted:
                file.unlink()

    def start(self, *, ready: bool = True) -> None:
        variables = {
            "NODENAME": NODE,
            "FELIX_RESOURCEDIRECTORY": str(self.folder / "resources"),
            "FELIX_CNISOCKET": str(self.socket),
            "FELIX_CNISTATEDIRECTORY": str(self.folder / "state"),
            "FELIX_CONTROLSOCKET": "none",
            "FELIX_ENDPOINTSTATUSPATHPREFIX": "none",
            "FELIX_DEFAULTENDPOINTTOHOSTACTION": "Accept",
            **self.environ,
        }
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [*FELIXPY, "run"], env=environment(variables), stdout=output, stderr=output, start_new_session=True
            )
        if ready:
            self.wait(lambda: self.status().code == 0)

    def status(self) -> Answer:
        return self.call("STATUS", conf=self.conf())

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            assert self.process.wait() == 0, self.log.read_text()
            self.process = None

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def events(self, name: str = "") -> list[dict[str, Any]]:
        """Lines of the agent's log."""
        events = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [event for event in events if not name or event["event"] == name]

    def wait(self, condition: Any) -> None:
        patience = Patience(PATIENCE_SECONDS)
        while not condition():
            assert not patience.over(), self.log.read_text()
            assert self.process is None or self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)

    # --- the runtime ---------------------------------------------------------------------------------------

    def conf(self, version: str = "1.1.0", **fields: Any) -> dict[str, Any]:
        return {
            "cniVersion": version,
            "name": "k8s-pod-network",
            "type": "felixpy-cni",
            "socket": str(self.socket),
            "ipam": {"type": "felixpy-ipam", "assign_ipv4": "true", "assign_ipv6": "true"},
            **fields,
        }

    def container(self, name: str, container_id: str = "", pod: str = "") -> Container:
        """A new namespace with nothing in it but its loopback, as a runtime makes it."""
        ip(f"netns add {name}")
        container = Container(name, container_id or f"{name}-0123456789abcdef", pod)
        self.containers.append(container)
        return container

    def remove(self, container: Container) -> None:
        ip(f"netns del {container.name}")
        self.containers.remove(container)

    def begin(
        self, command: str, container: Container | None = None, conf: Mapping[str, Any] | None = None, **variables: str
    ) -> subprocess.Popen[bytes]:
        """Start the plugin; its standard input is written."""
        environ = {"CNI_COMMAND": command, "CNI_PATH": str(self.plugin.parent), "PATH": os.environ["PATH"]}
        if container is not None:
            environ |= {
                "CNI_CONTAINERID": container.container_id,
                "CNI_NETNS": container.netns,
                "CNI_IFNAME": "eth0",
                "CNI_ARGS": container.arguments(),
            }
        process = subprocess.Popen(
            [self.plugin], env={**environ, **variables}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(self.conf() if conf is None else conf).encode())
        process.stdin.close()
        process.stdin = None
        return process

    def call(
        self, command: str, container: Container | None = None, conf: Mapping[str, Any] | None = None, **variables: str
    ) -> Answer:
        started = time.perf_counter()
        process = self.begin(command, container, conf, **variables)
        output, _ = process.communicate()
        return Answer(process.returncode, json.loads(output) if output else None, time.perf_counter() - started)

    def add(self, container: Container, conf: Mapping[str, Any] | None = None, **variables: str) -> Any:
        """ADD, which must succeed."""
        answer = self.call("ADD", container, conf, **variables)
        assert answer.code == 0, (answer.result, self.log.read_text())
        return answer.result

    def delete(self, container: Container, **variables: str) -> None:
        answer = self.call("DEL", container, **variables)
        assert (answer.code, answer.result) == (0, None), answer

    # --- what is left ----------------------------------------------------------------------------------------

    def leaks(self) -> dict[str, Any]:
        """What stands of workloads: interfaces, routes, attachments on disk."""
        journal = self.journal.read_text().splitlines() if self.journal.exists() else []
        live: dict[tuple[str, str], Any] = {}
        for line in map(json.loads, journal):
            if "add" in line:
                live[line["add"]["container"], line["add"]["ifname"]] = line["add"]
            elif "del" in line:
                live.pop(tuple(line["del"]), None)
        return {
            "links": sorted(link["ifname"] for link in ip_json("link") if link["ifname"].startswith("cali")),
            "routes": sorted(
                route["dst"]
                for family in ("-4", "-6")
                for route in ip_json(family, "route", "show", "table", "main")
                if str(route.get("dev", "")).startswith("cali") and route.get("protocol") != "kernel"
            ),
            "journal": sorted(live),
        }


NOTHING: dict[str, Any] = {"links": [], "routes": [], "journal": []}


@contextlib.contextmanager
def running(
    folder: Path, plugin: Path, environ: Mapping[str, str] | None = None, *, start: bool = True
) -> Iterator[Node]:
    """A node whose network has an uplink; its agent runs."""
    ip("link add eth0 type veth peer name p-eth0", "link set eth0 up", "link set p-eth0 up")
    ip("addr add 192.0.2.1/24 dev eth0", "addr add 2001:db8::1/64 dev eth0 nodad")
    ip("route add default via 192.0.2.254", "route add default via 2001:db8::fe")
    node = Node(folder, plugin, environ or {})
    node.resources(*POOLS, *BLOCKS)
    try:
        if start:
            node.start()
        yield node
    finally:
        node.kill()
        for container in list(node.containers):
            node.remove(container)
        shutil.rmtree(folder / "state", ignore_errors=True)
