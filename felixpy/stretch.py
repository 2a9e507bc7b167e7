"""Where two sequences differ, as one stretch between what both begin with and what both end with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Stretch(NamedTuple):
    """Items from ``start`` to before ``old_end`` became those from ``start`` to before ``new_end``."""

    start: int
    old_end: int
    new_end: int


def changed(old: Sequence[object], new: Sequence[object]) -> Stretch:
    """The shortest such stretch; it is empty on both sides if they are equal."""
    shorter = min(len(old), len(new))
    start = 0
    while start < shorter and old[start] == new[start]:
        start += 1
    tail, most = 1, shorter - start
    while tail <= most and old[-tail] == new[-tail]:
        tail += 1
    return Stretch(start, len(old) - tail + 1, len(new) - tail + 1)
