"""How many objects the agent takes from its source, whatever a publisher does: a bound for its memory and the kernel.

Invariant: an object that was taken is never given up for another one; its changes and its deletion always pass. An
object that is left out has no effect, which for an endpoint means that its packets are dropped.
"""

from __future__ import annotations

from collections.abc import Callable

from felixpy.model.resources import Kind, ResourceKey, Update


class ObjectLimit:
    """Says of each update whether it is taken. ``left_out`` are the keys that the limit keeps out now."""

    def __init__(self, most: int, has_endpoint: Callable[[ResourceKey], bool]) -> None:
        """``has_endpoint``: whether a workload endpoint was taken and not deleted since. There may be thousands:
        no second list of them is kept here.
        """
        self.most = most
        self.left_out: set[ResourceKey] = set()
        self._has_endpoint = has_endpoint
        self._endpoints = 0
        self._others: set[ResourceKey] = set()

    def takes(self, update: Update) -> bool:
        """Whether the update counts. Invalid objects are objects, too: they are remembered with their reason."""
        key = update.key
        is_there, was_there = update.resource is not None or bool(update.error), self._has(key)
        if is_there and not was_there and self._endpoints + len(self._others) >= self.most:
            self.left_out.add(key)
            return False
        if key.kind is Kind.WORKLOAD_ENDPOINT:
            self._endpoints += is_there - was_there
        else:
            (self._others.add if is_there else self._others.discard)(key)
        self.left_out.discard(key)
        return True

    def _has(self, key: ResourceKey) -> bool:
        return self._has_endpoint(key) if key.kind is Kind.WORKLOAD_ENDPOINT else key in self._others

    def reason(self) -> str:
        """What is left out and what to do; empty if nothing is."""
        if not self.left_out:
            return ""
        count = len(self.left_out)
        return (
            f"{count} objects beyond FELIX_MAXOBJECTS={self.most} are left out; raise it or delete other objects, then "
            "start the agent again"
        )
