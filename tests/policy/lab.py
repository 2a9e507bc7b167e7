"""Two nodes with agents, pods and the outside in namespaces of a process's own; packets between any two of them.

    pod ── cali… ─ n1 ─ eth0 ──┐
                               ├─ outside (routes between the nodes, and is every host outside)
    pod ── cali… ─ n2 ─ eth0 ──┘

A probe is one packet with an id, put on the wire of its pod (``AF_PACKET``), or sent by a raw socket of its node. Each
pod, the outside and each node has readers that tell which ids arrived. There are no servers and no clocks in it: what
has not arrived when everything is quiet is asked for again, more patiently, before it counts as refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

from felixpy.model.net import FAMILIES, Family, family_of, parse_address
from tests.netns import current_network, enter_private_namespaces, return_to_network
from tests.policy import packets
from tests.policy.cases import Case, Cell, interface

QUIET_S, PATIENT_S = 0.03, 0.5
ROOT = Path(__file__).parents[2]
OUTSIDE = "outside"
PACKET_OUTGOING = 4
SOL_PACKET, PACKET_IGNORE_OUTGOING = 263, 23
GATEWAY = {Family.V4: "172.31.0.254", Family.V6: "fd00:31::fe"}
NFNL_DELETE_ALL = struct.pack("=IHHII", 20, 1 << 8 | 2, 0x5, 1, 0)  # IPCTNL_MSG_CT_DELETE, NLM_F_REQUEST | NLM_F_ACK


class Port(NamedTuple):
    """A wire to put packets on: a socket, and what the frames need."""

    socket: socket.socket
    own: bytes
    peer: bytes


def command(*words: str, stdin: str = "") -> str:
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr}{stdin[:500]}")
    return done.stdout


def inside(name: str, lines: Iterable[str], tool: str = "ip") -> None:
    command("ip", "netns", "exec", name, tool, "-batch", "-", stdin="\n".join(lines) + "\n")


@contextlib.contextmanager
def network(name: str) -> Iterator[None]:
    """Be in a namespace, for the sockets that are opened there."""
    import ctypes

    here = current_network()
    there = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(there, 0x40000000):
            raise OSError(ctypes.get_errno(), f"setns {name}")
        yield
    finally:
        return_to_network(here)
        os.close(here)
        os.close(there)


class Agent:
    """The process of a node's agent."""

    def __init__(self, node: str, log: IO[str]) -> None:
        self.node = node
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", node, sys.executable, "-m", "tests.policy.agent_process"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip

    def say(self, words: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the process ended"}
        if "error" in answer:
            raise RuntimeError(f"agent on {self.node}: {answer['error']}")
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Lab:
    """The topology of some cases, which all have the same pods; ``nodes`` have an agent each."""

    def __init__(self, case: Case, log: IO[str]) -> None:
        enter_private_namespaces()
        self.topology = case.topology
        self.pods: Mapping[str, Mapping[str, Any]] = case.topology["pods"]
        self.nodes = [name for name, one in case.topology["others"].items() if one.get("node")]
        self._outside = {name: one["addresses"] for name, one in case.topology["others"].items() if not one.get("node")}
        self._ports: dict[str, Port] = {}
        self._readers: dict[socket.socket, tuple[str, int]] = {}
        self._senders: dict[tuple[str, Family], socket.socket] = {}
        self._netfilter: dict[str, socket.socket] = {}
        self._number = int(time.monotonic() * 1000) & 0x3FFFFFFF
        self._dnat: tuple[object, ...] = ()
        self._build()
        self.agents = {name: Agent(name, log) for name in self.nodes}

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        for agent in self.agents.values():
            agent.close()
        for one in (*self._readers, *self._senders.values(), *self._netfilter.values()):
            one.close()
        for name in (OUTSIDE, *self.nodes, *map(interface, self.pods)):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    # --- agents --------------------------------------------------------------------------------------------------

    def tell(self, words: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Tell all agents, and wait until each has done it."""
        for name, agent in self.agents.items():
            agent.say({"node": name, **words})
        return {name: agent.hear() for name, agent in self.agents.items()}

    def translate(self, rules: Sequence[Mapping[str, Any]]) -> None:
        """What other programs translate on the nodes: node ports."""
        wanted = tuple(json.dumps(rule, sort_keys=True) for rule in rules)
        if wanted == self._dnat:
            return
        for node in self.nodes:
            lines = ["add table inet other", "delete table inet other", "table inet other {", "chain pre {",
                     "type nat hook prerouting priority dstnat; policy accept;"]  # fmt: skip
            for rule in rules:
                if rule["node"] != node:
                    continue
                target, own = self.pods[rule["to"]]["addresses"], self.topology["others"][node]["addresses"]
                for text, to in zip(own, target, strict=True):
                    word = "ip6" if ":" in text else "ip"
                    goal = f"[{to}]" if ":" in to else to
                    lines.append(
                        f"{word} daddr {text} {rule['protocol']} dport {rule['port']} dnat {word} to"
                        f" {goal}:{rule['toPort']}"
                    )
            command("ip", "netns", "exec", node, "nft", "-f", "-", stdin="\n".join([*lines, "}", "}", ""]))
        self._dnat = wanted

    # --- probes --------------------------------------------------------------------------------------------------

    def differences(self, case: Case) -> list[tuple[Cell, bool]]:
        """Cells that the kernel decides in another way than the case says, with what it did."""
        self.forget_connections()
        wrong = self._ask(case, list(case.cells()), QUIET_S)
        if wrong:
            self.forget_connections()
            wrong = self._ask(case, [cell for cell, _ in wrong], PATIENT_S)
        return wrong

    def _ask(self, case: Case, cells: Sequence[Cell], quiet: float) -> list[tuple[Cell, bool]]:
        asked: dict[int, Cell] = {}
        arrived: set[tuple[int, str]] = set()
        for cell in cells:
            self._number += 1
            asked[self._number] = cell
            self._send(case, cell, self._number)
            if not len(asked) % 64:
                self._read(arrived, 0)
        self._read(arrived, quiet)
        return [
            (cell, not cell.passes)
            for number, cell in asked.items()
            if any((number, place) in arrived for place in self._goals(case, cell)) is not cell.passes
        ]

    def passes(self, case: Case, cells: Sequence[Cell]) -> dict[Cell, bool]:
        """What the kernel does with each probe, whatever the case says."""
        wrong = {cell for cell, _ in self._ask(case, cells, PATIENT_S)}
        return {cell: cell.passes is not (cell in wrong) for cell in cells}

    def put(self, pod: str, data: bytes, family: Family) -> None:
        """Put a packet on the wire of a pod."""
        port = self._ports[pod]
        port.socket.send(port.peer + port.own + struct.pack(">H", packets.ETHERTYPE[family]) + data)

    def arrived(self, quiet: float) -> set[tuple[int, str]]:
        """What has arrived since the last call, by id and place."""
        found: set[tuple[int, str]] = set()
        self._read(found, quiet)
        return found

    def _goals(self, case: Case, cell: Cell) -> list[str]:
        """Where a packet may come to: what it is sent to, or what that is translated into."""
        goals = [cell.destination]
        for rule in case.topology.get("dnat", ()):
            if (rule["node"], rule["protocol"], rule["port"]) == (cell.destination, *cell.probe[:2]):
                goals = [rule["to"]]
        return [OUTSIDE if goal in self._outside else goal for goal in goals]

    def _send(self, case: Case, cell: Cell, number: int) -> None:
        probe = cell.probe
        source, destination = (case.address(name, probe.family) for name in (cell.source, cell.destination))
        ends, ports = (source, destination), (probe.source_port, probe.port)
        data = packets.packet(*ends, probe.number, ports, number, probe.icmp)
        if cell.source in self.nodes:
            with contextlib.suppress(PermissionError):  # refused by a rule of ours: as good as not arrived
                self._senders[cell.source, probe.family].sendto(data, (socket.inet_ntop(*_words(destination)), 0))
            return
        place = cell.source
        if cell.source in self._outside:
            node = self.pods[cell.destination]["node"] if cell.destination in self.pods else cell.destination
            place = f"{OUTSIDE} {node if node in self.nodes else self.nodes[0]}"
        for one in packets.shaped(probe.shape, *ends, probe.number, ports, number, probe.icmp):
            self.put(place, one, probe.family)

    def _read(self, arrived: set[tuple[int, str]], quiet: float) -> None:
        while True:
            ready, _, _ = select.select(list(self._readers), [], [], quiet)
            if not ready:
                return
            for one in ready:
                place, kind = self._readers[one]
                while True:
                    try:
                        data, address = one.recvfrom(2048)
                    except BlockingIOError:
                        break
                    except OSError:
                        continue
                    if kind == -1:
                        number = None if address[2] == PACKET_OUTGOING else packets.number_of(data[14:])
                    elif kind:
                        number = packets.number_in(kind, data, Family.V6)
                    else:
                        number = packets.number_of(data)
                    if number is not None:
                        arrived.add((number, place))

    def forget_connections(self) -> None:
        """Delete all entries of connection tracking on the nodes."""
        for one in self._netfilter.values():
            for family in (socket.AF_INET, socket.AF_INET6):
                one.send(NFNL_DELETE_ALL[:16] + struct.pack(">BBH", family, 0, 0))
                one.recv(4096)

    # --- building ------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        for name in (OUTSIDE, *self.nodes, *map(interface, self.pods)):
            command("ip", "netns", "add", name)
            for key in ("all", "default"):
                quiet = [f"net.ipv6.conf.{key}.accept_dad=0", f"net.ipv6.conf.{key}.router_solicitations=0"]
                quiet += [f"net.ipv4.conf.{key}.rp_filter=0", f"net.ipv4.conf.{key}.send_redirects=0"]
                command("ip", "netns", "exec", name, "sysctl", "-qw", *quiet)
        forward = ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.icmp_ratelimit=0"]
        command("ip", "netns", "exec", OUTSIDE, "sysctl", "-qw", *forward)
        for number, node in enumerate(self.nodes, start=1):
            self._build_node(number, node)
        for number, pod in enumerate(self.pods, start=1):
            self._build_pod(number, pod)
        for one in (address for addresses in self._outside.values() for address in addresses):
            inside(OUTSIDE, [f"route add blackhole {one}"])

    def _build_node(self, number: int, node: str) -> None:
        inner, outer = f"02:00:00:00:01:{number:02x}", f"02:00:00:00:02:{number:02x}"
        command("ip", "link", "add", "eth0", "netns", node, "address", inner, "type", "veth",
                "peer", "name", node, "netns", OUTSIDE, "address", outer)  # fmt: skip
        inside(node, ["link set lo up", "link set eth0 up"])
        inside(OUTSIDE, ["link set lo up", f"link set {node} up"])
        for text in self.topology["others"][node]["addresses"]:
            gateway = GATEWAY[family_of(parse_address(text))]
            length = 128 if ":" in text else 32
            inside(node, [f"addr add {text}/{length} dev eth0{' nodad' if ':' in text else ''}",
                          f"neigh add {gateway} lladdr {outer} dev eth0 nud permanent",
                          f"route add {gateway} dev eth0",
                          f"route add default via {gateway} dev eth0"])  # fmt: skip
            inside(
                OUTSIDE, [f"route add {text} dev {node}", f"neigh add {text} lladdr {inner} dev {node} nud permanent"]
            )
            for pod in (pod for pod in self.pods.values() if pod["node"] == node):
                for address in (one for one in pod["addresses"] if (":" in one) == (":" in text)):
                    inside(OUTSIDE, [f"route add {address} via {text} dev {node} onlink"])
        with network(node):
            for family in FAMILIES:
                self._open_raw(node, family)
            netfilter = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
            netfilter.settimeout(20)
            self._netfilter[node] = netfilter
        with network(OUTSIDE):
            self._ports[f"{OUTSIDE} {node}"] = self._open_wire(OUTSIDE, node, bytes.fromhex(outer.replace(":", "")),
                                                               bytes.fromhex(inner.replace(":", "")))  # fmt: skip

    def _build_pod(self, number: int, pod: str) -> None:
        name, node = interface(pod), self.pods[pod]["node"]
        inner, outer = f"02:00:00:00:03:{number:02x}", f"02:00:00:00:04:{number:02x}"
        command("ip", "link", "add", name, "netns", node, "address", outer, "type", "veth",
                "peer", "name", "eth0", "netns", name, "address", inner)  # fmt: skip
        inside(node, [f"link set {name} up", *(
            f"neigh add {address} lladdr {inner} dev {name} nud permanent" for address in self.pods[pod]["addresses"]
        )])  # fmt: skip
        inside(name, ["link set eth0 up"])
        with network(name):
            self._ports[pod] = self._open_wire(pod, "eth0", bytes.fromhex(inner.replace(":", "")),
                                               bytes.fromhex(outer.replace(":", "")))  # fmt: skip

    def _open_wire(self, place: str, device: str, own: bytes, peer: bytes) -> Port:
        one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        one.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        one.bind((device, 3))
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        one.setblocking(False)
        self._readers[one] = place, -1
        return Port(one, own, peer)

    def _open_raw(self, node: str, family: Family) -> None:
        word = socket.AF_INET if family is Family.V4 else socket.AF_INET6
        sender = socket.socket(word, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._senders[node, family] = sender
        for protocol in (packets.TCP, packets.UDP, packets.SCTP, packets.ICMP[family]):
            reader = socket.socket(word, socket.SOCK_RAW, protocol)
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            reader.setblocking(False)
            self._readers[reader] = node, protocol if family is Family.V6 else 0


def _words(address: bytes) -> tuple[int, bytes]:
    return (socket.AF_INET if len(address) == 4 else socket.AF_INET6), address
