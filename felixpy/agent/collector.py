"""Python's garbage collector, kept from stopping the agent: a full collection takes 60 ms at 5,000 endpoints.

What the agent holds for long has no cycles and is freed by reference count. So full collections do not come by
themselves, but when ``tidy`` is called, and what they leave is not looked at again: each costs what is new since the
last one, or since ``keep``.
"""

from __future__ import annotations

import ctypes
import gc

NEVER = 1 << 30
YOUNG, MIDDLE = 2_000, 100
"""New objects until the young are looked at (0.1 ms), and that until those who survived are: a comparison of the kernel
holds many for a moment. Python's 700 and 10 cost 1.3 ms every 7,000 objects."""


class _Policy:
    active = False


def take_over() -> None:
    """From now on full collections happen in ``tidy`` only. For a process that is an agent and nothing else."""
    gc.freeze()  # what was imported stays
    gc.set_threshold(YOUNG, MIDDLE, NEVER)
    _Policy.active = True


def tidy() -> None:
    """Collect, and leave what stays out of later collections; nothing if ``take_over`` was not called."""
    if _Policy.active:
        gc.collect()
        gc.freeze()


def keep() -> None:
    """Leave what there is out of later collections without a look at it: what a start makes stays, and to look at that
    takes 60 ms with 5,000 endpoints and 1,000 policies.
    """
    if _Policy.active:
        gc.freeze()


def give_back() -> None:
    """Return to the system what was needed for a moment, as glibc does not: a snapshot needs much, and a comparison of
    the kernel, the first of which follows it.
    """
    if _Policy.active and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
