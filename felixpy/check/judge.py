"""What the facts mean: one finding per check, always all of them, in one order. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from felixpy.calc.host import Host
from felixpy.calc.mtu import OWN_IPIP, Tunnel
from felixpy.calc.underlay import CROSS_SUBNET
from felixpy.check.facts import Facts
from felixpy.check.finding import Finding, Level
from felixpy.check.wireguard import wireguard
from felixpy.config import ProgramClusterRoutes, Settings
from felixpy.dataplane.backend import Backend
from felixpy.dataplane.iptables.detect import decide, felix_in_use
from felixpy.explain.packet import owner
from felixpy.model.net import FAMILIES, Family, Net, format_address
from felixpy.model.resources import Encapsulation, IPPool
from felixpy.sources import SyncState

UNIQUE_LOCAL = Net.parse("fc00::/7")
CONNTRACK_SHARE = 0.8
MANY_NODES = 1_000
"""With so many another mode of a pool begins to take the kernel longer than the agent (docs/underlay.md)."""
FORWARDING = {Family.V4: "ipv4/ip_forward", Family.V6: "ipv6/conf/all/forwarding"}
TUNNEL_DEVICES = (OWN_IPIP, *(tunnel.value for tunnel in Tunnel))
OK, INFO, WARN, FAIL = Level


def judge(settings: Settings, facts: Facts, families: tuple[Family, ...]) -> list[Finding]:
    """All findings, for the families that are wanted."""
    found: list[Finding] = []
    found += _rights(settings, facts, families)
    if Family.V6 in families:
        found += _ipv6(settings, facts)
    for family in FAMILIES:
        found += _family(settings, facts, family) if family in families else _off(facts, family)
        found += _nat_address(settings, facts, family) if family in families else ()
    if Family.V4 in families:
        found += _ipv4_gateway(facts)
    found += _packet_filter(settings, facts)
    found += _others(facts)
    found += _host(settings, facts)
    found += _stream(settings, facts)
    found += _paths(facts)
    found += wireguard(settings, facts)
    found += _pools(facts, families)
    found += _nexthops(facts, families)
    found += [
        Finding(
            "read",
            WARN,
            f"{what} cannot be read: {reason}",
            "this was not checked",
            "see the reason",
        )
        for what, reason in facts.unread.items()
    ]
    return found


def _rights(settings: Settings, facts: Facts, families: tuple[Family, ...]) -> Iterator[Finding]:
    why = "routes, rules and sets are written with CAP_NET_ADMIN, iptables-legacy with CAP_NET_RAW too"
    missing = sorted({"CAP_NET_ADMIN", "CAP_NET_RAW"} - facts.capabilities)
    if "CAP_NET_ADMIN" in missing:
        yield Finding("caps", FAIL, f"{' and '.join(missing)} missing", why, "run as root, or grant the capabilities")
    elif missing:
        yield Finding("caps", WARN, "CAP_NET_RAW missing", why, "grant it, unless nftables or iptables-nft is used")
    else:
        yield Finding("caps", OK, "CAP_NET_ADMIN, CAP_NET_RAW", why)
    why = "the iptables tools and felixpy take turns by the lock /run/xtables.lock"
    if facts.lock_fault:
        fix = "remove it, and mount it with type FileOrCreate, or mount /run"
        yield Finding("caps.lock", FAIL, f"/run/xtables.lock {facts.lock_fault}", why, fix)
    elif facts.lock_writable:
        yield Finding("caps.lock", OK, "/run/xtables.lock can be written", why)
    else:
        fix = "mount the host's /run/xtables.lock, or use nftables"
        yield Finding("caps.lock", WARN, "/run/xtables.lock can be neither written nor made", why, fix)
    for family in families:
        yield _forwarding(settings, facts, family, FORWARDING[family])


def _forwarding(settings: Settings, facts: Facts, family: Family, path: str) -> Finding:
    name, why = f"sysctl.v{family.version}fwd", "without forwarding no packet of a workload leaves the node"
    value = facts.sysctls.get(path)
    setting = f"net.{path.replace('/', '.')}"
    if value == "1":
        return Finding(name, OK, f"{setting} is 1", why)
    if value is None:
        return Finding(name, INFO, f"{setting} does not exist", f"{family} is not in this kernel")
    if settings.ip_forwarding and facts.sysctls_writable:
        return Finding(name, INFO, f"{setting} is {value}; felixpy turns it on at its start", why)
    reason = "/proc/sys is read-only here" if settings.ip_forwarding else "IPForwarding is Disabled"
    return Finding(name, FAIL, f"{setting} is {value} and {reason}", why, f"sysctl -w {setting}=1 on the host")


def _ipv6(settings: Settings, facts: Facts) -> Iterator[Finding]:
    why = "IPv6 is wanted (Ipv6Support)"
    off = facts.sysctls.get("ipv6/conf/all/disable_ipv6") == "1"
    if not facts.ipv6:
        yield Finding(
            "v6.stack", FAIL, "the kernel has no IPv6", why, "boot without ipv6.disable=1, or Ipv6Support=false"
        )
        return
    if off:
        fix = "sysctl -w net.ipv6.conf.all.disable_ipv6=0, or Ipv6Support=false"
        yield Finding("v6.stack", FAIL, "net.ipv6.conf.all.disable_ipv6 is 1", why, fix)
    else:
        yield Finding("v6.stack", OK, "IPv6 is on", why)
    why = "turning IPv6 forwarding on removes a default route that the kernel learnt (accept_ra is 1)"
    unsafe = [name for name in facts.advertised if facts.sysctls.get(f"ipv6/conf/{name}/accept_ra") not in ("0", "2")]
    turns_on = settings.ip_forwarding and facts.sysctls_writable and facts.sysctls.get(FORWARDING[Family.V6]) != "1"
    if unsafe and turns_on:
        found = f"the default route over {', '.join(unsafe)} is advertised; felixpy sets accept_ra to 2 at its start"
        yield Finding("v6.ra", INFO, found, why)
    elif unsafe:
        fix = "; ".join(f"sysctl -w net.ipv6.conf.{name}.accept_ra=2" for name in unsafe)
        yield Finding("v6.ra", FAIL, f"the default route over {', '.join(unsafe)} is advertised", why, fix)
    elif "routes" not in facts.unread:
        yield Finding("v6.ra", OK, "no default route is at risk", why)


def _off(facts: Facts, family: Family) -> Iterator[Finding]:
    is_v6 = family is Family.V6
    if is_v6 and not (facts.ipv6 and facts.sysctls.get("ipv6/conf/all/disable_ipv6") != "1"):
        return
    setting = "Ipv6Support" if is_v6 else "IPv4Support"
    yield Finding(
        f"v{family.version}.off",
        INFO,
        f"{family} is off, so no {family} packet of a workload is checked",
        "a workload may reach this node by it, whatever DefaultEndpointToHostAction says",
        f"{setting}=true, and it is dropped" + (", or sysctl -w net.ipv6.conf.all.disable_ipv6=1" if is_v6 else ""),
    )


def _family(settings: Settings, facts: Facts, family: Family) -> Iterator[Finding]:
    version = family.version
    why = "workloads reach the outside world by the node's default route"
    interface = facts.default_routes.get(family)
    if interface and interface.startswith(settings.interface_prefix):
        found = f"the {family} default route goes through {interface}, which InterfacePrefix takes for a workload's"
        fix = "leave its prefix out of InterfacePrefix (FELIX_INTERFACEPREFIX)"
        yield Finding(f"route.default{version}", FAIL, found, "its packets are dropped and its routes removed", fix)
    elif interface:
        yield Finding(f"route.default{version}", OK, f"{family} default route over {interface}", why)
    else:
        fix = f"ip -{version} route add default via ROUTER"
        yield Finding(f"route.default{version}", WARN, f"no {family} default route", why, fix)
    yield from _address(settings, facts, family)


def _address(settings: Settings, facts: Facts, family: Family) -> Iterator[Finding]:
    name, why = f"addr.v{family.version}", "other nodes send packets for this node's workloads to its node address"
    own = [one for one in facts.addresses or () if one.net.family is family]
    usable = [one for one in own if facts.links.get(one.interface)]
    if not usable and family in settings.crossed_families:
        yield Finding(name, INFO, f"no global {family} address: VXLAN over {family.other} is to carry it", why)
        return
    if not usable:
        fix = f"give an interface a global {family} address, or switch the family off"
        yield Finding(name, FAIL, f"no global {family} address on an interface that is up", why, fix)
        return
    node = facts.stream.nodes.get(settings.nodename) if facts.stream else None
    told = node.address(family) if node else None
    listed = ", ".join(f"{one.net} on {one.interface}" for one in usable[:5])
    if told is None:
        level, found = (INFO, f"{listed}; no Node {settings.nodename} with an {family} address is in the stream")
        yield Finding(name, level, found, why, "publish the Node, if there are several nodes")
    elif told.packed not in {one.net.packed for one in usable}:
        fix = "correct the Node, or NODENAME"
        yield Finding(name, FAIL, f"Node {settings.nodename} says {told}, this host has {listed}", why, fix)
    else:
        yield Finding(name, OK, f"{told} as the Node says", why)
    others = [one for one, each in (facts.stream.nodes if facts.stream else {}).items()
              if one != settings.nodename and (address := each.address(family))
              and address.packed in {mine.net.packed for mine in own}]  # fmt: skip
    if others:
        fix = "one of the two is wrong: correct the Node"
        yield Finding(f"{name}.twice", FAIL, f"Node {others[0]} has an address of this host", why, fix)


def _nat_address(settings: Settings, facts: Facts, family: Family) -> Iterator[Finding]:
    v4 = family is Family.V4
    address = settings.nat_outgoing_address if v4 else settings.nat_outgoing_address_ipv6
    if address is None:
        return
    name, setting = f"nat.v{family.version}", "NATOutgoingAddress" if v4 else "NATOutgoingAddressIPv6"
    why = "what leaves with another address is answered to whoever has that"
    where = next((one.interface for one in facts.addresses or () if one.net.packed == address), None)
    if where:
        yield Finding(name, OK, f"{format_address(address)} on {where}, as {setting} says", why)
    else:
        fix = f"put it on an interface of this node, have the router send it here, or leave {setting} out"
        yield Finding(name, WARN, f"this node has no {format_address(address)}, which {setting} says", why, fix)


def _ipv4_gateway(facts: Facts) -> Iterator[Finding]:
    why = "workloads have the gateway 169.254.1.1, and the kernel answers for it only if it has a route to it"
    if facts.workload_gateway:
        yield Finding("route.gateway4", OK, f"169.254.1.1 is reached over {facts.workload_gateway}", why)
    else:
        fix = "add an IPv4 default route, or `ip route add 169.254.1.1 dev INTERFACE`"
        yield Finding("route.gateway4", WARN, "no route to 169.254.1.1", why, fix)


def _packet_filter(settings: Settings, facts: Facts) -> Iterator[Finding]:
    why = "felixpy writes rules with the back-end that the host uses already"
    backend = None
    if facts.filter is not None:
        backend, reason = decide(settings, facts.filter)
        yield Finding("filter.backend", INFO, f"{backend}: {reason}", why)
        other = facts.filter.legacy.rules if backend is Backend.NFT_VARIANT else facts.filter.nft.rules
        if backend is not Backend.NFTABLES and other:
            variant = "iptables-legacy" if backend is Backend.NFT_VARIANT else "iptables-nft"
            found = f"{other} rules in {variant} as well"
            yield Finding(
                "filter.both", WARN, found, "rules of both count, and hide each other", "remove one set of them"
            )
        elif backend is Backend.LEGACY and facts.filter.default_variant is None:
            fix = "apt install iptables"
            yield Finding("filter.both", WARN, "no iptables command is installed", "people cannot list the rules", fix)
    why = "the packet filter needs these parts of the kernel"
    needed = {"nf_tables"} if backend in (Backend.NFTABLES, None) else {"ip_set"}
    needed |= {"nf_tables"} if backend is Backend.NFT_VARIANT else set()
    lacking = sorted(part for part in needed if facts.kernel_parts.get(part) is False)
    if lacking:
        yield Finding("kmod", FAIL, f"{', '.join(lacking)} does not answer", why, f"modprobe {' '.join(lacking)}")
    elif needed <= facts.kernel_parts.keys():
        yield Finding("kmod", OK, ", ".join(sorted(needed)), why)
    if facts.kernel_parts.get("nf_conntrack") is False:
        fix = "modprobe nf_conntrack, if the first rules are refused"
        yield Finding("kmod.conntrack", INFO, "nf_conntrack is not in use yet", "loaded with the first rule", fix)
    yield from _forward_policy(facts, backend)


def _forward_policy(facts: Facts, backend: Backend | None) -> Iterator[Finding]:
    why = "a drop of another program at the forward hook wins over felixpy's accept"
    dropping = sorted({
        f"{ruleset.name} chain {chain.name}"
        for rulesets in facts.rulesets.values()
        for ruleset in rulesets
        for chain in ruleset.chains.values()
        if chain.hook == "forward" and chain.policy.kind == "drop" and owner(ruleset.name, chain.name) != "felixpy"
    })  # fmt: skip
    if not facts.rulesets:
        return
    if not dropping:
        yield Finding("filter.forward", OK, "no policy DROP at the forward hook", why)
        return
    if backend in (Backend.LEGACY, Backend.NFT_VARIANT):
        found = f"policy DROP of {', '.join(dropping)}"
        yield Finding("filter.forward", INFO, found, "felixpy's accept stands before the policy in the same chain")
        return
    fix = "let it accept interfaces of workloads; `felixpy explain` shows what it does to a packet"
    yield Finding("filter.forward", WARN, f"policy DROP of {', '.join(dropping)}", why, fix)


def _others(facts: Facts) -> Iterator[Finding]:
    why = "two agents that program workloads undo each other's work"
    felix = felix_in_use(facts.filter) if facts.filter else None
    if felix:
        yield Finding("owners.felix", FAIL, felix.partition("; ")[0], why, "remove Calico and restart the node")
    elif facts.filter:
        yield Finding("owners.felix", OK, "no Felix programs this node", why)
    if facts.unsigned_devices:
        found = f"{' and '.join(facts.unsigned_devices)} of another program, as Felix leaves behind"
        why = "felixpy takes over what a pool needs, changed in place where it can be, and leaves the rest alone"
        yield Finding("owners.tunnels", INFO, found, why, "`ip link del` what no program uses any more")
    programs = {
        whose
        for rulesets in facts.rulesets.values()
        for ruleset in rulesets
        for chain in ruleset.chains.values()
        if (whose := owner(ruleset.name, chain.name)) not in ("", "felixpy", "Calico")
    }
    if facts.bird_routes:
        programs.add(f"BIRD ({facts.bird_routes} routes)")
    grave = programs & {"firewalld", "ufw", "Cilium", "flannel"}
    found = ", ".join(sorted(programs)) or "none"
    why = "their rules stand at the same hooks"
    fix = "let them accept interfaces of workloads; `felixpy explain` shows what they do to a packet" if grave else ""
    yield Finding("owners", WARN if grave else INFO, f"other programs with rules or routes: {found}", why, fix)
    kube = (
        "kube-proxy" if facts.filter and {("ip", "kube-proxy"), ("ip6", "kube-proxy")} & facts.filter.nft_tables else ""
    )
    mode = "nftables" if kube else "ipvs" if "kube-ipvs0" in facts.links else ""
    mode = mode or ("iptables" if any("kube-proxy" in program for program in programs) else "not seen")
    yield Finding("kubeproxy", INFO, f"kube-proxy: {mode}", "Services are its work, and its NAT comes before ours")


def _host(settings: Settings, facts: Facts) -> Iterator[Finding]:
    count, most = (int(facts.sysctls.get(f"netfilter/nf_conntrack_{what}", 0) or 0) for what in ("count", "max"))
    why = "when the table of connections is full, the kernel drops new ones"
    if most and count > CONNTRACK_SHARE * most:
        fix = f"sysctl -w net.netfilter.nf_conntrack_max={most * 2}"
        yield Finding("conntrack", WARN, f"{count} of {most} entries", why, fix)
    elif most:
        yield Finding("conntrack", OK, f"{count} of {most} entries", why)
    value = facts.sysctls.get("ipv4/conf/all/rp_filter", "")
    why = "strict reverse path filtering drops what comes in by another interface than answers would leave by"
    if value == "1":
        yield Finding("rp_filter", INFO, "net.ipv4.conf.all.rp_filter is 1", why, "2 where paths are asymmetric")
    else:
        yield Finding("rp_filter", OK, f"net.ipv4.conf.all.rp_filter is {value or 'not known'}", why)
    uplinks = {name for name in facts.default_routes.values() if name in facts.mtus}
    carrying = uplinks | {name for name in TUNNEL_DEVICES if facts.links.get(name)}
    least = min((facts.mtus[name] for name in carrying if name in facts.mtus), default=0)
    large = [name for name, mtu in facts.mtus.items() if name.startswith(settings.interface_prefix) and mtu > least]
    why = "packets larger than the MTU of the uplink or a tunnel are lost where path MTU discovery is filtered"
    if least and large:
        fix = f"let the CNI plugin use an MTU of {least}"
        yield Finding("mtu", WARN, f"{len(large)} workload interfaces have more than {least}", why, fix)
    elif least:
        yield Finding("mtu", OK, f"workload interfaces have at most {least}", why)


def _nexthops(facts: Facts, families: tuple[Family, ...]) -> Iterator[Finding]:
    """With many nodes, what the kernel does for programs that know no nexthop objects."""
    nodes = len(facts.stream.nodes) if facts.stream else 0
    if nodes < MANY_NODES or Family.V4 not in families or facts.sysctls.get("ipv4/nexthop_compat_mode") != "1":
        return
    why = f"for each of {nodes} nodes that is reached another way the kernel walks over all IPv4 routes"
    fix = "sysctl -w net.ipv4.nexthop_compat_mode=0, unless a program here reads routes and knows no nexthop objects"
    yield Finding("nexthops", INFO, "net.ipv4.nexthop_compat_mode is 1", why, fix)


_DIRECTORY_FIX = "the directory must be there, and its files readable and whole: see the reason"


def _stream(settings: Settings, facts: Facts) -> Iterator[Finding]:
    where = f"broker {settings.mqtt_host}" if settings.mqtt_enabled else f"directory {settings.resource_directory}"
    why = "what felixpy programs comes from there, and nothing is removed before it is complete"
    status = facts.stream.status if facts.stream else None
    if status is None:
        return
    if status.state is SyncState.IN_SYNC:
        yield Finding("stream", OK, f"{where}: {status.got} objects, complete", why)
        if status.reason:
            fix = "correct the document, or move it away"
            yield Finding("stream.documents", WARN, status.reason, "the others are programmed", fix)
    else:
        reason = status.reason or "no answer in time"
        fix = "config/mosquitto.conf has the settings that a broker needs" if settings.mqtt_enabled else _DIRECTORY_FIX
        yield Finding("stream", FAIL, f"{where}: {reason}", why, fix)
    if facts.stream and facts.stream.bad:
        bad = facts.stream.bad
        found = f"{len(bad)} objects cannot be used, first {bad[0]}"
        yield Finding("stream.objects", WARN, found, "the others are programmed", "correct and publish them")
    if facts.peers:
        lost = [name for name, families in facts.peers.items() if not all(families.values())]
        odd = [name for name, families in facts.peers.items()
               if any(one.startswith(settings.interface_prefix) for one in families.values() if one)]  # fmt: skip
        why = "blocks of other nodes are routed to their node addresses"
        if bad_peers := sorted({*lost, *odd}):
            found = f"{len(bad_peers)} of {len(facts.peers)} nodes have no good route, first {bad_peers[0]}"
            fix = "`ip route get` their addresses; they must be reached over an interface of the host"
            yield Finding("peer.reach", WARN, found, why, fix)
        elif beyond := _beyond(settings, facts):
            found = f"{len(beyond)} of {len(facts.peers)} nodes are in no subnet of this node, first {beyond[0]}"
            why = "blocks of pools without encapsulation are routed on the link only: their workloads are not reached"
            fix = "give the pools vxlanMode CrossSubnet, unless routers know the blocks"
            yield Finding("peer.reach", WARN, found, why, fix)
        else:
            yield Finding("peer.reach", OK, f"a route leads to each of {len(facts.peers)} other nodes", why)


def _paths(facts: Facts) -> Iterator[Finding]:
    """Black holes on the way to other nodes."""
    known = [path for path in facts.paths if path.small]
    lost = [path for path in known if not path.full]
    why = "workloads' full packets are that large on their way to other nodes; what is lost there ends connections"
    if lost:
        first = lost[0]
        told = f"a router tells an MTU of {first.told}" if first.told else "nobody tells why: a black hole"
        found = f"{len(lost)} of {len(known)} nodes get no packet of {first.size} bytes, first {first}: {told}"
        fix = "raise the MTU of the network between, or lower that of this node's uplink, which tunnels and pods follow"
        yield Finding("path.mtu", WARN, found, why, fix)
    elif known:
        yield Finding("path.mtu", OK, f"{len(known)} of {len(facts.paths)} ways to nodes carry full packets", why)
    elif facts.paths:
        found = f"none of {len(facts.paths)} nodes answers echo requests, so what the way carries is not known"
        yield Finding("path.mtu", INFO, found, why)


def _beyond(settings: Settings, facts: Facts) -> list[str]:
    """Other nodes, with their addresses, that are on no link of ours though a pool is routed without encapsulation."""
    if settings.program_cluster_routes is ProgramClusterRoutes.DISABLED or facts.stream is None:
        return []
    plain = [
        one for one in facts.stream.pools if one.encapsulation is Encapsulation.NONE and not one.load_balancer_only
    ]
    host, found = Host(facts.addresses or ()), []
    for family in {pool.cidr.family for pool in plain}:
        for name in facts.peers:
            node = facts.stream.nodes.get(name)
            address = node.address(family) if node else None
            if address is not None and host.parent_interface(address.packed, None) is None:
                found.append(f"{name} at {format_address(address.packed)}")
    return sorted(found)


def _pools(facts: Facts, families: tuple[Family, ...]) -> Iterator[Finding]:
    if facts.stream is None or facts.stream.status.state is not SyncState.IN_SYNC:
        return
    pools = facts.stream.pools
    for family in families:
        mine = [
            pool for pool in pools if pool.cidr.family is family and not pool.disabled and not pool.load_balancer_only
        ]
        why = "addresses of workloads come from an enabled pool of their family"
        name = f"pool.v{family.version}"
        if mine:
            yield Finding(name, OK, ", ".join(str(pool.cidr) for pool in mine[:5]), why)
        else:
            yield Finding(
                name, FAIL, f"no enabled {family} pool for workloads", why, "publish one: felixpy apply -f FILE"
            )
    for pool in pools:
        if pool.cidr.family is Family.V6 and UNIQUE_LOCAL.covers(pool.cidr) and not pool.nat_outgoing:
            why = "unique local addresses are not routed in the Internet: without NAT no answer comes back"
            yield Finding(
                "pool.nat6", WARN, f"{pool.key.name} {pool.cidr} has natOutgoing false", why, "natOutgoing: true"
            )
        if pool.encapsulation in CROSS_SUBNET:
            yield from _cross_subnet(facts, pool)
    yield from _overlaps(facts)


def _cross_subnet(facts: Facts, pool: IPPool) -> Iterator[Finding]:
    """CrossSubnet goes by the prefix length that a node publishes: with a host prefix nothing is ever native."""
    assert facts.stream is not None
    alone = [
        f"{name} publishes {net}"
        for name, node in sorted(facts.stream.nodes.items())
        if (net := node.address(pool.cidr.family)) is not None and net.is_host
    ]
    why = "CrossSubnet is native where the other node lies in the subnet that this node publishes"
    if alone:
        fix = "publish the prefix length of the subnet"
        yield Finding("pool.subnet", WARN, f"{pool.key.name}: {'; '.join(alone[:3])}", why, fix)
    else:
        yield Finding("pool.subnet", OK, f"{pool.key.name}: every node publishes its subnet", why)


def _overlaps(facts: Facts) -> Iterator[Finding]:
    assert facts.stream is not None
    pools, clean = facts.stream.pools, True
    why = "one address must mean one thing"
    for index, pool in enumerate(pools):
        for other in pools[index + 1 :]:
            if pool.cidr.overlaps(other.cidr):
                clean = False
                found = f"pools {pool.key.name} {pool.cidr} and {other.key.name} {other.cidr} overlap"
                yield Finding("pool.overlap", FAIL, found, why, "make them disjoint")
        for service in facts.service_cidrs:
            if pool.cidr.overlaps(service):
                clean = False
                found = f"pool {pool.key.name} {pool.cidr} overlaps the Services' range {service}"
                yield Finding("pool.overlap", FAIL, found, why, "choose another range")
        same = [cidr for cidr in facts.cluster_cidrs if cidr.family is pool.cidr.family]
        if same and not any(cidr.covers(pool.cidr) for cidr in same):
            clean = False
            found = f"pool {pool.key.name} {pool.cidr} lies outside the cluster's range {same[0]}"
            fix = "kube-proxy takes its addresses for foreign ones: use a part of --cluster-cidr"
            yield Finding("pool.overlap", WARN, found, why, fix)
        for address in facts.addresses or ():
            if pool.cidr.covers(address.net.packed):
                clean = False
                found = f"address {address.net} of {address.interface} lies in pool {pool.key.name} {pool.cidr}"
                yield Finding("pool.overlap", WARN, found, f"{why}; NAT outgoing skips it", "choose another range")
    if clean and pools:
        yield Finding("pool.overlap", OK, f"{len(pools)} pools are disjoint from each other and from the host", why)


def wanted_families(settings: Settings, choice: str) -> tuple[Family, ...]:
    """Families to check: ``4``, ``6``, ``dual``, or empty for what the settings say."""
    chosen = {"4": (Family.V4,), "6": (Family.V6,), "dual": FAMILIES}.get(choice)
    wanted = {Family.V4: settings.ipv4_support, Family.V6: settings.ipv6_support}
    return chosen or tuple(family for family in FAMILIES if wanted[family])
