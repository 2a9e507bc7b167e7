"""The endpoints of other nodes that a node follows because policies ask for them: a scope per node. Pure.

Up to a limit of them are followed, which is judged before the first snapshot is complete: later the number may grow,
and what was followed stays followed, because to forget endpoints would open what a Deny names. Invariant: a node of
which neither manifest nor topic is known has no scope.
"""

from __future__ import annotations

from collections.abc import Iterable

from felixpy.mqtt import topics
from felixpy.mqtt.scope import Scope

FILTERS = tuple(f"{segment}/+/#" for segment in topics.NODE_SEGMENTS)
"""Instead of the filters of the own endpoints, which they include."""

MANIFESTS = f"{topics.manifest_topic('node')}/+"


class OtherNodes:
    """Scopes by their names, and how many endpoints they have together."""

    def __init__(self, limit: int) -> None:
        self.scopes: dict[str, Scope] = {}
        self.unknown = "" if limit else "FELIX_MQTTPEERS=Disabled"
        """Why the endpoints of other nodes are not followed; empty if they are."""
        self._limit = limit
        self._sizes: dict[str, int] = {}
        self.endpoints = 0
        """As many as there are, or as manifests say if that is more."""

    @property
    def are_followed(self) -> bool:
        return not self.unknown

    def scope(self, name: str) -> Scope | None:
        """The scope of another node, made if need be; None if others are not followed."""
        found = self.scopes.get(name)
        if found is None and self.are_followed and name.startswith("node/"):
            found = self.scopes[name] = Scope(name, topics.NODE_SEGMENTS, is_peers=True)
        return found

    def count(self, scope: Scope) -> None:
        """A scope has changed. One of which nothing is left is forgotten."""
        told = scope.manifest.total(scope.segments) if scope.manifest else 0
        size = max(told, sum(len(group.known) for group in scope.groups.values()))
        self.endpoints += size - self._sizes.pop(scope.name, 0)
        if size or scope.manifest or scope.manifest_error:
            self._sizes[scope.name] = size
        else:
            del self.scopes[scope.name]

    @property
    def are_too_many(self) -> bool:
        return self.endpoints > self._limit

    def too_many(self) -> str:
        return f"there are {self.endpoints}, and {self._limit} are followed (FELIX_MQTTPEERS)"

    def give_up(self, reason: str) -> list[str]:
        """Follow them no longer, and return their topics."""
        self.unknown, self.endpoints = reason, 0
        known = [topic for scope in self.scopes.values() for group in scope.groups.values() for topic in group.known]
        self.scopes.clear()
        self._sizes.clear()
        return known


def hidden(nodes: Iterable[str], own: str) -> str:
    """Why there may be endpoints of other nodes although the broker shows none; empty if there are no other nodes."""
    others = sum(name != own for name in nodes)
    if not others:
        return ""
    return (
        f"the broker shows none of {others} other nodes; if they have any, its access rules hide them "
        "(config/mosquitto.acl)"
    )
