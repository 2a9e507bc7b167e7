"""Where the walkthroughs to IPv6 and dual stack end: new pods have addresses, and talk, over each family.

usage: python -m tests.kubernetes.seeds RUN RANGES [NAT]

RUN is the folder of a running cluster, RANGES the CIDRs of its pods, NAT the families (4, 6 or 46) in which packets
that leave the cluster have the node's address; in the other ones the network outside knows the way to pods' blocks.
Ends with 1 if something is not as it should be. With ranges of both families, Kubernetes' own steps to validate dual
stack are gone, too.
"""

from __future__ import annotations

import ipaddress
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.kubernetes.on_cluster import IMAGE, JSON, Kubectl

NAMESPACE = "seeds"
PODS = {"one": "n1", "two": "n1", "three": "n2"}
NODES = {"n1": {4: "172.30.0.11", 6: "fd30::11"}, "n2": {4: "172.30.0.12", 6: "fd30::12"}}
OUTSIDE = {4: "198.51.100.2", 6: "2001:db8:51::2"}
PATIENCE_SECONDS = 60


class Question(NamedTuple):
    """What a pod asks for, and the answer."""

    pod: str
    what: str
    url: str
    answer: str


def url(address: str, path: str) -> str:
    return f"http://[{address}]:8080/{path}" if ":" in address else f"http://{address}:8080/{path}"


def family_of(address: str) -> int:
    return 6 if ":" in address else 4


def pod(name: str) -> JSON:
    addresses = {"name": "MY_POD_IPS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIPs"}}}
    container = {
        "name": "one",
        "image": IMAGE,
        "args": ["netexec", "--http-port=8080", "--udp-port=-1"],
        "env": [addresses],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"pod": name}},
        "spec": {"nodeName": PODS[name], "terminationGracePeriodSeconds": 0, "containers": [container]},
    }


def service(name: str, more: JSON) -> JSON:
    spec = {"selector": {"pod": "three"}, "ports": [{"port": 8080}], **more}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}


class Seed:
    def __init__(self, run: str, ranges: str, nat: str) -> None:
        self.cluster = Kubectl(Path(run))
        self.ranges = [ipaddress.ip_network(one) for one in ranges.split(",")]
        self.families = sorted({one.version for one in self.ranges})
        self.nat = [int(one) for one in nat]
        self._network = f"/run/netns/{Path(run).name}"
        self._looks = self._wrong = 0

    def look(self, what: str, found: object, wanted: object) -> None:
        self._looks += 1
        if found != wanted:
            self._wrong += 1
            print(f"  {what}: {found}, not {wanted}")

    def run(self) -> int:
        pools = {each["spec"]["cidr"] for each in self.cluster.get("ippools.projectcalico.org")["items"]}
        wanted = set(map(str, self.ranges))
        self.look("pools", pools & wanted, wanted)  # Calico makes an IPv4 pool in a cluster of IPv6, too
        self.cluster.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}])
        self.cluster.apply([pod(name) for name in PODS])
        self.cluster.kubectl("-n", NAMESPACE, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=120s")
        addresses = self._addresses()
        self._lead_to_blocks()
        services = self._services()
        self._ask(list(self._questions(addresses, services)))
        self._ask_from_outside(addresses)
        if len(self.families) > 1:
            self._validate(addresses)
        print(f"  {self._looks - self._wrong} of {self._looks} as it should be")
        return 1 if self._wrong else 0

    def _addresses(self) -> dict[str, dict[int, str]]:
        found = {}
        for each in self.cluster.get("-n", NAMESPACE, "pods")["items"]:
            name, told = each["metadata"]["name"], [one["ip"] for one in each["status"]["podIPs"]]
            found[name] = {family_of(address): address for address in told}
            homes = [next((r.version for r in self.ranges if ipaddress.ip_address(a) in r), 0) for a in told]
            self.look(f"addresses of {name}, {' and '.join(told)}", homes, self.families)
        return found

    def _lead_to_blocks(self) -> None:
        """What a router outside learns by BGP."""
        for each in self.cluster.get("blockaffinities.projectcalico.org")["items"]:
            spec = each["spec"]
            way = NODES[spec["node"]][family_of(spec["cidr"])]
            subprocess.run(
                ("ip", "-n", f"{Path(self._network).name}-cp", "route", "replace", spec["cidr"], "via", way), check=True
            )

    def _services(self) -> list[str]:
        """One of each family; their addresses."""
        wanted = [service(f"s{family}", {"ipFamilies": [f"IPv{family}"]}) for family in self.families]
        self.cluster.apply(wanted)
        found = [self.cluster.get("-n", NAMESPACE, "service", each["metadata"]["name"])["spec"] for each in wanted]
        return [spec["clusterIP"] for spec in found]

    def _questions(self, addresses: dict[str, dict[int, str]], services: list[str]) -> Iterator[Question]:
        for source, own in addresses.items():
            for target, theirs in addresses.items():
                if source != target:
                    for family, address in theirs.items():
                        yield Question(source, f"{target} over IPv{family}", url(address, "hostname"), target)
            for address in services:
                yield Question(source, f"Service over IPv{family_of(address)}", url(address, "hostname"), "three")
            for family in self.families:
                seen = NODES[PODS[source]][family] if family in self.nat else own[family]
                yield Question(source, f"the outside over IPv{family}", url(OUTSIDE[family], "clientip"), seen)

    def _ask(self, questions: list[Question]) -> None:
        """Ask until all answers are right, 60 s at most; the last ones count."""
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            found = {name: self._answers([one for one in questions if one.pod == name]) for name in PODS}
            right = all(found[one.pod].get(one.url) == one.answer for one in questions)
            if right or time.monotonic() > until:
                break
        for one in questions:
            self.look(f"{one.pod} asks {one.what}", found[one.pod].get(one.url), one.answer)

    def _answers(self, questions: list[Question]) -> dict[str, str]:
        script = " ".join(f"echo {one.url} $(curl -s -m 5 '{one.url}');" for one in questions)
        told = self.cluster.kubectl("-n", NAMESPACE, "exec", questions[0].pod, "--", "sh", "-c", script)
        answers = dict([*line.split(), ""][:2] for line in told.splitlines())
        return {asked: _address(answer) for asked, answer in answers.items()}

    def _ask_from_outside(self, addresses: dict[str, dict[int, str]]) -> None:
        for family in self.families:
            if family not in self.nat:
                command = ("ip", "netns", "exec", f"{Path(self._network).name}-out", "curl", "-s", "-m", "5")
                told = subprocess.run(
                    (*command, url(addresses["three"][family], "hostname")), capture_output=True, text=True, check=False
                )
                self.look(f"the outside asks three over IPv{family}", told.stdout, "three")

    def _validate(self, addresses: dict[str, dict[int, str]]) -> None:
        def both(told: list[str]) -> list[int]:
            return sorted(family_of(one) for one in told)

        for node in self.cluster.get("nodes")["items"]:
            name = node["metadata"]["name"]
            self.look(f"ranges of node {name}", both(node["spec"]["podCIDRs"]), [4, 6])
            internal = [one["address"] for one in node["status"]["addresses"] if one["type"] == "InternalIP"]
            self.look(f"addresses of node {name}", both(internal), [4, 6])
        inside = self.cluster.kubectl(
            "-n", NAMESPACE, "exec", "one", "--", "sh", "-c", "echo $MY_POD_IPS; cat /etc/hosts"
        )
        told, hosts = inside.split("\n", 1)
        self.look("MY_POD_IPS of a pod", sorted(told.split(",")), sorted(addresses["one"].values()))
        mine = [line.split()[0] for line in hosts.splitlines() if line.split()[1:] == ["one"]]
        self.look("/etc/hosts of a pod", sorted(mine), sorted(addresses["one"].values()))
        cases: dict[str, tuple[JSON, list[int]]] = {
            "without a word of families": ({}, [4]),
            "of IPv6": ({"ipFamilies": ["IPv6"]}, [6]),
            "that prefers dual stack": ({"ipFamilyPolicy": "PreferDualStack"}, [4, 6]),
            "that has IPv6 first": ({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv6", "IPv4"]}, [6, 4]),
        }
        for number, (what, (more, families)) in enumerate(cases.items()):
            self.cluster.apply([service(f"validate-{number}", more)])
            spec = self.cluster.get("-n", NAMESPACE, "service", f"validate-{number}")["spec"]
            self.look(f"a Service {what}", [family_of(one) for one in spec["clusterIPs"]], families)


def _address(answer: str) -> str:
    """``/clientip`` answers with address and port."""
    host, colon, port = answer.rpartition(":")
    return host.strip("[]") if colon and port.isdigit() else answer


def main(run: str, ranges: str, nat: str = "") -> int:
    return Seed(run, ranges, nat).run()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
