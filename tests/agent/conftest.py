"""Each test has an empty network with two workload interfaces, and a broker in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.broker import Broker, running
from tests.kernel import ip, pairs


@pytest.fixture
def node(network: None) -> None:
    """A node's network: an uplink with addresses of both families, two workload interfaces."""
    pairs("eth0", "cali1", "cali2")
    ip("addr add 192.0.2.1/24 dev eth0", "addr add 2001:db8::1/64 dev eth0 nodad")
    ip("route add default via 192.0.2.254", "route add default via 2001:db8::fe")


@pytest.fixture
def broker(node: None, tmp_path: Path) -> Iterator[Broker]:
    with running(tmp_path) as process:
        yield process
