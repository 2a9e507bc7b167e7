"""explain against policy: with each back-end it names who decides, and packets fare as it says."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from felixpy.demo.patience import Patience
from felixpy.explain.decision import NO_POLICY, NO_PROFILE
from tests.agent.bench import LEGACY, NFT, NFTABLES, POOLS, endpoint
from tests.cli.command import agent, felixpy
from tests.kernel import ip, pairs, run

POLICIES = """
apiVersion: projectcalico.org/v3
kind: Tier
metadata: {name: security}
spec: {order: 100}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: guard}
spec:
  tier: security
  selector: app == 'web'
  types: [Ingress]
  ingress:
    - {action: Log, protocol: TCP}
    - {action: Deny, protocol: TCP, source: {selector: app == 'bad'}, destination: {ports: [22, 23, "100:200"]}}
    - action: Pass
      protocol: TCP
      source: {selector: app == 'db', notNets: [10.48.0.99/32, 10.48.0.96/28], nets: [10.48.0.0/12]}
      destination: {notPorts: [81]}
    - {action: Pass, protocol: ICMP, icmp: {type: 8, code: 0}}
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: web, namespace: default}
spec:
  selector: app == 'web'
  types: [Ingress]
  ingress:
    - {action: Allow, protocol: TCP, destination: {ports: [http]}}
    - {action: Deny, protocol: ICMP, notICMP: {type: 8, code: 0}}
    - {action: Allow, protocol: ICMP}
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: out, namespace: default}
spec:
  selector: app == 'bad'
  types: [Egress]
  egress: [{action: Deny, protocol: UDP}, {action: Allow}]
---
apiVersion: projectcalico.org/v3
kind: Profile
metadata: {name: quiet}
spec:
  ingress: [{action: Deny, protocol: UDP}, {action: Allow, protocol: TCP}]
  egress: [{action: Allow}]
"""
HOST = """
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: uplink, labels: {host: n1}}
spec: {node: n1, interfaceName: eth0}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: node}
spec:
  selector: has(host)
  types: [Ingress, Egress]
  ingress: [{action: Allow, protocol: TCP, destination: {ports: [80]}}]
  egress: [{action: Deny, protocol: UDP, destination: {notPorts: [5000]}}, {action: Allow}]
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: early}
spec:
  selector: has(host)
  applyOnForward: true
  preDNAT: true
  types: [Ingress]
  ingress: [{action: Deny, protocol: TCP, destination: {ports: [81]}}]
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: untracked}
spec:
  selector: has(host)
  applyOnForward: true
  doNotTrack: true
  types: [Ingress]
  ingress: [{action: Deny, protocol: TCP, destination: {ports: [82]}}, {action: Allow, protocol: TCP}]
"""
NODE, OTHER = "192.0.2.1", "192.0.2.7"
OF_NODE = [
    ((OTHER, NODE, "udp", "9"), 2, ("ingress", "end of tier default", "denies")),
    ((OTHER, NODE, "tcp", "81"), 0, ("ingress", "tier default: GlobalNetworkPolicy untracked", "allows")),
    ((OTHER, NODE, "tcp", "82"), 2, ("ingress", "tier default: GlobalNetworkPolicy untracked", "denies")),
    ((OTHER, NODE, "udp", "68"), 0, ("ingress", "failsafe ports", "allows")),
    ((NODE, OTHER, "tcp", "9"), 0, ("egress", "tier default: GlobalNetworkPolicy node", "allows")),
    ((NODE, OTHER, "udp", "9"), 2, ("egress", "tier default: GlobalNetworkPolicy node", "denies")),
    ((NODE, OTHER, "udp", "53"), 0, ("egress", "failsafe ports", "allows")),
]
PODS = {"web": 1, "db": 2, "bad": 3}
BACK_ENDS = pytest.mark.parametrize("back_end", [NFTABLES, LEGACY, NFT], ids=["nftables", "legacy", "nft"])
SEND = """
import socket, sys
protocol, address, port = sys.argv[1:]
one = socket.socket(type=socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
one.setblocking(False)
one.connect_ex((address, int(port)))
if protocol == "udp":
    one.send(b"x")
"""
GUARD, WEB, OUT = (
    "tier security: GlobalNetworkPolicy guard",
    "tier default: NetworkPolicy default/web",
    "tier default: NetworkPolicy default/out",
)
OPEN = ("egress", NO_POLICY, "allows")


class Question(NamedTuple):
    source: str
    destination: str
    protocol: str
    port: str
    decisions: list[tuple[str, str, str]]

    @property
    def passes(self) -> bool:
        return self.decisions[-1][2] == "allows"


QUESTIONS = [
    Question("db", "web", "tcp", "8080", [OPEN, ("ingress", GUARD, "passes"), ("ingress", WEB, "allows")]),
    Question("db", "web", "tcp", "82", [OPEN, ("ingress", GUARD, "passes"),
                                       ("ingress", "end of tier default", "denies")]),
    Question("db", "web", "tcp", "81", [OPEN, ("ingress", "end of tier security", "denies")]),
    Question("bad", "web", "tcp", "150", [("egress", OUT, "allows"), ("ingress", GUARD, "denies")]),
    Question("bad", "web", "udp", "53", [("egress", OUT, "denies")]),
    Question("db", "web", "icmp", "", [OPEN, ("ingress", GUARD, "passes"), ("ingress", WEB, "allows")]),
    Question("web", "db", "tcp", "80", [OPEN, ("ingress", "Profile quiet", "allows")]),
    Question("web", "db", "udp", "53", [OPEN, ("ingress", "Profile quiet", "denies")]),
    Question("web", "db", "icmp", "", [OPEN, ("ingress", NO_PROFILE, "denies")]),
    Question("web", "bad", "udp", "53", [OPEN, ("ingress", NO_POLICY, "allows")]),
]  # fmt: skip


@pytest.fixture
def pods(node: None) -> Iterator[None]:
    """Three pods in networks of their own, as a CNI plugin would leave them."""
    pairs("cali3")
    for name, number in PODS.items():
        ip(f"netns add {name}", f"link set p-cali{number} netns {name}")
        setup = (
            f"link set p-cali{number} address ee:ee:ee:ee:ee:{number:02x} name eth0 up",
            f"addr add 10.48.0.{number}/32 dev eth0",
            "route add 169.254.1.1 dev eth0",
            "route add default via 169.254.1.1",
        )
        run("ip", "-n", name, "-batch", "-", stdin="\n".join(setup) + "\n")
    yield
    for name in PODS:
        ip(f"netns del {name}")


def arrivals(pod: str) -> int:
    """TCP segments, datagrams and echo requests that came to a pod."""
    counts: dict[str, int] = {}
    lines = run("ip", "netns", "exec", pod, "cat", "/proc/net/snmp").splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        kind = names.partition(":")[0]
        counts |= {f"{kind}{n}": int(v) for n, v in zip(names.split()[1:], values.split()[1:], strict=True)}
    return counts["TcpInSegs"] + counts["UdpInDatagrams"] + counts["UdpNoPorts"] + counts["IcmpInEchos"]


def send(one: Question) -> None:
    address = f"10.48.0.{PODS[one.destination]}"
    inside = ("ip", "netns", "exec", one.source)
    if one.protocol == "icmp":
        command: tuple[str, ...] = ("ping", "-c1", "-W0.2", address)
        run(*inside, "sh", "-c", f"{' '.join(command)} || true")
    else:
        run(*inside, sys.executable, "-c", SEND, one.protocol, address, one.port)


@BACK_ENDS
def test_explain_names_what_decides_and_packets_agree(pods: None, tmp_path: Path, back_end: dict[str, str]) -> None:
    folder = tmp_path / "resources"
    folder.mkdir()
    web = endpoint("web", 1, ports=[{"name": "http", "port": 8080, "protocol": "TCP"}])
    endpoints = [web, endpoint("db", 2, profiles=["quiet"]), endpoint("bad", 3)]
    for one in endpoints:
        one["metadata"]["labels"] = {"app": one["metadata"]["name"]}
    (folder / "all.json").write_text(json.dumps([*POOLS, *endpoints]))
    (folder / "policies.yaml").write_text(POLICIES)
    with agent({**back_end, "FELIX_RESOURCEDIRECTORY": str(folder)}, tmp_path / "log"):
        for question in QUESTIONS:
            source, destination = (f"10.48.0.{PODS[pod]}" for pod in question[:2])
            done = felixpy("explain", source, destination, question.protocol, *filter(None, [question.port]), "--json")
            said = done.json
            assert said["doubts"] == [], question
            found = [(each["direction"], each["who"], each["did"]) for each in said["policies"]]
            assert found == question.decisions
            assert (done.code, said["outcome"]) == ((0, "passes") if question.passes else (2, "dropped")), question
            before = arrivals(question.destination)
            send(question)
            patience = Patience(30)
            while question.passes and arrivals(question.destination) == before:
                assert not patience.over(), question
            assert (arrivals(question.destination) > before) is question.passes, question
        text = felixpy("explain", "10.48.0.3", "10.48.0.1", "tcp", "150")
        assert f"policy       {GUARD} (ingress) → denies" in text.out
        assert f"verdict      dropped by {GUARD} (ingress): " in text.out
        assert "says " not in text.out
        each = felixpy("explain", "10.48.0.3", "10.48.0.1", "tcp", "150", "--all-policies").out
        says = [line.split(": ") for line in each.splitlines() if line.startswith("says ")]
        told = [f"{OUT} (egress) → allows", f"{GUARD} (ingress) → denies", f"{WEB} (ingress) → nothing"]
        assert [": ".join(words[:2]) for words in says] == [f"says         {one}" for one in told]
        assert "150" in says[1][2] or "100" in says[1][2]  # the rule: its range of ports
        assert len(says[2]) == 2
        six = felixpy("explain", "fd00:48::3", "fd00:48::1", "tcp", "22", "--json")
        assert (six.code, six.json["policies"][-1]["who"]) == (2, GUARD)


@BACK_ENDS
def test_explain_names_the_policy_of_the_node_itself(node: None, tmp_path: Path, back_end: dict[str, str]) -> None:
    folder = tmp_path / "resources"
    folder.mkdir()
    (folder / "all.yaml").write_text(HOST)
    with agent({**back_end, "FELIX_RESOURCEDIRECTORY": str(folder)}, tmp_path / "log"):
        for question, code, last in OF_NODE:
            done = felixpy("explain", *question, "--json")
            assert done.json["doubts"] == [], question
            found = [(each["direction"], each["who"], each["did"]) for each in done.json["policies"]]
            assert (done.code, found[-1]) == (code, last), question


def test_nft_prints_the_names_of_interfaces_with_a_class(node: None, tmp_path: Path) -> None:
    folder = tmp_path / "resources"
    folder.mkdir()
    web = endpoint("web", 1)
    web["metadata"]["labels"] = {"app": "web"}
    (folder / "all.json").write_text(json.dumps([web, endpoint("asked-nothing", 2)]))
    (folder / "policies.yaml").write_text(POLICIES)
    with agent({**NFTABLES, "FELIX_RESOURCEDIRECTORY": str(folder)}, tmp_path / "log"):
        listed = json.loads(run("nft", "-j", "list", "set", "ip", "felixpy", "to-policed"))["nftables"]
        assert [one["set"]["elem"] for one in listed if "set" in one] == [["cali1"]]
