"""A plan asked of a running agent, and then carried out: packets and kernel are as it had said, with each back-end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from felixpy.config import Settings
from felixpy.demo.patience import Patience
from felixpy.model.documents import load_text
from felixpy.observe.control import ask
from felixpy.plan import change, report
from tests.agent.bench import LEGACY, NFT, NFTABLES, POOLS, endpoint
from tests.cli.command import agent, felixpy, sentence
from tests.kernel import ip, pairs, run, sysctl
from tests.policy.lab import network

PODS = {"web": 1, "db": 2, "bad": 3}
BACK_ENDS = pytest.mark.parametrize("back_end", [NFTABLES, LEGACY, NFT], ids=["nftables", "legacy", "nft"])
GUARD = """
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: guard, namespace: default}
spec:
  selector: app == 'web'
  types: [Ingress]
  ingress:
    - {action: Allow, protocol: TCP, source: {selector: app == 'db'}, destination: {ports: [8080]}}
"""
SHUT = """
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: shut}
spec: {selector: app == 'web', types: [Ingress], order: 1, ingress: [{action: Deny}]}
"""
GATEWAY = "fe80::ecee:eeff:feee:eeee"


def four(pod: str) -> str:
    return f"10.48.0.{PODS[pod]}"


def six(pod: str) -> str:
    return f"fd00:48::{PODS[pod]}"


@pytest.fixture
def pods(node: None) -> Iterator[None]:
    """Three pods in networks of their own, as a CNI plugin would leave them. What they said lately stays known."""
    for name in ("udp_timeout", "tcp_timeout_time_wait", "tcp_timeout_close_wait", "tcp_timeout_last_ack"):
        sysctl(f"netfilter/nf_conntrack_{name}", 3600)
    pairs("cali3")
    for name, number in PODS.items():
        ip(f"netns add {name}", f"link set p-cali{number} netns {name}")
        lines = (f"link set p-cali{number} address ee:ee:ee:ee:ee:{number:02x} name eth0 up",
                       f"addr add {four(name)}/32 dev eth0", f"addr add {six(name)}/128 dev eth0 nodad",
                       "route add 169.254.1.1 dev eth0", "route add default via 169.254.1.1",
                       f"-6 route add default via {GATEWAY} dev eth0")  # fmt: skip
        for line in lines:
            run("ip", "-n", name, *line.split())
        ip(f"addr add {GATEWAY}/64 dev cali{number} nodad")
    yield
    for name in PODS:
        ip(f"netns del {name}")


class Talk:
    """Connections between the pods, held open until the end."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._servers: dict[tuple[str, int], socket.socket] = {}

    def serve(self, pod: str, port: int, kind: int = socket.SOCK_STREAM) -> None:
        with network(pod):
            server = self._stack.enter_context(socket.socket(socket.AF_INET6, kind))
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind(("::", port))
        if kind == socket.SOCK_STREAM:
            server.listen()
        self._servers[pod, port] = server

    def connect(self, pod: str, address: str, port: int, seconds: float = 60.0) -> tuple[socket.socket, socket.socket]:
        """Both ends of a new connection.

        Raises:
            TimeoutError: it is not answered.
        """
        with network(pod):
            client = self._stack.enter_context(socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET))
        client.settimeout(seconds)
        try:
            client.connect((address, port))
        except TimeoutError:
            client.close()  # or it tries again by itself when it is let in
            raise
        server = self._servers["web", port]
        accepted = self._stack.enter_context(server.accept()[0])
        accepted.settimeout(60)
        return client, accepted

    def send(self, pod: str, address: str, port: int) -> None:
        """A datagram that nobody answers."""
        with network(pod):
            client = self._stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        client.sendto(b"x", (address, port))


def says(ends: tuple[socket.socket, socket.socket]) -> bool:
    """Whether a connection carries data both ways."""
    for one, other in (ends, ends[::-1]):
        one.sendall(b"hello")
        if other.recv(5) != b"hello":
            return False
    return True


def ask_agent(verb: str, data: bytes | None = None) -> Any:
    return asyncio.run(ask(Settings().control_socket, verb, data))


def planned(apply: str = "", delete: str = "") -> tuple[int, Any]:
    """Exit code and answer; in this process, where a command takes a second to start."""
    data = change.write(load_text(apply.encode(), "apply"), load_text(delete.encode(), "delete")).data
    said = ask_agent("plan", data)
    assert max(len(line.text) for line in report.as_text(said)) <= report.WIDTH
    return report.exit_code(said), said


def pairs_of(said: Mapping[str, Any]) -> dict[tuple[str, str, int, str], tuple[int, int, int]]:
    return {
        (row["source"], row["destination"], row["port"], row["effect"]): (row["live"], row["unanswered"], row["closed"])
        for row in said["connections"]["pairs"]
    }


def chains(env: Mapping[str, str]) -> set[str]:
    """Chains that the kernel has, by another reading of it."""
    return {line["entry"] for line in felixpy("show", "rules", "--json", env=env).json if line["kernel"]}


def until_settled(policies: int) -> None:
    """Until so many policies are in force, and nothing is left to write."""
    patience = Patience(60)
    while True:
        said = ask_agent("status")
        if said["objects"]["active_policies"] == policies and not any(one["dirty"] for one in said["tables"].values()):
            return
        assert not patience.over(), said
        time.sleep(0.02)


def written_chains(said: Mapping[str, Any], verb: str) -> set[str]:
    found = said["kernel"]["operations"]
    return {
        one["entry"].split(":")[0].removeprefix("chain ")
        for one in found
        if one["verb"] == verb and "rules" in one["table"]
    }


@BACK_ENDS
def test_what_a_plan_says_is_what_packets_and_kernel_show_then(
    pods: None, tmp_path: Path, back_end: dict[str, str]
) -> None:
    folder = tmp_path / "resources"
    folder.mkdir()
    endpoints = [endpoint(name, number) for name, number in PODS.items()]
    for one in endpoints:
        one["metadata"]["labels"] = {"app": one["metadata"]["name"]}
    (folder / "all.json").write_text(json.dumps([*POOLS, *endpoints]))
    env = {**back_end, "FELIX_RESOURCEDIRECTORY": str(folder)}
    with contextlib.ExitStack() as stack, agent(env, tmp_path / "log"):
        talk = Talk(stack)
        talk.serve("web", 8080)
        talk.serve("web", 5000, socket.SOCK_DGRAM)
        kept = [talk.connect("db", of("web"), 8080) for of in (four, six)]
        over = talk.connect("bad", four("web"), 8080)
        for end in over:
            end.close()
        talk.send("bad", four("web"), 5000)

        before = chains(env)
        (tmp_path / "guard.yaml").write_text(GUARD)
        done = felixpy("plan", "-f", str(tmp_path / "guard.yaml"), env=env)
        assert (done.code, done.err) == (3, ""), done
        assert "✗ 10.48.0.3 default/bad → 10.48.0.1 default/web  tcp 8080  1 ended lately" in done.out
        assert "then denied   end of tier default (ingress)" in done.out
        assert max(map(len, done.out.splitlines())) <= 80, done.out
        code, said = planned(GUARD)
        assert code == 3
        assert pairs_of(said) == {
            (four("bad"), four("web"), 8080, "cut"): (0, 0, 1),
            (four("bad"), four("web"), 5000, "cut"): (0, 1, 0),
        }
        (row,) = said["classes"]
        assert (row["direction"], row["endpoints"], row["names"]) == ("ingress", 1, ["default/web"])
        assert "default [default/guard]" in row["after"]
        assert said["connections"]["decided_by_others"] >= 2, said["connections"]
        assert chains(env) == before, "a plan wrote"

        (folder / "guard.yaml").write_text(GUARD)
        until_settled(1)
        added = written_chains(said, "add")
        assert added and added <= chains(env)
        assert all(says(ends) for ends in kept)
        with pytest.raises(TimeoutError):
            talk.connect("bad", four("web"), 8080, 0.3)
        assert says(talk.connect("db", four("web"), 8080))

        code, said = planned(SHUT)
        assert code == 3
        assert pairs_of(said) == {
            (four("db"), four("web"), 8080, "cut"): (2, 0, 0),
            (six("db"), six("web"), 8080, "cut"): (1, 0, 0),
        }
        assert any("goes on until its conntrack entry ends" in line.text for line in report.as_text(said))
        (folder / "shut.yaml").write_text(SHUT)
        until_settled(2)
        assert all(says(ends) for ends in kept)
        with pytest.raises(TimeoutError):
            talk.connect("db", six("web"), 8080, 0.3)

        assert planned(SHUT)[0] == 0
        code, said = planned(delete=SHUT)
        assert (code, said["objects"][0]["verb"]) == (2, "delete")
        assert set(pairs_of(said)) == {(of("db"), of("web"), 8080, "opened") for of in (four, six)}
        web = yaml.safe_dump(endpoints[0])
        _, said = planned(delete=web)
        assert said["kernel"]["remove"] > 0
        assert not said["connections"]["pairs"], "nothing was let through any more"

        (folder / "shut.yaml").unlink()
        until_settled(1)
        assert says(talk.connect("db", six("web"), 8080))
        _, said = planned(delete=web)
        rows = said["connections"]["pairs"]
        assert rows
        assert all(row["at_once"] for row in rows)
        (folder / "all.json").write_text(json.dumps([*POOLS, *endpoints[1:]]))
        patience = Patience(60)
        while run("conntrack", "-L", "-p", "tcp", "--src", four("db")):
            assert not patience.over()
            time.sleep(0.05)


def test_a_change_that_cannot_be_planned_is_refused_in_one_sentence(node: None, tmp_path: Path) -> None:
    folder = tmp_path / "resources"
    folder.mkdir()
    (folder / "all.json").write_text(json.dumps([*POOLS]))
    env = {**NFTABLES, "FELIX_RESOURCEDIRECTORY": str(folder)}
    bad = tmp_path / "bad.yaml"
    bad.write_text("apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: p}\nspec: {cidr: none}\n")
    good = tmp_path / "good.yaml"
    good.write_text(GUARD)
    assert "no agent answers" in sentence(felixpy("plan", "-f", str(good), env=env))
    assert "no such file" in sentence(felixpy("plan", "-f", str(tmp_path / "none"), env=env))
    assert "name it once" in sentence(felixpy("plan", "-f", str(good), "--delete", str(good), env=env))
    assert "spec.cidr" in sentence(felixpy("plan", "-f", str(bad), env=env))
    with agent(env, tmp_path / "log"):
        nothing = felixpy("plan", "--delete", str(good), env=env)
        assert (nothing.code, "NetworkPolicy default/guard: is not there" in nothing.out) == (0, True), nothing
