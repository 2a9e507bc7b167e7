"""What nodes themselves send each other, encrypted (``WireguardHostEncryptionEnabled``): packets, with every back-end.

On the second kernel with nftables alone, which has no iptables.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from felixpy.demo.patience import wait_until
from tests.kernel import run
from tests.netns import enter_new_network, enter_private_namespaces
from tests.underlay.lab import N1, N2, Lab, Spec, blocks, inside, node, pools, tries, v3, workload
from tests.underlay.test_tunnel_rules import BACKENDS
from tests.underlay.test_wireguard import (
    ENCRYPTING,
    PATIENCE_S,
    counted,
    has_device,
    keys,
    name,
    own_key,
    peers,
    reach,
    settings,
    take_down,
)

ON_SECOND_KERNEL = os.environ.get("FELIXPY_TEST_KERNELS") == "1"
FAMILIES = pytest.mark.parametrize("family", [4, 6])
PORTS, PINGS = {4: 51820, 6: 51821}, {4: "icmp type echo-request", 6: "icmpv6 type echo-request"}


def address(spec: Spec, family: int) -> str:
    return (spec.ipv4 if family == 4 else spec.ipv6).partition("/")[0]


def configuration(spec: Spec, *, hosts: bool = True) -> dict[str, Any]:
    enabled = {"wireguardEnabled": True, "wireguardEnabledV6": True, "wireguardHostEncryptionEnabled": hosts}
    return v3("FelixConfiguration", f"node.{spec.name}", enabled)


def pings(source: str, target: str, count: int = 1) -> bool:
    return tries(source, "ping", "-c", str(count), "-i", "0.2", "-W", "2", "-q", target)


def ping(lab: Lab, source: str, target: str) -> None:
    wait_until(lambda: pings(source, target), lambda: f"{source} to {target}\n{lab.log(N1)[-2000:]}", PATIENCE_S)


@pytest.fixture(scope="module", params=["nftables"] if ON_SECOND_KERNEL else BACKENDS)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    enter_private_namespaces()
    enter_new_network()
    found = Lab(ENCRYPTING)
    try:
        found.put(*pools("CrossSubnet", "CrossSubnet"))
        for spec in ENCRYPTING:
            inside(spec.name, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.eth0.rp_filter=2")
            found.put(node(spec), *blocks(spec), workload(spec), configuration(spec))
            found.start(spec, settings=BACKENDS[request.param] | settings(found, spec))
        introduce(found)
        yield found
    finally:
        take_down(found)


def introduce(lab: Lab) -> None:
    """Publish the keys of both nodes, and wait until each reaches the other and its workload through the tunnel."""
    for spec in ENCRYPTING:
        for family, file in ((4, "wireguard.key"), (6, "wireguard-v6.key")):
            wait_until(
                lambda spec=spec, file=file, family=family: (
                    (keys(lab, spec) / file).exists() and has_device(spec, family)
                ),  # type: ignore[misc]
                lambda spec=spec: lab.log(spec)[-3000:],  # type: ignore[misc]
                PATIENCE_S,
            )
        status = {"wireguardPublicKey": own_key(lab, spec, 4), "wireguardPublicKeyV6": own_key(lab, spec, 6)}
        lab.put({**node(spec), "status": status})
    for one, other in (ENCRYPTING, ENCRYPTING[::-1]):
        for family in (4, 6):
            wait_until(
                lambda one=one, other=other, family=family: is_encrypted(lab, one, other, family),  # type: ignore[misc]
                lambda one=one: lab.log(one)[-3000:],  # type: ignore[misc]
                PATIENCE_S,
            )


def way(one: Spec, target: str) -> str:
    """The route to an address, empty without one."""
    command = ("ip", "-n", one.name, "route", "get", target)
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def is_encrypted(lab: Lab, one: Spec, other: Spec, family: int) -> bool:
    """Whether a node has another as a peer, and the routes to it and to its workload lead into the tunnel."""
    workload = other.workload4 if family == 4 else other.workload6
    return own_key(lab, other, family) in peers(one, family) and all(
        f"dev {name(one, family)}" in way(one, target) for target in (address(other, family), workload)
    )


@FAMILIES
def test_nodes_reach_each_other_and_nothing_is_in_the_clear(lab: Lab, family: int) -> None:
    target = address(N2, family)
    ping(lab, "n1", target)
    ping(lab, "n2", address(N1, family))
    assert counted(PINGS[family], lambda: pings("n1", target, 3)) == 0
    assert counted(f"udp dport {PORTS[family]}", lambda: pings("n1", target, 3)) >= 3
    assert f"{target}/" in peers(N1, family)[own_key(lab, N2, family)]


@FAMILIES
def test_nodes_and_workloads_reach_each_other(lab: Lab, family: int) -> None:
    reach(lab, N1, N2)
    of_two = N2.workload4 if family == 4 else N2.workload6
    ping(lab, "n1", of_two)
    ping(lab, "w1", address(N2, family))
    for match in (PINGS[family], "tcp flags syn"):
        assert counted(match, lambda: pings("n1", of_two, 3) and pings("w1", address(N2, family), 3)) == 0


def test_the_way_back_is_looked_up_by_the_mark(lab: Lab) -> None:
    """A strict filter on the uplink drops what comes encrypted, because the way back leads into the tunnel: but for the
    mark. Of ARP it drops all, which nothing can mark: so the nodes know each other's MACs here.
    """
    reach(lab, N1, N2)
    ping(lab, "n1", address(N2, 4))
    assert inside("n1", "sysctl", "-n", "net.ipv4.conf.all.src_valid_mark").strip() == "1"
    assert f"dev {name(N1, 4)}" in run("ip", "-n", "n1", "route", "get", address(N2, 4))
    assert "dev eth0" in run("ip", "-n", "n1", "route", "get", address(N2, 4), "mark", "0x80000000")
    macs = {one: inside(one, "cat", "/sys/class/net/eth0/address").strip() for one in ("n1", "n2")}
    known = (("n1", address(N2, 4), macs["n2"]), ("n2", address(N1, 4), macs["n1"]))
    for one, other, mac in known:
        lab.ip(one, f"neigh replace {other} lladdr {mac} dev eth0 nud permanent")
        inside(one, "sysctl", "-qw", "net.ipv4.conf.eth0.rp_filter=1")
    try:
        ping(lab, "n1", address(N2, 4))
        reach(lab, N1, N2)
    finally:
        for one, other, _ in known:
            inside(one, "sysctl", "-qw", "net.ipv4.conf.eth0.rp_filter=2")
            lab.ip(one, f"neigh del {other} dev eth0")


def test_switched_live_what_nodes_send_is_in_the_clear_and_back(lab: Lab) -> None:
    target = address(N2, 4)
    try:
        lab.put(*(configuration(spec, hosts=False) for spec in ENCRYPTING))
        wait_until(
            lambda: counted(PINGS[4], lambda: pings("n1", target, 3)) >= 3, lambda: lab.log(N1)[-2000:], PATIENCE_S
        )
    finally:
        lab.put(*map(configuration, ENCRYPTING))
    wait_until(
        lambda: pings("n1", target) and not counted(PINGS[4], lambda: pings("n1", target, 3)),
        lambda: lab.log(N1)[-2000:],
        PATIENCE_S,
    )
    reach(lab, N1, N2)
