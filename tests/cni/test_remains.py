"""``felixpy cleanup`` on a node that attached containers: refused while they are, then nothing of it is left."""

from __future__ import annotations

import json
import subprocess

import pytest

from felixpy.demo.agent import FELIXPY, environment
from tests.cni.lab import NOTHING, Node
from tests.kernel import ip, ip_json

CONFLIST = "10-felixpy.conflist"


def cleanup(node: Node, *options: str) -> subprocess.CompletedProcess[str]:
    variables = {
        "NODENAME": "n1",
        "FELIX_CNICONFIGFILE": str(node.folder / CONFLIST),
        "FELIX_CNISTATEDIRECTORY": str(node.journal.parent),
        "FELIX_ENDPOINTSTATUSPATHPREFIX": "none",
    }
    return subprocess.run(
        (*FELIXPY, "cleanup", *options), env=environment(variables), capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("plugins", [["felixpy-cni", "portmap"], ["somebody-else"]], ids=["ours", "another's"])
def test_cleanup_takes_what_was_made_for_containers(node: Node, plugins: list[str]) -> None:
    conflist = node.folder / CONFLIST
    conflist.write_text(json.dumps({"name": "x", "cniVersion": "1.0.0", "plugins": [{"type": one} for one in plugins]}))
    interface = str(node.add(node.container("one"))["interfaces"][0]["name"])
    ip("link add other0 type veth peer name other1", "link set other0 alias somebody")
    node.stop()
    journal = node.journal.read_bytes()

    refused = cleanup(node)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"1 interfaces of containers are attached ({interface}) and would go" in refused.stderr
    told = cleanup(node, "--dry-run").stdout
    assert f"would remove interface {interface} of container " in told
    assert f"would remove journal of attachments {node.journal}" in told
    assert ("network configuration" in told) == (plugins[0] == "felixpy-cni")
    assert node.journal.read_bytes() == journal

    done = cleanup(node, "--containers")
    assert done.returncode == 0, done
    assert sorted(done.stdout.replace("removed ", "would remove ").splitlines()) == sorted(told.splitlines())
    names = {link["ifname"] for link in ip_json("link", "show")}
    assert interface not in names
    assert {"other0", "other1"} <= names
    assert not node.journal.parent.exists()
    assert conflist.exists() == (plugins[0] != "felixpy-cni")
    assert node.leaks() == NOTHING
    assert "nothing of felixpy is on this node" in cleanup(node).stdout
