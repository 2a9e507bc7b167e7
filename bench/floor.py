"""The least that one update can take here: ``python -m bench.floor`` measures an agent that knows its bytes in advance.

A program without event loop, MQTT library, model and tables waits in the broker's socket and writes what it has
prepared: the same elements, neighbours and routes as felixpy, in as many sends with as many acknowledgements. What is
left is the machine's: the broker, two processes that are woken, and the kernel. Runs in the benchmark's network, in a
node that has no agent, and prints a table; it is no part of the report.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from bench import expect
from bench.mqtt_wire import connect_packet
from bench.scenarios import PATIENCE_S, PAUSE_S, ms
from bench.statistics import summarise
from bench.workloads import SPARE, SPARES, Workload
from bench.world import World
from felixpy.calc.entries import ElementKey, SetName
from felixpy.dataplane.nftables import elements
from felixpy.demo.agent import environment
from felixpy.demo.lab import TOPIC_ROOT
from felixpy.demo.topology import Mode
from felixpy.model.net import FAMILIES, Family, Net
from felixpy.netlink import nftables as nft
from felixpy.netlink import rtnetlink
from felixpy.netlink.rtnetlink import KernelNeighbour, KernelRoute, KernelRouteKey
from felixpy.netlink.transport import (
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    NLM_F_ACK,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    Request,
    parse_messages,
)

SAMPLES = 100
TABLE = "felixpy"
SETS = (SetName.FROM_WORKLOAD, SetName.TO_WORKLOAD)
PROTOCOL = 222
"""The route protocol that felixpy signs with."""


class Prepared(NamedTuple):
    """Bytes of one send, with the acknowledgement asked for on the message before the last (a batch) or on the last."""

    protocol: int
    data: bytes

    @classmethod
    def of(cls, protocol: int, requests: Sequence[Request]) -> Prepared:
        ask_at = len(requests) - (2 if protocol == NETLINK_NETFILTER else 1)
        parts = []
        for number, (kind, flags, payload) in enumerate(requests):
            flags |= NLM_F_REQUEST | (NLM_F_ACK if number == ask_at else 0)
            parts.append(struct.pack("=IHHII", 16 + len(payload), kind, flags, number + 1, 0) + payload)
            parts.append(bytes(-len(payload) & 3))
        return cls(protocol, b"".join(parts))


def prepared(one: Workload, *, present: bool) -> list[Prepared]:
    """Everything of a workload in both families: one transaction per family, then neighbours and routes."""
    sends, routing = [], []
    index = socket.if_nametoindex(one.interface)
    for family in FAMILIES:
        net = Net.parse(f"{one.address(family)}/{family.bits}")
        command = nft.NEWSETELEM if present else nft.DELSETELEM
        members = [(name, elements.encode(ElementKey(name, net, one.interface))) for name in SETS]
        requests = [nft.set_elements(command, family, TABLE, name, [member]) for name, member in members]
        sends.append(Prepared.of(NETLINK_NETFILTER, nft.batch(requests)))
        mac = bytes.fromhex(one.mac.replace(":", ""))
        neighbour = KernelNeighbour(index, net.packed, mac, PROTOCOL)
        key = KernelRouteKey(family, net, 0 if family is Family.V4 else 1024, 254)
        route = KernelRoute(rtnetlink.RTN_UNICAST, index, scope=253 if family is Family.V4 else 0, protocol=PROTOCOL)
        routing.append(rtnetlink.neighbour_request(neighbour, delete=not present))
        routing.append(rtnetlink.route_request(key, route, delete=not present))
    return [*sends, Prepared.of(NETLINK_ROUTE, routing)]


def write(sockets: dict[int, socket.socket], sends: Sequence[Prepared]) -> None:
    """Send and wait for each acknowledgement.

    Raises:
        OSError: the kernel refused.
    """
    for protocol, data in sends:
        sockets[protocol].send(data)
        (answer,) = parse_messages(sockets[protocol].recv(65536))
        code = struct.unpack_from("=i", answer.payload)[0]
        if answer.type != NLMSG_ERROR or code:
            raise OSError(-code, f"the kernel refused a prepared message (type {answer.type})")


def child(host: str, port: int) -> None:
    """Wait for publishes; one line for each on standard output: when its bytes came, when the kernel had everything."""
    protocols = (NETLINK_NETFILTER, NETLINK_ROUTE)
    sockets = {one: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, one) for one in protocols}
    ready = {
        present: [prepared(Workload(SPARE + number), present=present) for number in range(SPARES)]
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
            write(sockets, ready[text[:1] == b"+"][int(text[1:])])
            done = time.monotonic_ns()
            at = 2 + 2 + len(name)
            broker.sendall(b"\x40\2" + packet[at : at + 2])  # PUBACK with the packet's identifier
            broker.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            print(received, done, flush=True)


async def measure() -> dict[str, list[float]]:
    """Milliseconds from the publish: received, acknowledged by the kernel, visible to a second observer."""
    found: dict[str, list[float]] = {"received": [], "acknowledged": [], "visible": []}
    async with World(Mode.DUAL) as world:
        for family, kind in (("ip", "ipv4_addr"), ("ip6", "ipv6_addr")):
            sets = " ".join(f"set {name} {{ type {kind} . ifname; }};" for name in SETS)
            await world.other.run("nft", "-f", "-", stdin=f"table {family} {TABLE} {{ {sets} }}\n")
        settings = world.lab.agent_environment("node2")
        broker = settings["FELIX_MQTTHOST"], settings["FELIX_MQTTPORT"]
        process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", "--"),
            *world.other.enter(sys.executable, "-m", "bench.floor", *broker),
            stdout=asyncio.subprocess.PIPE,
            env=environment({}),
        )
        assert process.stdout
        try:
            assert await process.stdout.readline() == b"ready\n"
            for number in range(SAMPLES):
                one = Workload(SPARE + number % SPARES)
                for present in (True, False):
                    world.other_seen.clear()
                    published = await world.publish("floor", f"!{'+' if present else '-'}{number % SPARES}".encode())
                    expected = expect.workload(one, world.families, "nftables", present=present)
                    visible = await world.other_seen.wait(expected, PATIENCE_S)
                    received, done = map(int, (await process.stdout.readline()).split())
                    if present:
                        for what, at in zip(found, (received, done, visible), strict=True):
                            found[what].append(ms(at, published))
                    await asyncio.sleep(PAUSE_S)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            await world.publish("floor", b"")
    return found


def main() -> None:
    if len(sys.argv) == 3:
        child(sys.argv[1], int(sys.argv[2]))
        return
    print(f"{'milliseconds from the publish':30} {'min':>6} {'median':>6} {'p90':>6} {'p99':>6} {'max':>6}")
    for what, samples in asyncio.run(measure()).items():
        one = summarise(samples)
        print(f"{what:30} {one.minimum:6.2f} {one.median:6.2f} {one.p90:6.2f} {one.p99:6.2f} {one.maximum:6.2f}")


if __name__ == "__main__":
    main()
