"""Whether JSON holds a key twice in one object, which decoders answer with the last of the two. Pure.

A decoded text has fewer keys than the text has ends of names, if one was written over. Only where the numbers differ is
the text taken apart again, by a slower reader.
"""

from __future__ import annotations

import json
import re

import msgspec

_LOOSE_END = re.compile(rb'"[ \t\r\n]+:')


class RepeatedKey(ValueError):
    """A key stands twice in one object."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def repeated_key(payload: bytes) -> str | None:
    """The first key that stands twice in an object of a text that is JSON; None if there is none.

    Raises:
        ValueError, RecursionError: it is no JSON.
    """
    if not _may_repeat(payload):
        return None
    try:
        json.loads(payload, object_pairs_hook=_check)
    except RepeatedKey as error:
        return error.key
    return None


def _may_repeat(payload: bytes) -> bool:
    """Never False if a key does: every name has an end, and no two of a decoded object's keys are one."""
    if _LOOSE_END.search(payload):
        return True
    return payload.count(b'":') != _count_keys(msgspec.json.decode(payload))


def _count_keys(value: object) -> int:
    if isinstance(value, dict):
        return len(value) + sum(_count_keys(one) for one in value.values() if isinstance(one, dict | list))
    if isinstance(value, list):
        return sum(_count_keys(one) for one in value if isinstance(one, dict | list))
    return 0


def _check(pairs: list[tuple[str, object]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise RepeatedKey(key)
        seen.add(key)
