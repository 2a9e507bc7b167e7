"""Policies come, change and go under a flood of new connections: nothing denied passes, nothing allowed is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEAST = 3000


@pytest.mark.parametrize("backend", ["nftables", "legacy", "nft"])
def test_no_change_of_policy_opens_or_closes_wrongly_in_between(backend: str) -> None:
    command = [sys.executable, "-m", "tests.policy.flood_process", backend]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = json.loads(done.stdout)
    assert counts["allowed"] > LEAST
    assert counts["denied"] > LEAST
    assert (counts["leaked"], counts["lost"], counts["lost_by_the_first"]) == (0, 0, 0), counts
    allowed, denied, *wrong = counts["with_many"]
    assert min(allowed, denied) > LEAST
    assert wrong == [0, 0], counts
    for family in (
        "IPv4",
        "IPv6",
    ):  # an established flow goes on without the policy that allowed it, a new one does not
        assert counts["flows"][family] == [True, True, True, False], counts["flows"]
