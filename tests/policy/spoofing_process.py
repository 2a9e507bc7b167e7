"""``python -m tests.policy.spoofing_process BACKEND``: egress policy and allowSpoofedSourcePrefixes; prints JSON."""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from felixpy.model.net import FAMILIES, Family, parse_address
from tests.policy import packets
from tests.policy.cases import Case, load
from tests.policy.lab import PATIENT_S, Lab
from tests.policy.vectors import objects_of

ALLOWED = {"x-a": ["198.18.0.0/16", "2001:db8:18::/48"], "y-a": ["198.18.1.0/24", "2001:db8:18:1::/64"]}
"""y/a's lies in x/a's: an IP set looks for a packet of x/a at the narrower one, too."""
SOURCES = {
    "own": {Family.V4: "", Family.V6: ""},
    "wide": {Family.V4: "198.18.0.9", Family.V6: "2001:db8:18::9"},
    "narrow": {Family.V4: "198.18.1.9", Family.V6: "2001:db8:18:1::9"},
    "other": {Family.V4: "198.51.100.77", Family.V6: "2001:db8:77::9"},
}
WEB = {
    "apiVersion": "projectcalico.org/v3",
    "kind": "NetworkPolicy",
    "metadata": {"name": "web", "namespace": "x"},
    "spec": {
        "selector": "pod == 'a'",
        "types": ["Egress"],
        "egress": [{"action": "Allow", "protocol": "TCP", "destination": {"ports": [80]}}],
    },
}


def with_prefixes(obj: Mapping[str, Any]) -> dict[str, Any]:
    """An endpoint with the prefixes that it may use."""
    for name, prefixes in ALLOWED.items():
        if obj["kind"] == "WorkloadEndpoint" and obj["metadata"]["name"].endswith(f"{name}-eth0"):
            return {**obj, "spec": {**obj["spec"], "allowSpoofedSourcePrefixes": prefixes}}
    return dict(obj)


def main(backend: str) -> None:
    base = next(case for case in load() if case.name.startswith("001"))
    case = Case(base.name, base.topology, (WEB,), base.matrices)
    numbers = itertools.count(1)
    settings = {"WorkloadSourceSpoofing": "Any"}
    with tempfile.TemporaryFile("w+") as log, Lab(case, log) as lab:

        def passes(sender: str) -> dict[str, list[int]]:
            """Ports of x/b that packets of a pod reach in both families, by the kind of their source."""
            asked: dict[int, tuple[str, int, Family]] = {}
            for kind, family, port in itertools.product(SOURCES, FAMILIES, (80, 81)):
                number = next(numbers)
                asked[number] = kind, port, family
                text = SOURCES[kind][family]
                source = parse_address(text) if text else case.address(sender, family)
                ends = source, case.address("x/b", family)
                lab.put(sender, packets.packet(*ends, packets.TCP, (40000 + number, port), number), family)
            arrived = [asked[number] for number, place in lab.arrived(PATIENT_S) if place == "x/b"]
            return {
                kind: [port for port in (80, 81) if all((kind, port, family) in arrived for family in FAMILIES)]
                if sum(one[0] == kind for one in arrived) % 2 == 0
                else [-1]
                for kind in SOURCES
            }

        objects = [with_prefixes(obj) for obj in objects_of(case).values()]
        started = {"do": "start", "backend": backend, "settings": settings}
        lab.tell(started)
        lab.tell({"do": "apply", "put": objects})
        found: dict[str, Any] = {"x/a": passes("x/a"), "y/a": passes("y/a")}
        lab.tell({"do": "stop"})
        lab.tell(started)
        found["restart"] = lab.tell({"do": "apply", "put": objects})["n1"]
        lab.tell({"do": "apply", "drop": [["NetworkPolicy", "web", "x"]]})
        found["without"] = passes("x/a")
        lab.tell({"do": "apply", "put": [WEB]})
        found["again"] = passes("x/a")
        bare = [obj for obj in objects_of(case).values() if obj["metadata"]["name"].endswith("y-a-eth0")]
        lab.tell({"do": "apply", "put": bare})
        found["alone"] = passes("x/a")
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
