"""The machine's own network, remembered before any test of this process leaves it: a build needs packages."""

from __future__ import annotations

import os

import pytest

_MACHINE_NETWORK = os.open("/proc/self/ns/net", os.O_RDONLY)


@pytest.fixture(scope="session")
def machine_network() -> int:
    """A descriptor to run a program in the machine's network, to fetch packages with."""
    return _MACHINE_NETWORK
