"""``python -m tests.policy.flood_process BACKEND``: changes of policy under a flood; prints the counts as JSON."""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from typing import Any

from felixpy.model.net import FAMILIES, Family
from tests.policy import packets
from tests.policy.cases import Case, load
from tests.policy.flood import flood
from tests.policy.lab import PATIENT_S, Lab
from tests.policy.vectors import objects_of

CHANGES = 24
BATCHES = 120
FILLERS = 12


def network_policy(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "projectcalico.org/v3",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "x"},
        "spec": {"order": 10, **spec},
    }


def keeping(ports: list[int]) -> dict[str, Any]:
    """What decides all the time: tcp/80 to x/b passes, whatever else the policy says; tcp/81 does not."""
    allowed = [{"action": "Allow", "protocol": "TCP", "destination": {"ports": ports}}]
    return network_policy("keep", selector="all()", ingress=allowed)


def flapping(number: int) -> dict[str, Any]:
    """A policy of this workload alone that says nothing of either port: by it and without it the workload moves out of
    the class of the others and back.
    """
    rules = [
        {"action": "Deny", "protocol": "TCP", "destination": {"ports": [1000 + number, 7]}},
        {"action": "Allow", "protocol": "UDP", "source": {"selector": f"pod == 'a' || n == '{number % 7}'"}},
    ]
    return network_policy("flap", selector="pod == 'b'", types=["Ingress", "Egress"], ingress=rules,
                          egress=[{"action": "Allow"}])  # fmt: skip


def filler(number: int) -> dict[str, Any]:
    """One of many for all workloads that says nothing of either port."""
    rules = [{"action": "Allow", "protocol": "UDP", "destination": {"ports": [3000 + number]}}]
    return network_policy(f"filler{number:02}", selector="all()", ingress=rules)


def guest(number: int) -> dict[str, Any]:
    """Another such, before, among and after the others: with it and without it, all classes are edited."""
    rules = [{"action": "Deny", "protocol": "UDP", "destination": {"ports": [number + 1]}}]
    return network_policy("filler05-guest", order=(5, 10, 15)[number // 2 % 3], selector="all()", ingress=rules)


def established(lab: Lab, case: Case) -> dict[str, list[bool]]:
    """Whether datagrams pass, by family: while a policy allows them, the answer, without it, and a new flow then."""
    numbers = itertools.count(1 << 20)
    allowing = network_policy("udp", selector="app == 'db'", ingress=[{"action": "Allow", "protocol": "UDP"}])
    found: dict[str, list[bool]] = {}

    def passes(source: str, destination: str, ports: tuple[int, int], family: Family) -> bool:
        ends, number = [case.address(name, family) for name in (source, destination)], next(numbers)
        lab.put(source, packets.packet(ends[0], ends[1], packets.UDP, ports, number), family)
        return (number, destination) in lab.arrived(PATIENT_S)

    lab.tell({"do": "apply", "put": [allowing]})
    for family in FAMILIES:
        there, back = passes("x/a", "x/b", (41000, 90), family), passes("x/b", "x/a", (90, 41000), family)
        found[str(family)] = [there, back]
    lab.tell({"do": "apply", "drop": [["NetworkPolicy", "udp", "x"]]})
    for family in FAMILIES:
        found[str(family)] += [passes("x/a", "x/b", (port, 90), family) for port in (41000, 41001)]
    return found


def main(backend: str) -> None:
    base = next(case for case in load() if case.name.startswith("001"))
    case = Case(base.name, base.topology, (keeping([80]),), base.matrices)
    with tempfile.TemporaryFile("w+") as log, Lab(case, log) as lab:
        lab.tell({"do": "start", "backend": backend})
        lab.tell({"do": "apply", "put": list(objects_of(case).values())})

        flows = established(lab, case)

        def change(number: int) -> None:
            kind = number % 6
            if kind in (0, 3):
                lab.tell({"do": "apply", "put": [flapping(number)]})
            elif kind in (1, 4):
                lab.tell({"do": "apply", "put": [keeping([80, 2000 + number]), flapping(number)]})
            else:
                lab.tell({"do": "apply", "drop": [["NetworkPolicy", "flap", "x"]]})

        def first_and_last(number: int) -> None:
            """The only policy comes, and with it all that finds out whom it is for, and goes."""
            asked = {"put": [keeping([80])]} if number % 2 else {"drop": [["NetworkPolicy", "keep", "x"]]}
            lab.tell({"do": "apply", **asked})

        counts = flood(lab, case, change, changes=CHANGES, batches=BATCHES)
        lab.tell({"do": "apply", "drop": [["NetworkPolicy", "flap", "x"]]})
        first = flood(lab, case, first_and_last, changes=CHANGES, batches=BATCHES)

        def one_of_many(number: int) -> None:
            asked = {"drop": [["NetworkPolicy", "filler05-guest", "x"]]} if number % 2 else {"put": [guest(number)]}
            lab.tell({"do": "apply", **asked})

        lab.tell({"do": "apply", "put": [filler(number) for number in range(FILLERS)]})
        many = flood(lab, case, one_of_many, changes=CHANGES, batches=BATCHES)
    print(json.dumps({"allowed": len(counts.allowed), "denied": len(counts.denied), "lost": counts.lost,
                      "leaked": counts.leaked, "arrived": len(counts.arrived), "flows": flows,
                      "lost_by_the_first": first.lost,
                      "with_many": [len(many.allowed), len(many.denied), many.lost, many.leaked]}))  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1])
