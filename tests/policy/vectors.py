"""Run cases of policy from a folder through the real agent, on real packets: all pairs, both families.

    python -m tests.policy.vectors FOLDER --backend nftables|legacy|nft [--family 4|6] [--only CASES] [--twice CASES]

Each case runs twice: from the state that the one before has left, and, if ``--twice`` names it, from scratch with an
agent that has just started.
Exits with 0 if the kernel decides each cell as the case says, else prints the cells that differ. Needs root; everything
happens in namespaces of this process's own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from felixpy.model.parse import parse_resource
from tests.policy.cases import Case, Cell, load
from tests.policy.lab import Lab

Objects = Mapping[tuple[str, str, str], Mapping[str, Any]]


@dataclass
class Outcome:
    """What a run found, as lines for people; ``cells`` is how many questions were asked."""

    differences: list[str] = field(default_factory=list)
    cells: int = 0


def configuration(case: Case) -> dict[str, Any]:
    """Settings that a case asks for, as the object that a user would write."""
    spec: dict[str, Any] = {}
    for side, name in (("in", "failsafeInboundHostPorts"), ("out", "failsafeOutboundHostPorts")):
        ports = case.topology.get("failsafe", {}).get(side)
        if ports is not None:
            spec[name] = [dict(zip(("protocol", "port", "net"), port, strict=False)) for port in ports]
    if action := case.topology.get("endpointToHost"):
        spec["defaultEndpointToHostAction"] = action
    metadata = {"name": "default"}
    return {"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration", "metadata": metadata, "spec": spec}


def objects_of(case: Case) -> Objects:
    """All objects of a case by kind, name and namespace."""
    found = {}
    for obj in (configuration(case), *case.objects()):
        made = parse_resource(obj)
        assert made is not None, obj
        found[made.key.kind.value, made.key.name, made.key.namespace] = obj
    return found


class Runner:
    """Cases one after the other through one lab, which is built anew for other pods."""

    def __init__(self, backend: str, families: Sequence[int], log: Any) -> None:
        self.backend, self.families, self._log = backend, families, log
        self._lab: Lab | None = None
        self._built_of: object = None
        self._present: Objects = {}

    def close(self) -> None:
        if self._lab is not None:
            self._lab.close()

    def run(self, cases: Sequence[Case], *, from_scratch: bool) -> Iterator[tuple[Case, list[tuple[Cell, bool]], str]]:
        """Each case with the cells that differ, and words about anything else that is wrong."""
        started: Lab | None = None
        for case in cases:
            lab = self._lab_of(case)
            if from_scratch or started is not lab:
                lab.tell({"do": "stop", "clean": True})
                lab.tell({"do": "start", "backend": self.backend, "families": self.families})
                self._present, started = {}, lab
            wanted = objects_of(case)
            drop = [list(key) for key in self._present.keys() - wanted.keys()]
            put = [obj for key, obj in wanted.items() if self._present.get(key) != obj]
            in_use = case.topology.get("inUse", [])
            answers = lab.tell({"do": "apply", "put": put, "drop": drop, "in_use": in_use})
            self._present = wanted
            lab.translate(case.topology.get("dnat", ()))
            words = "; ".join(text for answer in answers.values() for text in answer["problems"])
            yield case, [one for one in lab.differences(case) if self._is_asked(one[0])], words

    def _is_asked(self, cell: Cell) -> bool:
        return cell.probe.family.version in self.families

    def _lab_of(self, case: Case) -> Lab:
        built_of = case.topology["pods"].keys(), case.topology["others"].keys()
        places = {name: (pod["node"], pod["addresses"]) for name, pod in case.topology["pods"].items()}
        if self._lab is None or (built_of, places) != self._built_of:
            self.close()
            self._lab, self._built_of, self._present = Lab(case, self._log), (built_of, places), {}
        return self._lab


def run(
    folder: Path, backend: str, families: Sequence[int], pattern: str, twice: str = "*", say: Any = print
) -> Outcome:
    """Run a folder of cases, those of the names ``twice`` both ways."""
    cases = [case for case in load(folder) if fnmatch(case.name, pattern)]
    outcome = Outcome()
    with tempfile.TemporaryFile("w+") as log:
        runner = Runner(backend, families, log)
        try:
            for from_scratch in (False, True):
                way = "from scratch" if from_scratch else "from the state before"
                some = [case for case in cases if fnmatch(case.name, twice)] if from_scratch else cases
                for case, wrong, words in runner.run(some, from_scratch=from_scratch):
                    outcome.cells += sum(cell.probe.family.version in families for cell in case.cells())
                    lines = [*_told(wrong), *([words] if words else [])]
                    outcome.differences += [f"{case.name} ({backend}, {way}): {line}" for line in lines]
                    for line in lines:
                        say(f"{case.name} ({backend}, {way}): {line}")
        except RuntimeError as error:
            log.seek(0)
            outcome.differences.append(f"{error}\n{log.read()[-3000:]}")
        finally:
            runner.close()
    if not cases:
        outcome.differences.append(f"there is no case in {folder} that {pattern} names")
    return outcome


def _told(wrong: Iterable[tuple[Cell, bool]]) -> Iterator[str]:
    for cell, passed in wrong:
        does, should = ("passes", "must not") if passed else ("does not pass", "must")
        yield f"{cell.source} -> {cell.destination} {cell.probe}: {does}, {should}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.policy.vectors", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backend", choices=("nftables", "legacy", "nft"), required=True)
    parser.add_argument("--family", type=int, choices=(4, 6), help="ask for one family alone")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="cases of this name, such as 03*")
    parser.add_argument("--twice", default="*", metavar="PATTERN", help="cases that also run from scratch; all")
    asked = parser.parse_args(arguments)
    began = time.monotonic()
    families = [asked.family] if asked.family else [4, 6]
    outcome = run(asked.folder, asked.backend, families, asked.only, asked.twice)
    for line in outcome.differences if not outcome.cells else ():
        print(line)
    seconds = time.monotonic() - began
    if outcome.differences:
        print(f"{len(outcome.differences)} differences in {outcome.cells} cells, {seconds:.0f} s", file=sys.stderr)
        for line in outcome.differences[-1:]:
            print(line, file=sys.stderr)
        return 1
    print(f"{outcome.cells} cells agree, {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
