"""Links: a dump and then the kernel's own notifications keep names and indexes true; who is hurt is named."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator

import pytest

from felixpy.dataplane.links import LinkEvents, Links
from felixpy.model.net import Family
from felixpy.netlink import rtnetlink as rt
from felixpy.netlink.message import Message, attribute
from felixpy.netlink.monitor import Monitor, monitor_routing
from tests.kernel import Clock, ip, ip_json, pairs, read_links


@dataclasses.dataclass
class Watched:
    """Links that follow the kernel of a private network."""

    links: Links
    monitor: Monitor
    clock: Clock

    def take(self) -> LinkEvents:
        messages = self.monitor.read()
        assert messages is not None
        return self.links.notify(messages)

    def fresh(self) -> dict[str, tuple[int, bool, bytes]]:
        links = Links(self.clock)
        read_links(links)
        return state(links)


def state(links: Links) -> dict[str, tuple[int, bool, bytes]]:
    assert {link.ifindex: link for link in links.by_name.values()} == links.by_index
    assert links.first_seen.keys() == links.by_index.keys()
    return {name: (link.ifindex, link.up, link.mac) for name, link in links.by_name.items()}


@pytest.fixture
def watched(network: None) -> Iterator[Watched]:
    clock = Clock()
    monitor = monitor_routing(())
    one = Watched(Links(clock), monitor, clock)
    read_links(one.links)
    yield one
    monitor.close()


def index_of(name: str) -> int:
    return int(ip_json("link", "show", name)[0]["ifindex"])


def test_an_interface_appears_comes_up_and_vanishes(watched: Watched) -> None:
    ip("link add cali1 type veth peer name p-cali1")
    events = watched.take()
    assert (events.changed, events.lost) == ({"cali1", "p-cali1"}, set())
    assert not watched.links.by_name["cali1"].up
    ip("link set cali1 up")
    events = watched.take()
    assert (events.changed, events.lost) == ({"cali1"}, set())
    assert state(watched.links) == watched.fresh()
    ip("link del cali1")
    events = watched.take()
    assert events.lost == events.changed == {"cali1", "p-cali1"}
    assert state(watched.links) == watched.fresh()


def test_a_flap_between_two_reads_is_a_loss(watched: Watched) -> None:
    """Up before and up after, but the routes went in between."""
    pairs("cali1")
    watched.take()
    ip("link set cali1 down", "link set cali1 up")
    assert watched.take().lost == {"cali1"}
    assert watched.links.by_name["cali1"].up


def test_a_rename_hurts_the_old_name_and_makes_the_new_one(watched: Watched) -> None:
    pairs("cali1")
    watched.take()
    index = index_of("cali1")
    ip("link set cali1 down", "link set cali1 name cali9", "link set cali9 up")
    events = watched.take()
    assert {"cali1", "cali9"} <= events.changed
    assert "cali1" in events.lost
    assert "cali1" not in watched.links.by_name
    assert watched.links.name_of(index) == "cali9"
    assert state(watched.links) == watched.fresh()


def test_two_interfaces_swap_their_names(watched: Watched) -> None:
    pairs("cali1", "cali2")
    watched.take()
    ip("link set cali1 down", "link set cali2 down")
    ip("link set cali1 name tmp", "link set cali2 name cali1", "link set tmp name cali2")
    events = watched.take()
    assert {"cali1", "cali2"} <= events.lost
    assert state(watched.links) == watched.fresh()


def test_a_name_that_comes_back_with_another_index(watched: Watched) -> None:
    pairs("cali1")
    watched.take()
    old = index_of("cali1")
    ip("link del cali1")
    pairs("cali1")
    events = watched.take()
    assert "cali1" in events.lost
    assert watched.links.by_name["cali1"].ifindex == index_of("cali1") != old
    assert watched.links.name_of(old) is None
    assert state(watched.links) == watched.fresh()


def test_an_index_that_comes_back_with_another_name(watched: Watched) -> None:
    ip("link add cali1 index 4000 type veth peer name p1")
    watched.clock.now = 1001
    watched.take()
    ip("link del cali1", "link add cali2 index 4000 type veth peer name p2")
    watched.clock.now = 1002
    events = watched.take()
    assert "cali1" in events.lost
    assert "cali2" in events.changed - events.lost
    assert watched.links.name_of(4000) == "cali2"
    assert watched.links.first_seen[4000] == 1002
    assert state(watched.links) == watched.fresh()


def test_a_new_mac_is_a_change_but_no_loss(watched: Watched) -> None:
    pairs("cali1")
    watched.take()
    ip("link set cali1 address 02:00:00:00:00:01")
    events = watched.take()
    assert (events.changed, events.lost) == ({"cali1"}, set())


def test_what_changes_nothing_for_us_is_no_event(watched: Watched) -> None:
    ip("link add br0 type bridge", "link set br0 up")
    pairs("cali1")
    watched.take()
    ip("link set cali1 txqueuelen 77", "link set cali1 alias hello", "link set cali1 master br0")
    events = watched.take()
    assert "cali1" not in events.changed | events.lost  # the bridge took a MAC of its own
    assert state(watched.links) == watched.fresh()


def test_first_seen_survives_a_dump(watched: Watched) -> None:
    pairs("cali1")
    watched.take()
    index = index_of("cali1")
    watched.clock.now = 2000
    pairs("cali2")
    read_links(watched.links)
    assert watched.links.first_seen[index] == 1000
    assert watched.links.first_seen[index_of("cali2")] == 2000


def test_a_dump_means_the_same_events_as_the_notifications_that_were_lost(watched: Watched) -> None:
    pairs("cali1", "cali2", "cali3", "cali4")
    watched.take()
    ip("link del cali1", "link set cali2 down", "link set cali3 down", "link set cali3 name cali9")
    pairs("cali5")
    events = read_links(watched.links)
    assert {"cali1", "cali2", "cali3"} <= events.lost
    assert {"cali5", "cali9"} <= events.changed
    assert "cali4" not in events.changed | events.lost
    assert state(watched.links) == watched.fresh()
    assert not read_links(watched.links)


def notification(index: int, name: str, *, up: bool, kind: int = rt.RTM_NEWLINK, spec: bytes = b"") -> Message:
    payload = bytes(4) + index.to_bytes(4, "little") + int(up).to_bytes(4, "little") + bytes(4)
    return Message(kind, 0, 0, payload + attribute(rt.IFLA_IFNAME, name.encode() + b"\0") + spec)


def test_a_message_without_settings_keeps_those_known() -> None:
    links = Links(Clock())
    asyncio.run(links.adopt([rt.Link(7, "cali1", True, b"", {"proxy_arp": 1}, {"accept_ra": 1})]))
    assert links.notify([notification(7, "cali1", up=False)]).lost == {"cali1"}
    assert links.by_name["cali1"].settings(Family.V4).get("proxy_arp") == 1
    assert links.by_name["cali1"].settings(Family.V6).get("accept_ra") == 1


def test_settings_that_are_known_are_no_news() -> None:
    """A node with many workloads is told of each of its own writes."""
    links = Links(Clock())
    asyncio.run(links.adopt([rt.Link(7, "cali1", up=True, mac=b"", inet={"forwarding": 0, "rp_filter": 0})]))
    links.tell_settings("cali1", Family.V4, {"forwarding": 1})
    told = links.by_name["cali1"]
    assert told.inet == {"forwarding": 1, "rp_filter": 0}
    links.tell_settings("cali1", Family.V4, {"forwarding": 1})
    links.tell_settings("gone", Family.V4, {"forwarding": 1})
    assert links.by_name == {"cali1": told}
    assert links.by_name["cali1"] is links.by_index[7] is told


def test_the_end_of_an_unknown_interface_is_no_event() -> None:
    assert not Links(Clock()).notify([notification(7, "cali1", up=True, kind=rt.RTM_DELLINK)])


def test_an_end_that_arrives_after_the_name_was_taken_again_spares_the_new_one() -> None:
    links = Links(Clock())
    links.notify([notification(7, "cali1", up=True), notification(8, "cali1", up=True)])
    events = links.notify([notification(7, "cali1", up=False, kind=rt.RTM_DELLINK)])
    assert events.lost == {"cali1"}  # looked at again, which costs little
    assert links.by_name["cali1"].ifindex == 8
