"""Kernel tables under test: each in an empty network of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from felixpy.dataplane.nftables.filter import NftablesFilter
from felixpy.model.net import FAMILIES, Family

MakeNftables = Callable[[Family], NftablesFilter]


@pytest.fixture(params=FAMILIES, ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    return Family(request.param)


@pytest.fixture
def make_nftables(network: None) -> Iterator[MakeNftables]:
    """Makes nftables back-ends in the test's network, and closes them."""
    made: list[NftablesFilter] = []

    def make(family: Family) -> NftablesFilter:
        made.append(NftablesFilter(family))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def nftables(make_nftables: MakeNftables, family: Family) -> NftablesFilter:
    return make_nftables(family)
