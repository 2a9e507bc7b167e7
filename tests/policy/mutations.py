"""Deliberate mistakes in the calculation of policy: each must be noticed by the tests of this folder.

    .venv/bin/python -m tests.policy.mutations [NUMBER…]

Each mistake is one text of a module replaced in a copy of the package, which the tests then run against. The exit code
is 0 if every mistake was noticed. It takes long, so it is no test itself; ``test_mutations.py`` holds that each
still has its place in the code.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
TESTS = ("tests/policy/test_cases.py", "tests/policy/test_calculation.py", "tests/policy/test_histories.py",
         "tests/model/test_model_policy.py")  # fmt: skip


class Mutation(NamedTuple):
    """``old`` stands once in the file, and becomes ``new``."""

    file: str
    old: str
    new: str


CALC, MODEL, STORE = "felixpy/calc/policy/", "felixpy/model/", "felixpy/store/"

MUTATIONS = (
    Mutation(CALC + "order.py", 'return order, f"{key.name}/{key.namespace}/{key.kind}"', "return -order, key.name"),
    Mutation(
        CALC + "order.py", "order = math.inf if policy.order is None else policy.order", "order = policy.order or 0.0"
    ),
    Mutation(
        CALC + "order.py",
        "return TierRank(True, math.inf, name, EndOfTier.DENY)",
        "return TierRank(True, math.inf, name, EndOfTier.PASS)",
    ),
    Mutation(
        CALC + "order.py",
        "return TierRank(True, math.inf, name, EndOfTier.DENY)",
        "return TierRank(False, 0.0, name, EndOfTier.DENY)",
    ),
    Mutation(CALC + "order.py", "if end is EndOfTier.DENY and not any(may_pass):", "if end is EndOfTier.DENY:"),
    Mutation(
        CALC + "order.py",
        "        if found is None:\n            break",
        "        if found is None:\n            continue",
    ),
    Mutation(CALC + "order.py", "PolicyAction.DENY if found else without_profile", "without_profile"),
    Mutation(CALC + "order.py", "    if rules is None:\n        return None", "    if False:\n        return None"),
    Mutation(
        CALC + "order.py", "zip(*sorted(by_tier[rank.name]), strict=True)", "zip(*by_tier[rank.name], strict=True)"
    ),
    Mutation(CALC + "chains_in_use.py", "self.acquire(new[start:last])", "self.acquire(new[start : last - 1])"),
    Mutation(
        CALC + "rules_of.py",
        "if nets and not any(net.family is family for net in nets):\n            return False",
        "if False:\n            return False",
    ),
    Mutation(CALC + "rules_of.py", "if rule.family not in (None, family) or", "if"),
    Mutation(
        CALC + "rules_of.py",
        "if some is None or _depends_on_family(rule, sets):",
        "if some is None:",
    ),
    Mutation(
        CALC + "rules_of.py",
        "return any(len({sets.selector(one, family) for family in FAMILIES}) > 1 for one in asked if one is not None)",
        "return False",
    ),
    Mutation(
        CALC + "rules_of.py",
        "if is_unconditional(rule) and rule.action is not PolicyAction.LOG:",
        "if is_unconditional(rule):",
    ),
    Mutation(
        CALC + "rules_of.py",
        "sets.ports(entity.selector, protocol or 0, tuple(sorted(entity.not_named_ports)))",
        "sets.ports(entity.selector, protocol or 0, ())",
    ),
    Mutation(
        CALC + "rules_of.py",
        "sets.ports(entity.selector, protocol or 0, tuple(sorted(entity.named_ports)))",
        "sets.ports(None, protocol or 0, tuple(sorted(entity.named_ports)))",
    ),
    Mutation(
        CALC + "rules_of.py",
        "    return [base, by_name]",
        "    return [by_name._replace(ports=base.ports)]",
    ),
    Mutation(CALC + "rules_of.py", "    if prefixes:\n", "    if False:\n"),
    Mutation(
        CALC + "rules_of.py",
        "not_sets += tuple(name for",
        "not_sets = tuple(name for",
    ),
    Mutation(
        CALC + "sets.py",
        "            for other in self._shown_below(net):\n                self._tell(other, present=True)",
        "            pass",
    ),
    Mutation(
        CALC + "sets.py", "if not self._is_covered(net):\n            for other", "if True:\n            for other"
    ),
    Mutation(CALC + "sets.py", "if port.name in self.names and self._protocol", "if self._protocol"),
    Mutation(
        CALC + "sets.py",
        "            self._count[net] -= 1\n                if not self._count[net]:",
        "            self._count[net] -= 1\n                if True:",
    ),
    Mutation(CALC + "selection.py", "for profile in reversed(identity.profiles):", "for profile in identity.profiles:"),
    Mutation(CALC + "selection.py", "        for label in unknown:\n            self._look_at(label)", "        pass"),
    Mutation(
        CALC + "selection.py", "        if lost or gained:\n            self._moved(held, lost, gained)", "        pass"
    ),
    Mutation(CALC + "selection.py", "found = set(self._without_needs)", "found: set[Watched] = set()"),
    Mutation(
        CALC + "sets_in_use.py",
        "                if each.content.add(peer):\n                    self._changed |= each.users",
        "                each.content.add(peer)",
    ),
    Mutation(
        CALC + "sets_in_use.py",
        "for watched in [one for one in had if not same or one not in has]:",
        "for watched in [one for one in had if one not in has]:",
    ),
    Mutation(CALC + "sets_in_use.py", "        if not having[identity]:\n", "        if True:\n"),
    Mutation(CALC + "graph.py", "        self._chains.touch(key)\n\n    def _tell_of", "\n    def _tell_of"),
    Mutation(
        CALC + "graph.py",
        "            self._mark(state)\n\n    def _take_profile",
        "            pass\n\n    def _take_profile",
    ),
    Mutation(CALC + "graph.py", "        if _profile_shape(old) != _profile_shape(new):", "        if False:"),
    Mutation(CALC + "graph.py", "            old.policy = new\n", "            pass\n"),
    Mutation(CALC + "assignment.py", "answer if self.is_complete or answer.is_open else None", "answer"),
    Mutation(
        CALC + "assignment.py",
        "not (held.things and all(held in of for of in self._class_of.values()))",
        "not held.things",
    ),
    Mutation(CALC + "assignment.py", "            return _OPEN\n", "            return None\n"),
    Mutation(CALC + "graph.py", "found is None or found.staged else found", "found is None else found"),
    Mutation(
        CALC + "assignment.py",
        "for state in self._in_force.selecting(held) if state.workloads is not None",
        "for state in self._in_force.selecting(held)",
    ),
    Mutation(
        CALC + "numbering.py",
        "        self._resting.append(number)",
        "        heappush(self._free, number); self._taken.discard(number)",
    ),
    Mutation(
        MODEL + "policy_rules.py",
        "elif namespace is not None and (asked or unwanted is not None):",
        "elif namespace is not None and asked:",
    ),
    Mutation(
        MODEL + "policy_rules.py",
        "return conjunction(*asked, *([] if unwanted is None else [negation(unwanted)])), None",
        "return conjunction(*asked), None",
    ),
    Mutation(MODEL + "policy_rules.py", "return has(NAMESPACE_LABEL)\n", "return ALL\n"),
    Mutation(MODEL + "policy_rules.py", "found = [Rule(PolicyAction.DENY)]", "found = []"),
    Mutation(
        MODEL + "policies.py",
        "return bool(spec.ingress) or not spec.egress, bool(spec.egress)",
        "return bool(spec.ingress), bool(spec.egress)",
    ),
    Mutation(MODEL + "policies.py", "if not label.startswith(impersonating)", "if True"),
    Mutation(STORE + "peers.py", "(self.place, self.ports) == (other.place, other.ports)", "self.ports == other.ports"),
    Mutation(STORE + "peers.py", "Net(place[at + 2 : end], place[at + 1])", "Net.host(place[at + 2 : end])"),
    Mutation(
        MODEL + "kubernetes_policy.py", "    return _ANY_NAMESPACE if found.is_all else found", "    return found"
    ),
    Mutation(MODEL + "kubernetes_policy.py", "        if protocol in whole\n", "        if False\n"),
    Mutation(
        MODEL + "kubernetes_policy.py",
        "        where = equals(NAMESPACE_LABEL, namespace)\n",
        "        where = _ANY_NAMESPACE\n",
    ),
)


def is_noticed(mutation: Mutation) -> bool:
    """Whether a test fails on a copy of the package that has the mistake."""
    with tempfile.TemporaryDirectory(prefix="felixpy-mutation-") as folder:
        copy = Path(folder)
        for name in ("felixpy", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        path = copy / mutation.file
        text = path.read_text()
        assert text.count(mutation.old) == 1, mutation
        path.write_text(text.replace(mutation.old, mutation.new))
        environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
        command = (sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *TESTS)
        return subprocess.run(command, cwd=copy, env=environment, capture_output=True, check=False).returncode == 1


def main(chosen: Iterable[str]) -> int:
    numbers = [int(text) for text in chosen] or range(len(MUTATIONS))
    missed = 0
    for number in numbers:
        mutation = MUTATIONS[number]
        noticed = is_noticed(mutation)
        missed += not noticed
        first = mutation.old.strip().splitlines()[0]
        print(f"{'noticed' if noticed else 'MISSED '} {number:2} {mutation.file}: {first}", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
