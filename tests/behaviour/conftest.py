"""Runs ``async def`` tests on one event loop per worker, which also holds the labs.

``world`` is one lab per combination of back-end and mode, shared by all tests; a combination stays in one worker
(``tests/conftest.py``). A test puts back what it changes. ``@pytest.mark.modes("dual")`` limits a test to modes in
which it has a meaning: the others are not collected, so they are no skips.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator

import pytest

from .world import COMBINATIONS, Combination, World


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(
    scope="session",
    params=COMBINATIONS,
    ids=str,
)
def world(request: pytest.FixtureRequest, runner: asyncio.Runner) -> Iterator[World]:
    made = runner.run(World.start(request.param))
    yield made
    runner.run(made.lab.close())


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "modes(*names): the modes (dual, v4, v6) in which the test has a meaning")


def _has_meaning(item: pytest.Item) -> bool:
    marker = item.get_closest_marker("modes")
    callspec = getattr(item, "callspec", None)
    if marker is None or callspec is None:
        return True
    combination: Combination = callspec.params["world"]
    return str(combination.mode) in marker.args


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if _has_meaning(item)]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    runner: asyncio.Runner = pyfuncitem._request.getfixturevalue("runner")
    names = inspect.signature(pyfuncitem.obj).parameters
    runner.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    world = pyfuncitem.funcargs.get("world")
    if isinstance(world, World):
        world.assert_agents_run()
    return True
