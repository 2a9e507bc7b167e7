"""Cases of packet-filter rules: packets, and what the rules say to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.underlay.vectors import Answer, elsewhere


def ask(case: dict[str, Any]) -> Iterator[Answer]:
    yield elsewhere("packets", "tests/behaviour/test_underlay.py sends them")
