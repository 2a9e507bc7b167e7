"""Runs felixpy as a person does, and an agent as systemd does."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from felixpy.demo.agent import FELIXPY, environment
from felixpy.demo.patience import Patience
from tests.broker import Broker

HEALTH = "http://127.0.0.1:9099"


class Done(NamedTuple):
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def felixpy(
    *arguments: str, env: Mapping[str, str] | None = None, before: tuple[str, ...] = (), stdin: str | None = None
) -> Done:
    """Run a command to its end; ``before`` is put before it, like ``setpriv``."""
    variables = environment({"NODENAME": "n1", "COLUMNS": "200", **(env or {})})
    done = subprocess.run(
        (*before, *FELIXPY, *arguments),
        env=variables,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def sentence(done: Done) -> str:
    """The one sentence of a command that could not be done."""
    assert done.code == 1, done
    assert done.err.startswith("felixpy: "), done
    assert done.err.count("\n") == 1, done
    return done.err


def at(broker: Broker, **more: str) -> dict[str, str]:
    """Settings that lead to a broker."""
    return {"FELIX_MQTTHOST": "127.0.0.1", "FELIX_MQTTPORT": str(broker.port), **more}


@contextlib.contextmanager
def agent(
    env: Mapping[str, str], log: Path, *options: str, before: tuple[str, ...] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """``felixpy run``, ready when the block begins, ended by SIGTERM with code 0; ``before`` is put before it."""
    variables = environment({"NODENAME": "n1", "FELIX_HEALTHENABLED": "true", **env})
    with log.open("wb") as output:
        process = subprocess.Popen((*before, *FELIXPY, "run", *options), env=variables, stdout=output, stderr=output)
    try:
        patience = Patience(30)
        while not answers(f"{HEALTH}/readiness"):
            assert process.poll() is None, log.read_text()
            assert not patience.over(), log.read_text()
            time.sleep(0.02)
        yield process
        process.terminate()
        assert process.wait() == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def answers(url: str) -> str:
    """The text at an address, empty if it cannot be had or is an error."""
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            return str(response.read().decode())
    except (urllib.error.URLError, OSError):
        return ""
