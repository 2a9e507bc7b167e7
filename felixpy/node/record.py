"""What a node says of itself, put together of what its parts say: a NodeState, the fields of a Node by its own word.

    record.say("wireguard", status={"wireguardPublicKey": key})      another word of the same part replaces the former

Invariant: a part's fields stand as long as it says them, and what has not changed is not told. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

API_VERSION, KIND = "felixpy/v1", "NodeState"

Fields = Mapping[str, Any]


class Record:
    """The record of one node. ``changed`` is called when a part says something else than before."""

    def __init__(self) -> None:
        self.changed: Callable[[], None] = lambda: None
        self._parts: dict[str, tuple[Fields, Fields]] = {}

    def say(self, part: str, *, spec: Fields | None = None, status: Fields | None = None) -> None:
        """Fields of the Node that a part knows; without any it knows nothing any more."""
        said = (spec or {}, status or {})
        if said == self._parts.get(part, ({}, {})):
            return
        self._parts[part] = said
        self.changed()

    def document(self, name: str, since: str) -> dict[str, Any]:
        """As an object; ``since``: when the node began to tell its addresses (RFC 3339)."""
        spec: dict[str, Any] = {}
        status: dict[str, Any] = {}
        for part in sorted(self._parts):
            _merge(spec, self._parts[part][0])
            _merge(status, self._parts[part][1])
        metadata = {"name": name, "creationTimestamp": since}
        found = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}
        return found | ({"status": status} if status else {})


def _merge(into: dict[str, Any], fields: Fields) -> None:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            _merge(into.setdefault(name, {}), value)
        else:
            into[name] = value
