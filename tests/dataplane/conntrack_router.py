"""A router with real hosts around it, and a cleaner that is watched: what the tests of released addresses share.

The router is the calling test's own network, because the cleaner runs in the test's process.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from felixpy.dataplane.conntrack import ConntrackCleaner
from felixpy.demo.host import PORT, Host
from felixpy.demo.patience import limit
from felixpy.model.net import FAMILIES, Family, parse_address
from felixpy.netlink.transport import NetlinkSocket
from tests.netlink.conntrack_lab import CountingSocket

PATIENCE_S = 30.0
HOSTS = ("a", "b", "out")
V4 = {name: f"10.{number}.0.2" for number, name in enumerate(HOSTS, 1)}
V6 = {name: f"fd00:{number}::2" for number, name in enumerate(HOSTS, 1)}
ADDRESSES = {name: {Family.V4: V4[name], Family.V6: V6[name]} for name in HOSTS}
ROUTER_OUT = {Family.V4: "10.3.0.1", Family.V6: "fd00:3::1"}
RULES = f"""
table inet t {{
  set gone4 {{ type ipv4_addr; }}
  set gone6 {{ type ipv6_addr; }}
  chain forward {{
    type filter hook forward priority 0; policy drop;
    ct state established accept
    ip saddr @gone4 drop
    ip6 saddr @gone6 drop
    accept
  }}
  chain to_a {{
    type nat hook prerouting priority -100;
    iifname "out" tcp dport 8080 dnat ip to {V4["a"]}:{PORT}
    iifname "out" tcp dport 8080 dnat ip6 to [{V6["a"]}]:{PORT}
  }}
  chain nat_out {{
    type nat hook postrouting priority 100;
  }}
}}
"""


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        await test

    asyncio.run(bounded())


def nft(rules: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=rules, check=True, text=True)


def ip(commands: Sequence[str]) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), check=True, text=True)


def masquerade(on: bool) -> None:
    nft("flush chain inet t nat_out\n" + ('add rule inet t nat_out oifname "out" masquerade\n' if on else ""))


def sysctl(name: str, value: int) -> None:
    Path(f"/proc/sys/net/{name}").write_text(f"{value}\n")


@contextlib.asynccontextmanager
async def router() -> AsyncIterator[dict[str, Host]]:
    """Hosts a, b and out, each on a cable of its own to this test's network, which forwards and masquerades to out."""
    for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        sysctl(name, 1)
    for name in ("ipv4/conf/all/rp_filter", "ipv4/conf/default/rp_filter"):
        sysctl(name, 0)
    hosts = {name: await Host.start(name, ADDRESSES[name]) for name in HOSTS}
    try:
        await asyncio.gather(*(_plug(host) for host in hosts.values()))
        nft(RULES)
        masquerade(True)
        yield hosts
    finally:
        await asyncio.gather(*(host.close() for host in hosts.values()))


async def _plug(host: Host) -> None:
    gateways = {Family.V4: V4[host.name][:-1] + "1", Family.V6: V6[host.name][:-1] + "1"}
    commands = [
        f"link add name {host.name} type veth peer name eth0 netns {host.pid}",
        f"addr add {gateways[Family.V4]}/24 dev {host.name}",
        f"addr add {gateways[Family.V6]}/64 dev {host.name} nodad",
        f"link set dev {host.name} up",
    ]
    ip(commands)
    inside = [
        f"addr add {V4[host.name]}/24 dev eth0",
        f"addr add {V6[host.name]}/64 dev eth0 nodad",
        "link set eth0 up",
    ]
    await host.ip([*inside, *(f"route add default via {gateway}" for gateway in gateways.values())])
    for family in FAMILIES:
        await host.listen(host.address(family))


class Watched:
    """A cleaner with what it said."""

    def __init__(self, socket: NetlinkSocket | None = None) -> None:
        self.socket = socket or CountingSocket()
        self.released: list[frozenset[bytes]] = []
        self.warnings: list[str] = []
        self.cleaner = ConntrackCleaner(self.socket, self.released.append, self.warnings.append)

    def release(self, *addresses: str) -> None:
        self.cleaner.release(map(parse_address, addresses))

    async def freed(self, *addresses: str) -> None:
        """Wait until none of the addresses is being released."""
        await until(lambda: not any(self.cleaner.is_releasing(parse_address(address)) for address in addresses))


async def until(condition: Callable[[], object]) -> None:
    async with limit(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def watched(socket: NetlinkSocket | None = None) -> AsyncIterator[Watched]:
    one = Watched(socket)
    try:
        yield one
    finally:
        one.cleaner.close()


def packed(*addresses: str) -> frozenset[bytes]:
    return frozenset(map(parse_address, addresses))
