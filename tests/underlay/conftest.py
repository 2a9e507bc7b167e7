"""A lab per test, in private namespaces."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netns import enter_new_network, enter_private_namespaces
from tests.underlay.lab import Lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    enter_private_namespaces()
    enter_new_network()
    found = Lab()
    try:
        yield found
    finally:
        found.close()
