"""One mistaken object: the node's own network stays as it is, the object says why and leaves no trace when it goes."""

from __future__ import annotations

import pytest

from felixpy.model.net import Net, parse_address
from felixpy.model.resources import (
    BlockAffinity,
    Borrowed,
    Encapsulation,
    FelixConfiguration,
    IPAMBlock,
    IPPool,
    Kind,
    Node,
    ResourceKey,
    Update,
)
from tests.drift.world import NODE, World, build_links, endpoint, put, running, sh
from tests.netns import enter_new_network, enter_private_namespaces

REFRESH_OFF = {"RouteRefreshInterval": "0", "InterfaceRefreshInterval": "0", "NFTablesRefreshInterval": "0"}
BROKER, BROKER6 = "198.51.100.10", "2001:db8:100::10"
NAME = ResourceKey(Kind.IPAM_BLOCK, "mistake")


def block(cidr: str, host: str | None, *borrowed: Borrowed) -> IPAMBlock:
    return IPAMBlock(NAME, Net.parse(cidr), host, borrowed)


def having(*addresses: str) -> object:
    return endpoint(9, interface="cali3", addresses=tuple(Net.parse(one) for one in addresses))


MISTAKES = {
    "endpoint with the gateway's address": (having("172.31.0.254"), "a gateway"),
    "endpoint with the gateway's address, v6": (having("fd00:31::fe"), "a gateway"),
    "endpoint with the node's address": (having("172.31.0.1"), "this node's own (eth0)"),
    "endpoint with the node's address, v6": (having("fd00:31::1"), "this node's own (eth0)"),
    "endpoint with an address of the loopback": (having("192.0.2.77"), "this node's own (lo)"),
    "endpoint with the broker's address": (having(BROKER), "broker"),
    "endpoint with the broker's address, v6": (having(BROKER6), "broker"),
    "endpoint with the broadcast address of a subnet": (having("172.31.0.255"), "the broadcast address of a subnet"),
    "endpoint with the address of all routers": (having("fd00:31::"), "the address of all routers of a subnet"),
    "own block over the network": (block("172.31.0.0/24", NODE), "this node's own"),
    "own block over part of the network": (block("172.31.0.0/26", NODE), "this node's own"),
    "own block over the network, v6": (block("fd00:31::/64", NODE), "this node's own"),
    "own block over the gateway": (block("172.31.0.192/26", NODE), "a gateway"),
    "block of another node over the gateway, v6": (block("fd00:31::c0/122", "node2"), "a gateway"),
    "block of another node over the broker": (block("198.51.100.0/26", "node2"), "broker"),
    "block of another node over the broker, v6": (block("2001:db8:100::/122", "node2"), "broker"),
    "affinity over a second network": (
        BlockAffinity(ResourceKey(Kind.BLOCK_AFFINITY, "mistake"), Net.parse("10.9.0.0/26"), NODE),
        "this node's own (eth1)",
    ),
    "the gateway's address, borrowed by another node": (
        block("172.31.0.192/26", None, Borrowed(Net.parse("172.31.0.254"), "node2")),
        "a gateway",
    ),
}


@pytest.fixture(autouse=True)
def network() -> None:
    enter_private_namespaces()
    enter_new_network()
    build_links(3)
    sh("ip route replace default via fd00:31::fe dev eth0; ip addr add 192.0.2.77/32 dev lo")
    sh("ip link add eth1 type veth peer name fabric1; ip link set eth1 up; ip link set fabric1 up")
    sh("ip addr add 10.9.0.1/26 dev eth1")


def state(backend: str) -> str:
    """Routes, neighbours and members of sets; the counters of the tools left out."""
    sets = "nft -s list table ip felixpy; nft -s list table ip6 felixpy"
    if backend != "nftables":
        sets = "ipset save | sed 's/ initval .*//' | sort"
    return sh(f"ip route show; ip -6 route show; ip neigh show nud permanent | sort; {sets}")


def told(world: World, words: str) -> bool:
    return any(words in why for _, why in world.agent.outcome.problems.items())


async def connected(world: World) -> None:
    """The agent is told of its brokers; the second one stands for one of the other family."""
    world.agent.configuration._peers = (parse_address(BROKER), parse_address(BROKER6))
    world.agent.configuration.host_due = True
    world.agent._wake_up()
    await world.until(lambda: len(world.agent.calculation.host.peers) == 2)


@pytest.mark.parametrize("backend", ["nftables", "legacy", "nft"])
async def test_a_mistaken_object_touches_nothing(backend: str) -> None:
    async with running(backend, 2) as world:
        world.agent.update(put(endpoint(9, interface="cali3", addresses=(Net.parse("10.48.0.9"),))))
        await connected(world)
        await world.quiet()
        for what, (mistake, why) in MISTAKES.items():
            if mistake.key.kind is Kind.WORKLOAD_ENDPOINT:  # type: ignore[attr-defined]
                world.agent.update(Update(mistake.key, None))  # type: ignore[attr-defined]
                await world.until(lambda: "10.48.0.9" not in sh("ip route show"))
            await world.quiet()
            before = state(backend)
            world.agent.update(put(mistake))
            await world.until(lambda why=why: told(world, why))
            await world.quiet()
            assert state(backend) == before, what
            world.agent.update(Update(mistake.key, None))  # type: ignore[attr-defined]
            await world.until(lambda: not list(world.agent.outcome.problems))
            await world.quiet()
            assert state(backend) == before, what


async def test_the_rest_of_an_endpoint_works() -> None:
    async with running("nftables", 2) as world:
        world.agent.update(put(having("172.31.0.254", "10.48.0.9")))
        await world.until(lambda: "10.48.0.9 dev cali3" in sh("ip route show"))
        assert told(world, "address 172.31.0.254/32 is a gateway of this node")


def tunnelled(address: str = "", name: str = NODE) -> Update:
    number = name.removeprefix("node")
    subnets = Net.parse_interface(f"172.31.0.{number}/24"), Net.parse_interface(f"fd00:31::{number}/64")
    return put(Node(ResourceKey(Kind.NODE, name), *subnets, vxlan_ipv4=parse_address(address) if address else None))


async def test_a_tunnel_at_an_address_of_the_network_touches_nothing() -> None:
    """Of this node its device, of another one the route to it."""
    async with running("nftables", 2) as world:
        await connected(world)
        for name in ("v4", "lan", "far"):
            cidr = {"v4": "10.48.0.0/21", "lan": "172.31.0.0/24", "far": "198.51.100.0/24"}[name]
            key = ResourceKey(Kind.IP_POOL, name)
            world.agent.update(put(IPPool(key, Net.parse(cidr), 26, encapsulation=Encapsulation.VXLAN)))
        for good, bad in ((tunnelled("10.48.0.60"), NODE), (tunnelled("10.48.1.60", "node2"), "node2")):
            world.agent.update(tunnelled("10.48.0.60"))
            world.agent.update(tunnelled("10.48.1.60", "node2"))
            await world.until(lambda: "10.48.0.60/32" in sh("ip addr show") and not list(world.agent.outcome.problems))
            await world.quiet()
            before = state("nftables")
            for address in ("172.31.0.254", BROKER, "172.31.0.1"):
                world.agent.update(tunnelled(address, bad))
                await world.until(lambda address=address: told(world, address))
                await world.quiet()
                assert f"{address}/32" not in sh("ip addr show")
                assert f"\n{address} " not in "\n" + sh("ip route show proto 222")
            world.agent.update(good)
            await world.until(lambda: not list(world.agent.outcome.problems))
            await world.quiet()
            assert state("nftables") == before


async def test_a_workload_with_the_address_of_a_tunnel_of_ours_says_so() -> None:
    """The kernel tells an agent nothing of what this agent writes."""
    async with running("nftables", 2, **REFRESH_OFF) as world:
        key = ResourceKey(Kind.IP_POOL, "v4")
        world.agent.update(put(IPPool(key, Net.parse("10.48.0.0/21"), 26, encapsulation=Encapsulation.VXLAN)))
        world.agent.update(tunnelled("10.48.1.60", "node2"))
        for address in ("10.48.0.60", "10.48.0.1"):
            world.agent.update(tunnelled(address))
            await world.until(lambda address=address: f"{address}/32" in sh("ip addr show"))
            await world.quiet()
        await world.until(lambda: told(world, "address 10.48.0.1/32 is this node's own (vxlan.calico)"))
        await world.until(lambda: "10.48.0.1 dev cali1" not in sh("ip route show"))
        world.agent.update(tunnelled("10.48.0.60"))
        await world.until(lambda: "10.48.0.1 dev cali1" in sh("ip route show"))


async def test_it_follows_what_the_kernel_tells_of_addresses_and_routes() -> None:
    async with running("nftables", 2, **REFRESH_OFF) as world:
        late = having("172.31.0.253", "10.48.0.7")
        world.agent.update(put(late))
        await world.until(lambda: "172.31.0.253 dev cali3" in sh("ip route show"))
        sh("ip addr add 10.48.0.7/24 dev eth1")
        await world.until(lambda: "10.48.0.7 dev cali3" not in sh("ip route show"))
        sh("ip addr del 10.48.0.7/24 dev eth1")
        await world.until(lambda: "10.48.0.7 dev cali3" in sh("ip route show"))
        sh("ip addr add 10.48.0.7/32 dev lo")
        await world.until(lambda: "10.48.0.7 dev cali3" not in sh("ip route show"))
        sh("ip -6 route add default via fd00:31::fc dev eth0 metric 7")
        sh("ip route add 203.0.113.0/24 via 172.31.0.200 dev eth0")
        world.agent.update(put(having("172.31.0.200", "fd00:31::fc")))
        await world.until(lambda: told(world, "address 172.31.0.200/32 is a gateway of this node"))
        await world.until(lambda: told(world, "address fd00:31::fc/128 is a gateway of this node"))
        assert "cali3" not in sh("ip route show; ip -6 route show | grep -v fe80")


def prefix(value: str) -> Update:
    key = ResourceKey(Kind.FELIX_CONFIGURATION, "default")
    return put(FelixConfiguration(key, {"interfacePrefix": value}))


def in_force(world: World) -> tuple[str, ...]:
    return world.agent.settings.interface_prefix


@pytest.mark.parametrize("backend", ["nftables", "legacy", "nft"])
async def test_a_prefix_that_names_an_interface_of_the_node_is_refused(backend: str) -> None:
    rules = "nft -s list ruleset" if backend == "nftables" else f"iptables-{backend}-save | grep -v '^#\\|^:'"
    async with running(backend, 2) as world:
        before = sh(rules), state(backend)
        for value in ("cali,eth", "eth0", "cali,et"):
            world.agent.update(prefix(value))
            await world.until(
                lambda value=value: told(world, f"{value!r} names eth0, which carries the node's address")
            )
            await world.quiet()
            assert in_force(world) == ("cali",)
            assert (sh(rules), state(backend)) == before
        world.agent.update(Update(prefix("").key, None))
        await world.until(lambda: not list(world.agent.outcome.problems))
        await world.quiet()
        assert (sh(rules), state(backend)) == before


async def test_a_prefix_is_refused_from_when_on_the_node_uses_such_an_interface() -> None:
    sh("ip link add tap0 type veth peer name t0; ip link set tap0 up; ip addr add 10.7.0.1/32 dev tap0")
    async with running("nftables", 2, **REFRESH_OFF) as world:
        world.agent.update(prefix("cali,tap"))
        await world.until(lambda: in_force(world) == ("cali", "tap"))
        for command, undo in (
            ("ip addr add 10.8.0.1/24 dev tap0", "ip addr del 10.8.0.1/24 dev tap0"),
            ("ip addr add fd00:8::1/64 dev tap0 nodad", "ip addr del fd00:8::1/64 dev tap0"),
        ):
            sh(command)
            await world.until(lambda: in_force(world) == ("cali",))
            await world.until(lambda: told(world, "names tap0"))
            sh(undo)
            await world.until(lambda: in_force(world) == ("cali", "tap"))
            await world.until(lambda: not list(world.agent.outcome.problems))
        sh("ip route add default dev tap0 metric 99")
        await world.until(lambda: told(world, "names tap0, which a default route goes through"))
        await world.until(lambda: in_force(world) == ("cali",))


async def test_a_prefix_that_workloads_use_stays() -> None:
    """Rules that went from all of them because of one interface would open what was closed."""
    sh("for n in 0 1; do ip link add tap$n type veth peer name t$n; ip link set tap$n up; done")
    async with running("nftables", 2, **REFRESH_OFF) as world:
        world.agent.update(put(endpoint(7, interface="tap1")))
        world.agent.update(prefix("cali,tap"))
        await world.until(lambda: "10.48.0.7 dev tap1" in sh("ip route show"))
        sh("ip addr add 10.8.0.1/24 dev tap0; ip addr add 10.8.1.1/24 dev eth1")
        last = Net.parse_interface("10.8.1.1/24")
        await world.until(lambda: last in [one.net for one in world.agent.calculation.host.addresses])
        await world.quiet()
        assert in_force(world) == ("cali", "tap")
