"""A VXLAN device by hand between the two real nodes, and no rule on either: what the kernel itself takes for packets.

A comparator for what felixpy's way through VXLAN costs against its native one. Both nodes must be free of what agents
made, and nothing is undone: it is the last that is measured in a world. Must run nowhere else.
"""

from __future__ import annotations

import json

from bench import peers
from bench.world import PLAIN_SERVER, SERVER, World
from felixpy.demo.host import Host
from felixpy.demo.topology import PodSpec
from felixpy.model.net import Family

SUBJECT = "a VXLAN device by hand, no rules"
_DEVICES = {Family.V4: "bare4", Family.V6: "bare6"}


def _ends(world: World) -> tuple[tuple[Host, PodSpec], ...]:
    """Each node with its workload."""
    return (world.node, SERVER), (world.other, PLAIN_SERVER)


def _mac(family: Family, at: int) -> str:
    return f"02:00:00:00:{family:02x}:{at + 1:02x}"


def _gateway(family: Family, at: int) -> str:
    return f"10.254.0.{at + 1}" if family is Family.V4 else f"fd00:254::{at + 1}"


async def begin(world: World) -> None:
    """Make the devices and the workloads' own routes."""
    for at, (host, pod) in enumerate(_ends(world)):
        lines = []
        for family in world.families:
            device, size, own = _DEVICES[family], family.bits, peers.SUBNET[family][at].partition("/")[0]
            vxlan = f"type vxlan id 4097 dstport 4790 local {own} dev eth0 nolearning"
            lines += [
                f"link add {device} address {_mac(family, at)} {vxlan}",
                f"link set {device} up",
                f"addr add {_gateway(family, at)}/{size - 2} dev {device}{' nodad' * (family is Family.V6)}",
                f"neigh add {_gateway(family, 1 - at)} lladdr {_mac(family, 1 - at)} dev {device}",
                f"route replace {pod.addresses[family]}/{size} dev {pod.interface}",
            ]
        await host.ip(lines)
        for family in world.families:
            other = peers.SUBNET[family][1 - at].partition("/")[0]
            entry = (_mac(family, 1 - at), "dev", _DEVICES[family], "dst", other, "self", "permanent")
            await host.run("bridge", "fdb", "add", *entry)


async def lead(world: World, way: str) -> None:
    """Route the workloads to each other natively or by the device (``native``, ``VXLAN``)."""
    for at, (host, _) in enumerate(_ends(world)):
        lines = []
        for family in world.families:
            remote = _ends(world)[1 - at][1].addresses[family]
            native = f"via {peers.SUBNET[family][1 - at].partition('/')[0]} dev eth0"
            tunnel = f"via {_gateway(family, 1 - at)} dev {_DEVICES[family]}"
            lines.append(f"route replace {remote}/{family.bits} {native if way == 'native' else tunnel}")
        await host.ip(lines)


async def received(world: World, family: Family) -> int:
    """Packets that came out of the device where the receiver is: what is measured has to be what travelled."""
    (link,) = json.loads(await world.other.run("ip", "-json", "-stats", "link", "show", "dev", _DEVICES[family]))
    return int(link["stats64"]["rx"]["packets"])
