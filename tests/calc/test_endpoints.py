"""Endpoints of this node: what each becomes in the kernel, and who wins what two of them claim."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from felixpy.calc.entries import SetName
from felixpy.calc.host import Host
from felixpy.config import Settings
from tests.calc.samples import HOST_FACTS, SETTINGS, calculated, endpoint, members, problems, routes, said
from tests.kernel import packed

V4_SETTINGS = {
    "net.ipv4.conf.cali1.forwarding": "1",
    "net.ipv4.conf.cali1.proxy_arp": "1",
    "net.ipv4.conf.cali1.route_localnet": "1",
    "net.ipv4.conf.cali1.rp_filter": "1",
    "net.ipv4.neigh.cali1.proxy_delay": "0",
}
V6_GUARD = {"net.ipv6.conf.cali1.accept_ra": "0"}
V6_SETTINGS = {**V6_GUARD, "net.ipv6.conf.cali1.forwarding": "1"}
V4_ADDRESS = {
    "10.65.0.2/32 metric 0": "dev cali1",
    "from-workload { 10.65.0.2 . cali1 }": "",
    "to-workload { 10.65.0.2 . cali1 }": "",
}
V6_ADDRESS = {
    "fd00:65::2/128 metric 1024": "dev cali1",
    "from-workload { fd00:65::2 . cali1 }": "",
    "to-workload { fd00:65::2 . cali1 }": "",
}
DUAL = endpoint("a", "10.65.0.2", "fd00:65::2", interface="cali1")
NO_V4, NO_V6 = replace(SETTINGS, ipv4_support=False), replace(SETTINGS, ipv6_support=False)
NO_KERNEL_V6 = replace(HOST_FACTS, ipv6=False)


@pytest.mark.parametrize(
    ("settings", "host", "expected"),
    [
        (SETTINGS, HOST_FACTS, {**V4_ADDRESS, **V6_ADDRESS, **V4_SETTINGS, **V6_SETTINGS}),
        (NO_V6, HOST_FACTS, {**V4_ADDRESS, **V4_SETTINGS, **V6_GUARD}),
        (NO_V4, HOST_FACTS, {**V6_ADDRESS, **V6_SETTINGS}),
        (SETTINGS, NO_KERNEL_V6, {**V4_ADDRESS, **V4_SETTINGS}),
        (NO_V4, NO_KERNEL_V6, {}),
    ],
    ids=["dual", "v4 only", "v6 only", "kernel without v6", "nothing left"],
)
def test_families_that_are_off_leave_nothing(settings: Settings, host: Host, expected: dict[str, str]) -> None:
    calculation = calculated(DUAL, settings=settings, host=host)
    assert said(calculation) == expected
    assert calculation.problems == {}


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        (["10.65.0.2"], {**V4_ADDRESS, **V4_SETTINGS, **V6_GUARD}),
        (["fd00:65::2"], {**V6_ADDRESS, **V6_SETTINGS}),
        ([], V6_GUARD),
    ],
    ids=["v4", "v6", "none"],
)
def test_an_endpoint_has_state_of_its_own_families_only(addresses: list[str], expected: dict[str, str]) -> None:
    calculation = calculated(endpoint("a", *addresses, interface="cali1"))
    assert said(calculation) == expected
    assert problems(calculation) == ({} if addresses else {"a": "no address in spec.ipNetworks: not ready"})


def test_many_addresses_each_have_a_route_and_a_pair() -> None:
    calculation = calculated(endpoint("a", "10.65.0.2", "10.65.0.3", "fd00:65::2", "fd00:65::3", interface="cali1"))
    assert routes(calculation).keys() == {"10.65.0.2/32", "10.65.0.3/32", "fd00:65::2/128", "fd00:65::3/128"}
    for name in (SetName.FROM_WORKLOAD, SetName.TO_WORKLOAD):
        assert len(members(calculation, name)) == 4


def test_endpoints_of_other_nodes_leave_nothing() -> None:
    calculation = calculated(endpoint("a", "10.65.0.2", node="n2"))
    assert (said(calculation), calculation.problems) == ({}, {})


def test_an_endpoint_that_moves_away_leaves_nothing() -> None:
    calculation = calculated(DUAL, replace(DUAL, node="n2"))
    assert (said(calculation), calculation.problems) == ({}, {})


def test_a_mac_is_a_permanent_neighbour_of_every_address() -> None:
    calculation = calculated(endpoint("a", "10.65.0.2", "fd00:65::2", interface="cali1", mac="ee:ee:ee:ee:ee:01"))
    neighbours = {name: value for name, value in said(calculation).items() if name.endswith(" dev cali1")}
    assert neighbours == {
        "10.65.0.2 dev cali1": "ee:ee:ee:ee:ee:01",
        "fd00:65::2 dev cali1": "ee:ee:ee:ee:ee:01",
    }


def test_metrics_and_source_addresses_of_routes() -> None:
    settings = replace(
        SETTINGS,
        ipv4_normal_route_priority=7,
        ipv6_normal_route_priority=8,
        device_route_source_address=packed("192.0.2.1"),
        device_route_source_address_ipv6=packed("2001:db8::1"),
    )
    assert routes(calculated(DUAL, settings=settings)) == {
        "10.65.0.2/32 metric 7": "dev cali1 src 192.0.2.1",
        "fd00:65::2/128 metric 8": "dev cali1 src 2001:db8::1",
    }


def test_route_scope_and_protocol_are_the_kernels() -> None:
    calculation = calculated(DUAL, settings=replace(SETTINGS, device_route_protocol=77))
    found = {str(key): value for key, value in calculation.entries().items() if "metric" in str(key)}
    assert [(r.scope, r.protocol) for r in found.values()] == [(253, 77), (0, 77)]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("interface", "prefixes", "reason"),
    [
        ("eth0", ("cali",), "interface eth0 does not start with an InterfacePrefix (cali)"),
        ("tap7", ("cali", "veth"), "interface tap7 does not start with an InterfacePrefix (cali, veth)"),
        ("tap7", ("cali", "tap"), ""),
    ],
)
def test_only_workload_interfaces_are_programmed(interface: str, prefixes: tuple[str, ...], reason: str) -> None:
    calculation = calculated(
        endpoint("a", "10.65.0.2", interface=interface), settings=replace(SETTINGS, interface_prefix=prefixes)
    )
    assert problems(calculation) == ({"a": reason} if reason else {})
    assert bool(said(calculation)) is not bool(reason)


# --- two claims -------------------------------------------------------------------------------------------------

OLD, NEW = "2024-01-01T00:00:00Z", "2024-06-01T00:00:00Z"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize(
    ("created_a", "created_b", "winner"), [(OLD, NEW, "b"), (NEW, OLD, "a"), ("", NEW, "b"), ("", "", "a")]
)
def test_an_address_claimed_twice_is_the_youngests(
    order: tuple[int, int], created_a: str, created_b: str, winner: str
) -> None:
    rivals = [
        endpoint("a", "10.65.0.2", "10.65.0.8", "fd00:65::2", created=created_a),
        endpoint("b", "10.65.0.2", "10.65.0.9", "fd00:65::3", created=created_b),
    ]
    calculation = calculated(*(rivals[index] for index in order))
    loser = "b" if winner == "a" else "a"
    assert routes(calculation) == {
        "10.65.0.2/32": f"dev cali-{winner}",
        "10.65.0.8/32": "dev cali-a",
        "10.65.0.9/32": "dev cali-b",
        "fd00:65::2/128": "dev cali-a",
        "fd00:65::3/128": "dev cali-b",
    }
    assert problems(calculation) == {
        loser: f"address 10.65.0.2/32 is already used by WorkloadEndpoint default/{winner}"
    }
    pairs = members(calculation, SetName.FROM_WORKLOAD)
    assert f"from-workload {{ 10.65.0.2 . cali-{loser} }}" not in pairs  # the loser cannot send from it


def test_the_loser_takes_over_when_the_winner_goes() -> None:
    a, b = endpoint("a", "10.65.0.2", created=OLD), endpoint("b", "10.65.0.2", created=NEW)
    calculation = calculated(a, b, replace(b, node="n2"))
    assert routes(calculation) == {"10.65.0.2/32": "dev cali-a"}
    assert calculation.problems == {}
    calculation = calculated(a, b, endpoint("b", "10.65.0.3", created=NEW))
    assert routes(calculation) == {"10.65.0.2/32": "dev cali-a", "10.65.0.3/32": "dev cali-b"}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_interface_claimed_twice_is_the_youngests_alone(order: tuple[int, int]) -> None:
    rivals = [
        endpoint("a", "10.65.0.2", interface="cali1", created=OLD),
        endpoint("b", "10.65.0.3", interface="cali1", created=NEW),
    ]
    calculation = calculated(*(rivals[index] for index in order))
    assert routes(calculation) == {"10.65.0.3/32": "dev cali1"}
    assert problems(calculation) == {"a": "interface cali1 is already used by WorkloadEndpoint default/b"}


def test_a_conflict_with_an_endpoint_elsewhere_is_none() -> None:
    calculation = calculated(endpoint("a", "10.65.0.2"), endpoint("b", "10.65.0.2", node="n2", created=NEW))
    assert (routes(calculation), calculation.problems) == ({"10.65.0.2/32": "dev cali-a"}, {})


# --- allowed sources --------------------------------------------------------------------------------------------

SPOOFER = endpoint(
    "a", "10.65.0.2", interface="cali1", sources=["172.16.0.0/12", "172.16.5.0/24", "172.16.0.0/12", "fd00:9::/64"]
)
ANY = replace(SETTINGS, workload_source_spoofing_any=True)


def test_spoofed_sources_count_only_where_they_are_honoured() -> None:
    calculation = calculated(SPOOFER)
    assert members(calculation, SetName.ALLOWED_SOURCES) == set()
    assert said(calculation)["net.ipv4.conf.cali1.rp_filter"] == "1"


def test_spoofed_sources_are_prefixes_that_do_not_cover_each_other() -> None:
    calculation = calculated(SPOOFER, settings=ANY)
    assert members(calculation, SetName.ALLOWED_SOURCES) == {
        "allowed-sources { 172.16.0.0/12 . cali1 }",
        "allowed-sources { fd00:9::/64 . cali1 }",
    }
    assert said(calculation)["net.ipv4.conf.cali1.rp_filter"] == "0"  # or the kernel drops them


def test_spoofed_sources_of_a_family_that_is_off_are_left_out() -> None:
    calculation = calculated(SPOOFER, settings=replace(ANY, ipv6_support=False))
    assert members(calculation, SetName.ALLOWED_SOURCES) == {"allowed-sources { 172.16.0.0/12 . cali1 }"}


@pytest.mark.parametrize("rp_filter", [0, 1, 2])
def test_reverse_path_filtering_follows_the_hosts_default(rp_filter: int) -> None:
    calculation = calculated(DUAL, settings=ANY, host=replace(HOST_FACTS, rp_filter=rp_filter))
    assert said(calculation)["net.ipv4.conf.cali1.rp_filter"] == str(rp_filter)
