"""A node's calculation of policy on its own: objects in, entries out."""

from __future__ import annotations

from collections.abc import Iterable

from felixpy.calc.policy.classes import PolicyKey, PolicyValue
from felixpy.calc.policy.graph import PolicyCalculation
from felixpy.calc.policy.output import GONE
from felixpy.calc.policy.settings import PolicySettings
from felixpy.model.net import FAMILIES
from felixpy.model.policy import PolicyAction
from felixpy.model.resources import Resource, ResourceKey, Update
from felixpy.store.store import Store
from tests.policy.walk import World

STRICT = PolicySettings(FAMILIES, without_profile=PolicyAction.DENY)


class Node:
    """Takes updates, and holds what it was told."""

    def __init__(self, name: str, settings: PolicySettings = STRICT, *, complete: bool = True) -> None:
        self.store = Store(name)
        self.policy = PolicyCalculation(self.store, settings)
        self.told: dict[PolicyKey, PolicyValue] = {}
        if complete:
            self.complete()

    def put(self, *resources: Resource) -> Node:
        for resource in resources:
            self.apply(resource.key, resource)
        return self

    def drop(self, *keys: ResourceKey) -> Node:
        for key in keys:
            self.apply(key, None)
        return self

    def apply(self, key: ResourceKey, resource: Resource | None, *, flush: bool = True) -> None:
        for dirty in self.store.apply(Update(key, resource)):
            self.policy.take(dirty)
        if flush:
            self.flush()

    def put_all(self, resources: Iterable[Resource]) -> Node:
        """In one go."""
        for resource in resources:
            self.apply(resource.key, resource, flush=False)
        self.flush()
        return self

    def complete(self) -> None:
        self.policy.complete()
        self.flush()

    def flush(self) -> dict[PolicyKey, object]:
        changes = self.policy.flush()
        for key, value in changes.items():
            if value is GONE:
                self.told.pop(key, None)
            else:
                self.told[key] = value  # type: ignore[assignment]
        return changes

    def world(self) -> World:
        """What the kernel would have, which must be what the calculation says that there is."""
        assert self.told == self.policy.entries()
        found = World(self.told)
        found.check()
        return found
