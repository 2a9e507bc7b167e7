"""``felixpy ipam`` against a cluster, a broker and a node's journal."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from felixpy.demo.agent import FELIXPY, environment
from felixpy.demo.resources import ip_pool, write_manifests
from felixpy.ipam.block import Attribute, assign_address, block_spec, new_block
from felixpy.model.net import Net
from tests.broker import Broker
from tests.broker import running as running_broker
from tests.cni.cluster import Cluster
from tests.cni.lab import Node


def command(settings: Mapping[str, str], *arguments: str) -> tuple[int, str]:
    """Exit code, and what was printed."""
    done = subprocess.run(
        [*FELIXPY, "ipam", *arguments], env=environment({"NODENAME": "n1", **settings}), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def cluster(network: None, tmp_path: Path) -> Iterator[Cluster]:
    with Cluster().running() as found:
        block = new_block(Net.parse("10.48.7.0/29"), "n1")
        for ordinal, pod in ((1, "here"), (2, "gone")):
            attribute = Attribute(f"net.{pod}", {"node": "n1", "namespace": "default", "pod": pod})
            block = assign_address(block, attribute, block.address(ordinal))
            handle = {"handleID": f"net.{pod}", "block": {"10.48.7.0/29": 1}, "deleted": False}
            found.put("ipamhandles", f"net.{pod}", spec=handle)
        found.put("nodes", "n1", status={}, spec={})
        found.put("ippools", "four", spec={"cidr": "10.48.0.0/16"})
        found.put("ipamblocks", "10-48-7-0-29", spec=block_spec(block))
        affinity = {"cidr": "10.48.7.0/29", "node": "n1", "state": "confirmed", "type": "host", "deleted": False}
        found.put("blockaffinities", "n1-10-48-7-0-29", spec=affinity)
        found.put("pods", "here", "default", spec={"nodeName": "n1"}, status={"podIPs": [{"ip": "10.48.7.1"}]})
        yield found


def test_in_a_cluster(cluster: Cluster, tmp_path: Path) -> None:
    settings = {"FELIX_DATASTORETYPE": "kubernetes", "FELIX_KUBECONFIG": str(cluster.kubeconfig(tmp_path))}
    code, said = command(settings, "show")
    assert (code, said.split()) == (0, ["10.48.7.0/29", "n1", "2", "of", "8"])
    assert "net.here" in command(settings, "show", "10.48.7.1")[1]
    code, said = command(settings, "check")
    assert code == 2
    assert said.splitlines() == [
        "10.48.7.2 is in use by pod default/gone, which is not there; felixpy ipam release 10.48.7.2",
        "1 findings",
    ]
    assert command(settings, "release", "10.48.7.2", "10.48.7.3", "192.0.2.1") == (
        0,
        "10.48.7.2: free now\n10.48.7.3: was free\n192.0.2.1: is in no block\n",
    )
    assert command(settings, "check") == (0, "nothing is wrong\n")
    code, said = command(settings, "release", "--node", "n1")
    assert (code, "--force" in said) == (1, True)
    cluster.delete("nodes", "n1")
    cluster.delete("pods", "here", "default")
    assert command(settings, "release", "--node", "n1") == (0, "1 blocks of n1 are free\n")
    for kind in ("ipamblocks", "blockaffinities", "ipamhandles"):
        assert cluster.specs(kind) == {}
    assert command(settings, "assign", "10.48.8.0/26", "--node", "n1")[0] == 1


@pytest.fixture
def broker(network: None, tmp_path: Path) -> Iterator[Broker]:
    with running_broker(tmp_path) as found:
        yield found


def test_over_a_broker(broker: Broker, tmp_path: Path) -> None:
    """Blocks are assigned, never two owners for one address, and withdrawn."""
    settings = {"FELIX_MQTTHOST": "127.0.0.1", "FELIX_MQTTPORT": str(broker.port)}
    pools = write_manifests([ip_pool("four", "10.48.0.0/16")], tmp_path / "pools")
    subprocess.run(
        [*FELIXPY, "apply", "-f", pools],
        env=environment({"NODENAME": "n1", **settings}),
        check=True,
        capture_output=True,
    )
    assert command(settings, "assign", "10.48.7.0/26", "--node", "n1") == (0, "10.48.7.0/26 is n1's\n")
    assert command(settings, "assign", "10.48.7.0/26", "--node", "n1")[0] == 0
    code, said = command(settings, "assign", "10.48.7.0/27", "--node", "n2")
    assert (code, "overlaps 10.48.7.0/26 of n1" in said) == (1, True)
    code, said = command(settings, "assign", "10.99.0.0/26", "--node", "n2")
    assert (code, "is in no pool" in said) == (1, True)
    code, said = command(settings, "show", "--json")
    assert json.loads(said)["blocks"] == [{"cidr": "10.48.7.0/26", "node": "n1", "used": 0, "size": 64, "borrowed": 0}]
    assert command(settings, "check") == (0, "nothing is wrong\n")
    assert command(settings, "release", "--node", "n1") == (0, "1 blocks of n1 are withdrawn\n")
    assert command(settings, "assign", "10.48.7.0/27", "--node", "n2")[0] == 0


def test_on_a_node(node: Node) -> None:
    """What containers have, out of the journal, while the agent runs."""
    container = node.container("one")
    node.add(container)
    settings = {
        "FELIX_RESOURCEDIRECTORY": str(node.folder / "resources"),
        "FELIX_CNISTATEDIRECTORY": str(node.folder / "state"),
    }
    code, said = command(settings, "show")
    assert code == 0
    assert container.container_id[:12] in said
    assert "10.48.7.2/32" in said
    assert container.container_id in command(settings, "show", "10.48.7.2")[1]
    assert command(settings, "check") == (0, "nothing is wrong\n")
    assert command(settings, "release", "10.48.7.2")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("show", "nonsense"), "'nonsense' is not an IPv4 or IPv6 address"),
        (("release",), "name addresses, or a node"),
        (("assign", "10.48.0.1/26", "--node", "n1"), "has host bits set"),
    ],
)
def test_wrong_usage_is_one_sentence(arguments: tuple[str, ...], reason: str) -> None:
    code, said = command({}, *arguments)
    assert code == 1
    assert reason in said
