"""A node that cannot work as a whole: traffic of workloads is not right there, so the agent must not be ready."""

from __future__ import annotations

import shlex

import pytest

from felixpy.demo.agent import FELIXPY
from felixpy.demo.agent import environment as settings_only
from felixpy.demo.lab import Lab
from felixpy.demo.patience import limit
from felixpy.demo.resources import lab_resources, write_manifests
from felixpy.demo.run import BACKENDS
from felixpy.demo.topology import Mode

READ_ONLY_PROC_SYS = ("unshare", "--mount", "sh", "-c")
WITHOUT_RAW_SOCKETS = ("setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all")


def agent_command(wrapper: tuple[str, ...]) -> tuple[str, ...]:
    if wrapper is READ_ONLY_PROC_SYS:
        mount = "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys"
        return (*wrapper, f"{mount} && exec {shlex.join((*FELIXPY, 'run'))}")
    return (*wrapper, *FELIXPY, "run")


@pytest.mark.parametrize(
    ("backend", "wrapper", "words"),
    [
        ("nftables", READ_ONLY_PROC_SYS, "net.ipv6.conf.all: cannot write"),
        ("legacy", WITHOUT_RAW_SOCKETS, "chains of rules, first filter FORWARD: the legacy table"),
    ],
    ids=["forwarding stays off", "no iptables rule is accepted"],
)
async def test_agent_is_not_ready_and_says_why(backend: str, wrapper: tuple[str, ...], words: str) -> None:
    async with Lab(Mode.V6) as lab:
        await lab.start_broker()
        manifests = write_manifests(lab_resources(lab.mode, lab.pods), lab.folder / "resources")
        await lab.felixpy("apply", "-f", str(manifests))
        settings = settings_only(lab.agent_environment("node1", BACKENDS[backend]))
        with (lab.folder / "agent.log").open("wb") as log:
            agent = await lab.node("node1").spawn(*agent_command(wrapper), env=settings, output=log)
        async with limit(60):
            while words not in lab.status.get("node1", {}).get("reason", ""):
                lab.status_changed.clear()
                await lab.status_changed.wait()
        status = lab.status["node1"]
        assert status["state"] == "resync"
        assert words in status["reason"]
        assert status["families"] == {"6": {"ready": False}}
        said = (lab.folder / "agent.log").read_text()
        assert said.count("family is not programmed") == 1
        assert '"event": "ready"' not in said
        agent.terminate()
        assert await agent.wait() == 0
