"""Every contract test runs against the fake and against the real kernel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from felixpy.dataplane.packet_filter import PacketFilter
from felixpy.model.net import FAMILIES, Family
from tests.contract.worlds import FILTERS, FakeWorld, KernelWorld, Tables, World


@pytest.fixture(params=FAMILIES, ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    return Family(request.param)


@pytest.fixture(params=["fake", "kernel"])
def tables(request: pytest.FixtureRequest, network: None) -> Iterator[Tables]:
    """Routing tables with the interfaces ``cali1`` and ``cali2``, both up."""
    world: World = FakeWorld() if request.param == "fake" else KernelWorld()
    world.add_link("cali1")
    world.add_link("cali2")
    yield Tables(world)
    world.socket.close()


@pytest.fixture(params=FILTERS)
def packet_filter(request: pytest.FixtureRequest, network: None, family: Family) -> Iterator[PacketFilter]:
    made = FILTERS[request.param](family)
    yield made
    made.close()
