"""What a page asks the agent, and what it raises where it cannot be served."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Probe = Callable[[], tuple[bool, str]]
"""Answers whether all is well, and says why not."""

Details = Callable[[], Mapping[str, Any]]
"""What a probe shows beside its answer: ``components`` by name, each with ``ok`` and ``detail``."""


class ListenError(OSError):
    """An address cannot be had: one sentence with address, reason and setting."""
