"""One lab per back-end, dual stack, shared by the tests of this folder; a test puts back what it changes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from felixpy.demo.topology import Mode
from tests.behaviour.conftest import pytest_pyfunc_call, runner  # noqa: F401 - a hook and a fixture of this folder too
from tests.behaviour.world import Combination

from .flows import TrafficWorld

COMBINATIONS = [Combination(backend, Mode.DUAL) for backend in ("nftables", "legacy", "nft")]


@pytest.fixture(scope="package", params=COMBINATIONS, ids=str)
def world(request: pytest.FixtureRequest, runner: asyncio.Runner) -> Iterator[TrafficWorld]:  # noqa: F811
    made = runner.run(TrafficWorld.start(request.param))
    yield made
    runner.run(made.lab.close())
