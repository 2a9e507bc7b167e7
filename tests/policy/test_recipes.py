"""The recipes of ``docs/policy.md``, as they are pasted from there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from felixpy.calc.policy.classes import Direction
from felixpy.model.net import FAMILIES
from felixpy.model.policy import Policy
from tests.policy.cases import FOLDER, Case, interface, load
from tests.policy.node import Node
from tests.policy.oracle import Oracle, Question
from tests.policy.walk import Packet

PAGE = Path(__file__).parents[2] / "docs" / "policy.md"
RECIPES = [list(yaml.safe_load_all(text)) for text in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)]
PODS = ("x/a", "x/b", "x/c", "y/a", "y/b", "z/a")
EVERYBODY = (*PODS, "ext1", "ext2")
EXPECTED = {
    0: {"x/a": {"x/b", "x/c"}, "y/a": set(EVERYBODY) - {"y/a"}},
    1: {"x/a": set(EVERYBODY) - {"x/a"}, "x/c": set()},
    2: {"x/b": {"x/a", "x/c"}, "y/b": set(EVERYBODY) - {"y/b"}},
    3: {"ext1": set(EVERYBODY) - {"ext1"}, "ext2": {"ext1"}, "y/a": set(EVERYBODY) - {"y/a"}},
    4: {"x/c": {"ext1", "ext2"}, "x/a": set(EVERYBODY) - {"x/a", "x/c"}, "ext1": set(EVERYBODY) - {"ext1", "x/c"}},
}
"""By recipe and destination, who reaches it at TCP port 80."""


def case_of(recipe: list[dict[str, object]]) -> Case:
    base = load()[0]
    return Case("recipe", base.topology, tuple(recipe), ())


def reaches(case: Case, nodes: dict[str, Node], oracle: Oracle, source: str, destination: str) -> bool:
    """In both families, or in none; and as the second opinion says."""
    found = set()
    for family in FAMILIES:
        packet = Packet(case.address(source, family), case.address(destination, family))
        question = Question(case.text(source, family), case.text(destination, family))
        passes = True
        for name, way in ((source, Direction.EGRESS), (destination, Direction.INGRESS)):
            if pod := case.pods().get(name):
                allowed = nodes[pod["node"]].world().decides(interface(name), way, packet)
                assert allowed is oracle.allows(case.endpoint(name), way.value, question)
                passes = passes and allowed
        found.add(passes)
    assert len(found) == 1, (source, destination)
    return found.pop()


@pytest.mark.parametrize("number", range(5))
def test_a_recipe_does_what_it_says(number: int) -> None:
    assert len(RECIPES) == 5
    case = case_of(RECIPES[number])
    resources = list(case.parsed())
    assert not [found.problems for found in resources if isinstance(found, Policy) and found.problems]
    nodes = {name: Node(name).put_all(resources) for name in ("n1", "n2")}
    oracle = Oracle(case.objects())
    for destination, expected in EXPECTED[number].items():
        names = {name for name in EVERYBODY if name != destination}
        assert {name for name in names if reaches(case, nodes, oracle, name, destination)} == expected, destination


def written(number: int) -> dict[str, object]:
    """A recipe as a case of a file: what passes to each destination that it speaks of, in both families."""
    matrices = []
    for family in FAMILIES:
        rows = {
            source: "".join(sign(source, goal, reach) for goal, reach in EXPECTED[number].items())
            for source in EVERYBODY
        }
        probe = {"proto": "tcp", "port": 80, "family": family.version}
        matrices.append({"probe": probe, "columns": " ".join(EXPECTED[number]), "rows": rows})
    return {"resources": RECIPES[number], "expect": {"matrices": matrices}}


def sign(source: str, goal: str, reach: set[str]) -> str:
    if source == goal or not {source, goal} & set(PODS):
        return "-"  # nobody, or the outside with itself
    return "." if source in reach else "X"


@pytest.mark.parametrize("backend", ["nftables", "legacy"])  # nft has legacy's rules, and all vectors
def test_the_recipes_do_what_they_say_to_packets(backend: str, tmp_path: Path) -> None:
    """As pasted, one after another and each from scratch, in a process with namespaces of its own."""
    (tmp_path / "topology.yaml").write_text((FOLDER / "topology.yaml").read_text())
    for number in range(len(RECIPES)):
        (tmp_path / f"{number:03}-recipe.yaml").write_text(yaml.safe_dump(written(number)))
    command = [sys.executable, "-m", "tests.policy.vectors", str(tmp_path), "--backend", backend]
    done = subprocess.run(command, cwd=PAGE.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
    cells = sum(cell != "-" for number in EXPECTED for matrix in written(number)["expect"]["matrices"]  # type: ignore[index]
                for row in matrix["rows"].values() for cell in row)  # fmt: skip
    assert done.stdout.startswith(f"{2 * cells} cells agree"), done.stdout
