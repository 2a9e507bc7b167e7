"""What the soak does to a running lab, at random; none of it may cost the live traffic a packet.

The workloads that carry traffic are never touched, nor is what their packets go through. Operations change other
workloads of node1 (``s1`` …, interfaces without anybody behind them), pools and the mode of those in use, settings, the
kernel behind the agent's back, the agents and the broker. node3 is behind a router, so its traffic is in VXLAN. Other
nodes (``far1`` …) are told of alone: they come, go and move, some of them on a second uplink of node1, which flaps.
Each operation leaves a state from which any other may follow; all randomness comes from one seeded generator.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from felixpy.demo.host import Host, stop_process
from felixpy.demo.lab import Lab
from felixpy.demo.networks import NODE3, P3A, add_third_node, crossing, of_third_node, pool
from felixpy.demo.resources import Object, block, felix_configuration, ip_pool, lab_resources, v3, workload_endpoint
from felixpy.demo.run import BACKENDS
from felixpy.demo.topology import NODES, P1B, P2A, PodSpec
from felixpy.model.net import Family
from tests.behaviour.world import topic
from tests.soak.policies import Policies

WORKLOADS = 6
ADDRESSES = 8
FAR_NODES = 6
UPLINK = "eth1"
UPLINK_SUBNET = {Family.V4: "172.31.9.{n}/24", Family.V6: "fd00:31:9::{n}/64"}
FAR_SUBNET = {Family.V4: "172.31.77.{n}/24", Family.V6: "fd00:31:77::{n}/64"}
AGENTS = (*(node.name for node in NODES), NODE3.name)
FAULTS = frozenset(
    {
        "kill agent",
        "stop agent",
        "restart broker",
        "drift",
        "foreign change",
        "flap",
        "replace interface",
        "flap uplink",
    }
)
STRAY_ROUTES = ("10.99.{n}.0/24", "fd00:99:{n}::/64")


def spare(number: int) -> PodSpec:
    """A workload that the soak plays with; its addresses change."""
    return PodSpec(f"s{number}", "node1", {})


def address(number: int) -> dict[Family, str]:
    return {Family.V4: f"10.48.0.{number + 20}", Family.V6: f"fd00:48::{number + 20:x}"}


def _far(number: int, family: Family) -> tuple[str, str]:
    """The block of a node that is only told of, and the address of its tunnel's end."""
    if family is Family.V4:
        return f"10.48.7.{number * 16}/28", f"10.48.7.{number * 16 + 15}"
    return f"fd00:48:0:7{number:x}::/122", f"fd00:48:0:7{number:x}::3f"


class Operations:
    """The lab, what is published, and the counted operations. ``every`` maps an operation's name to its coroutine."""

    def __init__(self, lab: Lab, backend: str, rng: random.Random) -> None:
        self.lab, self.backend, self.rng = lab, backend, rng
        self.done: Counter[str] = Counter()
        self.published: dict[str, Object] = {}
        self.ended: list[str] = []
        """Agents that were found dead although nobody had killed them, with the end of their logs."""
        self._agents_due: set[str] = set()
        self._foreign = 0
        self.policies = Policies(lab, rng)
        self.every: dict[str, tuple[int, Callable[[], Awaitable[None]]]] = {
            "publish endpoint": (30, self.publish_endpoint),
            "delete endpoint": (12, self.delete_endpoint),
            "change pool": (6, self.change_pool),
            "change settings": (3, self.change_settings),
            "change mode": (8, self.change_mode),
            "publish node": (12, self.publish_node),
            "delete node": (5, self.delete_node),
            "flap uplink": (5, self.flap_uplink),
            "change policy": (20, self.policies.change),
            "flap": (10, self.flap),
            "replace interface": (6, self.replace_interface),
            "drift": (20, self.drift),
            "foreign change": (6, self.foreign_change),
            "kill agent": (6, self.kill_agent),
            "stop agent": (2, self.stop_agent),
            "restart broker": (2, self.restart_broker),
        }

    @property
    def node1(self) -> Host:
        return self.lab.node("node1")

    @property
    def faults(self) -> int:
        return sum(count for name, count in self.done.items() if name in FAULTS)

    async def one(self) -> str:
        """Do one operation; returns its name."""
        names = list(self.every)
        (name,) = self.rng.choices(names, [self.every[one][0] for one in names])
        await self.every[name][1]()
        self.done[name] += 1
        return name

    # --- set-up --------------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, str]:
        return {
            **BACKENDS[self.backend],
            "FELIX_SNAPSHOTQUIETTIME": "0.3",
            # Drift that the kernel does not tell of is found soon enough for a check every few seconds.
            **{
                f"FELIX_{name}REFRESHINTERVAL": "2" for name in ("ROUTE", "INTERFACE", "NFTABLES", "IPTABLES", "IPSETS")
            },
        }

    async def begin(self) -> None:
        """Interfaces, resources, agents."""
        for number in range(WORKLOADS):
            await self._make_interface(spare(number).interface, number)
        await add_third_node(self.lab)
        await self._add_uplink()
        await self.lab.start_broker()
        of_node3, tunnels = of_third_node(self.lab), crossing(self.lab)
        for document in (*lab_resources(self.lab.mode, self.lab.pods), *of_node3, *tunnels):
            await self.put(document)
        await self._add_foreign()
        for node in AGENTS:
            await self.start_agent(node)
        for node in AGENTS:
            await self.lab.agents[node].wait_ready()
        await self._until_tunnels_stand()
        await self.policies.publish_all()
        await self._until_policies_stand()

    async def _until_tunnels_stand(self) -> None:
        """In the first second a new device leads nobody through it who had another way."""
        for target in (P3A.addresses[family] for family in self.lab.families):
            while not await self.lab.pod("p1a").ping(target):  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.1)

    async def _until_policies_stand(self) -> None:
        """They let no ping through, to whatever node."""
        for target in (one.addresses[family] for one in (P1B, P2A, P3A) for family in self.lab.families):
            while await self.lab.pod("p1a").ping(target):  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.1)

    async def _add_uplink(self) -> None:
        """A second uplink of node1, with nobody behind it who answers."""
        commands = [f"link add {UPLINK} type veth peer name far", "link set far up", f"link set {UPLINK} up"]
        commands += [f"addr add {UPLINK_SUBNET[family].format(n=1)} dev {UPLINK}" for family in self.lab.families]
        await self.node1.ip(commands)

    async def _make_interface(self, name: str, number: int) -> None:
        await self.node1.ip(
            [f"link add {name} type veth peer name peer{number}", f"link set peer{number} up", f"link set {name} up"]
        )

    async def _add_foreign(self) -> None:
        chain, members = "chain c {\ntype filter hook input priority 5\naccept\n}", "set s {\ntype ipv4_addr\n}"
        await self.node1.run("nft", "-f", "-", stdin=f"table inet foreign {{\n{chain}\n{members}\n}}\n")
        await self.node1.run("ipset", "create", "foreign", "hash:net")

    # --- stream --------------------------------------------------------------------------------------------------

    async def put(self, document: Object) -> None:
        self.published[topic(document)] = document
        await self.lab.publish(topic(document), json.dumps(document).encode())

    async def remove(self, document: Object) -> None:
        if self.published.pop(topic(document), None) is not None:
            await self.lab.publish(topic(document), b"")

    async def publish_endpoint(self) -> None:
        """Any spare workload with any of the spare addresses, also with one that another workload has just now."""
        for _ in range(self.rng.choice((1, 1, 1, 4))):
            addresses = address(self.rng.randrange(ADDRESSES))
            families = self.rng.choice((self.lab.families, self.lab.families, self.lab.families[:1]))
            pod = PodSpec(spare(self.rng.randrange(WORKLOADS)).name, "node1", addresses)
            extra: dict[str, Any] = {"mac": f"02:00:00:00:00:{self.rng.randrange(255):02x}"}
            await self.put(workload_endpoint(pod, families, **extra))

    async def delete_endpoint(self) -> None:
        await self.remove(workload_endpoint(spare(self.rng.randrange(WORKLOADS)), ()))

    async def change_pool(self) -> None:
        number = self.rng.randrange(3)
        for family, cidr in ((Family.V4, f"10.6{number}.0.0/16"), (Family.V6, f"fd00:6{number}::/48")):
            other = ip_pool(f"soak-{number}-{family.version}", cidr, natOutgoing=self.rng.random() < 0.5)
            await (self.remove(other) if self.rng.random() < 0.4 else self.put(other))

    async def change_settings(self) -> None:
        """Rules are written anew; what the traffic needs is the same in all of them."""
        await self.put(
            felix_configuration(
                defaultEndpointToHostAction="Accept",
                allowVXLANPacketsFromWorkloads=self.rng.random() < 0.5,
                disableConntrackInvalidCheck=self.rng.random() < 0.5,
            )
        )

    async def change_mode(self) -> None:
        """Between native and VXLAN where node1 and node2 send to each other; to node3 all goes in VXLAN."""
        for family in self.lab.families:
            if self.rng.random() < 0.7:
                await self.put(pool(family, self.rng.choice(("Always", "CrossSubnet"))))

    async def publish_node(self) -> None:
        """A node comes, or moves: to another address, between node1's second uplink and a network behind a router."""
        number = self.rng.randrange(FAR_NODES)
        where = self.rng.choice((UPLINK_SUBNET, FAR_SUBNET))
        last = 10 * number + self.rng.randrange(2, 6)
        families = self.rng.choice((self.lab.families, self.lab.families, self.lab.families[:1]))
        bgp = {f"ipv{family.version}Address": where[family].format(n=last) for family in families}
        ends = {
            f"ipv{family.version}VXLANTunnelAddr": _far(number, family)[1]
            for family in families
            if self.rng.random() < 0.8  # else it is half known
        }
        await self.put(v3("Node", f"far{number}", {"bgp": bgp, **ends}))
        for family in self.lab.families:
            await self.put(block(_far(number, family)[0], f"far{number}"))

    async def delete_node(self) -> None:
        """Blocks may stay behind, as they do where nobody has cleaned up yet."""
        number = self.rng.randrange(FAR_NODES)
        await self.remove(v3("Node", f"far{number}", {}))
        if self.rng.random() < 0.7:
            for family in self.lab.families:
                await self.remove(block(_far(number, family)[0], f"far{number}"))

    async def flap_uplink(self) -> None:
        """The kernel drops the nexthops there; of IPv6 the addresses, too."""
        await self.node1.ip([f"link set {UPLINK} down"])
        await asyncio.sleep(self.rng.random() * 0.1)
        await self.node1.ip([f"link set {UPLINK} up"])
        if self.rng.random() < 0.5:
            await self.node1.ip([f"addr replace {UPLINK_SUBNET[Family.V6].format(n=1)} dev {UPLINK} nodad"])

    # --- kernel --------------------------------------------------------------------------------------------------

    async def flap(self) -> None:
        name = spare(self.rng.randrange(WORKLOADS)).interface
        await self.node1.ip([f"link set {name} down", f"link set {name} up"])

    async def replace_interface(self) -> None:
        number = self.rng.randrange(WORKLOADS)
        await self.node1.ip([f"link del {spare(number).interface}"])
        await asyncio.sleep(self.rng.random() * 0.05)
        await self._make_interface(spare(number).interface, number)

    async def drift(self) -> None:
        """Somebody deletes or adds what is ours; what is not there just now is no drift."""
        which = address(self.rng.randrange(ADDRESSES))
        await self.node1.run("sh", "-c", self.rng.choice(self._drifts(which)), check=False)

    def _drifts(self, which: dict[Family, str]) -> list[str]:
        number, v4, v6 = self.rng.randrange(9), which[Family.V4], which[Family.V6]
        interface = spare(self.rng.randrange(WORKLOADS)).interface
        commands = [
            f"ip route del {v4}/32 proto 222",
            f"ip -6 route del {v6}/128 proto 222",
            f"ip route replace {v4}/32 dev {interface} proto static",
            f"ip route replace {STRAY_ROUTES[0].format(n=number)} dev eth0 proto 222",
            f"ip -6 route replace {STRAY_ROUTES[1].format(n=number)} dev eth0 proto 222",
            f"ip neigh flush dev {interface} nud permanent",
            f"echo 0 > /proc/sys/net/ipv4/conf/{interface}/proxy_arp",
            f"ip route del {_far(number % FAR_NODES, Family.V4)[0]} proto 222",
            f"ip -6 route del {_far(number % FAR_NODES, Family.V6)[0]} proto 222",
            "ip addr replace 192.0.2.77/32 dev vxlan.calico; ip addr del 192.0.2.77/32 dev vxlan.calico",
        ]
        if self.backend == "nftables":
            return [
                *commands,
                f"nft delete element ip felixpy to-workload '{{ {v4} . \"{interface}\" }}'",
                f"nft add element ip6 felixpy from-workload '{{ {v6} . \"{interface}\" }}'",
                "nft add rule ip6 felixpy filter-FORWARD counter",
                "nft add chain ip felixpy raw-stray",
            ]
        iptables = f"iptables-{self.backend}"
        return [
            *commands,
            f"ipset del fpy4-to-workload {v4},{interface}",
            f"ipset add fpy6-from-workload {v6},{interface}",
            f"{iptables} -w -A fpy-FORWARD -m comment --comment stray",
            f"{iptables} -w -t raw -N fpy-stray",
        ]

    async def foreign_change(self) -> None:
        """Another program changes what is its own."""
        self._foreign += 1
        number = self._foreign % 250
        variant = "legacy" if self.backend == "legacy" else "nft"
        await self.node1.run(
            "sh",
            "-ec",
            f"nft add element inet foreign s '{{ 192.0.2.{number} }}'; ipset -exist add foreign 198.18.{number}.0/24;"
            f"ip route replace unreachable 198.19.{number}.0/24 proto 80;"
            f"ip -6 route replace unreachable 2001:db8:f000:{number}::/64 proto 80;"
            f"iptables-{variant} -w -N FOREIGN{number} || iptables-{variant} -w -X FOREIGN{number}",
        )

    async def foreign_state(self) -> str:
        variant = "legacy" if self.backend == "legacy" else "nft"
        return await self.node1.run(
            "sh",
            "-c",
            "nft -s list table inet foreign; ipset save foreign; ip route show proto 80; ip -6 route show proto 80;"
            f"iptables-{variant}-save 2>/dev/null | grep FOREIGN; ip route show default; ip -6 route show default;"
            "ip address show dev eth0",
        )

    # --- agents and broker ---------------------------------------------------------------------------------------

    async def start_agent(self, node: str) -> None:
        await self.lab.start_agent(node, self.settings())

    def _any_agent(self) -> str:
        agent = self.lab.agents[self.rng.choice(AGENTS)]
        if not agent.running:
            self.ended.append(f"the agent on {agent.node} had ended by itself: {agent.tail()}")
        return agent.node

    async def kill_agent(self) -> None:
        """kill -9; the next one starts at once or a little later, and may itself be killed while it starts."""
        node = self._any_agent()
        await self.lab.agents[node].kill()
        await asyncio.sleep(self.rng.choice((0.0, 0.0, 0.5)))
        await self.start_agent(node)

    async def stop_agent(self) -> None:
        node = self._any_agent()
        await self.lab.agents[node].stop()
        await self.start_agent(node)

    async def restart_broker(self) -> None:
        """Mosquitto goes without a word and comes back empty; the publishers then publish everything again."""
        lab = self.lab
        assert lab._mosquitto is not None and lab._follower is not None
        lab._mosquitto.kill()
        await stop_process(lab._mosquitto)
        await asyncio.gather(lab._follower, return_exceptions=True)
        lab._broker_socket.unlink(missing_ok=True)
        await asyncio.sleep(self.rng.choice((0.0, 0.5, 2.0)))
        await lab.start_broker()
        for document in list(self.published.values()):
            await self.put(document)
        await self.policies.publish_all()
