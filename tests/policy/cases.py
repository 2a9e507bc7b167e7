"""Cases of policy as files: a topology, resources as users write them, and what must pass (``tests/policy/vectors``).

A file may have ``steps``, each a case by itself: what it does not say is as in the step before, so that it is a change.
``topology`` of a step goes into what there is (``pods: {x/a: {labels: …}}``); None takes something away.

Pods become WorkloadEndpoints with the profiles of their namespace and service account, namespaces and service accounts
the objects of Kubernetes, services EndpointSlices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from felixpy.model.net import Family, Net
from felixpy.model.parse import parse_resource
from felixpy.model.resources import Absent, Resource

FOLDER = Path(__file__).parent / "vectors"
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132, "udplite": 136}
ICMP = {Family.V4: 1, Family.V6: 58}
ECHO = {Family.V4: 8, Family.V6: 128}


class Probe(NamedTuple):
    """``shape``: how the packet is built, which must make no difference (``packets.SHAPES``)."""

    protocol: str
    port: int
    source_port: int
    family: Family
    icmp: tuple[int, int] = (0, 0)
    shape: str = ""

    @property
    def number(self) -> int:
        """Of the protocol."""
        return PROTOCOLS.get(self.protocol) or ICMP[self.family]

    def __str__(self) -> str:
        ports = f"/{self.port}@{self.source_port}" if self.port else ""
        kind = f":{self.icmp[0]}.{self.icmp[1]}" if self.protocol == "icmp" else ""
        return f"{self.protocol}{kind}{ports}{f' {self.shape}' if self.shape else ''} {self.family}"


class Cell(NamedTuple):
    """One question: does it pass from ``source`` to ``destination``?"""

    probe: Probe
    source: str
    destination: str
    passes: bool


@dataclass(frozen=True)
class Case:
    name: str
    topology: Mapping[str, Any]
    resources: tuple[Mapping[str, Any], ...]
    matrices: tuple[Mapping[str, Any], ...]

    @property
    def has_hosts(self) -> bool:
        """Whether nodes themselves are asked about, which needs a whole node."""
        return any(
            self.topology["others"].get(name, {}).get("node")
            for matrix in self.matrices
            for name in matrix["columns"].split()
        )

    def pods(self) -> Mapping[str, Mapping[str, Any]]:
        return dict(self.topology["pods"])

    def text(self, name: str, family: Family) -> str:
        """An address of a pod or of another host."""
        place = self.topology["pods"].get(name) or self.topology["others"][name]
        return next(str(text) for text in place["addresses"] if Net.parse(text).family is family)

    def address(self, name: str, family: Family) -> bytes:
        return Net.parse(self.text(name, family)).packed

    def endpoint(self, pod: str) -> str:
        """The name of a pod's endpoint, with what tells it from pods of that name elsewhere."""
        return endpoint_name(pod, self.topology["pods"][pod]["node"])

    def cells(self) -> Iterator[Cell]:
        for matrix in self.matrices:
            raw = matrix["probe"]
            family = Family.V4 if raw["family"] == 4 else Family.V6
            icmp = (raw.get("type", ECHO[family]), raw.get("code", 0)) if raw["proto"] == "icmp" else (0, 0)
            ports = raw.get("port", 0), raw.get("sport", 40000)
            probe = Probe(raw["proto"], *ports, family, icmp, raw.get("shape", ""))
            for source, row in matrix["rows"].items():
                for destination, sign in zip(matrix["columns"].split(), row, strict=True):
                    if sign != "-":
                        yield Cell(probe, source, destination, sign == ".")

    def objects(self) -> Iterator[Mapping[str, Any]]:
        """Everything as objects, the topology first."""
        for name, namespace in self.topology["namespaces"].items():
            yield _made("v1", "Namespace", name, labels=namespace["labels"])
            for account, facts in namespace["serviceAccounts"].items():
                yield _made("v1", "ServiceAccount", account, namespace=name, labels=facts)
        for name, pod in self.topology["pods"].items():
            yield _pod(name, pod)
        for name, slices in self.topology.get("services", {}).items():
            yield from _slices(name, slices)
        yield from self.resources

    def parsed(self) -> Iterator[Resource]:
        for obj in self.objects():
            found = parse_resource(obj)
            assert found is not None and not isinstance(found, Absent), obj
            yield found


def endpoint_name(pod: str, node: str) -> str:
    return f"{node}-k8s-{pod.replace('/', '-')}-eth0"


def interface(pod: str) -> str:
    return f"cali{pod.replace('/', '')}"


def _made(version: str, kind: str, name: str, spec: object = None, **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, **metadata}, "spec": spec or {}}


def _pod(name: str, pod: Mapping[str, Any]) -> dict[str, Any]:
    namespace, _ = name.split("/")
    account = pod.get("serviceAccount")
    usual = [f"kns.{namespace}", *([f"ksa.{namespace}.{account}"] if account else [])]
    spec = {
        "node": pod["node"],
        "orchestrator": "k8s",
        "interfaceName": interface(name),
        "ipNetworks": pod["addresses"],
        "profiles": pod.get("profiles", usual),
        "ports": pod.get("ports", []),
        **({"serviceAccountName": account} if account else {}),
    }
    return _made(
        "projectcalico.org/v3", "WorkloadEndpoint", endpoint_name(name, pod["node"]), spec, namespace=namespace,
        labels=pod["labels"],
    )  # fmt: skip


def _slices(name: str, slices: list[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    namespace, short = name.split("/")
    for number, one in enumerate(slices):
        for family, word in ((Family.V4, "IPv4"), (Family.V6, "IPv6")):
            addresses = [text for text in one["addresses"] if Net.parse(text).family is family]
            labels = {"kubernetes.io/service-name": short}
            made = _made(
                "discovery.k8s.io/v1", "EndpointSlice", f"{short}-{number}-{word.lower()}", namespace=namespace,
                labels=labels,
            )  # fmt: skip
            made |= {"addressType": word, "endpoints": [{"addresses": addresses}]}
            yield {**made, "ports": [{"protocol": one["protocol"], "port": one["port"]}]}


def load(folder: Path = FOLDER) -> list[Case]:
    """The cases of a folder by their file names."""
    base = yaml.safe_load((folder / "topology.yaml").read_text())
    found = []
    for path in sorted(folder.glob("[0-9]*.yaml")):
        raw = yaml.safe_load(path.read_text())
        topology = {**base, **(raw.get("topology") or {})}
        resources = raw.get("resources", [])
        if "steps" not in raw:
            found.append(Case(path.stem, topology, tuple(resources), tuple(raw["expect"]["matrices"])))
        for number, step in enumerate(raw.get("steps", ()), 1):
            topology = changed(topology, step.get("topology") or {})
            resources = step.get("resources", resources)
            found.append(Case(f"{path.stem}-{number}", topology, tuple(resources), tuple(step["expect"]["matrices"])))
    return found


def changed(value: Mapping[str, Any], by: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with another one worked into it; labels are replaced as a whole."""
    found = dict(value)
    for key, new in by.items():
        if new is None:
            found.pop(key, None)
        elif isinstance(new, Mapping) and isinstance(found.get(key), Mapping) and key != "labels":
            found[key] = changed(found[key], new)
        else:
            found[key] = new
    return found
