"""Somebody else changes the kernel: it is put right as soon as the kernel tells, or at the next full comparison."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from felixpy.dataplane.apply import Dataplane
from felixpy.dataplane.backend import Backend
from felixpy.dataplane.iptables.legacy import legacy_tables_of
from felixpy.demo.patience import Patience
from felixpy.model.net import FAMILIES, Family
from tests.drift.world import build_links, running, sh
from tests.netns import enter_new_network, enter_private_namespaces

ROUTING = {
    "v4 route deleted": "ip route del 10.48.0.1/32",
    "v6 route deleted": "ip -6 route del fd00:48::1/128",
    "v4 route replaced": "ip route replace 10.48.0.1/32 dev cali2 proto static",
    "v6 route replaced": "ip -6 route replace fd00:48::1/128 dev cali2 proto static metric 1024",
    "block route deleted": "ip route del 10.48.1.0/26",
    "blackhole deleted": "ip -6 route del blackhole fd00:48::/122",
    "stray route of ours": "ip route add 10.99.0.0/24 via 172.31.0.9 proto 222",
    "neighbour deleted": "ip neigh del 10.48.0.1 dev cali1",
    "neighbour changed": "ip neigh replace 10.48.0.2 dev cali2 lladdr 02:00:00:00:00:99 nud permanent",
    "neighbour v6 deleted": "ip -6 neigh del fd00:48::1 dev cali1",
    "forwarding off": "echo 0 > /proc/sys/net/ipv4/conf/cali1/forwarding",
    "proxy_arp off": "echo 0 > /proc/sys/net/ipv4/conf/cali1/proxy_arp",
    "rp_filter changed": "echo 2 > /proc/sys/net/ipv4/conf/cali1/rp_filter",
    "v6 forwarding off": "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding",
    "ip_forward off": "echo 0 > /proc/sys/net/ipv4/ip_forward",
}
UNTOLD_SETTINGS = {
    "route_localnet off": "echo 0 > /proc/sys/net/ipv4/conf/cali1/route_localnet",
    "accept_ra on": "echo 1 > /proc/sys/net/ipv6/conf/cali1/accept_ra",
    "proxy_delay back": "echo 80 > /proc/sys/net/ipv4/neigh/cali1/proxy_delay",
}
NFTABLES = {
    "element deleted": "nft delete element ip felixpy from-workload '{ 10.48.0.1 . \"cali1\" }'",
    "v6 element deleted": "nft delete element ip6 felixpy to-workload '{ fd00:48::1 . \"cali1\" }'",
    "foreign element": "nft add element ip felixpy to-workload '{ 10.9.9.9 . \"cali1\" }'",
    "pool deleted": "nft delete element ip felixpy pools '{ 10.48.0.0/21 }'",
    "rule added": "nft insert rule ip felixpy filter-FORWARD accept",
    "chain flushed": "nft flush chain ip6 felixpy raw-from-workload",
    "rule body changed": (
        "nft replace rule ip felixpy raw-from-workload handle "
        "$(nft -a list chain ip felixpy raw-from-workload | sed -n 's/.*spoofed source.*handle //p')"
        " accept comment '\"spoofed source or unknown workload interface\"'"
    ),
    "table deleted": "nft delete table ip felixpy",
    "everything flushed": "nft flush ruleset",
}
IPTABLES_NFT = {
    "jump deleted": "iptables-nft -t raw -D PREROUTING -m comment --comment felixpy -j fpy-PREROUTING",
    "chain flushed": "ip6tables-nft -F fpy-forward-to",
    "rule body changed": "iptables-nft -t nat -R fpy-nat-outgoing 1 -j RETURN",
    "everything flushed": "nft flush ruleset",
    # The kernel tells of the rules, but not that the sets went with them. It lets go of sets a little after the rules.
    "sets destroyed too": "nft flush ruleset; until ipset destroy 2>/dev/null; do sleep 0.05; done",
}
IPTABLES_LEGACY = {
    "jump deleted": "iptables-legacy -D FORWARD -m comment --comment felixpy -j fpy-FORWARD",
    "chain flushed": "ip6tables-legacy -t raw -F fpy-from-workload",
    "rule body of another size": "iptables-legacy -t nat -R fpy-nat-outgoing 1 -j RETURN",
    "rule added": "ip6tables-legacy -I fpy-FORWARD -j ACCEPT",
    "table flushed": "iptables-legacy -F",
}
UNTOLD = {
    "nft": {
        "member deleted": "ipset del fpy4-from-workload 10.48.0.1,cali1",
        "foreign member": "ipset add fpy6-to-workload fd00:9::9,cali1",
        "set flushed": "ipset flush fpy4-pools",
    },
    "legacy": {
        "member deleted": "ipset del fpy6-from-workload fd00:48::1,cali1",
        "jump deleted": "iptables-legacy -D FORWARD -m comment --comment felixpy -j fpy-FORWARD",
        "chain flushed": "ip6tables-legacy -t raw -F fpy-from-workload",
        "rule body changed": "iptables-legacy -t nat -R fpy-nat-outgoing 1 -j RETURN",
    },
}


@pytest.fixture(autouse=True)
def network() -> None:
    enter_private_namespaces()
    enter_new_network()
    build_links(3)


def kernel(backend: str) -> str:
    """Everything that matters, as the tools print it; counters and volatile fields left out."""
    parts = [
        sh("ip -N route show table main; ip -N -6 route show table main | grep -v 'proto 2 \\|fe80'"),
        sh("ip neigh show nud permanent | sort; ip -6 neigh show nud permanent | sort"),
        sh("cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding"),
        sh("grep -H . /proc/sys/net/ipv4/conf/cali1/{forwarding,proxy_arp,rp_filter,route_localnet} || true"),
        sh("cat /proc/sys/net/ipv6/conf/cali1/accept_ra /proc/sys/net/ipv4/neigh/cali1/proxy_delay"),
    ]
    if backend == "nftables":
        parts.append(sh("nft -s list table ip felixpy; nft -s list table ip6 felixpy"))
    else:
        save = f"iptables-{backend}-save; ip6tables-{backend}-save"
        parts.append(sh(f"({save}) | grep -v '^#' | sed 's/\\[.*\\]//'; ipset save | sed 's/ initval .*//' | sort"))
    return "\n".join(parts)


async def told(backend: str, commands: dict[str, str]) -> dict[str, float]:
    """Tamper by one command after the other; each is mended without a full comparison. Milliseconds by command."""
    took = {}
    names = ("Route", "Interface", "NFTables", "Iptables", "Ipsets")
    off = {f"{name}RefreshInterval": "0" for name in names}
    async with running(backend, **off) as world:
        before = kernel(backend)
        for what, command in commands.items():
            drifted = sum(table.drifted for table in world.agent.dataplane.tables())
            sh(command)
            started = time.perf_counter()
            await world.until(
                lambda seen=drifted: sum(table.drifted for table in world.agent.dataplane.tables()) > seen
            )
            await world.quiet()
            took[what] = round((time.perf_counter() - started) * 1000, 1)
            patience = Patience(30)
            while (after := await asyncio.to_thread(kernel, backend)) != before and not patience.over():
                pass  # the other family's rules are told of, and mended, a little later
            assert after == before, what
    return took


def test_routes_neighbours_and_settings_are_mended_when_the_kernel_tells() -> None:
    print(asyncio.run(told("nftables", ROUTING)))


def test_nftables_is_mended_when_the_kernel_tells() -> None:
    print(asyncio.run(told("nftables", NFTABLES)))


async def switched_off() -> None:
    async with running("nftables", NFTablesRefreshInterval="0", RouteRefreshInterval="0") as world:
        before = kernel("nftables")
        for family in ("ip", "ip6"):
            sh(f"nft 'add table {family} felixpy {{ flags dormant ; }}'")
            assert "dormant" in kernel("nftables")
            patience = Patience(30)
            while await asyncio.to_thread(kernel, "nftables") != before:
                assert not patience.over()
        await world.quiet()


def test_a_table_that_was_switched_off_is_switched_on_when_the_kernel_tells() -> None:
    """All rules stand in it, and none is looked at."""
    asyncio.run(switched_off())


def test_rules_of_iptables_nft_are_mended_when_the_kernel_tells() -> None:
    print(asyncio.run(told("nft", IPTABLES_NFT)))


def test_rules_of_iptables_legacy_are_mended_by_the_sizes_of_the_tables() -> None:
    """Nobody tells, and no full comparison finds it."""
    print(asyncio.run(told("legacy", IPTABLES_LEGACY)))


async def looked_at() -> None:
    names = ("Route", "Interface", "Iptables", "Ipsets")
    async with running("legacy", **{f"{name}RefreshInterval": "0" for name in names}) as world:
        filters = [tables.filter for tables in world.agent.dataplane.filters.values()]
        tables = sum(len(legacy_tables_of(family)) for family in FAMILIES)

        def asks() -> int:
            return sum(one.sizes.asks for one in filters)  # type: ignore[attr-defined]

        def reads() -> int:
            return sum(one.counts().reads for one in filters)

        while True:  # what was written is read once more; then it is quiet
            seen, so_far = asks(), reads()
            await world.until(lambda seen=seen: asks() >= seen + 5 * tables)
            if reads() == so_far:
                break
        seen, chains = asks(), world.agent.dataplane.filters[Family.V6].chains
        drifted = chains.drifted
        sh("ip6tables-legacy -t raw -F fpy-from-workload")
        await world.until(lambda: chains.drifted > drifted)
        await world.quiet()
        assert chains.drifted == drifted + 1, "one chain"
        assert reads() > so_far
        assert not world.agent.comparisons.is_asked
        print(asks() - seen, "sizes asked until it was mended")


def test_a_quiet_node_of_iptables_legacy_asks_sizes_and_reads_nothing() -> None:
    asyncio.run(looked_at())


WHILE_IT_STARTS = {
    "read": "ip -6 route del fd00:48::1;"
    " ip link del cali2; ip link add cali2 type veth peer name peer2; ip link set cali2 up; ip link set peer2 up",
    "read_filters": "nft delete element ip felixpy from-workload { 10.48.0.3 . cali3 };"
    " nft flush chain ip6 felixpy raw-PREROUTING",
}
"""What happens when the kernel has just been read: routes, links and settings; packet filters."""


async def changed_while_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("Route", "Interface", "NFTables", "Iptables", "Ipsets")
    off = {f"{name}RefreshInterval": "0" for name in names}
    async with running("nftables", **off):
        before = kernel("nftables")
    waiting = dict(WHILE_IT_STARTS)
    for name in WHILE_IT_STARTS:
        read = getattr(Dataplane, name)

        async def read_and_change(self: Dataplane, name: str = name, read: Any = read) -> Any:
            found = await read(self)
            if command := waiting.pop(name, ""):
                sh(command)
            return found

        monkeypatch.setattr(Dataplane, name, read_and_change)
    async with running("nftables", **off):
        assert not waiting
        patience = Patience(30)
        while (after := await asyncio.to_thread(kernel, "nftables")) != before and not patience.over():
            pass
        assert after == before


def test_what_changes_while_an_agent_starts_is_mended_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(changed_while_it_starts(monkeypatch))


async def untold_while_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("Route", "Interface", "NFTables", "Iptables", "Ipsets")
    off = {f"{name}RefreshInterval": "0" for name in names}
    async with running("nftables", **off):
        before = kernel("nftables")
    commands = list(UNTOLD_SETTINGS.values())
    read = Dataplane.read

    async def read_and_change(self: Dataplane) -> Any:
        found = await read(self)
        while len(commands) > 1:
            sh(commands.pop())
        return found

    sh(commands.pop())
    assert kernel("nftables") != before
    monkeypatch.setattr(Dataplane, "read", read_and_change)
    async with running("nftables", **off):
        patience = Patience(30)
        while await asyncio.to_thread(kernel, "nftables") != before:
            assert not patience.over()


def test_settings_that_the_kernel_does_not_tell_of_are_right_soon_after_a_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One is changed before the agent starts, the others just after it has read the kernel."""
    asyncio.run(untold_while_it_starts(monkeypatch))


async def untold(backend: str, commands: dict[str, str]) -> None:
    """Tamper where the kernel tells nothing; a full comparison must find it."""
    async with running(backend) as world:
        before = kernel(backend)
        for what, command in commands.items():
            sh(command)
            assert kernel(backend) != before, what
            world.agent.comparisons.ask()
            patience = Patience(30)
            while await asyncio.to_thread(kernel, backend) != before:  # the agent's loop must go on meanwhile
                assert not patience.over(), what


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_what_the_kernel_does_not_tell_is_found_by_the_full_comparison(backend: str) -> None:
    asyncio.run(untold(backend, {**UNTOLD[backend], **UNTOLD_SETTINGS}))


def test_what_others_do_to_their_rules_never_changes_the_back_end_of_a_running_agent() -> None:
    """``Auto`` was decided at the start; an address that comes is no reason to decide anew."""

    async def scenario() -> None:
        async with running("nft", 1, IptablesBackend="Auto") as world:
            agent = world.agent
            chosen = agent.backend
            other = "legacy" if chosen is Backend.NFT_VARIANT else "nft"
            sh(f"for port in 1 2 3; do iptables-{other} -A INPUT -p tcp --dport $port -j DROP; done")
            sh("ip addr add 192.0.2.9/24 dev eth0")
            await world.until(lambda: "192.0.2.9/24" in [str(one.net) for one in agent.calculation.host.addresses])
            await world.quiet()
            await asyncio.sleep(0.1)
            assert (agent.backend, agent.is_ready()[0]) == (chosen, True)

    asyncio.run(scenario())
