"""Python's garbage collector, kept from stopping the agent: a full collection takes 60 ms at 5,000 endpoints.

What the agent holds for long has no cycles and is freed by reference count. So full collections do not come by
themselves, but when ``tidy`` is called, and what they leave is not looked at again: each costs what is new since the
last one.
"""

from __future__ import annotations

import gc

NEVER = 1 << 30
YOUNG, MIDDLE = 10_000, 50
"""New objects until the young are collected, by default 700, which is every few updates; and that until the middle."""


class _Policy:
    active = False


def take_over() -> None:
    """From now on full collections happen in ``tidy`` only. For a process that is an agent and nothing else."""
    gc.set_threshold(YOUNG, MIDDLE, NEVER)
    _Policy.active = True


def tidy() -> None:
    """Collect, and leave what stays out of later collections; nothing if ``take_over`` was not called."""
    if _Policy.active:
        gc.collect()
        gc.freeze()
