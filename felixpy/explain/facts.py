"""Reads from the kernel what the walk has to know: rules of all programs, IP sets, addresses, and routes on demand.

Invariant: reads only; no module is loaded and no table comes into being by looking. What cannot be read is named in
``missing`` with what that means for the verdict.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct, field

from felixpy.calc.entries import ElementKey, SetName
from felixpy.dataplane.iptables import layout
from felixpy.dataplane.iptables.legacy import legacy_in_use
from felixpy.dataplane.iptables.nft_rules import IPTABLES_TABLES, table_names
from felixpy.dataplane.iptables.tools import Tools, find_tool, tool_name
from felixpy.dataplane.nftables import elements
from felixpy.dataplane.nftables.seen import TABLE
from felixpy.explain import nft, xtables
from felixpy.explain.packet import Packet, Ruleset
from felixpy.explain.walk import Node, Route
from felixpy.model.net import Family, format_address
from felixpy.netlink import ipset, rtnetlink
from felixpy.netlink import nftables as nfnetlink
from felixpy.netlink.lookup import look_up, open_lookup
from felixpy.netlink.message import Message, text_of
from felixpy.netlink.transport import NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkError, NetlinkSocket

PROC_SYS_NET = Path("/proc/sys/net")
LOCAL_TABLE = 255
ROUTE_KINDS = {1: "unicast", 2: "local", 3: "broadcast", 5: "multicast"}
JUDGED_SETS = (ipset.HASH_NET, ipset.HASH_NET_IFACE, ipset.HASH_IP_PORT)
_REFUSALS = {
    errno.ENETUNREACH: "no route to {destination}",
    errno.EHOSTUNREACH: "{destination} is unreachable, or forwarding is off",
    errno.EINVAL: "a blackhole route to {destination} (an address of a block of this node that no workload has),"
    " or a source that cannot come from there",
    errno.EACCES: "a prohibit route to {destination}",
    errno.EXDEV: "the reverse path filter (rp_filter): {source} does not come from {interface}",
}


class Sets(Struct):
    """IP sets by name: members of prefixes, of prefixes with interfaces, of addresses with ports; others cannot be
    judged."""

    members: dict[str, list[ipset.Member]] = field(default_factory=dict)

    def holds(self, name: str, packet: Packet, directions: str) -> bool | None:
        """Whether a set holds the packet; None for a set of a type that is not known here."""
        if name not in self.members:
            return None
        best = self._best(name, packet, directions)
        return best is not None and not best.interface.startswith("nomatch")

    def mark(self, name: str, packet: Packet, directions: str) -> tuple[int, int] | None:
        """Mark and mask of the member that holds the packet, zeros if none does; None for a set that is not known."""
        if name not in self.members:
            return None
        best = self._best(name, packet, directions)
        return (0, 0) if best is None or best.interface.startswith("nomatch") else (best.mark, best.mask)

    def _best(self, name: str, packet: Packet, directions: str) -> ipset.Member | None:
        """The most exact member that holds the packet, which may be an exception."""
        first, _, second = directions.partition(",")
        address = packet.source if first == "src" else packet.destination
        interface = packet.iif if second == "src" else packet.oif
        port = packet.source_port if second == "src" else packet.port
        best: ipset.Member | None = None
        for member in self.members[name]:
            named = member.interface.removeprefix("nomatch").strip()
            if member.protocol:
                found = (member.net.packed, member.protocol, member.port) == (address, packet.protocol, port)
            else:
                found = member.net.covers(address) and (not second or named == interface)
            if found and (best is None or member.net.length > best.net.length):
                best = member
        return best


class Locals(NamedTuple):
    """The node's own addresses, each with the indexes of its interfaces."""

    places: Mapping[bytes, set[int]]
    names: Mapping[int, str]

    def holds(self, address: bytes) -> bool:
        return address in self.places

    def holds_on(self, address: bytes, interface: str) -> bool | None:
        return any(self.names.get(index) == interface for index in self.places.get(address, ()))


class Kernel(Struct):
    """What was read. ``missing`` are sentences on what could not be."""

    family: Family
    rulesets: list[Ruleset]
    local: frozenset[bytes]
    names: dict[int, str]
    socket: NetlinkSocket
    missing: list[str]
    workloads: Mapping[bytes, str]
    """The interface of each address that felixpy's sets know, whether it exists or not."""

    @property
    def node(self) -> Node:
        return Node(self.rulesets, self.route, self.forwarding, self.masquerade_source)

    def index(self, interface: str) -> int:
        return next((index for index, name in self.names.items() if name == interface), 0)

    def lost(self, packet: Packet) -> list[str]:
        """Addresses of a packet that are workloads' of this node, on interfaces that do not exist."""
        found = ((address, self.workloads.get(address, "")) for address in (packet.source, packet.destination))
        return [
            f"{format_address(address)} is the address of a workload on {interface}, an interface that does not exist"
            for address, interface in found
            if interface and not self.index(interface)
        ]

    def route(self, packet: Packet) -> Route:
        """The kernel's route for a packet: input for one with an input interface, else output."""
        try:
            found = look_up(
                self.socket,
                packet.destination,
                source=packet.source if packet.iif or packet.source in self.local else b"",
                input_interface=0 if packet.iif in ("", "lo") else self.index(packet.iif),
                mark=packet.mark,
            )
        except NetlinkError as error:
            words = _REFUSALS.get(error.errno or 0, f"{error.strerror}")
            return Route(failure=words.format(
                source=format_address(packet.source), destination=format_address(packet.destination),
                interface=packet.iif,
            ))  # fmt: skip
        if found.kind not in (1, 2):
            return Route(
                failure=f"a {ROUTE_KINDS.get(found.kind, f'type {found.kind}')} destination, which is not followed"
            )
        interface = self.names.get(found.interface, str(found.interface))
        if packet.family is Family.V6 and found.interface == self.index("lo") and found.kind == 1:
            return Route(failure=f"no route to {format_address(packet.destination)}")
        return Route(interface, found.gateway, found.source, found.kind == rtnetlink.RTN_LOCAL)

    def interface_of(self, source: bytes) -> str:
        """The interface that leads to a source, and so the one it should come from; empty for none."""
        try:
            found = look_up(self.socket, source)
        except NetlinkError:
            return ""
        return self.names.get(found.interface, "") if found.kind == 1 else ""

    def forwarding(self, interface: str) -> bool:
        """Whether the kernel forwards what comes in there. IPv6 knows one switch for all."""
        where = f"ipv4/conf/{interface}" if self.family is Family.V4 else "ipv6/conf/all"
        try:
            return (PROC_SYS_NET / where / "forwarding").read_text().strip() == "1"
        except OSError:
            return True

    def masquerade_source(self, packet: Packet) -> bytes:
        """The address that masquerading gives: the kernel's own choice for that destination and interface."""
        try:
            return look_up(self.socket, packet.destination, output_interface=self.index(packet.oif)).source
        except NetlinkError:
            return b""


@contextlib.asynccontextmanager
async def read_kernel(family: Family) -> AsyncIterator[Kernel]:
    """Everything that the walk needs, for one family.

    Raises:
        OSError: routing or links cannot be read (no rights).
        FilterError: a tool did not end.
    """
    missing: list[str] = []
    names = _link_names()
    places = _local_addresses(family)
    local = frozenset(places)
    sets = _read_sets(family, missing)
    rulesets = await _read_rules(family, sets, Locals(places, names), missing)
    socket = open_lookup()
    try:
        yield Kernel(family, rulesets, local, names, socket, missing, _workloads(family, sets))
    finally:
        socket.close()


def _link_names() -> dict[int, str]:
    socket = NetlinkSocket(NETLINK_ROUTE)
    try:
        messages = socket.dump_all(rtnetlink.link_dump_request())
    finally:
        socket.close()
    links = map(rtnetlink.decode_link, messages)
    return {link.ifindex: link.name for link in links}


def _local_addresses(family: Family) -> dict[bytes, set[int]]:
    """Addresses of this node with their interfaces: the kernel's table ``local``, but not its broadcasts."""
    socket = NetlinkSocket(NETLINK_ROUTE)
    try:
        messages = dump_table(socket, family, LOCAL_TABLE)
    finally:
        socket.close()
    decoded = filter(None, map(rtnetlink.decode_route, messages))
    found: dict[bytes, set[int]] = {}
    for key, route in decoded:
        if route.type == 2:
            found.setdefault(key.destination.packed, set()).add(route.interface)
    return found


def dump_table(socket: NetlinkSocket, family: Family, table: int) -> list[Message]:
    """Routes of one table; none if nothing has made it yet.

    Raises:
        NetlinkError: the kernel refused.
    """
    try:
        return socket.dump_all(rtnetlink.route_dump_request(family, table))
    except NetlinkError as error:
        if error.errno != errno.ENOENT:
            raise
        return []


def _read_sets(family: Family, missing: list[str]) -> Sets:
    sets = Sets()
    socket = NetlinkSocket(NETLINK_NETFILTER)
    try:
        for message in socket.dump_all(ipset.list_headers()):
            header = ipset.decode_header(message)
            if header and header.family == family and header.type in JUDGED_SETS:
                members = socket.dump_all(ipset.list_members(header.name))
                sets.members[header.name] = [one for each in members for one in ipset.decode_members(each)]
    except NetlinkError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT):
            missing.append(f"IP sets cannot be read ({error}); rules that use them are not judged")
    finally:
        socket.close()
    return sets


def _workloads(family: Family, sets: Sets) -> dict[bytes, str]:
    """Addresses and interfaces of our pair set, of whichever back-end has one."""
    name = SetName.FROM_WORKLOAD
    found = {one.net.packed: one.interface for one in sets.members.get(layout.set_name(family, name), ())}
    with contextlib.closing(NetlinkSocket(NETLINK_NETFILTER)) as socket, contextlib.suppress(NetlinkError):
        for message in socket.dump_all(nfnetlink.get_elements(family, TABLE, name)):
            for key in elements.decode(name, family, nfnetlink.decode_elements(message)):
                if isinstance(key, ElementKey):
                    found[key.net.packed] = key.interface
    return found


def variants_in_use(family: Family) -> dict[str, bool]:
    """Which iptables variants hold tables; to ask the tools of another one would bring its tables into being.

    Raises:
        OSError: the kernel's nftables cannot be asked.
    """
    with contextlib.closing(NetlinkSocket(NETLINK_NETFILTER)) as socket:
        tables = table_names(socket, family)
    return {"legacy": legacy_in_use(family), "nft": not IPTABLES_TABLES.isdisjoint(tables)}


async def _read_rules(family: Family, sets: Sets, local: Locals, missing: list[str]) -> list[Ruleset]:
    tools = Tools()
    rulesets: list[Ruleset] = []
    by_iptables: set[str] = set()
    for variant, in_use in variants_in_use(family).items():
        name = tool_name(family, variant, "save")
        if not in_use:
            continue
        if find_tool(name) is None:
            missing.append(f"rules of iptables-{variant} exist, but {name} is not installed: they are not judged")
            continue
        program = name.removesuffix("-save")
        finished = await tools.run(name)
        if finished.code:
            missing.append(f"{name} failed ({finished.error}): its rules are not judged")
        found = xtables.parse(finished.output, program, sets, local.holds, local.holds_on)
        rulesets += found
        if variant == "nft":
            by_iptables = {ruleset.name.rsplit(" ", 1)[-1] for ruleset in found}
    rulesets += await _read_nft(family, by_iptables, local, missing, tools)
    return rulesets


async def _read_nft(
    family: Family, by_iptables: set[str], local: Locals, missing: list[str], tools: Tools
) -> list[Ruleset]:
    if find_tool("nft") is None:
        missing.append("the program nft is not installed: rules of nftables are not judged (apt install nftables)")
        return []
    finished = await tools.run("nft", "-n", "-j", "list", "ruleset")
    if finished.code:
        missing.append(f"nft list ruleset failed ({finished.error}): rules of nftables are not judged")
        return []
    prefix = "ip" if family is Family.V4 else "ip6"
    for name in nft.other_families(finished.output):
        missing.append(f"the nftables table {name} works at a hook that is not followed")
    skipped = {(prefix, name) for name in by_iptables}
    interfaces = _read_interfaces(finished.output)
    return nft.parse(finished.output, family, local.holds, skipped, interfaces, local.holds_on)


def _read_interfaces(text: str) -> dict[nft.SetPlace, list[str]]:
    """Members of sets of interfaces that nft could not print, from the kernel; without those that cannot be read."""
    found: dict[nft.SetPlace, list[str]] = {}
    with contextlib.closing(NetlinkSocket(NETLINK_NETFILTER)) as socket:
        for place in nft.nameless(text):
            family, table, name = place
            if family not in nft.FAMILIES:
                continue  # such a rule stays in doubt
            with contextlib.suppress(NetlinkError):
                datagrams = socket.dump_all(nfnetlink.get_elements(nft.FAMILIES[family], table, name))
                members = [one for each in datagrams for one in nfnetlink.decode_elements(each)]
                found[place] = [text_of(one.key) for one in members]
    return found
