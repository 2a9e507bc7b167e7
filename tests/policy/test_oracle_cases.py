"""The second opinion says of the cases what the cases say: else it could not judge anything."""

from __future__ import annotations

import pytest

from tests.policy.cases import Case, Cell, load
from tests.policy.oracle import Oracle, Question


def question(case: Case, cell: Cell) -> Question:
    probe = cell.probe
    source, destination = (case.text(name, probe.family) for name in (cell.source, cell.destination))
    return Question(source, destination, probe.number, probe.source_port, probe.port, probe.icmp)


@pytest.mark.parametrize("case", [case for case in load() if not case.has_hosts], ids=lambda case: case.name)
def test_the_oracle_knows_the_cases(case: Case) -> None:
    oracle = Oracle(case.objects())
    for cell in case.cells():
        asked = question(case, cell)
        passes = True
        for name, direction in ((cell.source, "egress"), (cell.destination, "ingress")):
            if name in case.pods():
                passes = passes and oracle.allows(case.endpoint(name), direction, asked)
        assert passes is cell.passes, cell
