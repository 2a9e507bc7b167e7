"""Address detection on a real machine's interfaces, in a namespace; no packet is sent for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from felixpy.model.net import Family
from felixpy.node.detection import DetectionError, detect
from felixpy.node.document import own_node
from felixpy.node.interfaces import read_surroundings
from tests.kernel import ip, pairs, run, sysctl

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def machine(network: None) -> None:
    sysctl("ipv6/conf/default/accept_dad", 0)
    pairs("eth0", "eth1")
    ip(
        "addr add 10.9.0.1/24 dev eth0",
        "addr add 10.9.0.100/32 dev eth0",
        "addr add fd09::98/64 dev eth0 nodad preferred_lft 0",
        "addr add fd09::1/64 dev eth0 nodad",
        "addr add 192.168.5.4/16 dev eth1",
        "route add default via 192.168.0.1 dev eth1",
    )


def test_methods_on_a_machine(machine: None) -> None:
    around = read_surroundings()
    assert str(detect("interface=^eth0$", Family.V4, around)) == "10.9.0.1/24"
    assert str(detect("first-found", Family.V6, around)) == "fd09::1/64"
    assert str(detect("cidr=10.9.0.0/16", Family.V4, around)) == "10.9.0.1/24"
    assert str(detect("can-reach=10.9.0.77", Family.V4, around)) == "10.9.0.1/24"
    # Only what goes to that address: the kernel itself sends multicast reports of its new interfaces when it likes.
    run("nft", "table inet count { chain c { type filter hook output priority 0; ip daddr 203.0.113.9 counter; }; }")
    assert str(detect("can-reach=203.0.113.9", Family.V4, around)) == "192.168.5.4/16"
    assert "packets 0 bytes 0" in run("nft", "list", "table", "inet", "count")
    with pytest.raises(DetectionError, match="no IPv6 route"):
        detect("can-reach=2001:db8::1", Family.V6, around)


def test_interface_that_is_down_is_left_out(machine: None) -> None:
    ip("link set eth1 down")
    assert str(detect("first-found", Family.V4, read_surroundings())).startswith("10.9.0.1/")


def test_variables_decide(machine: None) -> None:
    around = read_surroundings()
    found = own_node("n1", {"IP": "10.9.0.1", "CALICO_ROUTER_ID": "hash"}, around)
    assert found.document("n1")["spec"] == {"bgp": {"ipv4Address": "10.9.0.1/24", "ipv6Address": "fd09::1/64"}}
    assert found.router_id
    with pytest.raises(DetectionError, match="IP="):
        own_node("n1", {"IP": "10.9.0"}, around)
    alone = own_node("n1", {"IP": "none", "IP6": "autodetect"}, around)
    assert alone.document("n1")["spec"] == {"bgp": {"ipv6Address": "fd09::1/64"}}


def test_the_command_prints_a_node_that_can_be_published(machine: None) -> None:
    environment = {
        **os.environ,
        "NODENAME": "n1",
        "IP_AUTODETECTION_METHOD": "interface=eth0",
        "PYTHONPATH": str(PROJECT),
    }
    command = [sys.executable, "-m", "felixpy", "node"]
    done = subprocess.run([*command, "--yaml"], env=environment, capture_output=True, text=True, check=True)
    node = yaml.safe_load(done.stdout)
    assert (node["kind"], node["spec"]["bgp"]["ipv4Address"]) == ("Node", "10.9.0.1/24")
    environment["IP_AUTODETECTION_METHOD"] = "interface=wlan"
    bad = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert bad.returncode == 1 and "Traceback" not in bad.stderr and "felixpy:" in bad.stderr
