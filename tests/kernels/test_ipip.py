"""IPIP between real nodes: packets, what stands in the kernel, the outer source, the live switch, restart."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest

from felixpy.demo.patience import wait_until
from tests.kernel import run
from tests.underlay.lab import N1, N2, N3, SPECS, Lab, Spec, blocks, inside, lost, node, pools, tries, workload

PATIENCE_S = 120.0


def shown(spec: Spec, *arguments: str) -> Any:
    return json.loads(run("ip", "-n", spec.name, "-j", "-d", *arguments) or "[]")


def devices(spec: Spec) -> dict[str, str]:
    """Destination of our IPv4 routes to other nodes, and the device that leads there now."""
    return {one["dst"]: one.get("dev", "") for one in shown(spec, "-4", "route") if "nhid" in one}


def use(lab: Lab, mode: str) -> None:
    """The pool's mode, as every node's kernel has it: ``Always``, ``CrossSubnet`` or ``Never``."""
    lab.put(*pools(mode, "Never", kind="ipipMode"))
    for one in SPECS:
        for other in SPECS:
            near = N3 not in (one, other)
            way = "tunl0" if mode == "Always" or (mode == "CrossSubnet" and not near) else "eth0" if near else None
            if one is not other:
                wait_until(
                    lambda one=one, other=other, way=way: devices(one).get(f"10.48.{other.number}.0/26") == way,  # type: ignore[misc]
                    lambda one=one: f"{one.name}: {devices(one)}\n{lab.log(one)[-2000:]}",  # type: ignore[misc]
                    PATIENCE_S,
                )


def reach(lab: Lab, one: Spec, other: Spec) -> None:
    wait_until(lambda: lab.reaches(one, other, 4), lambda: lab.log(one)[-2000:], PATIENCE_S)


@pytest.fixture(scope="module")
def cluster(lab: Lab) -> Lab:
    lab.put(*pools("Always", "Never", kind="ipipMode"))
    for spec in SPECS:
        lab.put(node(spec), *blocks(spec), workload(spec))
    lab.start()
    return lab


class Counted:
    """Packets that come in by a node's link and match, counted from its making on."""

    def __init__(self, spec: Spec, match: str) -> None:
        self._name = spec.name
        rule = f"iifname eth0 {match} counter;"
        inside(
            spec.name, "nft", f"table ip count {{ chain c {{ type filter hook prerouting priority -400; {rule} }}; }}"
        )

    def end(self) -> int:
        found = re.search(r"counter packets (\d+)", inside(self._name, "nft", "list", "table", "ip", "count"))
        inside(self._name, "nft", "delete", "table", "ip", "count")
        assert found
        return int(found[1])


def test_packets_through_two_networks_in_ipip_alone(cluster: Lab) -> None:
    use(cluster, "Always")
    for one in SPECS:
        for other in SPECS:
            if one is not other:
                reach(cluster, one, other)
    (device,) = [one for one in shown(N1, "link") if one.get("ifname") == "tunl0"]
    assert (device["mtu"], device["ifalias"]) == (1480, "felixpy")
    assert "10.48.1.62/32" in run("ip", "-n", "n1", "-o", "addr", "show", "dev", "tunl0")
    for match, least, most in (("ip saddr 10.48.0.0/16", 0, 0), ("ip protocol ipencap ip saddr 10.9.0.1", 3, 1000)):
        counted = Counted(N2, match)
        assert cluster.reaches(N1, N2, 4, count=3)
        assert least <= counted.end() <= most


def test_cross_subnet_is_native_within_a_subnet_alone(cluster: Lab) -> None:
    use(cluster, "CrossSubnet")
    reach(cluster, N1, N2)
    reach(cluster, N1, N3)
    counted = Counted(N2, "ip protocol ipencap")
    assert cluster.reaches(N1, N2, 4, count=3)
    assert counted.end() == 0


def test_a_pool_switched_under_ping_loses_nothing(cluster: Lab) -> None:
    use(cluster, "Always")
    reach(cluster, N1, N2)
    ping = cluster.ping(N1, N2.workload4, 3600, every_ms=20)
    for mode in ("CrossSubnet", "Always") * 3:
        use(cluster, mode)
    ping.send_signal(2)
    sent, missing = lost(ping)
    assert sent > 50
    assert missing == 0


def test_the_outer_source_is_the_nodes_address_whatever_others_it_has(cluster: Lab) -> None:
    """The kernel itself would take the first address of the link, of which no other node knows."""
    use(cluster, "Always")
    reach(cluster, N1, N2)
    cluster.ip("n1", f"addr del {N1.ipv4} dev eth0", "addr add 10.9.0.9/24 dev eth0", f"addr add {N1.ipv4} dev eth0")
    cluster.ip("n1", "route add default via 10.9.0.254")
    assert " src 10.9.0.9 " in run("ip", "-n", "n1", "route", "get", "10.9.0.2")
    try:
        for other in (N2, N3):
            wait_until(
                lambda other=other: devices(N1).get(f"10.48.{other.number}.0/26") == "tunl-felixpy",  # type: ignore[misc]
                lambda: f"{devices(N1)}\n{cluster.log(N1)[-2000:]}",
                PATIENCE_S,
            )
            reach(cluster, N1, other)
            reach(cluster, other, N1)
        for match, least, most in (("ip saddr 10.9.0.9", 0, 0), ("ip saddr 10.9.0.1", 3, 1000)):
            counted = Counted(N2, f"ip protocol ipencap {match}")
            assert cluster.reaches(N1, N2, 4, count=3)
            assert least <= counted.end() <= most
        assert tries("n1", "ping", "-c", "1", "-W", "2", "-I", "10.9.0.9", N2.workload4), "bound to the other address"
    finally:
        inside("n1", "sysctl", "-qw", "net.ipv4.conf.eth0.promote_secondaries=1")
        cluster.ip("n1", "addr del 10.9.0.9/24 dev eth0", "route replace default via 10.9.0.254")
    use(cluster, "Always")
    reach(cluster, N1, N2)


def test_others_ipip_is_dropped(cluster: Lab) -> None:
    use(cluster, "Always")
    reach(cluster, N1, N2)
    forged = (
        "import socket,struct;s=socket.socket(socket.AF_INET,socket.SOCK_RAW,4);"
        "i=struct.pack('!BBHHH',8,0,0xf7f6,8,1);"
        "h=struct.pack('!BBHHHBBH4s4s',0x45,0,28,1,0,64,1,0,bytes([10,48,2,1]),bytes([10,48,1,1]));"
        "c=sum(struct.unpack('!10H',h));c=~((c>>16)+(c&0xffff))&0xffff;h=h[:10]+struct.pack('!H',c)+h[12:];"
        "[s.sendto(h+i,('10.9.0.1',0)) for _ in range(5)]"
    )
    match = "ip saddr 10.48.2.1 icmp id 8 counter"
    inside("w1", "nft", f"table ip count {{ chain c {{ type filter hook prerouting priority 0; {match}; }}; }}")
    inside("fabric", "python3", "-c", forged)
    inside("n2", "python3", "-c", forged)  # the same from a node comes through, so the five before were dropped

    def came() -> int:
        found = re.search(r"counter packets (\d+)", inside("w1", "nft", "list", "table", "ip", "count"))
        return int(found[1]) if found else 0

    wait_until(lambda: came() >= 5, lambda: f"{came()} came", PATIENCE_S)
    time.sleep(0.2)
    assert came() == 5


def test_a_restart_makes_nothing_anew(cluster: Lab) -> None:
    use(cluster, "CrossSubnet")
    reach(cluster, N1, N3)
    before = {"route": shown(N1, "-4", "route"), "nexthop": run("ip", "-n", "n1", "nexthop")}
    ready = cluster.log(N1).count('"event": "ready"')
    cluster.stop(N1, kill=True)
    assert cluster.reaches(N1, N3, 4)
    cluster.start(N1)
    wait_until(
        lambda: cluster.log(N1).count('"event": "ready"') >= ready + 2, lambda: cluster.log(N1)[-2000:], PATIENCE_S
    )
    assert {"route": shown(N1, "-4", "route"), "nexthop": run("ip", "-n", "n1", "nexthop")} == before
    assert "nothing" in cluster.felixpy(N1, "plan").lower()
