"""A node's network for each test, and a log that is kept for looking at instead of printed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from felixpy.agent import agent, comparisons
from felixpy.dataplane import table
from tests.drift.world import build_links
from tests.faults.node import add_foreign_state


@pytest.fixture
def log() -> Iterator[list[Any]]:
    """Everything that is logged, as dictionaries."""
    with structlog.testing.capture_logs() as entries:
        yield entries


@pytest.fixture(autouse=True)
def node_network(network: None, monkeypatch: pytest.MonkeyPatch, log: list[Any]) -> None:
    """``eth0``, ``cali1`` … ``cali5`` and what other programs have; pauses are a tenth of the real ones."""
    monkeypatch.setattr(table, "FIRST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(agent, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(comparisons, "RETRY_SECONDS", 0.1)
    build_links(5)
    add_foreign_state()
