"""A change as it is handed to an agent: objects to apply, keys to delete. One JSON text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from felixpy.model.documents import BadDocument, Document
from felixpy.model.invalid import InvalidResource
from felixpy.model.parse import parse_payload
from felixpy.model.resources import Absent, Kind, Resource, ResourceKey, Update
from felixpy.mqtt.batch import prepare, prepare_deletion
from felixpy.plain_error import PlainError


class ChangeError(PlainError):
    """A change cannot be read: one sentence for people."""


MOST_ROWS = 1_000
"""Of each list in an answer at most; what is beyond is counted."""


class Written(NamedTuple):
    """``data`` is for ``read``; ``notes`` are for who asks: what no agent acts upon."""

    data: bytes
    notes: tuple[str, ...]


class _Put(msgspec.Struct):
    key: tuple[str, str, str]
    object: msgspec.Raw


class _Change(msgspec.Struct):
    put: list[_Put]
    drop: list[tuple[str, str, str]]
    rows: int = MOST_ROWS


class Change(NamedTuple):
    """Updates, and how many rows an answer's lists may have."""

    updates: list[Update]
    rows: int


def write(
    apply: Iterable[Document | BadDocument], delete: Iterable[Document | BadDocument], rows: int = MOST_ROWS
) -> Written:
    """A change of documents; ``rows``: of each list in the answer.

    Raises:
        BadBatch: documents that ``felixpy apply`` or ``felixpy delete`` would refuse.
        ChangeError: an object is to be applied and deleted.
    """
    batch, gone = prepare(apply), prepare_deletion(delete)
    if both := {entry.key for entry in batch.entries} & {entry.key for entry in gone.entries}:
        raise ChangeError(f"{', '.join(map(str, sorted(both)))} would be applied and deleted; name it once")
    if not (batch.entries or gone.entries):
        raise ChangeError("the files hold no object that felixpy knows")
    change = _Change(
        [_Put(_names(entry.key), msgspec.Raw(entry.payload)) for entry in batch.entries],
        [_names(entry.key) for entry in gone.entries],
        rows,
    )
    return Written(msgspec.json.encode(change), batch.notes)


def read(data: bytes) -> Change:
    """What was written.

    Raises:
        ChangeError: it is none, or an object is not valid for an agent of this version.
    """
    try:
        change = msgspec.json.decode(data, type=_Change)
        puts = [_update(ResourceKey(Kind(put.key[0]), *put.key[1:]), bytes(put.object)) for put in change.put]
        drops = [Update(ResourceKey(Kind(kind), name, namespace), None) for kind, name, namespace in change.drop]
    except InvalidResource as error:
        raise ChangeError(f"{error.key or 'an object'}: {error}") from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ChangeError(f"what was sent is no change that this agent can read: {error}") from None
    return Change(puts + drops, max(0, min(change.rows, MOST_ROWS)))


def _update(key: ResourceKey, payload: bytes) -> Update:
    found: Resource | Absent = parse_payload(payload, key)
    return Update(key, None if isinstance(found, Absent) else found)


def _names(key: ResourceKey) -> tuple[str, str, str]:
    return key.kind.value, key.name, key.namespace
