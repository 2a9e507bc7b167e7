"""How many objects the agent takes from its source, whatever a publisher does: a bound for its memory and the kernel.

Invariant: an object that was taken is never given up for another one; its changes and its deletion always pass. An
object that is left out has no effect, which for an endpoint means that its packets are dropped.
"""

from __future__ import annotations

from felixpy.model.resources import ResourceKey, Update


class ObjectLimit:
    """Says of each update whether it is taken. ``left_out`` are the keys that the limit keeps out now."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.left_out: set[ResourceKey] = set()
        self._taken: set[ResourceKey] = set()

    def takes(self, update: Update) -> bool:
        """Whether the update counts. Invalid objects are objects, too: they are remembered with their reason."""
        key = update.key
        if update.resource is None and not update.error:
            self._taken.discard(key)
            self.left_out.discard(key)
            return True
        if key not in self._taken and len(self._taken) >= self.most:
            self.left_out.add(key)
            return False
        self._taken.add(key)
        self.left_out.discard(key)
        return True

    def reason(self) -> str:
        """What is left out and what to do; empty if nothing is."""
        if not self.left_out:
            return ""
        count = len(self.left_out)
        return (
            f"{count} objects beyond FELIX_MAXOBJECTS={self.most} are left out; raise it or delete other objects, then "
            "start the agent again"
        )
