"""The contract of routes, neighbours, interface settings and links: what is kept, and what is refused."""

from __future__ import annotations

import errno
import struct

import pytest

from felixpy.model.net import Family, Net, parse_address
from felixpy.netlink import rtnetlink
from felixpy.netlink.message import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Request
from felixpy.netlink.rtnetlink import KernelNeighbour, KernelRoute, KernelRouteKey
from tests.contract.worlds import Tables

PROTOCOL = 222
ADDRESS = {Family.V4: "10.65.0.2", Family.V6: "fd00:65::2"}
BLOCK = {Family.V4: "10.65.1.0/26", Family.V6: "fd00:65:1::/122"}
NODE = {Family.V4: "192.0.2.1/24", Family.V6: "2001:db8::1/64"}
NEXT_NODE = {Family.V4: "192.0.2.9", Family.V6: "2001:db8::9"}
FAR = {Family.V4: "203.0.113.9", Family.V6: "2001:db8:ffff::9"}
MAC = bytes.fromhex("020000000001")


def key(family: Family, net: str = "", metric: int | None = None) -> KernelRouteKey:
    default = 0 if family is Family.V4 else 1024
    return KernelRouteKey(family, Net.parse(net or ADDRESS[family]), default if metric is None else metric, 254)


def through(tables: Tables, name: str, family: Family, **changes: object) -> KernelRoute:
    scope = 253 if family is Family.V4 and "gateway" not in changes else 0
    route = KernelRoute(rtnetlink.RTN_UNICAST, tables.index(name), scope=scope, protocol=PROTOCOL)
    return route._replace(**changes)


def put(one: KernelRouteKey, route: KernelRoute, flags: int = NLM_F_CREATE | NLM_F_REPLACE) -> Request:
    return rtnetlink.route_request(one, route)._replace(flags=flags)


def delete(one: KernelRouteKey, route: KernelRoute) -> Request:
    return rtnetlink.route_request(one, route, delete=True)


BLACKHOLE = KernelRoute(rtnetlink.RTN_BLACKHOLE, 0, protocol=PROTOCOL)


# --- routes -----------------------------------------------------------------------------------------------------


def test_a_route_is_read_as_it_was_written(tables: Tables, family: Family) -> None:
    tables.world.add_address("cali2", NODE[family])
    gateway = parse_address(NEXT_NODE[family])
    source = Net.parse_interface(NODE[family]).packed
    wanted = {
        key(family): through(tables, "cali1", family),
        key(family, BLOCK[family]): through(tables, "cali2", family, gateway=gateway, source=source),
        key(family, BLOCK[family], 7): BLACKHOLE,
    }
    assert tables.do(*(put(one, route) for one, route in wanted.items())) == [0, 0, 0]
    assert tables.routes(family, PROTOCOL) == wanted


def test_an_onlink_gateway_needs_no_address_of_its_network(tables: Tables, family: Family) -> None:
    gateway = parse_address(FAR[family])
    unreachable = through(tables, "cali1", family, gateway=gateway)
    assert tables.do(put(key(family, BLOCK[family]), unreachable)) == [
        errno.ENETUNREACH if family is Family.V4 else errno.EHOSTUNREACH
    ]
    onlink = unreachable._replace(onlink=True)
    assert tables.do(put(key(family, BLOCK[family]), onlink)) == [0]
    assert tables.routes(family, PROTOCOL) == {key(family, BLOCK[family]): onlink}


def test_ipv6_has_no_metric_0(tables: Tables) -> None:
    assert tables.do(put(key(Family.V6, metric=0), through(tables, "cali1", Family.V6))) == [0]
    assert [one.metric for one in tables.routes(Family.V6, PROTOCOL)] == [1024]


def test_the_flags_decide_between_new_and_replaced(tables: Tables, family: Family) -> None:
    one, two = through(tables, "cali1", family), through(tables, "cali2", family)
    assert tables.do(put(key(family), one, NLM_F_REPLACE)) == [errno.ENOENT]
    assert tables.do(put(key(family), one, NLM_F_CREATE | NLM_F_EXCL)) == [0]
    assert tables.do(put(key(family), one, NLM_F_CREATE | NLM_F_EXCL)) == [errno.EEXIST]
    assert tables.do(put(key(family), two)) == [0]
    assert tables.routes(family, PROTOCOL) == {key(family): two}


def test_another_metric_is_another_route(tables: Tables, family: Family) -> None:
    one, two = through(tables, "cali1", family), through(tables, "cali2", family)
    assert tables.do(put(key(family), one), put(key(family, metric=5), two)) == [0, 0]
    assert tables.routes(family, PROTOCOL) == {key(family): one, key(family, metric=5): two}
    assert tables.do(delete(key(family, metric=5), two)) == [0]
    assert tables.routes(family, PROTOCOL) == {key(family): one}


def test_deleting_what_is_not_there_or_is_another_ones_is_esrch(tables: Tables, family: Family) -> None:
    one = through(tables, "cali1", family)
    assert tables.do(delete(key(family), one)) == [errno.ESRCH]
    assert tables.do(put(key(family), one)) == [0]
    assert tables.do(delete(key(family), one._replace(protocol=80))) == [errno.ESRCH]
    assert tables.do(delete(key(family), through(tables, "cali2", family))) == [errno.ESRCH]
    assert tables.routes(family, PROTOCOL) == {key(family): one}
    assert tables.do(delete(key(family), one), delete(key(family), one)) == [0, errno.ESRCH]


def test_an_interface_has_to_be_there_and_up(tables: Tables, family: Family) -> None:
    one = through(tables, "cali1", family)
    assert tables.do(put(key(family), one._replace(interface=9999))) == [errno.ENODEV]
    tables.world.set_link("cali1", up=False)
    assert tables.do(put(key(family), one)) == [errno.ENETDOWN]


def test_a_source_address_has_to_be_ours(tables: Tables, family: Family) -> None:
    strange = through(tables, "cali1", family, source=parse_address(FAR[family]))
    assert tables.do(put(key(family), strange)) == [errno.EINVAL]


def test_host_bits_are_refused_in_ipv4_and_masked_in_ipv6(tables: Tables) -> None:
    for family, answer in ((Family.V4, errno.EINVAL), (Family.V6, 0)):
        block = Net.parse(BLOCK[family])
        dirty = Net(block.packed[:-1] + b"\x05", block.length)
        route = through(tables, "cali1", family)
        assert tables.do(put(key(family)._replace(destination=dirty), route)) == [answer]
        assert set(tables.routes(family, PROTOCOL)) == (set() if answer else {key(family, BLOCK[family])})


@pytest.mark.parametrize("gone", ["down", "deleted"])
def test_an_interface_that_goes_takes_the_routes_of_both_families(tables: Tables, gone: str) -> None:
    for family in Family:
        tables.world.add_address("cali1", NODE[family])
        gateway = parse_address(NEXT_NODE[family])
        assert tables.do(
            put(key(family), through(tables, "cali1", family)),
            put(key(family, BLOCK[family]), through(tables, "cali1", family, gateway=gateway)),
            put(key(family, "10.65.9.0/24" if family is Family.V4 else "fd00:65:9::/64"), BLACKHOLE),
        ) == [0, 0, 0]
    if gone == "down":
        tables.world.set_link("cali1", up=False)
        tables.world.set_link("cali1", up=True)
    else:
        tables.world.delete_link("cali1")
    for family in Family:
        assert list(tables.routes(family, PROTOCOL).values()) == [BLACKHOLE], "and none of them comes back"


def test_a_dump_can_be_of_one_interface(tables: Tables, family: Family) -> None:
    one, two = through(tables, "cali1", family), through(tables, "cali2", family)
    assert tables.do(put(key(family), one), put(key(family, BLOCK[family]), two)) == [0, 0]
    assert tables.routes(family, PROTOCOL, tables.index("cali2")) == {key(family, BLOCK[family]): two}


def test_every_message_of_a_batch_is_answered_for_itself(tables: Tables, family: Family) -> None:
    good, bad = through(tables, "cali1", family), through(tables, "cali1", family, interface=9999)
    nets = [f"10.66.0.{n}" if family is Family.V4 else f"fd00:66::{n}" for n in range(6)]
    requests = [put(key(family, net), bad if n in (0, 3, 5) else good) for n, net in enumerate(nets)]
    assert tables.do(*requests) == [errno.ENODEV, 0, 0, errno.ENODEV, 0, errno.ENODEV]
    assert len(tables.routes(family, PROTOCOL)) == 3


# --- neighbours -------------------------------------------------------------------------------------------------


def neighbour(tables: Tables, name: str, family: Family, mac: bytes = MAC) -> KernelNeighbour:
    return KernelNeighbour(tables.index(name), parse_address(ADDRESS[family]), mac, PROTOCOL)


def test_a_neighbour_is_read_as_written_and_replaced(tables: Tables, family: Family) -> None:
    one, other = neighbour(tables, "cali1", family), neighbour(tables, "cali1", family, MAC[::-1])
    assert tables.do(rtnetlink.neighbour_request(one)) == [0]
    assert tables.neighbours(family) == {one}
    exclusive = rtnetlink.neighbour_request(other)._replace(flags=NLM_F_CREATE | NLM_F_EXCL)
    assert tables.do(exclusive, rtnetlink.neighbour_request(other)) == [errno.EEXIST, 0]
    assert tables.neighbours(family) == {other}


def test_a_neighbour_that_is_not_there_is_enoent(tables: Tables, family: Family) -> None:
    one = neighbour(tables, "cali1", family)
    remove = rtnetlink.neighbour_request(one, delete=True)
    assert tables.do(remove, rtnetlink.neighbour_request(one), remove, remove) == [errno.ENOENT, 0, 0, errno.ENOENT]
    nowhere = one._replace(interface=9999)
    assert tables.do(rtnetlink.neighbour_request(nowhere), rtnetlink.neighbour_request(nowhere, delete=True)) == [
        errno.ENODEV,
        errno.ENODEV,
    ]


def test_neighbours_go_with_their_interface(tables: Tables, family: Family) -> None:
    stays = neighbour(tables, "cali2", family)
    for name in ("cali1", "cali2"):
        assert tables.do(rtnetlink.neighbour_request(neighbour(tables, name, family))) == [0]
    tables.world.set_link("cali1", up=False)
    assert tables.neighbours(family) == {stays}
    tables.world.delete_link("cali2")
    assert tables.neighbours(family) == set()


# --- interface settings and links ----------------------------------------------------------------------------------


def setting(tables: Tables, name: str, what: str) -> int | None:
    link = tables.link(name)
    assert link is not None
    return link.settings(Family.V4).get(what)


def test_settings_are_of_one_interface_and_gone_with_it(tables: Tables) -> None:
    before = setting(tables, "cali2", "proxy_arp")
    wanted = {"proxy_arp": 1, "rp_filter": 2, "route_localnet": 1, "forwarding": 1}
    assert tables.do(rtnetlink.link_settings_request(tables.index("cali1"), wanted)) == [0]
    assert {name: setting(tables, "cali1", name) for name in wanted} == wanted
    assert setting(tables, "cali2", "proxy_arp") == before
    tables.world.set_link("cali1", up=False)
    assert setting(tables, "cali1", "proxy_arp") == 1, "a link that is down keeps them"
    tables.world.delete_link("cali1")
    tables.world.add_link("cali1")
    assert setting(tables, "cali1", "proxy_arp") == 0


def test_settings_of_no_interface_are_enodev(tables: Tables) -> None:
    assert tables.do(rtnetlink.link_settings_request(9999, {"proxy_arp": 1})) == [errno.ENODEV]


def test_links_have_an_index_that_never_comes_back(tables: Tables) -> None:
    first = tables.index("cali1")
    tables.world.set_link("cali1", up=False)
    link = tables.link("cali1")
    assert link is not None and not link.up and link.ifindex == first
    tables.world.delete_link("cali1")
    assert tables.link("cali1") is None
    tables.world.add_link("cali1")
    again = tables.link("cali1")
    assert again is not None and again.up and again.ifindex > first


def test_an_unknown_message_is_refused(tables: Tables) -> None:
    assert tables.do(Request(250, 0, struct.pack("=I", 0))) == [errno.EOPNOTSUPP]
