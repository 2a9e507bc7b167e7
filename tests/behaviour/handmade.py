"""The least kernel state that makes the whole lab work, written by hand: proof that the lab's checks can pass.

It is what an agent must bring about without encapsulation (reference/seeds.md E.3), told to the kernel by ``ip``
and ``nft`` only, so that a failing behaviour test can be laid at the agent's door.
"""

from __future__ import annotations

from felixpy.demo.lab import Lab
from felixpy.demo.topology import NODE1, NODE2, POOLS, NodeSpec
from felixpy.model.net import Family

ICMPV6_FROM_WORKLOADS = "130, 131, 132, 133, 135, 136"


async def program(lab: Lab) -> None:
    """Program both nodes for every family of the lab."""
    for node, other in ((NODE1, NODE2), (NODE2, NODE1)):
        for family in lab.families:
            await _forwarding(lab, node, family)
            await _routes(lab, node, other, family)
            await lab.node(node.name).run("nft", "-f", "-", stdin=_rules(lab, node, family))


async def _forwarding(lab: Lab, node: NodeSpec, family: Family) -> None:
    host = lab.node(node.name)
    await host.sysctl("ipv4/ip_forward" if family is Family.V4 else "ipv6/conf/all/forwarding", 1)
    if family is Family.V4:
        for pod in lab.pods:
            if pod.node == node.name:
                await host.sysctl(f"ipv4/conf/{pod.interface}/proxy_arp", 1)
                await host.sysctl(f"ipv4/neigh/{pod.interface}/proxy_delay", 0)


async def _routes(lab: Lab, node: NodeSpec, other: NodeSpec, family: Family) -> None:
    commands = [
        f"route add {other.blocks[family]} via {other.addresses[family]} dev eth0 onlink",
        f"route add blackhole {node.blocks[family]}",
    ]
    for pod in lab.pods:
        if pod.node == node.name:
            commands.append(f"route add {pod.addresses[family]}/{family.bits} dev {pod.interface}")
    await lab.node(node.name).ip(commands)


def _rules(lab: Lab, node: NodeSpec, family: Family) -> str:
    ip = "ip" if family is Family.V4 else "ip6"
    pairs = ", ".join(f"{pod.addresses[family]} . {pod.interface}" for pod in lab.pods if pod.node == node.name)
    neighbours = "" if family is Family.V4 else "ip6 saddr fe80::/10 return; ip6 saddr :: return;"
    return f"""table {ip} handmade {{
  chain raw {{ type filter hook prerouting priority raw;
    iifname != "cali*" return; {neighbours}
    {ip} saddr . iifname {{ {pairs} }} return; drop; }}
  chain nat {{ type nat hook postrouting priority srcnat;
    {ip} saddr {POOLS[family]} {ip} daddr != {POOLS[family]} masquerade fully-random; }}
}}
"""
