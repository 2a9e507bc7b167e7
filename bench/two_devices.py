"""Calico's layout by hand, as a comparator: two VXLAN devices, and for each node FDB, neighbours and plain routes.

    python -m bench.two_devices COUNT TIMES

Runs in a namespace of the benchmark that has ``eth0`` with addresses of both families, makes the devices, loads COUNT
nodes, then adds and removes one more TIMES times: once by netlink messages that are ready and go out in one send (so
that only the kernel is measured), and once by the tools ``ip -batch`` and ``bridge -batch``, started each time. Prints
one JSON line with the microseconds of each; the kernel's are processor time. Must run nowhere else.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from bench import peers
from felixpy.calc.entries import RouteKey, RouteType
from felixpy.model.net import FAMILIES, Family, Net, parse_address
from felixpy.model.vtep import format_mac, vtep_mac
from felixpy.netlink.message import Request
from felixpy.netlink.rtnetlink import KernelNeighbour, KernelRoute, neighbour_request, route_request
from felixpy.netlink.transport import NETLINK_ROUTE, NetlinkSocket
from felixpy.netlink.tunnels import KernelFdb, fdb_request

DEVICES = {Family.V4: "calico4", Family.V6: "calico6"}
PROTOCOL = 80
AT_ONCE = 500


def _ip(lines: Sequence[str], program: str = "ip") -> None:
    subprocess.run([program, "-batch", "-"], input="\n".join(lines) + "\n", text=True, check=True)


def make_devices() -> dict[Family, int]:
    for family, device in DEVICES.items():
        local = peers.SUBNET[family][1].partition("/")[0]
        made = f"link add {device} type vxlan id 4096 dstport 4790 local {local} dev eth0 nolearning"
        _ip([made, f"link set {device} up"])
    return {family: socket.if_nametoindex(device) for family, device in DEVICES.items()}


def requests(words: list[str], indexes: dict[Family, int], *, delete: bool = False) -> list[Request]:
    """Of one node: FDB, neighbour, route, in both families."""
    found = []
    for place, family in enumerate(FAMILIES):
        own, end, cidr = words[1 + 3 * place : 4 + 3 * place]
        mac, index, gateway = vtep_mac(words[0], family), indexes[family], parse_address(end)
        net = Net.parse(cidr)
        key = RouteKey(family, net, 0 if family is Family.V4 else 1024)
        route = KernelRoute(RouteType.UNICAST, index, gateway, True, None, 0, PROTOCOL)
        found += [
            fdb_request(KernelFdb(index, mac, parse_address(own)), delete=delete),
            neighbour_request(KernelNeighbour(index, gateway, mac, PROTOCOL), delete=delete),
            route_request(key, route, delete=delete) if delete else route_request(key, route, exclusive=True),
        ]
    return found[::-1] if delete else found


def lines(words: list[str], verb: str) -> tuple[list[str], list[str]]:
    """The same for ``ip -batch`` and ``bridge -batch``."""
    ip, bridge = [], []
    for place, family in enumerate(FAMILIES):
        own, end, cidr = words[1 + 3 * place : 4 + 3 * place]
        mac, device = format_mac(vtep_mac(words[0], family)), DEVICES[family]
        bridge.append(f"fdb {verb} {mac} dev {device} dst {own} self permanent")
        ip.append(f"neigh {verb} {end} lladdr {mac} dev {device} nud permanent")
        ip.append(f"route {verb} {cidr} via {end} dev {device} onlink proto {PROTOCOL}")
    return (ip, bridge) if verb == "add" else (ip[::-1], bridge)


def main() -> None:
    count, times = map(int, sys.argv[1:])
    indexes = make_devices()
    sending = NetlinkSocket(NETLINK_ROUTE)
    crowd = [one for words in peers.calico_addresses(FAMILIES, range(count)) for one in requests(words, indexes)]
    for start in range(0, len(crowd), AT_ONCE):
        refused = sending.transact(crowd[start : start + AT_ONCE])
        assert not refused, next(iter(refused.values()))
    kernel, tools = [], []
    for words in peers.calico_addresses(FAMILIES, range(count, count + times)):
        add, delete = requests(words, indexes), requests(words, indexes, delete=True)
        begin = time.thread_time_ns()
        refused = sending.transact(add)
        kernel.append((time.thread_time_ns() - begin) / 1000)
        assert not refused, next(iter(refused.values()))
        assert not sending.transact(delete)
        ip, bridge = lines(words, "add")
        started = time.monotonic_ns()
        _ip(bridge, "bridge")
        _ip(ip)
        tools.append((time.monotonic_ns() - started) / 1000)
        assert not sending.transact(delete)
    for device in DEVICES.values():
        subprocess.run(["ip", "link", "del", device], check=True)
    print(json.dumps({"kernel": kernel, "ip -batch": tools}), flush=True)


if __name__ == "__main__":
    main()
