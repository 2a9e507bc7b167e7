"""Host ports by upstream's ``portmap``, chained behind the plugin as a runtime chains it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from felixpy.cni.conflist import default_conflist
from felixpy.model.net import FAMILIES
from tests.cni.lab import NOTHING, Container, Node
from tests.kernel import ip, run

PORTMAP = Path("/usr/lib/cni/portmap")
SERVER = """
import socket
listener = socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True)
print("listening", flush=True)
while True:
    connection, peer = listener.accept()
    connection.sendall(b"hello")
    connection.close()
"""
CLIENT = "import socket, sys; print(socket.create_connection((sys.argv[1], 8080), 20).recv(16).decode())"


def portmap(node: Node, command: str, container: Container, result: Any) -> None:
    """As libcni calls the second plugin of a list."""
    ports = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
    conf = {
        "cniVersion": "1.0.0", "name": "k8s-pod-network", "type": "portmap", "snat": True, "prevResult": result,
        "runtimeConfig": {"portMappings": ports},
    }  # fmt: skip
    environ = {
        "CNI_COMMAND": command, "CNI_PATH": str(PORTMAP.parent), "CNI_CONTAINERID": container.container_id,
        "CNI_NETNS": container.netns, "CNI_IFNAME": "eth0", "PATH": os.environ["PATH"],
    }  # fmt: skip
    done = subprocess.run([PORTMAP], input=json.dumps(conf), env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


needs_portmap = pytest.mark.skipif(
    not PORTMAP.exists(), reason="the Debian package containernetworking-plugins is missing"
)


@needs_portmap
def test_the_default_list_is_of_a_version_that_an_old_portmap_knows() -> None:
    """A runtime takes the newest version of the list, and fails every ADD whose chain does not know it."""
    written = json.loads(default_conflist(Path("/run/cni.sock"), FAMILIES))
    done = subprocess.run(
        [PORTMAP],
        input='{"cniVersion": "1.0.0"}',
        env={"CNI_COMMAND": "VERSION"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert {written["cniVersion"], *written.get("cniVersions", ())} <= set(json.loads(done.stdout)["supportedVersions"])


@needs_portmap
def test_a_port_of_the_node_leads_to_the_container(node: Node) -> None:
    ip("netns add outside", "link set p-eth0 netns outside")
    for line in (
        "addr add 192.0.2.254/24 dev p-eth0",
        "addr add 2001:db8::fe/64 dev p-eth0 nodad",
        "link set p-eth0 up",
    ):
        run("ip", "-n", "outside", *line.split())
    container = node.container("one")
    result = node.add(container, node.conf("1.0.0"))
    portmap(node, "ADD", container, result)
    inside = ["ip", "netns", "exec", container.name, sys.executable, "-c", SERVER]
    server = subprocess.Popen(inside, stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"listening\n"
        for address in ("192.0.2.1", "2001:db8::1"):
            said = run("ip", "netns", "exec", "outside", sys.executable, "-c", CLIENT, address)
            assert said.strip() == "hello"
    finally:
        server.kill()
        server.wait()
        portmap(node, "DEL", container, result)
        ip("netns del outside")
    node.delete(container)
    node.wait(lambda: node.leaks() == NOTHING)
