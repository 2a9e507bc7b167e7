"""Whether JSON holds a key twice in one object, which decoders answer with the last of the two. Pure.

A decoded text that is encoded again has fewer ends of names than the text, if one was written over. Only where the
numbers differ is the text taken apart again, by a slower reader.
"""

from __future__ import annotations

import json
import re

import msgspec

_END = b'":'
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
    if _LOOSE_END.search(payload) or b"\\u" in payload:  # an escaped quote or colon would look like an end only later
        return True
    try:
        again = msgspec.json.encode(msgspec.json.decode(payload))
    except OverflowError:
        return True  # a number that this encoder does not write
    return payload.count(_END) != again.count(_END)


def _check(pairs: list[tuple[str, object]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise RepeatedKey(key)
        seen.add(key)
