"""What attaching takes, from the plugin's start to its answer, with more and more containers on the node.

usage: python -m tests.cni.measure [--containers 200] [--samples 200] [--plugins /usr/lib/cni]

Beside each call one of upstream's ``ptp`` with ``host-local`` is made, which does about the same to the kernel, without
rules and without an agent: on a machine that does other things as well the ratio counts. All is in a network of its
own, in dual stack, with nftables and addresses of the node's ranges. Namespaces are there before, and have no duplicate
detection, for which ptp would wait.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from felixpy.demo.resources import block
from tests.cni.lab import NODE, POOLS, Container, Node, build_plugin, running
from tests.netns import enter_private_namespaces

BLOCKS = [block("10.48.8.0/23", NODE), block("fd00:48::800/119", NODE)]
BURST, BURSTS, UNKNOWN = 10, 20, 200


class Plugin(NamedTuple):
    """One of the two that are compared."""

    name: str
    call: Callable[[str, Container], subprocess.Popen[bytes]]


def percentiles(seconds: list[float]) -> str:
    some = sorted(seconds)
    at = {name: some[min(len(some) - 1, int(len(some) * part))] for name, part in (("p50", 0.5), ("p99", 0.99))}
    return ", ".join(f"{name} {value * 1e3:.1f}" for name, value in {**at, "max": some[-1]}.items()) + " ms"


def processor_seconds(process: int) -> float:
    """Of all threads that are there."""
    stats = Path(f"/proc/{process}/task").glob("*/schedstat")
    return sum(int(stat.read_text().split()[0]) for stat in stats) / 1e9


def timed(plugin: Plugin, command: str, container: Container) -> float:
    started = time.perf_counter()
    process = plugin.call(command, container)
    output, _ = process.communicate()
    took = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{plugin.name} {command}: {output.decode()}")
    return took


def burst(plugin: Plugin, containers: list[Container]) -> float:
    """Until the last of them is answered, of those that are started one after another."""
    started = time.perf_counter()
    processes = [plugin.call("ADD", container) for container in containers]
    answers = [process.communicate()[0] for process in processes]
    took = time.perf_counter() - started
    failed = [answer for process, answer in zip(processes, answers, strict=True) if process.returncode]
    if failed:
        raise SystemExit(f"{plugin.name} ADD: {failed[0].decode()}")
    return took


def upstream(folder: Path, state: Path) -> Plugin:
    ranges = [[{"subnet": "10.99.0.0/16"}], [{"subnet": "fd99::/64"}]]
    ipam = {"type": "host-local", "ranges": ranges, "dataDir": str(state)}
    conf = json.dumps({"cniVersion": "1.0.0", "name": "ptp", "type": "ptp", "ipam": ipam}).encode()

    def call(command: str, container: Container) -> subprocess.Popen[bytes]:
        environ: Mapping[str, str] = {
            "CNI_COMMAND": command, "CNI_PATH": str(folder), "CNI_CONTAINERID": container.container_id,
            "CNI_NETNS": container.netns, "CNI_IFNAME": "eth0", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        }  # fmt: skip
        process = subprocess.Popen([folder / "ptp"], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(conf)
        process.stdin.close()
        process.stdin = None
        return process

    return Plugin("ptp", call)


class Measuring:
    """A node with two plugins."""

    def __init__(self, node: Node, other: Plugin) -> None:
        self._node = node
        self._plugins = (Plugin("felixpy", node.begin), other)
        self._namespaces = [node.container(f"m{number}") for number in range(BURST)]
        for container in self._namespaces:
            container.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
        self._calls = 0

    def _container(self, number: int) -> Container:
        """A container that was not there before, in a namespace that was."""
        self._calls += 1
        return Container(self._namespaces[number].name, f"{self._calls:064x}", pod=f"measured-{self._calls}")

    def one_by_one(self, samples: int) -> None:
        found: dict[tuple[str, str], list[float]] = {}
        process = self._node.process
        assert process is not None
        used = 0.0
        for _ in range(samples):
            for plugin in self._plugins:
                container = self._container(0)
                for command in ("ADD", "DEL"):
                    before = processor_seconds(process.pid)
                    found.setdefault((command, plugin.name), []).append(timed(plugin, command, container))
                    if command == "ADD" and plugin.name == "felixpy":
                        used += processor_seconds(process.pid) - before
        for (command, name), seconds in sorted(found.items()):
            print(f"  {command} {name:<8} {percentiles(seconds)}", flush=True)
        print(f"  ADD felixpy  {used / samples * 1e3:.1f} ms of it the agent's processor time", flush=True)

    def bursts(self) -> None:
        found: dict[str, list[float]] = {}
        for _ in range(BURSTS):
            for plugin in self._plugins:
                containers = [self._container(number) for number in range(BURST)]
                found.setdefault(plugin.name, []).append(burst(plugin, containers))
                for container in containers:
                    timed(plugin, "DEL", container)
        for name, seconds in found.items():
            print(f"  {BURST} ADD at once, the last answer: {name:<8} {percentiles(seconds)}", flush=True)

    def unknown(self) -> None:
        containers = [self._container(0) for _ in range(UNKNOWN)]
        seconds = [timed(self._plugins[0], "DEL", container) for container in containers]
        log = self._node.log.read_text()
        said = sum(log.count(container.container_id) for container in containers)
        print(f"  DEL of what is not known: {percentiles(seconds)}, named {said} times in the log", flush=True)


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--containers", type=int, default=200)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--plugins", type=Path, default=Path("/usr/lib/cni"))
    options = parser.parse_args()
    enter_private_namespaces()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plugin = build_plugin(folder)
        settings = {"FELIX_NFTABLESMODE": "Enabled"}
        with running(folder, plugin, settings, start=False) as node:
            node.resources(*POOLS, *BLOCKS)
            node.start()
            measuring = Measuring(node, upstream(options.plugins, folder / "host-local"))
            there = 0
            for wanted in (0, options.containers // 2, options.containers):
                for number in range(there, wanted):
                    node.add(node.container(f"c{number}"))
                there = wanted
                print(f"{there} containers on the node:", flush=True)
                measuring.one_by_one(options.samples)
                measuring.bursts()
                measuring.unknown()


if __name__ == "__main__":
    main()
