"""A workload with CAP_NET_ADMIN that sends what no honest one would: to its node's loopback network, in tunnels to its
node, errors about connections of others. Each refusal stands beside a control that passes.
"""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from pathlib import Path

from felixpy.demo.host import PORT, Host
from felixpy.demo.resources import felix_configuration
from felixpy.demo.topology import EXT, NODE1, P1A, P1B, P2A
from felixpy.model.net import Family

from .world import World, becomes

FORGE = str(Path(__file__).with_name("forge.py"))
LOOPBACK, LOOPBACK_PORT, TRANSLATED_PORT = "127.0.0.53", 7127, 7128
MTU = 1300
VXLAN_PORT = 4789
RECEIVE_IPIP = """
import signal, socket, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
raw = socket.socket(socket.AF_INET if sys.argv[1] == "4" else socket.AF_INET6, socket.SOCK_RAW, 4)
print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})  # all has been sent
raw.setblocking(False)
try:
    print(raw.recvfrom(2048)[1][0])
except BlockingIOError:
    pass
"""
TRANSLATE = """table ip to_loopback {{
    chain prerouting {{
        type nat hook prerouting priority -100
        ip daddr {node} udp dport {port} dnat to {loopback}:{loopback_port}
    }}
}}
"""


async def forge(world: World, pod: Host, interface: str, *arguments: str) -> None:
    mac = (await world.node1.run("cat", f"/sys/class/net/{interface}/address")).strip()
    await pod.run(sys.executable, "-I", "-S", FORGE, mac, *arguments)


async def test_the_loopback_network_of_the_node_is_out_of_reach_but_by_a_dnat_of_the_node(world: World) -> None:
    if Family.V4 not in world.families:  # IPv6 has no such network: the kernel refuses ::1 from outside
        return
    p1a, node = world.lab.pod("p1a"), NODE1.addresses[Family.V4]
    await world.node1.listen(LOOPBACK, LOOPBACK_PORT)
    rules = TRANSLATE.format(node=node, port=TRANSLATED_PORT, loopback=LOOPBACK, loopback_port=LOOPBACK_PORT)

    async def answered(destination: str, port: int) -> set[str]:
        async with p1a.capture() as packets:
            await forge(world, p1a, P1A.interface, "datagram", P1A.addresses[Family.V4], destination, str(port))
        return {packet.source for packet in packets if packet.protocol == 17 and packet.port == 40000}

    for action in ("Accept", "Return"):
        async with world.changed(felix_configuration(defaultEndpointToHostAction=action)):
            await becomes({node}, answered, node, PORT)
            assert await answered(LOOPBACK, LOOPBACK_PORT) == set()
            await world.node1.run("nft", "-f", "-", stdin=rules)
            try:
                await becomes({node}, answered, node, TRANSLATED_PORT)
            finally:
                await world.node1.run("nft", "delete", "table", "ip", "to_loopback")


async def test_tunnels_to_the_node_itself_are_dropped_unless_allowed(world: World) -> None:
    """A tunnel device of the node would unpack them, and deliver packets whose source nobody has checked."""
    p1a = world.lab.pod("p1a")
    for family in world.families:
        node, own = NODE1.addresses[family], P1A.addresses[family]
        await world.node1.listen(node, VXLAN_PORT)

        async def arrived(node: str, own: str, family: Family) -> tuple[bool, bool]:
            """Whether VXLAN and IPIP pass the node's INPUT, where a socket of each waits."""
            listening = await world.node1.spawn(
                *(sys.executable, "-I", "-S", "-c", RECEIVE_IPIP, str(family.version)), output=asyncio.subprocess.PIPE
            )
            assert listening.stdout
            assert await listening.stdout.readline() == b"ready\n"
            await forge(world, p1a, P1A.interface, "tunnel", own, node)
            async with p1a.capture() as packets:
                await forge(world, p1a, P1A.interface, "datagram", own, node, str(VXLAN_PORT))
            listening.send_signal(signal.SIGUSR1)
            told, _ = await listening.communicate()
            vxlan = any(packet.source == node and packet.source_port == VXLAN_PORT for packet in packets)
            return vxlan, told == f"{own}\n".encode()

        allowed = {"allowVXLANPacketsFromWorkloads": True, "allowIPIPPacketsFromWorkloads": True}
        async with world.changed(felix_configuration(defaultEndpointToHostAction="Accept")):
            await becomes((False, False), arrived, node, own, family)
        async with world.changed(felix_configuration(defaultEndpointToHostAction="Accept", **allowed)):
            await becomes((True, True), arrived, node, own, family)


async def path_mtu(host: Host, family: Family, destination: str) -> int | None:
    """What the host has been told of the path; None if it was told nothing."""
    text = await host.run("ip", f"-{family.version}", "route", "get", destination)
    found = re.search(r"\bmtu (\d+)", text)
    return int(found[1]) if found else None


async def test_errors_of_a_workload_count_for_its_own_connections_only(world: World) -> None:
    p1a, p1b, node1 = world.lab.pod("p1a"), world.lab.pod("p1b"), world.node1

    async def error(source: str, destination: str, about: tuple[str, str, int]) -> None:
        inner_source, inner_destination, port = about
        arguments = (inner_source, inner_destination, str(port), str(PORT), str(MTU))
        await forge(world, p1a, P1A.interface, "error", source, destination, *arguments)

    for family in world.families:
        node, own, neighbour = NODE1.addresses[family], P1A.addresses[family], P1B.addresses[family]
        outside, far = EXT[family], P2A.addresses[family]

        async def told(host: Host, source: str, destination: str, port: int, family: Family) -> int | None:
            """What a host knows of the path to the workload, after an error about a flow to it."""
            await error(destination, source, (source, destination, port))
            return await path_mtu(host, family, destination)

        async with world.changed(felix_configuration(defaultEndpointToHostAction="Drop")):
            flows = [await host.open_flow("udp", to) for host, to in
                     ((node1, outside), (p1b, far), (node1, own), (p1b, own))]  # fmt: skip
            ports = [flow.first.port for flow in flows if flow.first]

            await error(own, node, (node, outside, ports[0]))
            await error(own, neighbour, (neighbour, far, ports[1]))
            if family is Family.V6:  # a source that passes from every workload
                await error("fe80::bad", node, (node, outside, ports[0]))
            # Those about its own pass, and by then what went before would have arrived.
            await becomes(MTU, told, node1, node, own, ports[2], family)
            await becomes(MTU, told, p1b, neighbour, own, ports[3], family)
            assert await path_mtu(node1, family, outside) is None
            assert await path_mtu(p1b, family, far) is None
        for flow in flows:
            await flow.close()
        for host in (node1, p1b):
            await host.run("ip", f"-{family.version}", "route", "flush", "cache")
