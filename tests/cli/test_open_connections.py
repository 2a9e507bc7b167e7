"""Hundreds of connections that ask nothing, against few descriptors: the kernel's work and the answers go on."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from pathlib import Path

from felixpy.demo.patience import Patience
from tests.agent.bench import GOOD, endpoint
from tests.cli.command import HEALTH, agent, answers, felixpy
from tests.cli.test_status_diag import resources
from tests.kernel import run

DESCRIPTORS = 128
EACH = 200
"""Connections to each listener: more than the agent may have files."""


def half_open(family: int, address: object) -> socket.socket | None:
    """A connection with half a request; None where the listener's queue is full."""
    one = socket.socket(family, socket.SOCK_STREAM)
    one.settimeout(0.2)
    try:
        one.connect(address)  # type: ignore[arg-type]
        one.send(b"GET /liveness HT")
    except OSError:
        one.close()
        return None
    return one


def test_half_open_connections_take_neither_answers_nor_descriptors(node: None, tmp_path: Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "r"
    env = resources(folder) | {"FELIX_PROMETHEUSMETRICSENABLED": "true", "FELIX_CONTROLSOCKET": str(tmp_path / "s")}
    limit = ("prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}")
    with contextlib.ExitStack() as held, agent(env, log, before=limit) as process:
        for _ in range(EACH):
            for family, address in (
                (socket.AF_INET, ("127.0.0.1", 9099)),
                (socket.AF_INET, ("127.0.0.1", 9091)),
                (socket.AF_UNIX, str(tmp_path / "s")),
            ):
                if one := half_open(family, address):
                    held.enter_context(one)
        resources(folder, GOOD, endpoint("two", 2))
        patience = Patience(30)
        while "10.48.0.2" not in run("ip", "route", "show", "dev", "cali2"):
            assert not patience.over(), log.read_text()
            time.sleep(0.02)
        assert answers(f"{HEALTH}/liveness")
        assert "felixpy_kernel_writes_total" in answers("http://127.0.0.1:9091/metrics")
        assert felixpy("status", env=env).code == 0
        assert len(list(Path(f"/proc/{process.pid}/fd").iterdir())) < DESCRIPTORS // 2 + 10
    said = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(said) < 50
    assert not [line for line in said if "trace" in line]
