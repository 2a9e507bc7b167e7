"""What policy costs the agent and the kernel: rows of the budget as ratios, each pair measured in turn in one run.

    python -m bench.policy [--backend nftables|legacy|nft] [--sizes 10,1000,10000] [--policies 10,1000]

A child per subject holds an agent in a network of its own and is told of objects without a broker; the parent lets them
take turns. What is measured is processor time of the agent's process, in which the kernel carries out what netlink asks
for: other processes of the machine do not change it. Workloads have no interfaces, so that routes and neighbours are
left out on both sides, which makes the ratios stricter than the whole. Needs root.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

CALICO, NODE = "projectcalico.org/v3", "n1"
MODES = {"nftables": ("Enabled", "Auto"), "legacy": ("Disabled", "Legacy"), "nft": ("Disabled", "NFT")}
TURNS = 40
PEERS = 200
ASK = "ask"
"""Names of a class's policies: each deployment of the node is selected by five of all."""

Object = dict[str, Any]


def _object(kind: str, name: str, spec: Object, **metadata: Any) -> Object:
    return {"apiVersion": CALICO, "kind": kind, "metadata": {"name": name, **metadata}, "spec": spec}


def endpoint(number: int, node: str = NODE, app: str = "") -> Object:
    """One of twenty of a deployment; a peer's label is another application's."""
    spec = {
        "node": node,
        "interfaceName": f"cali{number:08}",
        "ipNetworks": [
            f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}/32",
            f"fd00:48::{number >> 16:x}:{number & 65535:x}/128",
        ],
    }
    labels = {"app": app or f"app{number // 20 % 50}", "node": node}
    return _object("WorkloadEndpoint", f"w{number}", spec, namespace="default", labels=labels)


def policies(count: int) -> list[Object]:
    """Each of fifty deployments is asked by a fiftieth of them; rules name applications of peers."""
    found = []
    for number in range(count):
        source = {"selector": f"app == 'peer{number % PEERS}'"}
        rules = [
            {"action": "Allow", "protocol": "TCP", "source": source, "destination": {"ports": [80, 443]}},
            {"action": "Deny", "protocol": "UDP", "destination": {"ports": [number + 1]}},
            {"action": "Allow", "source": {"nets": [f"192.0.2.{number % 250}/32"]}},
        ]
        spec = {"selector": f"app == 'app{number % 50}'", "types": ["Ingress"], "ingress": rules, "order": number}
        found.append(_object("GlobalNetworkPolicy", f"p{number}", spec))
    return found


# --- the subject ----------------------------------------------------------------------------------------------------


class Subject:
    """An agent without a source."""

    def __init__(self, backend: str) -> None:
        from felixpy.agent.agent import Agent
        from felixpy.config import SettingsSource, resolve

        mode, variant = MODES[backend]
        values = {"FelixHostname": NODE, "NFTablesMode": mode, "IptablesBackend": variant}
        source = SettingsSource("environment", values)
        settings, _ = resolve([source])
        self.agent = Agent(settings, [source])
        self.task = asyncio.create_task(self.agent.run())

    def tell(self, objects: Iterable[Object], *, gone: bool = False) -> None:
        from felixpy.model.parse import parse_resource
        from felixpy.model.resources import Absent, Update

        for one in objects:
            found = parse_resource(one)
            assert found is not None and not isinstance(found, Absent)
            self.agent.update(Update(found.key, None if gone else found))

    async def take(self, objects: Iterable[Object], gone: Iterable[Object]) -> float:
        """Process changes until the packet filter has them; returns milliseconds of processor time."""
        began = time.process_time()
        self.tell(objects)
        self.tell(gone, gone=True)
        await self._until_written()
        return (time.process_time() - began) * 1000

    async def start(self, objects: Iterable[Object]) -> float:
        """The first snapshot."""
        from felixpy.sources import SyncState, SyncStatus

        began = time.process_time()
        self.tell(objects)
        self.agent.sync_status(SyncStatus(SyncState.IN_SYNC))
        await self.agent.known.wait()
        await self._until_written()
        return (time.process_time() - began) * 1000

    async def _until_written(self) -> None:
        agent = self.agent
        while agent._pending or agent._wake.is_set() or not agent.dataplane.are_filters_written:
            if self.task.done():
                self.task.result()
            await asyncio.sleep(0)


async def serve(backend: str) -> None:
    subject = Subject(backend)
    while True:
        line = await asyncio.to_thread(sys.stdin.readline)
        if not line:
            subject.task.cancel()
            return
        asked = json.loads(line)
        if "start" in asked:
            spent = await subject.start(asked["start"])
        else:
            spent = await subject.take(asked.get("put", ()), asked.get("gone", ()))
        os.write(3, json.dumps(spent).encode() + b"\n")


# --- the turns ------------------------------------------------------------------------------------------------------


class Child:
    """A subject in a network of its own."""

    def __init__(self, backend: str) -> None:
        ours, theirs = os.pipe()
        self._answers = os.fdopen(ours)
        script = (
            f"exec 3>&{theirs}; mount -t tmpfs tmpfs /run; ip link set lo up; exec {sys.executable} -m bench.policy"
        )
        self._process = subprocess.Popen(
            ["unshare", "-n", "-m", "sh", "-c", f"{script} --serve --backend {backend}"],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=(theirs,), text=True,
            cwd=Path(__file__).parents[1],
        )  # fmt: skip
        os.close(theirs)

    def ask(self, **words: Any) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        line = self._answers.readline()
        if not line:
            raise SystemExit("a measured agent ended; run it by hand: python -m bench.policy --serve")
        return float(json.loads(line))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def measure(backend: str, size: int, asked: int) -> None:
    """One cell: the same node with policies and without."""
    crowd = [endpoint(number) for number in range(1, size + 1)]
    peers = [endpoint(100_000 + number, "n2", f"peer{number % PEERS}") for number in range(PEERS)]
    several = policies(asked)
    subjects = {"with": Child(backend), "without": Child(backend)}
    try:
        cold = {
            "with": subjects["with"].ask(start=[*several, *crowd, *peers]),
            "without": subjects["without"].ask(start=[*crowd, *peers]),
        }
        _say(backend, size, asked, "cold start", cold["with"], cold["without"], 1.5)
        one = endpoint(50_001)
        spent: dict[str, list[float]] = {"with": [], "without": []}
        moved = []
        for turn in range(TURNS):
            for name, child in subjects.items():
                spent[name].append(child.ask(put=[one]))
                child.ask(gone=[one])
            peer = endpoint(100_000 + turn, "n2", f"peer{(turn + 1) % PEERS}")
            moved.append(subjects["with"].ask(put=[peer]))
        _say(backend, size, asked, "one workload", median(spent["with"]), median(spent["without"]), 1.15)
        _say(backend, size, asked, "label of a peer", median(moved), median(spent["without"]), 1.5)
        wide = _object("GlobalNetworkPolicy", "wide", {"selector": "all()", "order": 0, "types": ["Ingress"],
                                                       "ingress": [{"action": "Allow"}]})  # fmt: skip
        comes = []
        for _ in range(5):
            comes.append(subjects["with"].ask(put=[wide]))
            subjects["with"].ask(gone=[wide])
        print(f"{backend:9} N={size:<6} P={asked:<5} new policy for all       {median(comes):8.2f} ms", flush=True)
    finally:
        for child in subjects.values():
            child.close()


def _say(backend: str, size: int, asked: int, what: str, found: float, against: float, most: float) -> None:
    ratio = found / against
    print(
        f"{backend:9} N={size:<6} P={asked:<5} {what:20} {found:8.2f} ms, {against:8.2f} ms without:"
        f" {ratio:5.2f} (at most {most}) {'met' if ratio <= most else 'missed'}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.policy", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", choices=tuple(MODES), default="nftables")
    parser.add_argument("--sizes", default="10,1000,10000")
    parser.add_argument("--policies", default="10,1000")
    parser.add_argument("--serve", action="store_true", help="be the agent that is measured")
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.backend))
        return
    for size in map(int, options.sizes.split(",")):
        for asked in map(int, options.policies.split(",")):
            measure(options.backend, size, asked)


if __name__ == "__main__":
    main()
