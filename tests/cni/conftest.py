"""A node with an agent and the plugin, in a network of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cni.lab import Node, build_plugin, running


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_plugin(tmp_path_factory.mktemp("plugin"))


@pytest.fixture
def node(network: None, plugin: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Node]:
    """Its agent runs; a test may give it an environment (``indirect``)."""
    with running(tmp_path, plugin, getattr(request, "param", {})) as found:
        yield found
