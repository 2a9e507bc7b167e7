"""What happens on a node on a usual day, as a cycle: each step starts from where the step before it ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from felixpy.model.resources import FelixConfiguration, Kind, ResourceKey
from tests.drift.world import sh
from tests.faults.node import Node

Step = Callable[[Node], Awaitable[None]]

ENDPOINTS = 3
DRIFT = {
    "nftables": "nft flush chain ip felixpy filter-forward-to; nft delete element ip6 felixpy pools '{ fd00:48::/48 }'",
    "nft": "iptables-nft -F fpy-forward-to; ipset flush fpy6-pools",
    "legacy": "iptables-legacy -F fpy-forward-to; ipset flush fpy6-pools",
}
RULES_GONE = {
    "nftables": "nft flush ruleset",
    "nft": "iptables-nft -t raw -F PREROUTING; ip6tables-nft -t raw -F PREROUTING",
    "legacy": "iptables-legacy -t raw -F PREROUTING; ip6tables-legacy -t raw -F PREROUTING",
}


def configuration(action: str) -> FelixConfiguration:
    return FelixConfiguration(ResourceKey(Kind.FELIX_CONFIGURATION, "default"), {"defaultEndpointToHostAction": action})


async def add_endpoint(node: Node) -> None:
    node.put_endpoint(4)


async def move_endpoint(node: Node) -> None:
    """The same addresses behind another interface: they wait for their conntrack entries to be gone."""
    node.put_endpoint(4, interface="cali5")


async def remove_endpoint(node: Node) -> None:
    node.delete_endpoint(4)


async def change_pools(node: Node) -> None:
    node.put_pool("v4", "10.48.0.0/20", nat_outgoing=True)
    node.put_pool("v6", "fd00:48::/48", nat_outgoing=False)


async def pools_back(node: Node) -> None:
    node.put_pool("v4", "10.48.0.0/21", nat_outgoing=True)
    node.put_pool("v6", "fd00:48::/48", nat_outgoing=True)


async def change_rules(node: Node) -> None:
    node.publish(configuration("Accept"))


async def rules_back(node: Node) -> None:
    node.delete(configuration("Accept").key)


async def flap_workload(node: Node) -> None:
    sh("ip link set cali1 down; ip link set cali1 up")


async def replace_interface(node: Node) -> None:
    sh("ip link del cali2; ip link add cali2 type veth peer name peer2; ip link set cali2 up; ip link set peer2 up")


async def flap_uplink(node: Node) -> None:
    """The parent of all cluster routes; its addresses and default routes come back as the node's network gives them."""
    sh(
        "ip link set eth0 down; ip link set eth0 up; ip -6 addr replace fd00:31::1/64 dev eth0 nodad;"
        "ip route replace default via 172.31.0.254; ip -6 route replace default via fd00:31::fe dev eth0"
    )


async def drift(node: Node) -> None:
    """Other programs delete routes, a neighbour, rules and set members; not all of it is told by the kernel."""
    sh("ip route del 10.48.0.1/32; ip -6 route del blackhole fd00:48::/122; ip neigh del 10.48.0.1 dev cali1")
    sh(DRIFT[node.backend])
    node.compare_everything()


async def rules_gone(node: Node) -> None:
    sh(RULES_GONE[node.backend])
    sh("nft list table inet foreign >/dev/null 2>&1 || true")
    node.compare_everything()


async def restart(node: Node) -> None:
    await node.stop()
    node.start()


CYCLE: tuple[Step, ...] = (
    add_endpoint,
    move_endpoint,
    change_pools,
    flap_workload,
    drift,
    change_rules,
    replace_interface,
    restart,
    pools_back,
    rules_back,
    remove_endpoint,
    flap_uplink,
)
