"""What passes between the benchmark's processes: marks, notifications, the adapter protocol, the work itself."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from bench import expect, plan
from bench.comparators import iptables_addition, iptables_removal, nft_addition, nft_removal
from bench.example_adapter import Routes
from bench.external import delete_line, put_line, snapshot_lines
from bench.marks import Mark, MarksFile, kernel_time, own_share, stages, written
from bench.notifications import Record, words
from bench.observer import IPSET
from bench.workloads import CROWD, SPARES, Workload, cluster, scopes
from felixpy.model.net import FAMILIES, Family, Net, parse_address
from felixpy.model.parse import parse_payload
from felixpy.mqtt import topics
from felixpy.netlink import nftables, rtnetlink
from felixpy.netlink.message import Request
from felixpy.netlink.transport import NETLINK_NETFILTER, NETLINK_ROUTE

MARKS = """\
10 1005 received root/wep/node1/default/other
20 1010 decoded root/wep/node1/default/other
25 1012 applied
30 1015 received root/wep/node1/default/w1
40 1020 decoded root/wep/node1/default/w1
50 1025 calculated
60 1030 sent 100 4 65 1032
66 1033 answered 70 1035
71 1035 acknowledged
72 1036 beside asked 20 1 74 1037
73 1036 beside acknowledged
75 1037 sent 200 2 78 1039
79 1039 answered 80 1040
81 1040 acknowledged
90 1045 process nft
99 1049 applied
"""


def test_stages_are_those_of_the_topic(tmp_path: Path) -> None:
    path = tmp_path / "marks"
    file = MarksFile(path)
    path.write_text(MARKS + "100 1050 rece")
    marks = file.read()
    file.close()
    assert stages(marks, "default/w1") == {
        "received": 30, "decoded": 40, "calculated": 50, "sent": 60, "acknowledged": 81,
    }  # fmt: skip
    assert stages(marks, "default/absent") == {}
    assert kernel_time(marks, 30, 81) == 5 + 4 + 3 + 1
    assert own_share(marks, 30, 81) == 40 - 15 - (2 + 2 + 2 + 1)
    assert written(marks) == (6, 2, 300, 1)
    assert marks[-1] == Mark(99, 1049, "applied", ())


def datagram(request: Request) -> bytes:
    return struct.pack("=IHHII", 16 + len(request.payload), request.type, request.flags, 1, 0) + request.payload


def heard(request: Request, kind: int) -> list[str]:
    return list(words(Record(1, kind, datagram(request))))


def test_notifications_are_put_into_words() -> None:
    address, gateway = parse_address("10.0.0.1"), parse_address("192.0.2.1")
    key = rtnetlink.KernelRouteKey(Family.V4, Net.parse("10.0.0.0/26"), 0, 254)
    route = rtnetlink.KernelRoute(1, 3, gateway)
    assert heard(rtnetlink.route_request(key, route), NETLINK_ROUTE) == [
        "+route 10.0.0.0/26", "+route 10.0.0.0/26 via 192.0.2.1",
    ]  # fmt: skip
    host = key._replace(destination=Net.host(address))
    assert heard(rtnetlink.route_request(host, route._replace(gateway=None), delete=True), NETLINK_ROUTE) == [
        "-route 10.0.0.1"
    ]
    assert heard(rtnetlink.route_request(key._replace(table=255), route), NETLINK_ROUTE) == []
    neighbour = rtnetlink.KernelNeighbour(3, address, bytes(6), 0)
    assert heard(rtnetlink.neighbour_request(neighbour), NETLINK_ROUTE) == ["+neigh 10.0.0.1"]
    assert heard(rtnetlink.neighbour_request(neighbour, delete=True), NETLINK_ROUTE) == ["-neigh 10.0.0.1"]
    member = nftables.element(address + nftables.interface_name("cali1"))
    element = nftables.set_elements(nftables.DELSETELEM, Family.V4, "felixpy", "from-workload", [member])
    assert heard(element, NETLINK_NETFILTER) == ["-elem from-workload 10.0.0.1"]
    assert list(words(Record(1, IPSET, b"+member fpy4-pools 10.0.0.0/8"))) == ["+member fpy4-pools 10.0.0.0/8"]


def test_every_object_of_the_work_is_valid_and_at_its_topic() -> None:
    content = cluster(FAMILIES, 100)
    for topic, payload in content.items():
        key = topics.key_of(topic)
        assert key is not None
        ignored: list[str] = []
        resource = parse_payload(payload, key, ignored.append)
        assert topics.topic_of(resource) == topic  # type: ignore[arg-type]
        assert not ignored
    assert set(scopes(content)) == {"shared", "node/node1"}


def test_no_two_workloads_share_an_address_or_interface() -> None:
    everything = [Workload(number, shift) for number in range(CROWD + SPARES) for shift in range(4)]
    for family in FAMILIES:
        assert len({one.address(family) for one in everything}) == len(everything)
        assert all(parse_address(one.address(family)) for one in everything)
    assert len({one.interface for one in everything}) == CROWD + SPARES


def test_one_workload_more_is_expected_in_every_table() -> None:
    one = Workload(7)
    assert len(expect.workload(one, FAMILIES, "nftables")) == 8
    assert len(expect.workload(one, FAMILIES, "legacy", present=False)) == 8


def test_an_adapter_is_told_of_everything_and_then_of_changes() -> None:
    one = Workload(7)
    content = {one.topic: one.payload(FAMILIES), "sync/shared": b"{}"}
    told = [json.loads(line) for line in snapshot_lines(content, FAMILIES, "node1")]
    assert [message["op"] for message in told] == ["hello", "put", "complete"]
    assert told[0]["families"] == [4, 6]
    moved = json.loads(put_line(one._replace(shift=1).payload(FAMILIES)))
    gone = json.loads(delete_line(one))
    routes = Routes()
    assert routes.lines(told[0]) == []
    assert [line.split()[1] for line in routes.lines(told[1])] == ["replace", "replace"]
    assert [line.split()[1] for line in routes.lines(moved)] == ["replace", "replace", "del", "del"]
    assert [line.split()[1] for line in routes.lines(gone)] == ["del", "del"]
    assert routes.all_gone() == []


def test_comparators_remove_all_chains_that_they_add() -> None:
    one = Workload(7)
    added = {line.split()[0][1:] for line in iptables_addition([one], insert=True).splitlines() if line[0] == ":"}
    removed = {line.split()[1] for line in iptables_removal(one).splitlines() if line.startswith("-X")}
    assert added == removed
    assert all(len(chain) <= 28 for chain in added)
    chains = {line.split()[4] for line in nft_addition(one, FAMILIES).splitlines() if line.startswith("add chain")}
    gone = {line.split()[4] for line in nft_removal(one, FAMILIES).splitlines() if line.startswith("delete chain")}
    assert chains == gone


def test_plans_measure_what_the_budget_asks_for() -> None:
    cells = [cell for cell, _ in plan.full()]
    assert {cell.size for cell in cells if cell.backend == "nftables" and cell.mode == "dual"} == set(plan.SIZES)
    assert {cell.backend for cell in cells} == {"nftables", "legacy", "nft"}
    assert {cell.mode for cell in cells} == {"dual", "v4", "v6"}
    for one in (plan.quick(), plan.full()):
        assert one == plan.ordered(one)
        sizes = [cell.size for cell, _ in one if cell.mode == "dual"]
        assert sizes == sorted(sizes), "a network only grows"
