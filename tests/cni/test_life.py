"""The plugin and the agent through restarts, with the agent away, and with containers that vanish."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

import pytest

from felixpy.demo.resources import ip_pool, v3
from tests.agent.bench import LEGACY, NFT, NFTABLES
from tests.cni.lab import BLOCKS, NODE, NOTHING, POOLS, Container, Node
from tests.kernel import ip, ip_json

BACKENDS = {"nftables": NFTABLES, "legacy": LEGACY, "nft": NFT}


def addresses(result: Any) -> list[str]:
    return [entry["address"].split("/")[0] for entry in result["ips"]]


def interface(result: Any) -> str:
    return str(result["interfaces"][0]["name"])


@pytest.mark.parametrize("node", BACKENDS.values(), ids=BACKENDS.keys(), indirect=True)
def test_packets_flow_as_soon_as_add_has_answered(node: Node) -> None:
    """Between containers, to the node and back, in both families and with each back-end: no repetition, no pause."""
    one = node.container("one")
    first = addresses(node.add(one))
    for number in range(3):
        two = node.container(f"two{number}")
        second = addresses(node.add(two))
        for address in second:
            one.ping(address)
        for address in first:
            two.ping(address)
        two.ping("192.0.2.1")
        two.ping("2001:db8::1")
        node.delete(two)
        node.remove(two)
    node.delete(one)
    node.wait(lambda: node.leaks() == NOTHING)


def test_what_a_container_gets(node: Node) -> None:
    """Both ends, addresses, routes and settings, as Calico's plugin leaves them, and the result of each version."""
    for number, version in enumerate(("0.3.1", "0.4.0", "1.0.0", "1.1.0")):
        container = node.container(f"c{number}")
        result = node.add(container, node.conf(version, mtu=1400))
        assert result["cniVersion"] == version
        host, inside = result["interfaces"]
        assert host == {"name": host["name"], "mac": "ee:ee:ee:ee:ee:ee"} | ({"mtu": 1400} if number == 3 else {})
        assert inside["name"] == "eth0"
        assert inside["sandbox"] == container.netns
        v4, v6 = result["ips"]
        assert ipaddress.ip_interface(v4["address"]) in ipaddress.ip_network("10.48.7.0/26")
        assert ipaddress.ip_interface(v6["address"]) in ipaddress.ip_network("fd00:48::740/122")
        assert ("version" in v4) == (number < 2)
        assert v4["gateway"] == "169.254.1.1"
        assert v6["gateway"] == "fe80::ecee:eeff:feee:eeee"
        assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": v4["gateway"]}, {"dst": "::/0", "gw": v6["gateway"]}]
        (link,) = json.loads(container.run("ip", "-json", "-details", "link", "show", "eth0"))
        assert (link["mtu"], link["address"]) == (1400, inside["mac"])
        (found,) = json.loads(container.run("ip", "-json", "addr", "show", "eth0"))
        assert {(one["local"], one["prefixlen"], one.get("tentative", False)) for one in found["addr_info"]} >= {
            (v4["address"].split("/")[0], 32, False),
            (v6["address"].split("/")[0], 128, False),
        }
        routes = json.loads(container.run("ip", "-json", "route"))
        assert [(one["dst"], one.get("gateway"), one.get("scope")) for one in routes] == [
            ("default", "169.254.1.1", None),
            ("169.254.1.1", None, "link"),
        ]
        (default,) = json.loads(container.run("ip", "-6", "-json", "route", "show", "default"))
        assert default["gateway"] == "fe80::ecee:eeff:feee:eeee"
        for setting in ("accept_ra", "accept_dad", "disable_ipv6"):
            assert container.run("cat", f"/proc/sys/net/ipv6/conf/eth0/{setting}").strip() == "0"
        (peer,) = ip_json("link", "show", host["name"])
        assert (peer["address"], peer["mtu"]) == ("ee:ee:ee:ee:ee:ee", 1400)
        assert node.call("CHECK", container, node.conf("1.1.0", prevResult=result)).code == 0


def test_the_mtu_is_what_the_pools_tunnels_carry(node: Node) -> None:
    """The uplink's without one, VXLAN's 50 bytes less with it, and what the configuration says before both."""
    own = v3("Node", NODE, {"bgp": {"ipv4Address": "192.0.2.1/24"}})
    plain = ip_pool("four", "10.48.0.0/16")
    for number, (pool, fields, mtu) in enumerate(
        (
            (plain, {}, 1500),
            ({**plain, "spec": {**plain["spec"], "vxlanMode": "Always"}}, {}, 1450),
            (plain, {"mtu": 1300}, 1300),
        )
    ):
        node.resources(own, pool, *BLOCKS)
        container = node.container(f"c{number}")
        conf = node.conf(ipam={"type": "felixpy-ipam"}, **fields)

        def has_it(container: Container = container, conf: Any = conf, mtu: int = mtu) -> bool:
            result = node.add(container, conf)
            node.delete(container)
            return bool(result["interfaces"][1].get("mtu") == mtu)

        node.wait(has_it)


def test_one_family_or_both(node: Node) -> None:
    cases: list[tuple[dict[str, Any], list[int]]] = [
        ({"assign_ipv4": "true"}, [4]),
        ({"assign_ipv4": False, "assign_ipv6": True}, [6]),
        ({"assign_ipv6": "true"}, [4, 6]),
    ]
    for ipam, families in cases:
        one, two = node.container("one"), node.container("two")
        conf = node.conf(ipam={"type": "calico-ipam", **ipam})
        node.add(one, conf)
        found = addresses(node.add(two, conf))
        assert [ipaddress.ip_address(address).version for address in found] == families
        for address in found:
            one.ping(address)
        for container in (one, two):
            node.delete(container)
            node.remove(container)


def test_the_agent_is_away(node: Node) -> None:
    """Without it: VERSION is answered, STATUS says 50, ADD and CHECK ask to try again, DEL takes the interface away."""
    container, other = node.container("one"), node.container("two")
    result, kept = node.add(container), node.add(other)
    node.stop()
    conf = node.conf(agentWaitSeconds=0.2)
    version = node.call("VERSION", conf={"cniVersion": "1.0.0"})
    assert version.code == 0
    assert version.result["supportedVersions"] == ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]
    status = node.call("STATUS", conf=conf)
    assert (status.code, status.result["code"]) == (1, 50)
    for command in ("ADD", "CHECK"):
        answer = node.call(command, container, conf)
        assert (answer.code, answer.result["code"], answer.result["cniVersion"]) == (1, 11, "1.1.0")
        assert str(node.socket) in answer.result["msg"]
    for _ in range(2):
        node.delete(container)
    assert interface(result) not in {link["ifname"] for link in ip_json("link")}
    assert interface(kept) in {link["ifname"] for link in ip_json("link")}
    node.start()
    node.wait(lambda: node.leaks()["journal"] == [(other.container_id, "eth0")])
    node.wait(lambda: len(node.leaks()["routes"]) == 2)
    again = node.container("three")
    for address in addresses(kept):
        assert address not in addresses(node.add(again))
        again.ping(address)
        node.delete(again)


def test_a_del_of_an_old_container_spares_the_new_one_of_its_pod(node: Node) -> None:
    """The kubelet repeats DEL of sandboxes that are long gone; with the agent there, and without it."""
    old, other = node.container("old", pod="web-0"), node.container("peer")
    node.add(old)
    peer = addresses(node.add(other))
    node.delete(old)
    new = node.container("new", pod="web-0")
    node.add(new)
    node.delete(old)
    for address in peer:
        new.ping(address)
    node.stop()
    node.delete(old)
    for address in peer:
        new.ping(address)


def test_an_add_waits_for_an_agent_that_restarts(node: Node) -> None:
    container = node.container("one")
    node.stop()
    waiting = node.begin("ADD", container)
    node.start(ready=False)
    output, _ = waiting.communicate()
    assert waiting.returncode == 0, (output, node.log.read_text())
    node.delete(container)
    node.wait(lambda: node.leaks() == NOTHING)


@pytest.mark.parametrize("gently", [True, False], ids=["stopped", "killed"])
def test_a_restart_in_the_middle_of_adds(node: Node, gently: bool) -> None:
    """Every ADD ends well, no address is given twice, and nothing is left when all are gone."""
    containers = [node.container(f"c{number}") for number in range(8)]
    waiting = [node.begin("ADD", container) for container in containers]
    if gently:
        node.stop()
    else:
        node.kill()
    node.start(ready=False)
    results = []
    for process in waiting:
        output, _ = process.communicate()
        assert process.returncode == 0, (output, node.log.read_text())
        results.append(json.loads(output))
    found = [address for result in results for address in addresses(result)]
    assert len(set(found)) == len(found) == 16
    for address in found[2:4]:
        containers[0].ping(address)
    for container in containers:
        node.delete(container)
    node.wait(lambda: node.leaks() == NOTHING)


def test_a_restart_keeps_traffic_and_addresses(node: Node) -> None:
    one, two = node.container("one"), node.container("two")
    node.add(one)
    found = addresses(node.add(two))
    node.kill()
    for address in found:
        one.ping(address)
    node.start()
    for address in found:
        one.ping(address)
    three = node.container("three")
    assert not set(addresses(node.add(three))) & set(found)
    for container in (one, two, three):
        node.delete(container)
    node.wait(lambda: node.leaks() == NOTHING)


def test_the_namespace_is_gone_before_del(node: Node) -> None:
    container = node.container("one")
    node.add(container)
    ip(f"netns del {container.name}")
    node.containers.remove(container)
    for _ in range(2):
        node.delete(container, CNI_NETNS="")
    node.wait(lambda: node.leaks() == NOTHING)


def test_del_of_what_nobody_knows_says_nothing(node: Node) -> None:
    container = node.container("one")
    before = node.log.read_text()
    for number in range(20):
        node.delete(container, CNI_CONTAINERID=f"unknown{number}", CNI_NETNS="")
    assert node.call("DEL", container, {"cniVersion": "9.9", "name": None}).code == 0
    assert node.log.read_text() == before


def test_a_runtime_that_kills_the_plugin(node: Node) -> None:
    """Killed at some moment of the way: the DEL that follows leaves nothing, whatever had been done."""
    container = node.container("one")
    for _ in range(10):
        process = node.begin("ADD", container)
        process.kill()
        process.wait()
        node.delete(container)
        node.wait(lambda: node.leaks() == NOTHING)
    node.add(container)


def test_check_names_what_is_missing(node: Node) -> None:
    container = node.container("one")
    result = node.add(container)
    _, v6 = addresses(result)

    def check(**fields: Any) -> str:
        answer = node.call("CHECK", container, node.conf(**{"prevResult": result, **fields}))
        return "" if answer.code == 0 else f"{answer.result['code']}: {answer.result['msg']}"

    assert check() == ""
    assert "knows nothing of" in check(prevResult={**result, "ips": result["ips"][:1]})
    container.run("ip", "route", "del", "default")
    assert check().startswith("103: the container has lost its route to 0.0.0.0/0")
    container.run("ip", "addr", "del", f"{v6}/128", "dev", "eth0")
    assert f"eth0 has lost the address {v6}/128" in check()
    container.run("ip", "link", "set", "eth0", "down")
    assert "the interface eth0 of the container is down" in check()
    ip(f"link del {interface(result)}")
    assert f"the interface {interface(result)} of the node is gone" in check()
    unknown = node.call("CHECK", container, node.conf(prevResult=result), CNI_CONTAINERID="another")
    assert unknown.result["code"] == 3


def test_garbage_collection(node: Node) -> None:
    """What the runtime does not name goes, links and addresses; other networks and what it names stay."""
    containers = [node.container(f"c{number}") for number in range(3)]
    kept = node.add(containers[0])
    node.add(containers[1])
    other = node.add(containers[2], node.conf(name="another-network"))
    valid = [{"containerID": containers[0].container_id, "ifname": "eth0"}]
    answer = node.call("GC", conf=node.conf(**{"cni.dev/valid-attachments": valid}))
    assert (answer.code, answer.result) == (0, None)
    assert node.leaks()["links"] == sorted([interface(kept), interface(other)])
    assert node.leaks()["journal"] == [(containers[0].container_id, "eth0"), (containers[2].container_id, "eth0")]
    for address in addresses(other):
        containers[0].ping(address)
    assert (answer := node.call("GC", conf=node.conf())).code == 1
    assert "nothing is removed" in answer.result["msg"]
    assert node.call("GC", conf=node.conf(**{"cni.dev/attachments": False})).result["code"] == 7
    assert interface(kept) in node.leaks()["links"]
    answer = node.call("GC", conf=node.conf(**{"cni.dev/attachments": None}))
    assert (answer.code, node.leaks()["links"]) == (0, [interface(other)])


def test_status_without_a_free_address(node: Node) -> None:
    """A block of four addresses: with all of them given, ADD fails for both families and STATUS says 50."""
    node.resources(*POOLS, {**BLOCKS[0], "spec": {**BLOCKS[0]["spec"], "cidr": "10.48.7.0/30"}}, BLOCKS[1])
    small = node.conf(ipam={"type": "felixpy-ipam"})

    def full() -> bool:
        answer = node.call("STATUS", conf=small)
        return answer.code == 1

    containers: list[Container] = []

    def fill() -> bool:
        container = node.container(f"c{len(containers)}")
        answer = node.call("ADD", container, node.conf())
        if answer.code == 0:
            containers.append(container)
            return False
        assert "no IPv4 address is free" in answer.result["msg"]
        return True

    node.wait(fill)

    def is_told() -> bool:
        """The log is written by a thread of its own."""
        refused = [line for line in node.log.read_text().splitlines() if '"cni call failed"' in line]
        return any(f'"pod": "default/c{len(containers)}"' in line for line in refused)

    node.wait(is_told)
    assert full()
    assert node.call("STATUS", conf=small).result["code"] == 50
    node.delete(containers[0])
    assert not full()


def test_the_node_is_not_known_yet(node: Node) -> None:
    node.stop()
    node.environ = {"FELIX_RESOURCEDIRECTORY": str(node.folder / "missing")}
    node.start(ready=False)
    node.wait(lambda: node.socket.exists())
    answer = node.status()
    assert (answer.code, answer.result["code"]) == (1, 50)
    assert str(node.folder / "missing") in answer.result["msg"]


REFUSED: list[tuple[dict[str, Any], dict[str, str], int, str]] = [
    ({"cniVersion": "0.2.0"}, {}, 1, "cniVersion '0.2.0'"),
    ({"ipam": {"type": "dhcp"}}, {}, 7, "'dhcp'"),
    ({"ipam": {"type": "calico-ipam", "assign_ipv4": "maybe"}}, {}, 7, "assign_ipv4: 'maybe'"),
    ({"ipam": {"type": "calico-ipam", "ipv4_pools": ["pool-b"]}}, {}, 100, "pool-b"),
    ({"mtu": "1500"}, {}, 7, "mtu '1500'"),
    ({}, {"CNI_ARGS": "FOO=bar"}, 4, "'FOO'"),
    ({}, {"CNI_ARGS": "nonsense"}, 4, "'nonsense'"),
    ({}, {"CNI_CONTAINERID": ""}, 4, "CNI_CONTAINERID is missing"),
    ({}, {"CNI_IFNAME": "a/b"}, 4, "CNI_IFNAME 'a/b'"),
    ({}, {"CNI_NETNS": "/nowhere"}, 4, "/nowhere"),
    ({}, {"CNI_NETNS": "/etc/passwd"}, 4, "not a network namespace"),
    ({}, {"CNI_NETNS": "/proc/self/ns/net"}, 4, "the node's own"),
]


def test_what_is_refused(node: Node) -> None:
    """With the code of the specification and one sentence that names it, and nothing is left."""
    container = node.container("one")
    for fields, variables, code, reason in REFUSED:
        answer = node.call("ADD", container, node.conf(**fields), **variables)
        assert (answer.code, answer.result["code"]) == (1, code), answer
        assert reason in answer.result["msg"]
        assert node.leaks() == NOTHING
    node.add(container)


def test_any_order_of_arguments(node: Node) -> None:
    """The name of the interface comes of the container, so the arguments change nothing."""
    container = node.container("one")
    parts = container.arguments().split(";")
    names = set()
    for some in (parts, parts[::-1], parts[2:] + parts[:2], [*parts, ""]):
        names.add(interface(node.add(container, CNI_ARGS=";".join(some))))
        node.delete(container)
    assert len(names) == 1


def test_only_root_may_ask(node: Node) -> None:
    assert node.socket.stat().st_mode & 0o777 == 0o600
    assert node.journal.stat().st_mode & 0o777 == 0o600
