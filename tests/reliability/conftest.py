"""Each test has an empty network of its own, with the real kernel; broker, agent and test share it."""

from __future__ import annotations

import pytest

from tests.netns import enter_new_network, enter_private_namespaces


@pytest.fixture(scope="session")
def private_namespaces() -> None:
    enter_private_namespaces()


@pytest.fixture
def network(private_namespaces: None) -> None:
    """An empty network namespace with loopback."""
    enter_new_network()
