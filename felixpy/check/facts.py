"""Reads what the checks judge. Each fact stands alone: one that cannot be read stays None and is named in ``unread``.

Invariant: reads only; loads no module, writes no file. To other nodes it sends echo requests (``path_mtu``).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from msgspec import Struct, field
from msgspec.structs import replace

from felixpy.calc.entry_settings import EntrySettings
from felixpy.calc.host import Host, HostAddress
from felixpy.calc.mtu import OWN_IPIP, Tunnel, device_mtu
from felixpy.calc.overlay import DEVICES
from felixpy.calc.underlay import CROSS_SUBNET, TUNNELS, Way
from felixpy.check.path_mtu import Path as NodePath
from felixpy.check.path_mtu import ask_paths
from felixpy.config import LiveSettings, Settings, SettingsSource
from felixpy.dataplane.devices import ALIAS
from felixpy.dataplane.fdb import VXLAN_DEVICES
from felixpy.dataplane.host import is_host_interface, read_host
from felixpy.dataplane.iptables.detect import Facts as FilterFacts
from felixpy.dataplane.iptables.detect import gather
from felixpy.dataplane.links import Links
from felixpy.dataplane.packet_filter import FilterError
from felixpy.dataplane.routes import Ways
from felixpy.dataplane.wireguard_channel import read_device
from felixpy.explain.facts import dump_table, read_kernel
from felixpy.explain.packet import Ruleset
from felixpy.model.net import FAMILIES, Family, Net, parse_address
from felixpy.model.resources import FelixConfiguration, IPPool, Node
from felixpy.netlink import ipset, rtnetlink
from felixpy.netlink import nftables as nft
from felixpy.netlink.inventory import read_advertised_default_interfaces
from felixpy.netlink.lookup import look_up, open_lookup
from felixpy.netlink.transport import NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkError, NetlinkSocket
from felixpy.netlink.tunnels import decode_device, device_query
from felixpy.netlink.wireguard import WireGuardDevice
from felixpy.sources import Source, SyncState, SyncStatus
from felixpy.sources.once import read_once

PROC_SYS_NET = Path("/proc/sys/net")
KUBERNETES_MANIFESTS = Path("/etc/kubernetes/manifests")
XTABLES_LOCK = Path("/run/xtables.lock")
WORKLOAD_GATEWAY = parse_address("169.254.1.1")
MAX_PEERS = 1000
CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13}
BIRD_PROTOCOL = 12
T = TypeVar("T")


class Stream(Struct):
    """What the source delivers: how complete, and the objects that checks need."""

    status: SyncStatus
    pools: list[IPPool] = field(default_factory=list)
    nodes: dict[str, Node] = field(default_factory=dict)
    configurations: list[FelixConfiguration] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)


class Facts(Struct):
    """Everything that was found; None: could not be read."""

    settings: Settings = field(default_factory=Settings)  # in force, with those of the stream
    sysctls: dict[str, str] = field(default_factory=dict)  # path under /proc/sys/net → value
    sysctls_writable: bool = False
    ipv6: bool = True
    capabilities: frozenset[str] = frozenset()
    lock_writable: bool = True
    lock_fault: str = ""
    addresses: tuple[HostAddress, ...] | None = None  # but for those of tunnels' devices
    host: Host = field(default_factory=Host)  # the same as the calculation has it
    links: dict[str, bool] = field(default_factory=dict)  # name → up
    mtus: dict[str, int] = field(default_factory=dict)
    unsigned_devices: list[str] = field(default_factory=list)  # under names of our VXLAN devices, not signed as ours
    default_routes: dict[Family, str] = field(default_factory=dict)  # family → interface
    advertised: list[str] = field(default_factory=list)  # interfaces of default routes by router advertisement
    workload_gateway: str = ""  # interface that leads to 169.254.1.1
    bird_routes: int = 0
    filter: FilterFacts | None = None
    rulesets: dict[Family, list[Ruleset]] = field(default_factory=dict)
    kernel_parts: dict[str, bool] = field(default_factory=dict)  # nf_tables, ip_set, nf_conntrack → answers
    peers: dict[str, dict[Family, str]] = field(default_factory=dict)  # node → family → interface, empty: no route
    paths: list[NodePath] = field(default_factory=list)  # to other nodes, for packets as large as workloads' become
    stream: Stream | None = None
    service_cidrs: tuple[Net, ...] = ()  # of Kubernetes, where its control plane runs on this node
    cluster_cidrs: tuple[Net, ...] = ()
    wireguard: dict[Family, WireGuardDevice | None] = field(default_factory=dict)  # of families that encrypt
    now: float = field(default_factory=time.time)  # seconds since 1970
    unread: dict[str, str] = field(default_factory=dict)


async def read_facts(
    settings: Settings, source: Source, seconds: float, sources: Sequence[SettingsSource] = ()
) -> Facts:
    """Read all facts; at most ``seconds`` are spent on the stream.

    With this machine's ``sources`` of settings those of the stream count, too, as for an agent.
    """
    facts = Facts(settings=settings)
    await _try(facts, "stream", lambda: _read_stream(facts, source, seconds))
    if sources and facts.stream is not None:
        own = facts.stream.nodes.get(settings.nodename)
        live = LiveSettings(settings, sources)
        facts.settings = settings = live.take(facts.stream.configurations, own.labels if own else {})
    facts.ipv6 = (PROC_SYS_NET / "ipv6").exists()
    facts.sysctls_writable = os.access(PROC_SYS_NET / "ipv4/ip_forward", os.W_OK)
    facts.capabilities = _capabilities()
    facts.lock_writable, facts.lock_fault = _lock_writable(), _lock_fault()
    for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/all/disable_ipv6", "ipv4/conf/all/rp_filter",
                 "ipv4/nexthop_compat_mode", "netfilter/nf_conntrack_count", "netfilter/nf_conntrack_max"):  # fmt: skip
        _read_sysctl(facts, path)
    facts.service_cidrs = _kubernetes_cidrs("service-cluster-ip-range")
    facts.cluster_cidrs = _kubernetes_cidrs("cluster-cidr")
    links = Links(lambda: 0.0)
    ways = Ways()
    await _try(facts, "links", lambda: _read_links(facts, links))
    await _try(facts, "routes", lambda: _read_routes(facts, links, ways))
    await _try(facts, "links", lambda: _read_addresses(facts, links, settings, ways))
    await _try(facts, "filter", lambda: _read_filter(facts))
    await _try(facts, "kernel", lambda: _read_kernel_parts(facts))
    for family in FAMILIES:
        await _try(facts, f"rules of {family}", lambda family=family: _read_rules(facts, family))  # type: ignore[misc]
    await _try(facts, "WireGuard", lambda: _read_wireguard(facts, settings))
    await _try(facts, "peers", lambda: _read_peers(facts, settings, links))
    await _try(facts, "paths to other nodes", lambda: _ask_paths(facts, settings))
    return facts


async def _try(facts: Facts, what: str, read: Callable[[], Awaitable[None]]) -> None:
    try:
        await read()
    except (OSError, FilterError, ValueError) as error:
        facts.unread[what] = str(error) or type(error).__name__


def _lock_writable() -> bool:
    """Into a container the lock alone is mounted; elsewhere the first who needs it makes it."""
    if XTABLES_LOCK.is_dir() or (XTABLES_LOCK.is_symlink() and not XTABLES_LOCK.exists()):
        return False
    return os.access(XTABLES_LOCK if XTABLES_LOCK.exists() else XTABLES_LOCK.parent, os.W_OK)


def _lock_fault() -> str:
    """What is wrong with a lock that is no file; empty if nothing is."""
    if XTABLES_LOCK.is_dir():
        return "is a directory"
    return "is a symbolic link that leads nowhere" if XTABLES_LOCK.is_symlink() and not XTABLES_LOCK.exists() else ""


def _read_sysctl(facts: Facts, path: str) -> None:
    try:
        facts.sysctls[path] = (PROC_SYS_NET / path).read_text().strip()
    except OSError:
        pass


def _kubernetes_cidrs(flag: str, folder: Path = KUBERNETES_MANIFESTS) -> tuple[Net, ...]:
    """What a flag of the control plane says, from its static pods; nothing on other nodes."""
    found: dict[Net, None] = {}
    for path in sorted(folder.glob("*.yaml")):
        try:
            values = re.findall(rf"--{flag}=([0-9a-fA-F:./,]+)", path.read_text())
        except OSError:
            continue
        for text in ",".join(values).split(","):
            with contextlib.suppress(ValueError):
                found[Net.parse_masked(text)] = None
    return tuple(found)


def _capabilities() -> frozenset[str]:
    effective = 0
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
    return frozenset(name for name, bit in CAPABILITIES.items() if effective >> bit & 1)


async def _read_links(facts: Facts, links: Links) -> None:
    socket = NetlinkSocket(NETLINK_ROUTE)
    try:
        await links.adopt([*map(rtnetlink.decode_link, socket.dump_all(rtnetlink.link_dump_request()))])
    finally:
        socket.close()
    for link in links.by_name.values():
        facts.links[link.name] = link.up
        try:
            facts.mtus[link.name] = int(Path(f"/sys/class/net/{link.name}/mtu").read_text())
        except (OSError, ValueError):
            continue
    facts.unsigned_devices = [name for name in VXLAN_DEVICES if name in facts.links and not _is_signed(name)]


async def _read_addresses(facts: Facts, links: Links, settings: Settings, ways: Ways) -> None:
    """``ways``: those of default routes, by which the MTU of an address on ``lo`` is known."""
    tunnels = {*Tunnel, OWN_IPIP, settings.wireguard_interface_name, settings.wireguard_interface_name_v6}
    host = await read_host(links, settings.interface_prefix, ways)
    addresses = tuple(one for one in host.addresses if one.interface not in tunnels)
    facts.host = replace(host, addresses=addresses)
    facts.addresses = (*addresses, *(HostAddress("lo", net) for net in host.loopback))
    for name in facts.links:
        if is_host_interface(name, settings.interface_prefix):
            _read_sysctl(facts, f"ipv6/conf/{name}/accept_ra")


def _is_signed(name: str) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/sys/class/net/{name}/ifalias").read_text().strip() == ALIAS
    return False


async def _read_routes(facts: Facts, links: Links, ways: Ways) -> None:
    socket = open_lookup()
    try:
        for family in FAMILIES:
            for message in dump_table(socket, family, 254):
                decoded = rtnetlink.decode_route(message)
                if decoded is None:
                    continue
                if rtnetlink.is_default_route(message):
                    ways.add_default(rtnetlink.decode_ways(message.payload))
                key, route = decoded
                facts.bird_routes += route.protocol == BIRD_PROTOCOL
                if key.destination.length == 0 and route.type == rtnetlink.RTN_UNICAST:
                    facts.default_routes.setdefault(family, links.name_of(route.interface) or "several")
        try:
            facts.workload_gateway = links.name_of(look_up(socket, WORKLOAD_GATEWAY).interface) or ""
        except NetlinkError:
            facts.workload_gateway = ""
    finally:
        socket.close()
    found = await read_advertised_default_interfaces()
    facts.advertised = sorted(links.name_of(index) or str(index) for index in found)


async def _read_filter(facts: Facts) -> None:
    facts.filter = await gather()


async def _read_kernel_parts(facts: Facts) -> None:
    socket = NetlinkSocket(NETLINK_NETFILTER)
    try:
        for part, request in (("nf_tables", nft.dump(nft.GETTABLE, Family.V4)), ("ip_set", ipset.list_headers())):
            try:
                socket.dump_all(request)
                facts.kernel_parts[part] = True
            except NetlinkError as error:
                if error.errno not in (errno.EPERM, errno.EACCES):  # no rights: nothing is known
                    facts.kernel_parts[part] = False
    finally:
        socket.close()
    facts.kernel_parts["nf_conntrack"] = "netfilter/nf_conntrack_max" in facts.sysctls


async def _read_rules(facts: Facts, family: Family) -> None:
    async with read_kernel(family) as kernel:
        facts.rulesets[family] = kernel.rulesets
        if kernel.missing:
            facts.unread[f"rules of {family}"] = "; ".join(kernel.missing)


async def _read_stream(facts: Facts, source: Source, seconds: float) -> None:
    try:
        collected = await read_once(source, seconds)
    except (TimeoutError, OSError, ValueError) as error:
        facts.stream = Stream(SyncStatus(SyncState.CONNECTING, str(error)))
        return
    facts.stream = Stream(collected.status)
    for key, update in sorted(collected.updates.items()):
        if update.error:
            facts.stream.bad.append(f"{key}: {update.error}")
        if isinstance(update.resource, IPPool):
            facts.stream.pools.append(update.resource)
        if isinstance(update.resource, FelixConfiguration):
            facts.stream.configurations.append(update.resource)
        if isinstance(update.resource, Node):
            facts.stream.nodes[key.name] = update.resource


async def _read_wireguard(facts: Facts, settings: Settings) -> None:
    """The devices of families that are to be encrypted; None for one that is not there."""
    entry_settings = EntrySettings.of(settings)
    with contextlib.closing(NetlinkSocket(NETLINK_ROUTE)) as socket:
        for family in filter(entry_settings.encrypts, FAMILIES):
            name = entry_settings.wireguard_name(family)
            facts.wireguard[family] = None
            if name in facts.links:
                kind = decode_device(socket.ask(device_query(name))).kind
                facts.wireguard[family] = await asyncio.to_thread(read_device, kind, name)


async def _ask_paths(facts: Facts, settings: Settings) -> None:
    """Send nodes an echo request of the size that packets of workloads have when they leave this node."""
    if facts.stream is None or "CAP_NET_RAW" not in facts.capabilities:
        return
    sizes = {family: _largest(facts, settings, family) for family in FAMILIES}
    nodes = [
        (name, family, address.packed)
        for name, node in sorted(facts.stream.nodes.items())
        for family in FAMILIES
        if name != settings.nodename and (address := node.address(family))
    ]
    facts.paths = await asyncio.to_thread(ask_paths, nodes, sizes)


def _largest(facts: Facts, settings: Settings, family: Family) -> int:
    """The largest packet between nodes: what the uplink carries, less where every pool's tunnel is set to less."""
    own = facts.stream.nodes.get(settings.nodename) if facts.stream else None
    address = own.address(family) if own else None
    parent = facts.host.interface_with(address.packed) if address else None
    if parent is None or facts.stream is None:
        return 0
    entry_settings, sizes = EntrySettings.of(settings), set()
    for pool in facts.stream.pools:
        way = TUNNELS.get(pool.encapsulation)
        crosses = way is Way.VXLAN and pool.cidr.family in settings.crossed_families
        if (pool.cidr.family is family or crosses) and not pool.load_balancer_only:
            tunnel = DEVICES.get((way, family)) if way and pool.encapsulation not in CROSS_SUBNET else None
            if tunnel is not None:
                device = device_mtu(tunnel, parent.mtu, entry_settings.mtu_of(tunnel))
                sizes.add(min(device.mtu + tunnel.overhead, parent.mtu))
            else:
                sizes.add(parent.mtu)
    return max(sizes, default=0)


async def _read_peers(facts: Facts, settings: Settings, links: Links) -> None:
    """Which interface leads to each other node, by the kernel."""
    nodes = facts.stream.nodes if facts.stream else {}
    own = nodes.get(settings.nodename)
    around = {one for one in settings.crossed_families if own and not own.address(one)}
    socket = open_lookup()
    try:
        for name in list(nodes)[:MAX_PEERS]:
            for family in FAMILIES:
                address = nodes[name].address(family)
                if name == settings.nodename or address is None or family in around:
                    continue
                try:
                    interface = links.name_of(look_up(socket, address.packed).interface) or ""
                except NetlinkError:
                    interface = ""
                facts.peers.setdefault(name, {})[family] = interface
    finally:
        socket.close()
