"""Others change the kernel under traffic: every flow goes on by itself, without any full comparison."""

from __future__ import annotations

import pytest

from felixpy.demo.topology import EXT, NODE2, P1A, P1B
from felixpy.model.net import Family

from .conftest import COMBINATIONS
from .flows import TrafficWorld

V4, V6 = Family.V4, Family.V6

TOLD = {
    "routes of workloads deleted": (
        f"ip route del {P1A.addresses[V4]}; ip route del {P1B.addresses[V4]}; "
        f"ip -6 route del {P1A.addresses[V6]}; ip -6 route del {P1B.addresses[V6]}"
    ),
    "routes to other nodes deleted": f"ip route del {NODE2.blocks[V4]}; ip -6 route del {NODE2.blocks[V6]}",
    "routes replaced": (
        f"ip route replace {P1B.addresses[V4]} dev {P1A.interface} proto static; "
        f"ip -6 route replace {P1B.addresses[V6]} dev {P1A.interface} proto static metric 1024"
    ),
    "forwarding off": "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0",
    "default routes deleted and back": (
        f"ip route del default; ip -6 route del default; ip route add default via {EXT[V4]}; "
        f"ip -6 route add default via {EXT[V6]}"
    ),
}
NFT_TOLD = {"every rule of the node flushed": "nft flush ruleset"}
NFTABLES_TOLD = {
    "members deleted": (
        "nft flush set ip felixpy from-workload; nft flush set ip felixpy to-workload;"
        "nft flush set ip6 felixpy from-workload; nft flush set ip6 felixpy to-workload"
    ),
    "pools deleted": "nft flush set ip felixpy masq-pools; nft flush set ip6 felixpy masq-pools",
    "chains flushed": "nft flush chain ip felixpy filter-forward-to; nft flush chain ip6 felixpy nat-nat-outgoing",
    "a table deleted": "nft delete table ip6 felixpy",
}
NFT_VARIANT_TOLD = {
    "chains flushed": "iptables-nft -F fpy-forward-to; ip6tables-nft -t nat -F fpy-nat-outgoing",
    "jumps deleted": "iptables-nft -t nat -F POSTROUTING; ip6tables-nft -t raw -F PREROUTING",
}
TOLD_BY_BACKEND = {
    "nftables": TOLD | NFTABLES_TOLD | NFT_TOLD,
    "legacy": TOLD,
    "nft": NFT_VARIANT_TOLD | NFT_TOLD,
}
NO_TRANSLATION = ("a table deleted", "every rule of the node flushed")
TRANSLATED = "stream p1a → ext"
"""Without any NAT chain the kernel translates no packet, of old connections neither. What the other side sends until
the chain is back, the node answers itself, with a reset: that stream is over. Those to come are not.
"""
IPSETS_UNTOLD = {
    "members deleted": "ipset flush fpy4-from-workload; ipset flush fpy6-to-workload",
    "pools deleted": "ipset flush fpy4-masq-pools; ipset flush fpy6-masq-pools",
}
UNTOLD_BY_BACKEND = {
    "legacy": IPSETS_UNTOLD
    | {
        "chains flushed": "iptables-legacy -t raw -F fpy-from-workload; ip6tables-legacy -t nat -F fpy-nat-outgoing",
        "jumps deleted": "iptables-legacy -t nat -F POSTROUTING; ip6tables-legacy -F FORWARD",
    },
    "nft": IPSETS_UNTOLD,
}


async def test_flows_recover_by_what_the_kernel_tells(world: TrafficWorld) -> None:
    await recover(world, TOLD_BY_BACKEND[world.backend])


@pytest.mark.parametrize("world", [c for c in COMBINATIONS if c.backend in UNTOLD_BY_BACKEND], ids=str, indirect=True)
async def test_flows_recover_at_the_next_comparison_where_the_kernel_tells_nothing(world: TrafficWorld) -> None:
    await world.restart_agent(FELIX_IPTABLESREFRESHINTERVAL="0.5", FELIX_IPSETSREFRESHINTERVAL="0.5")
    await recover(world, UNTOLD_BY_BACKEND[world.backend])
    await world.restart_agent()


async def recover(world: TrafficWorld, drifts: dict[str, str]) -> None:
    broken = None
    async with world.traffic() as traffic:
        for what, command in drifts.items():
            broken = TRANSLATED if what in NO_TRANSLATION else broken
            await world.node1.run("sh", "-ec", command)
            print(f"{world.backend}: {what}: {await traffic.recovers(without=broken)}")
    code, plan = await world.plan()
    assert code == 0, plan
