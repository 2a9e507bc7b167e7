"""From a pod's creation to its first packet both ways, and how much of that is felixpy's: one pod after another.

usage: python -m tests.kubernetes.measure_pod RUN [PODS]

RUN is the folder of a running cluster, PODS how many (20). felixpy's share is what its agent says of each ADD; the rest
is the scheduler's, the kubelet's and the runtime's. A pod of node n2 sends a packet to each pod of node n1 as soon as
the API says its address, over each family.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tests.kubernetes.on_cluster import IMAGE, JSON, Kubectl

NAMESPACE = "measure-pod"
ADDRESSES = 'jsonpath={.metadata.name} {.status.podIPs[*].ip}{"\\n"}'


class Took(NamedTuple):
    """Seconds from the pod's creation: until its addresses were told, until it had answered over each family; and
    those of them that were felixpy's.
    """

    addresses: float
    packets: float
    felixpy: float


def pod(name: str, node: str) -> JSON:
    container = {"name": "main", "image": IMAGE, "args": ["netexec", "--http-port=8080", "--udp-port=-1"]}
    spec = {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [container]}
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec,
    }  # fmt: skip


def bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


class Cluster(Kubectl):
    def begin(self) -> None:
        self.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}, pod("asks", "n2")])
        self.kubectl("-n", NAMESPACE, "wait", "--for=condition=Ready", "pod/asks", "--timeout=120s")

    def end(self) -> None:
        self.kubectl("delete", "namespace", NAMESPACE, "--wait=false")

    def one(self, name: str) -> Took:
        command = self.command("-n", NAMESPACE, "get", "pods", "--watch", "-o", ADDRESSES)
        watch = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert watch.stdout is not None
        watch.stdout.readline()  # it has begun: the one that asks is told of
        started = time.monotonic()
        self.apply([pod(name, "n1")])
        told: list[str] = []
        while len(told) < 2:
            word, *rest = watch.stdout.readline().split()
            told = [word, *rest] if word == name and rest else []
        at_addresses = time.monotonic() - started
        watch.kill()
        watch.wait()
        tries = " && ".join(
            f"until /agnhost connect '{bracketed(address)}:8080' --timeout=1s; do :; done" for address in told[1:]
        )
        self.kubectl("-n", NAMESPACE, "exec", "asks", "--", "sh", "-c", f"({tries}) >/dev/null 2>&1")
        at_packets = time.monotonic() - started
        return Took(at_addresses, at_packets, self.of_agent(name))

    def of_agent(self, name: str) -> float:
        agent = self.kubectl("-n", "felixpy", "get", "pods", "-l", "app.kubernetes.io/name=felixpy", "-o", "name",
                             "--field-selector", "spec.nodeName=n1").strip()  # fmt: skip
        for line in self.kubectl("-n", "felixpy", "logs", agent, "--tail=200").splitlines():
            if '"attached"' in line and f'"{NAMESPACE}/{name}"' in line:
                return float(json.loads(line)["ms"]) / 1e3
        raise SystemExit(f"the agent of n1 says nothing of {name}")


def main(run: str, pods: str = "20") -> None:
    cluster = Cluster(Path(run))
    cluster.begin()
    try:
        found = [cluster.one(f"p{number}") for number in range(int(pods))]
    finally:
        cluster.end()
    median = Took(*(sorted(column)[len(found) // 2] for column in zip(*found, strict=True)))
    print(
        f"{len(found)} pods, medians: {median.addresses:.2f} s until the API tells the addresses, "
        f"{median.packets:.2f} s until packets went both ways over each family; "
        f"felixpy's {median.felixpy * 1e3:.0f} ms are {100 * median.felixpy / median.packets:.1f} %"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
