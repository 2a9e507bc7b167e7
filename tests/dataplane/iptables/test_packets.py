"""Real packets through the rules: two workloads and an outside host that has no route to them, both families.

    p1 eth0 -- cali1 [node] cali2 -- eth0 p2
                      eeri0 -- eth0 ext

In each bit that python-iptables' ``Rule6`` would compare, ``eeri`` is equal to ``cali``: it must not be taken for one.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from felixpy.calc.entries import ElementKey, SetName
from felixpy.dataplane.packet_filter import FilterChange
from felixpy.model.net import FAMILIES, Family, Net
from tests.dataplane.iptables.conftest import MakeFilter, output
from tests.dataplane.iptables.programmed import program, workload

PODS = {Family.V4: "10.65.0.{}", Family.V6: "fd00:65::{}"}
STRANGERS = {Family.V4: "10.65.9.{}", Family.V6: "fd00:65::9:{}"}
NODE = {Family.V4: "203.0.113.1", Family.V6: "2001:db8:113::1"}
OUTSIDE = {Family.V4: "203.0.113.2", Family.V6: "2001:db8:113::2"}
POOL = {Family.V4: "10.65.0.0/16", Family.V6: "fd00:65::/32"}
NAMESPACES = ("p1", "p2", "ext")


def run_script(script: str) -> None:
    subprocess.run(["sh", "-ec", script], check=True)


@pytest.fixture
def node(network: None) -> Iterator[None]:
    for family, names in ((4, ("ip_forward",)), (6, ("conf/all/forwarding",))):
        for name in names:
            Path(f"/proc/sys/net/ipv{family}/{name}").write_text("1")
    Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("0")
    for name in NAMESPACES:
        run_script(f"ip netns add {name}; ip netns exec {name} sysctl -qw net.ipv6.conf.default.accept_dad=0")
    run_script(
        "ip link add eeri0 type veth peer name eth0 netns ext; ip link set eeri0 up; ip -n ext link set eth0 up;"
        f"ip addr add {NODE[Family.V4]}/24 dev eeri0; ip addr add {NODE[Family.V6]}/64 dev eeri0 nodad;"
        f"ip -n ext addr add {OUTSIDE[Family.V4]}/24 dev eth0;"
        f"ip -n ext addr add {OUTSIDE[Family.V6]}/64 dev eth0 nodad;"
        f"ip route add default via {OUTSIDE[Family.V4]}"
    )
    for number in (1, 2):
        add_pod(number)
    yield
    for name in NAMESPACES:
        output("ip", "netns", "delete", name)


def add_pod(number: int) -> None:
    pod, link = f"p{number}", f"cali{number}"
    run_script(
        f"ip link add {link} type veth peer name eth0 netns {pod}; ip link set {link} up;"
        f"ip -n {pod} link set eth0 up; ip addr add fe80::1/64 dev {link} nodad;"
        f"sysctl -qw net.ipv4.conf.{link}.proxy_arp=1 net.ipv4.neigh.{link}.proxy_delay=0;"
        f"ip -n {pod} route add 169.254.1.1 dev eth0"
    )
    for family in FAMILIES:
        for address in (PODS[family].format(number), STRANGERS[family].format(number)):
            run_script(
                f"ip -n {pod} addr add {address}/{family.bits} dev eth0 {'nodad' if family is Family.V6 else ''};"
                f"ip route add {address} dev {link}"
            )
    run_script(
        f"ip -n {pod} route add default via 169.254.1.1 dev eth0 src {PODS[Family.V4].format(number)};"
        f"ip -n {pod} -6 route add default via fe80::1 dev eth0 src {PODS[Family.V6].format(number)}"
    )


def ping(namespace: str, target: str, *options: str) -> bool:
    command = ["ip", "netns", "exec", namespace, "ping", "-n", "-c1", "-W0.4", *options, target]
    return subprocess.run(command, capture_output=True).returncode == 0


def outcomes(family: Family) -> dict[str, bool]:
    pods, strangers = PODS[family], STRANGERS[family]
    return {
        "known to known": ping("p1", pods.format(2)),
        "spoofed source": ping("p1", pods.format(2), "-I", strangers.format(1)),
        "unknown destination": ping("p1", strangers.format(2)),
        "workload to node": ping("p1", NODE[family]),
        "node to workload": subprocess.run(
            ["ping", "-n", "-c1", "-W0.4", pods.format(1)], capture_output=True
        ).returncode
        == 0,
        "workload to outside": ping("p1", OUTSIDE[family]),
        "outside to node": ping("ext", NODE[family]),
    }


def test_known_pairs_pass_and_everything_else_is_dropped(node: None, make_filter: MakeFilter) -> None:
    for family in FAMILIES:
        bare = outcomes(family)
        assert bare.pop("workload to outside") is False  # no way back without NAT
        assert all(bare.values()), (family, bare)

    async def run() -> None:
        for family in FAMILIES:
            packet_filter = make_filter(family)
            await program(packet_filter, 1, 2)
            pool = Net.parse(POOL[family])
            members = [ElementKey(SetName.POOLS, pool), ElementKey(SetName.MASQ_POOLS, pool)]
            assert await packet_filter.write(FilterChange(add=members)) == {}

    asyncio.run(run())
    for family in FAMILIES:
        assert outcomes(family) == {
            "known to known": True,
            "spoofed source": False,
            "unknown destination": False,
            "workload to node": False,
            "node to workload": True,
            "workload to outside": True,
            "outside to node": True,
        }, family


def test_a_removed_workload_loses_its_way(node: None, make_filter: MakeFilter, family: Family) -> None:
    async def run() -> None:
        packet_filter = make_filter(family)
        await program(packet_filter, 1, 2)
        assert ping("p1", PODS[family].format(2))
        await packet_filter.write(FilterChange(remove=workload(family, 2)))
        assert not ping("p1", PODS[family].format(2))
        await packet_filter.write(FilterChange(add=workload(family, 2)))
        assert ping("p1", PODS[family].format(2))
        await packet_filter.write(FilterChange(remove=workload(family, 1)))
        assert not ping("p1", PODS[family].format(2))

    asyncio.run(run())
