"""Routes in the kernel: whose they are, how long strangers are spared, and what a link event asks for."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from msgspec.structs import replace

from felixpy.calc.entries import Route, RouteKey, RouteType
from felixpy.config import Settings
from felixpy.dataplane.links import Links
from felixpy.dataplane.ownership import Ownership
from felixpy.dataplane.routes import GRACE_SECONDS, RouteTable
from felixpy.dataplane.table import CONTEST_TOLERATED, Delta
from felixpy.model.net import Family, Net
from felixpy.netlink import rtnetlink as rt
from felixpy.netlink.monitor import monitor_routing
from felixpy.netlink.rtnetlink import KernelRoute
from felixpy.netlink.transport import NETLINK_ROUTE, NetlinkSocket
from tests.kernel import PROTOCOL, Clock, ip, ip_json, packed, pairs, reread_links, sysctl

SETTINGS = Settings()


@dataclass
class Routes:
    """A route table on the real kernel with a clock of its own."""

    table: RouteTable
    socket: NetlinkSocket
    clock: Clock

    def read(self) -> None:
        reread_links(self.table.links, self.table.table)
        found = asyncio.run(self.table.read(self.socket))
        asyncio.run(self.table.table.adopt(found, set(), self.clock.now))

    def write(self) -> Delta[RouteKey, KernelRoute]:
        """Write every difference, as the apply loop does; nothing may be refused."""
        table = self.table.table
        delta = table.delta(self.clock.now)
        requests = [rt.route_request(key, route) for key, route in delta.put.items()]
        requests += [rt.route_request(key, route, delete=True) for key, route in delta.remove.items()]
        assert self.socket.transact(requests) == {}
        table.record(delta, {}, self.clock.now)
        return delta


@pytest.fixture
def routes(network: None) -> Iterator[Routes]:
    clock = Clock()
    one = Routes(RouteTable(Links(clock), Ownership.of(SETTINGS), clock), NetlinkSocket(NETLINK_ROUTE), clock)
    yield one
    one.socket.close()


def key(net: str, metric: int | None = None) -> RouteKey:
    parsed = Net.parse(net)
    default = 0 if parsed.family is Family.V4 else 1024
    return RouteKey(parsed.family, parsed, default if metric is None else metric)


def workload(interface: str, family: Family = Family.V4) -> Route:
    return Route(RouteType.UNICAST, interface, scope=253 if family is Family.V4 else 0, protocol=PROTOCOL)


def destinations(protocol: str = "") -> set[str]:
    extra = ("proto", protocol) if protocol else ()
    found = [*ip_json("-4", "route", "show", *extra), *ip_json("-6", "route", "show", *extra)]
    return {one["dst"] for one in found}


V4, V6 = key("10.65.0.2/32"), key("fd00:65::2/128")


def want_both(routes: Routes, interface: str = "cali1") -> None:
    routes.table.table.want(V4, workload(interface))
    routes.table.table.want(V6, workload(interface, Family.V6))


# --- writing ----------------------------------------------------------------------------------------------------


def test_both_families_go_in_and_are_read_as_wanted(routes: Routes) -> None:
    pairs("cali1")
    routes.read()
    want_both(routes)
    blackhole = Route(RouteType.BLACKHOLE, None, protocol=PROTOCOL)
    for block in (key("10.65.0.0/26"), key("fd00:65::/122")):
        routes.table.table.want(block, blackhole)
    assert routes.write().put.keys() == {V4, V6, key("10.65.0.0/26"), key("fd00:65::/122")}
    routes.read()
    assert not routes.write()
    for one in list(routes.table.table.desired):
        routes.table.table.drop(one)
    assert len(routes.write().remove) == 4
    assert destinations(str(PROTOCOL)) == set()


def test_a_route_moves_to_another_interface_by_one_message(routes: Routes) -> None:
    pairs("cali1", "cali2")
    routes.read()
    want_both(routes)
    routes.write()
    want_both(routes, "cali2")
    delta = routes.write()
    assert (delta.put.keys(), delta.remove) == ({V4, V6}, {})
    found = ip_json("-4", "route", "show", "10.65.0.2") + ip_json("-6", "route", "show", "fd00:65::2")
    assert [one["dev"] for one in found] == ["cali2", "cali2"]


def test_an_interface_that_has_just_gone_has_no_routes(routes: Routes) -> None:
    pairs("cali1")
    routes.read()
    index = routes.table.links.by_name["cali1"].ifindex
    assert asyncio.run(routes.table.read(routes.socket, index)) == {}
    ip("link del cali1")
    assert asyncio.run(routes.table.read(routes.socket, index)) == {}


def test_another_metric_is_another_route(routes: Routes) -> None:
    pairs("cali1")
    routes.read()
    want_both(routes)
    routes.write()
    for old, metric in ((V4, 5), (V6, 5)):
        routes.table.table.drop(old)
        routes.table.table.want(old._replace(metric=metric), workload("cali1", old.family))
    delta = routes.write()
    assert delta.put.keys() == {V4._replace(metric=5), V6._replace(metric=5)}
    assert delta.remove.keys() == {V4, V6}
    routes.read()
    assert not routes.write()


def test_a_route_waits_for_its_interface_to_be_there_and_up(routes: Routes) -> None:
    routes.read()
    want_both(routes)
    assert not routes.write()
    assert routes.table.table.state_of(V4) == "interface cali1 does not exist"
    ip("link add cali1 type veth peer name p-cali1")
    routes.read()
    assert not routes.write()
    assert routes.table.table.state_of(V6) == "interface cali1 is down"
    ip("link set cali1 up")
    routes.read()
    assert routes.write().put.keys() == {V4, V6}


def test_a_link_that_flapped_gets_its_routes_again(routes: Routes) -> None:
    """The kernel removes the routes of both families and does not bring them back."""
    pairs("cali1")
    routes.read()
    want_both(routes)
    routes.write()
    ip("link set cali1 down", "link set cali1 up")
    assert destinations(str(PROTOCOL)) == set()
    routes.table.table.interface_changed("cali1", lost=True)
    assert routes.write().put.keys() == {V4, V6}
    assert {"10.65.0.2", "fd00:65::2"} <= destinations(str(PROTOCOL))


@pytest.mark.parametrize(
    "change",
    [
        "route replace 10.65.0.2/32 dev cali2 proto 222 scope link",
        "route replace 10.65.0.2/32 dev cali1 proto 222 scope link src 192.0.2.1",
        "route replace blackhole 10.65.0.2/32 proto 222",
        "route replace 10.65.0.2/32 dev cali1 proto 98 scope link",
        "route del 10.65.0.2/32",
        "route replace fd00:65::2/128 dev cali2 proto 222 metric 1024",
        "route replace blackhole fd00:65::2/128 proto 222 metric 1024",
        "route del fd00:65::2/128",
    ],
)
def test_a_route_changed_by_somebody_is_put_back(routes: Routes, change: str) -> None:
    pairs("cali1", "cali2")
    ip("addr add 192.0.2.1/24 dev lo")
    routes.read()
    want_both(routes)
    routes.write()
    right = listed()
    ip(change)
    routes.clock.now += GRACE_SECONDS + 1
    routes.read()
    assert routes.write()
    assert listed() == right
    routes.read()
    assert not routes.write()


def listed() -> tuple[list[Any], list[str]]:
    """All routes of both families, but for those that the kernel gives a new link, which may come late."""
    of_v6 = (route for route in ip_json("-6", "route", "show") if route["protocol"] != "kernel")
    return ip_json("-4", "route", "show"), sorted(map(str, of_v6))


ROUTERS = ("addr add 192.0.2.1/24 dev cali2", "addr add fd00:2::1/64 dev cali2 nodad")
BESIDE = {
    "v4 alike": (V4, "10.65.0.2/32 dev cali2 proto static scope link"),
    "v4 longer": (V4, "10.65.0.2/32 via 192.0.2.9 dev cali2 proto static onlink"),
    "v6 alike": (V6, "fd00:65::2/128 dev cali2 proto static metric 1024"),
    "v6 longer": (V6, "fd00:65::2/128 via fd00:2::9 dev cali2 proto static metric 1024 onlink"),
}
"""Routes with the key of one of ours: their messages are as long as ours, or not."""


@pytest.mark.parametrize("together", [1, 128], ids=["apart", "together"])
@pytest.mark.parametrize("beside", BESIDE)
def test_a_route_of_the_same_key_behind_ours_is_no_drift(
    routes: Routes, beside: str, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel uses the first."""
    monkeypatch.setattr(routes.socket, "decode_together", partial(routes.socket.decode_together, at_once=together))
    one, route = BESIDE[beside]
    pairs("cali1", "cali2")
    ip(*ROUTERS)
    routes.read()
    want_both(routes)
    routes.write()
    ip(f"route append {route}")
    found = shown(one)
    assert [each["protocol"] for each in found] == [str(PROTOCOL), "static"]
    routes.read()
    assert not routes.write()
    assert routes.table.table.drifted == 0
    assert shown(one) == found


@pytest.mark.parametrize("together", [1, 128], ids=["apart", "together"])
@pytest.mark.parametrize("beside", ["v4 alike", "v4 longer"])
def test_a_route_of_the_same_key_before_ours_is_seen_and_said(
    routes: Routes, beside: str, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the traffic; the kernel refuses to replace it by a route that stands already."""
    monkeypatch.setattr(routes.socket, "decode_together", partial(routes.socket.decode_together, at_once=together))
    pairs("cali1", "cali2")
    ip(*ROUTERS)
    routes.read()
    want_both(routes)
    routes.write()
    ip(f"route prepend {BESIDE[beside][1]}")
    assert [each["protocol"] for each in shown(V4)] == ["static", str(PROTOCOL)]
    routes.read()
    delta = routes.table.table.delta(routes.clock.now)
    assert delta.put.keys() == {V4}
    refused = routes.socket.transact([rt.route_request(V4, delta.put[V4])])
    assert [refusal.errno for refusal in refused.values()] == [errno.EEXIST]
    ip(f"route del {BESIDE[beside][1].removesuffix(' onlink')}")
    routes.read()
    assert not routes.write()


def test_anothers_route_before_that_of_a_block_is_seen_by_a_reading(routes: Routes) -> None:
    """A reading that found ours behind it alone took back what its notification had told."""
    pairs("eth0")
    ip("addr add 192.0.2.1/24 dev eth0")
    block = key("10.65.0.0/26")
    routes.read()
    routes.table.table.want(block, Route(RouteType.BLACKHOLE, None, protocol=PROTOCOL))
    routes.write()
    ip("route prepend 10.65.0.0/26 via 192.0.2.9 proto static")
    routes.read()
    assert routes.table.table.committed[block].protocol == 4  # RTPROT_STATIC
    ip("route del 10.65.0.0/26 via 192.0.2.9 proto static")
    routes.read()
    assert not routes.write()
    assert routes.table.table.committed[block].protocol == PROTOCOL


def shown(one: RouteKey) -> list[dict[str, object]]:
    return ip_json(f"-{one.family.version}", "route", "show", str(one.destination))


# --- ownership --------------------------------------------------------------------------------------------------


def test_our_routes_of_an_earlier_life_go_and_foreign_ones_stay(routes: Routes) -> None:
    pairs("cali1", "eth0")
    ip(
        "addr add 192.0.2.1/24 dev eth0",
        "addr add 2001:db8::1/64 dev eth0 nodad",
        "route add 10.9.1.0/24 via 192.0.2.9 proto 222",
        "route add fd00:9:1::/64 via 2001:db8::9 proto 222",
        "route add blackhole 10.9.2.0/24 proto 222",
        "route add 10.9.3.0/24 via 192.0.2.9 proto bird",
        "route add fd00:9:3::/64 via 2001:db8::9 proto static",
        "route add blackhole 10.9.4.0/24 proto 80",
        "route add 10.9.5.0/24 dev eth0 table 1000 proto 222",
    )
    before = destinations()
    routes.clock.now += GRACE_SECONDS + 1
    routes.read()
    removed = {str(one.destination) for one in routes.write().remove}
    assert removed == {"10.9.1.0/24", "fd00:9:1::/64", "10.9.2.0/24"}
    assert before - destinations() == {"10.9.1.0/24", "fd00:9:1::/64", "10.9.2.0/24"}
    assert ip_json("route", "show", "table", "1000")


@pytest.mark.parametrize("seen", ["read", "told"])
def test_another_programs_route_in_place_of_ours_stays_when_ours_is_not_wanted_any_more(
    routes: Routes, seen: str
) -> None:
    """A BGP speaker that takes over what felixpy routed, and then ``ProgramClusterRoutes`` is disabled."""
    pairs("eth0", "cali1")
    ip(*(line.replace("cali2", "eth0") for line in ROUTERS))
    routes.read()
    blocks = {key("10.65.1.0/26"): "192.0.2.2", key("fd00:65::40/122"): "fd00:2::2"}
    for one, gateway in blocks.items():
        route = Route(RouteType.UNICAST, "eth0", packed(gateway), onlink=True, protocol=PROTOCOL)
        routes.table.table.want(one, route)
    want_both(routes)
    routes.write()
    with contextlib.closing(monitor_routing([routes.socket.port])) as monitor:
        for one, gateway in blocks.items():
            ip(f"route replace {one.destination} via {gateway} dev eth0 proto bird metric {one.metric}")
        if seen == "read":
            routes.read()
        for message in monitor.read() or () if seen == "told" else ():
            routes.table.notify(message)
    assert routes.table.table.delta(routes.clock.now).put.keys() == blocks.keys()
    for one in list(routes.table.table.desired):
        routes.table.table.drop(one)
    assert routes.write().remove.keys() == {V4, V6}
    assert [each["protocol"] for one in blocks for each in shown(one)] == ["bird", "bird"]
    assert not routes.table.table.committed
    assert not routes.table.table.dirty


EXTERNAL = ("route add 10.65.0.9/32 dev cali1 proto boot scope link", "route add fd00:65::9/128 dev cali1 proto boot")


def test_an_external_route_on_a_workload_interface_is_spared_while_the_interface_is_young(routes: Routes) -> None:
    """A CNI plugin makes the route before the endpoint arrives."""
    pairs("cali1", "eth0")
    ip(*EXTERNAL, "route add 10.65.0.10/32 dev eth0 proto boot scope link")
    routes.read()
    assert routes.table.next_removal() == routes.clock.now + GRACE_SECONDS
    assert not routes.write()
    routes.clock.now += GRACE_SECONDS - 0.5
    assert not routes.write()
    routes.clock.now += 0.5
    assert {str(one.destination) for one in routes.write().remove} == {"10.65.0.9/32", "fd00:65::9/128"}
    assert routes.table.next_removal() is None
    assert {"10.65.0.10"} <= destinations()


def test_a_removal_that_is_undone_again_and_again_is_not_due_before_its_pause_is_over(routes: Routes) -> None:
    """It counted as due at once, always: the agent wrote nothing, and slept never."""
    pairs("cali1")
    routes.read()
    for _ in range(CONTEST_TOLERATED + 1):
        assert routes.table.next_removal() is None
        ip("route add 10.9.1.0/24 dev cali1 proto 222")
        routes.read()
        routes.write()
    (refused,) = routes.table.table.refused.values()
    assert "another program keeps changing this" in refused.reason
    assert "10.9.1.0/24" in destinations()
    assert routes.table.next_removal() is None
    assert routes.table.table.next_retry() == refused.retry_at > routes.clock.now
    routes.clock.now = refused.retry_at
    assert routes.write().remove.keys() == {key("10.9.1.0/24")}


def test_an_external_route_becomes_ours_when_its_endpoint_arrives(routes: Routes) -> None:
    pairs("cali1")
    ip(*EXTERNAL)
    routes.read()
    ours = {key("10.65.0.9/32"): workload("cali1"), key("fd00:65::9/128"): workload("cali1", Family.V6)}
    for one, route in ours.items():
        routes.table.table.want(one, route)
    delta = routes.write()
    assert (delta.put.keys(), delta.remove) == (ours.keys(), {})
    assert {"10.65.0.9", "fd00:65::9"} <= destinations(str(PROTOCOL))
    assert routes.table.next_removal() is None


def test_an_external_route_for_a_type_of_service_or_by_a_nexthop_object_is_removed_too(routes: Routes) -> None:
    """A delete without the two finds no such route, and what is not found counts as removed."""
    pairs("cali1", "cali2")
    routes.read()
    want_both(routes)
    routes.write()
    ip(
        "nexthop add id 9 dev cali2",
        "nexthop add id 10 via inet6 fe80::9 dev cali2 onlink",
        "route add 10.9.1.0/24 dev cali1 tos 0x10 proto static",
        "route add 10.9.1.0/24 dev cali1 proto static",
        "route add 10.65.0.2/32 dev cali2 tos 0x10 proto static scope link",  # before ours, which is for the rest
        "route add 10.9.2.0/24 nhid 9 proto static",
        "route add fd00:9:3::/64 nhid 10 proto static",
        "route add 10.9.4.0/24 via inet6 fe80::9 dev cali2 proto static",
    )
    routes.clock.now += GRACE_SECONDS + 1
    routes.read()
    assert routes.table.table.committed[V4] == routes.table.table._resolve(V4, workload("cali1"))
    assert len(routes.write().remove) == 6
    assert {"10.9.1.0/24", "10.9.2.0/24", "fd00:9:3::/64", "10.9.4.0/24"} & destinations() == set()
    assert [each["protocol"] for each in shown(V4)] == [str(PROTOCOL)]
    routes.read()
    assert not routes.write()
    assert str(V4._replace(tos=0x10)) == "10.65.0.2/32 tos 0x10 metric 0"


def test_external_routes_stay_where_they_are_not_to_be_removed(routes: Routes) -> None:
    pairs("cali1")
    ip(*EXTERNAL)
    routes.table.ownership = Ownership.of(replace(SETTINGS, remove_external_routes=False))
    routes.clock.now += GRACE_SECONDS + 1
    routes.read()
    assert not routes.write()
    assert {"10.65.0.9", "fd00:65::9"} <= destinations()


def test_the_kernels_own_and_learnt_routes_on_a_workload_interface_stay(routes: Routes) -> None:
    sysctl("ipv6/conf/default/accept_dad", 0)
    pairs("cali1")
    ip(
        "addr add 192.0.2.1/24 dev cali1",
        "addr add fd00:1::1/64 dev cali1 nodad",
        "route add fd00:2::/64 dev cali1 proto ra",
        "route add fe80::/10 dev cali1 proto boot",
    )
    routes.read()
    routes.clock.now += GRACE_SECONDS + 1
    before = destinations()
    assert {"192.0.2.0/24", "fd00:1::/64", "fe80::/64", "fd00:2::/64", "fe80::/10"} <= before
    assert not routes.write()
    assert destinations() == before


def test_a_young_interface_of_an_old_name_starts_a_new_grace_period(routes: Routes) -> None:
    pairs("cali1")
    routes.read()
    ip("link del cali1")
    routes.clock.now += GRACE_SECONDS + 1
    pairs("cali1")
    ip(*EXTERNAL)
    routes.read()
    assert not routes.write()
    assert routes.table.next_removal() == routes.clock.now + GRACE_SECONDS


def test_a_route_of_another_protocol_with_a_wanted_key_is_replaced(routes: Routes) -> None:
    """After a change of DeviceRouteProtocol the old routes are nobody's; those still wanted become ours again."""
    pairs("cali1")
    ip("route add 10.65.0.2/32 dev cali1 proto 77 scope link")
    routes.read()
    routes.table.table.want(V4, workload("cali1"))
    assert routes.write().put.keys() == {V4}
    (found,) = ip_json("route", "show", "10.65.0.2")
    assert found["protocol"] == str(PROTOCOL)
