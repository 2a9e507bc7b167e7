"""What a Calico Felix left on a node: routes, rules, sets. Read, adopted or removed; never made.

Ownership as Felix has it: routes with its protocol, iptables chains whose names begin with ``cali`` and rules with its
comments, IP sets ``cali…``, nft tables ``calico`` and ``calico-arp``. Invariant: rules of others keep their bytes. Must
never be used while a Felix runs, which would write all of it anew (``running``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct, field

from felixpy.calc.entries import MAIN_TABLE
from felixpy.dataplane.iptables.save_text import save_lines
from felixpy.dataplane.iptables.tools import Tools, find_tool, tool_name
from felixpy.dataplane.links import Links
from felixpy.model.net import FAMILIES, Family
from felixpy.netlink import ipset, rtnetlink
from felixpy.netlink import nftables as nft
from felixpy.netlink.expressions import NFPROTO_ARP
from felixpy.netlink.rtnetlink import KernelRoute, KernelRouteKey
from felixpy.netlink.transport import NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkSocket

PROTOCOLS = (80, 3)
"""``proto`` of its routes: its own default, and ``boot``, which calico-node's environment sets."""
TABLES = {Family.V4: "calico", Family.V6: "calico", NFPROTO_ARP: "calico-arp"}
_CHAIN = re.compile(r"cali(?:-|[a-z]{2}-)")
_COMMENT = re.compile(r'--comment "?cali:')
_TARGET = re.compile(r" -[jg] (\S+)")
VARIANTS = ("nft", "legacy")


class LeftTable(NamedTuple):
    """An nft table of Felix's; it has one for ARP with iptables, too."""

    family: int
    name: str

    def __str__(self) -> str:
        return f"nft table {'ARP' if self.family == NFPROTO_ARP else Family(self.family)} {self.name}"


class LeftRoute(NamedTuple):
    """A route of Felix's, and the interface's name (empty for a blackhole)."""

    key: KernelRouteKey
    route: KernelRoute
    interface: str


class Leftovers(Struct):
    """All that a Felix left here. ``rules``: restore text by (family, variant), and what it removes, in words."""

    routes: list[LeftRoute] = field(default_factory=list)
    rules: dict[tuple[Family, str], str] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    sets: list[str] = field(default_factory=list)
    tables: list[LeftTable] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.routes or self.rules or self.sets or self.tables)


def running(proc: Path = Path("/proc")) -> str:
    """The command line of a Felix that runs in this network namespace; empty if none does."""
    ours = (proc / "self/ns/net").readlink()
    for folder in proc.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if (folder / "ns/net").readlink() != ours:
                continue
        except OSError:  # it is gone, or not ours to look at
            continue
        name = words[0].rpartition(b"/")[2]
        if name == b"calico-felix" or (name == b"calico-node" and b"-felix" in words):
            return b" ".join(words).decode(errors="replace").strip()
    return ""


async def read(links: Links, prefixes: Iterable[str], tools: Tools) -> Leftovers:
    """Look at everything, and change nothing.

    Raises:
        OSError: the kernel refused.
        FilterError: an iptables tool did not end.
    """
    found = Leftovers(routes=_routes(links, tuple(prefixes)))
    netfilter = NetlinkSocket(NETLINK_NETFILTER)
    try:
        headers = [ipset.decode_header(message) for message in netfilter.dump_all(ipset.list_headers())]
        found.sets = sorted(one.name for one in headers if one is not None and one.name.startswith("cali"))
        for table in (LeftTable(family, name) for family, name in TABLES.items()):
            messages = netfilter.dump_all(nft.dump(nft.GETTABLE, table.family))
            if table.name in (nft.decode_table(one)[0] for one in messages):
                found.tables.append(table)
    finally:
        netfilter.close()
    for family in FAMILIES:
        for variant in VARIANTS:
            name = tool_name(family, variant, "save")
            if find_tool(name):
                text, removed = removal((await tools.run(name)).output)
                if text:
                    found.rules[family, variant] = text
                    found.removed += [f"iptables-{variant} {family}: {line}" for line in removed]
    return found


def _routes(links: Links, prefixes: tuple[str, ...]) -> list[LeftRoute]:
    found = []
    netlink = NetlinkSocket(NETLINK_ROUTE)
    try:
        for family in FAMILIES:
            for protocol in PROTOCOLS:
                request = rtnetlink.route_dump_request(family, MAIN_TABLE, protocol=protocol)
                for key, route in rtnetlink.decode_routes(netlink.dump_all(request)):
                    interface = (links.name_of(route.interface) or "") if route.interface else ""
                    if protocol == PROTOCOLS[0] or interface.startswith(prefixes):
                        found.append(LeftRoute(key, route, interface))
    finally:
        netlink.close()
    return found


def removal(saved: str) -> tuple[str, list[str]]:
    """What ``-restore --noflush`` reads to take Felix's part out of what ``-save`` printed, and it in words. Pure."""
    table, blocks, words = "", [], []
    rules: list[str] = []
    chains: list[str] = []

    def close() -> None:
        if rules or chains:
            declared = [f":{chain} - [0:0]" for chain in chains]  # flushes, so that none names another
            blocks.append("\n".join([f"*{table}", *rules, *declared, *(f"-X {chain}" for chain in chains), "COMMIT"]))
            words.extend([f"{table} chain {chain}" for chain in chains])
            words.extend([f"{table} rule {rule.removeprefix('-D ')}" for rule in rules])
        rules.clear()
        chains.clear()

    for line in save_lines(saved):
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith(":") and _CHAIN.match(line[1:]):
            chains.append(line[1:].split(" ", 1)[0])
        elif line.startswith("-A ") and not _CHAIN.match(line[3:]):
            target = _TARGET.search(line)
            if _COMMENT.search(line) or (target and _CHAIN.match(target[1])):
                rules.append(f"-D {line[3:]}")
        elif line.startswith("COMMIT"):
            close()
    return "".join(f"{block}\n" for block in blocks), words


def adopt(routes: Iterable[LeftRoute], protocol: int) -> list[str]:
    """Make the routes ours, each by one replacement: no packet meets a gap. Returns what was refused.

    Raises:
        OSError: the kernel did not answer.
    """
    netlink = NetlinkSocket(NETLINK_ROUTE)
    refused = []
    try:
        for left in routes:
            request = rtnetlink.route_request(left.key, left.route._replace(protocol=protocol))
            refused += [f"route {left.key.destination}: {why}" for why in netlink.transact([request]).values()]
    finally:
        netlink.close()
    return refused


async def remove_rules(found: Leftovers, tools: Tools) -> list[str]:
    """Take Felix's rules and sets out, each table in one commit. Returns what was refused.

    Raises:
        OSError, FilterError: the kernel or a tool did not answer.
    """
    refused = []
    for (family, variant), text in found.rules.items():
        done = await tools.run(tool_name(family, variant, "restore"), "--noflush", "--wait", stdin=text)
        if done.code:
            refused.append(f"iptables-{variant} {family}: {done.error}")
    netlink = NetlinkSocket(NETLINK_NETFILTER)
    try:
        for table in found.tables:
            requests = nft.batch([nft.delete_table(*table)])
            refused += [f"{table}: {why}" for why in netlink.transact(requests, batch=True).values()]
        for name in found.sets:
            refused += [f"IP set {name}: {why}" for why in netlink.transact([ipset.destroy(name)]).values()]
    finally:
        netlink.close()
    return refused
