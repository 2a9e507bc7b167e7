"""``kubectl felixpy``: what it asks kubectl for, with a kubectl that notes its calls and knows two pods."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

PLUGIN = Path(__file__).resolve().parents[2] / "config" / "kubernetes" / "kubectl-felixpy"
KUBECTL = r"""#!/bin/bash
printf '%s\n' "$*" >>"$CALLS"
case "$*" in
*"get pod web"*nodeName*) printf n1 ;;
*"get pod db"*nodeName*) printf n2 ;;
*"get pod web"*) printf '10.48.0.1 fd00:48::1' ;;
*"get pod db"*) printf '10.48.1.1' ;;
*"get pods"*nodeName=n1*) echo "felixpy-a n1" ;;
*"get pods"*nodeName=n9*) ;;
*"get pods"*) printf 'felixpy-a n1\nfelixpy-b n2\n' ;;
*"exec"*felixpy-b*status*) echo answered; exit 2 ;;
*"exec -i"*) cat; echo answered ;;
*"exec"*) echo answered ;;
esac
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    (tmp_path / "kubectl").write_text(KUBECTL)
    (tmp_path / "kubectl").chmod(0o755)
    return tmp_path


def felixpy(folder: Path, *arguments: str) -> tuple[int, str, str, list[str]]:
    calls = folder / "calls"
    calls.write_text("")
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "CALLS": str(calls)}
    done = subprocess.run([str(PLUGIN), *arguments], env=environment, capture_output=True, text=True, check=False)
    execs = [line.partition(" -- ")[0].split()[-1] + ": " + line.partition(" -- ")[2]
             for line in calls.read_text().splitlines() if " exec " in line]  # fmt: skip
    return done.returncode, done.stdout, done.stderr, execs


def test_a_command_runs_on_one_node_or_on_all(plugin: Path) -> None:
    assert felixpy(plugin, "--node", "n1", "status", "--json") == (
        0,
        "answered\n",
        "",
        ["felixpy-a: felixpy status --json"],
    )
    code, out, _, execs = felixpy(plugin, "status")
    assert (code, out) == (2, "== n1\nanswered\n== n2\nanswered\n"), "the worst of the codes"
    assert execs == ["felixpy-a: felixpy status", "felixpy-b: felixpy status"]
    assert felixpy(plugin, "--pod", "default/web", "show")[3] == ["felixpy-a: felixpy show"]


def test_pods_become_addresses(plugin: Path) -> None:
    assert felixpy(plugin, "explain", "default/web", "default/db", "tcp", "80")[3] == [
        "felixpy-a: felixpy explain 10.48.0.1 10.48.1.1 tcp 80"
    ]
    assert felixpy(plugin, "explain", "-6", "default/web", "2001:db8::1")[3] == [
        "felixpy-a: felixpy explain fd00:48::1 2001:db8::1"
    ]


def test_what_is_not_there_is_said(plugin: Path) -> None:
    assert felixpy(plugin, "--node", "n9", "status")[:3] == (
        1, "", "kubectl felixpy: no agent runs on node n9 in namespace felixpy\n",
    )  # fmt: skip
    code, _, said, _ = felixpy(plugin, "explain", "-6", "default/db", "::1")
    assert (code, said) == (1, "kubectl felixpy: the pod default/db has no IPv6 address\n")
    assert felixpy(plugin)[0] == 2


def test_a_change_in_files_here_reaches_the_pods_by_standard_input(plugin: Path) -> None:
    one, other = plugin / "one.yaml", plugin / "other.yaml"
    one.write_text("kind: A")
    other.write_text("kind: B")
    code, out, err, execs = felixpy(plugin, "--node", "n1", "plan", "-f", str(one), "-f", str(other), "-o", "json")
    assert (code, err, execs) == (0, "", ["felixpy-a: felixpy plan -o json --filename -"])
    assert out == "kind: A\n---\nkind: B\n---\nanswered\n"
    assert felixpy(plugin, "--node", "n1", "plan", "--delete", str(one))[3] == ["felixpy-a: felixpy plan --delete -"]
    assert felixpy(plugin, "--node", "n1", "plan")[3] == ["felixpy-a: felixpy plan"]
    assert "cannot go together" in felixpy(plugin, "plan", "-f", str(one), "--delete", str(other))[2]
    code, _, err, execs = felixpy(plugin, "plan", "-f", str(plugin / "none"))
    assert (code, "cannot read" in err, execs) == (1, True, [])
