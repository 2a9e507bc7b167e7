"""Three nodes on real links, one of them behind a router, each with an agent and a workload.

    n1 ─┐
        ├─ fabric (bridge, and router between the two subnets)  ── n3
    n2 ─┘  10.9.0.0/24, fd09::/64                                  10.9.7.0/24, fd09:7::/64

Namespaces live in the private mounts of the test's process (``tests.netns``) and go with it. Agents follow one folder
of manifests, which tests rewrite.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from felixpy.demo.patience import wait_until
from tests.kernel import run

PROJECT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0
INTERFACE = "cali1"


class Spec(NamedTuple):
    name: str
    number: int
    ipv4: str
    ipv6: str

    @property
    def workload4(self) -> str:
        return f"10.48.{self.number}.1"

    @property
    def workload6(self) -> str:
        return f"fd00:48:0:{self.number}::1"

    @property
    def tunnel4(self) -> str:
        return f"10.48.{self.number}.63"

    @property
    def tunnel6(self) -> str:
        return f"fd00:48:0:{self.number}::3f"


N1 = Spec("n1", 1, "10.9.0.1/24", "fd09::1/64")
N2 = Spec("n2", 2, "10.9.0.2/24", "fd09::2/64")
N3 = Spec("n3", 3, "10.9.7.3/24", "fd09:7::3/64")
SPECS = (N1, N2, N3)


def v3(kind: str, name: str, spec: dict[str, Any], **metadata: str) -> dict[str, Any]:
    return {
        "apiVersion": "projectcalico.org/v3",
        "kind": kind,
        "metadata": {"name": name, **metadata},
        "spec": spec,
    }


def pools(mode4: str, mode6: str, kind: str = "vxlanMode", **more: Any) -> list[dict[str, Any]]:
    four = {"cidr": "10.48.0.0/16", "blockSize": 26, kind: mode4, **more}
    six = {"cidr": "fd00:48::/48", "blockSize": 122, "vxlanMode": mode6, **more}
    return [v3("IPPool", "four", four), v3("IPPool", "six", six)]


def node(spec: Spec, **changes: Any) -> dict[str, Any]:
    bgp = {"ipv4Address": spec.ipv4, "ipv6Address": spec.ipv6, "ipv4IPIPTunnelAddr": f"10.48.{spec.number}.62"}
    fields = {"bgp": bgp, "ipv4VXLANTunnelAddr": spec.tunnel4, "ipv6VXLANTunnelAddr": spec.tunnel6}
    return v3("Node", spec.name, {**fields, **changes})


def blocks(spec: Spec) -> list[dict[str, Any]]:
    found = []
    for cidr in (f"10.48.{spec.number}.0/26", f"fd00:48:0:{spec.number}::/122"):
        name = re.sub(r"[./:]", "-", cidr)
        found.append(v3("IPAMBlock", name, {"cidr": cidr, "affinity": f"host:{spec.name}"}))
    return found


def workload(spec: Spec) -> dict[str, Any]:
    networks = [f"{spec.workload4}/32", f"{spec.workload6}/128"]
    fields = {"node": spec.name, "interfaceName": INTERFACE, "ipNetworks": networks, "endpoint": "eth0"}
    return v3("WorkloadEndpoint", f"{spec.name}-k8s-w-eth0", fields, namespace="default")


def inside(name: str, *command: str) -> str:
    """Run a command in a namespace; it must succeed."""
    return run("ip", "netns", "exec", name, *command)


def tries(name: str, *command: str) -> bool:
    done = subprocess.run(["ip", "netns", "exec", name, *command], capture_output=True, check=False)
    return done.returncode == 0


def becomes(look: Callable[[], bool], what: str, seconds: float = PATIENCE_S) -> None:
    wait_until(look, lambda: what, seconds)


class Lab:
    """Namespaces ``fabric``, ``n1``…, and ``w1``… for workloads. ``settings`` are those of all agents and commands."""

    def __init__(self, specs: tuple[Spec, ...] = SPECS, settings: Mapping[str, str] | None = None) -> None:
        self.specs = specs
        self._folder = tempfile.TemporaryDirectory(prefix="felixpy-underlay-")
        self.folder = Path(self._folder.name)
        self.resources = self.folder / "resources"
        self.resources.mkdir()
        self.agents: dict[str, subprocess.Popen[bytes]] = {}
        self.settings: Mapping[str, str] = settings or {}
        self._build()

    # --- links -------------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        for name in ("fabric", *(s.name for s in self.specs), *(f"w{s.number}" for s in self.specs)):
            run("ip", "netns", "add", name)
            inside(name, "ip", "link", "set", "lo", "up")
        lines = ["link add br0 type bridge", "link set br0 up"]
        lines += ["addr add 10.9.0.254/24 dev br0", "addr add fd09::fe/64 dev br0 nodad"]
        for spec in self.specs:
            lines.append(f"link add to-{spec.name} type veth peer name eth0 netns {spec.name}")
            lines.append(f"link set to-{spec.name} up")
            if spec is N3:
                lines += ["addr add 10.9.7.254/24 dev to-n3", "addr add fd09:7::fe/64 dev to-n3 nodad"]
            else:
                lines.append(f"link set to-{spec.name} master br0")
        self.ip("fabric", *lines)
        for path in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
            inside("fabric", "sysctl", "-qw", f"net.{path}=1")
        for spec in self.specs:
            self._build_node(spec)

    def _build_node(self, spec: Spec) -> None:
        four, six = ("10.9.7.254", "fd09:7::fe") if spec is N3 else ("10.9.0.254", "fd09::fe")
        self.ip(
            spec.name,
            "link set eth0 up",
            f"addr add {spec.ipv4} dev eth0",
            f"addr add {spec.ipv6} dev eth0 nodad",
            f"route add default via {four}",
            f"route add default via {six}",
            f"link add {INTERFACE} address ee:ee:ee:ee:ee:ee type veth peer name eth0 netns w{spec.number}",
        )
        inside(spec.name, "sysctl", "-qw", f"net.ipv6.conf.{INTERFACE}.accept_dad=0")
        self.ip(spec.name, f"link set {INTERFACE} up")
        inside(f"w{spec.number}", "sysctl", "-qw", "net.ipv6.conf.eth0.accept_dad=0")
        self.ip(
            f"w{spec.number}",
            "link set eth0 up",
            f"addr add {spec.workload4}/32 dev eth0",
            f"addr add {spec.workload6}/128 dev eth0 nodad",
            "route add 169.254.1.1 dev eth0",
            "route add default via 169.254.1.1 dev eth0",
            "route add default via fe80::ecee:eeff:feee:eeee dev eth0",
        )

    def ip(self, name: str, *lines: str) -> None:
        run("ip", "-n", name, "-batch", "-", stdin="\n".join(lines) + "\n")

    # --- resources and agents ---------------------------------------------------------------------------------------

    def put(self, *documents: dict[str, Any]) -> None:
        """Write manifests, each in one go."""
        for document in documents:
            name = f"{document['kind']}-{document['metadata']['name']}.yaml"
            draft = self.folder / name
            draft.write_text(yaml.safe_dump(document))
            draft.rename(self.resources / name)

    def put_cluster(self, mode4: str, mode6: str, **more: Any) -> None:
        self.put(*pools(mode4, mode6, **more))
        for spec in self.specs:
            self.put(node(spec), *blocks(spec), workload(spec))

    def start(self, *specs: Spec, settings: Mapping[str, str] | None = None) -> None:
        for spec in specs or self.specs:
            environment = self._environment(spec, settings)
            log = (self.folder / spec.name / "log").open("ab")
            self.agents[spec.name] = subprocess.Popen(
                ["ip", "netns", "exec", spec.name, sys.executable, "-m", "felixpy", "run"],
                env=environment, stdout=log, stderr=log, cwd=self.folder,
            )  # fmt: skip

    def _environment(self, spec: Spec, settings: Mapping[str, str] | None = None) -> dict[str, str]:
        home = self.folder / spec.name
        home.mkdir(exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("FELIX_")}
        return {
            **kept,
            "PYTHONPATH": str(PROJECT),
            "NODENAME": spec.name,
            "COLUMNS": "300",
            "FELIX_RESOURCEDIRECTORY": str(self.resources),
            "FELIX_CONTROLSOCKET": str(home / "control"),
            "FELIX_ENDPOINTSTATUSPATHPREFIX": "none",
            "FELIX_MTUFILE": "none",
            "FELIX_NFTABLESMODE": "Enabled",
            **self.settings,
            **(settings or {}),
        }

    def felixpy(self, spec: Spec, *arguments: str, settings: Mapping[str, str] | None = None) -> str:
        """Run a command on a node; what it prints."""
        done = subprocess.run(
            ["ip", "netns", "exec", spec.name, sys.executable, "-m", "felixpy", *arguments],
            env=self._environment(spec, settings), cwd=self.folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.stdout + done.stderr

    def log(self, spec: Spec) -> str:
        return (self.folder / spec.name / "log").read_text(errors="replace")

    def stop(self, *specs: Spec, kill: bool = False) -> None:
        for spec in specs:
            agent = self.agents.pop(spec.name)
            agent.kill() if kill else agent.terminate()
            agent.wait()

    def close(self) -> None:
        for agent in self.agents.values():
            agent.kill()
            agent.wait()
        for name in ("fabric", *(s.name for s in self.specs), *(f"w{s.number}" for s in self.specs)):
            subprocess.run(["ip", "netns", "del", name], check=False)
        self._folder.cleanup()

    # --- packets ----------------------------------------------------------------------------------------------------

    def reaches(self, one: Spec, other: Spec, family: int, count: int = 1) -> bool:
        target = other.workload4 if family == 4 else other.workload6
        return tries(f"w{one.number}", "ping", f"-{family}", "-c", str(count), "-W", "1", "-q", target)

    def all_reach(self, families: tuple[int, ...] = (4, 6)) -> None:
        for one in self.specs:
            for other in self.specs:
                for family in families:
                    if one is not other:
                        becomes(
                            lambda one=one, other=other, family=family: self.reaches(one, other, family),  # type: ignore[misc]
                            f"{one.name} to {other.name}, IPv{family}\n{self.log(one)[-3000:]}",
                        )

    def ping(self, one: Spec, target: str, seconds: float, every_ms: int = 5) -> subprocess.Popen[str]:
        """A ping that runs; ``lost`` reads what came of it."""
        count = int(seconds * 1000 / every_ms)
        command = ["ping", "-6" if ":" in target else "-4", "-q", "-i", f"{every_ms / 1000}", "-c", str(count), target]
        return subprocess.Popen(["ip", "netns", "exec", f"w{one.number}", *command], stdout=subprocess.PIPE, text=True)


def lost(ping: subprocess.Popen[str]) -> tuple[int, int]:
    """Packets sent and lost."""
    said, _ = ping.communicate()
    found = re.search(r"(\d+) packets transmitted, (\d+) received", said)
    assert found, said
    return int(found[1]), int(found[1]) - int(found[2])
