"""VXLAN between real nodes: packets in both families, what stands in the kernel, the live switch, repair, restart."""

from __future__ import annotations

import json
import re
import time
from typing import Any

from felixpy.calc.mtu import Tunnel
from felixpy.model.net import Family, format_address
from felixpy.model.vtep import format_mac, link_local, vtep_mac
from tests.kernel import run
from tests.underlay.lab import N1, N2, N3, Lab, Spec, becomes, inside, lost, node, pools, tries

DEVICES = {4: Tunnel.VXLAN.value, 6: Tunnel.VXLAN_V6.value}


def shown(spec: Spec, *arguments: str) -> Any:
    return json.loads(run("ip", "-n", spec.name, "-j", "-d", *arguments) or "[]")


def device(spec: Spec, family: int) -> dict[str, Any]:
    found: list[dict[str, Any]] = [one for one in shown(spec, "link") if one.get("ifname") == DEVICES[family]]
    return found[0] if found else {}


def routes(spec: Spec) -> dict[str, str]:
    """Our routes to other nodes: destination to interface, through which nexthop objects lead now."""
    found = [one for family in ("-4", "-6") for one in shown(spec, family, "route")]
    return {one["dst"]: one.get("dev", "") for one in found if one.get("protocol") == "222" and "nhid" in one}


def test_packets_in_both_families_through_two_networks(lab: Lab) -> None:
    lab.put_cluster("Always", "Always")
    lab.start()
    lab.all_reach()
    four, six = device(N1, 4), device(N1, 6)
    assert (four["linkinfo"]["info_data"]["id"], four["linkinfo"]["info_data"]["port"]) == (4096, 4789)
    assert (four["linkinfo"]["info_data"]["local"], six["linkinfo"]["info_data"]["local6"]) == ("10.9.0.1", "fd09::1")
    assert (four["mtu"], six["mtu"]) == (1450, 1430)
    assert four["address"] == format_mac(vtep_mac("n1", Family.V4))
    assert six["address"] == format_mac(vtep_mac("n1", Family.V6))
    assert not four["linkinfo"]["info_data"].get("learning")
    fdb = inside("n1", "bridge", "fdb", "show", "dev", DEVICES[4])
    assert f"{format_mac(vtep_mac('n3', Family.V4))} dst 10.9.7.3 self permanent" in fdb
    neighbours = run("ip", "-n", "n1", "neigh", "show", "dev", DEVICES[4])
    assert f"10.48.3.63 lladdr {format_mac(vtep_mac('n3', Family.V4))} PERMANENT" in neighbours
    assert set(routes(N1).values()) == set(DEVICES.values())
    gateway = format_address(link_local(vtep_mac("n3", Family.V6)))
    (way,) = [one for one in shown(N1, "-6", "route") if one["dst"] == "fd00:48:0:3::/122"]
    assert (way["gateway"], way["dev"]) == (gateway, DEVICES[6])


def test_nothing_but_vxlan_leaves_a_node_whose_pools_always_encapsulate(lab: Lab) -> None:
    lab.put_cluster("Always", "Always")
    lab.start()
    lab.all_reach()
    counting = "table inet count { chain c { type filter hook forward priority 0; ip saddr 10.48.0.0/16 counter; }; }"
    inside("fabric", "nft", counting)
    inside("fabric", "nft", "add table bridge count")
    inside("fabric", "nft", "add chain bridge count c { type filter hook forward priority 0; }")
    inside("fabric", "nft", "add rule bridge count c ip saddr 10.48.0.0/16 counter")
    inside("fabric", "nft", "add rule bridge count c udp dport 4789 counter")
    assert lab.reaches(N1, N2, 4, count=5)
    assert lab.reaches(N1, N3, 4, count=5)
    counts = [int(one) for one in re.findall(r"counter packets (\d+)", inside("fabric", "nft", "list", "ruleset"))]
    assert (counts[0], counts[1]) == (0, 0)
    assert counts[2] >= 10


def test_cross_subnet_is_native_within_a_subnet_alone(lab: Lab) -> None:
    lab.put_cluster("CrossSubnet", "CrossSubnet")
    lab.start()
    lab.all_reach()
    seen = routes(N1)
    assert seen["10.48.2.0/26"] == seen["fd00:48:0:2::/122"] == "eth0"
    assert (seen["10.48.3.0/26"], seen["fd00:48:0:3::/122"]) == (DEVICES[4], DEVICES[6])


def test_a_pool_switched_twenty_times_under_ping_loses_nothing(lab: Lab) -> None:
    lab.put_cluster("Never", "Never")
    lab.put(*pools("Always", "Always"))
    lab.start(N1, N2)
    for family in (4, 6):
        becomes(lambda family=family: lab.reaches(N1, N2, family), f"IPv{family}")  # type: ignore[misc]
    before = {spec: shown(spec, "-4", "route") for spec in (N1, N2)}
    numbers = {one["dst"]: one["nhid"] for one in before[N1] if "nhid" in one}
    pings = [lab.ping(N1, target, 14) for target in (N2.workload4, N2.workload6)]
    for number in range(20):
        mode = ("Never", "Always")[number % 2]
        lab.put(*pools(mode, mode))
        time.sleep(0.3)
        way = "eth0" if mode == "Never" else DEVICES[4]
        becomes(lambda way=way: routes(N1).get("10.48.2.0/26") == way, f"switch {number} to {mode}")  # type: ignore[misc]
    results = [lost(ping) for ping in pings]
    assert all(sent > 500 for sent, _ in results)
    assert [missing for _, missing in results] == [0, 0]
    after = {one["dst"]: one["nhid"] for one in shown(N1, "-4", "route") if "nhid" in one}
    assert after == numbers


def test_a_device_that_somebody_breaks_is_mended(lab: Lab) -> None:
    lab.put_cluster("Always", "Always")
    lab.start(N1, N2)
    becomes(lambda: lab.reaches(N1, N2, 4), "IPv4")
    for damage in (
        "link del vxlan.calico",
        "link set vxlan.calico down",
        "link set vxlan.calico address 66:00:00:00:00:99",
        "link set vxlan.calico mtu 1400",
        "addr flush dev vxlan.calico",
        "neigh flush dev vxlan.calico nud permanent",
        "nexthop flush protocol 222",
    ):
        lab.ip("n1", damage)
        becomes(lambda: lab.reaches(N1, N2, 4), f"{damage}\n{lab.log(N1)[-3000:]}")
        becomes(lambda: device(N1, 4).get("mtu") == 1450, damage)
        becomes(lambda: "10.48.1.63" in run("ip", "-n", "n1", "addr", "show", "dev", "vxlan.calico"), damage)
    inside("n1", "bridge", "fdb", "del", format_mac(vtep_mac("n2", Family.V4)), "dev", "vxlan.calico")
    becomes(lambda: lab.reaches(N1, N2, 4), "FDB entry removed")


def test_another_address_of_a_node_changes_the_device_in_place(lab: Lab) -> None:
    lab.put_cluster("Always", "Always")
    lab.start(N1, N2)
    becomes(lambda: lab.reaches(N1, N2, 4), "IPv4")
    index = device(N1, 4)["ifindex"]
    lab.ip("n1", "addr add 10.9.0.9/24 dev eth0")
    moved = node(N1, bgp={"ipv4Address": "10.9.0.9/24", "ipv6Address": N1.ipv6})
    lab.put(moved)
    becomes(lambda: device(N1, 4)["linkinfo"]["info_data"].get("local") == "10.9.0.9", "local address")
    becomes(lambda: lab.reaches(N1, N2, 4), "IPv4")
    assert device(N1, 4)["ifindex"] == index


def test_an_address_on_lo_that_routers_are_told_of_carries_both_tunnels(lab: Lab) -> None:
    """BGP to the host: links without an IPv4 address, a /32 and a /128 on lo, others' routes between them."""
    lab.put_cluster("CrossSubnet", "CrossSubnet")
    links: dict[str, str] = {}
    for spec in (N1, N2):
        (found,) = [one for one in shown(spec, "-6", "addr", "show", "dev", "eth0") if one]
        (links[spec.name],) = [one["local"] for one in found["addr_info"] if one["scope"] == "link"]
    for spec, other in ((N1, N2), (N2, N1)):
        own = f"10.255.0.{spec.number}", f"fd00:255::{spec.number}"
        far = f"10.255.0.{other.number}", f"fd00:255::{other.number}"
        lab.ip(
            spec.name,
            "addr flush dev eth0 scope global",
            "link set eth0 mtu 1400",
            f"addr add {own[0]}/32 dev lo",
            f"addr add {own[1]}/128 dev lo nodad",
            f"route add {far[0]}/32 via inet6 {links[other.name]} dev eth0 src {own[0]}",
            f"route add {far[1]}/128 via {links[other.name]} dev eth0 src {own[1]}",
            f"route replace 0.0.0.0/0 via inet6 {links[other.name]} dev eth0 src {own[0]}",
        )
        lab.put(node(spec, bgp={"ipv4Address": f"{own[0]}/32", "ipv6Address": f"{own[1]}/128"}))
    lab.start(N1, N2)
    for family in (4, 6):
        becomes(lambda family=family: lab.reaches(N1, N2, family), f"IPv{family}\n{lab.log(N1)[-3000:]}")  # type: ignore[misc]
        becomes(lambda family=family: lab.reaches(N2, N1, family), f"IPv{family}\n{lab.log(N2)[-3000:]}")  # type: ignore[misc]
    assert [device(N1, family)["mtu"] for family in (4, 6)] == [1350, 1330]
    assert "link" not in device(N1, 4), "packets leave by what the routes say"
    said = lab.felixpy(N1, "check")
    assert "10.255.0.1/32 as the Node says" in said
    assert "fd00:255::1/128 as the Node says" in said
    assert "2 of 4 ways to nodes carry full packets" in said, "those of the uplink, not of lo; n3 does not answer"
    assert "dst 10.255.0.2" in lab.felixpy(N1, "show", "underlay"), "addresses of nodes are written as such"
    lab.ip("n1", "link set eth0 mtu 1500")
    becomes(lambda: [device(N1, family)["mtu"] for family in (4, 6)] == [1450, 1430], "the uplink's MTU is followed")


def test_what_cannot_be_changed_is_made_anew(lab: Lab) -> None:
    lab.put_cluster("Always", "Never")
    lab.ip("n1", "link add vxlan.calico type vxlan id 1 dstport 8472 local 10.9.0.1 dev eth0")
    assert "vxlan.calico of another program, as Felix leaves behind" in lab.felixpy(N1, "check")
    lab.start(N1, N2)
    becomes(lambda: lab.reaches(N1, N2, 4), f"IPv4\n{lab.log(N1)[-3000:]}")
    data = device(N1, 4)["linkinfo"]["info_data"]
    assert (data["id"], data["port"]) == (4096, 4789)


def test_devices_go_with_the_last_pool_that_needs_them(lab: Lab) -> None:
    lab.put_cluster("Always", "Always")
    lab.start(N1, N2)
    becomes(lambda: lab.reaches(N1, N2, 6), "IPv6")
    rules = "VXLAN of nobody in the cluster"
    assert rules in inside("n1", "nft", "list", "table", "ip", "felixpy")
    lab.put(*pools("Never", "Always"))
    becomes(lambda: not device(N1, 4) and bool(device(N1, 6)), "IPv4 device gone, IPv6 device there")
    becomes(lambda: rules not in inside("n1", "nft", "list", "table", "ip", "felixpy"), "rules go with the device")
    becomes(lambda: lab.reaches(N1, N2, 4), "IPv4 natively")
    lab.put(*pools("Never", "Never"))
    becomes(lambda: not device(N1, 6), "IPv6 device gone")


def test_half_known_peers_carry_the_other_family(lab: Lab) -> None:
    lab.put_cluster("Always", "Always")
    lab.put(node(N2, ipv4VXLANTunnelAddr=None))
    lab.start(N1, N2)
    becomes(lambda: lab.reaches(N1, N2, 6), "IPv6")
    assert "10.48.2.0/26" not in routes(N1)
    assert "node n2 has no IPv4 VXLAN tunnel address yet" in lab.log(N1)
    lab.put(node(N2))
    becomes(lambda: lab.reaches(N1, N2, 4), "IPv4 when the address is there")


def test_parent_mtu_is_followed(lab: Lab) -> None:
    lab.put_cluster("Always", "Always")
    told = lab.folder / "calico" / "mtu"
    told.parent.mkdir()
    lab.start(N1, settings={"FELIX_MTUFILE": str(told)})
    lab.start(N2)
    becomes(lambda: device(N1, 4).get("mtu") == 1450, "first MTU")
    becomes(lambda: told.exists() and told.read_text() == "1430", "told")
    lab.ip("n1", "link set eth0 mtu 1400")
    becomes(lambda: (device(N1, 4).get("mtu"), device(N1, 6).get("mtu")) == (1350, 1330), "smaller")
    becomes(lambda: told.read_text() == "1330", "told")
    lab.ip("n1", "link set eth0 mtu 1340")
    becomes(lambda: device(N1, 6).get("mtu") == 1280, "clamped")
    becomes(lambda: "is too small for IPv6 in VXLAN over IPv6 (needs 1350)" in lab.log(N1), "told")
    lab.ip("n1", "link set eth0 mtu 1500")
    becomes(lambda: (device(N1, 4).get("mtu"), device(N1, 6).get("mtu")) == (1450, 1430), "as before")
    becomes(lambda: lab.reaches(N1, N2, 6), "IPv6")


def test_parent_that_flaps_gets_its_ways_back(lab: Lab) -> None:
    lab.put_cluster("CrossSubnet", "CrossSubnet")
    lab.start()
    lab.all_reach()
    lab.ip("fabric", "link set to-n1 down")
    becomes(lambda: "10.48.2.0/26" not in routes(N1), "the kernel drops nexthops without carrier")
    lab.ip("fabric", "link set to-n1 up")
    lab.all_reach()


def test_a_restart_makes_nothing_anew(lab: Lab) -> None:
    lab.put_cluster("CrossSubnet", "CrossSubnet")
    lab.start()
    lab.all_reach()
    monitor = run_monitor("n1")
    lab.stop(N1, kill=True)
    lab.start(N1)
    becomes(lambda: lab.log(N1).count('"event": "ready"') == 4, "ready again")
    time.sleep(1.0)
    monitor.terminate()
    said, _ = monitor.communicate()
    # What the kernel does by itself: learns neighbours, ends the duplicate detection of link-local addresses.
    passing = r"REACHABLE|STALE|DELAY|PROBE|FAILED|INCOMPLETE|NOARP|fe80:|valid_lft"
    changes = [line for line in said.splitlines() if line.strip() and not re.search(passing, line)]
    assert changes == [], said
    assert tries("w1", "ping", "-c", "1", "-W", "2", N3.workload4)


def run_monitor(name: str) -> Any:
    import subprocess

    return subprocess.Popen(
        ["ip", "-n", name, "monitor", "link", "address", "route", "neigh", "nexthop"],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_cleanup_takes_everything_of_ours_and_a_device_of_others_stays(lab: Lab) -> None:
    lab.put_cluster("Always", "CrossSubnet")
    lab.start(N1, N2)
    becomes(lambda: lab.reaches(N1, N2, 4), "IPv4")
    lab.ip("n1", "link add other type vxlan id 9 dstport 4790 local 10.9.0.1 dev eth0")
    lab.stop(N1)
    said = lab.felixpy(N1, "cleanup")
    assert "vxlan.calico" in said
    names = {one["ifname"] for one in shown(N1, "link") if one}
    assert names == {"lo", "eth0", "cali1", "other"}
    assert run("ip", "-n", "n1", "nexthop") == ""
    assert not [one for one in shown(N1, "-4", "route") if one.get("protocol") == "222"]


def test_show_and_plan_know_the_tunnels(lab: Lab) -> None:
    lab.put_cluster("Always", "Always")
    lab.start(N1, N2)
    becomes(lambda: lab.reaches(N1, N2, 4), "IPv4")
    assert "nothing" in lab.felixpy(N1, "plan").lower()
    said = lab.felixpy(N1, "show", "underlay")
    for part in (
        "vxlan id 4096 local 10.9.0.1 dev eth0",
        "to node n2 for four ",
        "via 10.48.2.63 dev vxlan.calico onlink",
    ):
        assert part in said


def test_explain_follows_a_packet_through_the_tunnel(lab: Lab) -> None:
    lab.put_cluster("Always", "CrossSubnet")
    lab.start(N1, N2)
    becomes(lambda: lab.reaches(N1, N2, 4), "IPv4")
    asked = ("explain", N1.workload4, N2.workload4, "icmp")
    said = lab.felixpy(N1, *asked)
    assert "tunnel       vxlan.calico: VXLAN id 4096, MTU 1450: 10.9.0.1 → 10.9.0.2 udp port 4789" in said
    assert "around it  passes, leaves by eth0; the far side sees 10.9.0.1" in said
    assert "verdict      passes, leaves by vxlan.calico" in said
    assert "not certain" not in said
    assert "tunnel" not in lab.felixpy(N1, "explain", N1.workload6, N2.workload6, "icmp")
    inside("n1", "nft", "add table ip other; add chain ip other c { type filter hook output priority 0; }")
    inside("n1", "nft", "add rule ip other c udp dport 4789 drop")
    stopped = lab.felixpy(N1, *asked)
    (verdict,) = [line for line in stopped.splitlines() if line.startswith("verdict ")]
    assert (
        "dropped by what stops the packet around it: " in verdict and " other chain c: udp dport 4789 drop" in verdict
    )
    inside("n1", "nft", "delete table ip other")
    lab.stop(N1)
    inside("n1", "bridge", "fdb", "del", format_mac(vtep_mac("n2", Family.V4)), "dev", "vxlan.calico")
    unknown = lab.felixpy(N1, *asked)
    assert f"vxlan.calico does not know where {format_mac(vtep_mac('n2', Family.V4))} is" in unknown


def test_check_finds_what_swallows_full_packets(lab: Lab) -> None:
    """The router's link to n3 carries less than everybody's uplink; first it says so, then nobody does."""
    lab.put_cluster("CrossSubnet", "CrossSubnet")

    def said() -> dict[str, str]:
        found = json.loads(lab.felixpy(N1, "check", "--json"))
        return {one["id"]: one["found"] for one in found}

    becomes(lambda: said()["path.mtu"] == "4 of 4 ways to nodes carry full packets", "IPv6 on the links, too")
    lab.ip("fabric", "link set to-n3 mtu 1400")
    assert said()["path.mtu"] == (
        "2 of 4 nodes get no packet of 1500 bytes, first n3 at 10.9.7.3: a router tells an MTU of 1400"
    )
    silence = "oifname br0 icmp type destination-unreachable drop; oifname br0 icmpv6 type packet-too-big drop"
    inside("fabric", "nft", f"table inet silence {{ chain c {{ type filter hook output priority 0; {silence}; }}; }}")
    assert said()["path.mtu"].endswith("first n3 at 10.9.7.3: nobody tells why: a black hole")
