"""Entries of policy as they change, for who writes them. Pure."""

from __future__ import annotations

from typing import Final

from felixpy.calc.policy.classes import MemberKey, PolicyKey, PolicySet, PolicySetKey, PolicyValue
from felixpy.model.net import Family

GONE: Final = object()
"""Marks an entry that nobody wants any more."""

PolicyChanges = dict[PolicyKey, "PolicyValue | object"]


class Output:
    """Entries as they change. Those of families that are off are known, and not told."""

    def __init__(self, families: tuple[Family, ...]) -> None:
        self.families = families
        self.changes: PolicyChanges = {}
        self.entries: dict[PolicyKey, PolicyValue] = {}
        """All but members, of which there may be hundreds of thousands: the sets know them."""

    def put(self, key: PolicyKey, value: PolicyValue) -> None:
        if self.entries.get(key, GONE) == value:
            return
        self.entries[key] = value
        self._tell(key, value)

    def drop(self, key: PolicyKey) -> None:
        if key in self.entries:
            del self.entries[key]
            self._tell(key, GONE)

    def set(self, key: PolicySetKey, value: PolicySet | None) -> None:
        if value is None:
            self.drop(key)
        else:
            self.put(key, value)

    def member(self, key: MemberKey, *, present: bool) -> None:
        self._tell(key, None if present else GONE)

    def _tell(self, key: PolicyKey, value: PolicyValue | object) -> None:
        if key.family in self.families:
            self.changes[key] = value

    def all(self) -> dict[PolicyKey, PolicyValue]:
        """Every entry of the families that are on, but for members."""
        return {key: value for key, value in self.entries.items() if key.family in self.families}

    def take_changes(self) -> PolicyChanges:
        """What changed since the last time."""
        changes, self.changes = self.changes, {}
        return changes
