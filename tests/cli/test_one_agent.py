"""One agent per network namespace; what a second one, a cleanup or an empty folder would take away stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from felixpy.agent import lock
from felixpy.agent.lock import agent_lock, living_agent
from felixpy.demo.agent import FELIXPY, environment
from felixpy.demo.patience import Patience
from tests.agent.bench import GOOD, NFTABLES, POOLS, dump
from tests.cli.command import agent, felixpy, sentence
from tests.cli.test_kernel_commands import backends, resources
from tests.kernel import run


@pytest.fixture
def env(node: None, tmp_path: Path) -> dict[str, str]:
    control = {"FELIX_CONTROLSOCKET": str(tmp_path / "agent.sock")}
    return {**NFTABLES, **control, **resources(tmp_path / "r", *POOLS, GOOD)}


def routes_and_rules() -> tuple[object, ...]:
    return tuple(dump())


def test_a_second_agent_is_refused_and_touches_nothing(env: dict[str, str], tmp_path: Path) -> None:
    other = {**env, **resources(tmp_path / "other"), "NODENAME": "n2", "FELIX_HEALTHENABLED": "false"}
    with agent(env, tmp_path / "log") as first:
        before = dump()
        said = sentence(felixpy("run", env=other))
        assert f"another agent (process {first.pid}) programs this network namespace already" in said
        assert dump() == before
        first.kill()
        first.wait()
        assert living_agent() is None
        with agent(env, tmp_path / "log2") as second:
            assert living_agent() == (second.pid, os.geteuid())
            assert dump() == before
        first.returncode = 0  # ended as it was meant to


@backends
def test_cleanup_refuses_while_an_agent_runs(env: dict[str, str], tmp_path: Path, backend: dict[str, str]) -> None:
    env = {**env, **backend}
    with agent(env, tmp_path / "log") as first:
        before = dump()
        assert felixpy("cleanup", "--dry-run", env=env).code == 0
        said = sentence(felixpy("cleanup", env=env))
        assert f"an agent (process {first.pid}) runs and would put all of it back" in said
        assert "--force" in said
        assert dump() == before
        patience = Patience(20)  # the agent puts its rules back meanwhile
        while (forced := felixpy("cleanup", "--force", env=env)).code:
            assert not patience.over(), forced
    done = felixpy("cleanup", env=env)
    assert done.code == 0, done


def test_takeover_refuses_while_an_agent_runs(env: dict[str, str], tmp_path: Path) -> None:
    with agent(env, tmp_path / "log") as first:
        run("nft", "add", "table", "ip", "calico")
        before = dump()
        said = sentence(felixpy("takeover", env=env))
        assert f"another agent (process {first.pid}) programs this network namespace already" in said
        assert dump() == before
        dry = felixpy("takeover", "--dry-run", env={**env, "FELIX_HEALTHENABLED": "true"})
        assert dry.code == 0 and "would remove" in dry.out, dry


def test_the_lock_is_of_one_network_and_dies_with_its_process(network: None) -> None:
    with agent_lock():
        assert living_agent() == (os.getpid(), os.geteuid())
        elsewhere = "from felixpy.agent.lock import agent_lock\nwith agent_lock(): print('free')"
        for before, expected in (((), 1), (("unshare", "-n"), 0)):
            done = subprocess.run((*before, sys.executable, "-c", elsewhere), env=environment({}), check=False)
            assert done.returncode == expected
        for _ in range(2 * lock.BACKLOG):  # it is asked, and asked again
            assert living_agent() is not None
        with pytest.raises(lock.AgentLives), agent_lock():
            pass
    assert living_agent() is None


@pytest.fixture
def squatter(node: None) -> Iterator[None]:
    """Another user's program with the name of the lock."""
    program = (
        "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX); s.bind('\\0felixpy'); "
        "s.listen(1); print('here', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        (sys.executable, "-c", program), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        yield
        process.kill()


def test_another_users_program_keeps_no_agent_from_running(squatter: None, env: dict[str, str], tmp_path: Path) -> None:
    assert living_agent() is None
    with agent(env, tmp_path / "log"):
        assert "is taken by a program that is no agent" in (tmp_path / "log").read_text()


def test_an_empty_folder_beside_what_an_earlier_run_made_is_not_believed(env: dict[str, str], tmp_path: Path) -> None:
    with agent(env, tmp_path / "log"):
        full = dump()
    manifests = tmp_path / "r" / "all.json"
    content = manifests.read_text()
    manifests.unlink()
    settings = environment({"NODENAME": "n1", **env})
    with (tmp_path / "log2").open("wb") as output:
        process = subprocess.Popen((*FELIXPY, "run"), env=settings, stdout=output, stderr=output)
    try:
        patience = Patience(30)
        while (status := felixpy("status", "--json", env=env)).code == 1 or status.json["state"] != "degraded":
            assert not patience.over(), (tmp_path / "log2").read_text()
        reason = status.json["reason"]
        assert f"the resource directory {tmp_path / 'r'} has no objects, but the kernel has " in reason
        assert "put the manifests back, or, if nothing is meant to be there, stop the agent" in reason
        assert status.json["degraded"] == [f"stream: degraded: {reason}"]
        assert dump() == full
        manifests.write_text(json.dumps([*POOLS]))  # something is there, so that what is not there is meant
        while felixpy("status", "--json", env=env).json["state"] != "in-sync":
            assert not patience.over(), (tmp_path / "log2").read_text()
        assert "10.48.0.1" not in str(dump())
        process.terminate()
        assert process.wait() == 0
    finally:
        process.kill()
        process.wait()
    assert content


def test_an_empty_folder_on_a_node_without_traces_is_in_sync_also_after_a_restart(
    env: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "r" / "all.json").unlink()
    for attempt in range(2):
        with agent(env, tmp_path / f"log{attempt}"):
            assert felixpy("status", "--json", env=env).json["state"] == "in-sync"
