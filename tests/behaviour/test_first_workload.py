"""The README's first workload and the script of docs/workloads.md, typed into a node of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.netns import enter_private_namespaces

ROOT = Path(__file__).resolve().parents[2]
UPLINK = """set -e
ip link add eth0 type veth peer name router
ip link set eth0 up; ip link set router up
ip addr add 192.0.2.1/24 dev eth0
ip -6 addr add 2001:db8::1/64 dev eth0 nodad
ip route add default via 192.0.2.254
ip -6 route add default via 2001:db8::fe
"""


class Node:
    """A shell; ``type`` runs lines as a person would, one after another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/sbin:{os.environ['PATH']}",
            "FELIX_CONTROLSOCKET": f"{folder}/control",
            "FELIX_ENDPOINTSTATUSPATHPREFIX": str(folder),
            "FELIX_MQTTHOST": "127.0.0.1",
            "NODENAME": "node1",
        }
        self.agent: subprocess.Popen[bytes] | None = None

    def type(self, text: str) -> str:
        done = subprocess.run(
            ["bash", "-e"], input=text, text=True, capture_output=True, cwd=ROOT, env=self.environment, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def run_agent(self) -> None:
        with (self.folder / "log").open("wb") as log:
            self.agent = subprocess.Popen(["felixpy", "run"], env=self.environment, stdout=log, stderr=log)

    def is_ready(self) -> bool:
        assert self.agent and self.agent.poll() is None, (self.folder / "log").read_text()
        return '"ready"' in (self.folder / "log").read_text()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def commands(heading: str, number: int) -> str:
    section = (ROOT / "README.md").read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)[number]


def in_private_node(node: Node, work: str) -> None:
    """Fork, so that the namespaces of the test process stay as they are."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0, (node.folder / "failure").read_text()
        return
    code = 1
    try:
        enter_private_namespaces.__wrapped__()  # once more, if the test process has left the machine's already
        globals()[work](node)
        code = 0
    except BaseException as error:  # noqa: BLE001  # told by the parent, which ends the test
        (node.folder / "failure").write_text(f"{type(error).__name__}: {error}")
    finally:
        if node.agent:
            node.agent.terminate()
            node.agent.wait()
        subprocess.run(["bash", "-c", f"kill $(cat {node.folder}/broker) 2>/dev/null"], check=False)
        os._exit(code)


def until_ready(node: Node) -> None:
    while not node.is_ready():
        time.sleep(0.05)


def start_broker(node: Node, line: str) -> str:
    """The README's line, with a process id to end it by, and its state in a folder of the test."""
    assert line.startswith("mosquitto -c config/mosquitto.conf -d")
    text = (ROOT / "config/mosquitto.conf").read_text()
    text = re.sub(r"^persistence_file .*$", "", text, flags=re.MULTILINE)
    (node.folder / "mosquitto.conf").write_text(
        f"{text}\npid_file {node.folder}/broker\npersistence_location {node.folder}/\nuser root\n"
    )
    return f"mosquitto -c {node.folder}/mosquitto.conf -d"


def first_workload(node: Node) -> None:
    node.type(UPLINK)
    made = [
        start_broker(node, line) if line.startswith("mosquitto") else line
        for line in commands("A first workload", 0).splitlines()
        if not line.startswith("export ")
    ]
    assert "3 published" in node.type("\n".join(made))
    node.run_agent()
    until_ready(node)
    said = node.type(commands("A first workload", 1))
    assert said.count(" 0% packet loss") == 2
    assert "passes" in said


def attached(node: Node) -> None:
    node.type(UPLINK + start_broker(node, "mosquitto -c config/mosquitto.conf -d"))
    node.type("felixpy apply -f config/examples/first-workload.yaml")
    node.run_agent()
    until_ready(node)
    node.type("ip netns add a-b && config/examples/attach-workload add a-b 10.48.0.9 fd00:48::9")
    assert node.type("ping -c 1 10.48.0.9; ping -c 1 fd00:48::9").count(" 0% packet loss") == 2
    node.type("config/examples/attach-workload del a-b")
    held = node.type("felixpy get WorkloadEndpoint")
    assert "node1-k8s-web-eth0" in held
    assert "node1-netns-" not in held
    assert node.type("ip -o link | grep -c ': cali' || true").strip() == "0"


@pytest.mark.parametrize("work", ["first_workload", "attached"])
def test_typed_as_written(node: Node, work: str) -> None:
    in_private_node(node, work)
