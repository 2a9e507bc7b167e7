"""Many messages of a dump decoded at once, which takes a half to a fifth of the time of one after another.

Nearly all messages of a dump have one form: what they have in common is looked at once. A decoder that finds a message
of another form has to take it apart by itself (``message.attributes``). Must never guess: a form is compared with every
header of a message.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeVar

from felixpy.netlink.message import ATTRIBUTE, NLA_TYPE_MASK, Message

T = TypeVar("T")

MAX_FORMS = 256
"""A node has a few kinds of interfaces, and names of a few lengths."""


def by_length(messages: Iterable[Message]) -> dict[int, list[Message]]:
    """Messages of a dump by the length of their payload: those with the same are nearly always of one form."""
    alike: defaultdict[int, list[Message]] = defaultdict(list)
    for message in messages:
        alike[len(message.payload)].append(message)
    return alike


def columns(layout: struct.Struct, alike: Iterable[Message]) -> list[tuple[Any, ...]]:
    """Payloads of ``layout``'s length, taken apart all at once: one tuple per field, with its value in each message."""
    return list(zip(*layout.iter_unpack(b"".join([message.payload for message in alike])), strict=True))


def same(column: tuple[T, ...], value: T) -> bool:
    """Whether a field has the same value in all messages."""
    return column.count(value) == len(column)


def tuples(kind: type[T], *fields: Iterable[Any]) -> Iterator[T]:
    """Named tuples of one kind from their fields, made without a Python call for each."""
    return map(partial(tuple.__new__, kind), zip(*fields, strict=False))  # type: ignore[type-var]


class Together(NamedTuple):
    """Messages with the same attributes in the same order, by column: the fields of the header, attributes by type."""

    header: list[tuple[Any, ...]]
    found: dict[int, tuple[Any, ...]]


def together(header: struct.Struct, alike: Sequence[Message], numbers: frozenset[int]) -> Together | None:
    """Take messages of one length apart in one go, whatever attributes they have; None if one has others.

    ``numbers`` are the types of attributes that hold 32 bits, which become ``int``; all others are bytes.
    """
    form = _form_of(alike[0].payload, header.size)
    layout = _layout_of(header.format, form, numbers)
    if layout is None or layout.size != len(alike[0].payload):
        return None
    taken = columns(layout, alike)
    fields = len(taken) - 2 * len(form)
    if not all(map(same, taken[fields::2], form)):
        return None
    kinds = (ATTRIBUTE.unpack(one)[1] & NLA_TYPE_MASK for one in form)
    return Together(taken[:fields], dict(zip(kinds, taken[fields + 1 :: 2], strict=True)))


def _form_of(data: bytes, offset: int) -> tuple[bytes, ...]:
    """The headers of the attributes of a message."""
    form = []
    while offset + ATTRIBUTE.size <= len(data):
        form.append(data[offset : offset + ATTRIBUTE.size])
        length, _ = ATTRIBUTE.unpack(form[-1])
        offset += max((length + 3) & ~3, ATTRIBUTE.size)
    return tuple(form)


@lru_cache(MAX_FORMS)
def _layout_of(header: str, form: tuple[bytes, ...], numbers: frozenset[int]) -> struct.Struct | None:
    """Header, then the header and value of each attribute; None if a length cannot be."""
    layout = header
    for length, kind in map(ATTRIBUTE.unpack, form):
        is_number = kind & NLA_TYPE_MASK in numbers
        if length < ATTRIBUTE.size or (is_number and length != ATTRIBUTE.size + 4):
            return None
        value = "I" if is_number else f"{length - ATTRIBUTE.size}s"
        layout += f"{ATTRIBUTE.size}s{value}{-length & 3}x"
    return struct.Struct(layout)


Path = tuple[int, ...]
"""Types from the outermost attribute to a nested one."""


class _Form(NamedTuple):
    """Of messages with the same attributes: how to take all headers out, what they are, where wanted values stand."""

    headers: struct.Struct
    expected: tuple[int, ...]
    places: list[tuple[Path, slice]]


class SomeAttributes:
    """Some attributes, nested ones too, of messages with many others.

    Most messages have the form of an earlier one. So one is taken apart attribute by attribute, and those that follow
    are compared with it, all headers at once: half of the time for a link, which has forty.
    """

    def __init__(self, offset: int, *wanted: Path) -> None:
        self._offset, self._wanted = offset, wanted
        self._nests = {path[:depth] for path in wanted for depth in range(1, len(path))}
        self._forms: dict[tuple[int, bytes], _Form] = {}

    def of(self, data: bytes) -> dict[Path, bytes]:
        """The wanted attributes that ``data`` has."""
        key = len(data), data[self._offset : self._offset + 4]  # the first of a link is its name: its length varies
        form = self._forms.get(key)
        if form is None or form.headers.unpack_from(data, self._offset) != form.expected:
            if len(self._forms) >= MAX_FORMS:
                self._forms.clear()
            form = self._forms[key] = self._form(data)
        return {path: data[place] for path, place in form.places}

    def _form(self, data: bytes) -> _Form:
        places: list[tuple[Path, slice]] = []
        headers = struct.Struct("=" + self._layout(data, self._offset, len(data), (), places))
        return _Form(headers, headers.unpack_from(data, self._offset), places)

    def _layout(self, data: bytes, offset: int, end: int, path: Path, places: list[tuple[Path, slice]]) -> str:
        layout = ""
        while offset + 4 <= end:
            length, kind = ATTRIBUTE.unpack_from(data, offset)
            if length < 4:
                break
            inside, start, following = (*path, kind & NLA_TYPE_MASK), offset + 4, min(offset + ((length + 3) & ~3), end)
            if inside in self._wanted:
                places.append((inside, slice(start, min(offset + length, end))))
            values = self._layout(data, start, following, inside, places) if inside in self._nests else ""
            layout += f"I{values}{following - start - struct.calcsize('=' + values)}x"
            offset = following
        return layout
