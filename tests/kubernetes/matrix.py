"""Which pod reaches which, over each family, under one policy after another: upstream's tests of policy ask IPv4 only.

usage: python -m tests.kubernetes.matrix RUN

RUN is the folder of a running cluster. Ends with 1 if a pair is not as it should be.

Three pods: a and b in one namespace, on two nodes, c in another. Each case says which pairs talk; the first one,
without policy, is the control: all do. Policy takes its way through the API: a case waits until the matrix is wanted,
and looks again. Pod a has a port of its node as well, which upstream's portmap leads to it: b asks there in some cases.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.kubernetes.on_cluster import IMAGE, JSON, Kubectl

PODS = {"a": ("matrix-x", "n1"), "b": ("matrix-x", "n2"), "c": ("matrix-y", "n1")}
NODE = "a's node"
PATIENCE_SECONDS = 40
PORT, OTHER_PORT, HOST_PORT = 8080, 8081, 18080
CALICO, STORE = "projectcalico.org/v3", "crd.projectcalico.org/v1"
EVERYWHERE, LONGEST = {4: "0.0.0.0/0", 6: "::/0"}, {4: 32, 6: 128}


class Probe(NamedTuple):
    """A connection that is tried; ``family`` is 4 or 6. ``HOST_PORT`` is one of the target's node."""

    source: str
    target: str
    family: int
    port: int


class Case(NamedTuple):
    """Policies, and whether a connection is to come about under them.

    ``host_port``: the same of the port of a's node, None if it is not asked: b comes there as its node, over IPv4.
    """

    name: str
    policies: list[JSON]
    allowed: Callable[[Probe], bool]
    host_port: bool | None = None

    def wants(self, probe: Probe) -> bool:
        return bool(self.host_port) if probe.port == HOST_PORT else self.allowed(probe)


def policy(name: str, spec: JSON, namespace: str = "matrix-x") -> JSON:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


def calico(kind: str, name: str, spec: JSON) -> JSON:
    return {"apiVersion": CALICO, "kind": kind, "metadata": {"name": name}, "spec": spec}


def labelled(name: str) -> JSON:
    return {"matchLabels": {"pod": name}}


def ingress_to_a(*rules: JSON) -> list[JSON]:
    return [policy("p", {"podSelector": labelled("a"), "policyTypes": ["Ingress"], "ingress": list(rules)})]


def cases(addresses: dict[str, dict[int, str]]) -> Iterator[Case]:
    but_b = [
        {"ipBlock": {"cidr": EVERYWHERE[family], "except": [f"{address}/{LONGEST[family]}"]}}
        for family, address in addresses["b"].items()
    ]
    yield Case("no policy", [], lambda probe: True, host_port=True)
    deny: JSON = {"podSelector": {}, "policyTypes": ["Ingress"]}
    yield Case("nothing into the namespace", [policy("p", deny)], lambda probe: probe.target == "c", host_port=False)
    yield Case(
        "nothing out of a pod",
        [policy("p", {"podSelector": labelled("a"), "policyTypes": ["Egress"]})],
        lambda probe: probe.source != "a",
    )
    yield Case(
        "from a pod of the namespace",
        ingress_to_a({"from": [{"podSelector": labelled("b")}]}),
        lambda probe: probe.target != "a" or probe.source == "b",
    )
    of_y = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "matrix-y"}}}
    yield Case(
        "from another namespace",
        ingress_to_a({"from": [of_y]}),
        lambda probe: probe.target != "a" or probe.source == "c",
    )
    yield Case(
        "a port by its name",
        ingress_to_a({"ports": [{"port": "http"}]}),
        lambda probe: probe.target != "a" or probe.port == PORT,
    )
    yield Case(
        "ports of a range",
        ingress_to_a({"ports": [{"port": OTHER_PORT, "endPort": OTHER_PORT + 9}]}),
        lambda probe: probe.target != "a" or probe.port == OTHER_PORT,
    )
    yield Case(
        "a prefix of IPv6 only",
        ingress_to_a({"from": [{"ipBlock": {"cidr": "fd00::/8"}}]}),
        lambda probe: probe.target != "a" or probe.family == 6,
    )
    yield Case(
        "all of both families but one address of each",
        ingress_to_a({"from": but_b}),
        lambda probe: probe.target != "a" or probe.source != "b",
    )
    yield Case(
        "out to one pod only",
        [
            policy(
                "p",
                {
                    "podSelector": labelled("a"),
                    "policyTypes": ["Egress"],
                    "egress": [{"to": [{"podSelector": labelled("b")}]}],
                },
            )
        ],
        lambda probe: probe.source != "a" or probe.target == "b",
    )
    refuse = {"action": "Deny", "source": {"selector": "pod == 'b'"}}
    yield Case(
        "Calico's Deny before its Allow",
        [
            calico(
                "GlobalNetworkPolicy",
                "matrix",
                {"order": 1, "selector": "pod == 'a'", "types": ["Ingress"], "ingress": [refuse, {"action": "Allow"}]},
            )
        ],
        lambda probe: probe.target != "a" or probe.source != "b",
    )
    version = {"action": "Deny", "ipVersion": 6}
    yield Case(
        "Calico's Deny of a family",
        [
            calico(
                "GlobalNetworkPolicy",
                "matrix",
                {"order": 1, "selector": "pod == 'a'", "types": ["Ingress"], "ingress": [version, {"action": "Allow"}]},
            )
        ],
        lambda probe: probe.target != "a" or probe.family == 4,
    )


class Cluster(Kubectl):
    def as_served(self, policies: list[JSON]) -> list[JSON]:
        """Calico's kinds in the group that the server has: in a cluster of Calico's the one that it stores them in."""
        group = CALICO if CALICO in self.kubectl("api-versions").split() else STORE
        return [one | {"apiVersion": group} if one["apiVersion"] == CALICO else one for one in policies]

    def begin(self) -> dict[str, dict[int, str]]:
        """Make the pods; their addresses by family, and those of a's node."""
        self.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
                    for namespace in sorted({each for each, _ in PODS.values()})])  # fmt: skip
        self.apply([pod(name) for name in PODS])
        found = {}
        for name, (namespace, _) in PODS.items():
            self.kubectl("-n", namespace, "wait", "--for=condition=Ready", f"pod/{name}", "--timeout=120s")
            told = json.loads(self.kubectl("-n", namespace, "get", "pod", name, "-o", "json"))["status"]["podIPs"]
            found[name] = {6 if ":" in each["ip"] else 4: each["ip"] for each in told}
        found[NODE] = self.of_node(PODS["a"][1])
        return found

    def end(self) -> None:
        self.kubectl("delete", "namespace", *sorted({each for each, _ in PODS.values()}), "--wait=false")

    def of_node(self, name: str) -> dict[int, str]:
        told = self.get("node", name)["status"]["addresses"]
        return {6 if ":" in one["address"] else 4: one["address"] for one in told if one["type"] == "InternalIP"}

    def matrix(self, addresses: dict[str, dict[int, str]], case: Case) -> dict[Probe, bool]:
        """Try all pairs, those of one source in one shell beside each other."""
        running = {}
        for source, (namespace, _) in PODS.items():
            probes = [Probe(source, target, family, port) for target in PODS if target != source
                      for family in addresses[target] for port in (PORT, OTHER_PORT)]  # fmt: skip
            if source == "b" and case.host_port is not None:
                probes += [Probe("b", "a", family, HOST_PORT) for family in addresses["a"]]
            tries = " ".join(attempt(probe, address_for(probe, addresses)) for probe in probes) + " wait"
            command = self.command("-n", namespace, "exec", source, "-c", "one", "--", "sh", "-c", tries)
            running[source] = probes, subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        found = {}
        for probes, process in running.values():
            lines = set(process.communicate()[0].split())
            found.update({probe: name_of(probe) in lines for probe in probes})
        return found


def pod(name: str) -> JSON:
    namespace, node = PODS[name]
    port: JSON = {"name": "http", "containerPort": PORT}
    if name == "a":
        port["hostPort"] = HOST_PORT
    containers = [
        {"name": "one", "image": IMAGE, "args": ["netexec", f"--http-port={PORT}", "--udp-port=-1"], "ports": [port]},
        {"name": "two", "image": IMAGE, "args": ["netexec", f"--http-port={OTHER_PORT}", "--udp-port=-1"]},
    ]
    spec = {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": containers}
    metadata = {"name": name, "namespace": namespace, "labels": {"pod": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def address_for(probe: Probe, addresses: dict[str, dict[int, str]]) -> str:
    return addresses[NODE if probe.port == HOST_PORT else probe.target][probe.family]


def name_of(probe: Probe) -> str:
    return f"{probe.target}-{probe.family}-{probe.port}"


def attempt(probe: Probe, address: str) -> str:
    host = f"[{address}]" if probe.family == 6 else address
    return f"(/agnhost connect '{host}:{probe.port}' --timeout=2s >/dev/null 2>&1 && echo {name_of(probe)}) &"


def wrong(found: dict[Probe, bool], case: Case) -> list[str]:
    return [
        f"{probe.source} {'talks' if talks else 'does not talk'} to {probe.target}:{probe.port} over IPv{probe.family}"
        for probe, talks in found.items()
        if talks != case.wants(probe)
    ]


def main(run: str) -> int:
    cluster = Cluster(Path(run))
    failed = passed = 0
    try:
        addresses = cluster.begin()
        for case in cases(addresses):
            policies = cluster.as_served(case.policies)
            if policies:
                cluster.apply(policies)
            until = time.monotonic() + PATIENCE_SECONDS
            while (bad := wrong(cluster.matrix(addresses, case), case)) and time.monotonic() < until:
                pass
            bad = bad or wrong(cluster.matrix(addresses, case), case)
            print(f"  {case.name}: {'; '.join(bad) if bad else 'as it should be'}")
            failed, passed = failed + bool(bad), passed + (not bad)
            if policies:
                cluster.delete(policies)
    finally:
        cluster.end()
    print(f"matrix: {passed} of {passed + failed} cases")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
