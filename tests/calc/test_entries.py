"""Keys of all tables meet in one dictionary, and tuples of different types are equal where their fields are."""

from __future__ import annotations

from itertools import combinations

from felixpy.calc.entries import (
    AddressKey,
    DeviceKey,
    ElementKey,
    FdbKey,
    NeighbourKey,
    NexthopKey,
    PeerKey,
    PolicyRuleKey,
    RouteKey,
    SetName,
    SettingsKey,
)
from felixpy.model.net import Family, Net

NAME, ADDRESS, NET = "vxlan.calico", bytes(4), Net(bytes(4), 32)
KEYS = (
    AddressKey(ADDRESS, NAME),
    DeviceKey(Family.V4, NAME),
    ElementKey(SetName.HOSTS, NET, NAME),
    FdbKey(NAME, ADDRESS, Family.V4),
    NeighbourKey(NAME, ADDRESS),
    NexthopKey(Family.V4, NAME, NAME),
    PeerKey(Family.V4, NAME, ADDRESS),
    PolicyRuleKey(Family.V4, 99, 1, 1),
    RouteKey(Family.V4, NET, 0),
    SettingsKey(NAME, Family.V4),
)


def test_keys_of_different_tables_are_never_equal() -> None:
    for one, other in combinations(KEYS, 2):
        fields = zip(map(type, one), map(type, other), strict=False)
        assert len(one) != len(other) or any(kind is not same for kind, same in fields), (one, other)
