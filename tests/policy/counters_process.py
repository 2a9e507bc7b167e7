"""``python -m tests.policy.counters_process BACKEND``: what is counted of packets that were sent; prints it as JSON."""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from typing import Any

from felixpy.model.net import FAMILIES
from tests.policy import packets
from tests.policy.cases import Case, load
from tests.policy.lab import PATIENT_S, Lab
from tests.policy.vectors import objects_of

CALICO = "projectcalico.org/v3"
OFF = {"apiVersion": CALICO, "kind": "FelixConfiguration", "metadata": {"name": "default"},
       "spec": {"policyCounters": "Disabled"}}  # fmt: skip
GUARD = {
    "apiVersion": CALICO,
    "kind": "GlobalNetworkPolicy",
    "metadata": {"name": "guard"},
    "spec": {
        "tier": "security",
        "selector": "app == 'db'",
        "ingress": [
            {"action": "Deny", "protocol": "TCP", "destination": {"ports": [81]}},
            {"action": "Pass"},
        ],
    },
}
TIER = {"apiVersion": CALICO, "kind": "Tier", "metadata": {"name": "security"}, "spec": {"order": 5}}
PROFILE = {
    "apiVersion": CALICO,
    "kind": "Profile",
    "metadata": {"name": "kns.x"},
    "spec": {"ingress": [{"action": "Allow"}], "egress": [{"action": "Deny", "protocol": "UDP"}, {"action": "Allow"}]},
}
KEEP = {
    "apiVersion": CALICO,
    "kind": "NetworkPolicy",
    "metadata": {"name": "keep", "namespace": "x"},
    "spec": {
        "selector": "app == 'db'",
        "ingress": [{"action": "Allow", "protocol": "TCP", "destination": {"ports": [80, 81]}}],
    },
}
SENT = {80: 3, 81: 2, 82: 4}
"""By port, packets of connections of their own from x/a to x/b in each family: allowed, denied by a rule, by an end."""


def main(backend: str) -> None:
    base = next(case for case in load() if case.name.startswith("001"))
    case = Case(base.name, base.topology, (TIER, PROFILE, GUARD, KEEP), base.matrices)
    numbers = itertools.count(1)
    with tempfile.TemporaryFile("w+") as log, Lab(case, log) as lab:

        def send() -> int:
            for family in FAMILIES:
                ends = [case.address(name, family) for name in ("x/a", "x/b")]
                for port, times in SENT.items():
                    for number in itertools.islice(numbers, times):
                        packet = packets.packet(ends[0], ends[1], packets.TCP, (40000 + number, port), number)
                        lab.put("x/a", packet, family)
            return len(lab.arrived(PATIENT_S))

        def count() -> list[list[Any]]:
            packets_of: list[list[Any]] = lab.tell({"do": "count"})["n1"]["packets"]
            return packets_of

        objects = list(objects_of(case).values())
        lab.tell({"do": "start", "backend": backend})
        lab.tell({"do": "apply", "put": objects})
        found: dict[str, Any] = {"before": count(), "arrived": send(), "first": count()}
        lab.tell({"do": "stop"})
        lab.tell({"do": "start", "backend": backend})
        found["restart"] = lab.tell({"do": "apply", "put": objects})["n1"]
        send()
        found["second"] = count()
        without = {**KEEP, "spec": {**KEEP["spec"], "order": 7}}
        lab.tell({"do": "apply", "put": [without], "drop": [["GlobalNetworkPolicy", "guard", ""]]})
        found["without"] = count()
        lab.tell({"do": "apply", "put": [OFF]})
        send()
        found["off"] = count()
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
