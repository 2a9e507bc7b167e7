"""WireGuard between real nodes: packets, keys, repair, restart, live settings.

Two nodes encrypt, the third, behind a router, does not. The devices are the kernel's where it has WireGuard, as with
``make test-kernels``, else ``wireguard-go``'s. All of those keep their sockets in one folder, for every namespace, so
each node's devices have names of their own.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from felixpy.demo.patience import wait_until
from felixpy.model.wireguard import format_key, parse_key, public_key
from felixpy.observe.control import ask
from tests.kernel import run
from tests.netns import enter_new_network, enter_private_namespaces
from tests.underlay.lab import N1, N2, N3, SPECS, Lab, Spec, blocks, inside, node, pools, tries, v3, workload

ENCRYPTING = (N1, N2)
PATIENCE_S = 90.0


def name(spec: Spec, family: int) -> str:
    return f"wg{family}-{spec.name}"


def keys(lab: Lab, spec: Spec) -> Path:
    return lab.folder / spec.name / "keys"


def settings(lab: Lab, spec: Spec) -> dict[str, str]:
    return {
        "FELIX_WIREGUARDINTERFACENAME": name(spec, 4),
        "FELIX_WIREGUARDINTERFACENAMEV6": name(spec, 6),
        "FELIX_WIREGUARDUSERSPACE": "/usr/bin/wireguard-go",
        "FELIX_WIREGUARDKEYDIRECTORY": str(keys(lab, spec)),
        "FELIX_INTERFACEREFRESHINTERVAL": "3",
    }


def configuration(spec: Spec, *, enabled: bool = True) -> dict[str, Any]:
    return v3("FelixConfiguration", f"node.{spec.name}", {"wireguardEnabled": enabled, "wireguardEnabledV6": enabled})


def own_key(lab: Lab, spec: Spec, family: int) -> str:
    file = keys(lab, spec) / ("wireguard.key" if family == 4 else "wireguard-v6.key")
    return format_key(public_key(parse_key(file.read_text())))


def publish(lab: Lab, spec: Spec) -> None:
    """The node's own Node, with its keys."""
    addresses = {
        "interfaceIPv4Address": f"10.48.{spec.number}.61",
        "interfaceIPv6Address": f"fd00:48:0:{spec.number}::3d",
    }
    status = {"wireguardPublicKey": own_key(lab, spec, 4), "wireguardPublicKeyV6": own_key(lab, spec, 6)}
    lab.put({**node(spec, wireguard=addresses), "status": status})


def peers(spec: Spec, family: int) -> dict[str, str]:
    """What the device's own tool says: public key to allowed addresses."""
    said = inside(spec.name, "wg", "show", name(spec, family), "allowed-ips") if has_device(spec, family) else ""
    return {line.split("\t")[0]: line.split("\t")[1] for line in said.splitlines()}


def has_device(spec: Spec, family: int) -> bool:
    return tries(spec.name, "ip", "link", "show", name(spec, family))


def reach(lab: Lab, one: Spec, other: Spec) -> None:
    for family in (4, 6):
        wait_until(
            lambda family=family: lab.reaches(one, other, family),  # type: ignore[misc]
            lambda: f"{one.name} to {other.name}\n{lab.log(one)[-2000:]}",
            PATIENCE_S,
        )


def take_down(lab: Lab) -> None:
    """The program behind a device goes with it, and only once no agent makes it anew."""
    lab.stop(*[spec for spec in lab.specs if spec.name in lab.agents], kill=True)
    for spec in ENCRYPTING:
        for family in (4, 6):
            tries(spec.name, "ip", "link", "del", name(spec, family))
    lab.close()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    enter_private_namespaces()
    enter_new_network()
    found = Lab()
    try:
        found.put(*pools("CrossSubnet", "CrossSubnet"))
        for spec in SPECS:
            found.put(node(spec), *blocks(spec), workload(spec))
        for spec in ENCRYPTING:
            found.put(configuration(spec))
            found.start(spec, settings=settings(found, spec))
        found.start(N3)
        yield found
    finally:
        take_down(found)


@pytest.fixture
def cluster(lab: Lab) -> Lab:
    """Both nodes encrypt, and know each other's keys."""
    for spec in ENCRYPTING:
        lab.put(configuration(spec))
        if spec.name not in lab.agents:
            lab.start(spec, settings=settings(lab, spec))
        for family in (4, 6):
            wait_until(lambda family=family: has_device(spec, family), lambda: lab.log(spec)[-3000:], PATIENCE_S)  # type: ignore[misc] # noqa: B023
        wait_until(lambda: (keys(lab, spec) / "wireguard-v6.key").exists(), str, PATIENCE_S)  # noqa: B023
        wait_until(lambda: (keys(lab, spec) / "wireguard.key").exists(), str, PATIENCE_S)  # noqa: B023
        publish(lab, spec)
    for one, other in (ENCRYPTING, ENCRYPTING[::-1]):
        for family in (4, 6):
            wait_until(
                lambda one=one, other=other, family=family: own_key(lab, other, family) in peers(one, family),  # type: ignore[misc]
                lambda one=one: lab.log(one)[-3000:],  # type: ignore[misc]
                PATIENCE_S,
            )
    return lab


def counted(match: str, send: Any) -> int:
    """Packets that come to n2 by its link and match, while something is sent."""
    chain = f"chain c {{ type filter hook prerouting priority -400; iifname eth0 {match} counter; }}"
    inside("n2", "nft", f"table inet count {{ {chain}; }}")
    send()
    found = re.search(r"counter packets (\d+)", inside("n2", "nft", "list", "table", "inet", "count"))
    inside("n2", "nft", "delete", "table", "inet", "count")
    assert found
    return int(found[1])


def test_packets_in_both_families_and_nothing_in_the_clear(cluster: Lab) -> None:
    reach(cluster, N1, N2)
    reach(cluster, N2, N1)
    for family, port, inner in ((4, 51820, "ip saddr 10.48.0.0/16"), (6, 51821, "ip6 saddr fd00:48::/48")):
        assert counted(inner, lambda family=family: cluster.reaches(N1, N2, family, 3)) == 0  # type: ignore[misc]
        assert counted(f"udp dport {port}", lambda family=family: cluster.reaches(N1, N2, family, 3)) >= 3  # type: ignore[misc]
    assert peers(N1, 4)[own_key(cluster, N2, 4)] == "10.48.2.0/26 10.48.2.61/32"
    rules = run("ip", "-n", "n1", "rule") + run("ip", "-n", "n1", "-6", "rule")
    assert rules.count("99:\tnot from all fwmark 0x80000000/0x80000000") == 2
    assert "throw 10.48.1.0/26" in run("ip", "-n", "n1", "route", "show", "table", "1")


def test_the_devices_are_the_kernels_where_it_can(cluster: Lab) -> None:
    wanted = "wireguard" if os.environ.get("FELIXPY_TEST_KERNELS") == "1" else "tun"
    for family in (4, 6):
        (link,) = json.loads(inside("n1", "ip", "-d", "-j", "link", "show", name(N1, family)))
        assert (link["linkinfo"]["info_kind"], link["ifalias"]) == (wanted, "felixpy")


def test_the_node_itself_reaches_workloads_with_the_address_of_its_device(cluster: Lab) -> None:
    reach(cluster, N1, N2)
    assert tries("n1", "ping", "-c", "1", "-W", "2", N2.workload4)
    assert tries("n1", "ping", "-c", "1", "-W", "2", N2.workload6)


def test_a_node_that_does_not_encrypt_is_reached_in_the_clear_and_named(cluster: Lab) -> None:
    reach(cluster, N1, N3)
    reach(cluster, N3, N1)
    assert "node n3 publishes no IPv4 WireGuard key: what goes there is not encrypted" in cluster.log(N1)


@pytest.mark.parametrize("family", [4, 6])
def test_explain_follows_a_packet_into_the_tunnel(cluster: Lab, family: int) -> None:
    reach(cluster, N1, N2)
    ends = (N1.workload4, N2.workload4) if family == 4 else (N1.workload6, N2.workload6)
    said = cluster.felixpy(N1, "explain", *ends, "icmp", settings=settings(cluster, N1))
    peer = f"WireGuard peer {own_key(cluster, N2, family)}"
    outer, port, mtu = ("10.9.0.1 → 10.9.0.2", 51820, 1440) if family == 4 else ("fd09::1 → fd09::2", 51821, 1420)
    assert f"tunnel       {name(N1, family)}: {peer}, MTU {mtu}: {outer} udp port {port}" in said
    assert "around it  passes, leaves by eth0" in said
    assert f"verdict      passes, leaves by {name(N1, family)}" in said


def test_show_underlay_check_and_metrics_tell_of_peers(cluster: Lab) -> None:
    reach(cluster, N1, N2)
    of_node = settings(cluster, N1)
    lines = cluster.felixpy(N1, "show", "underlay", settings=of_node).splitlines()
    for family in (4, 6):
        (line,) = [one for one in lines if f"{own_key(cluster, N2, family)} dev {name(N1, family)}" in one]
        assert re.search(r"handshake \d+ s ago, [1-9]\d* bytes received, [1-9]\d* sent", line), line
    found = {one["id"]: one for one in json.loads(cluster.felixpy(N1, "check", "--json", settings=of_node))}
    for version in (4, 6):
        assert found[f"wireguard.v{version}"]["level"] == "ok"
        assert found[f"wireguard.v{version}"]["found"] == "1 peers, 1 with a handshake in the last three minutes"
        assert found[f"wireguard.v{version}.keys"]["found"] == f"1 of 2 nodes publish no IPv{version} key, first n3"

    def metrics() -> str:
        return asyncio.run(ask(cluster.folder / "n1" / "control", "metrics"))

    def told() -> bool:  # with the next reading of interfaces
        said = metrics()
        wanted = 'felixpy_wireguard_peers{{family="{}",handshake="recent"}} 1.0'
        return all(wanted.format(version) in said for version in (4, 6))

    wait_until(told, metrics, PATIENCE_S)
    assert float(re.findall(r'felixpy_wireguard_bytes{direction="sent",family="4"} (\S+)', metrics())[0]) > 0


def test_check_names_the_peer_that_never_answers(cluster: Lab) -> None:
    reach(cluster, N1, N2)
    inside("n2", "nft", "table inet silence { chain c { type filter hook prerouting priority -400; }; }")
    inside("n2", "nft", "add rule inet silence c udp dport 51820 drop")
    try:
        # The peer made anew has no session, and begins one with the first packet.
        inside("n1", "wg", "set", name(N1, 4), "peer", own_key(cluster, N2, 4), "remove")
        wait_until(lambda: own_key(cluster, N2, 4) in peers(N1, 4), lambda: cluster.log(N1)[-2000:], PATIENCE_S)
        assert not cluster.reaches(N1, N2, 4)
        found = json.loads(cluster.felixpy(N1, "check", "--json", settings=settings(cluster, N1)))
        (told,) = [one for one in found if one["id"] == "wireguard.v4"]
        assert told["level"] == "warn"
        assert told["found"] == "1 of 1 peers never answered, first n2 at 10.9.0.2 port 51820"
    finally:
        inside("n2", "nft", "delete table inet silence")
    reach(cluster, N1, N2)


@pytest.mark.parametrize("kind", ["usual", "doNotTrack", "preDNAT"])
def test_policy_of_host_endpoints_does_not_stop_it(cluster: Lab, kind: str) -> None:
    """Both nodes are closed, and neither knows a connection of before."""
    reach(cluster, N1, N2)
    denies = {"selector": "has(closed)", "order": 1, "ingress": [{"action": "Deny"}]}
    denies |= {"applyOnForward": True, kind: True} if kind != "usual" else {}
    denies |= {"egress": [{"action": "Deny"}]} if kind != "preDNAT" else {}
    closed = [v3("GlobalNetworkPolicy", "closed", denies)]
    for spec in ENCRYPTING:
        endpoint = v3("HostEndpoint", f"{spec.name}-eth0", {"node": spec.name, "interfaceName": "eth0"})
        endpoint["metadata"]["labels"] = {"closed": "true"}
        closed.append(endpoint)
    cluster.put(*closed)
    try:
        ping = ("ping", "-c", "1", "-W", "1", "10.9.0.254")
        for spec in ENCRYPTING:
            wait_until(lambda spec=spec: not tries(spec.name, *ping), "the node is closed".format, PATIENCE_S)  # type: ignore[misc]
            for family in (4, 6):
                tries(spec.name, "conntrack", "-F", "-f", f"ipv{family}")
        reach(cluster, N1, N2)
        reach(cluster, N2, N1)
    finally:
        for document in closed:
            (cluster.resources / f"{document['kind']}-{document['metadata']['name']}.yaml").unlink()
    for spec in ENCRYPTING:
        wait_until(lambda spec=spec: tries(spec.name, *ping), "open again".format, PATIENCE_S)  # type: ignore[misc]


def test_the_keys_are_for_root_alone(cluster: Lab) -> None:
    for file in keys(cluster, N1).iterdir():
        assert file.stat().st_mode & 0o777 == 0o600
    assert {file.name for file in keys(cluster, N1).iterdir()} == {"wireguard.key", "wireguard-v6.key"}
    for file in keys(cluster, N1).iterdir():
        assert file.read_text().strip() not in cluster.log(N1)


def test_another_key_of_a_node_is_taken_by_both(cluster: Lab) -> None:
    reach(cluster, N1, N2)
    before = own_key(cluster, N2, 4)
    (keys(cluster, N2) / "wireguard.key").write_text(format_key(secrets.token_bytes(32)) + "\n")
    after = own_key(cluster, N2, 4)
    wait_until(
        lambda: after in inside("n2", "wg", "show", name(N2, 4), "public-key"),
        lambda: cluster.log(N2)[-2000:],
        PATIENCE_S,
    )
    publish(cluster, N2)
    wait_until(lambda: set(peers(N1, 4)) == {after}, lambda: peers(N1, 4), PATIENCE_S)
    assert peers(N1, 4)[after] == "10.48.2.0/26 10.48.2.61/32"
    assert before not in peers(N1, 4)
    reach(cluster, N1, N2)


def test_what_others_break_is_mended(cluster: Lab) -> None:
    reach(cluster, N1, N2)
    key = own_key(cluster, N2, 4)
    for damage in (
        ("ip", "rule", "del", "pref", "99"),
        ("ip", "route", "flush", "table", "1"),
        ("wg", "set", name(N1, 4), "peer", key, "remove"),
        ("wg", "set", name(N1, 4), "fwmark", "0"),
        ("ip", "link", "set", name(N1, 4), "mtu", "1300"),
        ("ip", "link", "del", name(N1, 4)),
    ):
        inside("n1", *damage)
        wait_until(lambda: mended(key), lambda damage=damage: f"{damage}\n{cluster.log(N1)[-2000:]}", PATIENCE_S)  # type: ignore[misc]
        reach(cluster, N1, N2)


def mended(key: str) -> bool:
    link = json.loads(run("ip", "-n", "n1", "-j", "link"))
    mtu = {one["ifname"]: one["mtu"] for one in link}.get(name(N1, 4))
    rule = "99:" in run("ip", "-n", "n1", "rule")
    routed = "10.48.2.0/26 dev" in run("ip", "-n", "n1", "route", "show", "table", "all")
    if mtu != 1440 or not rule or not routed or key not in peers(N1, 4):
        return False
    return inside("n1", "wg", "show", name(N1, 4), "fwmark").strip() == "0x80000000"


def test_a_restart_writes_nothing_and_stops_no_packet(cluster: Lab) -> None:
    reach(cluster, N1, N2)
    before = inside("n1", "wg", "showconf", name(N1, 4)), inside("n1", "ip", "-d", "link", "show", name(N1, 4))
    ready = cluster.log(N1).count('"event": "ready"')
    cluster.stop(N1, kill=True)
    assert cluster.reaches(N1, N2, 4)
    cluster.start(N1, settings=settings(cluster, N1))
    wait_until(
        lambda: cluster.log(N1).count('"event": "ready"') == ready + 2, lambda: cluster.log(N1)[-3000:], PATIENCE_S
    )
    assert (
        inside("n1", "wg", "showconf", name(N1, 4)),
        inside("n1", "ip", "-d", "link", "show", name(N1, 4)),
    ) == before
    adopted = json.loads(next(line for line in reversed(cluster.log(N1).splitlines()) if '"adopted"' in line))
    assert (adopted["devices"], adopted["peers"], adopted["rules of routing"]) == (4, 2, 2)
    reach(cluster, N1, N2)


def test_switched_off_live_it_leaves_the_key_alone(cluster: Lab) -> None:
    reach(cluster, N1, N2)
    key = own_key(cluster, N1, 4)
    for spec in ENCRYPTING:
        cluster.put(configuration(spec, enabled=False), node(spec))
    for spec in ENCRYPTING:
        wait_until(lambda spec=spec: not has_device(spec, 4), lambda spec=spec: cluster.log(spec)[-2000:], PATIENCE_S)  # type: ignore[misc]
    reach(cluster, N1, N2)
    assert "99:" not in run("ip", "-n", "n1", "rule")
    assert "table 1 " not in run("ip", "-n", "n1", "route", "show", "table", "all")
    assert own_key(cluster, N1, 4) == key
