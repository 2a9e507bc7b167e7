"""What facts mean: each check alone, from facts of a node where all is well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from felixpy.calc.host import HostAddress
from felixpy.check import facts as facts_module
from felixpy.check.facts import Facts, Stream, _kubernetes_cidrs
from felixpy.check.finding import Finding, Level, exit_code
from felixpy.check.judge import judge, wanted_families
from felixpy.check.path_mtu import Path
from felixpy.config import NFTablesMode, Settings
from felixpy.dataplane.backend import Backend
from felixpy.dataplane.iptables.detect import Facts as FilterFacts
from felixpy.dataplane.iptables.detect import RuleSurvey
from felixpy.explain.packet import DROP, Chain, Ruleset
from felixpy.model.net import FAMILIES, Family, Net
from felixpy.model.resources import Encapsulation, IPPool, Kind, Node, ResourceKey
from felixpy.netlink.wireguard import PeerTraffic, WireGuardDevice, WireGuardPeer
from felixpy.sources import SyncState, SyncStatus

SETTINGS = Settings(nodename="n1", nftables_mode=NFTablesMode.ENABLED, mqtt_host="broker")
V4, V6 = Net.parse_interface("172.31.0.1/24"), Net.parse_interface("fd00:31::1/64")


def pool(cidr: str, name: str = "p", **fields: Any) -> IPPool:
    return IPPool(ResourceKey(Kind.IP_POOL, name), Net.parse(cidr), 26, **{"nat_outgoing": True, **fields})


def good() -> Facts:
    return Facts(
        sysctls={"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv6/conf/all/disable_ipv6": "0",
                 "ipv4/conf/all/rp_filter": "0", "netfilter/nf_conntrack_count": "1",
                 "netfilter/nf_conntrack_max": "100", "ipv6/conf/eth0/accept_ra": "0"},
        sysctls_writable=True,
        capabilities=frozenset({"CAP_NET_ADMIN", "CAP_NET_RAW"}),
        addresses=(HostAddress("eth0", V4), HostAddress("eth0", V6)),
        links={"eth0": True, "cali1": True},
        mtus={"eth0": 1500, "cali1": 1500},
        default_routes=dict.fromkeys(FAMILIES, "eth0"),
        workload_gateway="eth0",
        filter=FilterFacts(default_variant=Backend.NFT_VARIANT),
        rulesets={family: [] for family in FAMILIES},
        kernel_parts={"nf_tables": True, "ip_set": True, "nf_conntrack": True},
        peers={"n2": dict.fromkeys(FAMILIES, "eth0")},
        stream=Stream(
            SyncStatus(SyncState.IN_SYNC, "", 5, 5),
            [pool("10.48.0.0/16", "four"), pool("fd00:48::/48", "six")],
            {"n1": Node(ResourceKey(Kind.NODE, "n1"), V4, V6)},
        ),
    )  # fmt: skip


def bad(facts: Facts, settings: Settings = SETTINGS, families: tuple[Family, ...] = FAMILIES) -> dict[str, Finding]:
    found = judge(settings, facts, families)
    assert all(finding.why and finding.found for finding in found)
    wrong = {finding.id: finding for finding in found if finding.level in (Level.WARN, Level.FAIL)}
    assert all(finding.fix for finding in wrong.values())
    return wrong


def path(**fields: Any) -> Path:
    return Path("n2", Family.V4, bytes((172, 31, 0, 2)), 1500, **fields)


@pytest.mark.parametrize(
    ("paths", "level", "words"),
    [
        ([path(small=True, full=True)], Level.OK, "1 of 1 ways to nodes carry full packets"),
        ([path(small=True, full=True), path()], Level.OK, "1 of 2 ways to nodes carry full packets"),
        ([path()], Level.INFO, "none of 1 nodes answers"),
        ([path(small=True)], Level.WARN, "get no packet of 1500 bytes, first n2 at 172.31.0.2: nobody tells why"),
        ([path(small=True, told=1400)], Level.WARN, "a router tells an MTU of 1400"),
    ],
)
def test_ways_that_do_not_carry_full_packets_are_named(paths: list[Path], level: Level, words: str) -> None:
    facts = good()
    facts.paths = paths
    (found,) = [finding for finding in judge(SETTINGS, facts, FAMILIES) if finding.id == "path.mtu"]
    assert (found.level, words in found.found) == (level, True)


def test_a_device_that_felix_left_is_named() -> None:
    facts = good()
    facts.unsigned_devices = ["vxlan.calico"]
    (found,) = [finding for finding in judge(SETTINGS, facts, FAMILIES) if finding.id == "owners.tunnels"]
    assert (found.level, found.found) == (Level.INFO, "vxlan.calico of another program, as Felix leaves behind")


def test_a_tunnel_that_carries_less_than_workloads_may_send_is_named() -> None:
    facts = good()
    facts.links["vxlan.calico"], facts.mtus["vxlan.calico"] = True, 1450
    assert bad(facts)["mtu"].found == "1 workload interfaces have more than 1450"
    facts.mtus["cali1"] = 1450
    assert bad(facts) == {}


KEYS = {name: bytes([number] * 32) for number, name in enumerate(("n1", "n2", "n3"), 1)}


def encrypting(traffic: dict[str, PeerTraffic], *keyless: str) -> Facts:
    """n1 with a device, whose peers are those that anything is known of; the others of three nodes have no key."""
    facts = good()
    assert facts.stream is not None
    for name, key in KEYS.items():
        facts.stream.nodes[name] = Node(
            ResourceKey(Kind.NODE, name), V4, V6, wireguard_public_key=None if name in keyless else key
        )
    endpoint = (bytes((172, 31, 0, 2)), 51820)
    peers = {KEYS[name]: WireGuardPeer(endpoint, (), 0) for name in traffic}
    known = {KEYS[name]: one for name, one in traffic.items()}
    facts.wireguard = {Family.V4: WireGuardDevice(b"", KEYS["n1"], 51820, 0, peers, known)}
    facts.now = 1000.0
    return facts


@pytest.mark.parametrize(
    ("traffic", "level", "words"),
    [
        ({"n2": PeerTraffic(900.0, 5, 5)}, Level.OK, "1 peers, 1 with a handshake in the last three minutes"),
        ({"n2": PeerTraffic(100.0, 5, 5)}, Level.OK, "1 peers, 0 with a handshake"),
        ({"n2": PeerTraffic(0.0, 0, 0)}, Level.OK, "1 peers, 0 with a handshake"),
        ({}, Level.INFO, "0 peers"),
        (
            {"n2": PeerTraffic(0.0, 0, 148)},
            Level.WARN,
            "1 of 1 peers never answered, first n2 at 172.31.0.2 port 51820",
        ),
    ],
    ids=["in use", "used before", "nothing was sent", "no peers", "never answered"],
)
def test_peers_of_wireguard_are_judged_by_what_comes_back(
    traffic: dict[str, PeerTraffic], level: Level, words: str
) -> None:
    (found,) = [one for one in judge(SETTINGS, encrypting(traffic), FAMILIES) if one.id == "wireguard.v4"]
    assert (found.level, words in found.found) == (level, True)


def test_nodes_without_a_key_and_a_device_that_is_not_there_are_named() -> None:
    assert "wireguard.v4.keys" not in bad(encrypting({}))
    facts = encrypting({}, "n3")
    assert bad(facts)["wireguard.v4.keys"].found == "1 of 2 nodes publish no IPv4 key, first n3"
    facts.wireguard = {Family.V6: None}
    assert bad(facts)["wireguard.v6"].found == "there is no device that encrypts IPv6"


def test_a_family_that_crosses_needs_no_address() -> None:
    facts = good()
    facts.addresses = tuple(one for one in facts.addresses or () if one.net.family is Family.V4)
    assert bad(facts)["addr.v6"].level is Level.FAIL
    assert "addr.v6" not in bad(facts, replace(SETTINGS, ipv6_over_ipv4=True))


def test_a_good_node_has_no_warning() -> None:
    assert bad(good()) == {}
    assert exit_code(judge(SETTINGS, good(), FAMILIES)) == 0


def change(**fields: Any) -> Callable[[Facts], None]:
    def apply(facts: Facts) -> None:
        for name, value in fields.items():
            setattr(facts, name, value)

    return apply


def sysctl(path: str, value: str) -> Callable[[Facts], None]:
    return lambda facts: facts.sysctls.__setitem__(path, value)


learns = sysctl("ipv6/conf/eth0/accept_ra", "1")
"""The kernel takes router advertisements itself."""


def stream(**fields: Any) -> Callable[[Facts], None]:
    return lambda facts: setattr(facts, "stream", replace(facts.stream, **fields))  # type: ignore[type-var]


def forward_drop(table: str, chain: str) -> Callable[[Facts], None]:
    rulesets = {Family.V4: [Ruleset(table, {chain: Chain(chain, hook="forward", policy=DROP)})]}
    return change(rulesets=rulesets)


@pytest.mark.parametrize(
    ("spoil", "name", "level"),
    [
        (change(capabilities=frozenset()), "caps", "fail"),
        (change(capabilities=frozenset({"CAP_NET_ADMIN"})), "caps", "warn"),
        (change(lock_writable=False), "caps.lock", "warn"),
        (lambda f: (sysctl("ipv4/ip_forward", "0")(f), change(sysctls_writable=False)(f)), "sysctl.v4fwd", "fail"),
        (change(ipv6=False), "v6.stack", "fail"),
        (sysctl("ipv6/conf/all/disable_ipv6", "1"), "v6.stack", "fail"),
        (lambda f: (learns(f), change(advertised=["eth0"])(f)), "v6.ra", "fail"),  # forwarding is on
        (
            lambda f: (
                learns(f),
                change(advertised=["eth0"], sysctls_writable=False)(f),
                sysctl("ipv6/conf/all/forwarding", "0")(f),
            ),
            "v6.ra",
            "fail",
        ),
        (stream(status=SyncStatus(SyncState.IN_SYNC, "left out: v.yaml", 5, 5)), "stream.documents", "warn"),
        (change(default_routes={Family.V4: "eth0"}), "route.default6", "warn"),
        (change(addresses=()), "addr.v4", "fail"),
        (change(links={"eth0": False}), "addr.v6", "fail"),
        (
            stream(nodes={"n1": Node(ResourceKey(Kind.NODE, "n1"), Net.parse_interface("9.9.9.9/24"))}),
            "addr.v4",
            "fail",
        ),
        (stream(nodes={"n2": Node(ResourceKey(Kind.NODE, "n2"), V4)}), "addr.v4.twice", "fail"),
        (change(workload_gateway=""), "route.gateway4", "warn"),
        (change(default_routes={Family.V4: "cali1", Family.V6: "eth0"}), "route.default4", "fail"),
        (change(kernel_parts={"nf_tables": False}), "kmod", "fail"),
        (forward_drop("nftables table ip filter", "FORWARD"), "filter.forward", "warn"),
        (change(filter=FilterFacts(nft=RuleSurvey(felix_chains=("cali-INPUT",)))), "owners.felix", "fail"),
        (change(rulesets={Family.V4: [Ruleset("iptables table filter", {"ufw-x": Chain("ufw-x")})]}), "owners", "warn"),
        (sysctl("netfilter/nf_conntrack_count", "90"), "conntrack", "warn"),
        (change(mtus={"eth0": 1400, "cali1": 1500}), "mtu", "warn"),
        (stream(status=SyncStatus(SyncState.CONNECTING, "refused")), "stream", "fail"),
        (stream(bad=["IPPool x: bad"]), "stream.objects", "warn"),
        (change(peers={"n2": {Family.V4: ""}}), "peer.reach", "warn"),
        (change(peers={"n2": {Family.V4: "cali1"}}), "peer.reach", "warn"),
        (
            stream(nodes={"n2": Node(ResourceKey(Kind.NODE, "n2"), Net.parse_interface("9.9.9.9/24"))}),
            "peer.reach",
            "warn",
        ),
        (stream(pools=[pool("10.48.0.0/16")]), "pool.v6", "fail"),
        (stream(pools=[pool("10.48.0.0/16"), pool("fd00::/64", "q", disabled=True)]), "pool.v6", "fail"),
        (stream(pools=[pool("10.48.0.0/16"), pool("fd00:48::/64", "q", nat_outgoing=False)]), "pool.nat6", "warn"),
        (
            stream(
                pools=[pool("10.48.0.0/16", encapsulation=Encapsulation.VXLAN_CROSS_SUBNET)],
                nodes={"n2": Node(ResourceKey(Kind.NODE, "n2"), Net.parse_interface("172.31.0.2/32"))},
            ),
            "pool.subnet",
            "warn",
        ),
        (stream(pools=[pool("10.48.0.0/16"), pool("10.48.1.0/24", "q")]), "pool.overlap", "fail"),
        (stream(pools=[pool("172.31.0.0/16")]), "pool.overlap", "warn"),
        (change(service_cidrs=(Net.parse("10.48.0.0/20"),)), "pool.overlap", "fail"),
        (change(cluster_cidrs=(Net.parse("10.0.0.0/16"),)), "pool.overlap", "warn"),
        (change(unread={"links": "no"}), "read", "warn"),
    ],
)
def test_what_is_wrong_is_found(spoil: Callable[[Facts], None], name: str, level: str) -> None:
    facts = good()
    spoil(facts)
    found = bad(facts)
    assert found[name].level == level
    assert exit_code(list(found.values())) == max(2 if one.level == "fail" else 1 for one in found.values())


@pytest.mark.parametrize("net", [V4, V6], ids=str)
def test_packets_leave_with_an_address_that_nobody_answers_to(net: Net) -> None:
    name, field = (
        ("nat.v4", "nat_outgoing_address") if net.family is Family.V4 else ("nat.v6", "nat_outgoing_address_ipv6")
    )
    mine, another = net.packed, net.packed[:-1] + b"\x63"
    for address, level in ((None, None), (mine, "ok"), (another, "warn")):
        found = {one.id: one for one in judge(replace(SETTINGS, **{field: address}), good(), FAMILIES)}
        assert (found[name].level if name in found else None) == level


def test_a_default_route_that_a_daemon_learnt_is_not_at_risk() -> None:
    facts = good()
    change(advertised=["eth0"])(facts)
    assert facts.sysctls["ipv6/conf/eth0/accept_ra"] == "0"
    assert bad(facts) == {}


def test_a_family_that_is_off_is_said_to_be_unchecked() -> None:
    def off(facts: Facts, families: tuple[Family, ...]) -> list[str]:
        return [one.id for one in judge(SETTINGS, facts, families) if one.id.endswith(".off")]

    assert off(good(), FAMILIES) == []
    assert off(good(), (Family.V4,)) == ["v6.off"]
    assert off(good(), (Family.V6,)) == ["v4.off"]
    for without in change(ipv6=False), sysctl("ipv6/conf/all/disable_ipv6", "1"):
        facts = good()
        without(facts)
        assert off(facts, (Family.V4,)) == []


def test_what_is_off_is_not_asked_for() -> None:
    facts = good()
    change(ipv6=False, advertised=["eth0"])(facts)
    stream(pools=[pool("10.48.0.0/16")])(facts)
    assert bad(facts, families=(Family.V4,)) == {}
    facts = good()
    change(workload_gateway="", default_routes={Family.V6: "eth0"})(facts)
    assert bad(facts, families=(Family.V6,)) == {}


def test_forwarding_that_felixpy_turns_on_is_no_fault() -> None:
    facts = good()
    sysctl("ipv4/ip_forward", "0")(facts)
    assert bad(facts) == {}
    assert "sysctl.v4fwd" in bad(facts, replace(SETTINGS, ip_forwarding=False))


def test_a_policy_that_felixpy_comes_before_is_no_fault() -> None:
    facts = good()
    forward_drop("iptables-nft table filter", "FORWARD")(facts)
    iptables = replace(SETTINGS, nftables_mode=NFTablesMode.DISABLED)
    assert bad(facts, iptables) == {}


def test_nothing_that_could_not_be_read_is_called_good() -> None:
    unread = {"links": "x", "routes": "x", "filter": "x", "kernel": "x", "stream": "x"}
    found = {finding.id: finding for finding in judge(SETTINGS, Facts(unread=unread), FAMILIES)}
    good_ones = {name for name, finding in found.items() if finding.level is Level.OK}
    assert good_ones <= {"caps.lock", "rp_filter", "v6.stack"}


def test_ranges_of_a_control_plane_are_read_from_its_static_pods(tmp_path: Path) -> None:
    (tmp_path / "kube-apiserver.yaml").write_text("  - --service-cluster-ip-range=10.96.0.0/12,fd00:96::/112\n")
    nets = (Net.parse("10.96.0.0/12"), Net.parse("fd00:96::/112"))
    assert _kubernetes_cidrs("service-cluster-ip-range", tmp_path) == nets
    assert _kubernetes_cidrs("cluster-cidr", tmp_path) == ()
    assert _kubernetes_cidrs("cluster-cidr", tmp_path / "none") == ()


def test_families() -> None:
    assert wanted_families(SETTINGS, "") == FAMILIES
    assert wanted_families(replace(SETTINGS, ipv4_support=False), "") == (Family.V6,)
    assert wanted_families(SETTINGS, "4") == (Family.V4,)


def test_what_felixpy_does_by_itself_is_no_failure() -> None:
    facts = good()
    facts.advertised = ["eth0"]
    learns(facts)
    facts.sysctls["ipv6/conf/all/forwarding"] = "0"
    assert bad(facts) == {}
    (found,) = [one for one in judge(SETTINGS, facts, FAMILIES) if one.id == "v6.ra"]
    assert found.level is Level.INFO
    assert "accept_ra to 2" in found.found
    assert "v6.ra" in bad(facts, replace(SETTINGS, ip_forwarding=False))


@pytest.mark.parametrize("family", FAMILIES)
def test_forwarding_of_a_family_that_nobody_asks_for_is_not_judged(family: Family) -> None:
    facts = good()
    facts.sysctls_writable = False
    facts.sysctls.update({"ipv4/ip_forward": "0", "ipv6/conf/all/forwarding": "0"})
    found = {name for name in bad(facts, families=(family,)) if name.startswith("sysctl.")}
    assert found == {f"sysctl.v{family.version}fwd"}


def test_the_fix_of_a_directory_does_not_say_to_create_what_is_there() -> None:
    facts = good()
    stream(status=SyncStatus(SyncState.DEGRADED, "a.yaml: the file cannot be read"))(facts)
    assert "create it" not in bad(facts, replace(SETTINGS, mqtt_host=""))["stream"].fix


@pytest.mark.parametrize(("there", "expected"), [(True, True), (False, False)])
def test_the_lock_alone_is_enough(there: bool, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As our DaemonSet has it: the lock is mounted, the folder is not writable."""
    lock = tmp_path / "xtables.lock"
    if there:
        lock.touch()
    monkeypatch.setattr(facts_module, "XTABLES_LOCK", lock)
    monkeypatch.setattr(facts_module.os, "access", lambda path, mode: path == lock)
    assert facts_module._lock_writable() is expected


@pytest.mark.parametrize(("nodes", "compat", "named"), [(1_200, "1", True), (1_200, "0", False), (20, "1", False)])
def test_with_many_nodes_the_walk_over_all_routes_is_named(nodes: int, compat: str, named: bool) -> None:
    facts = good()
    assert facts.stream
    peers = {f"p{number}": Node(ResourceKey(Kind.NODE, f"p{number}"), V4) for number in range(nodes)}
    facts.stream = replace(facts.stream, nodes={**facts.stream.nodes, **peers})
    facts.sysctls["ipv4/nexthop_compat_mode"] = compat
    found = [one for one in judge(SETTINGS, facts, FAMILIES) if one.id == "nexthops"]
    assert bool(found) is named
    assert all(one.level is Level.INFO for one in found)
    assert not [one for one in judge(SETTINGS, facts, (Family.V6,)) if one.id == "nexthops"]
