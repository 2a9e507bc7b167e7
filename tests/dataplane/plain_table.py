"""A keyed table of small numbers, for tests of what every table does."""

from __future__ import annotations

import asyncio

from felixpy.dataplane.table import Delta, KeyedTable, Waiting

Values = dict[str, int]


class Plain:
    """A table whose kernel value is the wanted one times ten, on interfaces that can be absent."""

    def __init__(self) -> None:
        self.absent: set[str] = set()
        self.held: set[str] = set()  # keys that must not be removed yet
        self.resolved: list[str] = []
        self.table: KeyedTable[str, int, int] = KeyedTable(
            "plain",
            self._resolve,
            removable=lambda key, value: key not in self.held,
            interface_of=lambda key, value: key[0],
        )

    def _resolve(self, key: str, value: int) -> int:
        self.resolved.append(key)
        if key[0] in self.absent:
            raise Waiting(f"interface {key[0]} does not exist")
        return value * 10


def adopt(plain: Plain, found: Values, now: float = 0.0) -> None:
    """Take a dump during which nothing was written."""
    asyncio.run(plain.table.adopt(found, set(), now))


def write(plain: Plain, now: float = 0.0, refused: dict[str, str] | None = None) -> Delta[str, int]:
    delta = plain.table.delta(now)
    plain.table.record(delta, refused or {}, now)
    return delta
