"""A node whose IPv6 default route was learnt from a router: forwarding never costs it that route."""

from __future__ import annotations

import asyncio
import sys

from felixpy.demo.agent import FELIXPY, environment
from felixpy.demo.host import Host
from felixpy.demo.lab import Lab
from felixpy.demo.resources import lab_resources, write_manifests
from felixpy.demo.run import BACKENDS
from felixpy.demo.topology import EXT, Mode
from felixpy.model.net import Family
from tests.behaviour.world import becomes

ADVERTISE = """
import socket, struct
router = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
router.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
message = struct.pack(">BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
router.sendto(message, ("ff02::1", 0, 0, socket.if_nametoindex("eth0")))
"""


async def learn(lab: Lab, node: Host) -> None:
    """The outside host is a router that advertises itself; the node's own default route goes."""
    await node.sysctl("ipv6/conf/eth0/accept_ra", 1)
    await node.ip([f"route del default via {EXT[Family.V6]}"])

    async def learnt() -> bool:
        await lab.ext.run(sys.executable, "-c", ADVERTISE)
        return "proto ra" in await node.run("ip", "-6", "route", "show", "default")

    await becomes(True, learnt)


async def start(lab: Lab, *wrapper: str) -> asyncio.subprocess.Process:
    await lab.start_broker()
    manifests = write_manifests(lab_resources(lab.mode, lab.pods), lab.folder / "resources")
    await lab.felixpy("apply", "-f", str(manifests))
    settings = environment(lab.agent_environment("node1", BACKENDS["nftables"]))
    with (lab.folder / "agent.log").open("wb") as log:
        return await lab.node("node1").spawn(*wrapper, *FELIXPY, "run", env=settings, output=log)


async def test_the_learnt_default_route_survives_the_start() -> None:
    async with Lab(Mode.DUAL) as lab:
        node = lab.node("node1")
        await learn(lab, node)
        before = await node.run("ip", "-6", "route", "show", "default")
        outside = await node.open_flow("tcp", EXT[Family.V6])
        with (lab.folder / "routes").open("w+b") as output:
            monitor = await node.spawn("ip", "-6", "monitor", "route", output=output)
            await start(lab)
            await becomes({"4": {"ready": True}, "6": {"ready": True}}, families, lab)
            monitor.terminate()
            await monitor.wait()
            output.seek(0)
            deleted = [line for line in output.read().decode().splitlines() if line.startswith("Deleted default")]
        assert deleted == []
        assert await node.sysctl("ipv6/conf/all/forwarding") == 1
        assert await node.sysctl("ipv6/conf/eth0/accept_ra") == 2
        assert before.split(" expires")[0] in await node.run("ip", "-6", "route", "show", "default")
        assert await outside.ask() == outside.first
        assert await lab.pod("p1a").tcp(EXT[Family.V6]) is not None


async def families(lab: Lab) -> object:
    await asyncio.sleep(0)
    return lab.status.get("node1", {}).get("families")


async def test_where_accept_ra_cannot_be_written_forwarding_is_refused_in_plain_words() -> None:
    async with Lab(Mode.DUAL) as lab:
        node = lab.node("node1")
        await learn(lab, node)
        read_only = "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys"
        await node.sysctl("ipv4/ip_forward", 1)
        await start(lab, "unshare", "--mount", "sh", "-c", f'{read_only} && exec "$@"', "felixpy")
        await becomes({"4": {"ready": True}, "6": {"ready": False}}, families, lab)
        said = "; ".join([lab.status["node1"]["reason"], *lab.status["node1"]["problems"]])
        assert "IPv6 forwarding stays off: it would remove the advertised default route through eth0" in said
        assert "net.ipv6.conf.eth0.accept_ra cannot be set to 2" in said and "set it by hand" in said
        assert await node.sysctl("ipv6/conf/all/forwarding") == 0
        assert "proto ra" in await node.run("ip", "-6", "route", "show", "default")
