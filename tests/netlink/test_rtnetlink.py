"""rtnetlink: our bytes are pyroute2's bytes, and what one of the two writes the other one reads back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroute2 import IPRoute
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from felixpy.model.net import FAMILIES, Family, Net, format_address
from felixpy.netlink import rtnetlink as rt
from felixpy.netlink.message import Message, attribute, nested, parse_messages
from felixpy.netlink.rtnetlink import KernelNeighbour, KernelRoute, KernelRouteKey
from felixpy.netlink.transport import NETLINK_ROUTE, NetlinkSocket
from tests.kernel import PROTOCOL, any_net, ip, ip_json, packed, pairs, sysctl

MAIN = 254
PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)


@pytest.fixture
def netlink(network: None) -> Iterator[NetlinkSocket]:
    socket = NetlinkSocket(NETLINK_ROUTE)
    yield socket
    socket.close()


@pytest.fixture
def oracle(network: None) -> Iterator[IPRoute]:
    with IPRoute() as netlink:
        yield netlink


def encoded(message: Any) -> bytes:
    """A pyroute2 message as bytes, without the 16-byte header."""
    message.encode()
    return bytes(message.data[16:])


# --- routes -----------------------------------------------------------------------------------------------------


@st.composite
def routes(draw: st.DrawFn) -> tuple[KernelRouteKey, KernelRoute]:
    family = draw(st.sampled_from(FAMILIES))
    address = st.binary(min_size=family.bits // 8, max_size=family.bits // 8)
    net = any_net(draw(st.integers(0, 2**family.bits - 1)), draw(st.integers(0, family.bits)), family)
    tos = draw(st.sampled_from([0, 0x10])) if family is Family.V4 else 0
    key = KernelRouteKey(family, net, draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 2**32 - 1)), tos)
    return key, KernelRoute(
        type=draw(st.sampled_from([1, 6])),
        interface=draw(st.integers(0, 2**31 - 1)),
        gateway=draw(st.none() | address),
        onlink=draw(st.booleans()),
        source=draw(st.none() | address),
        scope=draw(st.sampled_from([0, 253])),
        protocol=draw(st.integers(0, 255)),
    )


def oracle_route(key: KernelRouteKey, route: KernelRoute) -> rtmsg:
    message = rtmsg()
    values = {"family": key.family, "dst_len": key.destination.length, "tos": key.tos, "proto": route.protocol}
    values |= {"table": key.table if key.table < 256 else 0, "scope": route.scope, "type": route.type}
    values["flags"] = 4 if route.onlink else 0  # RTNH_F_ONLINK
    for name, value in values.items():
        message[name] = int(value)
    parts: list[tuple[str, Any]] = [("RTA_DST", format_address(key.destination.packed))]
    parts += [("RTA_OIF", route.interface)] if route.interface else []
    parts += [("RTA_GATEWAY", format_address(route.gateway))] if route.gateway else []
    parts += [("RTA_PREFSRC", format_address(route.source))] if route.source else []
    parts += [("RTA_PRIORITY", key.metric)] if key.metric else []
    parts += [("RTA_TABLE", key.table)] if key.table >= 256 else []
    message["attrs"] = parts
    return message


@given(routes())
@PROPERTY
def test_a_route_has_the_bytes_of_pyroute2(route: tuple[KernelRouteKey, KernelRoute]) -> None:
    request = rt.route_request(*route)
    assert request.payload == encoded(oracle_route(*route))
    assert (request.type, request.flags) == (rt.RTM_NEWROUTE, 0x400 | 0x100)  # NLM_F_CREATE | NLM_F_REPLACE


@given(routes())
@PROPERTY
def test_a_route_decodes_to_what_was_encoded(route: tuple[KernelRouteKey, KernelRoute]) -> None:
    key, value = route
    request = rt.route_request(key, value)
    header = (16 + len(request.payload)).to_bytes(4, "little") + request.type.to_bytes(2, "little") + bytes(10)
    (message,) = parse_messages(header + request.payload)
    expected = value if value.type == rt.RTN_UNICAST else value._replace(interface=0)
    assert rt.decode_route(message) == (key, expected)


@dataclass(frozen=True)
class RouteCase:
    """A route as felixpy writes it, and what ``ip -json route`` says of it."""

    destination: str
    route: KernelRoute
    said: dict[str, Any]
    metric: int = 0
    table: int = MAIN


def _cases(index: int) -> dict[str, RouteCase]:
    def unicast(**values: Any) -> KernelRoute:
        return KernelRoute(1, index, protocol=PROTOCOL, **values)

    via4, via6 = packed("198.51.100.9"), packed("2001:db8:9::9")
    return {
        "v4 workload": RouteCase(
            "10.65.0.2/32", unicast(scope=253), {"dst": "10.65.0.2", "dev": "cali1", "scope": "link"}
        ),
        "v4 metric and source": RouteCase(
            "10.65.0.3/32", unicast(scope=253, source=packed("192.0.2.1")), {"metric": 77, "prefsrc": "192.0.2.1"}, 77
        ),
        "v4 onlink": RouteCase(
            "10.65.1.0/26", unicast(gateway=via4, onlink=True), {"gateway": "198.51.100.9", "flags": ["onlink"]}
        ),
        "v4 blackhole": RouteCase("10.65.2.0/26", KernelRoute(6, 0, protocol=PROTOCOL), {"type": "blackhole"}),
        "v4 default": RouteCase("0.0.0.0/0", unicast(scope=253), {"dst": "default", "dev": "cali1"}),
        "v4 other table": RouteCase("10.65.3.0/24", unicast(scope=253), {"metric": 5, "dev": "cali1"}, 5, 1000),
        "v6 workload": RouteCase(
            "fd00:65::2/128", unicast(), {"dst": "fd00:65::2", "dev": "cali1", "metric": 1024}, 1024
        ),
        "v6 source": RouteCase("fd00:65::3/128", unicast(source=packed("2001:db8::1")), {"prefsrc": "2001:db8::1"}, 9),
        "v6 onlink": RouteCase(
            "fd00:65:1::/122", unicast(gateway=via6, onlink=True), {"gateway": "2001:db8:9::9"}, 1024
        ),
        "v6 blackhole": RouteCase(
            "fd00:65:2::/122", KernelRoute(6, 0, protocol=PROTOCOL), {"type": "blackhole", "dev": "lo"}, 1024
        ),
        "v6 default": RouteCase("::/0", unicast(), {"dst": "default", "dev": "cali1"}, 1024),
        "v6 other table": RouteCase("fd00:65:3::/64", unicast(), {"metric": 1024, "dev": "cali1"}, 1024, 1000),
    }


CASES = list(_cases(1))


def prepared(name: str) -> tuple[KernelRouteKey, RouteCase]:
    """A workload interface and node addresses; the case's key in that network."""
    pairs("cali1")
    ip("addr add 192.0.2.1/24 dev lo", "addr add 2001:db8::1/64 dev lo nodad")
    (link,) = ip_json("link", "show", "cali1")
    case = _cases(link["ifindex"])[name]
    net = Net.parse(case.destination)
    return KernelRouteKey(net.family, net, case.metric, case.table), case


def dumped(netlink: NetlinkSocket, family: Family, table: int = MAIN) -> dict[KernelRouteKey, KernelRoute]:
    messages = netlink.dump_all(rt.route_dump_request(family, table))
    decoded = [found for message in messages if (found := rt.decode_route(message)) is not None]
    ours = [(key, route) for key, route in decoded if route.protocol == PROTOCOL]
    assert len(dict(ours)) == len(ours)
    return dict(ours)


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_holds_the_route_that_was_written(netlink: NetlinkSocket, name: str) -> None:
    key, case = prepared(name)
    assert netlink.transact([rt.route_request(key, case.route)]) == {}
    version = f"-{key.family.version}"
    (said,) = ip_json(version, "route", "show", "table", str(case.table), "proto", str(PROTOCOL))
    assert {word: said.get(word) for word in case.said} == case.said
    assert dumped(netlink, key.family, case.table) == {key: case.route}

    assert netlink.transact([rt.route_request(key, case.route)]) == {}  # replaced by itself
    assert dumped(netlink, key.family, case.table) == {key: case.route}

    assert netlink.transact([rt.route_request(key, case.route, delete=True)]) == {}
    assert dumped(netlink, key.family, case.table) == {}
    assert netlink.transact([rt.route_request(key, case.route, delete=True)])[0].errno in (2, 3)  # gone


@pytest.mark.parametrize("name", CASES)
def test_a_route_written_by_pyroute2_is_read_as_our_own(netlink: NetlinkSocket, oracle: IPRoute, name: str) -> None:
    key, case = prepared(name)
    route = case.route
    values: dict[str, Any] = {"oif": route.interface, "gateway": route.gateway and format_address(route.gateway)}
    values |= {"prefsrc": route.source and format_address(route.source), "priority": key.metric}
    values = {word: value for word, value in values.items() if value}
    values |= {"dst": case.destination, "table": case.table, "proto": PROTOCOL, "scope": route.scope}
    values |= {"type": route.type, "flags": 4 if route.onlink else 0}  # RTNH_F_ONLINK
    oracle.route("add", **values)
    assert dumped(netlink, key.family, case.table) == {key: case.route}


@given(st.sampled_from(FAMILIES), st.integers(1, 2**32 - 1), st.integers(0, 2**31 - 1), st.integers(0, 255))
@PROPERTY
def test_a_dump_of_routes_has_the_bytes_of_pyroute2(family: Family, table: int, interface: int, protocol: int) -> None:
    message = rtmsg()
    message["family"], message["table"], message["proto"] = int(family), table if table < 256 else 0, protocol
    message["attrs"] = [("RTA_TABLE", table), *([("RTA_OIF", interface)] if interface else [])]
    request = rt.route_dump_request(family, table, interface, protocol)
    assert (request.type, request.payload) == (rt.RTM_GETROUTE, encoded(message))


def test_deleting_spares_a_route_of_another_owner(netlink: NetlinkSocket) -> None:
    pairs("cali1")
    ip("route add 10.65.0.2/32 dev cali1 proto 98", "route add fd00:65::2/128 dev cali1 proto 98")
    index = ip_json("link", "show", "cali1")[0]["ifindex"]
    for text, metric, scope in (("10.65.0.2/32", 0, 253), ("fd00:65::2/128", 1024, 0)):
        net = Net.parse(text)
        key = KernelRouteKey(net.family, net, metric, MAIN)
        ours = KernelRoute(1, index, scope=scope, protocol=PROTOCOL)
        assert netlink.transact([rt.route_request(key, ours, delete=True)])[0].errno == 3  # ESRCH
        assert [r["protocol"] for r in ip_json(f"-{net.family.version}", "route", "show", text)] == ["98"]


def test_multipath_and_kernel_routes_decode(netlink: NetlinkSocket) -> None:
    pairs("cali1", "cali2")
    ip("addr add 192.0.2.1/24 dev cali1", "addr add 198.51.100.1/24 dev cali2")
    ip("route add 10.9.0.0/16 nexthop via 192.0.2.7 nexthop via 198.51.100.7")
    found = [rt.decode_route(message) for message in netlink.dump_all(rt.route_dump_request(Family.V4, MAIN))]
    by_net = {str(key.destination): route for key, route in filter(None, found)}
    assert by_net["10.9.0.0/16"].interface == 0
    assert by_net["192.0.2.0/24"].protocol == rt.RTPROT_KERNEL


# --- neighbours -------------------------------------------------------------------------------------------------


@given(
    address=st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16),
    mac=st.binary(min_size=6, max_size=6),
    interface=st.integers(1, 2**31 - 1),
    protocol=st.integers(1, 255),
)
@PROPERTY
def test_a_neighbour_has_the_bytes_of_pyroute2(address: bytes, mac: bytes, interface: int, protocol: int) -> None:
    message = ndmsg()
    message["family"] = 2 if len(address) == 4 else 10
    message["ifindex"], message["state"] = interface, 0x80  # NUD_PERMANENT
    message["attrs"] = [
        ("NDA_DST", format_address(address)), ("NDA_LLADDR", mac.hex(":")), ("NDA_PROTOCOL", protocol),
    ]  # fmt: skip
    request = rt.neighbour_request(KernelNeighbour(interface, address, mac, protocol))
    assert request.payload == encoded(message)


@pytest.mark.parametrize("address", ["10.65.0.2", "fd00:65::2"])
def test_a_neighbour_lives_in_the_kernel_as_written(netlink: NetlinkSocket, address: str) -> None:
    pairs("cali1")
    index = ip_json("link", "show", "cali1")[0]["ifindex"]
    family = Family.V6 if ":" in address else Family.V4

    def held() -> list[KernelNeighbour]:
        messages = netlink.dump_all(rt.neighbour_dump_request(family))
        return [found for message in messages if (found := rt.decode_neighbour(message))]

    for mac in ("ee:ee:ee:ee:ee:01", "ee:ee:ee:ee:ee:02"):  # the second one replaces the first
        ours = KernelNeighbour(index, packed(address), bytes.fromhex(mac.replace(":", "")), PROTOCOL)
        assert netlink.transact([rt.neighbour_request(ours)]) == {}
        (said,) = [one for one in ip_json("neigh", "show", "dev", "cali1") if "PERMANENT" in one["state"]]
        assert (said["dst"], said["lladdr"], said["protocol"]) == (address, mac, str(PROTOCOL))
        assert held() == [ours]
    assert netlink.transact([rt.neighbour_request(ours, delete=True)]) == {}
    assert held() == []


def test_neighbours_that_come_and_go_are_not_ours(netlink: NetlinkSocket) -> None:
    pairs("cali1")
    ip(
        "neigh add 10.65.0.3 lladdr ee:ee:ee:ee:ee:03 dev cali1 nud reachable",
        "neigh add 10.65.0.4 lladdr ee:ee:ee:ee:ee:04 dev cali1 nud permanent",
    )
    messages = netlink.dump_all(rt.neighbour_dump_request(Family.V4))
    found = [one for message in messages if (one := rt.decode_neighbour(message))]
    assert [(one.address, one.protocol) for one in found] == [(packed("10.65.0.4"), 0)]


# --- links ------------------------------------------------------------------------------------------------------

IPV4_VALUES = {"forwarding": 1, "proxy_arp": 1, "rp_filter": 2, "route_localnet": 1}


def oracle_links(oracle: IPRoute) -> dict[str, ifinfmsg]:
    return {message.get("IFLA_IFNAME"): message for message in oracle.link("dump")}


def test_links_decode_as_pyroute2_decodes_them(netlink: NetlinkSocket, oracle: IPRoute) -> None:
    pairs("cali1", "cali2")
    ip("link set p-cali2 down")
    ours = {link.name: link for link in map(rt.decode_link, netlink.dump_all(rt.link_dump_request()))}
    theirs = oracle_links(oracle)
    assert ours.keys() == theirs.keys() == {"lo", "cali1", "p-cali1", "cali2", "p-cali2"}
    for name, link in ours.items():
        message = theirs[name]
        assert link.ifindex == message["index"]
        assert link.mac.hex(":") == message.get("IFLA_ADDRESS")
        assert link.up == bool(message["flags"] & 1)
        spec = message.get("IFLA_AF_SPEC")
        for setting in rt.IPV4_DEVCONF:
            assert link.settings(Family.V4).get(setting) == spec.get_attr("AF_INET")[setting]
        for setting in rt.IPV6_DEVCONF:
            assert link.settings(Family.V6).get(setting) == sysctl(f"ipv6/conf/{name}/{setting}")
    assert not ours["p-cali2"].up


def test_link_settings_are_what_proc_shows(netlink: NetlinkSocket) -> None:
    pairs("cali1", "cali2")
    index = ip_json("link", "show", "cali1")[0]["ifindex"]
    before = {name: sysctl(f"ipv4/conf/cali2/{name}") for name in IPV4_VALUES}
    assert before != IPV4_VALUES
    assert netlink.transact([rt.link_settings_request(index, IPV4_VALUES)]) == {}
    assert {name: sysctl(f"ipv4/conf/cali1/{name}") for name in IPV4_VALUES} == IPV4_VALUES
    assert {name: sysctl(f"ipv4/conf/cali2/{name}") for name in IPV4_VALUES} == before
    (link,) = [link for link in map(rt.decode_link, netlink.dump_all(rt.link_dump_request())) if link.name == "cali1"]
    assert {name: link.settings(Family.V4).get(name) for name in IPV4_VALUES} == IPV4_VALUES


def test_a_setting_that_a_message_does_not_carry_is_unknown() -> None:
    conf = nested(rt.IFLA_AF_SPEC, nested(Family.V4, attribute(rt.IFLA_INET_CONF, (1).to_bytes(4, "little") * 3)))
    link = rt.decode_link(Message(rt.RTM_NEWLINK, 0, 0, bytes(16) + conf))
    assert link.settings(Family.V4).get("forwarding") == 1
    assert link.settings(Family.V4).get("rp_filter") is None  # an older kernel with a shorter array
    assert link.settings(Family.V4).get("no_such_setting") is None
    assert link.settings(Family.V6).get("forwarding") is None
    assert link.settings(Family.V6).get("no_such_setting") is None


# --- addresses --------------------------------------------------------------------------------------------------


@st.composite
def address_messages(draw: st.DrawFn) -> ifaddrmsg:
    """An address as kernels tell it: IPv6 by IFA_ADDRESS, IPv4 by both (which differ with a peer); maybe old flags."""
    family = draw(st.sampled_from(FAMILIES))
    address = st.binary(min_size=family.bits // 8, max_size=family.bits // 8).map(format_address)
    message = ifaddrmsg()
    message["family"], message["index"] = int(family), draw(st.integers(1, 2**31 - 1))
    message["prefixlen"], message["scope"] = draw(st.integers(0, family.bits)), draw(st.integers(0, 255))
    flags = draw(st.integers(0, 2**12))
    message["flags"] = flags & 0xFF
    message["attrs"] = [("IFA_ADDRESS", draw(address))]
    message["attrs"] += [("IFA_LOCAL", draw(address))] if draw(st.booleans()) else []
    message["attrs"] += [("IFA_FLAGS", flags)] if draw(st.booleans()) else []
    return message


@given(address_messages())
@PROPERTY
def test_an_address_decodes_as_pyroute2_decodes_it(message: ifaddrmsg) -> None:
    found = rt.decode_address(Message(rt.RTM_NEWADDR, 0, 0, encoded(message)))
    address = message.get("IFA_LOCAL") or message.get("IFA_ADDRESS")
    failed = (message.get("IFA_FLAGS") or message["flags"]) & rt.IFA_F_DADFAILED
    net = Net.parse_interface(f"{address}/{message['prefixlen']}")
    assert found == (None if failed else rt.InterfaceAddress(message["index"], net))


def test_addresses_of_other_families_are_passed_over() -> None:
    message = bytes((45, 8, 0, 0, 1, 0, 0, 0)) + attribute(rt.IFA_LOCAL, b"\x09")  # AF_MCTP
    assert rt.decode_address(Message(rt.RTM_NEWADDR, 0, 0, message)) is None


@given(st.integers(0, 2**31 - 1))
@PROPERTY
def test_a_dump_of_addresses_has_the_bytes_of_pyroute2(interface: int) -> None:
    message = ifaddrmsg()
    message["index"] = interface
    request = rt.address_dump_request(interface)
    assert (request.type, request.payload) == (rt.RTM_GETADDR, encoded(message))


def test_the_kernel_dumps_the_addresses_of_one_interface_as_to_pyroute2(netlink: NetlinkSocket) -> None:
    pairs("eth0", "eth1")
    ip(
        "addr add 192.0.2.5/24 dev eth0", "addr add 192.0.2.6/24 dev eth0",
        "addr add 192.0.2.7 peer 203.0.113.7/32 dev eth0", "addr add 2001:db8::5/64 dev eth0",
        "addr add 198.51.100.5/24 dev eth1", "addr add 2001:db8:1::5/64 dev eth1 nodad",
    )  # fmt: skip
    index = ip_json("link", "show", "eth0")[0]["ifindex"]
    ours = [rt.decode_address(message) for message in netlink.dump_all(rt.address_dump_request(index))]
    with IPRoute(strict_check=True) as oracle:
        theirs = [
            (each["index"], each.get("IFA_LOCAL") or each.get("IFA_ADDRESS"), each["prefixlen"])
            for each in oracle.addr("dump", index=index)
        ]
    assert len(ours) >= 4  # and the link's own one
    assert [(one.interface, format_address(one.net.packed), one.net.length) for one in ours if one] == theirs
    assert ("192.0.2.7", 32) in [(address, length) for _, address, length in theirs]
