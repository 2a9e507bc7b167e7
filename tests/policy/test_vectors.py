"""The cases of the folder on the kernel: three back-ends, both families, from the state before and from scratch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.policy.cases import FOLDER

ROOT = Path(__file__).parents[2]
TWICE = "0?[13579]-*"


@pytest.mark.parametrize("backend", ["nftables", "legacy", "nft"])
def test_the_kernel_decides_each_cell_as_the_case_says(backend: str) -> None:
    """In a process of its own: the lab needs namespaces that no other test has been in.

    A start of two agents costs more than a case, so a part of them runs from scratch as well; without a kernel all do.
    """
    command = [sys.executable, "-m", "tests.policy.vectors", str(FOLDER), "--backend", backend, "--twice", TWICE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
    assert "cells agree" in done.stdout


def test_a_cell_that_differs_is_told(tmp_path: Path) -> None:
    """The runner can fail: a case that says the contrary of what is so."""
    (tmp_path / "topology.yaml").write_text((FOLDER / "topology.yaml").read_text())
    text = (FOLDER / "001-k8s-no-policy.yaml").read_text()
    (tmp_path / "001-wrong.yaml").write_text(text.replace("x/a: -......", "x/a: -X....."))
    command = [sys.executable, "-m", "tests.policy.vectors", str(tmp_path), "--backend", "nftables", "--family", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "x/a -> x/b tcp/80@40000 IPv4: passes, must not" in done.stdout
