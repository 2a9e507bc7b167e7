"""The least that one update can take here: the scenario ``floor``, an agent that has its messages ready.

A program without event loop, MQTT library, model and tables waits in the broker's socket and writes what it has
prepared: the same elements, neighbours and routes as felixpy, in as many sends with as many acknowledgements. What is
left is the machine's: the broker, two processes that are woken, and the kernel. It runs on the node without an agent,
as ``python -m bench.floor HOST PORT``.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
import time
from typing import NamedTuple

from bench import expect
from bench.mqtt_wire import connect_packet
from bench.scenarios import PATIENCE_S, PAUSE_S, Run, ms
from bench.workloads import SPARE, SPARES, Workload
from felixpy.calc.endpoints import SCOPE_LINK, SCOPE_UNIVERSE
from felixpy.calc.entries import MAIN_TABLE, ElementKey, SetName
from felixpy.config import Settings
from felixpy.dataplane.nftables import elements
from felixpy.demo.agent import environment
from felixpy.demo.lab import TOPIC_ROOT
from felixpy.model.net import FAMILIES, Family, Net
from felixpy.netlink import nftables as nft
from felixpy.netlink import rtnetlink
from felixpy.netlink.message import Request
from felixpy.netlink.rtnetlink import KernelNeighbour, KernelRoute, KernelRouteKey
from felixpy.netlink.transport import NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkSocket

FAMILY_WORDS = (("ip", "ipv4_addr"), ("ip6", "ipv6_addr"))
TABLE = "felixpy"
SETS = (SetName.FROM_WORKLOAD, SetName.TO_WORKLOAD)
PROTOCOL = Settings().device_route_protocol


class Prepared(NamedTuple):
    """The messages of one workload: a transaction of each family, then neighbours and routes of both."""

    batches: list[list[Request]]
    routing: list[Request]

    @classmethod
    def of(cls, one: Workload, *, present: bool) -> Prepared:
        batches, routing = [], []
        index = socket.if_nametoindex(one.interface)
        for family in FAMILIES:
            net = Net.parse(f"{one.address(family)}/{family.bits}")
            command = nft.NEWSETELEM if present else nft.DELSETELEM
            members = [(name, elements.encode(ElementKey(name, net, one.interface))) for name in SETS]
            batches.append(
                nft.batch([nft.set_elements(command, family, TABLE, name, [member]) for name, member in members])
            )
            mac = bytes.fromhex(one.mac.replace(":", ""))
            neighbour = KernelNeighbour(index, net.packed, mac, PROTOCOL)
            key = KernelRouteKey(family, net, 0 if family is Family.V4 else 1024, MAIN_TABLE)
            scope = SCOPE_LINK if family is Family.V4 else SCOPE_UNIVERSE
            route = KernelRoute(rtnetlink.RTN_UNICAST, index, scope=scope, protocol=PROTOCOL)
            routing.append(rtnetlink.neighbour_request(neighbour, delete=not present))
            routing.append(rtnetlink.route_request(key, route, delete=not present))
        return cls(batches, routing)

    def write(self, filter_socket: NetlinkSocket, routing_socket: NetlinkSocket) -> None:
        """Send, and wait for each acknowledgement.

        Raises:
            OSError: the kernel refused.
        """
        refused = [filter_socket.transact(batch, batch=True) for batch in self.batches]
        if any((*refused, routing_socket.transact(self.routing))):
            raise OSError("the kernel refused a prepared message")


def child(host: str, port: int) -> None:
    """Wait for publishes; one line for each on standard output: when its bytes came, when the kernel had everything."""
    sockets = NetlinkSocket(NETLINK_NETFILTER), NetlinkSocket(NETLINK_ROUTE)
    ready = {
        present: [Prepared.of(Workload(SPARE + number), present=present) for number in range(SPARES)]
        for present in (False, True)
    }
    with socket.create_connection((host, port)) as broker:
        broker.sendall(connect_packet(b"floor"))
        broker.recv(100)
        name = f"{TOPIC_ROOT}/floor".encode()
        subscribe = b"\0\1\0" + struct.pack("!H", len(name)) + name + b"\1"  # QoS 1
        broker.sendall(bytes((0x82, len(subscribe))) + subscribe)
        broker.recv(100)
        print("ready", flush=True)
        while packet := broker.recv(65536):
            received = time.monotonic_ns()
            text = packet[packet.rindex(b"!") + 1 :]
            ready[text[:1] == b"+"][int(text[1:])].write(*sockets)
            done = time.monotonic_ns()
            at = 2 + 2 + len(name)
            broker.sendall(b"\x40\2" + packet[at : at + 2])  # PUBACK with the packet's identifier
            broker.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            print(received, done, flush=True)


async def floor(run: Run) -> None:
    """Add and delete one workload after the other by a program that only writes what it has ready."""
    if not run.effort.floor_changes:
        return
    world = run.world
    node = world.other
    for word, kind in FAMILY_WORDS:
        sets = " ".join(f"set {name} {{ type {kind} . ifname; }};" for name in SETS)
        await node.run("nft", "-f", "-", stdin=f"table {word} {TABLE} {{ {sets} }}\n")
    settings = world.lab.agent_environment("node2")
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", "--"),
        *node.enter(sys.executable, "-m", "bench.floor", settings["FELIX_MQTTHOST"], settings["FELIX_MQTTPORT"]),
        stdout=asyncio.subprocess.PIPE,
        env=environment({}),
    )
    assert process.stdout
    try:
        if await process.stdout.readline() != b"ready\n":
            raise RuntimeError("bench.floor ended without a word; run it alone to see why")
        for number in range(run.effort.floor_changes):
            for present in (True, False):
                await _one(run, process.stdout, number % SPARES, present=present)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await world.publish("floor", b"")
        for word, _ in FAMILY_WORDS:
            await node.run("nft", "delete", "table", word, TABLE)


async def _one(run: Run, answers: asyncio.StreamReader, number: int, *, present: bool) -> None:
    seen = run.world.other_seen
    seen.clear()
    published = await run.world.publish("floor", f"!{'+' if present else '-'}{number}".encode())
    expected = expect.workload(Workload(SPARE + number), run.families, "nftables", present=present)
    visible = await seen.wait(expected, PATIENCE_S)
    received, done = map(int, (await answers.readline()).split())
    if present:
        for stage, at in (("received", received), ("acknowledged", done), ("visible", visible)):
            run.add("floor", stage, ms(at, published))
    await asyncio.sleep(PAUSE_S)


if __name__ == "__main__":
    child(sys.argv[1], int(sys.argv[2]))
