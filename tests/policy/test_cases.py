"""The cases of the folder, decided by the calculation's entries: no kernel. Nodes' own traffic needs one."""

from __future__ import annotations

import pytest

from felixpy.calc.policy.classes import Direction
from tests.policy.cases import Case, Cell, interface, load
from tests.policy.node import Node
from tests.policy.walk import Packet, World

CASES = load()


def packet_of(case: Case, cell: Cell) -> Packet:
    probe = cell.probe
    source, destination = (case.address(name, probe.family) for name in (cell.source, cell.destination))
    return Packet(source, destination, probe.number, probe.source_port, probe.port, probe.icmp)


def passes(case: Case, worlds: dict[str, World], cell: Cell) -> bool:
    """Egress of the source on its node, then ingress of the destination on its node."""
    packet = packet_of(case, cell)
    for name, way in ((cell.source, Direction.EGRESS), (cell.destination, Direction.INGRESS)):
        pod = case.pods().get(name)
        if pod and not worlds[pod["node"]].decides(interface(name), way, packet):
            return False
    return True


def differences(case: Case, nodes: dict[str, Node]) -> list[Cell]:
    worlds = {name: node.world() for name, node in nodes.items()}
    return [cell for cell in case.cells() if passes(case, worlds, cell) is not cell.passes]


def test_there_are_cases() -> None:
    assert len(CASES) >= 100
    assert sum(1 for case in CASES for _ in case.cells()) > 5_000


@pytest.mark.parametrize("case", [case for case in CASES if not case.has_hosts], ids=lambda case: case.name)
def test_a_case(case: Case) -> None:
    resources = list(case.parsed())
    assert differences(case, {name: Node(name).put_all(resources) for name in ("n1", "n2")}) == []
    assert differences(case, {name: Node(name).put(*reversed(resources)) for name in ("n1", "n2")}) == []
    late = {name: Node(name, complete=False).put(*resources) for name in ("n1", "n2")}
    for node in late.values():
        node.complete()
    assert differences(case, late) == []


def test_each_case_from_the_state_of_the_one_before_is_as_from_scratch() -> None:
    nodes = {name: Node(name) for name in ("n1", "n2")}
    present: dict[str, dict[object, object]] = {name: {} for name in nodes}
    for case in (case for case in CASES if not case.has_hosts):
        resources = {resource.key: resource for resource in case.parsed()}
        for name, node in nodes.items():
            node.put_all(resource for key, resource in resources.items() if present[name].get(key) != resource)
            node.drop(*(key for key in present[name] if key not in resources))  # type: ignore[arg-type]
            present[name] = dict(resources)
        assert differences(case, nodes) == [], case.name
