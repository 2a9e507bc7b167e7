"""Tests that need Debian's kernel; ``make test-kernels`` boots one for them (``tests/kernels/boot``).

One lab serves a whole module: a start of an agent takes ten seconds of this machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.netns import enter_new_network, enter_private_namespaces
from tests.underlay.lab import Lab

collect_ignore_glob = [] if os.environ.get("FELIXPY_TEST_KERNELS") == "1" else ["test_*.py"]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    enter_private_namespaces()
    enter_new_network()
    found = Lab()
    try:
        yield found
    finally:
        found.close()
