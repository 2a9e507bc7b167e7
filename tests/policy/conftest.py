"""Dataplanes over every back-end in an empty network of the test's own, with the real kernel."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest

from felixpy.calc.graph import Changes
from felixpy.config import Settings
from felixpy.dataplane.apply import Dataplane
from felixpy.dataplane.links import Links
from felixpy.model.net import FAMILIES, Family
from tests.contract.worlds import FILTERS

MakeDataplane = Callable[[], "Node"]
BACKENDS = {name: make for name, make in FILTERS.items() if name != "fake"}


@pytest.fixture(params=FAMILIES, ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    return Family(request.param)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Node:
    """A dataplane of one family that has just started, without knowledge of the kernel."""

    def __init__(self, backend: str, family: Family, settings: Settings | None = None) -> None:
        self.family, self.backend = family, backend
        self.dataplane = Dataplane(settings or Settings(), Links(time.monotonic), {})
        self.dataplane.use_filters({family: BACKENDS[backend](family)}, {})
        self.dataplane.want_rules(nftables=backend == "nftables")
        self.tables = self.dataplane.filters[family]

    def want(self, entries: Changes) -> None:
        self.dataplane.want(entries)

    def read(self) -> None:
        asyncio.run(self.dataplane.read_filters())

    def apply(self) -> int:
        """Write what differs, which nothing may refuse. Returns how many entries were written."""
        report = asyncio.run(self.dataplane.apply(complete=True))
        assert not report.failures
        for table in (self.tables.chains, self.tables.elements, self.tables.sets):
            assert not table.refused
            assert not table.waiting
        return report.written

    def differences(self) -> list[str]:
        """What is not in the kernel as it is wanted."""
        self.read()
        return [" ".join(map(str, operation)) for operation in self.dataplane.plan()]


@pytest.fixture
def make_node(network: None, backend: str, family: Family) -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def make(settings: Settings | None = None) -> Node:
        made.append(Node(backend, family, settings))
        return made[-1]

    yield make
    for one in made:
        one.dataplane.close()
