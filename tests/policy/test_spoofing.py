"""Packets that an endpoint sends under allowSpoofedSourcePrefixes are asked what its own are, on packets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ASKED = {"own": [80], "wide": [80], "narrow": [80], "other": []}
OPEN = {"own": [80, 81], "wide": [80, 81], "narrow": [80, 81], "other": []}


@pytest.mark.parametrize("backend", ["nftables", "legacy", "nft"])
def test_policy_is_asked_of_packets_with_an_allowed_source(backend: str) -> None:
    command = [sys.executable, "-m", "tests.policy.spoofing_process", backend]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["x/a"] == ASKED
    assert found["y/a"] == OPEN | {"wide": []}, "of another endpoint, without policy, with a prefix in the other's"
    assert (found["restart"]["sends"], found["restart"]["drifted"]) == (0, 0)
    assert found["without"] == OPEN
    assert found["again"] == found["alone"] == ASKED
