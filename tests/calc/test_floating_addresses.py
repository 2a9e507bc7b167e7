"""Floating addresses (``spec.ipNATs``): what each becomes in the kernel, and whose it is."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from felixpy.calc.entries import Key, Value
from felixpy.calc.graph import ABSENT, Absent, Calculation
from felixpy.config import Settings
from felixpy.model.net import Net
from felixpy.model.resources import Update, WorkloadEndpoint
from tests.calc.samples import HOST_FACTS, SETTINGS, calculated, endpoint, problems

ON = replace(SETTINGS, floating_ips=True)
V4, V6 = ("203.0.113.9", "10.65.0.2"), ("2001:db8:f::9", "fd00:65::2")


def floating(calculation: Calculation) -> dict[str, str]:
    """Members of the maps, and routes to floating addresses."""
    found = {}
    for key, value in calculation.entries().items():
        if "floating" in str(key):
            assert isinstance(value, bytes)
            found[str(key)] = str(Net.host(value)).partition("/")[0]
        elif str(key).startswith(("203.0.113.", "2001:db8:f:")):
            found[str(key)] = str(value)
    return found


def with_floating(name: str, address: str, *external: str, created: str = "") -> WorkloadEndpoint:
    return endpoint(name, address, created=created, floating=[(one, address) for one in external])


def test_it_is_two_members_and_a_route_for_each_family() -> None:
    one = endpoint("a", "10.65.0.2", "fd00:65::2", interface="cali1", floating=[V4, V6])
    calculation = calculated(one, settings=ON)
    assert floating(calculation) == {
        "203.0.113.9/32 metric 0": "dev cali1",
        "2001:db8:f::9/128 metric 1024": "dev cali1",
        "floating { 203.0.113.9 }": "10.65.0.2",
        "floating { 2001:db8:f::9 }": "fd00:65::2",
        "floating-loops { 10.65.0.2 }": "203.0.113.9",
        "floating-loops { fd00:65::2 }": "2001:db8:f::9",
    }
    assert calculation.problems == {}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (replace(ON, ipv6_support=False), {"203.0.113.9"}),
        (replace(ON, ipv4_support=False), {"2001:db8:f::9"}),
        (replace(ON, ipv4_support=False, ipv6_support=False), set()),
    ],
)
def test_families_that_are_off_have_none(settings: Settings, expected: set[str]) -> None:
    calculation = calculated(endpoint("a", "10.65.0.2", "fd00:65::2", floating=[V4, V6]), settings=settings)
    assert {key.split(" ")[2] for key in floating(calculation) if key.startswith("floating {")} == expected


def test_the_setting_is_off_by_default_and_that_is_told() -> None:
    calculation = calculated(endpoint("a", "10.65.0.2", floating=[V4]))
    assert floating(calculation) == {}
    assert problems(calculation) == {"a": "spec.ipNATs has no effect: the setting FloatingIPs is Disabled"}
    calculation.reconfigure(ON, HOST_FACTS)
    assert "floating { 203.0.113.9 }" in floating(calculation) and problems(calculation) == {}
    calculation.reconfigure(SETTINGS, HOST_FACTS)
    assert floating(calculation) == {}


def test_a_workload_that_calls_itself_is_seen_as_the_first_of_several() -> None:
    calculation = calculated(with_floating("a", "10.65.0.2", "203.0.113.9", "203.0.113.10"), settings=ON)
    assert floating(calculation)["floating-loops { 10.65.0.2 }"] == "203.0.113.9"


def test_of_two_claimants_the_youngest_has_it_and_the_other_takes_over() -> None:
    old = with_floating("a", "10.65.0.2", "203.0.113.9", created="2026-01-01T00:00:00Z")
    young = with_floating("b", "10.65.0.3", "203.0.113.9", created="2026-01-02T00:00:00Z")
    calculation = calculated(old, young, settings=ON)
    assert floating(calculation)["floating { 203.0.113.9 }"] == "10.65.0.3"
    taken = "floating address 203.0.113.9/32 is already used by WorkloadEndpoint default/b"
    assert problems(calculation) == {"a": taken}
    changes = calculation.calculate(calculation.store.apply(Update(young.key, None)))
    assert named(changes)["floating { 203.0.113.9 }"] == bytes((10, 65, 0, 2))
    assert problems(calculation) == {}


def named(changes: dict[Key, Value | Absent]) -> dict[str, Value | Absent]:
    return {str(key): value for key, value in changes.items()}


def test_an_address_of_a_workload_is_its_own_first() -> None:
    claimant, owner = with_floating("a", "10.65.0.2", "203.0.113.9"), endpoint("b", "203.0.113.9")
    calculation = calculated(claimant, settings=ON)
    changes = calculation.calculate(calculation.store.apply(Update(owner.key, owner)))
    assert named(changes)["floating { 203.0.113.9 }"] is ABSENT
    assert list(problems(calculation)) == ["a"]
    calculation.calculate(calculation.store.apply(Update(owner.key, None)))
    assert floating(calculation)["floating { 203.0.113.9 }"] == "10.65.0.2"


def test_it_leads_to_no_address_that_another_endpoint_has() -> None:
    loser = with_floating("a", "10.65.0.2", "203.0.113.9", created="2026-01-01T00:00:00Z")
    winner = endpoint("b", "10.65.0.2", created="2026-01-02T00:00:00Z")
    assert floating(calculated(loser, winner, settings=ON)) == {}


def test_what_the_node_itself_has_or_needs_is_nobodys() -> None:
    calculation = calculated(with_floating("a", "10.65.0.2", "192.0.2.1", "203.0.113.10"), settings=ON)
    assert {key for key in floating(calculation) if key.startswith("floating {")} == {"floating { 203.0.113.10 }"}
    (words,) = problems(calculation).values()
    assert words.startswith("floating address 192.0.2.1/32 is this node's own (eth0)")


def test_a_link_that_goes_down_gives_it_to_the_other_claimant() -> None:
    one, other = with_floating("a", "10.65.0.2", "203.0.113.9"), with_floating("b", "10.65.0.3", "203.0.113.9")
    calculation = calculated(one, other, settings=ON)
    for interface, up, internal in (("cali-b", True, "10.65.0.3"), ("cali-b", False, "10.65.0.2")):
        calculation.calculate(calculation.store.link(interface, up=up))
        assert floating(calculation)["floating { 203.0.113.9 }"] == internal
